"""Which tensor goes into which data file: the policies of TensorFlow, and the protocol for a policy of your own."""

from __future__ import annotations

import abc
import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torch_trackckpt.bundle.dtypes import DataType
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY, Value

__all__ = [
    "MaxShardSizePolicy",
    "ShardByTaskPolicy",
    "ShardableTensor",
    "ShardingCallback",
    "Shards",
]

Shards = Sequence[Mapping[str, Mapping[str, Value]]]
"""One mapping for each data file: checkpoint key -> slice specification -> the value of that slice."""

_logger = logging.getLogger("torch_trackckpt")


@dataclasses.dataclass(frozen=True)
class ShardableTensor:
    """A value that is about to be saved. TensorFlow's class of the same name."""

    tensor: Value
    """A tensor, a string scalar, or an array of ``bytes``."""
    dtype: DataType
    """The type that will be stored."""
    shape: tuple[int, ...]
    """The shape of ``tensor``."""
    device: torch.device
    """Where the tensor is; strings are on the CPU."""
    name: str
    """What the value is called in the object graph."""
    slice_spec: str
    """The part of a larger tensor that this value is, as in ``4 6 0,2:-``; empty for a whole tensor."""
    checkpoint_key: str
    """What the value is stored under."""
    trackable: object = None
    """The object whose value it is, where that is known."""


class ShardingCallback(abc.ABC):
    """Decides which values share a data file. TensorFlow's ``tf.train.experimental.ShardingCallback``.

    Give an instance to ``CheckpointOptions(experimental_sharding_callback=...)``. What it returns is checked: every
    value has to be in the shards, once, with its shape and type.

    Two callbacks are equal if they are of one class and their attributes are equal.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import Checkpoint, CheckpointOptions
        >>> from torch_trackckpt.sharding import ShardingCallback
        >>> class OneEach(ShardingCallback):
        ...     description = "every value in a file of its own"
        ...     def __call__(self, shardable_tensors):
        ...         return [{t.checkpoint_key: {t.slice_spec: t.tensor}} for t in shardable_tensors]
        >>> options = CheckpointOptions(experimental_sharding_callback=OneEach())
        >>> path = Checkpoint(x=torch.ones(2)).write(tempfile.mkdtemp() + "/ckpt", options)
        >>> import glob
        >>> len(glob.glob(path + ".data-*-of-00002"))
        2
    """

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """What the policy does, for messages."""

    @abc.abstractmethod
    def __call__(self, shardable_tensors: Sequence[ShardableTensor]) -> Shards:
        """Distributes the values, which come in the order of the data files, over shards."""

    def __hash__(self) -> int:
        hashable = {name: value for name, value in vars(self).items() if isinstance(value, str | int | float)}
        return hash((type(self), *sorted(hashable.items())))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)


class ShardByTaskPolicy(ShardingCallback):
    """One data file for each process that saves: TensorFlow's policy of this name, and its default. Here a large
    checkpoint has several by default; see `CheckpointOptions.experimental_sharding_callback`.

    Example:
        >>> from torch_trackckpt.sharding import ShardByTaskPolicy
        >>> ShardByTaskPolicy() == ShardByTaskPolicy()
        True
    """

    @property
    def description(self) -> str:
        return "Split tensors into shards based on task."

    def __call__(self, shardable_tensors: Sequence[ShardableTensor]) -> Shards:
        shard: dict[str, dict[str, Value]] = {}
        for shardable in shardable_tensors:
            shard.setdefault(shardable.checkpoint_key, {})[shardable.slice_spec] = shardable.tensor
        return [shard]


class MaxShardSizePolicy(ShardingCallback):
    """Data files of at most a size; tensors that do not fit are cut. TensorFlow's policy of this name.

    The cuts are TensorFlow's, byte for byte, but for two of its defects: tensors without elements are kept, and a
    tensor that no single cut makes small enough is cut along further dimensions instead of hanging. A single element
    that is larger than a file gets a file of its own, and a warning.

    Args:
        max_shard_size: bytes of tensor data for each file; the object graph is not counted.

    Raises:
        ValueError: the size is not positive.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import Checkpoint, CheckpointOptions, CheckpointReader
        >>> from torch_trackckpt.sharding import MaxShardSizePolicy
        >>> options = CheckpointOptions(experimental_sharding_callback=MaxShardSizePolicy(16))
        >>> path = Checkpoint(x=torch.arange(6)).write(tempfile.mkdtemp() + "/ckpt", options)
        >>> list(map(str, CheckpointReader(path).stored_slices("x/.ATTRIBUTES/VARIABLE_VALUE")))
        ['6 0,2', '6 2,2', '6 4,2']
    """

    def __init__(self, max_shard_size: int) -> None:
        if not 1 <= max_shard_size < math.inf:
            raise ValueError(f"max_shard_size must be a positive number of bytes, not {max_shard_size}.")
        self.max_shard_size = int(max_shard_size)

    @property
    def description(self) -> str:
        return "Split tensors into shards with a max shard size."

    def __call__(self, shardable_tensors: Sequence[ShardableTensor]) -> Shards:
        packer = _Packer(self.max_shard_size)
        for shardable in shardable_tensors:
            packer.place(shardable)
        return packer.shards()


@dataclasses.dataclass(frozen=True)
class _Box:
    """A part of the value that is being placed."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    def split(self, axis: int, length: int) -> tuple[_Box, _Box]:
        """The first ``length`` along an axis, and the rest."""
        offset, shape = list(self.offset), list(self.shape)
        offset[axis] += length
        shape[axis] -= length
        first = (*self.shape[:axis], length, *self.shape[axis + 1 :])
        return _Box(self.offset, first), _Box(tuple(offset), tuple(shape))


class _Packer:
    """Fills one shard after the other."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._room = limit
        self._shards: list[dict[str, dict[str, Value]]] = [{}]
        self._oversize: list[dict[str, dict[str, Value]]] = []

    def shards(self) -> Shards:
        """The shards so far; values that are larger than the limit come last."""
        return [shard for shard in (*self._shards, *self._oversize) if shard]

    def place(self, shardable: ShardableTensor) -> None:
        item_size, total_size = _item_size(shardable), _total_size(shardable)
        if not shardable.shape:
            self._place_scalar(shardable, total_size)
            return
        whole = _Box((0,) * len(shardable.shape), shardable.shape)
        pending = [whole]
        while pending:
            box = pending.pop()
            # Strings count by their sum while they are whole; once cut, each as the longest.
            size = total_size if box == whole else math.prod(box.shape) * item_size
            if size <= self._room:
                self._put(shardable, box, size)
                continue
            axis, length = _best_cut(box.shape, item_size, self._room)
            if length:
                first, rest = box.split(axis, length)
                self._put(shardable, first, math.prod(first.shape) * item_size)
                if self._room == 0:
                    self._open()
                pending.append(rest)
            elif self._shards[-1]:
                self._open()
                pending.append(box)
            elif math.prod(box.shape) == 1:
                self._put_oversize(shardable, box)
            else:
                # No cut along one axis makes the pieces small enough: a slab of 1 is cut along the other axes.
                axis = next(i for i, size in enumerate(box.shape) if size > 1)
                pending += reversed(box.split(axis, 1))

    def _place_scalar(self, shardable: ShardableTensor, size: int) -> None:
        box = _Box((), ())
        if size > self._limit:
            self._put_oversize(shardable, box)
            return
        if size > self._room:
            self._open()
        self._put(shardable, box, size)

    def _open(self) -> None:
        self._shards.append({})
        self._room = self._limit

    def _put(self, shardable: ShardableTensor, box: _Box, size: int) -> None:
        _add(self._shards[-1], shardable, box)
        self._room -= size

    def _put_oversize(self, shardable: ShardableTensor, box: _Box) -> None:
        _logger.warning(
            "%s holds an element that is larger than a shard of %d bytes; it gets a data file of its own.",
            shardable.checkpoint_key,
            self._limit,
        )
        self._oversize.append({})
        _add(self._oversize[-1], shardable, box)


def _add(shard: dict[str, dict[str, Value]], shardable: ShardableTensor, box: _Box) -> None:
    whole = TensorSlice.parse(shardable.slice_spec) if shardable.slice_spec else None
    if not shardable.shape or 0 in shardable.shape:
        shard.setdefault(shardable.checkpoint_key, {})[shardable.slice_spec] = shardable.tensor
        return
    part = TensorSlice.box(shardable.shape, box.offset, box.shape)
    value: Any = shardable.tensor
    if not part.is_whole:
        value = value[tuple(slice(o, o + n) for o, n in zip(box.offset, box.shape, strict=True))]
    spec = part if whole is None else part.within(whole)
    shard.setdefault(shardable.checkpoint_key, {})[str(spec)] = value


def _best_cut(shape: tuple[int, ...], item_size: int, room: int) -> tuple[int, int]:
    """The axis along which the fewest pieces are needed, and the length of the first of them; 0 if none fits."""
    num_elements = math.prod(shape)
    best, fewest = 0, _num_parts(shape[0], num_elements // shape[0] * item_size, room)
    for axis in range(1, len(shape)):
        parts = _num_parts(shape[axis], num_elements // shape[axis] * item_size, room)
        if parts and (not fewest or parts < fewest) and num_elements * item_size / parts <= room:
            best, fewest = axis, parts
    return best, -(-shape[best] // fewest) if fewest else 0


def _num_parts(length: int, bytes_of_one: int, room: int) -> int:
    """Into how many pieces an axis has to be cut; 0 if not even one step along it fits."""
    per_part = room // bytes_of_one
    return -(-length // per_part) if per_part else 0


def _item_size(shardable: ShardableTensor) -> int:
    """Bytes of one element; for strings, of the longest."""
    if isinstance(shardable.tensor, torch.Tensor):
        return shardable.tensor.element_size()
    if isinstance(shardable.tensor, bytes):
        return len(shardable.tensor)
    return max((len(element) for element in shardable.tensor.ravel()), default=0)


def _total_size(shardable: ShardableTensor) -> int:
    """Bytes of a value; the object graph counts as nothing."""
    value = shardable.tensor
    if shardable.checkpoint_key == OBJECT_GRAPH_KEY:
        return 0
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return len(value) if isinstance(value, bytes) else sum(map(len, value.ravel()))
