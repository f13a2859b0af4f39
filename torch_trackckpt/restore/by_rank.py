"""Values that are stored for each process of a job: each takes its own, if there are as many as there were.

How they are stored: `graph.keys`. Where nothing is said of shapes, an empty string stands for none.
"""

from __future__ import annotations

import itertools
import json
import math

import torch

from torch_trackckpt.adapters.by_rank import ByRank, Resplits
from torch_trackckpt.bundle.dtypes import STRING
from torch_trackckpt.bundle.reader import CheckpointReader
from torch_trackckpt.distributed.group import rank_and_size
from torch_trackckpt.errors import DataLossError
from torch_trackckpt.graph.keys import BY_RANK, by_rank_shapes_key, is_by_rank
from torch_trackckpt.options import CheckpointOptions
from torch_trackckpt.trackable import Value

__all__ = ["read_value"]


def read_value(
    reader: CheckpointReader, key: str, options: CheckpointOptions, *, of_each: bool = False
) -> Value | ByRank:
    """The value under a key for this process, or those of all where this is one of another number of processes.

    Args:
        reader: the checkpoint.
        key: what it is stored under.
        options: those of the restore.
        of_each: asks for the values of all in any case.

    Raises:
        DataLossError: the value is damaged.
    """
    if not is_by_rank(key):
        return reader.get_tensor(key)
    stored = _Stored(reader, key)
    rank, size = rank_and_size()
    if stored.size == size and not of_each:
        own = stored.value_of(rank)
        if own is None and stored.is_run:
            # The state of this rank, if it has one, does not name the tensor.
            return stored.nothing
        if own is not None:
            return own
    values = {other: stored.value_of(other) for other in range(stored.size)}
    # A rank that does not have the object has no state of it.
    there = {other: value for other, value in values.items() if value is not None}
    return ByRank(there, Resplits(options.resplit, rank, size))


class _Stored:
    """What is stored of the values of all ranks under a key."""

    def __init__(self, reader: CheckpointReader, key: str) -> None:
        self._reader = reader
        self._key = key
        shape = reader.stored(key).shape
        if not shape:
            raise DataLossError(f"{key} of {reader.file_prefix!r} is one value, although its name is that of several.")
        self._shapes = self._read_shapes()
        self.size = shape[0] if self._shapes is None else len(self._shapes)
        """The number of ranks."""
        self.is_run = self._shapes is not None and reader.stored(key).dtype is not STRING
        """Whether the elements of all follow each other."""
        lengths = [0 if shape is None else math.prod(shape) for shape in self._shapes or ()]
        self._ends = list(itertools.accumulate(lengths, initial=0))
        if self._shapes is not None and shape != ((self._ends[-1],) if self.is_run else (self.size,)):
            raise self._damaged()

    def value_of(self, rank: int) -> Value | None:
        """That of a rank; None if it has none."""
        if self._shapes is None:
            value = self._reader.get_tensor(self._key, (rank,))
            return None if isinstance(value, bytes) and not value else value
        shape = self._shapes[rank]
        if shape is None:
            return None
        if not self.is_run:
            return self._reader.get_tensor(self._key, (rank,))
        begin, end = self._ends[rank : rank + 2]
        run = self.nothing if begin == end else self._reader.get_tensor(self._key, (slice(begin, end),))
        assert isinstance(run, torch.Tensor)
        return run.reshape(shape)

    @property
    def nothing(self) -> torch.Tensor:
        """A tensor of the type of theirs without an element."""
        found = self._reader.get_tensor(self._key, (slice(0, 0),))
        assert isinstance(found, torch.Tensor)
        return found

    def _read_shapes(self) -> list[tuple[int, ...] | None] | None:
        key = by_rank_shapes_key(self._key.removesuffix(BY_RANK))
        if not self._reader.has_tensor(key):
            return None
        try:
            text = self._reader.get_tensor(key)
            shapes = [None if shape is None else tuple(map(int, shape)) for shape in json.loads(bytes(text))]
        except (TypeError, ValueError, RecursionError) as error:
            raise self._damaged() from error
        if any(size < 0 for shape in shapes for size in shape or ()):
            raise self._damaged()
        return shapes

    def _damaged(self) -> DataLossError:
        return DataLossError(
            f"{self._key} of {self._reader.file_prefix!r} does not hold values of the shapes that are stored beside it."
        )
