"""Which value goes into which shard, and whether it can be written at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from torch_trackckpt.bundle.dtypes import STRING, DataType, data_type_of_torch
from torch_trackckpt.bundle.memory import memory_obstacle
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.graph.walk import NamedValue
from torch_trackckpt.save.validate import validate_shards
from torch_trackckpt.sharding import (
    MaxShardSizePolicy,
    ShardableTensor,
    ShardByTaskPolicy,
    ShardingCallback,
)
from torch_trackckpt.trackable import Value

__all__ = ["SavePlan", "Shard", "WriteItem", "make_plan"]


@dataclasses.dataclass(frozen=True)
class WriteItem:
    """One value of a shard, or a part of one."""

    key: str
    dtype: DataType
    value: Value
    part: TensorSlice | None = None
    """Which part the value is of what has the key; None for the whole."""

    @property
    def num_bytes(self) -> int:
        """The bytes of the tensor, or of all strings together."""
        if isinstance(self.value, torch.Tensor):
            return self.value.nbytes
        return len(self.value) if isinstance(self.value, bytes) else sum(map(len, self.value.ravel()))


@dataclasses.dataclass(frozen=True)
class Shard:
    """The content of one data file, in its order."""

    items: tuple[WriteItem, ...]


@dataclasses.dataclass(frozen=True)
class SavePlan:
    """The shards of one checkpoint."""

    shards: tuple[Shard, ...]

    @property
    def items(self) -> list[WriteItem]:
        """Every value and part, live."""
        return [item for shard in self.shards for item in shard.items]


def make_plan(values: Iterable[NamedValue], sharding: ShardingCallback | None = None) -> SavePlan:
    """Plans shards that hold every value, in the order in which they are given and the callback leaves them.

    Args:
        values: what is to be saved.
        sharding: the policy; None is one shard.

    Raises:
        UnsupportedValueError: a value cannot be written; the text names its key. No file exists yet.
        ShardingError: a callback of the user's did not hand back what it got.
    """
    items = [_item(named) for named in values]
    if sharding is None or type(sharding) is ShardByTaskPolicy:
        return SavePlan((Shard(tuple(items)),))
    shardables = [_shardable(item) for item in items]
    shards = sharding(shardables)
    if isinstance(shards, Iterator):
        shards = list(shards)
    if type(sharding) is not MaxShardSizePolicy:
        validate_shards(shards, shardables, sharding.description)
    dtypes = {item.key: item.dtype for item in items}
    return SavePlan(
        tuple(
            Shard(
                tuple(
                    WriteItem(key, dtypes[key], value, _part(spec))
                    for key, values_of_key in shard.items()
                    for spec, value in values_of_key.items()
                )
            )
            for shard in shards
        )
    )


def _shardable(item: WriteItem) -> ShardableTensor:
    value = item.value
    device = value.device if isinstance(value, torch.Tensor) else torch.device("cpu")
    shape = () if isinstance(value, bytes) else tuple(value.shape)
    return ShardableTensor(value, item.dtype, shape, device, item.key, "", item.key)


def _part(spec: str) -> TensorSlice | None:
    part = TensorSlice.parse(spec)
    return None if part.is_whole else part


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
