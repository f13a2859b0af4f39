"""Page-locked memory of the host: allocated once, used again and again, never more than a budget.

To lock pages takes the system about as long as to fill them, and what is locked nobody else can have.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

import torch

from torch_trackckpt.devices.link import HostMemory

__all__ = ["BUDGET_BYTES", "PageableMemory", "PinnedPool"]

_logger = logging.getLogger("torch_trackckpt")

BUDGET_BYTES = 256 << 20
"""What a pool holds at most, unless it is told otherwise."""


class PageableMemory:
    """Ordinary memory, of which devices get copies more slowly."""

    def __init__(self, num_bytes: int) -> None:
        self._memory = torch.empty(num_bytes, dtype=torch.uint8, device="cpu")
        self.address = self._memory.data_ptr()
        self.nbytes = num_bytes


class PinnedPool:
    """Blocks of memory. Several threads may use one pool.

    Args:
        budget: how many bytes it may hold, in use or not. A single user may have one block that is larger.
    """

    def __init__(self, budget: int = BUDGET_BYTES) -> None:
        self.budget = budget
        self._free: list[HostMemory] = []
        self._taken_bytes = 0
        self._has_refused = False
        self._changed = threading.Condition()

    @property
    def num_bytes(self) -> int:
        """How much it holds, in use or not."""
        with self._changed:
            return self._taken_bytes + sum(block.nbytes for block in self._free)

    @contextlib.contextmanager
    def taking(self, count: int, num_bytes: int, allocate: Callable[[int], HostMemory]) -> Iterator[list[HostMemory]]:
        """Blocks for the time of the ``with``. Waits until others have given back what does not fit beside them.

        Args:
            count: how many are wanted; there are fewer, but at least one, where the budget is smaller than that.
            num_bytes: the size of each.
            allocate: makes one. What it raises as ``RuntimeError`` is logged once, and ordinary memory is used.
        """
        count = min(count, max(1, self.budget // num_bytes))
        wanted = count * num_bytes
        blocks: list[HostMemory] = []
        taken = 0
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._taken_bytes or self._taken_bytes + wanted <= self.budget)
                taken = wanted
                self._taken_bytes += wanted
                blocks = [block for block in self._free if block.nbytes == num_bytes][:count]
                # Others stay as far as there is room.
                kept = [block for block in self._free if block not in blocks]
                while kept and self._taken_bytes + sum(block.nbytes for block in kept) > self.budget:
                    kept.pop(0)
                self._free = kept
            blocks += [self.allocated(num_bytes, allocate) for _ in range(count - len(blocks))]
            yield blocks
        finally:
            with self._changed:
                self._taken_bytes -= taken
                self._free += blocks
                self._changed.notify_all()

    def release(self) -> None:
        """Gives back what is not in use."""
        with self._changed:
            self._free.clear()

    def allocated(self, num_bytes: int, allocate: Callable[[int], HostMemory]) -> HostMemory:
        """Memory that is not the pool's, and that its budget does not know of; ordinary memory after a refusal."""
        if not self._has_refused:
            try:
                return allocate(num_bytes)
            except RuntimeError as error:
                self._has_refused = True
                _logger.warning(
                    "There is no page-locked memory for copies from and to devices: %s. They go through ordinary "
                    "memory, which takes longer. `ulimit -l` may say why.",
                    error,
                )
        return PageableMemory(num_bytes)
