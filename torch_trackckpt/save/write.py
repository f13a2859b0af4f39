"""From staged values to the files of a bundle under temporary names."""

from __future__ import annotations

import dataclasses
import itertools
import os
import secrets
from collections.abc import Iterable, Iterator

import torch

from torch_trackckpt.bundle.file_names import TEMPORARY, data_name, index_name
from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.errors import ValueChangedError
from torch_trackckpt.save.plan import WriteItem
from torch_trackckpt.storage.base import Storage

__all__ = ["WrittenFiles", "write_shards"]


@dataclasses.dataclass(frozen=True)
class WrittenFiles:
    """Complete files, by their temporary and their final paths."""

    data: tuple[tuple[str, str], ...]
    index: tuple[str, str]


def write_shards(
    shards: Iterable[Iterator[tuple[WriteItem, ...]]], prefix: str, storage: Storage, *, durable: bool
) -> WrittenFiles:
    """Writes one staged shard and its index.

    On failure no file is left.

    Raises:
        ValueChangedError: a tensor changed after its checksum had been computed.
        OSError: the system refuses.
    """
    (batches,) = shards
    storage.make_directory(os.path.dirname(prefix))
    suffix = TEMPORARY + secrets.token_hex(8)
    data, index = data_name(prefix, 0, 1), index_name(prefix)
    with BundleWriter(data + suffix, index + suffix, durable=durable) as writer:
        for batch in batches:
            versions = _versions(batch)
            _write_batch(writer, batch)
            _check_unchanged(versions, batch)
    return WrittenFiles(((data + suffix, data),), (index + suffix, index))


def _write_batch(writer: BundleWriter, batch: tuple[WriteItem, ...]) -> None:
    """Runs of tensors go to the writer in one call each; strings one by one."""
    for is_tensor, items in itertools.groupby(batch, lambda item: isinstance(item.value, torch.Tensor)):
        if is_tensor:
            writer.add_all((item.key, item.value, item.dtype) for item in items)  # type: ignore[misc]
        else:
            for item in items:
                writer.add_strings(item.key, item.value)  # type: ignore[arg-type]


def _versions(batch: tuple[WriteItem, ...]) -> list[int | None]:
    """The counters by which torch notices changes in place; a staged tensor shares its live tensor's."""
    return [
        item.value._version if isinstance(item.value, torch.Tensor) and not item.value.is_inference() else None
        for item in batch
    ]


def _check_unchanged(versions: list[int | None], batch: tuple[WriteItem, ...]) -> None:
    now = _versions(batch)
    changed = [item.key for item, old, new in zip(batch, versions, now, strict=True) if old != new]
    if changed:
        raise ValueChangedError(
            f"{len(changed)} values changed while they were being saved, the first is {changed[0]}; no checkpoint has "
            "been made. Let no other thread train while a save is running."
        )
