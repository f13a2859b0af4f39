"""Values that are stored for each process of a job: each takes its own, if there are as many as there were."""

from __future__ import annotations

from torch_trackckpt.adapters.by_rank import ByRank, Resplits
from torch_trackckpt.bundle.reader import CheckpointReader
from torch_trackckpt.distributed.group import rank_and_size
from torch_trackckpt.errors import DataLossError
from torch_trackckpt.graph.keys import is_by_rank
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
    shape = reader.stored(key).shape
    if not shape:
        raise DataLossError(f"{key} of {reader.file_prefix!r} is one value, although its name is that of several.")
    rank, size = rank_and_size()
    if shape[0] == size and not of_each:
        own = reader.get_tensor(key, (rank,))
        if not isinstance(own, bytes) or own:
            return own
    values = {other: reader.get_tensor(key, (other,)) for other in range(shape[0])}
    # A rank that does not have the object has no state of it.
    there = {other: value for other, value in values.items() if not isinstance(value, bytes) or value}
    return ByRank(there, Resplits(options.resplit, rank, size))
