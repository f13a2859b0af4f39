"""Checks that a sharding callback handed back what it was given: each value whole, once, and as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from torch_trackckpt.bundle.memory import memory_obstacle
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.errors import ShardingError
from torch_trackckpt.sharding import ShardableTensor, Shards
from torch_trackckpt.trackable import Value

__all__ = ["validate_shards"]


def validate_shards(shards: Shards, shardable_tensors: Sequence[ShardableTensor], description: str) -> None:
    """Checks that shards hold exactly the values that were to be distributed.

    TensorFlow has these rules but does not apply them.

    Raises:
        ShardingError: a value is missing, new, there twice, or of another shape or type; or a shard is empty.
    """
    try:
        parts = _parts_by_key(shards)
        _check_keys(parts, shardable_tensors)
        for shardable in shardable_tensors:
            _check_parts(shardable, parts[shardable.checkpoint_key])
    except (ValueError, TypeError, AttributeError) as error:
        raise ShardingError(f"The sharding callback ({description}) made no valid shards: {error}") from error


def _parts_by_key(shards: Shards) -> dict[str, list[tuple[str, Value]]]:
    if not isinstance(shards, Sequence) or not all(
        isinstance(shard, Mapping) and all(isinstance(parts, Mapping) for parts in shard.values()) for shard in shards
    ):
        raise ValueError("they are no sequence of mappings from keys to mappings from slice specifications to values.")
    if not all(any(parts for parts in shard.values()) for shard in shards):
        raise ValueError("a shard holds nothing.")
    found: dict[str, list[tuple[str, Value]]] = {}
    for shard in shards:
        for key, parts in shard.items():
            found.setdefault(key, []).extend(parts.items())
    return found


def _check_keys(found: Mapping[str, object], shardable_tensors: Sequence[ShardableTensor]) -> None:
    wanted = {shardable.checkpoint_key for shardable in shardable_tensors}
    if missing := sorted(wanted - found.keys(), key=str):
        raise ValueError(f"{len(missing)} values are missing from them, the first is {missing[0]}.")
    if added := sorted(found.keys() - wanted, key=str):
        raise ValueError(f"they hold {len(added)} values that were not to be saved, the first is {added[0]}.")


def _check_parts(shardable: ShardableTensor, parts: list[tuple[str, Value]]) -> None:
    key = shardable.checkpoint_key
    outer = TensorSlice.parse(shardable.slice_spec) if shardable.slice_spec else TensorSlice.whole(shardable.shape)
    boxes = []
    for spec, value in parts:
        box = TensorSlice.parse(spec) if spec else TensorSlice.whole(outer.full_shape)
        if box.full_shape != outer.full_shape:
            raise ValueError(f"{key}: '{spec}' is no part of a tensor of shape {list(outer.full_shape)}.")
        if _type(value) != _type(shardable.tensor):
            raise ValueError(f"{key}: its type was {_type(shardable.tensor)} and is {_type(value)}.")
        if isinstance(value, torch.Tensor) and (obstacle := memory_obstacle(value)):
            raise ValueError(f"{key}: {obstacle}")
        if _shape(value) != box.shape:
            raise ValueError(f"{key}: a value of shape {list(_shape(value))} is said to be the part '{spec}'.")
        if not all(
            o <= b and b + n <= o + m
            for o, m, b, n in zip(outer.offset, outer.shape, box.offset, box.shape, strict=True)
        ):
            raise ValueError(f"{key}: '{spec}' is no part of '{outer}'.")
        boxes.append(box)
    if _any_overlap(boxes) or (outer.num_elements == 0 and len(boxes) > 1):
        raise ValueError(f"{key}: parts of it are there twice.")
    is_whole = len(boxes) > 1 or [box.shape for box in boxes] == [outer.shape]
    if not is_whole or sum(box.num_elements for box in boxes) != outer.num_elements:
        raise ValueError(f"{key}: parts of it are missing.")


def _any_overlap(boxes: list[TensorSlice]) -> bool:
    """Goes along the axis that is cut most often, and compares only boxes that reach the same place."""
    rank = len(boxes[0].full_shape) if boxes else 0
    if rank == 0:
        return len(boxes) > 1
    axis = max(range(rank), key=lambda axis: len({box.offset[axis] for box in boxes}))
    reaching: list[TensorSlice] = []
    for box in sorted(boxes, key=lambda box: box.offset[axis]):
        reaching = [other for other in reaching if other.offset[axis] + other.shape[axis] > box.offset[axis]]
        if any(box.overlaps(other) for other in reaching):
            return True
        reaching.append(box)
    return False


def _shape(value: Value) -> tuple[int, ...]:
    return () if isinstance(value, bytes) else tuple(value.shape)


def _type(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return str(value.dtype).removeprefix("torch.")
    if isinstance(value, bytes):
        return "string"
    if isinstance(value, np.ndarray) and value.dtype == object and all(type(s) is bytes for s in value.ravel()):
        return "string"
    return f"that of a {type(value).__name__}"
