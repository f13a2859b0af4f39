"""From live tensors to memory that the writer can read: contiguous, on the CPU.

A synchronous save stages a tensor in plain memory as it is: its bytes go to the file from there. Others are copied, a
bounded number of bytes at a time: a batch is made when the writer asks for it, and gone when it asks for the next.
Those on devices come through page-locked memory (`drain`).

An asynchronous save lets the program go on, so every value is copied first, into one buffer that is kept for the next
save. Memory that was never touched costs about ten times as much to fill as memory that was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import sys
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from torch_trackckpt import _native
from torch_trackckpt.bundle.memory import PLAIN_TYPES, row_major, takes_file_bytes
from torch_trackckpt.devices.access import Devices
from torch_trackckpt.devices.pieces import ALIGNMENT, Column
from torch_trackckpt.save.device_copies import DeviceCopier, DeviceCopies
from torch_trackckpt.save.drain import Parts, drain, take_blocks
from torch_trackckpt.save.late import LateCopy
from torch_trackckpt.save.plan import SavePlan, WriteItem
from torch_trackckpt.save.unchanged import check_unchanged

__all__ = ["Batch", "StagingBuffer", "StagingMemory", "stage"]

BATCH_BYTES = 64 << 20
"""How much is handed to the writer at once, and how much copies take up at one time (one value may be larger)."""

_SMALL_BYTES = 64 << 10
"""Smaller rows of plain memory are no reason for those on devices before and behind them not to come together."""

SLACK_BYTES = 1 << 20
"""How much a checkpoint may grow before it takes another buffer. Memory that is never touched is none."""

_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if sys.platform == "linux" else {}

_WIPE_ON_FORK = 18
"""MADV_WIPEONFORK of Linux: a child gets no share in the memory, which would make the parent's next copy slow."""

_ADVICE = (mmap.MADV_HUGEPAGE, _WIPE_ON_FORK) if sys.platform == "linux" else ()


@dataclasses.dataclass(frozen=True)
class Batch:
    """Values that lie one after the other in a data file. Either they are rows, or parts of rows, or items."""

    num_bytes: int
    rows: Column | None = None
    """Plain rows of the plan."""
    parts: Parts | None = None
    """What has arrived of rows on a device, and small plain rows between them."""
    items: tuple[WriteItem, ...] = ()
    """What is neither; its tensors are contiguous and on the CPU."""


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


def stage(
    plan: SavePlan,
    shard: int,
    memory: StagingMemory,
    batch_bytes: int | None = None,
    devices: Devices | None = None,
) -> Generator[Batch]:
    """The values of a shard in order and in batches; live tensors stay as they are.

    Args:
        plan, shard: what is staged.
        memory: what copies may take.
        batch_bytes: the size of a batch of plain rows.
        devices: those of the plan.
    """
    batch_bytes = batch_bytes or BATCH_BYTES
    rows = plan.shards[shard]
    kinds = _with_small_neighbours(_kinds(plan)[rows], plan.sizes[rows])
    begins = np.flatnonzero(np.diff(kinds, prepend=_NONE))
    addresses = np.array(plan.table.addresses() if plan.devices else (), dtype=np.int64)
    for kind, run in zip(kinds[begins].tolist(), np.split(rows, begins)[1:], strict=True):
        if kind == _PLAIN:
            for batch in _cut(run, plan.sizes, batch_bytes):
                yield Batch(int(plan.sizes[batch].sum()), rows=batch)
        elif kind == _OTHER:
            for batch in _cut(run, plan.sizes, memory.batch_bytes):
                items = [plan.others[row] for row in batch.tolist()]
                with memory.taking(sum(item.num_bytes for item in items if _is_copied(item))):
                    yield Batch(int(plan.sizes[batch].sum()), items=tuple(map(_staged, items)))
        else:
            assert devices is not None
            with contextlib.closing(drain(plan, run, addresses, plan.devices[kind], devices)) as arrivals:
                for parts in arrivals:
                    yield Batch(int(parts.sizes.sum()), parts=parts)


_PLAIN, _OTHER, _NONE = -1, -2, -3


def _kinds(plan: SavePlan) -> Column:
    """For each row where it is: in plain memory, on which of the plan's devices, or elsewhere."""
    kinds = np.where(plan.is_plain, _PLAIN, _OTHER)
    for number, of_device in enumerate(plan.devices):
        kinds[of_device.rows] = number
    return kinds


def _with_small_neighbours(kinds: Column, sizes: Column) -> Column:
    """The same, but small rows in plain memory go with what is before them: optimizers keep numbers there."""
    is_small = (kinds == _PLAIN) & (sizes <= _SMALL_BYTES)
    before = np.maximum.accumulate(np.where(is_small, 0, np.arange(len(kinds))))
    return np.where(is_small & (kinds[before] >= 0), kinds[before], kinds)


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
    """CPU memory for the values of one save at a time; as large as a checkpoint, and allocated when first needed.

    Args:
        devices: the links to devices.
    """

    def __init__(self, devices: Devices | None = None) -> None:
        self._memory = _allocate(0, is_pinned=False)
        self._devices = devices or Devices()
        self._device_copier = DeviceCopier(self._devices)

    @property
    def num_bytes(self) -> int:
        """How much it holds on to, without page-locked memory."""
        return self._memory.nbytes

    def snapshot(
        self, plan: SavePlan, num_threads: int = 1, later: Sequence[int] = (), max_device_bytes: int = 0
    ) -> SavePlan:
        """The same plan with copies of all values that could change; they are good until the next call.

        Args:
            plan: of live values.
            num_threads: how many threads copy.
            later: rows, plain or on devices, that are copied by `SavePlan.late` of the new plan.
            max_device_bytes: how much of the memory of each device copies may take.

        Raises:
            ValueChangedError: another thread changed a tensor meanwhile.
        """
        # Slots and copies have to be of use, and to be as they are, whatever mode the caller is in.
        with torch.inference_mode(False), torch.no_grad():
            copies = self._device_copier.copy(plan.devices, later, max_device_bytes)
            there = {row for of_device in copies.on_devices for row in of_device.rows.tolist()}
            later = [row for row in later if row not in there]
            if not later:
                # Nobody waits for what other devices have begun.
                for ticket in copies.tickets:
                    ticket.wait()
            offsets = self._make_room(plan)
            slots = self._slots(plan, offsets)
            self._copy(plan, offsets, slots, num_threads, later)
            late = self._late_copy(plan, offsets, num_threads, later, copies) if later else None
        check_unchanged(plan)
        return self._relocated(plan, offsets, slots, late, copies)

    def release(self) -> None:
        """Lets go of the memory."""
        self._memory = _allocate(0, is_pinned=False)

    def prewarm(self, plan: SavePlan, num_threads: int, max_device_bytes: int = 0) -> None:
        """Makes ready for snapshots of this size: the memory is there, and was touched."""
        with torch.inference_mode(False), torch.no_grad():
            copies = self._device_copier.copy(plan.devices, (), max_device_bytes)
            for of_device in copies.on_devices:
                take_blocks(of_device.device, min(num_threads, len(plan.shards)), self._devices)
            offsets = self._make_room(plan)
            self._copy(plan, offsets, self._slots(plan, offsets), num_threads)

    def _make_room(self, plan: SavePlan) -> Column:
        """Where each row begins in the buffer, which is made as large as that takes."""
        spans = -(-plan.sizes // ALIGNMENT) * ALIGNMENT
        spans[[row for row, item in plan.others.items() if not isinstance(item.value, torch.Tensor)]] = 0
        for of_device in plan.devices:
            spans[of_device.rows] = 0
        num_bytes = int(spans.sum())
        is_pinned = any(isinstance(item.value, torch.Tensor) and item.value.is_cuda for item in plan.others.values())
        fits = num_bytes <= self._memory.nbytes <= max(2 * num_bytes, num_bytes + SLACK_BYTES)
        if not fits or (is_pinned and not self._memory.is_pinned()):
            # The old memory goes first: there are never two copies of a checkpoint.
            self._memory = _allocate(0, is_pinned=False)
            self._memory = _allocate(num_bytes and num_bytes + SLACK_BYTES, is_pinned=is_pinned)
        ends: Column = np.cumsum(spans)
        return ends - spans

    def _slots(self, plan: SavePlan, offsets: Column) -> dict[int, torch.Tensor]:
        """For each of the tensors that are looked at one by one, a part of the buffer of its dtype and shape."""
        return {
            row: self._memory[offset : offset + item.value.nbytes].view(item.value.dtype).view(item.value.shape)
            for row, item in plan.others.items()
            if isinstance(item.value, torch.Tensor) and (offset := int(offsets[row])) >= 0
        }

    def _copy(
        self,
        plan: SavePlan,
        offsets: Column,
        slots: Mapping[int, torch.Tensor],
        num_threads: int,
        later: Sequence[int] = (),
    ) -> None:
        """Copies all rows but those that come later: what lies in plain memory by native code, the rest by torch."""
        foreign = [row for row in (*plan.table.others(), *plan.table.on_devices()[0]) if row in slots]
        streams = _begin_copying([(plan.others[row].value, slots[row]) for row in foreign])
        is_copied = np.ones(len(plan.keys), dtype=bool)
        is_copied[plan.table.others()] = False
        is_copied[list(later)] = False
        is_copied[plan.table.on_devices()[0]] = False
        for of_device in plan.devices:
            is_copied[of_device.rows] = False
        rows = np.flatnonzero(is_copied)
        self._native_copy(plan.table, rows, offsets[rows]).run(num_threads)
        for stream in streams:
            stream.synchronize()

    def _native_copy(self, table: _native.TensorTable, rows: Column, offsets: Column) -> _native.TensorCopy:
        return _native.TensorCopy(table, rows, self._memory.data_ptr(), offsets, self._memory)

    def _late_copy(
        self, plan: SavePlan, offsets: Column, num_threads: int, later: Sequence[int], copies: DeviceCopies
    ) -> LateCopy:
        # An alias has the version of its tensor, and goes on having the memory when the tensor gets another one.
        aliases: list[object] = [plan.table.value(row).detach() for row in later]
        table = _native.TensorTable(aliases, PLAIN_TYPES)
        on_host = np.flatnonzero(plan.is_plain[list(later)])
        copy = self._native_copy(table, on_host, offsets[list(later)][on_host])
        held = [alias for row, alias in zip(later, aliases, strict=True) if not plan.is_plain[row]]
        return LateCopy([plan.keys[row] for row in later], table, copy, num_threads, copies.tickets, held)

    def _relocated(
        self,
        plan: SavePlan,
        offsets: Column,
        slots: Mapping[int, torch.Tensor],
        late: LateCopy | None,
        copies: DeviceCopies,
    ) -> SavePlan:
        """The plan of the copies. Nothing is done in Python for what lies in plain memory, or comes from devices."""
        foreign = [row for row in (*plan.table.others(), *plan.table.on_devices()[0]) if row in slots]
        addresses = copies.address_of(len(plan.keys))
        addresses[plan.is_plain] = self._memory.data_ptr() + offsets[plan.is_plain]
        owners = (self._memory, *copies.owners)
        table = plan.table.relocated(addresses, foreign, [slots[row] for row in foreign], owners)
        remaining = set(table.others())
        others = {
            row: _copied(item, slots.get(row))
            for row, item in plan.others.items()
            if row in remaining or item.part is not None
        }
        is_plain = np.ones(len(plan.keys), dtype=bool)
        is_plain[list(others)] = False
        for of_device in copies.on_devices:
            is_plain[of_device.rows] = False
        return dataclasses.replace(
            plan,
            table=table,
            others=others,
            is_plain=is_plain,
            devices=copies.on_devices,
            held=(),
            late=late,
            wholes=None,
        )


def _allocate(num_bytes: int, *, is_pinned: bool) -> torch.Tensor:
    """Memory that nobody has touched, or pinned memory, to which devices copy while the processor goes on."""
    if is_pinned or num_bytes == 0:
        return torch.empty(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=is_pinned)
    memory = mmap.mmap(-1, num_bytes, **_PRIVATE)
    for advice in _ADVICE:
        # An advice that the system does not know is none that is needed.
        with contextlib.suppress(OSError):
            memory.madvise(advice)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _begin_copying(pairs: list[tuple[Any, torch.Tensor]]) -> list[torch.cuda.Stream]:
    """Copies tensors into slots; what comes from devices is complete when the streams that are returned are."""
    devices = set()
    for tensor, slot in pairs:
        # The sign of a conjugate or negative view is a flag, which a copy that does not wait would come too early for.
        slot.copy_(tensor.detach().resolve_conj().resolve_neg(), non_blocking=tensor.is_cuda)
        if tensor.is_cuda:
            devices.add(tensor.device)
    return [torch.cuda.current_stream(device) for device in devices]


def _copied(item: WriteItem, slot: torch.Tensor | None) -> WriteItem:
    """The same item, with a value that the program cannot change."""
    value = item.value.copy() if isinstance(item.value, np.ndarray) else item.value
    return dataclasses.replace(item, value=value if slot is None else slot)
