"""Which values share a data file, so that threads which write one file each are done at the same time.

The system lets one thread at a time write to a file, so that a second thread needs a second file to be of use.
"""

from __future__ import annotations

import numpy as np

from torch_trackckpt.devices.pieces import Column

__all__ = ["SHARD_BYTES", "balanced"]

SHARD_BYTES = 16 << 20
"""How many bytes of tensors a data file beside others has at least. Two files of half the size already pay, but what is
below twice this much is written in about 15 ms anyhow, and one file is what TensorFlow writes."""

_LARGE = 64
"""What is more than this part of a file's share is placed by itself; the rest fills up what is left."""


def balanced(sizes: Column, strings: Column, num_threads: int) -> tuple[Column, ...]:
    """The rows of each data file, ascending: one file for each thread, as far as each is worth it.

    Large tensors go, from the largest on, to the file that has least; small ones stay together in their order. Strings
    go to the last file.

    Args:
        sizes: the bytes of each row.
        strings: the rows that are strings.
        num_threads: how many files may be written at once.
    """
    tensors = np.setdiff1d(np.arange(len(sizes)), strings, assume_unique=True)
    total, largest = int(sizes[tensors].sum()), int(sizes[tensors].max(initial=1))
    # Where one tensor is as large as all others together, a third file would be complete no earlier than it is.
    count = min(num_threads, total // SHARD_BYTES, round(total / largest))
    if count < 2:
        return (np.arange(len(sizes)),)
    shard_of = np.full(len(sizes), count - 1)
    loads = np.zeros(count, dtype=np.int64)
    loads[-1] = sizes[strings].sum()
    is_large = sizes[tensors] * (_LARGE * count) > total
    large, small = tensors[is_large], tensors[~is_large]
    for row in large[np.argsort(-sizes[large], kind="stable")]:
        emptiest = loads.argmin()
        shard_of[row] = emptiest
        loads[emptiest] += sizes[row]
    shard_of[small] = _filling(sizes[small], loads)
    return tuple(np.flatnonzero(shard_of == shard) for shard in range(count))


def _filling(sizes: Column, loads: Column) -> Column:
    """For each of many small rows the file that it goes to: a run of them evens out what each has already."""
    shares = np.maximum(-(-(loads.sum() + sizes.sum()) // len(loads)) - loads, 0)
    ends = np.cumsum(shares) * (sizes.sum() / max(shares.sum(), 1))
    begins = np.cumsum(sizes) - sizes
    return np.minimum(np.searchsorted(ends, begins, side="right"), len(loads) - 1)
