"""Tensors on a device, cut into windows of memory of the host."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_trackckpt.devices.pieces import ALIGNMENT, DeviceRows, Pieces, Window, sharing_memory, windows


def rows_of(*sizes: int) -> DeviceRows:
    count = len(sizes)
    return DeviceRows(0, np.arange(count), np.array(sizes, dtype=np.int64), 1000 + 10_000 * np.arange(count))


def shown(window: Window) -> list[tuple[int, int, int, int]]:
    columns = (window.rows.rows, window.begins, window.sizes, window.offsets)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_small_tensors_lie_side_by_side_at_cache_lines() -> None:
    (window,) = windows(rows_of(10, 64, 65, 1), 512)
    assert shown(window) == [(0, 0, 10, 0), (1, 0, 64, 64), (2, 0, 65, 128), (3, 0, 1, 256)]
    assert window.num_bytes == 140


def test_a_tensor_that_does_not_fit_goes_on_in_the_next_window() -> None:
    assert [shown(window) for window in windows(rows_of(100, 300), 128)] == [
        [(0, 0, 100, 0)],
        [(1, 0, 128, 0)],
        [(1, 128, 128, 0)],
        [(1, 256, 44, 0)],
    ]


def test_a_tensor_without_elements_is_in_one_window() -> None:
    assert [shown(window) for window in windows(rows_of(0), 128)] == [[(0, 0, 0, 0)]]
    first, second = windows(rows_of(0, 128, 0, 64, 0), 128)
    assert [row for row, *_ in shown(first)] + [row for row, *_ in shown(second)] == [0, 1, 2, 3, 4]


def test_without_tensors_there_is_no_window() -> None:
    assert list(windows(rows_of(), 128)) == []


@given(st.lists(st.integers(0, 700), max_size=40), st.integers(1, 8))
def test_every_byte_is_in_one_window_and_nothing_overlaps(sizes: list[int], lines: int) -> None:
    found: dict[int, list[tuple[int, int]]] = {row: [] for row in range(len(sizes))}
    seen = 0
    for window in windows(rows_of(*sizes), lines * ALIGNMENT):
        assert window.first == (window.rows.rows[0] if len(window.rows.rows) else 0)
        end = 0
        for row, begin, size, offset in shown(window):
            assert offset % ALIGNMENT == 0
            assert offset >= end
            end = offset + size
            found[row].append((begin, size))
        assert end <= lines * ALIGNMENT
        assert [row for row, *_ in shown(window)] == sorted({row for row, *_ in shown(window)})
        seen += window.num_bytes
    assert seen == sum(sizes)
    for row, parts in found.items():
        assert parts
        assert [begin for begin, _ in parts] == [sum(size for _, size in parts[:i]) for i in range(len(parts))]
        assert sum(size for _, size in parts) == sizes[row]


def test_native_code_gets_no_piece_without_bytes() -> None:
    (window,) = windows(rows_of(0, 8, 0), 128)
    pieces = Pieces.of(window)
    assert pieces.addresses.tolist() == [11_000]
    assert pieces.layout_of.tolist() == [-1]


@pytest.mark.parametrize(
    ("shape", "strides", "layout"),
    [
        ((2, 3), (1, 2), (2, [2, 3], [1, 2])),
        ((2, 3, 4), (24, 8, 2), (1, [24], [2])),
        ((5, 1, 2), (4, 9, 1), (2, [5, 2], [4, 1])),
        ((1, 1), (7, 7), (0, [], [])),
        ((3, 4), (0, 1), (2, [3, 4], [0, 1])),
    ],
    ids=["transposed", "every second", "a row of a table", "one element", "expanded"],
)
def test_a_layout_has_no_more_dimensions_than_it_needs(
    shape: tuple[int, ...], strides: tuple[int, ...], layout: tuple[int, list[int], list[int]]
) -> None:
    rank, lengths, steps = layout
    num_bytes = 4 * int(np.prod(shape))
    rows = DeviceRows(0, np.array([7]), np.array([num_bytes]), np.array([4096]), {7: (shape, strides)})
    (window,) = windows(rows, 1024)
    pieces = Pieces.of(window)
    assert pieces.layout_of.tolist() == [0]
    found = pieces.layouts[0].tolist()
    assert found == [rank, 4, *lengths, *[0] * (8 - rank), *steps, *[0] * (8 - rank)]


@pytest.mark.parametrize(
    ("placed", "shared"),
    [
        ([(0, 10), (10, 10), (20, 5)], []),
        ([(0, 10), (9, 10), (20, 5)], [0, 1]),
        ([(20, 5), (0, 100), (200, 1)], [0, 1]),
        ([(0, 0), (0, 0), (0, 4)], []),
        ([(0, 4), (0, 4)], [0, 1]),
        ([(0, 30), (5, 5), (25, 10), (34, 1), (40, 1)], [0, 1, 2, 3]),
    ],
    ids=["side by side", "overlapping", "within", "without elements", "the same", "a chain"],
)
def test_tensors_that_share_memory_are_found(placed: list[tuple[int, int]], shared: list[int]) -> None:
    rows = DeviceRows(
        0,
        np.arange(len(placed)),
        np.array([size for _, size in placed], dtype=np.int64),
        np.array([address for address, _ in placed], dtype=np.int64),
    )
    assert sharing_memory(rows) == shared


@pytest.mark.parametrize(
    ("shape", "strides", "overlaps"),
    [
        ((3, 4), (4, 1), False),
        ((4, 3), (1, 4), False),
        ((3, 4), (10, 2), False),
        ((1, 4), (0, 1), False),
        ((3, 4), (0, 1), True),
        # A sliding window.
        ((5, 3), (1, 1), True),
        ((5, 3), (2, 1), True),
        ((2, 2, 2), (3, 2, 1), True),
        ((2, 2, 2), (4, 2, 1), False),
    ],
)
def test_a_tensor_whose_elements_may_lie_on_each_other_shares_its_own_memory(
    shape: tuple[int, ...], strides: tuple[int, ...], overlaps: bool
) -> None:
    rows = DeviceRows(0, np.array([3]), np.array([4 * math.prod(shape)]), np.array([0]), {3: (shape, strides)})
    assert sharing_memory(rows) == ([3] if overlaps else [])


def test_gaps_count_as_memory_and_an_expanded_tensor_shares_its_own() -> None:
    rows = DeviceRows(
        0,
        np.array([5, 6, 7]),
        np.array([16, 4, 48]),
        np.array([0, 20, 100]),
        {5: ((2, 2), (1, 4)), 7: ((3, 4), (0, 1))},
    )
    assert sharing_memory(rows) == [5, 6, 7]
