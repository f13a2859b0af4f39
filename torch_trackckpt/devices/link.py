"""The way of bytes between a device and the host: what `save` and `restore` ask of a device.

Copies go on by themselves, in the order in which they were begun, while the processor and the device do something else.
A `Ticket` tells when one is done. Nothing here is about CUDA; the tests have a device of their own, which is slow, and
fails.
"""

from __future__ import annotations

from typing import Protocol

from torch_trackckpt.devices.pieces import DeviceRows, Window

__all__ = ["HostMemory", "Link", "Links", "Ticket"]


class HostMemory(Protocol):
    """Memory of the host, for as long as the object lives."""

    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


class Ticket(Protocol):
    """A copy that was begun. It keeps everything that the copy needs, until it is done, whoever forgets the ticket."""

    def wait(self) -> None:
        """Returns when the copy is done.

        Raises:
            RuntimeError: the device has failed.
        """

    def hold_back(self) -> None:
        """Has what the program asks of the device from now on wait for the copy. The program itself does not wait."""


class Link(Protocol):
    """One device. To be used by one thread at a time; threads may take turns."""

    def check(self) -> None:
        """Checks that copies can be begun now.

        Raises:
            RuntimeError: the program is recording what it asks, to have it done later, or is a fork of the one that the
                device knows.
        """

    def follow(self) -> None:
        """Has copies that begin from now on see what the program has asked of the device so far, and no less.

        Raises:
            RuntimeError: as `check`.
        """

    def to_host(self, window: Window, memory: HostMemory) -> Ticket:
        """Begins to copy a window of tensors to memory of the host."""

    def from_host(self, window: Window, memory: HostMemory) -> Ticket:
        """Begins to copy memory of the host to a window of tensors."""

    def snapshot(self, rows: DeviceRows, max_bytes: int) -> DeviceRows | None:
        """Copies tensors to other memory of the device, in the order of what the program asks of it.

        Returns:
            The copies, without gaps; None where they would take more than `max_bytes`, or more than is free.
        """

    def settle(self) -> None:
        """Returns when nothing that was begun goes on any more, whether it has failed or not."""

    def host_memory(self, num_bytes: int) -> HostMemory:
        """Memory of the host that the device reaches by itself.

        Raises:
            RuntimeError: there is no such memory left.
        """


class Links(Protocol):
    """All devices of this process."""

    def of(self, device: int) -> Link:
        """The link to a device."""

    def release(self) -> None:
        """Gives back the memory of devices that links keep."""
