"""The names of the files of one checkpoint, and which of them a reader takes.

A checkpoint at ``prefix`` is ``<prefix>.index`` and ``<prefix>.data-SSSSS-of-NNNNN``. Two suffixes mark files
on their way to these names (`torch_trackckpt.save.commit` tells how they get there):

* ``.tempstate<hex>``: being written; without meaning to a reader.
* ``.next``: complete and durable, about to replace a file of the same name. They count as soon as, and only if,
  ``<prefix>.index.next`` exists; then each of them wins over the file without the suffix.

Before 2016, TensorFlow kept a checkpoint in one file, called just ``prefix``, or in several, called
``<prefix>-SSSSS-of-NNNNN`` and named by a pattern such as ``<prefix>-?????-of-00003``. As in TensorFlow, an index
decides for the newer format, whatever else there is.
"""

from __future__ import annotations

import dataclasses
import glob
import logging
import os
import re

from torch_trackckpt.errors import CheckpointNotFoundError, UnsupportedFormatError
from torch_trackckpt.storage.choice import storage_for
from torch_trackckpt.storage.paths import is_url

__all__ = [
    "NEXT",
    "TEMPORARY",
    "BundleFiles",
    "V1Files",
    "checkpoint_exists",
    "current_index",
    "data_name",
    "find_checkpoint",
    "index_name",
    "saved_model_prefix",
]

TEMPORARY = ".tempstate"
NEXT = ".next"

_SHARD = re.compile(r"-(\d{5,})-of-(\d{5,})")
_DATA_FILE = re.compile(r"(.*)\.data-\d{5,}-of-\d{5,}", re.DOTALL)

_logger = logging.getLogger("torch_trackckpt")


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


@dataclasses.dataclass(frozen=True)
class V1Files:
    """Where a reader finds a checkpoint of the older format."""

    prefix: str
    """What names it: a file, a pattern, or the part of the names before the shard number."""
    paths: tuple[str, ...]
    """Its files, sorted."""


def find_checkpoint(path: str) -> BundleFiles | V1Files:
    """The files that hold the checkpoint at a path.

    Args:
        path: a prefix, an index, or a file or pattern of the older format.

    Raises:
        CheckpointNotFoundError: there are none.
    """
    if is_url(path):
        return _find_remote(path)
    prefix = path if os.path.exists(index_name(path)) else path.removesuffix(".index")
    if os.path.exists(index_name(prefix) + NEXT):
        return BundleFiles(prefix, index_name(prefix) + NEXT, (NEXT, ""))
    if os.path.exists(index_name(prefix)):
        return BundleFiles(prefix, index_name(prefix), ("",))
    paths = _older_files(path)
    if not paths:
        raise CheckpointNotFoundError(_not_found(prefix, is_directory=os.path.isdir(prefix)))
    return V1Files(path, paths)


def _find_remote(path: str) -> BundleFiles:
    """Of remote storage only bundles are read, whose index has its name from the moment on when it is there."""
    storage = storage_for(path)
    if storage.exists(index_name(path)):
        return BundleFiles(path, index_name(path), ("",))
    prefix = path.removesuffix(".index")
    if prefix != path and storage.exists(path):
        return BundleFiles(prefix, path, ("",))
    if storage.exists(path) and not _DATA_FILE.fullmatch(path):
        raise UnsupportedFormatError(
            f"{path!r} is no checkpoint of the format with an index. Checkpoints of TensorFlow's older format are read "
            "from local files only; copy it to this machine."
        )
    raise CheckpointNotFoundError(_not_found(prefix, is_directory=storage.is_directory(prefix)))


def current_index(prefix: str) -> tuple[object, ...] | None:
    """What tells one index of a prefix from the next, through its changes of name; None where there is none.

    While two calls give the same, no checkpoint has replaced another at the prefix in between.
    """
    storage = storage_for(prefix)
    names = [index_name(prefix)] if storage.is_remote else [index_name(prefix) + NEXT, index_name(prefix)]
    for path in names:
        if (identity := storage.identity(path)) is not None:
            return identity
    return None


def saved_model_prefix(path: str) -> str | None:
    """The checkpoint inside a SavedModel directory; None for what is no such directory."""
    names = [os.path.join(path, name) for name in ("saved_model.pb", "saved_model.pbtxt")]
    found = storage_for(path).list(names[0]) if is_url(path) else filter(os.path.exists, names)
    if not any(name in names for name in found):
        return None
    return os.path.join(path, "variables", "variables")


def checkpoint_exists(path: str) -> bool:
    """Whether there are files of a checkpoint at a path."""
    try:
        find_checkpoint(path)
    except CheckpointNotFoundError:
        return False
    return True


def _older_files(path: str) -> tuple[str, ...]:
    if match := _DATA_FILE.fullmatch(path):
        if os.path.exists(path):
            raise CheckpointNotFoundError(
                f"{path!r} is a data file of a checkpoint, not its name; pass {match[1]!r}, beside its '.index'."
            )
        return ()
    if os.path.lexists(path):
        return () if os.path.isdir(path) else (path,)
    folder, name = os.path.split(path)
    # The folder is one, or it is a pattern as well.
    matches = _matching(os.path.join(glob.escape(folder), name)) or _matching(path) or _shards(path)
    _warn_of_missing_shards(matches)
    return matches


def _matching(pattern: str) -> tuple[str, ...]:
    return tuple(path for path in sorted(glob.glob(pattern)) if not os.path.isdir(path))


def _shards(prefix: str) -> tuple[str, ...]:
    """The files ``<prefix>-SSSSS-of-NNNNN``, which TensorFlow asks a pattern for."""
    by_total: dict[str, list[str]] = {}
    for path in sorted(glob.glob(glob.escape(prefix) + "-*-of-*")):
        if match := _SHARD.fullmatch(path.removeprefix(prefix)):
            by_total.setdefault(match[2], []).append(path)
    if len(by_total) > 1:
        patterns = " or ".join(repr(f"{prefix}-?????-of-{total}") for total in sorted(by_total))
        raise CheckpointNotFoundError(f"There are several checkpoints at {prefix!r}; name one of them: {patterns}.")
    return tuple(path for paths in by_total.values() for path in paths)


def _warn_of_missing_shards(paths: tuple[str, ...]) -> None:
    found = [(path, match) for path in paths if (match := re.search(_SHARD.pattern + r"\Z", path))]
    for total in {match[2] for _, match in found}:
        present = {int(match[1]) for _, match in found if match[2] == total}
        missing = sorted(set(range(min(int(total), len(paths) + 1000))) - present)
        if missing:
            _logger.warning(
                "%d of %d files of the checkpoint %s are missing, the first is number %05d; only what lies in the "
                "others can be read.",
                int(total) - len(present),
                int(total),
                found[0][0][: found[0][1].start()],
                missing[0],
            )


def _not_found(prefix: str, *, is_directory: bool) -> str:
    if (variables := saved_model_prefix(prefix)) is not None:
        return f"{prefix!r} is a SavedModel directory, which Checkpoint.restore takes; its checkpoint is {variables!r}."
    if is_directory:
        return (
            f"{prefix!r} is a directory, not a checkpoint; latest_checkpoint({prefix!r}) finds the newest checkpoint "
            "in it."
        )
    return (
        f"There is no checkpoint at {prefix!r}: no file {index_name(prefix)!r}. A numbered checkpoint is named "
        "with its number, such as 'ckpt-1'; latest_checkpoint(directory) finds the newest."
    )
