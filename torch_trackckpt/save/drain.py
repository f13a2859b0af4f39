"""From devices to the writer without a copy of all on the host: two blocks of page-locked memory take turns.

While one is being written, the next values arrive in the other, so that the bus and the file system work at the same
time.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np

from torch_trackckpt.devices.access import Devices
from torch_trackckpt.devices.link import HostMemory, Ticket
from torch_trackckpt.devices.pieces import Column, DeviceRows, Window, windows

if TYPE_CHECKING:
    from torch_trackckpt.save.plan import SavePlan

__all__ = ["BLOCK_BYTES", "Parts", "drain", "take_blocks"]

BLOCK_BYTES = 16 << 20
"""How much arrives at once. A bus takes a third of a millisecond for it, and a copy begins in some microseconds."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """Rows of a plan, or parts of them, that lie in memory of the host."""

    rows: Column
    begins: Column
    """The first byte of each that is meant."""
    sizes: Column
    """How many bytes are."""
    addresses: Column
    """Where these are now."""


def drain(plan: SavePlan, run: Column, addresses: Column, of_device: DeviceRows, devices: Devices) -> Generator[Parts]:
    """Rows of a plan in their order, as they arrive. What is yielded is good until the next is asked for.

    Args:
        plan: the plan.
        run: rows on one device, and plain ones between them.
        addresses: where the values of all rows of the plan are.
        of_device: all rows of the device.
        devices: the links; they have followed the program since the rows got their values.

    Raises:
        RuntimeError: the device has failed.
    """
    places = np.minimum(np.searchsorted(of_device.rows, run), len(of_device.rows) - 1)
    arriving = np.flatnonzero(of_device.rows[places] == run)
    addresses = addresses[run]
    done = 0
    with contextlib.closing(_arrivals(of_device.at(places[arriving]), devices)) as arrivals:
        for window, address in arrivals:
            here = arriving[window.first : window.first + len(window.begins)]
            is_last = window.first + len(window.begins) == len(arriving) and _is_complete(window)
            begin = int(here[0]) if window.begins[0] else done
            done = len(run) if is_last else int(here[-1]) + 1
            parts = Parts(
                run[begin:done],
                np.zeros(done - begin, dtype=np.int64),
                plan.sizes[run[begin:done]],
                addresses[begin:done].copy(),
            )
            parts.begins[here - begin] = window.begins
            parts.sizes[here - begin] = window.sizes
            parts.addresses[here - begin] = address + window.offsets
            yield parts


def take_blocks(device: int, num_threads: int, devices: Devices) -> None:
    """Has the memory be there that so many threads will need."""
    with devices.pool.taking(2 * num_threads, BLOCK_BYTES, devices.link(device).host_memory):
        pass


def _is_complete(window: Window) -> bool:
    """Whether the last of its rows ends in it."""
    return bool(window.begins[-1] + window.sizes[-1] == window.rows.sizes[-1])


def _arrivals(rows: DeviceRows, devices: Devices) -> Generator[tuple[Window, int]]:
    """Tensors of a device, from the first to the last: a window of them, and the address where it is."""
    link = devices.link(rows.device)
    arriving: collections.deque[tuple[Window, HostMemory, Ticket]] = collections.deque()
    with devices.pool.taking(2, BLOCK_BYTES, link.host_memory) as blocks:
        try:
            for number, window in enumerate(windows(rows, BLOCK_BYTES)):
                block = blocks[number % len(blocks)]
                with devices.lock:
                    arriving.append((window, block, link.to_host(window, block)))
                if len(arriving) == len(blocks):
                    yield _arrived(arriving)
            while arriving:
                yield _arrived(arriving)
        except BaseException:
            # Nobody else may have the blocks while something still arrives in them, even if an interrupt came before
            # there was a ticket for it.
            link.settle()
            raise


def _arrived(arriving: collections.deque[tuple[Window, HostMemory, Ticket]]) -> tuple[Window, int]:
    window, block, ticket = arriving[0]
    ticket.wait()
    arriving.popleft()
    return window, block.address
