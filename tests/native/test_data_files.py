"""Data files: which one a shard lies in, what is said of one that is not there, and how little is read of it."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import witness
from native import crafted
from native.memory import growth_in_mib, write_sparse

from torch_trackckpt._native import BundleReader, crc32c
from torch_trackckpt.errors import CheckpointNotFoundError, DataLossError

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 12345\n"
)
IO = Path("/proc/self/io")


def data_file(prefix: Path) -> Path:
    return Path(f"{prefix}.data-00000-of-00001")


# --------------------------------------------------------------------------------------------- paths


def test_the_path_of_each_shard_is_told() -> None:
    prefix = crafted.GOLDEN / "v2_merge" / "ckpt"
    reader = crafted.open_reader(prefix)
    assert [reader.data_path(shard) for shard in range(3)] == [f"{prefix}.data-0000{s}-of-00003" for s in range(3)]


def test_the_path_of_a_shard_has_the_first_suffix_that_exists(prefix: Path) -> None:
    crafted.write_bundle(prefix, [(b"k", crafted.UINT8, (1,), b"k")])
    os.rename(data_file(prefix), f"{data_file(prefix)}.b")
    reader = BundleReader(f"{prefix}.index", str(prefix), (".a", ".b", ""))
    assert reader.data_path(0) == f"{data_file(prefix)}.b"


@pytest.mark.parametrize("shard_id", [-1, 3, 1 << 40])
def test_a_shard_that_the_bundle_does_not_have_has_no_path(shard_id: int) -> None:
    with pytest.raises(ValueError, match=f"{shard_id} of 3"):
        crafted.open_reader(crafted.GOLDEN / "v2_merge" / "ckpt").data_path(shard_id)


def test_a_missing_data_file_is_named_and_the_others_stay_readable(tmp_path: Path) -> None:
    """C385"""
    for source in (crafted.GOLDEN / "v2_merge").iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    missing = tmp_path / "ckpt.data-00001-of-00003"
    missing.unlink()
    reader = crafted.open_reader(tmp_path / "ckpt")
    for call in (lambda: reader.data_path(1), lambda: reader.check([b"a"]), lambda: reader.verify([b"a"])):
        with pytest.raises(CheckpointNotFoundError, match=r"all others stay readable") as caught:
            call()
        assert str(missing) in str(caught.value)
        assert caught.value.filename == str(missing)
    found = reader.find(b"b")
    assert found is not None
    assert crafted.read_value(reader, found) == (98).to_bytes(4, "little")


# ---------------------------------------------------------------------------------------- Git LFS


def calls_on(reader: BundleReader, key: bytes, size: int) -> list[Callable[[], None]]:
    memory = np.empty(size, np.uint8)
    return [
        lambda: reader.verify([key]),
        lambda: reader.read([(key, memory.ctypes.data, size)]),
        lambda: reader.read_slice(key, ((0, size),), memory.ctypes.data, size, verify=True),
    ]


@pytest.mark.parametrize("size", [10, len(POINTER), len(POINTER) + 1, 5000])
def test_a_git_lfs_pointer_in_place_of_a_data_file_is_recognised(prefix: Path, size: int) -> None:
    """C385"""
    crafted.write_bundle(prefix, [(b"k", crafted.UINT8, (size,), bytes(size))])
    data_file(prefix).write_bytes(POINTER)
    for call in calls_on(crafted.open_reader(prefix), b"k", size):
        with pytest.raises(DataLossError, match=r"Git LFS pointer, not the data itself.*git lfs pull") as caught:
            call()
        assert str(data_file(prefix)) in str(caught.value)


def test_a_git_lfs_pointer_is_recognised_where_strings_and_slices_are_expected(prefix: Path) -> None:
    bundle = crafted.Bundle()
    bundle.add(b"words", crafted.STRING, (2,), [b"ab", b"c"])
    bundle.add_slices(b"cut", crafted.UINT8, np.arange(4, dtype=np.uint8), [((0, 2),), ((2, 2),)])
    reader = bundle.write(prefix)
    data_file(prefix).write_bytes(POINTER)
    calls: list[Callable[[], object]] = [
        *calls_on(reader, b"cut", 4),
        lambda: reader.verify([b"words"]),
        lambda: reader.read_strings(b"words"),
    ]
    for call in calls:
        with pytest.raises(DataLossError, match="git lfs pull"):
            call()


def test_damage_of_a_data_file_is_not_taken_for_a_pointer(prefix: Path) -> None:
    crafted.write_bundle(prefix, [(b"k", crafted.UINT8, (200,), bytes(200))])
    for content in (POINTER[1:], POINTER[:41], b"", bytes(199) + b"\1"):
        data_file(prefix).write_bytes(content)
        for call in calls_on(crafted.open_reader(prefix), b"k", 200):
            with pytest.raises(DataLossError) as caught:
                call()
            assert not re.search("git", str(caught.value), re.IGNORECASE)


# ----------------------------------------------------------------------------- how much is read


def bytes_read() -> int:
    return int(dict(line.split(": ") for line in IO.read_text().splitlines())["rchar"])


def cost_of(reader: BundleReader, key: bytes, extents: crafted.Extents, like: crafted.Array, verify: bool) -> int:
    idle = -bytes_read() + bytes_read()
    before = bytes_read()
    crafted.read_part(reader, key, extents, like, verify=verify)
    return bytes_read() - before - idle


@pytest.fixture
def matrix(prefix: Path) -> BundleReader:
    """4000 rows of 16 KiB, whole and in two halves, on a disk of no size."""
    whole, half = (4000, 16384), (4000, 8192)
    zeros = bytes(1 << 20)
    crc = 0
    for _ in range(4000 * 8192 // len(zeros)):
        crc = crc32c(zeros, crc)
    rest = bytes(4000 * 8192 % len(zeros))
    crc = crc32c(rest, crc)
    half_crc = witness.mask(crc)
    slices: list[crafted.Extents] = [(crafted.ALL, (0, 8192)), (crafted.ALL, (8192, 8192))]
    for _ in range(4000 * 8192 // len(zeros)):
        crc = crc32c(zeros, crc)
    size = 4000 * 8192
    entries = {
        b"whole": crafted.entry(crafted.UINT8, whole, size=2 * size, crc32c=witness.mask(crc32c(rest, crc))),
        b"cut": crafted.entry(crafted.UINT8, whole, slices=slices),
    }
    for i, extents in enumerate(slices):
        record = crafted.entry(crafted.UINT8, half, offset=i * size, size=size, crc32c=half_crc)
        entries[witness.slice_key(b"cut", extents)] = record
    crafted.write_crafted(prefix, entries)
    write_sparse(data_file(prefix), 2 * size, {})
    return crafted.open_reader(prefix)


@pytest.mark.skipif(not os.access(IO, os.R_OK), reason="this system does not count what is read")
@pytest.mark.parametrize("key", [b"whole", b"cut"])
@pytest.mark.parametrize(
    ("extents", "shape", "cost"),
    [
        pytest.param(((17, 1), (5, 7)), (1, 7), 7, id="a run"),
        pytest.param(((17, 300), (5, 7)), (300, 7), 300 * 7, id="runs too far apart to be read together"),
        pytest.param(((17, 0), crafted.ALL), (0, 16384), 0, id="nothing"),
        pytest.param(((17, 100), (0, 8192)), (100, 8192), 100 * 8192, id="one half"),
    ],
)
def test_a_part_costs_no_more_than_its_bytes(
    matrix: BundleReader, key: bytes, extents: crafted.Extents, shape: tuple[int, ...], cost: int
) -> None:
    assert cost_of(matrix, key, extents, np.empty(shape, np.uint8), verify=False) == cost


@pytest.mark.skipif(not os.access(IO, os.R_OK), reason="this system does not count what is read")
def test_runs_that_are_less_than_a_page_apart_are_read_together(matrix: BundleReader) -> None:
    near = ((0, 100), (0, 16384 - 4095))
    apart = ((0, 100), (0, 16384 - 4096))
    cost = cost_of(matrix, b"whole", near, np.empty((100, near[1][1]), np.uint8), verify=False)
    assert 0 < cost - 100 * near[1][1] <= 99 * 4095
    cost = cost_of(matrix, b"whole", apart, np.empty((100, apart[1][1]), np.uint8), verify=False)
    assert cost == 100 * apart[1][1]


@pytest.mark.skipif(not os.access(IO, os.R_OK), reason="this system does not count what is read")
@pytest.mark.parametrize(("key", "stored"), [(b"whole", 4000 * 16384), (b"cut", 4000 * 8192)])
def test_a_verified_part_costs_the_stored_values_that_hold_it(matrix: BundleReader, key: bytes, stored: int) -> None:
    assert cost_of(matrix, key, ((17, 1), (5, 7)), np.empty((1, 7), np.uint8), verify=True) == stored + 7


@pytest.mark.parametrize(
    "work",
    [
        "reader.read([(b'cut', memory.ctypes.data, memory.nbytes)])",
        "reader.read([(b'whole', memory.ctypes.data, memory.nbytes)])",
        "reader.verify([b'cut', b'whole'])",
        "reader.read_slice(b'cut', ((0, 4000), (1, 16383)), memory.ctypes.data, 4000 * 16383, verify=True)",
        "reader.read_slice(b'whole', ((0, 4000), (1, 16383)), memory.ctypes.data, 4000 * 16383, verify=False)",
        "reader.read_slice(b'whole', ((0, 4000), (1, 2)), memory.ctypes.data, 8000, verify=False)",
    ],
)
@pytest.mark.memory
def test_nothing_but_the_destination_holds_a_tensor(prefix: Path, matrix: BundleReader, work: str) -> None:
    assert matrix.num_shards == 1
    assert growth_in_mib(prefix, work, "memory = np.ones(4000 * 16384, np.uint8)") < 4
