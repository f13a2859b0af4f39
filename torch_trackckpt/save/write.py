"""From staged values to the files of a bundle under temporary names."""

from __future__ import annotations

import dataclasses
import itertools
import os
import secrets

import torch

from torch_trackckpt.bundle.file_names import TEMPORARY, data_name, index_name
from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.save.plan import SavePlan
from torch_trackckpt.storage.base import Storage

__all__ = ["WrittenFiles", "write_shards"]


@dataclasses.dataclass(frozen=True)
class WrittenFiles:
    """Complete files, by their temporary and their final paths."""

    data: tuple[tuple[str, str], ...]
    index: tuple[str, str]


def write_shards(plan: SavePlan, prefix: str, storage: Storage, *, durable: bool) -> WrittenFiles:
    """Writes the one shard of a plan and its index.

    On failure no file is left.

    Raises:
        OSError: the system refuses.
    """
    (shard,) = plan.shards
    storage.make_directory(os.path.dirname(prefix))
    suffix = TEMPORARY + secrets.token_hex(8)
    data, index = data_name(prefix, 0, 1), index_name(prefix)
    with BundleWriter(data + suffix, index + suffix, durable=durable) as writer:
        # The writer takes runs of tensors in one call each; strings come one by one.
        for is_tensor, items in itertools.groupby(shard.items, lambda item: isinstance(item.value, torch.Tensor)):
            if is_tensor:
                writer.add_all((item.key, item.value, item.dtype) for item in items)  # type: ignore[misc]
            else:
                for item in items:
                    writer.add_strings(item.key, item.value)  # type: ignore[arg-type]
    return WrittenFiles(((data + suffix, data),), (index + suffix, index))
