"""Copies of the values on devices, for a save that lets the program go on.

They are made, in this order of preference,

- on the device itself, where the caller allows so much of its memory: the program goes on at once, and the writer
  fetches the copies when it needs them (`drain`);
- in page-locked memory of the host that is kept for the next save. The copies go on by themselves; what the program may
  change before the next step of an optimizer waits on the device for its copy, and the rest for the step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from torch_trackckpt.devices.access import Devices
from torch_trackckpt.devices.link import HostMemory, Ticket
from torch_trackckpt.devices.pieces import ALIGNMENT, Column, DeviceRows, Window, windows

__all__ = ["DeviceCopier", "DeviceCopies"]


@dataclasses.dataclass(frozen=True)
class DeviceCopies:
    """Where the values of a plan's rows on devices are now, or will be."""

    on_host: tuple[tuple[Column, Column], ...] = ()
    """Rows, and the addresses of their copies."""
    on_devices: tuple[DeviceRows, ...] = ()
    """Copies that are on their device."""
    tickets: tuple[Ticket, ...] = ()
    """Copies that still go on."""
    owners: tuple[HostMemory, ...] = ()
    """The memory of those on the host."""

    def address_of(self, num_rows: int) -> Column:
        """For each row of the plan the address of its copy on the host; 0 where it has none."""
        addresses = np.zeros(num_rows, dtype=np.int64)
        for rows, of_rows in self.on_host:
            addresses[rows] = of_rows
        return addresses


class DeviceCopier:
    """Makes copies of all values on devices, one save after the other; the pool keeps the memory.

    Args:
        devices: the links to devices.
    """

    def __init__(self, devices: Devices) -> None:
        self._devices = devices

    def copy(self, rows: Sequence[DeviceRows], later: Sequence[int], max_device_bytes: int) -> DeviceCopies:
        """Copies of these tensors; they are good until the next call.

        Args:
            rows: the tensors, by device.
            later: rows that do not change before a ticket is waited for; without any, everything is there when this
                returns, but for copies on devices.
            max_device_bytes: how much of the memory of each device copies may take.

        Raises:
            RuntimeError: the device has failed, or cannot be used now.
        """
        self._devices.follow(rows)
        copies = [self._copy_device(of_device, later, max_device_bytes) for of_device in rows]
        on_devices = tuple(copy for each in copies for copy in each.on_devices)
        # They are fetched when they are complete.
        self._devices.follow(on_devices)
        tickets = tuple(ticket for each in copies for ticket in each.tickets)
        if not later:
            for ticket in tickets:
                ticket.wait()
        return DeviceCopies(
            tuple(pair for each in copies for pair in each.on_host),
            on_devices,
            tickets if later else (),
            tuple(owner for each in copies for owner in each.owners),
        )

    def _copy_device(self, rows: DeviceRows, later: Sequence[int], max_device_bytes: int) -> DeviceCopies:
        link = self._devices.link(rows.device)
        with self._devices.lock:
            copy = link.snapshot(rows, max_device_bytes) if max_device_bytes else None
            if copy is not None:
                return DeviceCopies(on_devices=(copy,))
            waits = np.isin(rows.rows, later)
            # What is copied first lies together: a copy may take what is between its pieces along.
            order = np.argsort(waits, kind="stable")
            rows, waits = rows.at(order), waits[order]
            memory, whole = self._room_for(rows)
            first, last = _part(whole, ~waits), _part(whole, waits)
            tickets = [link.to_host(first, memory)]
            if later:
                tickets[0].hold_back()
                tickets.append(link.to_host(last, memory))
        return DeviceCopies(((rows.rows, memory.address + whole.offsets),), (), tuple(tickets), (memory,))

    def _room_for(self, rows: DeviceRows) -> tuple[HostMemory, Window]:
        """Memory for all of these tensors, and their places in it."""
        num_bytes = int((-(-rows.sizes // ALIGNMENT) * ALIGNMENT).sum())
        pool = self._devices.pool
        memory = pool.kept(rows.device)
        if memory is None or not num_bytes <= memory.nbytes <= max(2 * num_bytes, num_bytes + SLACK_BYTES):
            del memory
            memory = pool.keep(rows.device, num_bytes + SLACK_BYTES, self._devices.link(rows.device).host_memory)
        (whole,) = windows(rows, max(ALIGNMENT, num_bytes))
        return memory, whole


SLACK_BYTES = 1 << 20
"""How much a checkpoint may grow before it takes other memory."""


def _part(window: Window, chosen: np.ndarray) -> Window:
    """The rows of a window that are chosen, in their places."""
    places = np.flatnonzero(chosen)
    return dataclasses.replace(
        window,
        rows=window.rows.at(places),
        begins=window.begins[places],
        sizes=window.sizes[places],
        offsets=window.offsets[places],
    )
