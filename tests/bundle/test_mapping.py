"""Tensors that are views of the data file."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from native import crafted, crafted_v1
from stored_dtypes import DTYPES

from torch_trackckpt import Checkpoint, CheckpointReader
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.errors import CheckpointNotFoundError, DataLossError, UnsupportedFormatError

ALL = (0, -1)
MIB = 1 << 20
GRID = np.arange(24, dtype=np.float32).reshape(4, 6)


def data_file(prefix: Path) -> Path:
    return Path(f"{prefix}.data-00000-of-00001")


def write(prefix: Path, alignment: int = 1, **tensors: torch.Tensor) -> CheckpointReader:
    with BundleWriter(str(data_file(prefix)), f"{prefix}.index", durable=False, alignment=alignment) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    return CheckpointReader(prefix)


def random_tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Arbitrary bits, NaNs among them."""
    count = torch.Size(shape).numel()
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).bool()
    noise = torch.randint(0, 256, (count * dtype.itemsize,), generator=torch.Generator().manual_seed(0))
    return noise.to(torch.uint8).view(dtype).reshape(shape)


def bits(value: Any) -> bytes:
    assert isinstance(value, torch.Tensor)
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


def mapped_places(prefix: Path) -> list[range]:
    """The memory of this process that is mapped from the checkpoint's data files."""
    places = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if f"{prefix}.data-" in line:
            begin, end = line.split(" ", 1)[0].split("-")
            places.append(range(int(begin, 16), int(end, 16)))
    return places


def is_mapped(tensor: Any, prefix: Path) -> bool:
    """Whether the memory of a tensor is that of a file."""
    assert isinstance(tensor, torch.Tensor)
    return any(tensor.data_ptr() in place for place in mapped_places(prefix))


# ------------------------------------------------------------------------------------------ what is mapped


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5), ()], ids=str)
def test_a_value_of_any_type_is_mapped_bit_for_bit(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """C356"""
    tensor = random_tensor(dtype, *shape)
    reader = write(tmp_path / "ckpt", x=tensor)
    mapped, copied = reader.get_tensor("x", mmap=True), reader["x"].read()
    assert isinstance(mapped, torch.Tensor)
    assert (mapped.dtype, tuple(mapped.shape)) == (dtype, shape)
    assert bits(mapped) == bits(copied) == bits(tensor)
    assert is_mapped(mapped, tmp_path / "ckpt")
    assert not is_mapped(copied, tmp_path / "ckpt")


@pytest.mark.parametrize("name", ["qint8", "quint8", "qint16", "quint16", "qint32", "float8_e4m3b11fnuz"])
def test_a_stored_type_without_a_twin_is_mapped_as_what_it_is_handed_out_as(tmp_path: Path, name: str) -> None:
    reader = CheckpointReader(crafted.golden("v2_dtypes"))
    (key,) = [key for key, lazy in reader.items() if lazy.dtype.name == name]
    value, mapped = reader[key].read(), reader[key].read(mmap=True)
    assert isinstance(mapped, torch.Tensor)
    assert mapped.dtype == reader[key].dtype.torch_dtype
    assert bits(mapped) == bits(value)


@pytest.mark.parametrize("alignment", [64, 4096])
def test_with_an_alignment_every_value_can_be_mapped(tmp_path: Path, alignment: int) -> None:
    """C365"""
    tensors = {
        f"x{number:02d}": random_tensor(dtype, count) for number, dtype in enumerate(DTYPES) for count in [3 + number]
    }
    prefix = tmp_path / "ckpt"
    reader = write(prefix, alignment, **tensors)
    values = {name: reader.get_tensor(name, mmap=True) for name in tensors}
    for name, value in values.items():
        assert is_mapped(value, prefix), name
        assert value.data_ptr() % alignment == 0  # type: ignore[union-attr]
        assert bits(value) == bits(tensors[name])


def test_a_value_behind_the_first_pages_of_a_file_is_mapped(tmp_path: Path) -> None:
    prefix = tmp_path / "ckpt"
    reader = write(prefix, first=torch.zeros(3 * 4096 + 512, dtype=torch.uint8), x=torch.arange(4000.0))
    mapped = reader["x"].read(mmap=True)
    assert is_mapped(mapped, prefix)
    assert bits(mapped) == bits(torch.arange(4000.0))


@pytest.mark.memory
def test_no_copy_is_made(tmp_path: Path) -> None:
    """Reading 256 MiB costs a process no memory of its own: pages of the file are not counted as such."""
    prefix = tmp_path / "ckpt"
    write(prefix, x=torch.ones(64 * MIB))
    program = f"""
import re, torch
from torch_trackckpt import CheckpointReader

def own():
    with open("/proc/self/status") as file:
        return int(re.search(r"RssAnon:\\s*(\\d+) kB", file.read())[1]) // 1024

before = own()
tensor = CheckpointReader({str(prefix)!r}).get_tensor("x", mmap=True)
assert tensor[::1024].sum() == 64 * 1024
mapped = own() - before
copy = CheckpointReader({str(prefix)!r}).get_tensor("x")
print(mapped, own() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    mapped, copied = map(int, done.stdout.split())
    assert mapped < 32
    assert copied >= 256


def test_writing_to_a_mapped_tensor_changes_neither_the_file_nor_another_map(tmp_path: Path) -> None:
    prefix = tmp_path / "ckpt"
    reader = write(prefix, x=torch.arange(5000.0))
    content = data_file(prefix).read_bytes()
    first, second = torch.as_tensor(reader["x"].read(mmap=True)), torch.as_tensor(reader["x"].read(mmap=True))
    first.mul_(-1)
    assert torch.equal(first, -torch.arange(5000.0))
    assert torch.equal(second, torch.arange(5000.0))
    reader.verify()
    del first
    gc.collect()
    assert data_file(prefix).read_bytes() == content


def test_a_file_that_cannot_be_written_to_is_mapped(tmp_path: Path) -> None:
    prefix = tmp_path / "ckpt"
    reader = write(prefix, x=torch.arange(4.0))
    data_file(prefix).chmod(0o444)
    mapped = torch.as_tensor(reader["x"].read(mmap=True))
    mapped += 1
    assert mapped.tolist() == [1, 2, 3, 4]


def test_a_mapped_tensor_outlives_reader_and_file(tmp_path: Path) -> None:
    prefix = tmp_path / "ckpt"
    reader = write(prefix, x=torch.arange(5000.0))
    mapped = torch.as_tensor(reader["x"].read(mmap=True))[10:20]
    del reader
    for file in tmp_path.iterdir():
        file.unlink()
    gc.collect()
    assert torch.equal(mapped, torch.arange(10.0, 20.0))


def test_the_map_goes_when_the_last_view_of_it_goes(tmp_path: Path) -> None:
    prefix = tmp_path / "ckpt"
    reader = write(prefix, x=torch.arange(5000.0))
    view = torch.as_tensor(reader["x"].read(mmap=True))[10:20]
    gc.collect()
    assert len(mapped_places(prefix)) == 1
    del view
    gc.collect()
    assert mapped_places(prefix) == []


def test_more_values_can_be_mapped_than_files_can_be_open(tmp_path: Path) -> None:
    """C059: a map needs no open file."""
    prefix = tmp_path / "ckpt"
    write(prefix, alignment=64, **{f"x{number}": torch.full((16,), float(number)) for number in range(300)})
    program = f"""
import resource, torch
from torch_trackckpt import CheckpointReader
reader = CheckpointReader({str(prefix)!r})
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
values = {{name: lazy.read(mmap=True) for name, lazy in reader.items()}}
assert all(value.eq(float(name[1:])).all() for name, value in values.items())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]


def test_a_mapped_tensor_is_saved_and_trained_like_any_other(tmp_path: Path) -> None:
    reader = write(tmp_path / "ckpt", x=torch.arange(4.0))
    mapped = torch.as_tensor(reader["x"].read(mmap=True)).requires_grad_()
    (mapped * 2).sum().backward()
    assert mapped.grad is not None
    with torch.no_grad():
        mapped -= mapped.grad
    path = Checkpoint(x=mapped).write(tmp_path / "again")
    assert torch.as_tensor(CheckpointReader(path).get_tensor("x/.ATTRIBUTES/VARIABLE_VALUE")).tolist() == [-2, -1, 0, 1]


@pytest.mark.parametrize("shape", [(0,), (0, 1618), (16, 0, 18)], ids=str)
@pytest.mark.parametrize("before", [0, 3])
def test_a_value_without_elements_has_its_shape(tmp_path: Path, shape: tuple[int, ...], before: int) -> None:
    """C357: there is nothing to map, at the end of the file least of all."""
    reader = write(tmp_path / "ckpt", first=torch.zeros(before, dtype=torch.uint8), x=torch.zeros(shape))
    value = reader["x"].read(mmap=True)
    assert isinstance(value, torch.Tensor)
    assert (tuple(value.shape), value.dtype) == (shape, torch.float32)


# ----------------------------------------------------------------------------------- what is copied instead


def write_kind(prefix: Path, kind: str) -> CheckpointReader:
    """The grid under ``x``, stored so that it cannot be used as it lies there."""
    bundle = crafted.Bundle("big" if kind == "big-endian" else "little")
    if kind == "V1":
        crafted_v1.write_tensor(prefix, 1, GRID.shape, GRID.tobytes())
        return CheckpointReader(prefix)
    if kind == "slices":
        bundle.add_slices(b"x", 1, GRID, [((0, 2), ALL), ((2, 2), ALL)])
    else:
        bundle.add(
            b"before",
            4,
            (int(kind[-1]) if kind[-1].isdigit() else 4,),
            b"b" * int(kind[-1] if kind[-1].isdigit() else 4),
        )
        bundle.add_array(b"x", 1, GRID)
    bundle.write(prefix)
    return CheckpointReader(prefix)


@pytest.mark.parametrize("kind", ["offset 1", "offset 2", "offset 3", "slices", "big-endian", "V1"])
def test_a_value_that_cannot_be_used_as_it_lies_in_the_file_is_copied(tmp_path: Path, kind: str) -> None:
    prefix = tmp_path / "ckpt"
    value = write_kind(prefix, kind)["x"].read(mmap=True)
    assert isinstance(value, torch.Tensor)
    assert torch.equal(value, torch.from_numpy(GRID))
    assert not is_mapped(value, prefix)
    value.zero_()
    assert torch.equal(torch.as_tensor(CheckpointReader(prefix)["x"].read(mmap=True)), torch.from_numpy(GRID))


def test_an_offset_that_suits_half_an_element_is_not_enough(tmp_path: Path) -> None:
    prefix = tmp_path / "ckpt"
    reader = write(prefix, a=torch.zeros(8, dtype=torch.uint8), x=random_tensor(torch.complex128, 3))
    value = reader["x"].read(mmap=True)
    assert bits(value) == bits(random_tensor(torch.complex128, 3))
    assert not is_mapped(value, prefix)


def test_bytes_of_a_big_endian_file_are_mapped(tmp_path: Path) -> None:
    """C376: there is nothing to swap in one byte."""
    prefix = tmp_path / "ckpt"
    bundle = crafted.Bundle("big")
    bundle.add(b"x", 25, (5,), bytes(range(120, 125)))
    bundle.write(prefix)
    value = CheckpointReader(prefix)["x"].read(mmap=True)
    assert isinstance(value, torch.Tensor)
    assert value.dtype == torch.float8_e4m3fn
    assert bits(value) == bytes(range(120, 125))
    assert is_mapped(value, prefix)


def test_strings_and_small_types_are_read_as_without_a_map(tmp_path: Path) -> None:
    prefix = tmp_path / "ckpt"
    bundle = crafted.Bundle()
    bundle.add(b"i", 29, (2,), b"\xf8\x07")
    bundle.add(b"s", 7, (), [b"text\0"])
    bundle.write(prefix)
    reader = CheckpointReader(prefix)
    assert torch.as_tensor(reader.get_tensor("i", mmap=True)).tolist() == [-8, 7]
    assert reader.get_tensor("s", mmap=True) == b"text\0"
    assert mapped_places(prefix) == []


def test_a_variant_cannot_be_mapped(tmp_path: Path) -> None:
    """C381"""
    reader = CheckpointReader(crafted.GOLDEN / "variant" / "ckpt")
    with pytest.raises(UnsupportedFormatError, match=r"^scalar: .*variant.*get_variants"):
        reader.get_tensor("scalar", mmap=True)


@pytest.mark.parametrize("part", [0, slice(0, 1), ..., (), "4 6 -:-", TensorSlice.whole((4, 6))], ids=str)
def test_a_map_of_a_part_is_refused(tmp_path: Path, part: Any) -> None:
    reader = write(tmp_path / "ckpt", x=torch.from_numpy(GRID))
    with pytest.raises(ValueError, match="Only whole tensors can be mapped"):
        reader.get_tensor("x", part, mmap=True)


# ---------------------------------------------------------------------------------------------- damage


def test_damage_is_found_before_the_tensor_is_handed_out(tmp_path: Path) -> None:
    """C382"""
    prefix = tmp_path / "ckpt"
    reader = write(prefix, x=torch.zeros(5000), y=torch.ones(4))
    crafted.flip(data_file(prefix), 4 * 4999)
    with pytest.raises(DataLossError, match="Checksum does not match: key x"):
        reader.get_tensor("x", mmap=True)
    assert torch.as_tensor(reader.get_tensor("y", mmap=True)).tolist() == [1, 1, 1, 1]
    assert mapped_places(prefix) == []


@pytest.mark.parametrize("size", [0, 4, 19999])
def test_a_file_that_is_cut_is_refused_instead_of_mapped(tmp_path: Path, size: int) -> None:
    """C384, C385"""
    prefix = tmp_path / "ckpt"
    reader = write(prefix, x=torch.zeros(5000))
    os.truncate(data_file(prefix), size)
    with pytest.raises(DataLossError, match=re.escape(str(data_file(prefix)))):
        reader.get_tensor("x", mmap=True)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """C385"""
    prefix = tmp_path / "ckpt"
    reader = write(prefix, x=torch.zeros(5000))
    data_file(prefix).unlink()
    with pytest.raises(CheckpointNotFoundError, match=re.escape(str(data_file(prefix)))):
        reader.get_tensor("x", mmap=True)


@pytest.mark.parametrize(
    "bent",
    [
        {"shape": (6,)},
        {"shape": (4,)},
        {"size": 16},
        {"offset": 8},
        {"offset": 1 << 40},
        {"offset": (1 << 63) - 4},
        {"offset": (1 << 64) - 4},
        {"shape": (-5,)},
        {"shard_id": 1},
        {"shape": (1 << 62, 1 << 62)},
    ],
    ids=str,
)
def test_an_index_that_contradicts_itself_or_the_file_is_refused_instead_of_mapped(
    tmp_path: Path, bent: dict[str, Any]
) -> None:
    """C390"""
    record = {"shape": (5,), "size": 20, "offset": 4, "crc32c": crafted.witness.mask(crafted.crc32c(b"\0" * 20))} | bent
    crafted.write_crafted(tmp_path / "ckpt", {b"x": crafted.entry(1, **record)}, b"\0" * 24)
    reader = CheckpointReader(tmp_path / "ckpt")
    with pytest.raises((DataLossError, CheckpointNotFoundError), match="x"):
        reader.get_tensor("x", mmap=True)
