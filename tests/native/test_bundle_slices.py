"""Tensors stored in slices, and parts of tensors however they are stored."""

import itertools
import math
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import witness
from hypothesis import given
from hypothesis import strategies as st
from native import crafted, snappy
from native.crafted import ALL, Extents, golden, manifest_digest

from torch_trackckpt._native import BundleReader
from torch_trackckpt.errors import (
    CheckpointNotFoundError,
    DataLossError,
    TensorNotFoundError,
    UnsupportedFormatError,
)

NUMPY = {1: "f4", 2: "f8", 3: "i4", 4: "u1", 5: "i2", 8: "c8", 9: "i8", 18: "c16", 19: "f2", 22: "u4", 23: "u8"}
NUMPY |= {10: "?", 14: "u2", 17: "u2", 24: "u1", 29: "u1"}
DTYPES = [*NUMPY, crafted.STRING]
GRID = np.arange(24, dtype=np.float32).reshape(4, 6)
QUARTERS: list[Extents] = [((row, 2), (column, 3)) for row in (0, 2) for column in (0, 3)]
FILL = 0xA5


def values(dtype: int, shape: tuple[int, ...], seed: int) -> crafted.Array:
    """An array whose elements are all different, as far as its type can tell them apart."""
    count = math.prod(shape)
    rng = np.random.default_rng(seed)
    if dtype == crafted.STRING:
        array = np.empty(count, object)
        array[:] = [rng.bytes(length) for length in rng.integers(0, 200, count)]
        return array.reshape(shape)
    item_size = np.dtype(NUMPY[dtype]).itemsize
    content = np.frombuffer(rng.bytes(count * item_size), NUMPY[dtype]).reshape(shape)
    # A bool is read as 0 or 1.
    return (content.view(np.uint8) & 1).view(np.bool_) if dtype == 10 else content


def same(a: crafted.Array, b: crafted.Array) -> bool:
    """Bit for bit."""
    if a.dtype == object:
        return bool(a.shape == b.shape and a.tolist() == b.tolist())
    return bool(a.shape == b.shape and a.tobytes() == b.tobytes())


def read_whole(reader: BundleReader, key: bytes, like: crafted.Array) -> crafted.Array:
    if like.dtype == object:
        return crafted.read_part(reader, key, (ALL,) * like.ndim, like)
    array = np.empty(like.shape, like.dtype)
    reader.read([(key, array.ctypes.data, array.nbytes)])
    return array


def write_grid(prefix: Path, slices: list[Extents] = QUARTERS) -> crafted.Bundle:
    bundle = crafted.Bundle()
    bundle.add_slices(b"grid", crafted.FLOAT, GRID, slices)
    bundle.add_array(b"whole", crafted.FLOAT, GRID)
    bundle.write(prefix)
    return bundle


# ----------------------------------------------------------------------------------------- golden files


@pytest.mark.parametrize("spec", crafted.MANIFEST["v2_slices"]["slice_reads"])
@pytest.mark.parametrize("verify", [False, True])
def test_parts_are_those_that_tensorflow_read(spec: str, verify: bool) -> None:
    """C372"""
    key, _, text = spec.partition(" @ ")
    starts_and_lengths = [part.split(",") for part in text.split(" ")[-1].split(":")]
    extents = tuple(ALL if part == ["-"] else (int(part[0]), int(part[1])) for part in starts_and_lengths)
    expected = crafted.MANIFEST["v2_slices"]["slice_reads"][spec]
    like = np.empty(expected["shape"], np.int32)
    part = crafted.read_part(crafted.open_reader(golden("v2_slices")), key.encode(), extents, like, verify=verify)
    assert manifest_digest(part.tobytes()) == expected["sha256"]


@pytest.mark.parametrize("name", ["v2_slices", "v2_slices_merged", "obj_sharded", "name_based_v2"])
def test_the_listed_keys_of_sliced_files_are_those_that_tensorflow_lists(name: str) -> None:
    """C371"""
    listed = {found.key.decode("utf-8", "surrogateescape") for found in crafted.open_reader(golden(name)).entries()}
    not_read_by_tensorflow = listed - set(crafted.MANIFEST[name]["tensors"])
    assert set(crafted.MANIFEST[name]["tensors"]) <= listed
    assert {key for key in not_read_by_tensorflow if key.startswith("\0")} == set()
    assert (not_read_by_tensorflow == set()) == (name != "v2_slices")


def test_a_sliced_string_tensor_of_tensorflow_is_read_whole() -> None:
    """C371: TensorFlow writes it but reads the slices only one by one."""
    expected = witness.read_bundle(golden("v2_slices"))["str"]
    assert expected.num_slices > 1
    assert crafted.open_reader(golden("v2_slices")).read_strings(b"str") == expected.data


# ------------------------------------------------------------------------- any tensor, cut in any way


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...]) -> Extents:
    """Any part of a shape, empty ones as well."""
    extents = []
    for dim in shape:
        start = draw(st.integers(0, dim))
        extents.append((start, draw(st.integers(0, dim - start))))
    return tuple(ALL if draw(st.integers(0, 4)) == 0 else extent for extent in extents)


@st.composite
def grids(draw: st.DrawFn, shape: tuple[int, ...]) -> list[Extents]:
    """The boxes between cuts through the whole tensor."""
    axes = []
    for dim in shape:
        cuts = sorted(draw(st.sets(st.integers(1, max(dim - 1, 1)), max_size=3)) & set(range(1, dim)))
        ends = [0, *cuts, dim]
        axes.append([(a, b - a) for a, b in itertools.pairwise(ends)])
    return list(itertools.product(*axes))


@st.composite
def guillotines(draw: st.DrawFn, shape: tuple[int, ...]) -> list[Extents]:
    """Boxes that are cut in two again and again, each in a dimension of its own."""
    pieces: list[Extents] = [tuple((0, dim) for dim in shape)]
    for _ in range(draw(st.integers(0, 8))):
        piece = pieces.pop(draw(st.integers(0, len(pieces) - 1)))
        wide = [d for d, (_, length) in enumerate(piece) if length > 1]
        if not wide:
            pieces.append(piece)
            continue
        d = draw(st.sampled_from(wide))
        start, length = piece[d]
        first = draw(st.integers(1, length - 1))
        for half in ((start, first), (start + first, length - first)):
            pieces.append((*piece[:d], half, *piece[d + 1 :]))
    return pieces


@st.composite
def cut_tensors(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Extents], list[Extents]]:
    """A shape, a partition of it, and parts to ask for."""
    shape = tuple(draw(st.lists(st.integers(0, 7), max_size=4)))
    slices = draw(st.one_of(grids(shape), guillotines(shape)))
    spelled = [
        tuple(
            ALL if extent == (0, dim) and draw(st.booleans()) else extent
            for extent, dim in zip(piece, shape, strict=True)
        )
        for piece in draw(st.permutations(slices))
    ]
    return shape, spelled, draw(st.lists(boxes(shape), min_size=1, max_size=5))


@pytest.mark.parametrize("byteorder", ["little", "big"])
@given(cut=cut_tensors(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 1000), num_shards=st.integers(1, 3))
def test_any_part_of_any_partition_is_what_numpy_cuts_out(
    byteorder: crafted.ByteOrder,
    cut: tuple[tuple[int, ...], list[Extents], list[Extents]],
    dtype: int,
    seed: int,
    num_shards: int,
) -> None:
    """C371, C372, C376"""
    shape, slices, requests = cut
    array = values(dtype, shape, seed)
    bundle = crafted.Bundle(byteorder)
    bundle.add(b"before", crafted.UINT8, (3,), b"abc")
    bundle.add_slices(b"cut", dtype, array, slices, range(num_shards))
    bundle.add_array(b"whole", dtype, array)
    with TemporaryDirectory() as folder:
        reader = bundle.write(Path(folder) / "ckpt")
        assert [found.key for found in reader.entries()] == [b"before", b"cut", b"whole"]
        reader.check([b"cut", b"whole"])
        reader.verify([b"cut", b"whole"])
        for key in (b"cut", b"whole"):
            assert same(read_whole(reader, key, array), array)
            for request, verify in itertools.product(requests, (False, True)):
                expected = array[crafted.as_index(request)]
                assert same(crafted.read_part(reader, key, request, expected, verify=verify), expected)


@given(cut=cut_tensors(), dtype=st.sampled_from([1, 18, 4]))
def test_slices_of_many_chunks_are_put_together(
    cut: tuple[tuple[int, ...], list[Extents], list[Extents]], dtype: int
) -> None:
    """C371: rows longer than the buffer, and boundaries of its portions anywhere in a row."""
    shape, slices, requests = cut
    if math.prod(shape) > 60:
        return
    row = 70_001
    array = np.resize(values(dtype, (row,), 0), (*shape, row))
    bundle = crafted.Bundle()
    bundle.add_slices(b"cut", dtype, array, [(*piece, half) for piece in slices for half in ((0, 9), (9, row - 9))])
    with TemporaryDirectory() as folder:
        reader = bundle.write(Path(folder) / "ckpt")
        assert same(read_whole(reader, b"cut", array), array)
        for request, columns in itertools.product(requests, (ALL, (3, 40_000), (8, 2))):
            expected = array[crafted.as_index((*request, columns))]
            assert same(crafted.read_part(reader, b"cut", (*request, columns), expected), expected)


@pytest.mark.parametrize(
    "slices",
    [
        pytest.param([((0, 4), (0, 6))], id="one slice that is all"),
        pytest.param([(ALL, (0, 6))], id="one slice that is all, partly spelled out"),
        pytest.param([((0, 1), ALL), ((1, 3), (0, 6))], id="dashes and extents mixed"),
    ],
)
def test_slices_in_any_notation_are_the_same_tensor(prefix: Path, slices: list[Extents]) -> None:
    """C373"""
    write_grid(prefix, slices)
    reader = crafted.open_reader(prefix)
    for request in [(ALL, ALL), ((0, 4), (0, 6)), (ALL, (0, 6)), ((0, 4), ALL)]:
        assert same(crafted.read_part(reader, b"grid", request, GRID), GRID)
    assert same(read_whole(reader, b"grid", GRID), GRID)


def test_the_shard_number_of_a_sliced_tensor_means_nothing(prefix: Path) -> None:
    bundle = write_grid(prefix)
    bundle.entries[b"grid"] = crafted.entry(crafted.FLOAT, GRID.shape, 99, -1, -1, 5, QUARTERS)
    assert same(read_whole(bundle.write(prefix), b"grid", GRID), GRID)


# ------------------------------------------------------------------------------------------------- keys


def test_only_the_keys_of_listed_slices_are_hidden(prefix: Path) -> None:
    bundle = crafted.Bundle()
    name = b"\0w\xff\0"
    bundle.add_slices(name, crafted.FLOAT, GRID, QUARTERS)
    kept = [
        b"\0",
        b"\0\1",
        b"\xff",
        witness.slice_key(name, ((0, 1), (0, 1))),
        witness.slice_key(b"other", QUARTERS[0]),
        witness.slice_key(name, QUARTERS[0]) + b"\0",
        witness.slice_key(name, QUARTERS[0])[:-1],
    ]
    for key in kept:
        bundle.add(key, crafted.UINT8, (1,), b"k")
    reader = bundle.write(prefix)
    assert [found.key for found in reader.entries()] == sorted([name, *kept])
    assert same(read_whole(reader, name, GRID), GRID)
    for key in kept:
        found = reader.find(key)
        assert found is not None
        assert crafted.read_value(reader, found) == b"k"


@pytest.mark.parametrize("position", [63, 64, 8191, 8192, 1 << 20, 1 << 33])
def test_slices_far_out_have_the_keys_that_the_format_gives_them(prefix: Path, position: int) -> None:
    bundle = crafted.Bundle()
    extents = ((position, 2),)
    bundle.add(witness.slice_key(b"far", extents), crafted.UINT8, (2,), b"ab")
    bundle.entries[b"far"] = crafted.entry(crafted.UINT8, (position + 5,), slices=[extents])
    reader = bundle.write(prefix)
    like = np.empty(1, np.uint8)
    assert [found.key for found in reader.entries()] == [b"far"]
    assert crafted.read_part(reader, b"far", ((position + 1, 1),), like).tobytes() == b"b"


def test_ten_thousand_slices_are_listed_and_read_in_no_time(prefix: Path) -> None:
    array = np.arange(10_000, dtype=np.int32).reshape(100, 100)
    bundle = crafted.Bundle()
    bundle.add_slices(b"x", crafted.INT32, array, [((r, 1), (c, 1)) for r in range(100) for c in range(100)])
    reader = bundle.write(prefix)
    assert [len(found.slices) for found in reader.entries()] == [10_000]
    assert same(read_whole(reader, b"x", array), array)


def test_a_key_of_a_megabyte_with_many_slices_is_refused_before_it_is_multiplied(prefix: Path) -> None:
    """C390"""
    key = b"k" * (1 << 20)
    slices = [((i, 1),) for i in range(1000)]
    bundle = crafted.Bundle()
    bundle.entries[key] = crafted.entry(crafted.UINT8, (1000,), slices=slices)
    reader = bundle.write(prefix)
    assert [found.key for found in reader.entries()] == [key]
    with pytest.raises(UnsupportedFormatError, match="too long"):
        reader.check([key])


# ----------------------------------------------------------------------------------------- calls


@pytest.mark.parametrize(
    "extents",
    [
        ((0, 5), ALL),
        ((4, 1), ALL),
        ((-1, 1), ALL),
        ((1, -1), ALL),
        ((0, -2), ALL),
        (ALL, (0, 7)),
        (ALL,),
        (),
        (ALL, ALL, ALL),
        ((1, (1 << 63) - 1), ALL),
        (((1 << 63) - 1, 1), ALL),
    ],
)
@pytest.mark.parametrize("key", [b"grid", b"whole"])
def test_a_part_outside_of_the_tensor_is_refused(prefix: Path, key: bytes, extents: Extents) -> None:
    write_grid(prefix)
    memory = np.full(1 << 10, FILL, np.uint8)
    with pytest.raises(ValueError, match=key.decode()):
        crafted.open_reader(prefix).read_slice(key, extents, memory.ctypes.data, 24, verify=False)
    assert (memory == FILL).all()


@pytest.mark.parametrize("size", [0, 20, 28, 96])
@pytest.mark.parametrize("key", [b"grid", b"whole"])
def test_memory_that_does_not_fit_the_part_is_refused(prefix: Path, key: bytes, size: int) -> None:
    write_grid(prefix)
    memory = np.full(96, FILL, np.uint8)
    with pytest.raises(ValueError, match="24 bytes"):
        crafted.open_reader(prefix).read_slice(key, ((1, 1), ALL), memory.ctypes.data, size, verify=False)
    assert (memory == FILL).all()


def test_memory_of_a_sliced_tensor_must_have_the_size_of_the_whole(prefix: Path) -> None:
    write_grid(prefix)
    memory = np.full(96, FILL, np.uint8)
    for size in (0, 24, 92):
        with pytest.raises(ValueError, match="96 bytes"):
            crafted.open_reader(prefix).read([(b"grid", memory.ctypes.data, size)])
    assert (memory == FILL).all()


def test_parts_of_strings_and_numbers_are_not_mixed_up(prefix: Path) -> None:
    bundle = write_grid(prefix)
    words = np.array([b"a", b"bc"], object)
    bundle.add_slices(b"words", crafted.STRING, words, [((0, 1),), ((1, 1),)])
    reader = bundle.write(prefix)
    memory = np.full(96, FILL, np.uint8)
    with pytest.raises(ValueError, match="string"):
        reader.read_slice(b"words", ((0, 1),), memory.ctypes.data, 1, verify=False)
    with pytest.raises(ValueError, match="string"):
        reader.read([(b"words", memory.ctypes.data, 3)])
    with pytest.raises(ValueError, match="string"):
        reader.read_strings(b"grid", QUARTERS[0])
    assert (memory == FILL).all()


def test_sliced_and_whole_tensors_are_served_in_one_call(prefix: Path) -> None:
    write_grid(prefix)
    order = [b"whole", b"grid", b"whole", b"grid"]
    arrays = [np.empty_like(GRID) for _ in order]
    crafted.open_reader(prefix).read([(key, a.ctypes.data, a.nbytes) for key, a in zip(order, arrays, strict=True)])
    assert all(same(array, GRID) for array in arrays)


# --------------------------------------------------------------------------------------------- damage


def failures(reader: BundleReader, key: bytes, size: int) -> dict[str, Exception]:
    """What each call that needs the whole tensor raises; none may touch its memory."""
    memory = np.full(max(size, 1), FILL, np.uint8)
    caught: dict[str, Exception] = {}
    calls: dict[str, Any] = {
        "check": lambda: reader.check([key]),
        "verify": lambda: reader.verify([key]),
        "read": lambda: reader.read([(key, memory.ctypes.data, size)]),
        "read_slice": lambda: reader.read_slice(key, (ALL, ALL), memory.ctypes.data, size, verify=False),
    }
    for name, call in calls.items():
        with pytest.raises(Exception, match=key.decode()) as info:
            call()
        caught[name] = info.value
        assert (memory == FILL).all()
    return caught


def test_a_hole_is_an_error_for_those_who_need_it(prefix: Path) -> None:
    """C374"""
    write_grid(prefix, QUARTERS[:3])
    reader = crafted.open_reader(prefix)
    for error in failures(reader, b"grid", 96).values():
        assert isinstance(error, DataLossError)
        assert "sufficient slices" in str(error)
    expected = GRID[:, :3]
    assert same(crafted.read_part(reader, b"grid", (ALL, (0, 3)), expected), expected)
    with pytest.raises(DataLossError, match="sufficient slices"):
        crafted.read_part(reader, b"grid", ((3, 1), (2, 2)), GRID[:1, :2])


@pytest.mark.parametrize("extra", [((0, 1), (0, 1)), ((1, 2), (2, 2)), (ALL, ALL), ((3, 1), ALL)])
def test_overlapping_slices_are_refused(prefix: Path, extra: Extents) -> None:
    """C374"""
    write_grid(prefix, [*QUARTERS, extra])
    for error in failures(crafted.open_reader(prefix), b"grid", 96).values():
        assert isinstance(error, DataLossError)
        assert "Overlapping" in str(error)


def test_a_slice_listed_twice_is_refused(prefix: Path) -> None:
    write_grid(prefix, [*QUARTERS, QUARTERS[0]])
    for error in failures(crafted.open_reader(prefix), b"grid", 96).values():
        assert isinstance(error, DataLossError)


@pytest.mark.parametrize("outside", [((3, 2), ALL), (ALL, (6, 1)), (ALL,), (ALL, ALL, ALL), ()])
def test_a_slice_outside_of_its_tensor_is_refused(prefix: Path, outside: Extents) -> None:
    bundle = write_grid(prefix)
    bundle.entries[b"grid"] = crafted.entry(crafted.FLOAT, GRID.shape, slices=[*QUARTERS, outside])
    for error in failures(bundle.write(prefix), b"grid", 96).values():
        assert isinstance(error, DataLossError)


def test_a_missing_slice_entry_is_named(prefix: Path) -> None:
    bundle = write_grid(prefix)
    del bundle.entries[witness.slice_key(b"grid", QUARTERS[1])]
    reader = bundle.write(prefix)
    for error in failures(reader, b"grid", 96).values():
        assert isinstance(error, TensorNotFoundError)
        assert "grid (slice 0,2:3,3)" in str(error)
    assert same(crafted.read_part(reader, b"grid", ((2, 2), ALL), GRID[2:]), GRID[2:])


CONTRADICTORY_SLICES = {
    "another dtype": crafted.entry(crafted.INT32, (2, 3), size=24),
    "another shape": crafted.entry(crafted.FLOAT, (3, 2), size=24),
    "another rank": crafted.entry(crafted.FLOAT, (6,), size=24),
    "another size": crafted.entry(crafted.FLOAT, (2, 3), size=23),
    "past the end": crafted.entry(crafted.FLOAT, (2, 3), offset=1 << 40, size=24),
    "slices of its own": crafted.entry(crafted.FLOAT, (2, 3), slices=[(ALL, ALL)]),
    "no such shard": crafted.entry(crafted.FLOAT, (2, 3), shard_id=7, size=24),
    "negative size": crafted.entry(crafted.FLOAT, (2, 3), size=-24),
    "unknown dtype": crafted.entry(77, (2, 3), size=24),
}


@pytest.mark.parametrize("record", CONTRADICTORY_SLICES.values(), ids=list(CONTRADICTORY_SLICES))
def test_a_slice_that_contradicts_its_tensor_is_refused_before_memory_is_touched(prefix: Path, record: bytes) -> None:
    """C390"""
    bundle = write_grid(prefix)
    bundle.entries[witness.slice_key(b"grid", QUARTERS[3])] = record
    reader = bundle.write(prefix)
    for error in failures(reader, b"grid", 96).values():
        assert isinstance(error, DataLossError)
    assert same(read_whole(reader, b"whole", GRID), GRID)


def test_a_damaged_slice_is_named_and_the_memory_counts_as_touched(prefix: Path) -> None:
    """C382"""
    write_grid(prefix)
    crafted.flip(Path(f"{prefix}.data-00000-of-00001"), 24 + 5)
    reader = crafted.open_reader(prefix)
    arrays = [np.empty_like(GRID), np.empty_like(GRID)]
    with pytest.raises(DataLossError, match=r"Checksum does not match.*grid \(slice 0,2:3,3\)") as caught:
        reader.read([(key, a.ctypes.data, a.nbytes) for key, a in zip((b"whole", b"grid"), arrays, strict=True)])
    assert getattr(caught.value, "touched", None) == [0, 1]
    with pytest.raises(DataLossError, match="Checksum does not match"):
        reader.verify([b"grid"])
    reader.check([b"grid"])


@pytest.mark.parametrize("key", [b"grid", b"whole"])
def test_a_verified_part_is_checked_before_its_memory_is_touched(prefix: Path, key: bytes) -> None:
    """C382"""
    bundle = write_grid(prefix)
    at = 24 * 3 if key == b"grid" else 96
    crafted.flip(Path(f"{prefix}.data-00000-of-00001"), at + 23)
    reader = crafted.open_reader(prefix)
    memory = np.full(8, FILL, np.uint8)
    with pytest.raises(DataLossError, match="Checksum does not match"):
        reader.read_slice(key, ((2, 1), (3, 2)), memory.ctypes.data, 8, verify=True)
    assert (memory == FILL).all()
    sound = ((0, 2), (0, 2))
    if key == b"grid":
        assert same(crafted.read_part(reader, key, sound, GRID[:2, :2], verify=True), GRID[:2, :2])
    assert len(bundle.entries) == 6


def test_an_unverified_part_is_checked_where_a_stored_value_is_needed_whole(prefix: Path) -> None:
    write_grid(prefix)
    crafted.flip(Path(f"{prefix}.data-00000-of-00001"), 20)
    reader = crafted.open_reader(prefix)
    assert same(crafted.read_part(reader, b"grid", ((0, 1), (0, 2)), GRID[:1, :2]), GRID[:1, :2])
    for needs_all in [QUARTERS[0], ((0, 2), (0, 4)), ((0, 3), ALL)]:
        with pytest.raises(DataLossError, match="Checksum does not match"):
            crafted.read_part(reader, b"grid", needs_all, GRID[crafted.as_index(needs_all)])


def test_a_part_needs_neither_the_shards_nor_the_entries_of_other_slices(prefix: Path) -> None:
    """C385"""
    bundle = crafted.Bundle()
    bundle.add_slices(b"grid", crafted.FLOAT, GRID, QUARTERS, range(4))
    del bundle.entries[witness.slice_key(b"grid", QUARTERS[2])]
    bundle.entries[witness.slice_key(b"grid", QUARTERS[3])] = CONTRADICTORY_SLICES["another dtype"]
    reader = bundle.write(prefix)
    Path(f"{prefix}.data-00001-of-00004").unlink()
    assert same(crafted.read_part(reader, b"grid", ((0, 2), (0, 3)), GRID[:2, :3], verify=True), GRID[:2, :3])
    with pytest.raises(CheckpointNotFoundError, match="data-00001-of-00004"):
        crafted.read_part(reader, b"grid", ((0, 1), ALL), GRID[:1])


# --------------------------------------------------------------------------------------- large claims


def test_slices_that_share_their_bytes_make_no_large_tensor_of_a_small_file(prefix: Path) -> None:
    """C390"""
    slices: list[Extents] = [((i, 1), ALL) for i in range(100)]
    bundle = crafted.Bundle()
    bundle.add(b"row", crafted.UINT8, (1, 1000), bytes(1000))
    for extents in slices:
        bundle.entries[witness.slice_key(b"rows", extents)] = bundle.entries[b"row"]
    bundle.entries[b"rows"] = crafted.entry(crafted.UINT8, (100, 1000), slices=slices)
    reader = bundle.write(prefix)
    for error in failures(reader, b"rows", 100_000).values():
        assert isinstance(error, DataLossError)
        assert "larger than the files" in str(error)
    like = np.empty((1, 1000), np.uint8)
    assert crafted.read_part(reader, b"rows", ((7, 1), ALL), like).tobytes() == bytes(1000)


@pytest.mark.parametrize("shape", [(1 << 61, 6), (1 << 62, 2), ((1 << 62) + 1, 1)])
def test_a_tensor_of_more_bytes_than_can_be_counted_is_refused(prefix: Path, shape: tuple[int, int]) -> None:
    """C390"""
    bundle = write_grid(prefix)
    bundle.entries[b"grid"] = crafted.entry(crafted.FLOAT, shape, slices=QUARTERS)
    for error in failures(bundle.write(prefix), b"grid", 64).values():
        assert isinstance(error, DataLossError)


def test_more_slices_than_the_index_can_have_entries_for_are_refused(prefix: Path) -> None:
    """C390: Snappy lets a short file list very many, each of which would take memory."""
    parts: list[Extents] = [((0, 1),), ((1, 1),)] * 20_000
    records = [(b"", crafted.header()), (b"x", crafted.entry(crafted.UINT8, (2,), slices=parts))]
    Path(f"{prefix}.index").write_bytes(crafted.table(records, 1 << 30, 16, snappy.compress))
    assert os.path.getsize(f"{prefix}.index") < 40_000
    with pytest.raises(DataLossError, match="unable to parse the entry of key x"):
        crafted.open_reader(prefix).find(b"x")


def test_a_tensor_in_slices_is_listed_once_beside_others_however_it_is_asked_for(prefix: Path) -> None:
    bundle = crafted.Bundle()
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    bundle.add_array(b"a", crafted.FLOAT, array)
    bundle.add_slices(b"m", crafted.FLOAT, array, [((0, 3), (0, 2)), ((0, 3), (2, 2))])
    bundle.add_array(b"z", crafted.FLOAT, array[:1])
    reader = bundle.write(prefix)
    assert reader.keys() == ["a", "m", "z"]
    assert reader.num_keys() == 3
    assert reader.shapes() == {"a": [3, 4], "m": [3, 4], "z": [1, 4]}
    assert [key for key, *_ in reader.tensors()] == ["a", "m", "z"]
