"""Publishes what was uploaded, so that a reader finds either the previous checkpoint of a prefix or the new one.

Remote storage cannot rename: a data file has its final name as soon as it is complete, and means nothing until an index
names it. The index is put last, in one request; that is the commit, whether the prefix is free or not:

    data -> sizes compared -> index -> data files of the checkpoint that it has replaced are removed

For this, no data file may have the name of one that the present index stands for. Names hold the number of data files,
so a checkpoint that replaces another one has another number of them: where need be one more, which holds no value.

A process that dies on the way leaves data files without an index, which mean nothing, or data files of another number
than the index says. The next save to the prefix removes them (`recover` in `save.commit`, and here), and a manager's
next save those of other numbers (`remove_unfinished`).
"""

from __future__ import annotations

import dataclasses
import logging
import re

from torch_trackckpt.bundle.file_names import index_name
from torch_trackckpt.storage.base import Storage

__all__ = ["UploadedFiles", "data_files", "free_number_of_shards", "publish", "remove_unfinished"]

_DATA = re.compile(r"(?P<prefix>.*)\.data-\d{5,}-of-(?P<number>\d{5,})", re.DOTALL)

_logger = logging.getLogger("torch_trackckpt")


@dataclasses.dataclass(frozen=True)
class UploadedFiles:
    """Data files that are there, complete, and the index, which is still to be put there."""

    data: tuple[str, ...]
    data_bytes: int
    index: str
    content: bytes

    @property
    def num_bytes(self) -> int:
        """The sizes of all files together."""
        return self.data_bytes + len(self.content)


def data_files(prefix: str, storage: Storage) -> dict[str, int]:
    """The data files of this very prefix, of whatever checkpoint; for each how many its checkpoint has or had."""
    found = {path: _DATA.fullmatch(path) for path in storage.list(f"{prefix}.data-")}
    return {path: int(match["number"]) for path, match in found.items() if match and match["prefix"] == prefix}


def free_number_of_shards(prefix: str, least: int, storage: Storage) -> int:
    """A number of data files that no file at the prefix has in its name."""
    taken = set(data_files(prefix, storage).values())
    return next(number for number in range(least, least + len(taken) + 1) if number not in taken)


def publish(files: UploadedFiles, prefix: str, storage: Storage) -> None:
    """Makes a checkpoint of uploaded files.

    After a failure there is the new checkpoint, if its index arrived, or the previous one as it was.

    Raises:
        OSError: the index could not be put there, and is not.
    """
    try:
        storage.put(files.index, files.content)
    except OSError as error:
        if not _holds(files, storage, error):
            _remove(files.data, storage)
            raise
    _remove([path for path in data_files(prefix, storage) if path not in files.data], storage)


def _holds(files: UploadedFiles, storage: Storage, failure: OSError) -> bool:
    """Whether the index is there all the same, because only the answer was lost."""
    try:
        return storage.get(files.index) == files.content
    except FileNotFoundError:
        return False
    except OSError:
        # Nobody knows: what the index would name has to stay.
        raise failure from None


def remove_unfinished(beginning: str, storage: Storage) -> None:
    """Removes what saves have left that died: data files without an index.

    Args:
        beginning: what their paths begin with, before a dash and a number.
        storage: where they are. Nobody else may be saving there under such names.
    """
    files = storage.list(beginning + "-")
    left = [
        path
        for path in files
        if (match := _DATA.fullmatch(path))
        and re.fullmatch(r"-\d+", match["prefix"].removeprefix(beginning))
        and index_name(match["prefix"]) not in files
    ]
    if left:
        _logger.info("%d data files of saves that did not end are removed, the first is %r.", len(left), left[0])
    _remove(left, storage)


def _remove(paths: list[str] | tuple[str, ...], storage: Storage) -> None:
    """Removes what means nothing any more; where that fails, the next save does it."""
    for path in paths:
        try:
            storage.remove(path)
        except OSError as error:
            _logger.warning("%r means nothing any more, but could not be removed: %s", path, error)
