"""Which values share a data file: as many files as are of use, of about the same size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_trackckpt.save.balance import SHARD_BYTES, Column, balanced

MIB = 1 << 20


def numbers(values: list[int]) -> Column:
    return np.array(values, dtype=np.int64)


def shards(sizes: list[int], num_threads: int, strings: list[int] | None = None) -> list[list[int]]:
    return [rows.tolist() for rows in balanced(numbers(sizes), numbers(strings or []), num_threads)]


@pytest.mark.parametrize(
    ("sizes", "num_threads", "count"),
    [
        ([], 8, 1),
        ([0, 0], 8, 1),
        ([SHARD_BYTES, SHARD_BYTES - 1], 8, 1),
        ([SHARD_BYTES, SHARD_BYTES], 8, 2),
        ([SHARD_BYTES, SHARD_BYTES], 1, 1),
        ([MIB] * 31, 2, 1),
        ([MIB] * 64, 2, 2),
        ([MIB] * 64, 8, 4),
        ([MIB] * 1000, 8, 8),
    ],
)
def test_there_are_as_many_files_as_threads_where_each_is_large_enough(
    sizes: list[int], num_threads: int, count: int
) -> None:
    assert len(shards(sizes, num_threads)) == count


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1000 * MIB], [[0]]),
        ([8, 1000 * MIB, 8, 100 * MIB], [[0, 1, 2, 3]]),
        ([200 * MIB, 199 * MIB], [[0], [1]]),
        ([512 * MIB] * 4, [[0], [1], [2], [3]]),
        ([100 * MIB, 300 * MIB, 200 * MIB], [[1], [0, 2]]),
    ],
)
def test_there_are_no_more_files_than_the_largest_tensor_leaves_work_for(
    sizes: list[int], expected: list[list[int]]
) -> None:
    assert shards(sizes, 8) == expected


def test_strings_go_to_the_last_file_which_has_less_of_the_rest() -> None:
    found = shards([100 * MIB, *[MIB] * 300, 100 * MIB, 7], 2, strings=[301, 302])
    assert {301, 302} <= set(found[1])
    assert 0 in found[0]
    assert sum(row < 301 for row in found[1]) == pytest.approx(150, abs=5)


def test_small_tensors_stay_together_in_their_order() -> None:
    first, second = shards([MIB] * 1000, 2)
    assert (first, second) == (list(range(500)), list(range(500, 1000)))


@given(
    sizes=st.lists(
        st.one_of(st.integers(0, 100), st.integers(0, 4 * MIB), st.integers(0, 400 * MIB)), min_size=1, max_size=300
    ),
    num_threads=st.integers(1, 9),
    data=st.data(),
)
def test_every_row_is_in_one_file_and_none_is_much_larger_than_needed(
    sizes: list[int], num_threads: int, data: st.DataObject
) -> None:
    strings = sorted(data.draw(st.sets(st.integers(0, len(sizes) - 1), max_size=3)))
    found = shards(sizes, num_threads, strings)
    assert sorted(row for rows in found for row in rows) == list(range(len(sizes)))
    assert all(rows == sorted(rows) and rows for rows in found)
    assert set(strings) <= set(found[-1])
    loads = [sum(sizes[row] for row in rows) for rows in found]
    large = max([size for row, size in enumerate(sizes) if row not in strings], default=0)
    inevitable = max(-(-sum(sizes) // len(found)), sum(sizes[row] for row in strings))
    assert max(loads) <= inevitable + large


def test_many_equal_files_differ_by_less_than_two_in_a_hundred() -> None:
    generator = np.random.default_rng(5)
    sizes = (generator.lognormal(9, 2, 20_000) * 100).astype(int).tolist()
    loads = [sum(sizes[row] for row in rows) for rows in shards(sizes, 8)]
    assert len(loads) == 8
    assert max(loads) < 1.02 * min(loads)
