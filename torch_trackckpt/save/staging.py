"""From live tensors to memory that the writer can read: contiguous, on the CPU.

A contiguous CPU tensor is staged as it is: its bytes go to the file from its own memory.
"""

from __future__ import annotations

import dataclasses

import torch

from torch_trackckpt.save.plan import SavePlan, Shard, WriteItem

__all__ = ["stage"]


def stage(plan: SavePlan) -> SavePlan:
    """The same plan over staged values; live tensors stay as they are."""
    return SavePlan(tuple(Shard(tuple(_staged(item) for item in shard.items)) for shard in plan.shards))


def _staged(item: WriteItem) -> WriteItem:
    if not isinstance(item.value, torch.Tensor):
        return item
    # A conjugate or negative view has its sign in a flag, not in its memory.
    tensor = item.value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return dataclasses.replace(item, value=tensor)
