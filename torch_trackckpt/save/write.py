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
from torch_trackckpt.options import Progress
from torch_trackckpt.save.plan import WriteItem
from torch_trackckpt.save.unchanged import unchanged
from torch_trackckpt.storage.base import Storage

__all__ = ["WrittenFiles", "temporary_suffix", "write_shards"]


@dataclasses.dataclass(frozen=True)
class WrittenFiles:
    """Complete files, by their temporary and their final paths."""

    data: tuple[tuple[str, str], ...]
    index: tuple[str, str]

    @property
    def num_bytes(self) -> int:
        """Their sizes together; to be asked before they are committed, while they have their temporary names."""
        return sum(os.path.getsize(temporary) for temporary, _ in (*self.data, self.index))


def write_shards(
    shards: Iterable[Iterator[tuple[WriteItem, ...]]],
    prefix: str,
    storage: Storage,
    *,
    durable: bool,
    live: Sequence[WriteItem],
    progress: Progress | None = None,
) -> WrittenFiles:
    """Writes the data file of each staged shard, and one index for all.

    On failure no file is left.

    Args:
        shards: what to write.
        prefix, storage: where.
        durable: whether the files are on the disk when this returns.
        live: the values before they were staged. None of them may change until everything is written, or the
            checkpoint would hold values of different moments, or a value that its checksum does not fit.
        progress: called after each batch with the bytes written so far and those of all values together.

    Raises:
        ValueChangedError: a tensor changed.
        OSError: the system refuses.
    """
    shards = tuple(shards)
    if progress is not None:
        shards = tuple(_reported(shards, sum(item.num_bytes for item in live), progress))
    storage.make_directory(os.path.dirname(prefix))
    written: list[WrittenFiles] = []
    try:
        with unchanged(live):
            for number, batches in enumerate(shards):
                final = data_name(prefix, number, len(shards)), index_name(prefix)
                written.append(_write_shard(batches, *final, durable=durable))
        return written[0] if len(written) == 1 else _united(written, storage, durable=durable)
    except BaseException:
        for files in written:
            for temporary, _ in (*files.data, files.index):
                storage.remove(temporary)
        raise


def _reported(
    shards: tuple[Iterator[tuple[WriteItem, ...]], ...], total_bytes: int, progress: Progress
) -> Iterator[Iterator[tuple[WriteItem, ...]]]:
    """The same shards; when the next batch is asked for, the one before has been written."""
    done_bytes = 0

    def reported(batches: Iterator[tuple[WriteItem, ...]]) -> Iterator[tuple[WriteItem, ...]]:
        nonlocal done_bytes
        for batch in batches:
            yield batch
            done_bytes += sum(item.num_bytes for item in batch)
            progress(done_bytes, total_bytes)

    return map(reported, shards)


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
