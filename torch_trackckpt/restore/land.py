"""From the files to devices: values land in page-locked memory of the host, and go on from there by themselves.

Two blocks of such memory take turns: while threads read into one, the other is on its way to the devices, so that the
file system and the bus work at the same time, and there is never a copy of the checkpoint on the host.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from torch_trackckpt.devices.access import Devices
from torch_trackckpt.devices.link import HostMemory, Ticket
from torch_trackckpt.devices.pieces import Column, DeviceRows, Window

__all__ = ["BLOCK_BYTES", "read_landing"]

BLOCK_BYTES = 64 << 20
"""How much lands at once. The threads that read begin anew with each block, which takes them some tens of
microseconds."""

ReadSome = Callable[[int, int], tuple[int, list[int], list[int], list[int], list[int]]]
"""Reads into memory of an address and a size; see `_native.RowPlan.read_landing`."""


def read_landing(
    read_some: ReadSome, rows: Sequence[DeviceRows], devices: Devices, tell: Callable[[int], object]
) -> None:
    """Reads everything, and has what lands go on to its device; it is there when this returns.

    Args:
        read_some: reads the next values.
        rows: the tensors that values land for, by device.
        devices: the links to the devices.
        tell: is told the bytes of each block.

    Raises:
        OSError: a file is damaged, or the system refuses.
        RuntimeError: a device has failed.
    """
    devices.follow(rows)
    link = devices.link(rows[0].device)
    with devices.pool.taking(2, BLOCK_BYTES, link.host_memory) as blocks:
        on_their_way: list[list[Ticket]] = [[] for _ in blocks]
        try:
            for block, tickets in itertools.cycle(zip(blocks, on_their_way, strict=True)):
                _wait_for(tickets)
                num_bytes, *landed = read_some(block.address, block.nbytes)
                if not num_bytes:
                    break
                tickets += _send(rows, [np.array(column, dtype=np.int64) for column in landed], block, devices)
                tell(num_bytes)
            for tickets in on_their_way:
                _wait_for(tickets)
        except BaseException:
            # Nobody else may have the blocks while something still goes on from them, even if an interrupt came before
            # there was a ticket for it.
            for of_device in rows:
                devices.link(of_device.device).settle()
            raise


def _wait_for(tickets: list[Ticket]) -> None:
    while tickets:
        tickets.pop().wait()


def _send(rows: Sequence[DeviceRows], landed: list[Column], block: HostMemory, devices: Devices) -> Iterator[Ticket]:
    """Sends what has landed to its devices."""
    landed_rows, begins, sizes, offsets = landed
    for of_device in rows:
        here = np.flatnonzero(np.isin(landed_rows, of_device.rows))
        if not len(here):
            continue
        places = np.searchsorted(of_device.rows, landed_rows[here])
        window = Window(of_device.at(places), 0, begins[here], sizes[here], offsets[here])
        with devices.lock:
            ticket = devices.link(of_device.device).from_host(window, block)
        yield ticket
