"""Values of each rank, as they are stored now and as they were stored before shapes were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from every_rank import as_rank

from torch_trackckpt import CheckpointOptions, CheckpointReader
from torch_trackckpt.adapters.by_rank import ByRank
from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.errors import DataLossError
from torch_trackckpt.restore.by_rank import read_value

KEY = "x/.ATTRIBUTES/y/.BY_RANK"


def write(prefix: str, value: Any, shapes: bytes | None = None) -> None:
    with BundleWriter(f"{prefix}.data-00000-of-00001", f"{prefix}.index", durable=False) as writer:
        writer.add(KEY, value) if isinstance(value, torch.Tensor) else writer.add_strings(KEY, strings(*value))
        if shapes is not None:
            writer.add_strings(f"{KEY}/.SHAPES", shapes)


def strings(*values: bytes) -> Any:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def read(prefix: str, rank: int, size: int, *, of_each: bool = False) -> Any:
    with as_rank(rank, size):
        found = read_value(CheckpointReader(prefix), KEY, CheckpointOptions(), of_each=of_each)
    return found.values if isinstance(found, ByRank) else found


def test_rows_of_files_without_shapes_are_restored(prefix: str) -> None:
    rows = torch.arange(12.0).reshape(3, 2, 2)
    write(prefix, rows)
    for rank in range(3):
        assert torch.equal(read(prefix, rank, 3), rows[rank])
    of_each = read(prefix, 0, 2)
    assert [row.tolist() for row in of_each.values()] == rows.tolist()


def test_an_empty_string_in_files_without_shapes_is_none(prefix: str) -> None:
    write(prefix, [b"a", b"", b"c"])
    assert read(prefix, 2, 3) == b"c"
    assert read(prefix, 1, 3) == {0: b"a", 2: b"c"}
    assert read(prefix, 0, 3, of_each=True) == {0: b"a", 2: b"c"}


def test_an_empty_string_is_one_where_shapes_say_so(prefix: str) -> None:
    write(prefix, [b"a", b"", b""], b"[[], [], null]")
    assert read(prefix, 0, 3) == b"a"
    assert read(prefix, 1, 3) == b""
    assert read(prefix, 2, 3) == read(prefix, 0, 2) == {0: b"a", 1: b""}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8, torch.bfloat16, torch.complex64], ids=str)
def test_elements_that_follow_each_other_get_their_shapes(prefix: str, dtype: torch.dtype) -> None:
    run = torch.arange(7).to(dtype)
    write(prefix, run, b"[[2, 2], null, [0, 5], [3, 1]]")
    expected = {0: run[:4].reshape(2, 2), 2: run[:0].reshape(0, 5), 3: run[4:].reshape(3, 1)}
    for rank, value in expected.items():
        found = read(prefix, rank, 4)
        assert found.dtype == dtype
        assert found.shape == value.shape
        assert torch.equal(found, value)
    # It has no state that would name the tensor.
    assert read(prefix, 1, 4).numel() == 0
    of_each = read(prefix, 0, 4, of_each=True)
    assert of_each.keys() == expected.keys()
    assert all(torch.equal(of_each[rank], value) for rank, value in expected.items())


def test_no_element_at_all_is_restored(prefix: str) -> None:
    write(prefix, torch.zeros(0), b"[[0, 3], [2, 0]]")
    assert [read(prefix, rank, 2).shape for rank in range(2)] == [(0, 3), (2, 0)]


@pytest.mark.parametrize(
    "shapes",
    [b"[[2], [2]]", b"[[2], [-3]]", b"[[6], [-1]]", b"[[3", b"3", b'[["a"]]', b'{"a": 1}', b"[]", b"[" * 100_000],
    ids=lambda text: text[:12].decode(),
)
def test_shapes_that_do_not_fit_are_damage(prefix: str, shapes: bytes) -> None:
    write(prefix, torch.zeros(5), shapes)
    with pytest.raises(DataLossError, match="does not hold values of the shapes"):
        read(prefix, 0, 2)


def test_strings_of_another_number_of_ranks_than_shapes_are_damage(prefix: str) -> None:
    write(prefix, [b"a", b""], b"[[], [], []]")
    with pytest.raises(DataLossError, match="does not hold values of the shapes"):
        read(prefix, 0, 2)
