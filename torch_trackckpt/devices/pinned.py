"""Page-locked memory of the host: allocated once, used again and again, never more than a budget.

To lock pages takes the system about as long as to fill them, and what is locked nobody else can have.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator

import torch

from torch_trackckpt.devices.link import HostMemory

__all__ = ["BLOCK_BUDGET_BYTES", "PageableMemory", "PinnedPool"]

_logger = logging.getLogger("torch_trackckpt")

BLOCK_BUDGET_BYTES = 256 << 20
"""What the blocks of a pool take at most, unless it is told otherwise."""


class PageableMemory:
    """Ordinary memory, of which devices get copies more slowly."""

    def __init__(self, num_bytes: int) -> None:
        self._memory = torch.empty(num_bytes, dtype=torch.uint8, device="cpu")
        self.address = self._memory.data_ptr()
        self.nbytes = num_bytes


class PinnedPool:
    """Blocks of memory that are used in turn, and memory that is kept. Several threads may use one pool.

    Args:
        block_bytes: how much the blocks may take together, in use or not, where `bound` says nothing else. A single
            user may have one block that is larger.
    """

    def __init__(self, block_bytes: int = BLOCK_BUDGET_BYTES) -> None:
        self._block_budget = block_bytes
        self._bound: int | None = None
        self._free: list[HostMemory] = []
        self._taken_bytes = 0
        self._kept: dict[int, HostMemory] = {}
        self._takers: list[int] = []
        """The threads that have blocks, each as often as it has taken some."""
        self._least_refused: int | None = None
        self._changed = threading.Condition()

    @property
    def num_bytes(self) -> int:
        """How much page-locked memory it holds, in use or not."""
        with self._changed:
            return self._taken_bytes + _locked(self._free) + _locked(self._kept.values())

    def bound(self, max_bytes: int | None) -> None:
        """Says how much page-locked memory of either kind there may be together; None for any amount that is kept.

        Who has use for what goes by that, because it is too much or because better can be had, takes it again.
        """
        with self._changed:
            before, self._bound = self._bound, max_bytes
            rises = before is not None and (max_bytes is None or max_bytes > before)
            gone = self._trim()
            for owner, memory in list(self._kept.items()):
                is_too_much = max_bytes is not None and _locked(self._kept.values()) > max_bytes
                if rises if isinstance(memory, PageableMemory) else is_too_much:
                    gone.append(self._kept.pop(owner))
        # Unlocked when nobody has to wait for it.
        del gone

    @contextlib.contextmanager
    def taking(self, count: int, num_bytes: int, allocate: Callable[[int], HostMemory]) -> Iterator[list[HostMemory]]:
        """Blocks for the time of the ``with``. Waits until others have given back enough for one.

        Args:
            count: how many are wanted; there are fewer, but at least one, where there is no room for more.
            num_bytes: the size of each.
            allocate: makes one. What it raises as ``RuntimeError`` is logged, and ordinary memory is used.
        """
        me = threading.get_ident()
        blocks: list[HostMemory] = []
        taken = 0
        try:
            with self._changed:
                # Who has blocks already cannot wait for itself: a callback of a save may save, or restore.
                self._changed.wait_for(lambda: me in self._takers or self._room() >= num_bytes or not self._taken_bytes)
                count = max(1, min(count, self._room() // num_bytes))
                taken = count * num_bytes
                self._taken_bytes += taken
                self._takers.append(me)
                blocks = [block for block in self._free if block.nbytes == num_bytes][:count]
                self._free = [block for block in self._free if block not in blocks]
                gone = self._trim()
            del gone
            blocks += [self._allocated(num_bytes, allocate) for _ in range(count - len(blocks))]
            yield blocks
        finally:
            with self._changed:
                if taken:
                    self._taken_bytes -= taken
                    self._takers.remove(me)
                self._free += blocks
                gone = self._trim()
                self._changed.notify_all()
            del gone

    def kept(self, owner: int) -> HostMemory | None:
        """What is kept for an owner."""
        with self._changed:
            return self._kept.get(owner)

    def keep(self, owner: int, num_bytes: int, allocate: Callable[[int], HostMemory]) -> HostMemory:
        """Memory that is kept in place of what was before; ordinary memory where the bound has no room for other, or
        after a refusal."""
        with self._changed:
            # The old memory goes first: there is never twice as much.
            gone: list[HostMemory | None] = [self._kept.pop(owner, None)]
            there = self._taken_bytes + _locked(self._kept.values())
            has_room = self._bound is None or there + num_bytes <= self._bound
            if has_room:
                gone += self._trim(num_bytes)
        del gone
        memory = self._allocated(num_bytes, allocate) if has_room else PageableMemory(num_bytes)
        with self._changed:
            self._kept[owner] = memory
        return memory

    def release(self) -> None:
        """Gives back what is kept, and the blocks that are not in use."""
        with self._changed:
            gone = [*self._kept.values(), *self._free]
            self._kept.clear()
            self._free.clear()
            self._least_refused = None
        del gone

    @property
    def _budget(self) -> int:
        """How much blocks may take."""
        if self._bound is None:
            return self._block_budget
        return min(self._block_budget, max(0, self._bound - _locked(self._kept.values())))

    def _room(self) -> int:
        """How much of it nobody has taken."""
        return self._budget - self._taken_bytes

    def _trim(self, coming: int = 0) -> list[HostMemory]:
        """Takes free blocks away that are too much, or will be when so much more is kept; but for a last one."""
        budget = self._budget if self._bound is None else self._budget - coming
        gone = []
        while self._free and self._taken_bytes + _locked(self._free) > max(budget, self._free[-1].nbytes):
            gone.append(self._free.pop(0))
        return gone

    def _allocated(self, num_bytes: int, allocate: Callable[[int], HostMemory]) -> HostMemory:
        if self._least_refused is None or num_bytes < self._least_refused:
            try:
                return allocate(num_bytes)
            except RuntimeError as error:
                if self._least_refused is None:
                    _logger.warning(
                        "There is no page-locked memory of %d bytes for copies from and to devices: %s. They go "
                        "through ordinary memory, which takes longer. `ulimit -l` may say why.",
                        num_bytes,
                        error,
                    )
                self._least_refused = num_bytes
        return PageableMemory(num_bytes)


def _locked(blocks: Iterable[HostMemory]) -> int:
    return sum(block.nbytes for block in blocks if not isinstance(block, PageableMemory))
