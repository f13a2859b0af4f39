"""From live tensors to memory that the writer can read: contiguous, on the CPU.

A synchronous save stages a tensor in plain memory as it is: its bytes go to the file from there. Others are copied, a
bounded number of bytes at a time: a batch is made when the writer asks for it, and gone when it asks for the next.

An asynchronous save lets the program go on, so every value is copied first, into one buffer that is kept for the next
save. Memory that was never touched costs about ten times as much to fill as memory that was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator

import numpy as np
import torch

from torch_trackckpt.bundle.memory import row_major, takes_file_bytes
from torch_trackckpt.save.balance import Column
from torch_trackckpt.save.plan import SavePlan, WriteItem, plan_of
from torch_trackckpt.save.unchanged import check_unchanged
from torch_trackckpt.trackable import Value

__all__ = ["Batch", "StagingBuffer", "StagingMemory", "stage"]

BATCH_BYTES = 64 << 20
"""How much is handed to the writer at once, and how much copies take up at one time (one value may be larger)."""

ALIGNMENT = 64
"""Where values begin in the buffer: at cache lines, which are multiples of every element size."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Values that lie one after the other in a data file. Either they are rows, or items."""

    num_bytes: int
    rows: Column | None = None
    """Plain rows of the plan."""
    items: tuple[WriteItem, ...] = ()
    """What is not plain; its tensors are contiguous and on the CPU."""


class StagingMemory:
    """How many bytes the copies of a save take up at one time, whatever the number of threads that make them."""

    def __init__(self, num_threads: int) -> None:
        self.limit = BATCH_BYTES
        self.batch_bytes = BATCH_BYTES // num_threads
        self._taken = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taking(self, num_bytes: int) -> Iterator[None]:
        """Waits until so many bytes are free, and takes them for the block; more than there are, if all are free."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + num_bytes <= self.limit)
            self._taken += num_bytes
        try:
            yield
        finally:
            with self._changed:
                self._taken -= num_bytes
                self._changed.notify_all()


def stage(plan: SavePlan, shard: int, memory: StagingMemory) -> Iterator[Batch]:
    """The values of a shard in order and in batches; live tensors stay as they are."""
    rows = plan.shards[shard]
    for run in np.split(rows, np.flatnonzero(np.diff(plan.is_plain[rows])) + 1):
        if plan.is_plain[run[:1]].any():
            for batch in _cut(run, plan.sizes, BATCH_BYTES):
                yield Batch(int(plan.sizes[batch].sum()), rows=batch)
            continue
        for batch in _cut(run, plan.sizes, memory.batch_bytes):
            items = [plan.others[row] for row in batch.tolist()]
            with memory.taking(sum(item.num_bytes for item in items if _is_copied(item))):
                yield Batch(int(plan.sizes[batch].sum()), items=tuple(map(_staged, items)))


def _cut(rows: Column, sizes: Column, limit: int) -> Iterator[Column]:
    """The rows in runs of at most so many bytes, or of one row."""
    ends = np.cumsum(sizes[rows])
    begin = done = 0
    while begin < len(rows):
        end = max(begin + 1, int(np.searchsorted(ends, done + limit, side="right")))
        yield rows[begin:end]
        begin, done = end, int(ends[end - 1])


def _is_copied(item: WriteItem) -> bool:
    return isinstance(item.value, torch.Tensor) and not takes_file_bytes(item.value)


def _staged(item: WriteItem) -> WriteItem:
    return dataclasses.replace(item, value=row_major(item.value)) if isinstance(item.value, torch.Tensor) else item


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
        tensors = [value for value in plan.values if isinstance(value, torch.Tensor)]
        # Slots and copies have to be of use, and to be as they are, whatever mode the caller is in.
        with torch.inference_mode(False), torch.no_grad():
            slots = self._slots_for(tensors)
            _copy(tensors, slots)
        check_unchanged(plan)
        remaining = iter(slots)
        copies = [_copied(value, remaining) for value in plan.values]
        parts = {row: item.part for row, item in plan.others.items() if item.part is not None}
        return plan_of(plan.keys, copies, parts, plan.shards)

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


def _copied(value: Value, slots: Iterator[torch.Tensor]) -> Value:
    if isinstance(value, torch.Tensor):
        return next(slots)
    return value.copy() if isinstance(value, np.ndarray) else value
