"""From staged values to the files of a bundle under temporary names."""

from __future__ import annotations

import dataclasses
import itertools
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence

import torch

from torch_trackckpt import _native
from torch_trackckpt.bundle.file_names import TEMPORARY, data_name, index_name
from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.errors import ValueChangedError
from torch_trackckpt.save.plan import WriteItem
from torch_trackckpt.storage.base import Storage

__all__ = ["WrittenFiles", "temporary_suffix", "write_shards"]


@dataclasses.dataclass(frozen=True)
class WrittenFiles:
    """Complete files, by their temporary and their final paths."""

    data: tuple[tuple[str, str], ...]
    index: tuple[str, str]


def write_shards(
    shards: Iterable[Iterator[tuple[WriteItem, ...]]],
    prefix: str,
    storage: Storage,
    *,
    durable: bool,
    live: Sequence[WriteItem],
) -> WrittenFiles:
    """Writes the data file of each staged shard, and one index for all.

    On failure no file is left.

    Args:
        shards: what to write.
        prefix, storage: where.
        durable: whether the files are on the disk when this returns.
        live: the values before they were staged. None of them may change until everything is written, or the
            checkpoint would hold values of different moments, or a value that its checksum does not fit.

    Raises:
        ValueChangedError: a tensor changed.
        OSError: the system refuses.
    """
    shards = tuple(shards)
    versions = _versions(live)
    storage.make_directory(os.path.dirname(prefix))
    written: list[WrittenFiles] = []
    try:
        for number, batches in enumerate(shards):
            final = data_name(prefix, number, len(shards)), index_name(prefix)
            written.append(_write_shard(batches, *final, durable=durable))
        _check_unchanged(versions, live)
        return written[0] if len(written) == 1 else _united(written, storage, durable=durable)
    except BaseException:
        for files in written:
            for temporary, _ in (*files.data, files.index):
                storage.remove(temporary)
        raise


def _write_shard(batches: Iterator[tuple[WriteItem, ...]], data: str, index: str, *, durable: bool) -> WrittenFiles:
    suffix = temporary_suffix()
    with BundleWriter(data + suffix, index + suffix, durable=durable) as writer:
        for batch in batches:
            _write_batch(writer, batch)
    return WrittenFiles(((data + suffix, data),), (index + suffix, index))


def _united(written: list[WrittenFiles], storage: Storage, *, durable: bool) -> WrittenFiles:
    """One index instead of one for each shard. Each shard holds something, so each keeps its number."""
    _, index = written[0].index
    united = index + temporary_suffix()
    parts = [files.index[0] for files in written]
    _native.merge_indexes(parts, united, durable=durable)
    try:
        for part in parts:
            storage.remove(part)
    except BaseException:
        storage.remove(united)
        raise
    return WrittenFiles(tuple(pair for files in written for pair in files.data), (united, index))


def temporary_suffix() -> str:
    """What marks a file that is being written; never the same twice."""
    return TEMPORARY + secrets.token_hex(8)


def _write_batch(writer: BundleWriter, batch: tuple[WriteItem, ...]) -> None:
    """Runs of whole tensors go to the writer in one call each; everything else one by one."""
    for is_plain, items in itertools.groupby(batch, lambda i: i.part is None and isinstance(i.value, torch.Tensor)):
        if is_plain:
            writer.add_all((item.key, item.value, item.dtype) for item in items)  # type: ignore[misc]
        else:
            for item in items:
                _write_item(writer, item)


def _write_item(writer: BundleWriter, item: WriteItem) -> None:
    if not isinstance(item.value, torch.Tensor):
        writer.add_strings(item.key, item.value, item.part)
    elif item.part is not None:
        writer.add_slice(item.key, item.value, item.part, item.dtype)


def _versions(items: Sequence[WriteItem]) -> list[int | None]:
    """The counters by which torch notices changes in place; a part of a tensor shares the tensor's."""
    return [
        item.value._version if isinstance(item.value, torch.Tensor) and not item.value.is_inference() else None
        for item in items
    ]


def _check_unchanged(versions: list[int | None], items: Sequence[WriteItem]) -> None:
    now = _versions(items)
    changed = [item.key for item, old, new in zip(items, versions, now, strict=True) if old != new]
    if changed:
        raise ValueChangedError(
            f"{len(changed)} values changed while they were being saved, the first is {changed[0]}; no checkpoint has "
            "been made. Let no other thread train while a save is running."
        )
