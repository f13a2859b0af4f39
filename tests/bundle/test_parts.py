"""Parts of stored values through `CheckpointReader.get_tensor`: what they are, what they cost, what they check."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import crafted, crafted_v1

from torch_trackckpt import CheckpointReader
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.errors import CheckpointNotFoundError, DataLossError, UnsupportedFormatError

ALL = (0, -1)
NUMPY = {"float32": "f4", "int16": "i2", "complex64": "c8", "bool": "?", "float64": "f8", "uint8": "u1", "int64": "i8"}
NUMBERS = {"float32": 1, "int16": 5, "complex64": 8, "bool": 10, "float64": 2, "uint8": 4, "int64": 9, "string": 7}
KINDS = ["whole", "slices", "big-endian", "big-endian slices", "V1", "V1 slices"]

GRID = np.arange(24, dtype=np.float32).reshape(4, 6)
QUARTERS = [((row, 2), (column, 3)) for row in (0, 2) for column in (0, 3)]


def array_of(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape, dtype=int))
    if dtype == "string":
        array = np.empty(count, dtype=object)
        array[:] = [rng.bytes(int(length)) for length in rng.integers(0, 40, count)]
        return array.reshape(shape)
    item = np.dtype(NUMPY[dtype]).itemsize
    data = rng.bytes(count * item)
    if dtype == "bool":
        data = bytes(byte & 1 for byte in data)
    return np.frombuffer(data, NUMPY[dtype]).reshape(shape)


def halves(shape: tuple[int, ...]) -> list[crafted.Extents]:
    """A cut of each dimension that has two elements or more into two."""
    ways = [[ALL] if size < 2 else [(0, size // 2), (size // 2, size - size // 2)] for size in shape]
    return list(itertools.product(*ways))


def write(prefix: Path, kind: str, dtype: str, array: np.ndarray[Any, Any]) -> CheckpointReader:
    """A checkpoint of one value under the key ``x``."""
    number = NUMBERS[dtype]
    slices = halves(array.shape) if "slices" in kind else [(ALL,) * array.ndim]
    if kind.startswith("V1"):
        parts = [array[crafted.as_index(extents)] for extents in slices]
        records = [
            crafted_v1.saved(b"x", extents, crafted_v1.proto(number, crafted.stored_form(part, "little")))
            for extents, part in zip(slices, parts, strict=True)
        ]
        described = crafted_v1.tensor_meta(b"x", number, array.shape, slices)
        crafted_v1.write_records(prefix, crafted_v1.meta([described]), records)
        return CheckpointReader(prefix)
    bundle = crafted.Bundle("big" if kind.startswith("big") else "little")
    if "slices" in kind and len(slices) > 1:
        bundle.add_slices(b"x", number, array, slices, shards=(0, 1))
    else:
        bundle.add_array(b"x", number, array)
    bundle.write(prefix)
    return CheckpointReader(prefix)


def same(value: torch.Tensor | bytes | np.ndarray[Any, Any], expected: Any) -> bool:
    """Bit for bit, and of the same shape."""
    if isinstance(value, torch.Tensor):
        array = value.numpy()
        return array.shape == expected.shape and array.tobytes() == expected.tobytes()
    if isinstance(value, bytes):
        return type(expected) is bytes and value == expected
    return value.shape == expected.shape and value.tolist() == expected.tolist()


def numbers_in(value: torch.Tensor | bytes | np.ndarray[Any, Any]) -> list[Any]:
    assert isinstance(value, torch.Tensor)
    found: list[Any] = value.tolist()
    return found


# ------------------------------------------------------------------------------------------- which values

POSITIONS = st.integers(-6, 6) | st.none()
ITEMS = st.integers(-5, 5) | st.builds(slice, POSITIONS, POSITIONS) | st.just(...)
INDICES = ITEMS | st.lists(ITEMS, max_size=4).map(tuple)


@pytest.mark.parametrize("kind", KINDS)
@given(
    dtype=st.sampled_from(list(NUMBERS)),
    shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    indices=st.lists(INDICES, min_size=1, max_size=6),
    verify=st.booleans(),
    seed=st.integers(0, 1 << 32),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_an_index_reads_what_numpy_cuts_out(
    kind: str, dtype: str, shape: tuple[int, ...], indices: list[Any], verify: bool, seed: int
) -> None:
    """C357, C371, C372, C376"""
    array = array_of(dtype, shape, seed)
    with TemporaryDirectory() as folder:
        reader = write(Path(folder) / "ckpt", kind, dtype, array)
        for index in indices:
            try:
                expected = array[index]
            except IndexError:
                with pytest.raises(IndexError, match=r"^x: "):
                    reader.get_tensor("x", index, verify=verify)
                continue
            if dtype == "string" and isinstance(expected, np.ndarray) and expected.shape == ():
                expected = expected.item()
            assert same(reader.get_tensor("x", index, verify=verify), expected)
            assert same(reader["x"][index], expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "string", "complex64"])
def test_equal_parts_in_any_notation_are_the_same(tmp_path: Path, kind: str, dtype: str) -> None:
    """C373"""
    array = array_of(dtype, (5, 10))
    reader = write(tmp_path / "ckpt", kind, dtype, array)
    for notation in ("-:-", "0,5:0,10", "-:0,10", "5 10 0,5:-", TensorSlice.whole((5, 10)), ..., (), np.s_[:, 0:99]):
        assert same(reader.get_tensor("x", notation), array)
    for notation in ("-:1,9", "0,5:1,9", "5 10 -:1,9", TensorSlice.parse("5 10 0,5:1,9"), np.s_[..., 1:]):
        assert same(reader.get_tensor("x", notation), array[:, 1:])
    assert same(reader.get_tensor("x", "3,1:7,1"), array[3:4, 7:8])


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_a_scalar_is_the_scalar(tmp_path: Path, kind: str) -> None:
    """C357"""
    reader = write(tmp_path / "ckpt", kind, "float32", np.array(2.5, dtype=np.float32))
    for index in ((), ..., "", TensorSlice.whole(())):
        for verify in (False, True):
            value = reader.get_tensor("x", index, verify=verify)
            assert isinstance(value, torch.Tensor)
            assert (value.shape, value.tolist()) == ((), 2.5)
    with pytest.raises(IndexError, match=r"^x: .*dimensions"):
        reader.get_tensor("x", 0)


def test_a_part_of_a_string_scalar_is_bytes(tmp_path: Path) -> None:
    """C352"""
    array = np.array(b"ends\0\0", dtype=object)
    for kind in ("whole", "V1"):
        reader = write(tmp_path / kind, kind, "string", array)
        assert reader.get_tensor("x", ...) == reader.get_tensor("x", "") == b"ends\0\0"
    words = write(tmp_path / "words", "slices", "string", np.array([b"a\0", b"\0", b"", b"\xff\0\0"], dtype=object))
    assert [words["x"][position] for position in (0, 1, 2, -1)] == [b"a\0", b"\0", b"", b"\xff\0\0"]


@pytest.mark.parametrize(
    ("number", "stored", "values"),
    [
        (29, [0x08, 0xF7, 0x1F, 0xE0, 0x01, 0x9F], [-8, 7, -1, 0, 1, -1]),
        (30, [0x08, 0xF7, 0x1F, 0xE0, 0x01, 0x9F], [8, 7, 15, 0, 1, 15]),
        (31, [0x02, 0x03, 0xFD, 0xFC, 0x06, 0x7F], [-2, -1, 1, 0, -2, -1]),
        (32, [0x02, 0x03, 0xFD, 0xFC, 0x06, 0x7F], [2, 3, 1, 0, 2, 3]),
        (33, [0x08, 0xF7, 0x1F, 0xE0, 0x01, 0x9F], [8, 7, 15, 0, 1, 15]),
    ],
    ids=["int4", "uint4", "int2", "uint2", "float4_e2m1fn"],
)
@pytest.mark.parametrize("in_slices", [False, True])
def test_only_the_low_bits_of_a_small_type_count_in_parts_and_in_wholes(
    tmp_path: Path, number: int, stored: list[int], values: list[int], in_slices: bool
) -> None:
    """C356: what lies in the high bits of a stored byte means nothing."""
    bundle = crafted.Bundle()
    array = np.array(stored, np.uint8).reshape(2, 3)
    if in_slices:
        bundle.add_slices(b"x", number, array, [(ALL, (0, 2)), (ALL, (2, 1))])
    else:
        bundle.add_array(b"x", number, array)
    bundle.write(tmp_path / "ckpt")
    lazy = CheckpointReader(tmp_path / "ckpt")["x"]
    expected = np.array(values).reshape(2, 3)
    assert numbers_in(lazy.read()) == numbers_in(lazy.read(mmap=True)) == expected.tolist()
    assert numbers_in(lazy[:, 1:]) == expected[:, 1:].tolist()
    assert numbers_in(lazy[1, 2]) == values[-1]


def test_a_lazy_tensor_is_gone_through_by_its_first_dimension(tmp_path: Path) -> None:
    reader = write(tmp_path / "ckpt", "slices", "int64", array_of("int64", (3, 4)))
    assert [numbers_in(row) for row in reader["x"]] == array_of("int64", (3, 4)).tolist()


def test_a_part_owns_its_memory(tmp_path: Path) -> None:
    """C352"""
    reader = write(tmp_path / "ckpt", "whole", "float32", GRID)
    first, second = reader["x"][1:3], reader["x"][1:3]
    assert isinstance(first, torch.Tensor)
    first.zero_()
    assert same(second, GRID[1:3])
    assert first.is_contiguous()


# ----------------------------------------------------------------------------------- parts that are none


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("index", "error", "reason"),
    [
        (np.s_[::2], ValueError, "step of 2"),
        (np.s_[::-1], ValueError, "step of -1"),
        (4, IndexError, "out of range"),
        (-5, IndexError, "out of range"),
        ((0, 0, 0), IndexError, "too many dimensions"),
        ((..., ...), IndexError, "too many dimensions"),
        ("0,5:-", ValueError, "no part 0,5 lies in a dimension of 4"),
        ("0,0:-", ValueError, "no part 0,0"),
        ("-", ValueError, "dimensions"),
        ("4 7 -:-", ValueError, r"shape in shape_and_slice spec '4 7 -:-' does not match the stored shape \[4, 6\]"),
        (TensorSlice.whole((6, 4)), ValueError, "does not match the stored shape"),
        ("nonsense", ValueError, "is no slice"),
    ],
    ids=str,
)
def test_a_part_that_does_not_exist_is_an_error_that_names_the_key(
    tmp_path: Path, kind: str, index: Any, error: type[Exception], reason: str
) -> None:
    """C375: the same for every way in which the value may be stored."""
    reader = write(tmp_path / "ckpt", kind, "float32", GRID)
    with pytest.raises(error, match=rf"^x: .*{reason}"):
        reader.get_tensor("x", index)


@pytest.mark.parametrize("index", [[0, 1], (None,), True, 1.0, torch.tensor([0, 1]), (0, None)], ids=repr)
def test_what_is_no_index_of_a_part_is_an_error_that_names_the_key(tmp_path: Path, index: Any) -> None:
    reader = write(tmp_path / "ckpt", "whole", "float32", GRID)
    with pytest.raises(TypeError, match=r"^x: "):
        reader.get_tensor("x", index)


def test_a_new_axis_is_refused_by_a_lazy_tensor_and_not_taken_for_the_whole(tmp_path: Path) -> None:
    lazy = write(tmp_path / "ckpt", "whole", "float32", GRID)["x"]
    with pytest.raises(TypeError):
        lazy[None]  # type: ignore[index]


def test_a_part_of_an_unreadable_type_is_refused_by_name(tmp_path: Path) -> None:
    """C381, C390"""
    bundle = crafted.Bundle()
    for key, number in ((b"variant", 21), (b"resource", 20), (b"unknown", 99)):
        bundle.add(key, number, (2,), b"\0" * 8)
    bundle.write(tmp_path / "ckpt")
    reader = CheckpointReader(tmp_path / "ckpt")
    for key in reader:
        with pytest.raises(UnsupportedFormatError, match=rf"^{key}: a value of type {key}"):
            reader.get_tensor(key, slice(0, 1))


# --------------------------------------------------------------------------------- only what is needed


def overwrite(prefix: Path, reader: CheckpointReader, keep: slice, shard: str = "00000-of-00001") -> None:
    """Spoils every byte of a data file but some."""
    path = Path(f"{prefix}.data-{shard}")
    content = path.read_bytes()
    path.write_bytes(bytes(~byte & 0xFF for byte in content[: keep.start]) + content[keep] + b"\x55" * 7)


@pytest.mark.parametrize("kind", ["whole", "big-endian"])
def test_a_part_of_a_whole_value_needs_its_own_bytes_alone(tmp_path: Path, kind: str) -> None:
    """C372: the bytes before are damaged, and those behind are cut off or others."""
    prefix = tmp_path / "ckpt"
    reader = write(prefix, kind, "float32", GRID)
    overwrite(prefix, reader, slice(24, 72))
    os.truncate(f"{prefix}.data-00000-of-00001", 96)  # zeros
    assert same(reader["x"][1:3], GRID[1:3])
    assert same(reader["x"][2, 4], GRID[2, 4])
    with pytest.raises(DataLossError, match="Checksum does not match: key x"):
        reader.get_tensor("x", np.s_[1:3], verify=True)
    with pytest.raises(DataLossError, match="Checksum does not match: key x"):
        reader.get_tensor("x")
    with pytest.raises(DataLossError, match="Checksum does not match: key x"):
        reader.get_tensor("x", ...)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("index", [np.s_[:1], np.s_[2:], np.s_[0, 0]], ids=str)
def test_a_value_that_does_not_lie_in_its_file_has_no_parts(tmp_path: Path, index: Any, verify: bool) -> None:
    """C384: the file is not the one that the index was written for."""
    prefix = tmp_path / "ckpt"
    reader = write(prefix, "whole", "float32", GRID)
    os.truncate(f"{prefix}.data-00000-of-00001", 72)
    with pytest.raises(DataLossError, match="key x lies at offset 0, size 96, but the file has 72 bytes"):
        reader.get_tensor("x", index, verify=verify)


def write_quarters(prefix: Path) -> CheckpointReader:
    """The grid in four slices, each in a data file of its own."""
    bundle = crafted.Bundle()
    bundle.add_slices(b"grid", 1, GRID, QUARTERS, shards=range(4))
    bundle.write(prefix)
    return CheckpointReader(prefix)


def test_a_part_needs_only_the_data_files_of_the_slices_that_it_comes_from(tmp_path: Path) -> None:
    """C355, C372"""
    reader = write_quarters(tmp_path / "ckpt")
    os.unlink(tmp_path / "ckpt.data-00001-of-00004")
    for verify in (False, True):
        assert same(reader.get_tensor("grid", np.s_[:, :3], verify=verify), GRID[:, :3])
        assert same(reader.get_tensor("grid", np.s_[2:, 2:5], verify=verify), GRID[2:, 2:5])
        assert same(reader.get_tensor("grid", np.s_[1:1, 4:], verify=verify), GRID[1:1, 4:])
        with pytest.raises(CheckpointNotFoundError, match=r"ckpt\.data-00001-of-00004"):
            reader.get_tensor("grid", np.s_[1, 3], verify=verify)
    with pytest.raises(CheckpointNotFoundError, match=r"ckpt\.data-00001-of-00004"):
        reader.get_tensor("grid")


def test_a_part_of_a_tensor_with_a_hole_is_read_where_the_hole_is_not_in_it(tmp_path: Path) -> None:
    """C374: what is missing is not made up."""
    bundle = crafted.Bundle()
    bundle.add_slices(b"grid", 1, GRID, QUARTERS[:3])
    bundle.write(tmp_path / "ckpt")
    reader = CheckpointReader(tmp_path / "ckpt")
    for verify in (False, True):
        assert same(reader.get_tensor("grid", np.s_[:2], verify=verify), GRID[:2])
        assert same(reader.get_tensor("grid", "-:0,3", verify=verify), GRID[:, :3])
        for index in (np.s_[2, 3], np.s_[:, 2:4], ...):
            with pytest.raises(DataLossError, match=r"grid"):
                reader.get_tensor("grid", index, verify=verify)
    with pytest.raises(DataLossError, match=r"grid"):
        reader.get_tensor("grid")
    assert reader["grid"].shape == (4, 6)
    assert list(map(str, reader.stored_slices("grid"))) == ["4 6 0,2:0,3", "4 6 0,2:3,3", "4 6 2,2:0,3"]


def test_damage_in_a_slice_is_found_where_the_slice_is_needed_whole_or_with_verify(tmp_path: Path) -> None:
    """C355, C382"""
    prefix = tmp_path / "ckpt"
    reader = write_quarters(prefix)
    crafted.flip(Path(f"{prefix}.data-00003-of-00004"), 0)  # the element (2, 3)
    assert same(reader.get_tensor("grid", np.s_[:2]), GRID[:2])
    assert same(reader.get_tensor("grid", np.s_[3, 4:]), GRID[3, 4:])
    for index, verify in ((np.s_[2:, 3:], False), (np.s_[1:, 2:], False), (np.s_[3, 4:], True), (np.s_[3, 1:4], True)):
        with pytest.raises(DataLossError, match="Checksum does not match: key grid"):
            reader.get_tensor("grid", index, verify=verify)
    assert same(reader.get_tensor("grid", np.s_[3, :3], verify=True), GRID[3, :3])


def test_strings_are_always_checked_whole(tmp_path: Path) -> None:
    """C383: a length that is wrong would shift every element behind it."""
    prefix = tmp_path / "ckpt"
    words = np.array([b"one", b"two", b"three"], dtype=object)
    reader = write(prefix, "whole", "string", words)
    path = Path(f"{prefix}.data-00000-of-00001")
    crafted.flip(path, 0)
    for index in (0, 2, slice(1, 3)):
        with pytest.raises(DataLossError, match=r"length checksum does not match.*x|x.*length checksum"):
            reader.get_tensor("x", index)
    crafted.flip(path, 0)
    crafted.flip(path, -1)
    with pytest.raises(DataLossError, match=r"Checksum does not match: key x"):
        reader.get_tensor("x", 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float64", "string"])
def test_a_part_without_elements_has_its_shape_and_reads_nothing(tmp_path: Path, kind: str, dtype: str) -> None:
    """C357"""
    prefix = tmp_path / "ckpt"
    reader = write(prefix, kind, dtype, array_of(dtype, (4, 6)))
    if not kind.startswith("V1"):
        for path in tmp_path.glob("ckpt.data-*"):
            path.unlink()
    for verify in (False, True):
        for index, shape in ((np.s_[2:2], (0, 6)), (np.s_[:, 9:], (4, 0)), (np.s_[3:1, 0], (0,))):
            part = reader.get_tensor("x", index, verify=verify)
            assert not isinstance(part, bytes)
            assert tuple(part.shape) == shape
