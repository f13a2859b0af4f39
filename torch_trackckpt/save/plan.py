"""Which value goes into which shard, and whether it can be written at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from torch_trackckpt.bundle.dtypes import STRING, DataType, data_type_of_torch
from torch_trackckpt.bundle.memory import memory_obstacle
from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.graph.walk import NamedValue
from torch_trackckpt.trackable import Value

__all__ = ["SavePlan", "Shard", "WriteItem", "make_plan"]


@dataclasses.dataclass(frozen=True)
class WriteItem:
    """One value of a shard."""

    key: str
    dtype: DataType
    value: Value


@dataclasses.dataclass(frozen=True)
class Shard:
    """The content of one data file, in its order."""

    items: tuple[WriteItem, ...]


@dataclasses.dataclass(frozen=True)
class SavePlan:
    """The shards of one checkpoint."""

    shards: tuple[Shard, ...]


def make_plan(values: Iterable[NamedValue]) -> SavePlan:
    """Plans one shard that holds every value in the given order.

    Raises:
        UnsupportedValueError: a value cannot be written; the text names its key. No file exists yet.
    """
    return SavePlan((Shard(tuple(_item(named) for named in values)),))


def _item(named: NamedValue) -> WriteItem:
    if not isinstance(named.value, torch.Tensor):
        return WriteItem(named.key, STRING, _checked_strings(named.key, named.value))
    if obstacle := memory_obstacle(named.value):
        raise UnsupportedValueError(f"{named.key}: {obstacle}")
    try:
        return WriteItem(named.key, data_type_of_torch(named.value.dtype), named.value)
    except UnsupportedValueError as error:
        raise UnsupportedValueError(f"{named.key}: {error}") from error


def _checked_strings(key: str, value: object) -> bytes | np.ndarray[Any, np.dtype[np.object_]]:
    if isinstance(value, bytes):
        return value
    if isinstance(value, np.ndarray) and value.dtype == object and all(type(s) is bytes for s in value.ravel()):
        return value
    raise UnsupportedValueError(
        f"{key}: a value must be a torch.Tensor, bytes, or a NumPy object array of bytes, not {type(value).__name__}."
    )
