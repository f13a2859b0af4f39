"""What the saves and restores of one checkpoint use of devices: links, found when they are needed, and memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from torch_trackckpt import _native
from torch_trackckpt.devices.cuda import find_links
from torch_trackckpt.devices.link import Link, Links
from torch_trackckpt.devices.pieces import DeviceRows
from torch_trackckpt.devices.pinned import PinnedPool

__all__ = ["Devices"]


class Devices:
    """Links to devices, and the page-locked memory for all of them.

    Args:
        find: tells whether this process has links to devices.
    """

    def __init__(self, find: Callable[[], Links | None] = find_links) -> None:
        self._find = find
        self._links: Links | None = None
        self._has_looked = False
        self.pool = PinnedPool()
        self.lock = threading.Lock()
        """To be held while something is asked of a link: threads take turns."""

    def link(self, device: int) -> Link:
        """The link to a device for whose tensors there are `rows`."""
        links = self._known_links()
        assert links is not None
        return links.of(device)

    def rows(self, table: _native.TensorTable, leave_out: Sequence[int] = ()) -> tuple[DeviceRows, ...]:
        """The rows of a table that are copied through links, by device. Without links there are none."""
        rows, devices = table.on_devices()
        if not rows or self._known_links() is None:
            return ()
        sizes, addresses = np.array(table.sizes(), dtype=np.int64), np.array(table.addresses(), dtype=np.int64)
        strides = {row: (shape, steps) for row, shape, steps in table.strided()}
        here, device_of = np.array(rows), np.array(devices)
        is_wanted = ~np.isin(here, list(leave_out))
        found = []
        for device in np.unique(device_of[is_wanted]).tolist():
            chosen = here[is_wanted & (device_of == device)]
            found.append(DeviceRows(device, chosen, sizes[chosen], addresses[chosen], strides, owner=table))
        return tuple(found)

    def check(self, rows: Sequence[DeviceRows]) -> None:
        """Checks that copies from and to these devices can be begun now.

        Raises:
            RuntimeError: one cannot.
        """
        for of_device in rows:
            self.link(of_device.device).check()

    def release(self) -> None:
        """Gives back all memory that is kept, of the host and of devices."""
        self.pool.release()
        if self._links is not None:
            with self.lock:
                self._links.release()

    def follow(self, rows: Sequence[DeviceRows]) -> None:
        """Has the copies of these tensors come after what the program has asked of their devices so far."""
        with self.lock:
            for of_device in rows:
                self.link(of_device.device).follow()

    def _known_links(self) -> Links | None:
        if not self._has_looked:
            self._links = self._find()
            self._has_looked = True
        return self._links
