"""The names of the files of one bundle, and which of them a reader takes.

A checkpoint at ``prefix`` is ``<prefix>.index`` and ``<prefix>.data-SSSSS-of-NNNNN``. Two suffixes mark files
on their way to these names (`torch_trackckpt.save.commit` tells how they get there):

* ``.tempstate<hex>``: being written; without meaning to a reader.
* ``.next``: complete and durable, about to replace a file of the same name. They count as soon as, and only if,
  ``<prefix>.index.next`` exists; then each of them wins over the file without the suffix.
"""

from __future__ import annotations

import dataclasses
import os

from torch_trackckpt.errors import CheckpointNotFoundError

__all__ = ["NEXT", "TEMPORARY", "BundleFiles", "data_name", "find_bundle", "index_name"]

TEMPORARY = ".tempstate"
NEXT = ".next"


def index_name(prefix: str) -> str:
    """The path of the index."""
    return f"{prefix}.index"


def data_name(prefix: str, shard: int, num_shards: int) -> str:
    """The path of one data file."""
    return f"{prefix}.data-{shard:05d}-of-{num_shards:05d}"


@dataclasses.dataclass(frozen=True)
class BundleFiles:
    """Where a reader finds a bundle."""

    prefix: str
    index: str
    data_suffixes: tuple[str, ...]
    """A data file lies at the first existing of its name with these suffixes."""


def find_bundle(prefix: str) -> BundleFiles:
    """The files that hold the checkpoint at a prefix.

    Raises:
        CheckpointNotFoundError: there is no index for the prefix.
    """
    upcoming = index_name(prefix) + NEXT
    if os.path.exists(upcoming):
        return BundleFiles(prefix, upcoming, (NEXT, ""))
    if not os.path.exists(index_name(prefix)):
        raise CheckpointNotFoundError(
            f"There is no checkpoint at {prefix!r}: no file {index_name(prefix)!r}. A numbered checkpoint is named "
            "with its number, such as 'ckpt-1'; latest_checkpoint(directory) finds the newest."
        )
    return BundleFiles(prefix, index_name(prefix), ("",))
