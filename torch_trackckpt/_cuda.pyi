"""Typed contract of the compiled part for CUDA devices (csrc/cuda).

Addresses and streams cross as integers; the caller keeps the memory until the device has done what was begun. Every
call releases the interpreter lock where it talks to the driver. What the driver refuses raises ``RuntimeError``.
"""

from typing import Any, final

import numpy as np

_Column = np.ndarray[Any, np.dtype[np.int64]]

def versions() -> tuple[int, int]:
    """CUDA's numbers of the driver and of the runtime in this module, such as 13000; 0 where there is no driver."""

def numa_node(device: int) -> int:
    """The node of memory that is nearest to a device, or -1 where the system does not say."""

def exchange_capture_mode(mode: int) -> int:
    """Says what this thread may ask of devices while another one captures a graph, and returns what it might before.

    Args:
        mode: 2 for everything; 0 and 1 for nothing that could end up in the graph.
    """

@final
class Stream:
    """A stream of its own, which nothing else waits for; destroyed with the object, when what is in it is done."""

    def __init__(self, device: int) -> None: ...
    @property
    def handle(self) -> int: ...

@final
class PinnedMemory:
    """Page-locked memory of the host, near to a device where that is known; freed with the object."""

    def __init__(self, size: int, device: int) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

@final
class PieceCopy:
    """Pieces of tensors on one device, and the contiguous memory that they are copied to or from.

    Small pieces and those with gaps between their elements go through scratch memory of the device: a kernel gathers or
    scatters them there. Its first bytes hold the description of the pieces, which is copied there from page-locked
    memory of the host.
    """

    def __init__(
        self,
        device: int,
        addresses: _Column,
        begins: _Column,
        sizes: _Column,
        offsets: _Column,
        layout_of: _Column,
        layouts: np.ndarray[Any, np.dtype[np.int64]],
    ) -> None:
        """Pieces by ascending offset.

        Args:
            device: the number of the device.
            addresses: where the tensor of each piece has its first element.
            begins, sizes: which of the tensor's bytes, in row-major order, the piece is.
            offsets: where it is in the contiguous memory.
            layout_of: the row of its tensor in `layouts`, or -1 where that has no gaps.
            layouts: rank, bytes of an element, 8 lengths, 8 strides in elements.
        """

    @property
    def description_nbytes(self) -> int:
        """The size of the description."""

    @property
    def least_scratch_nbytes(self) -> int:
        """How much scratch memory there has to be, with the description; more makes a copy faster."""

    def to_host(self, address: int, scratch: int, scratch_nbytes: int, description: int, stream: int) -> None:
        """Begins to copy the pieces to memory of the host that begins at `address`."""

    def from_host(self, address: int, scratch: int, scratch_nbytes: int, description: int, stream: int) -> None:
        """Begins to copy them from there."""

    def snapshot(self, address: int, scratch: int, scratch_nbytes: int, description: int, stream: int) -> None:
        """Begins to copy them to other memory of their device. The scratch memory holds the description only."""
