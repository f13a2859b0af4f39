"""Publishes written files, so that a reader finds either the previous checkpoint of a prefix or the new one.

Where the prefix is free, the data files get their names first and the index last; its rename is the commit:

    data.tempstate -> data          index.tempstate -> index

Where a checkpoint is there already, its data file cannot keep its name until the new index has the old one's, so
one more name lies between; the commit is the index's first rename, because a reader prefers files called `.next`
as soon as there is an index of that name:

    data.tempstate -> data.next     index.tempstate -> index.next     data.next -> data     index.next -> index

Names are made durable between the steps. A process that dies on the way leaves `.tempstate` files, which mean
nothing, or a committed checkpoint with some names to go; `recover` completes or cleans up either before the next
save to the prefix. Remote storage, which cannot rename, has a way of its own (`save.publish`).
"""

from __future__ import annotations

import contextlib
import re

from torch_trackckpt.bundle.file_names import NEXT, TEMPORARY, index_name
from torch_trackckpt.save.publish import UploadedFiles, data_files, publish
from torch_trackckpt.save.write import WrittenFiles
from torch_trackckpt.storage.base import Storage

__all__ = ["commit", "recover", "remove_checkpoint"]


def commit(files: WrittenFiles | UploadedFiles, prefix: str, storage: Storage) -> None:
    """Gives written files their names.

    After a failure there is the new checkpoint, if it was committed, or no file of it.
    """
    if isinstance(files, UploadedFiles):
        publish(files, prefix, storage)
        return
    try:
        _publish(files, prefix, storage)
    except BaseException:
        with contextlib.suppress(OSError):
            recover(prefix, storage)
        raise


def _publish(files: WrittenFiles, prefix: str, storage: Storage) -> None:
    if storage.exists(index_name(prefix)):
        _rename([(temporary, final + NEXT) for temporary, final in files.data], storage)
        _rename([(files.index[0], files.index[1] + NEXT)], storage)
        _finish_replacement(prefix, storage)
        _remove_other_data(prefix, {final for _, final in files.data}, storage)
    else:
        _rename(list(files.data), storage)
        _rename([files.index], storage)


def recover(prefix: str, storage: Storage) -> None:
    """Completes what an interrupted save to a prefix had committed, and removes what it had not."""
    if storage.is_remote:
        if not storage.exists(index_name(prefix)):
            for path in data_files(prefix, storage):
                storage.remove(path)
        return
    if storage.exists(index_name(prefix) + NEXT):
        _finish_replacement(prefix, storage)
    is_committed = storage.exists(index_name(prefix))
    for path in _files_of(prefix, storage):
        if not is_committed or path.endswith(NEXT) or TEMPORARY in path.removeprefix(prefix):
            storage.remove(path)


def remove_checkpoint(prefix: str, storage: Storage) -> None:
    """Removes the files of a checkpoint, and what is left of saves to its prefix; any of them may be gone already.

    The indexes go first, so that a reader finds either the whole checkpoint or none: without the one that is being
    replaced, the one that replaces it is whole, but not the other way round.
    """
    files = _files_of(prefix, storage)
    indexes = [path for path in (index_name(prefix), index_name(prefix) + NEXT) if path in files]
    for path in indexes:
        storage.remove(path)
    if indexes:
        storage.sync_directory(prefix)
    for path in set(files) - set(indexes):
        storage.remove(path)


def _finish_replacement(prefix: str, storage: Storage) -> None:
    data = [path for path in _files_of(prefix, storage) if path.endswith(NEXT) and path != index_name(prefix) + NEXT]
    _rename([(path, path.removesuffix(NEXT)) for path in data], storage)
    _rename([(index_name(prefix) + NEXT, index_name(prefix))], storage)


def _rename(pairs: list[tuple[str, str]], storage: Storage) -> None:
    for source, destination in pairs:
        storage.rename(source, destination)
    if pairs:
        storage.sync_directory(pairs[0][1])


def _remove_other_data(prefix: str, current: set[str], storage: Storage) -> None:
    """Removes data files of a checkpoint that had another number of shards."""
    for path in _files_of(prefix, storage):
        if re.fullmatch(r"\.data-\d{5,}-of-\d{5,}", path.removeprefix(prefix)) and path not in current:
            storage.remove(path)


def _files_of(prefix: str, storage: Storage) -> list[str]:
    """Every file of this very prefix: of `ckpt-1`, but not of `ckpt-10` or `ckpt-1.old`."""
    pattern = re.compile(rf"\.(index|data-\d{{5,}}-of-\d{{5,}})({re.escape(NEXT)}|{re.escape(TEMPORARY)}\w+)?")
    return [path for path in storage.list(prefix + ".") if pattern.fullmatch(path.removeprefix(prefix))]
