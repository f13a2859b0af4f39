"""Every type of the file format, in both directions."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import witness
from native import crafted
from stored_dtypes import DTYPES

from torch_trackckpt import Checkpoint, CheckpointOptions, CheckpointReader
from torch_trackckpt.bundle.dtypes import (
    STRING,
    VARIANT,
    data_type_of_name,
    data_type_of_number,
    data_type_of_torch,
)
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.errors import MismatchError, UnsupportedFormatError, UnsupportedValueError

# What the specification says, written out: number, name, bytes of an element, and what it is read as.
FIXED = [
    (1, "float32", 4, torch.float32),
    (2, "float64", 8, torch.float64),
    (3, "int32", 4, torch.int32),
    (4, "uint8", 1, torch.uint8),
    (5, "int16", 2, torch.int16),
    (6, "int8", 1, torch.int8),
    (8, "complex64", 8, torch.complex64),
    (9, "int64", 8, torch.int64),
    (10, "bool", 1, torch.bool),
    (11, "qint8", 1, torch.int8),
    (12, "quint8", 1, torch.uint8),
    (13, "qint32", 4, torch.int32),
    (14, "bfloat16", 2, torch.bfloat16),
    (15, "qint16", 2, torch.int16),
    (16, "quint16", 2, torch.uint16),
    (17, "uint16", 2, torch.uint16),
    (18, "complex128", 16, torch.complex128),
    (19, "float16", 2, torch.float16),
    (22, "uint32", 4, torch.uint32),
    (23, "uint64", 8, torch.uint64),
    (24, "float8_e5m2", 1, torch.float8_e5m2),
    (25, "float8_e4m3fn", 1, torch.float8_e4m3fn),
    (26, "float8_e4m3fnuz", 1, torch.float8_e4m3fnuz),
    (27, "float8_e4m3b11fnuz", 1, torch.uint8),
    (28, "float8_e5m2fnuz", 1, torch.float8_e5m2fnuz),
    (29, "int4", 1, torch.int8),
    (30, "uint4", 1, torch.uint8),
    (31, "int2", 1, torch.int8),
    (32, "uint2", 1, torch.uint8),
    (33, "float4_e2m1fn", 1, torch.uint8),
]
NUMBERS = {name: number for number, name, _, _ in FIXED}
SMALL = {"int4": range(-8, 8), "uint4": range(16), "int2": range(-2, 2), "uint2": range(4), "float4_e2m1fn": range(16)}
WITHOUT_TWIN = [row for row in FIXED if row[1].startswith("q") or row[1] in SMALL or row[1] == "float8_e4m3b11fnuz"]


def values_of(name: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor of arbitrary bits that the stored type can hold."""
    count = torch.Size(shape).numel()
    if name in SMALL or dtype is torch.bool:
        allowed = list(SMALL.get(name, [0, 1]))
        return torch.tensor(list(itertools.islice(itertools.cycle(allowed), count))).to(dtype).reshape(shape)
    noise = torch.randint(0, 256, (count * dtype.itemsize,), generator=torch.Generator().manual_seed(NUMBERS[name]))
    return noise.to(torch.uint8).view(dtype).reshape(shape)


def bits(tensor: object) -> bytes:
    assert isinstance(tensor, torch.Tensor)
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def write(prefix: Path, tensor: torch.Tensor, name: str, part: TensorSlice | None = None) -> CheckpointReader:
    with BundleWriter(f"{prefix}.data-00000-of-00001", f"{prefix}.index", durable=False) as writer:
        if part is None:
            writer.add("x", tensor, data_type_of_name(name))
        else:
            writer.add_slice("x", tensor, part, data_type_of_name(name))
    return CheckpointReader(prefix)


# ------------------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize(("number", "name", "size", "dtype"), FIXED, ids=[row[1] for row in FIXED])
def test_number_name_and_torch_dtype_belong_together(number: int, name: str, size: int, dtype: torch.dtype) -> None:
    """C356"""
    found = data_type_of_number(number)
    assert found is data_type_of_name(name)
    assert (found.number, found.name, str(found), found.torch_dtype) == (number, name, name, dtype)
    assert dtype.itemsize == size
    has_twin = str(dtype) == f"torch.{name}"
    assert found.is_twin is has_twin
    if has_twin:
        assert data_type_of_torch(dtype) is found
    assert found.low_bits == {"4": 4, "2": 2}.get(name[-1], 4 if name == "float4_e2m1fn" else 0) * (name in SMALL)


def test_every_torch_dtype_that_the_format_has_is_stored_as_the_type_of_its_name() -> None:
    """C356"""
    assert {dtype: data_type_of_torch(dtype).name for dtype in DTYPES} == {
        dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES
    }


@pytest.mark.parametrize(
    ("name", "enum_name"),
    [
        ("float32", "DT_FLOAT"),
        ("float64", "DT_DOUBLE"),
        ("float16", "DT_HALF"),
        ("bfloat16", "DT_BFLOAT16"),
        ("string", "DT_STRING"),
        ("variant", "DT_VARIANT"),
        ("resource", "DT_RESOURCE"),
        ("qint8", "DT_QINT8"),
        ("float8_e4m3b11fnuz", "DT_FLOAT8_E4M3B11FNUZ"),
        ("float4_e2m1fn", "DT_FLOAT4_E2M1FN"),
        ("int4", "DT_INT4"),
        ("bool", "DT_BOOL"),
    ],
)
def test_names_of_the_enum_are_those_of_tensorflow(name: str, enum_name: str) -> None:
    """C351"""
    assert data_type_of_name(name).enum_name == enum_name


def test_types_that_are_no_tensors_have_no_torch_dtype() -> None:
    assert data_type_of_number(7) is STRING
    assert data_type_of_number(21) is VARIANT
    assert data_type_of_name("string") is STRING
    for number in (7, 20, 21):
        assert data_type_of_number(number).torch_dtype is None


@pytest.mark.parametrize("number", [-1, 0, 34, 100, 101, 109, 1 << 31])
def test_any_other_number_is_a_type_that_cannot_be_read(number: int) -> None:
    """C390: those above 100 are TensorFlow's references, which are never stored."""
    unknown = data_type_of_number(number)
    assert (unknown.number, unknown.name, unknown.torch_dtype) == (number, f"unknown_{number}", None)
    assert not unknown.is_twin
    with pytest.raises(ValueError, match="no type of the file format"):
        data_type_of_name(unknown.name)


@pytest.mark.parametrize("name", ["", "float", "half", "FLOAT32", "torch.float32", "DT_INT4", "complex32", " int4"])
def test_a_name_that_no_type_has_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name!r} is no type .*these are: float32, .*float4_e2m1fn\.$"):
        data_type_of_name(name)


# ---------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("shape", [(5, 7), (), (0, 3)], ids=str)
@pytest.mark.parametrize(("number", "name", "size", "dtype"), FIXED, ids=[row[1] for row in FIXED])
def test_values_of_every_type_are_written_and_read_bit_for_bit(
    tmp_path: Path, number: int, name: str, size: int, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """C356, C357"""
    tensor = values_of(name, dtype, *shape)
    reader = write(tmp_path / "ckpt", tensor, name)
    assert reader["x"].dtype is data_type_of_name(name)
    for value in (reader["x"].read(), reader["x"].read(mmap=True), reader["x"][...]):
        assert isinstance(value, torch.Tensor)
        assert (value.dtype, tuple(value.shape)) == (dtype, shape)
        assert bits(value) == bits(tensor)
    stored = witness.read_bundle(tmp_path / "ckpt")["x"]
    assert (stored.dtype, stored.shape, len(stored.data)) == (number, shape, size * tensor.numel())
    if name in SMALL:
        assert max(stored.data, default=0) < len(SMALL[name])
    else:
        assert stored.data == bits(tensor)
    reader.verify()


@pytest.mark.parametrize(("number", "name", "size", "dtype"), FIXED, ids=[row[1] for row in FIXED])
def test_slices_of_every_type_are_written_and_read_bit_for_bit(
    tmp_path: Path, number: int, name: str, size: int, dtype: torch.dtype
) -> None:
    """C371, C372: whole, and across the cut."""
    tensor = values_of(name, dtype, 4, 6)
    prefix = tmp_path / "ckpt"
    with BundleWriter(f"{prefix}.data-00000-of-00001", f"{prefix}.index", durable=False) as writer:
        for text in ("4 6 -:2,4", "4 6 -:0,2"):
            part = TensorSlice.parse(text)
            columns = slice(part.offset[1], part.offset[1] + part.shape[1])
            writer.add_slice("x", tensor[:, columns], part, data_type_of_name(name))
    lazy = CheckpointReader(prefix)["x"]
    assert bits(lazy.read()) == bits(tensor)
    assert bits(lazy[1:3, 1:4]) == bits(tensor[1:3, 1:4])


@pytest.mark.parametrize("name", SMALL)
def test_values_that_a_small_type_cannot_hold_are_refused(tmp_path: Path, name: str) -> None:
    """C369: never cut to the bits that fit."""
    dtype = data_type_of_name(name).torch_dtype
    assert dtype is not None
    limits = torch.iinfo(dtype)
    too_much = [value for value in range(limits.min, limits.max + 1) if value not in SMALL[name]]
    for number, value in enumerate(too_much):
        prefix = tmp_path / f"ckpt-{number}"
        with pytest.raises(ValueError, match=rf"{name}, of \d bits, cannot hold"):
            write(prefix, torch.tensor([0, value, 0], dtype=dtype), name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("int4", torch.tensor([1, 2])),
        ("int4", torch.tensor([1, 2], dtype=torch.int32)),
        ("int4", torch.tensor([15], dtype=torch.uint8)),
        ("uint4", torch.tensor([1], dtype=torch.int8)),
        ("uint2", torch.tensor([True])),
        ("uint4", torch.tensor([1.0])),
        ("uint4", torch.tensor(1, dtype=torch.int32)),
        ("qint32", torch.tensor([1.5])),
        ("qint8", torch.tensor([200], dtype=torch.uint8)),
        ("quint16", torch.tensor([1.0], dtype=torch.float16)),
        ("float8_e4m3b11fnuz", torch.tensor([1.0]).to(torch.float8_e4m3fn)),
        ("float32", torch.tensor([1], dtype=torch.int32)),
        ("bool", torch.tensor([7], dtype=torch.uint8)),
        ("float64", torch.tensor([1.0])),
        ("string", torch.tensor([1], dtype=torch.uint8)),
        ("variant", torch.tensor([1], dtype=torch.uint8)),
        ("resource", torch.tensor([1], dtype=torch.uint8)),
    ],
    ids=lambda value: f"{value.dtype}{list(value.shape)}" if isinstance(value, torch.Tensor) else value,
)
@pytest.mark.parametrize("in_part", [False, True])
def test_a_tensor_that_does_not_hold_the_elements_of_the_stored_type_is_refused(
    tmp_path: Path, name: str, tensor: torch.Tensor, in_part: bool
) -> None:
    """C356: bytes of one type are never stored as values of another."""
    prefix = tmp_path / "ckpt"
    part = TensorSlice.box((9,) * tensor.dim(), (1,) * tensor.dim(), tuple(tensor.shape)) if in_part else None
    with pytest.raises((UnsupportedValueError, ValueError)):
        write(prefix, tensor, name, part)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SMALL)
def test_only_the_low_bits_of_a_stored_byte_are_read(tmp_path: Path, name: str) -> None:
    """C356"""
    bundle = crafted.Bundle()
    bundle.add(b"x", NUMBERS[name], (256,), bytes(range(256)))
    bundle.write(tmp_path / "ckpt")
    values = torch.as_tensor(CheckpointReader(tmp_path / "ckpt").get_tensor("x")).tolist()
    count = len(SMALL[name])
    codes = {value % count: value for value in SMALL[name]}
    assert values == [codes[byte % count] for byte in range(256)]


# ------------------------------------------------------------------------------------- into live tensors


@pytest.mark.parametrize(
    ("number", "name", "size", "dtype"), WITHOUT_TWIN, ids=[name for _, name, _, _ in WITHOUT_TWIN]
)
def test_a_type_without_a_twin_is_not_restored_into_a_tensor_of_another(
    tmp_path: Path, number: int, name: str, size: int, dtype: torch.dtype
) -> None:
    """C067: not even into one of the dtype that it is handed out as."""
    write(tmp_path / "ckpt", values_of(name, dtype, 3), name)
    for live_dtype in (dtype, torch.float32, torch.int8, torch.uint8):
        live = torch.ones(3, dtype=live_dtype)
        with pytest.raises(MismatchError, match=rf"does not equal original dtype {name}\b"):
            Checkpoint(x=live).restore(tmp_path / "ckpt", CheckpointOptions(name_map={"x": "x"}))
        assert torch.equal(live, torch.ones(3, dtype=live_dtype))


@pytest.mark.parametrize("number", [7, 20, 21, 99])
def test_what_is_no_tensor_is_not_restored_into_one(tmp_path: Path, number: int) -> None:
    """C381"""
    bundle = crafted.Bundle()
    bundle.add(b"x", number, (3,), [b"a", b"b", b"c"] if number == 7 else b"\0" * 12)
    bundle.write(tmp_path / "ckpt")
    live = torch.ones(3)
    with pytest.raises((MismatchError, UnsupportedFormatError), match=data_type_of_number(number).name):
        Checkpoint(x=live).restore(tmp_path / "ckpt", CheckpointOptions(name_map={"x": "x"})).assert_consumed()
    assert torch.equal(live, torch.ones(3))


@pytest.mark.parametrize("index", [None, np.s_[1:4]], ids=["whole", "part"])
@pytest.mark.parametrize("slices", [None, [((0, 2),), ((2, 3),)]], ids=["in one piece", "in slices"])
def test_a_bool_is_0_or_1_whatever_byte_is_stored(
    tmp_path: Path, slices: list[tuple[tuple[int, int], ...]] | None, index: slice | None
) -> None:
    """C356: any other byte would print as true and count as more than one."""
    stored = np.array([0, 1, 2, 128, 255], np.uint8)
    bundle = crafted.Bundle()
    if slices is None:
        bundle.add(b"x", 10, (5,), stored.tobytes())
    else:
        bundle.add_slices(b"x", 10, stored, slices)
    bundle.write(tmp_path / "ckpt")

    value = torch.as_tensor(CheckpointReader(tmp_path / "ckpt").get_tensor("x", index))

    expected = [0, 1, 1, 1, 1] if index is None else [1, 1, 1]
    assert value.dtype == torch.bool
    assert value.view(torch.uint8).tolist() == expected
