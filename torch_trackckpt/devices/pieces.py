"""Parts of tensors on a device, in columns, and the places that they have in memory of the host.

In that memory tensors lie one behind the other, each at a multiple of `ALIGNMENT`, as if it were without an end. What
is copied at once is a window of it, so that a large tensor may be in several windows, and many small ones in one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

__all__ = ["ALIGNMENT", "Column", "DeviceRows", "Pieces", "Window", "sharing_memory", "windows"]

Column = np.ndarray[Any, np.dtype[np.int64]]
"""A number for each row, or the numbers of rows."""

ALIGNMENT = 64
"""Where tensors begin: at cache lines, which are multiples of every element size."""

MAX_RANK = 8
"""As many dimensions a tensor with gaps may have that is copied without torch."""


@dataclasses.dataclass(frozen=True)
class DeviceRows:
    """Tensors of one device."""

    device: int
    rows: Column
    """Their numbers in a table; ascending, where nothing else is said."""
    sizes: Column
    """The bytes of their elements."""
    addresses: Column
    strides: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]] = dataclasses.field(default_factory=dict)
    """For rows with gaps between their elements: shape, and strides in elements."""
    owner: object = None
    """What keeps the memory."""

    def at(self, places: Column | slice) -> DeviceRows:
        """Some of them, by their places here."""
        return dataclasses.replace(
            self, rows=self.rows[places], sizes=self.sizes[places], addresses=self.addresses[places]
        )


def sharing_memory(rows: DeviceRows) -> list[int]:
    """The rows whose memory is, or may be, that of another row as well, or twice their own: in which order copies to
    them are made is not known."""
    ends = rows.addresses + rows.sizes
    overlapping = []
    for place, row in enumerate(rows.rows.tolist()):
        if row in rows.strides:
            shape, strides = rows.strides[row]
            item_size = int(rows.sizes[place]) // max(1, math.prod(shape))
            reach = 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True) if length)
            ends[place] = rows.addresses[place] + item_size * reach
            if _may_overlap_itself(shape, strides):
                overlapping.append(row)
    some = np.flatnonzero(rows.sizes)
    order = some[np.argsort(rows.addresses[some], kind="stable")]
    if not len(order):
        return overlapping
    reached = np.maximum.accumulate(ends[order])
    begins_anew = np.concatenate([[True], rows.addresses[order][1:] >= reached[:-1]])
    cluster = np.cumsum(begins_anew)
    is_shared = np.bincount(cluster)[cluster] > 1
    return sorted({*overlapping, *rows.rows[order[is_shared]].tolist()})


def _may_overlap_itself(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether an element may lie where another one does. It does not if each dimension steps over all smaller ones."""
    reach = 0
    for stride, length in sorted((stride, length) for length, stride in zip(shape, strides, strict=True) if length > 1):
        if stride <= reach:
            return True
        reach += (length - 1) * stride
    return False


@dataclasses.dataclass(frozen=True)
class Window:
    """What of some tensors is copied at once."""

    rows: DeviceRows
    """Those of which there is anything in it."""
    first: int
    """The place of the first of them among all."""
    begins: Column
    """The first byte of each that is in it."""
    sizes: Column
    """How many bytes are in it; 0 for a tensor without elements."""
    offsets: Column
    """Where they begin in the memory of the host."""

    @property
    def num_bytes(self) -> int:
        """The bytes of the tensors in it."""
        return int(self.sizes.sum())


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The same for native code: one row for each piece that has bytes."""

    device: int
    addresses: Column
    begins: Column
    sizes: Column
    offsets: Column
    layout_of: Column
    """The row of `layouts`, or -1 for a tensor without gaps."""
    layouts: np.ndarray[Any, np.dtype[np.int64]]
    """Rank, bytes of an element, lengths and strides (in elements), each of these filled up to `MAX_RANK`."""

    @classmethod
    def of(cls, window: Window) -> Pieces:
        """The pieces of a window."""
        some = np.flatnonzero(window.sizes)
        rows = window.rows.rows[some]
        layout_of = np.full(len(some), -1)
        layouts = np.zeros((0, 2 + 2 * MAX_RANK), dtype=np.int64)
        strided = np.flatnonzero(np.isin(rows, list(window.rows.strides)))
        if len(strided):
            layout_of[strided] = np.arange(len(strided))
            numbers = rows[strided].tolist()
            sizes = window.rows.sizes[some][strided].tolist()
            layouts = np.array(
                [_layout(*window.rows.strides[row], size) for row, size in zip(numbers, sizes, strict=True)]
            )
        return cls(
            window.rows.device,
            window.rows.addresses[some],
            window.begins[some],
            window.sizes[some],
            window.offsets[some],
            layout_of,
            layouts,
        )


def _layout(shape: tuple[int, ...], strides: tuple[int, ...], num_bytes: int) -> list[int]:
    """A row of `Pieces.layouts`: without dimensions of one element, and with neighbours joined that lie as one."""
    joined: list[list[int]] = []
    count = 1
    for length, stride in zip(shape, strides, strict=True):
        count *= length
        if length == 1:
            continue
        if joined and joined[-1][1] == length * stride:
            joined[-1] = [joined[-1][0] * length, stride]
        else:
            joined.append([length, stride])
    lengths = [length for length, _ in joined]
    steps = [stride for _, stride in joined]
    unused = [0] * (MAX_RANK - len(joined))
    return [len(joined), num_bytes // count, *lengths, *unused, *steps, *unused]


def windows(rows: DeviceRows, num_bytes: int) -> Iterator[Window]:
    """All tensors, in windows of so many bytes, which are a multiple of `ALIGNMENT`; each byte is in one of them.

    Where there is more than one, nothing is done in Python for a single tensor.
    """
    if not len(rows.rows):
        return
    spans = -(-rows.sizes // ALIGNMENT) * ALIGNMENT
    ends = np.cumsum(spans)
    starts = ends - spans
    count = max(1, -(-int(ends[-1]) // num_bytes))
    first = np.minimum(starts // num_bytes, count - 1)
    last = np.maximum(first, (starts + rows.sizes - 1) // num_bytes)
    for number in range(count):
        places = slice(
            int(np.searchsorted(last, number, side="left")), int(np.searchsorted(first, number, side="right"))
        )
        here = rows.at(places)
        begin = number * num_bytes
        begins = np.maximum(begin - starts[places], 0)
        stops = np.minimum(begin + num_bytes - starts[places], here.sizes)
        yield Window(here, places.start, begins, stops - begins, starts[places] + begins - begin)
