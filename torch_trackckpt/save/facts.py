"""What is known of the values of a rank without what is in them: types, shapes, and how they lie in several processes.

In a training all of this is the same from save to save, and so is everything that follows from it. To find out that it
is takes little: native code looks at tensors, and of DTensors what they are made of is compared.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Set
from typing import Any

import torch

from torch_trackckpt import _native
from torch_trackckpt.bundle.dtypes import data_type_of_torch
from torch_trackckpt.bundle.memory import PLAIN_TYPES, dtensor_types, memory_obstacle
from torch_trackckpt.distributed.dtensor import is_dtensor, layouts_of, memory_of
from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.graph.walk import Snapshot
from torch_trackckpt.trackable import Value

__all__ = ["Facts", "described", "digest_of"]


@dataclasses.dataclass(frozen=True)
class Facts:
    """Equal for values that every rank is told the same of."""

    graph: _native.GraphRecord
    """Which values there are."""
    types: list[type]
    """Their classes."""
    kinds: bytes
    """Types and shapes of tensors, of which those that lie in several processes are local ones here."""
    layouts: tuple[list[Any], ...]
    """How tensors lie in several processes."""
    others: list[object]
    """What else there is to say."""

    @classmethod
    def of(cls, snapshot: Snapshot, state_keys: Set[str]) -> tuple[Facts, list[Value]]:
        """Those of a snapshot; and its values, each DTensor as what this process has of it.

        Args:
            snapshot: the snapshot.
            state_keys: those of python states, of which nothing is a fact: they may be kept by rank.

        Raises:
            UnsupportedValueError: a tensor has no memory that can be saved.
        """
        keys, values, memory = snapshot.keys, snapshot.values, list(snapshot.values)
        types: list[type] = list(map(type, values))
        dtensors: list[Any] = []
        if of_dtensors := dtensor_types(types):
            rows = [row for row, cls in enumerate(types) if cls in of_dtensors]
            dtensors = [values[row] for row in rows]
            for row, local in zip(rows, memory_of(dtensors), strict=True):
                memory[row] = local
        lasting: list[Value | None] = list(memory)
        for row, key in enumerate(keys) if state_keys else ():
            if key in state_keys and not is_dtensor(values[row]):
                lasting[row], types[row] = None, object
        kinds, others = _native.kinds_of(lasting, PLAIN_TYPES)
        said = [_said_of(keys[row], values[row], memory[row]) for row in others if lasting[row] is not None]
        return cls(snapshot.graph, types, kinds, layouts_of(dtensors), said), memory


def _said_of(key: str, value: Value, memory: Value) -> object:
    if is_dtensor(value) and isinstance(memory, torch.Tensor):
        return memory.dtype, memory.shape
    return described(key, value)


def described(key: str, value: Value) -> str:
    """The type and shape of a value.

    Raises:
        UnsupportedValueError: it cannot be saved.
    """
    if not isinstance(value, torch.Tensor):
        return "a string" if isinstance(value, bytes) else f"strings {list(value.shape)}"
    if not is_dtensor(value) and (obstacle := memory_obstacle(value)):
        raise UnsupportedValueError(f"{key}: {obstacle}")
    try:
        dtype = data_type_of_torch(value.dtype)
    except UnsupportedValueError as error:
        raise UnsupportedValueError(f"{key}: {error}") from error
    kind = "a DTensor of " if is_dtensor(value) else "a parameter of " if isinstance(value, torch.nn.Parameter) else ""
    return f"{kind}{dtype} {list(value.shape)}"


def digest_of(key: str, value: Value) -> str:
    """What tells two states apart."""
    digest = hashlib.blake2b(described(key, value).encode(), digest_size=16)
    if isinstance(value, bytes):
        digest.update(value)
    elif isinstance(value, torch.Tensor):
        content = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        digest.update(content.flatten().view(torch.uint8).numpy().data)
    else:
        for string in value.ravel():
            digest.update(len(string).to_bytes(8, "little") + string)
    return digest.hexdigest()
