"""From live tensors to memory that the writer can read: contiguous, on the CPU.

A synchronous save stages a contiguous CPU tensor as it is: its bytes go to the file from its own memory. Others are
copied, a bounded number of bytes at a time: a batch is made when the writer asks for it, and gone when it asks for the
next.

An asynchronous save lets the program go on, so every value is copied first, into one buffer that is kept for the next
save. Memory that was never touched costs about ten times as much to fill as memory that was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from torch_trackckpt.bundle.memory import row_major, takes_file_bytes
from torch_trackckpt.save.plan import SavePlan, Shard, WriteItem
from torch_trackckpt.save.unchanged import unchanged

__all__ = ["StagingBuffer", "stage"]

BATCH_BYTES = 64 << 20
"""How much is handed to the writer, and copied, at once (one value may be larger)."""

ALIGNMENT = 64
"""Where values begin in the buffer: at cache lines, which are multiples of every element size."""


def stage(plan: SavePlan) -> Iterable[Iterator[tuple[WriteItem, ...]]]:
    """For each shard, its items in order and in batches; live tensors stay as they are."""
    return [_batches(shard) for shard in plan.shards]


def _batches(shard: Shard) -> Iterator[tuple[WriteItem, ...]]:
    batch: list[WriteItem] = []
    num_bytes = 0
    for item in shard.items:
        size = item.num_bytes
        if num_bytes and num_bytes + size > BATCH_BYTES:
            yield tuple(batch)
            batch, num_bytes = [], 0
        num_bytes += size
        if isinstance(item.value, torch.Tensor) and not takes_file_bytes(item.value):
            item = dataclasses.replace(item, value=row_major(item.value))
        batch.append(item)
    yield tuple(batch)


class StagingBuffer:
    """CPU memory for the values of one save at a time; as large as a checkpoint, and allocated when first needed."""

    def __init__(self) -> None:
        self._memory = _allocate(0, is_pinned=False)

    @property
    def num_bytes(self) -> int:
        """How much it holds on to."""
        return self._memory.nbytes

    def snapshot(self, plan: SavePlan) -> SavePlan:
        """The same plan with copies of all values that could change; they are good until the next call.

        Raises:
            ValueChangedError: another thread changed a tensor meanwhile.
        """
        tensors = [item.value for item in plan.items if isinstance(item.value, torch.Tensor)]
        # Slots and copies have to be of use, and to be as they are, whatever mode the caller is in.
        with torch.inference_mode(False), torch.no_grad(), unchanged(plan.items):
            slots = self._slots_for(tensors)
            _copy(tensors, slots)
        remaining = iter(slots)
        return SavePlan(tuple(Shard(tuple(_copied(item, remaining) for item in shard.items)) for shard in plan.shards))

    def _slots_for(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """For each tensor, a part of the buffer as a contiguous tensor of its dtype and shape."""
        num_bytes = sum(_aligned(tensor.nbytes) for tensor in tensors)
        self._make_room(num_bytes, is_pinned=any(tensor.is_cuda for tensor in tensors))
        by_dtype = {dtype: self._memory.view(dtype) for dtype in {tensor.dtype for tensor in tensors}}
        slots = []
        offset = 0
        for tensor in tensors:
            start = offset // tensor.itemsize
            slots.append(by_dtype[tensor.dtype][start : start + tensor.numel()].view(tensor.shape))
            offset += _aligned(tensor.nbytes)
        return slots

    def _make_room(self, num_bytes: int, *, is_pinned: bool) -> None:
        fits = num_bytes <= self._memory.nbytes <= 2 * num_bytes
        if not fits or (is_pinned and not self._memory.is_pinned()):
            # The old memory goes first: there are never two copies of a checkpoint.
            self._memory = _allocate(0, is_pinned=False)
            self._memory = _allocate(num_bytes, is_pinned=is_pinned)


def _allocate(num_bytes: int, *, is_pinned: bool) -> torch.Tensor:
    """Pinned memory is what devices can copy to while the processor does something else."""
    return torch.empty(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=is_pinned)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _copy(tensors: list[torch.Tensor], slots: list[torch.Tensor]) -> None:
    devices = set()
    for tensor, slot in zip(tensors, slots, strict=True):
        # The sign of a conjugate or negative view is a flag, which a copy that does not wait would come too early for.
        slot.copy_(tensor.detach().resolve_conj().resolve_neg(), non_blocking=tensor.is_cuda)
        if tensor.is_cuda:
            devices.add(tensor.device)
    for device in devices:
        torch.cuda.current_stream(device).synchronize()


def _copied(item: WriteItem, slots: Iterator[torch.Tensor]) -> WriteItem:
    value = item.value
    if isinstance(value, torch.Tensor):
        value = next(slots)
    elif isinstance(value, np.ndarray):
        value = value.copy()
    return WriteItem(item.key, item.dtype, value, item.part)
