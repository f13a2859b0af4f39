"""Whole values through `CheckpointReader`: what they are, which error names what, and what a made-up index costs."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import witness
from native import crafted, crafted_v1

from torch_trackckpt import CheckpointReader
from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.errors import (
    CheckpointNotFoundError,
    DataLossError,
    TensorNotFoundError,
    TrackckptError,
    UnsupportedFormatError,
)

ALL = (0, -1)
FLOAT, INT8, STRING, VARIANT = 1, 6, 7, 21
MIB = 1 << 20
TIB = 1 << 40


def write_floats(prefix: Path, **counts: int) -> CheckpointReader:
    """Values 0, 1, 2 ... under each name."""
    with BundleWriter(f"{prefix}.data-00000-of-00001", f"{prefix}.index", durable=False) as writer:
        for name, count in counts.items():
            writer.add(name, torch.arange(float(count)))
    return CheckpointReader(prefix)


def data_file(prefix: Path) -> Path:
    return Path(f"{prefix}.data-00000-of-00001")


def write_two_shards(prefix: Path) -> CheckpointReader:
    """Three small values and a large one in the first data file, one of each in the second."""
    bundle = crafted.Bundle()
    for name, shard_id, count in (("a", 0, 2), ("b", 0, 2), ("large", 0, MIB), ("y", 1, 2), ("z", 1, MIB)):
        bundle.add_array(name.encode(), FLOAT, np.arange(count, dtype=np.float32), shard_id)
    bundle.write(prefix)
    return CheckpointReader(prefix)


# ------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("count", [0, 1, MIB // 4, MIB // 4 + 1, MIB])
def test_a_value_of_any_size_around_the_checks_is_read(tmp_path: Path, count: int) -> None:
    """C352"""
    value = write_floats(tmp_path / "ckpt", x=count).get_tensor("x")
    assert isinstance(value, torch.Tensor)
    assert torch.equal(value, torch.arange(float(count)))


def test_trailing_bytes_gaps_and_any_order_of_offsets_do_not_matter(tmp_path: Path) -> None:
    """C370"""
    stored = np.arange(4, dtype=np.float32).tobytes()
    crc = witness.mask(witness.crc32c(stored))
    entries = {
        b"a": crafted.entry(FLOAT, (4,), offset=37, size=16, crc32c=crc),
        b"b": crafted.entry(FLOAT, (2, 2), offset=5, size=16, crc32c=crc),
    }
    crafted.write_crafted(tmp_path / "ckpt", entries, b"\xee" * 5 + stored + b"\xee" * 16 + stored + b"trailing")
    reader = CheckpointReader(tmp_path / "ckpt")
    for mmap in (False, True):
        assert torch.as_tensor(reader.get_tensor("a", mmap=mmap)).tolist() == [0, 1, 2, 3]
        assert torch.as_tensor(reader.get_tensor("b", mmap=mmap)).tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("default", ["meta", "cpu"])
@pytest.mark.parametrize("mmap", [False, True])
def test_values_are_on_the_cpu_whatever_the_default_device_is(tmp_path: Path, default: str, mmap: bool) -> None:
    """C352"""
    reader = write_floats(tmp_path / "ckpt", x=3, none=0)
    with torch.device(default):
        values = [reader.get_tensor("x", mmap=mmap), reader.get_tensor("none", mmap=mmap), reader.get_tensor("x", 0)]
    assert [torch.as_tensor(value).device.type for value in values] == ["cpu"] * 3
    assert torch.as_tensor(values[0]).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "value",
    [b"", b"\0", b"ends\0\0", b"\xff\xfe", bytes(range(256)) * 200, np.array([[b"a\0", b"\0\0"], [b"", b"b"]], object)],
    ids=["empty", "nul", "trailing_nul", "no_utf8", "long", "matrix"],
)
@pytest.mark.parametrize("kind", ["bundle", "V1"])
def test_every_byte_of_a_string_is_kept(tmp_path: Path, value: bytes | np.ndarray, kind: str) -> None:
    """C352, C358: NumPy's own arrays of bytes drop zeros at the end."""
    array = np.array(value, dtype=object) if isinstance(value, bytes) else value
    if kind == "V1":
        crafted_v1.write_tensor(tmp_path / "ckpt", STRING, array.shape, array.ravel().tolist())
    else:
        bundle = crafted.Bundle()
        bundle.add_array(b"x", STRING, array)
        bundle.write(tmp_path / "ckpt")
    found = CheckpointReader(tmp_path / "ckpt").get_tensor("x")
    if isinstance(value, bytes):
        assert type(found) is bytes
        assert found == value
    else:
        assert isinstance(found, np.ndarray)
        assert found.dtype == object
        assert found.tolist() == value.tolist()


def test_a_string_of_32_mib_is_read(tmp_path: Path) -> None:
    """C358"""
    text = np.random.default_rng(0).bytes(32 * MIB)
    prefix = tmp_path / "ckpt"
    with BundleWriter(str(data_file(prefix)), f"{prefix}.index", durable=False) as writer:
        writer.add_strings("x", text)
    assert CheckpointReader(prefix).get_tensor("x") == text


# ------------------------------------------------------------------------------------------ what is named


def test_an_error_for_a_missing_key_is_a_key_error_that_names_it(tmp_path: Path) -> None:
    """C350"""
    reader = write_floats(tmp_path / "ckpt", x=1)
    target = torch.zeros(1)
    for ask in (
        lambda: reader.get_tensor("y"),
        lambda: reader.get_tensor("y", 0),
        lambda: reader.get_tensor("y", mmap=True),
        lambda: reader.get_variants("y"),
        lambda: reader.stored("y"),
        lambda: reader.stored_slices("y"),
        lambda: reader["y"],
        lambda: reader.verify(["x", "y"]),
        lambda: reader.check(["y"]),
        lambda: reader._read_into([("y", target)], 1),
    ):
        with pytest.raises(TensorNotFoundError, match=r"y.*not found|Key y") as caught:
            ask()
        assert isinstance(caught.value, KeyError)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("key", ["a", "large"])
def test_a_missing_data_file_is_named_however_large_the_value_is(tmp_path: Path, key: str, mmap: bool) -> None:
    """C385: and values in other data files are read."""
    reader = write_two_shards(tmp_path / "ckpt")
    (tmp_path / "ckpt.data-00000-of-00002").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"ckpt\.data-00000-of-00002"):
        reader.get_tensor(key, mmap=mmap)
    assert torch.as_tensor(reader.get_tensor("z", mmap=mmap)).sum() == torch.arange(float(MIB)).sum()


@pytest.mark.parametrize("part", [slice(0, 1), slice(0, MIB // 2), slice(0, MIB)], ids=str)
def test_a_missing_data_file_is_named_however_large_the_part_is(tmp_path: Path, part: slice) -> None:
    """C385"""
    reader = write_floats(tmp_path / "ckpt", large=MIB)
    data_file(tmp_path / "ckpt").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"ckpt\.data-00000-of-00001"):
        reader.get_tensor("large", part)


@pytest.mark.parametrize("size", [0, 1, 4 * MIB - 1])
@pytest.mark.parametrize("how", ["whole", "mmap", "part"])
def test_an_empty_or_cut_data_file_is_named_with_the_key(tmp_path: Path, size: int, how: str) -> None:
    """C384, C385"""
    reader = write_floats(tmp_path / "ckpt", large=MIB)
    os.truncate(data_file(tmp_path / "ckpt"), size)
    with pytest.raises(DataLossError, match=r"ckpt\.data-00000-of-00001.*key large"):
        reader.get_tensor("large", slice(1, MIB) if how == "part" else None, mmap=how == "mmap")


def test_a_value_that_lies_in_slices_without_their_files_is_named(tmp_path: Path) -> None:
    """C385"""
    bundle = crafted.Bundle()
    array = np.zeros((2, MIB), np.float32)
    bundle.add_slices(b"x", FLOAT, array, [((0, 1), ALL), ((1, 1), ALL)], shards=(0, 1))
    bundle.write(tmp_path / "ckpt")
    reader = CheckpointReader(tmp_path / "ckpt")
    (tmp_path / "ckpt.data-00001-of-00002").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"ckpt\.data-00001-of-00002"):
        reader.get_tensor("x")
    with pytest.raises(CheckpointNotFoundError, match=r"ckpt\.data-00001-of-00002"):
        reader.get_tensor("x", np.s_[1, :])
    assert torch.equal(torch.as_tensor(reader.get_tensor("x", np.s_[0, :])), torch.zeros(MIB))


@pytest.mark.parametrize(("number", "name"), [(20, "resource"), (21, "variant"), (0, "unknown_0"), (99, "unknown_99")])
@pytest.mark.parametrize("size", [8, 2 * MIB])
def test_a_type_that_is_no_tensor_is_refused_by_key_and_name(tmp_path: Path, number: int, name: str, size: int) -> None:
    """C381, C390: other values are read."""
    bundle = crafted.Bundle()
    bundle.add(b"x", number, (2,), b"\0" * size)
    bundle.add_array(b"fine", FLOAT, np.ones(2, np.float32))
    bundle.write(tmp_path / "ckpt")
    reader = CheckpointReader(tmp_path / "ckpt")
    for mmap in (False, True):
        with pytest.raises(UnsupportedFormatError, match=rf"x(: a value of type {name}| has DataType {number},)"):
            reader.get_tensor("x", mmap=mmap)
    assert torch.as_tensor(reader.get_tensor("fine")).tolist() == [1, 1]
    assert {key: stored.dtype.name for key, stored in reader.items()} == {"fine": "float32", "x": name}


def test_a_mapped_part_is_refused_with_the_way_around(tmp_path: Path) -> None:
    reader = write_floats(tmp_path / "ckpt", x=4)
    for part in (0, slice(1, 2), ..., (), "4 0,1"):
        with pytest.raises(ValueError, match="Only whole tensors can be mapped; map the tensor"):
            reader.get_tensor("x", part, mmap=True)


# ------------------------------------------------------------------------------------- a made-up index

SHAPES = [(TIB,), (1 << 20, 1 << 21), (1 << 31, 1 << 31), (1 << 62,), (3, 1 << 40)]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Less address space than the values that the index makes up."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("number", [FLOAT, INT8, 29, STRING, VARIANT, 99])
@pytest.mark.parametrize("says_size", [False, True])
def test_a_value_that_no_file_can_hold_is_refused_before_memory_is_taken(
    tmp_path: Path, shape: tuple[int, ...], number: int, says_size: bool
) -> None:
    """C390"""
    count = int(np.prod([int(dim) for dim in shape], dtype=object))
    size = min(count * 4, (1 << 63) - 1) if says_size else 16
    crafted.write_crafted(tmp_path / "ckpt", {b"x": crafted.entry(number, shape, size=size, crc32c=1)}, b"\0" * 16)
    reader = CheckpointReader(tmp_path / "ckpt")
    most = tuple(slice(0, dim - 1) for dim in shape)
    for ask in (
        lambda: reader.get_tensor("x"),
        lambda: reader.get_tensor("x", mmap=True),
        lambda: reader.get_tensor("x", most),
        lambda: reader.get_tensor("x", most, verify=True),
        lambda: reader.get_tensor("x", ...),
        lambda: reader["x"].read(),
        lambda: reader.verify(),
    ):
        with pytest.raises((DataLossError, UnsupportedFormatError), match="x"):
            ask()


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("number", [FLOAT, STRING])
def test_slices_that_no_file_can_hold_are_refused_before_memory_is_taken(tmp_path: Path, number: int) -> None:
    """C390"""
    boxes = [((0, TIB), ALL), ((TIB, TIB), ALL)]
    entries = {
        witness.slice_key(b"x", box): crafted.entry(number, (TIB, 2), size=16, crc32c=1)  #
        for box in boxes
    }
    entries[b"x"] = crafted.entry(number, (2 * TIB, 2), slices=boxes)
    crafted.write_crafted(tmp_path / "ckpt", entries, b"\0" * 16)
    reader = CheckpointReader(tmp_path / "ckpt")
    for index in (None, ..., np.s_[1:], np.s_[:, 0]):
        with pytest.raises(DataLossError, match="x"):
            reader.get_tensor("x", index)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("number", [FLOAT, STRING])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_v1_value_that_no_file_can_hold_is_refused_before_memory_is_taken(
    tmp_path: Path, number: int, shape: tuple[int, ...]
) -> None:
    """C390"""
    data: bytes | list[bytes] = [b""] if number == STRING else b"\0" * 16
    crafted_v1.write_tensor(tmp_path / "ckpt", number, shape, data)
    with pytest.raises(TrackckptError, match="x"):
        CheckpointReader(tmp_path / "ckpt").get_tensor("x")
    with pytest.raises(TrackckptError, match="x"):
        CheckpointReader(tmp_path / "ckpt").get_tensor("x", tuple(slice(0, dim - 1) for dim in shape))


HUGE_EMPTY = [(0, TIB, TIB), (0, 1 << 62, 1 << 62), (1 << 62, 0), (1 << 31, 0, 1 << 31), (1,) * 65, (0,) * 200]


@pytest.mark.parametrize("shape", HUGE_EMPTY, ids=lambda shape: f"{shape[:3]}x{len(shape)}")
@pytest.mark.parametrize("number", [FLOAT, 29, STRING])
@pytest.mark.parametrize("how", ["whole", "part"])
def test_a_shape_that_the_format_allows_is_read_or_refused_by_name(
    tmp_path: Path, shape: tuple[int, ...], number: int, how: str
) -> None:
    """C357, C390: there are shapes without elements for which torch or NumPy has no strides, and ranks beyond NumPy."""
    size = {FLOAT: 4, 29: 1}.get(number, 0) * int(np.prod(shape, dtype=object))
    bundle = crafted.Bundle()
    bundle.add(b"x", number, shape, [b""] * (1 if 0 not in shape else 0) if number == STRING else b"\0" * size)
    bundle.add_array(b"fine", FLOAT, np.ones(2, np.float32))
    bundle.write(tmp_path / "ckpt")
    reader = CheckpointReader(tmp_path / "ckpt")
    try:
        value = reader.get_tensor("x", ... if how == "part" else None)
    except TrackckptError as error:
        assert str(error).startswith("x: ")  # noqa: PT017  either is right
    else:
        assert not isinstance(value, bytes)
        assert tuple(value.shape) == shape
    assert torch.as_tensor(reader.get_tensor("fine")).tolist() == [1, 1]


@pytest.mark.parametrize("part", [None, slice(0, MIB)], ids=str)
def test_a_number_of_shards_that_is_made_up_costs_no_time(tmp_path: Path, part: slice | None) -> None:
    """C390: a process of its own, because a search for two billion files could not be stopped."""
    record = crafted.entry(FLOAT, (2 * MIB,), size=8 * MIB, crc32c=1)
    crafted.write_crafted(tmp_path / "ckpt", {b"x": record}, head=crafted.header(num_shards=(1 << 31) - 1))
    program = f"""
import sys
from torch_trackckpt import CheckpointReader
from torch_trackckpt.errors import TrackckptError
try:
    CheckpointReader({str(tmp_path / "ckpt")!r}).get_tensor("x", {part!r})
except TrackckptError as error:
    print(type(error).__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.strip() in ("CheckpointNotFoundError", "DataLossError")


def test_looking_into_a_checkpoint_of_very_many_keys_takes_no_time(tmp_path: Path) -> None:
    """C379: far more than what it needs, but less than anything quadratic."""
    count = 50_000
    entries = {b"layer/%06d" % number: crafted.entry(FLOAT, (0,), crc32c=witness.mask(0)) for number in range(count)}
    crafted.write_crafted(tmp_path / "ckpt", entries)
    start = time.perf_counter()
    reader = CheckpointReader(tmp_path / "ckpt")
    assert len(reader) == len(reader.get_variable_to_shape_map()) == sum(1 for _ in reader) == count
    assert torch.as_tensor(reader.get_tensor("layer/049999")).shape == (0,)
    assert time.perf_counter() - start < 10
