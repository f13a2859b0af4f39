"""Which value goes into which shard, and whether it can be written at all.

A plan has columns: what is known of value number i is in row i of each. Tensors in plain memory are described by
native code, many in one call, and nothing is done for a single one of them in Python. Only what is left is looked at
row by row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from torch_trackckpt import _native
from torch_trackckpt.bundle.dtypes import STRING, DataType, data_type_of_torch
from torch_trackckpt.bundle.memory import PLAIN_TYPES, memory_obstacle
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.devices.access import Devices
from torch_trackckpt.devices.pieces import Column, DeviceRows
from torch_trackckpt.distributed.dtensor import memory_of
from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.save.balance import balanced
from torch_trackckpt.save.late import LateCopy
from torch_trackckpt.save.validate import validate_shards
from torch_trackckpt.sharding import (
    MaxShardSizePolicy,
    ShardableTensor,
    ShardByTaskPolicy,
    ShardingCallback,
)
from torch_trackckpt.trackable import Value

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["SavePlan", "Wholes", "WriteItem", "make_plan", "plan_of"]

_HELD_BYTES = 64 << 10
"""Smaller memory stays the process's when it is freed, so that reading it does no harm: the move is noticed."""


@dataclasses.dataclass(frozen=True)
class WriteItem:
    """One value, or a part of one, that is looked at by itself."""

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


class Wholes:
    """Tensors that lie in several processes, and whether they change.

    torch counts the versions of such a tensor, and those of the one in which this process has its part, each for
    itself: an operation on the former moves its number alone, and one on the latter moves only that, which is in the
    table of the plan.

    Args:
        tensors: each by its key.
    """

    def __init__(self, tensors: Mapping[str, DTensor]) -> None:
        self._keys = list(tensors)
        self._tensors = list(tensors.values())
        self._table = _native.TensorTable(list(self._tensors), ())
        self._memory = memory_of(self._tensors)

    def changed(self) -> list[str]:
        """The keys of those that torch knows to have changed, or that have another part here."""
        changed = set(self._table.changed())
        now = memory_of(self._tensors)
        changed.update(row for row, (old, new) in enumerate(zip(self._memory, now, strict=True)) if old is not new)
        return [self._keys[row] for row in sorted(changed)]


@dataclasses.dataclass(frozen=True)
class SavePlan:
    """What one checkpoint will hold."""

    keys: list[str]
    table: _native.TensorTable
    """Where tensors in plain memory lie, and whether any tensor has changed since the plan was made."""
    others: Mapping[int, WriteItem]
    """The rows that are looked at one by one, ascending: strings, parts of tensors, tensors with gaps between their
    elements, and tensors on devices to which there is no link."""
    is_plain: np.ndarray[Any, np.dtype[np.bool_]]
    """For each row, whether it is in plain memory: neither among the others nor on a device."""
    sizes: Column
    """The bytes of each row."""
    shards: tuple[Column, ...]
    """The rows of each data file, in its order."""
    devices: tuple[DeviceRows, ...] = ()
    """The rows of tensors on devices, by device."""
    held: Sequence[torch.Tensor] = ()
    """Aliases of large tensors in plain memory: it stays also when a tensor gets other memory meanwhile."""
    late: LateCopy | None = None
    """The values that are not there yet, of an asynchronous save."""
    wholes: Wholes | None = None
    """Tensors that lie in several processes, as long as rows are in the memory of what this one has of them."""

    @property
    def num_bytes(self) -> int:
        """The bytes of all values."""
        return int(self.sizes.sum())


def make_plan(
    keys: Sequence[str],
    values: Sequence[Value],
    sharding: ShardingCallback | None = None,
    num_threads: int = 1,
    devices: Devices | None = None,
) -> SavePlan:
    """Plans shards that hold every value, in the order in which they are given and the callback leaves them.

    Args:
        keys, values: what is to be saved.
        sharding: the policy; None is one shard, or for a large checkpoint one for each thread.
        num_threads: how many threads are going to write.
        devices: the links to devices; without, tensors on devices are looked at one by one.

    Raises:
        UnsupportedValueError: a value cannot be written; the text names its key. No file exists yet.
        ShardingError: a callback of the user's did not hand back what it got.
    """
    if sharding is None:
        plan = plan_of(keys, values, devices=devices)
        strings = np.array([row for row, item in plan.others.items() if item.dtype is STRING], dtype=np.int64)
        return dataclasses.replace(plan, shards=balanced(plan.sizes, strings, num_threads))
    if type(sharding) is ShardByTaskPolicy:
        return plan_of(keys, values, devices=devices)
    shards = _sharded([_item(key, value) for key, value in zip(keys, values, strict=True)], sharding)
    placed = [value for shard in shards for value in shard]
    ends = np.cumsum([len(shard) for shard in shards])
    return plan_of(
        [key for key, _, _ in placed],
        [value for _, value, _ in placed],
        {row: part for row, (_, _, part) in enumerate(placed) if part is not None},
        tuple(np.split(np.arange(len(placed)), ends[:-1])),
        devices,
    )


def plan_of(
    keys: Sequence[str],
    values: Sequence[Value],
    parts: Mapping[int, TensorSlice] | None = None,
    shards: tuple[Column, ...] | None = None,
    devices: Devices | None = None,
) -> SavePlan:
    """A plan of given shards, or of one.

    Args:
        keys, values: the columns.
        parts: for rows that are parts of tensors, which.
        shards: the rows of each data file.
        devices: the links to devices.

    Raises:
        UnsupportedValueError: a value cannot be written; the text names its key.
    """
    keys, values, parts = list(keys), list(values), parts or {}
    table = _native.TensorTable(values, PLAIN_TYPES, with_devices=devices is not None)
    on_devices = () if devices is None else devices.rows(table, leave_out=list(parts))
    rows = sorted({*table.others(), *parts, *_without_link(table, on_devices)})
    others = {row: _item(keys[row], values[row], parts.get(row)) for row in rows}
    is_plain = np.ones(len(keys), dtype=bool)
    is_plain[rows] = False
    for of_device in on_devices:
        is_plain[of_device.rows] = False
    sizes = np.array(table.sizes(), dtype=np.int64)
    sizes[rows] = [item.num_bytes for item in others.values()]
    large = np.flatnonzero(is_plain & (sizes >= _HELD_BYTES)).tolist()
    held = [value.detach() for value in map(table.value, large)]
    # What is a part may be all of the memory of its process.
    held += [
        value.detach() for row in parts if isinstance(value := values[row], torch.Tensor) and sizes[row] >= _HELD_BYTES
    ]
    return SavePlan(keys, table, others, is_plain, sizes, shards or (np.arange(len(keys)),), on_devices, held)


def _without_link(table: _native.TensorTable, on_devices: tuple[DeviceRows, ...]) -> set[int]:
    """The rows on devices that cannot be copied by a link."""
    rows, _ = table.on_devices()
    return set(rows).difference(*(of_device.rows.tolist() for of_device in on_devices)) if rows else set()


def _sharded(items: list[WriteItem], sharding: ShardingCallback) -> list[list[tuple[str, Value, TensorSlice | None]]]:
    """What a callback puts into each shard: keys, values, and which parts they are."""
    shardables = [_shardable(item) for item in items]
    shards = sharding(shardables)
    if isinstance(shards, Iterator):
        shards = list(shards)
    if type(sharding) is not MaxShardSizePolicy:
        validate_shards(shards, shardables, sharding.description)
    return [
        [(key, value, _part(spec)) for key, values_of_key in shard.items() for spec, value in values_of_key.items()]
        for shard in shards
    ]


def _shardable(item: WriteItem) -> ShardableTensor:
    value = item.value
    device = value.device if isinstance(value, torch.Tensor) else torch.device("cpu")
    shape = () if isinstance(value, bytes) else tuple(value.shape)
    return ShardableTensor(value, item.dtype, shape, device, item.key, "", item.key)


def _part(spec: str) -> TensorSlice | None:
    part = TensorSlice.parse(spec)
    return None if part.is_whole else part


def _item(key: str, value: Value, part: TensorSlice | None = None) -> WriteItem:
    if not isinstance(value, torch.Tensor):
        return WriteItem(key, STRING, _checked_strings(key, value), part)
    if obstacle := memory_obstacle(value):
        raise UnsupportedValueError(f"{key}: {obstacle}")
    try:
        return WriteItem(key, data_type_of_torch(value.dtype), value, part)
    except UnsupportedValueError as error:
        raise UnsupportedValueError(f"{key}: {error}") from error


def _checked_strings(key: str, value: object) -> bytes | np.ndarray[Any, np.dtype[np.object_]]:
    if isinstance(value, bytes):
        return value
    if isinstance(value, np.ndarray) and value.dtype == object and all(type(s) is bytes for s in value.ravel()):
        return value
    raise UnsupportedValueError(
        f"{key}: a value must be a torch.Tensor, bytes, or a NumPy object array of bytes, not {type(value).__name__}."
    )
