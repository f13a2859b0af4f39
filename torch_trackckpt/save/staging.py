"""From live tensors to memory that the writer can read: contiguous, on the CPU.

A contiguous CPU tensor is staged as it is: its bytes go to the file from its own memory. Others are copied, a bounded
number of bytes at a time: a batch is made when the writer asks for it, and gone when it asks for the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import torch

from torch_trackckpt.bundle.memory import row_major, takes_file_bytes
from torch_trackckpt.save.plan import SavePlan, Shard, WriteItem

__all__ = ["stage"]

STAGING_BYTES = 64 << 20
"""How much is copied at once (one tensor may be larger)."""


def stage(plan: SavePlan) -> Iterable[Iterator[tuple[WriteItem, ...]]]:
    """For each shard, its items in order and in batches; live tensors stay as they are."""
    return [_batches(shard) for shard in plan.shards]


def _batches(shard: Shard) -> Iterator[tuple[WriteItem, ...]]:
    batch: list[WriteItem] = []
    num_copied = 0
    for item in shard.items:
        if isinstance(item.value, torch.Tensor) and not takes_file_bytes(item.value):
            if num_copied and num_copied + item.value.nbytes > STAGING_BYTES:
                yield tuple(batch)
                batch, num_copied = [], 0
            num_copied += item.value.nbytes
            item = dataclasses.replace(item, value=row_major(item.value))
        batch.append(item)
    yield tuple(batch)
