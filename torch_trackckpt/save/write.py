"""From a plan to the files of a bundle under temporary names, each written by a thread of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import secrets
from collections.abc import Generator, Iterator

import torch

from torch_trackckpt.bundle.file_names import TEMPORARY, data_name, index_name
from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.devices.access import Devices
from torch_trackckpt.options import Progress
from torch_trackckpt.save.at_once import at_once
from torch_trackckpt.save.background import Pace
from torch_trackckpt.save.plan import SavePlan, WriteItem
from torch_trackckpt.save.publish import UploadedFiles, free_number_of_shards
from torch_trackckpt.save.staging import Batch, StagingMemory, stage
from torch_trackckpt.save.unchanged import check_unchanged
from torch_trackckpt.storage.base import Storage, Upload
from torch_trackckpt.storage.paths import directory

__all__ = ["WrittenFiles", "temporary_suffix", "write_shards"]

_PACED_BYTES = 8 << 20
"""How much is written without a rest; one value may be larger."""


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
    plan: SavePlan,
    prefix: str,
    storage: Storage,
    *,
    durable: bool,
    num_threads: int = 1,
    progress: Progress | None = None,
    pace: Pace | None = None,
    devices: Devices | None = None,
    files: WrittenFiles | None = None,
) -> WrittenFiles | UploadedFiles:
    """Writes the data file of each shard, and one index for all.

    On failure no file is left. Remote storage may have one data file more, without a value, so that no file gets the
    name of one that another checkpoint at the prefix has (`save.publish`).

    Args:
        plan: what to write. None of the values may change until everything is written, or the checkpoint would hold
            values of different moments, or a value that its checksum does not fit.
        prefix, storage: where.
        durable: whether the files are on the disk when this returns.
        num_threads: how many data files are written at once.
        progress: called in this thread about every 64 MiB with the bytes written so far and those of all values
            together, and once when both are equal.
        pace: when threads write and when they rest, where the program goes on meanwhile.
        devices: those that the plan has values on; they follow the program up to the moment whose values are wanted.
        files: the names of the files, one for each shard; usual ones if not given.

    Raises:
        ValueChangedError: a tensor changed.
        OSError: the system refuses.
    """
    storage.make_directory(directory(prefix))
    files = files or _files(prefix, _number_of_files(plan, prefix, storage))
    num_threads = min(num_threads, len(plan.shards))
    uploads = _uploads(plan, files, storage, num_threads) if storage.is_remote else None
    done_bytes, told_bytes, total_bytes = 0, 0, plan.num_bytes
    paths = [temporary for temporary, _ in files.data]
    with BundleWriter(paths, files.index[0], durable=durable, uploads=uploads) as writer:
        memory = StagingMemory(num_threads)
        _wait_for_streams(plan)
        works = [_write_shard(writer, plan, shard, memory, pace, devices) for shard in range(len(plan.shards))]
        with contextlib.closing(at_once(works, num_threads, stop=writer.abandon)) as written:
            for num_bytes in written:
                done_bytes += num_bytes
                if progress is not None and told_bytes + memory.limit <= done_bytes < total_bytes:
                    told_bytes = done_bytes
                    progress(done_bytes, total_bytes)
        if progress is not None:
            progress(total_bytes, total_bytes)
        check_unchanged(plan)
    if uploads is None:
        return files
    data_bytes = sum(upload.num_bytes for upload in uploads)
    return UploadedFiles(tuple(upload.path for upload in uploads), data_bytes, files.index[1], writer.index)


def temporary_suffix() -> str:
    """What marks a file that is being written; never the same twice."""
    return TEMPORARY + secrets.token_hex(8)


def _files(prefix: str, num_shards: int) -> WrittenFiles:
    suffix = temporary_suffix()
    data = [data_name(prefix, shard, num_shards) for shard in range(num_shards)]
    index = index_name(prefix)
    return WrittenFiles(tuple((final + suffix, final) for final in data), (index + suffix, index))


def _number_of_files(plan: SavePlan, prefix: str, storage: Storage) -> int:
    number = len(plan.shards)
    return free_number_of_shards(prefix, number, storage) if storage.is_remote else number


def _uploads(plan: SavePlan, files: WrittenFiles, storage: Storage, num_threads: int) -> list[Upload]:
    sizes = [int(plan.sizes[rows].sum()) for rows in plan.shards]
    sizes += [0] * (len(files.data) - len(sizes))
    return [
        storage.upload(final, num_bytes, num_threads) for (_, final), num_bytes in zip(files.data, sizes, strict=True)
    ]


def _write_shard(
    writer: BundleWriter,
    plan: SavePlan,
    shard: int,
    memory: StagingMemory,
    pace: Pace | None,
    devices: Devices | None,
) -> Generator[int]:
    """Writes one data file; yields the bytes of each batch when it has been written."""
    writer.expect(int(plan.sizes[plan.shards[shard]].sum()), shard=shard)
    batch_bytes = None if pace is None else _PACED_BYTES
    with contextlib.closing(stage(plan, shard, memory, batch_bytes, devices)) as batches:
        for batch in batches:
            if pace is not None:
                pace.rest()
            _write_batch(writer, plan, shard, batch)
            num_bytes = batch.num_bytes
            del batch  # Its copies go before those of the next are made.
            yield num_bytes
    writer.finish_shard(shard)


def _wait_for_streams(plan: SavePlan) -> None:
    """Tensors on devices without a link are copied by torch, in other threads, which do not wait for this one's
    streams."""
    tensors = (item.value for item in plan.others.values() if isinstance(item.value, torch.Tensor))
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()


def _write_batch(writer: BundleWriter, plan: SavePlan, shard: int, batch: Batch) -> None:
    if batch.rows is not None:
        writer.add_rows(plan.keys, plan.table, batch.rows, shard=shard)
    if (parts := batch.parts) is not None:
        writer.add_parts(plan.keys, plan.table, parts.rows, parts.begins, parts.sizes, parts.addresses, shard=shard)
    _write_items(writer, shard, iter(batch.items))


def _write_items(writer: BundleWriter, shard: int, items: Iterator[WriteItem]) -> None:
    """Runs of whole tensors go to the writer in one call each; everything else one by one."""
    for is_whole, run in itertools.groupby(items, lambda i: i.part is None and isinstance(i.value, torch.Tensor)):
        if is_whole:
            writer.add_all(((i.key, i.value, i.dtype) for i in run), shard=shard)  # type: ignore[misc]
            continue
        for item in run:
            if not isinstance(item.value, torch.Tensor):
                writer.add_strings(item.key, item.value, item.part, shard=shard)
            elif item.part is not None:
                writer.add_slice(item.key, item.value, item.part, item.dtype, shard=shard)
