"""Rows that are written in parts from other memory than their own, and values that land on their way elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import crafted

from torch_trackckpt import _native
from torch_trackckpt._native import RowPlan, TensorTable
from torch_trackckpt.errors import DataLossError, WriterClosedError

TYPES = (torch.Tensor, torch.nn.Parameter)
LEAST = 8 << 20


def column(numbers: Iterable[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(list(numbers), dtype=np.int64)


def writer_at(prefix: Path) -> _native.BundleWriter:
    return _native.BundleWriter([f"{prefix}.data-00000-of-00001"], f"{prefix}.index", durable=False)


def files(prefix: Path) -> dict[str, bytes]:
    return {file.suffix: file.read_bytes() for file in prefix.parent.iterdir()}


def add_parts(
    writer: _native.BundleWriter, keys: list[str], table: TensorTable, parts: list[tuple[int, int, int, int]]
) -> None:
    rows, begins, sizes, addresses = (column(part[i] for part in parts) for i in range(4))
    writer.add_parts(0, keys, table, rows, begins, sizes, addresses)


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    calls=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_rows_in_any_parts_make_the_same_files_as_whole_rows(
    sizes: list[int], cuts: list[int], calls: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensors = [torch.arange(size, dtype=torch.int16) + 100 * row for row, size in enumerate(sizes)]
    keys = [f"k{row}" for row in range(len(tensors))]
    # The parts are elsewhere than the table says.
    elsewhere = [tensor.clone() for tensor in tensors]
    table = TensorTable([torch.zeros_like(tensor) for tensor in tensors], TYPES)
    parts = []
    for row, tensor in enumerate(elsewhere):
        begin = 0
        while begin < tensor.nbytes or not begin:
            size = min(2 * cuts[(row + begin) % len(cuts)], tensor.nbytes - begin)
            parts.append((row, begin, size, tensor.data_ptr() + begin))
            begin += size
            if begin >= tensor.nbytes:
                break
    in_parts = tmp_path_factory.mktemp("parts") / "ckpt"
    writer = writer_at(in_parts)
    share = -(-len(parts) // calls)
    for first in range(0, len(parts), share):
        add_parts(writer, keys, table, parts[first : first + share])
    writer.finish()
    whole = tmp_path_factory.mktemp("whole") / "ckpt"
    writer = writer_at(whole)
    writer.add_rows(0, keys, TensorTable(list(tensors), TYPES), column(range(len(tensors))))
    writer.finish()
    assert files(in_parts) == files(whole)


@pytest.mark.parametrize(
    "parts",
    [
        [(0, 4, 4)],
        [(0, 0, 4), (0, 0, 4)],
        [(0, 0, 4), (0, 8, 4)],
        [(0, 0, 24)],
        [(0, 0, 4), (1, 4, 4)],
        [(0, 0, 4), (1, 0, 8)],
        [(9, 0, 4)],
        [(-1, 0, 4)],
    ],
    ids=["a late begin", "twice", "a gap", "too long", "another's middle", "another in between", "no row", "below"],
)
def test_parts_that_do_not_follow_each_other_are_refused(parts: list[tuple[int, int, int]], tmp_path: Path) -> None:
    tensors = [torch.ones(5), torch.ones(2)]
    table = TensorTable(list(tensors), TYPES)
    writer = writer_at(tmp_path / "ckpt")
    with pytest.raises(ValueError, match=r"do not follow each other|no row"):
        add_parts(writer, ["a", "b"], table, [(*part, tensors[0].data_ptr()) for part in parts])
    with pytest.raises(WriterClosedError):
        writer.finish()


def test_a_row_of_which_a_part_is_missing_is_noticed(tmp_path: Path) -> None:
    tensor = torch.ones(4)
    table = TensorTable([tensor], TYPES)
    for number, last in enumerate(("finish", "strings")):
        writer = writer_at(tmp_path / str(number))
        add_parts(writer, ["a"], table, [(0, 0, 8, tensor.data_ptr())])
        with pytest.raises(ValueError, match="has not got all"):
            writer.finish() if last == "finish" else writer.add_strings(0, b"s", (), [b"text"])


def test_columns_of_parts_are_equally_long(tmp_path: Path) -> None:
    table = TensorTable([torch.ones(4)], TYPES)
    writer = writer_at(tmp_path / "ckpt")
    with pytest.raises(ValueError, match="equally long"):
        writer.add_parts(0, ["a"], table, column([0]), column([0, 0]), column([16]), column([0]))


# ------------------------------------------------------------------------------------------------- values that land


def stored(prefix: Path, tensors: dict[str, torch.Tensor]) -> _native.BundleReader:
    crafted.write_bundle(
        prefix,
        [(key.encode(), crafted.FLOAT, tuple(value.shape), value.numpy().tobytes()) for key, value in tensors.items()],
    )
    return crafted.open_reader(prefix)


def landed(plan: RowPlan, rows: int, size: int, num_threads: int) -> list[bytes]:
    """What has landed of each row, put together."""
    found = [bytearray() for _ in range(rows)]
    memory = np.zeros(size, dtype=np.uint8)
    while True:
        num_bytes, *columns = plan.read_landing(num_threads=num_threads, address=memory.ctypes.data, size=size)
        if not num_bytes:
            return [bytes(part) for part in found]
        end = 0
        for row, begin, length, offset in zip(*columns, strict=True):
            assert begin == len(found[row])
            assert offset % 64 == 0
            assert offset >= end
            end = offset + length
            assert end <= size
            found[row] += memory[offset : offset + length].tobytes()
        memory[:] = 0xEE


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize("land", [[], [0], [1, 2], [0, 1, 2, 3, 4]])
def test_values_land_or_go_where_they_belong(prefix: Path, land: list[int], num_threads: int) -> None:
    values = {str(i): torch.rand(size) for i, size in enumerate((10, 5_000_000, 0, 700_000, 300))}
    reader = stored(prefix, values)
    live = [torch.zeros_like(value) for value in values.values()]
    plan = RowPlan(reader, list(values), TensorTable(list(live), TYPES), land)
    assert plan.nbytes == sum(value.nbytes for value in values.values())
    plan.verify(num_threads=num_threads)
    found = landed(plan, len(live), LEAST, num_threads)
    for row, value in enumerate(values.values()):
        assert found[row] == (value.numpy().tobytes() if row in land else b"")
        assert torch.equal(live[row], torch.zeros_like(value) if row in land else value)
    assert plan.touched() == [row for row, value in enumerate(values.values()) if value.numel()]


def test_many_small_values_land_together(prefix: Path) -> None:
    values = {f"{i:05}": torch.rand(1 + i % 50) for i in range(5000)}
    reader = stored(prefix, values)
    table = TensorTable([torch.zeros_like(value) for value in values.values()], TYPES)
    plan = RowPlan(reader, list(values), table, range(5000))
    assert landed(plan, 5000, LEAST, 2) == [value.numpy().tobytes() for value in values.values()]


def test_tiny_values_take_more_room_where_they_land_than_in_the_file(prefix: Path) -> None:
    values = {f"{i:06}": torch.tensor([float(i)]) for i in range(140_000)}
    reader = stored(prefix, values)
    table = TensorTable([torch.zeros(1) for _ in values], TYPES)
    plan = RowPlan(reader, list(values), table, range(len(values)))
    found = landed(plan, len(values), LEAST, 2)
    assert found == [value.numpy().tobytes() for value in values.values()]


def test_without_room_nothing_lands(prefix: Path) -> None:
    values = {"a": torch.rand(1000)}
    reader = stored(prefix, values)
    plan = RowPlan(reader, ["a"], TensorTable([torch.zeros(1000)], TYPES), [0])
    with pytest.raises(ValueError, match="no room"):
        plan.read(num_threads=1)


def test_a_misfit_among_what_lands_is_found(prefix: Path) -> None:
    reader = stored(prefix, {"a": torch.rand(10)})
    plan = RowPlan(reader, ["a", "b"], TensorTable([torch.zeros(9), torch.zeros(1)], TYPES), [0, 1])
    assert plan.misfits() == [0, 1]


@pytest.mark.parametrize("size", [100, 3_000_000])
def test_damage_is_found_when_the_last_of_a_value_lands(prefix: Path, size: int) -> None:
    values = {"a": torch.rand(size), "b": torch.rand(size)}
    reader = stored(prefix, values)
    (file,) = prefix.parent.glob("*.data-*")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    plan = RowPlan(reader, ["a", "b"], TensorTable([torch.zeros(size)] * 2, TYPES), [0, 1])
    with pytest.raises(DataLossError, match="Checksum"):
        landed(plan, 2, LEAST, 2)
