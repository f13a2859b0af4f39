"""Slices and merged bundles have the bytes that TensorFlow gives them, and are refused where it refuses them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_dtypes import DTYPES
from witness import Extents

from torch_trackckpt import _native
from torch_trackckpt.bundle.dtypes import STRING, data_type_of_torch
from torch_trackckpt.errors import CheckpointNotFoundError, DuplicateKeyError

from .conftest import TensorFlow, Value, WorkerError

ALL = (0, -1)
NUMBERS = {str(dtype).removeprefix("torch."): data_type_of_torch(dtype).number for dtype in DTYPES}
NUMBERS["string"] = STRING.number


class Slice(NamedTuple):
    """A part of a tensor, and where it belongs; a tensor without extents is whole."""

    key: str
    shape: tuple[int, ...]
    extents: Extents | None
    value: Value

    def text(self) -> str:
        if self.extents is None:
            return ""
        parts = ("-" if extent == ALL else "{},{}".format(*extent) for extent in self.extents)
        return " ".join([*map(str, self.shape), ":".join(parts)])


def ints(key: str, elements: Sequence[int], shape: tuple[int, ...] = (), extents: Extents | None = None) -> Slice:
    return Slice(key, shape, extents, Value("int32", (len(elements),), np.array(elements, np.int32).tobytes()))


def data_name(prefix: Path, number: int, count: int) -> Path:
    return Path(f"{prefix}.data-{number:05d}-of-{count:05d}")


def save_ours(prefix: Path, slices: Sequence[Slice]) -> None:
    writer = _native.BundleWriter([str(data_name(prefix, 0, 1))], f"{prefix}.index", durable=False)
    for key, shape, extents, (dtype, own_shape, data) in slices:
        name, number = key.encode(), NUMBERS[dtype]
        if isinstance(data, list):
            if extents is None:
                writer.add_strings(0, name, own_shape, data)
            else:
                writer.add_strings_slice(0, name, shape, extents, data)
            continue
        memory = np.frombuffer(data, np.uint8)
        if extents is None:
            writer.add(0, [(name, number, own_shape, memory.ctypes.data, memory.nbytes)])
        else:
            writer.add_slice(0, name, number, shape, extents, memory.ctypes.data, memory.nbytes)
    writer.finish()


def merge_ours(prefixes: Sequence[Path], destination: Path) -> None:
    """Merges as TensorFlow does: the data files are renamed, the old indexes removed."""
    indexes = [f"{prefix}.index" for prefix in prefixes]
    files = _native.merge_indexes(indexes, f"{destination}.index", durable=False)
    for number, (source, old_number, old_count) in enumerate(files):
        data_name(prefixes[source], old_number, old_count).rename(data_name(destination, number, len(files)))
    for index in indexes:
        Path(index).unlink()


def save_theirs(tensorflow: TensorFlow, prefix: Path, slices: Sequence[Slice]) -> None:
    tensorflow.save_tensors(prefix, [(s.key, s.value) for s in slices], [s.text() for s in slices])


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_merged_alike(tensorflow: TensorFlow, folder: Path, bundles: Sequence[Sequence[Slice]]) -> None:
    ours, theirs = folder / "ours", folder / "theirs"
    ours.mkdir()
    for number, slices in enumerate(bundles):
        save_ours(ours / f"part-{number}", slices)
        save_theirs(tensorflow, theirs / f"part-{number}", slices)
    assert files_below(ours) == files_below(theirs)
    names = [f"part-{number}" for number in range(len(bundles))]
    merge_ours([ours / name for name in names], ours / "ckpt")
    tensorflow.merge_bundles([theirs / name for name in names], theirs / "merged" / "ckpt")
    merged = files_below(theirs / "merged")
    assert files_below(ours) == merged
    assert len(merged) == 1 + len(bundles)


# ------------------------------------------------------------------------------------------ the same bytes


def test_data_files_are_numbered_by_bundle_though_a_later_one_has_the_first_key(
    tensorflow: TensorFlow, tmp_path: Path
) -> None:
    """C361, C366"""
    assert_merged_alike(tensorflow, tmp_path, [[ints("m", [1]), ints("z", [2])], [ints("a", [3, 4])], [ints("n", [5])]])


def test_merging_one_bundle_renames_its_files(tensorflow: TensorFlow, tmp_path: Path) -> None:
    """C366"""
    assert_merged_alike(tensorflow, tmp_path, [[ints("b", [1]), ints("a", [2])]])


def test_the_data_files_of_a_merged_bundle_are_numbered_anew_by_key(tensorflow: TensorFlow, tmp_path: Path) -> None:
    """C361"""
    parts = [[ints("m", [1]), ints("w", [2], (3,), ((1, 1),))], [ints("a", [3])], [ints("n", [4]), ints("b", [5])]]
    others = [[ints("w", [6], (3,), ((0, 1),))], [ints("w", [7], (3,), ((2, 1),)), ints("c", [8])]]
    for owner in ("ours", "theirs"):
        for name, bundles in (("x", parts), ("y", others)):
            for number, slices in enumerate(bundles):
                save_theirs(tensorflow, tmp_path / owner / f"{name}-{number}", slices)
            prefixes = [tmp_path / owner / f"{name}-{number}" for number in range(len(bundles))]
            tensorflow.merge_bundles(prefixes, tmp_path / owner / name)
    for first, second in ("xy", "yx"):
        for owner in ("ours", "theirs"):
            source, copy = tmp_path / owner, tmp_path / owner / first
            copy.mkdir()
            for path in source.glob("*.*"):
                (copy / path.name).write_bytes(path.read_bytes())
        ours, theirs = tmp_path / "ours" / first, tmp_path / "theirs" / first
        merge_ours([ours / first, ours / second], ours / "ckpt")
        tensorflow.merge_bundles([theirs / first, theirs / second], theirs / "ckpt")
        assert files_below(ours) == files_below(theirs)
        assert len(files_below(ours)) == 6


@st.composite
def values(draw: st.DrawFn, dtype: str, shape: tuple[int, ...]) -> Value:
    count = int(np.prod(shape))
    if dtype == "string":
        return Value(dtype, shape, draw(st.lists(st.binary(max_size=200), min_size=count, max_size=count)))
    size = count * getattr(torch, dtype).itemsize
    seed = draw(st.integers(0, 1 << 32))
    data = np.random.default_rng(seed).bytes(size)
    return Value(dtype, shape, bytes(byte & 1 for byte in data) if dtype == "bool" else data)


@st.composite
def tensors(draw: st.DrawFn, key: str) -> list[Slice]:
    """A tensor, whole or in some of the boxes of a grid over it, in several notations."""
    dtype = draw(st.sampled_from(sorted(NUMBERS)))
    if draw(st.booleans()):
        shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
        return [Slice(key, shape, None, draw(values(dtype, shape)))]
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 5, 70, 9000]), min_size=1, max_size=3)))
    axes = []
    for n in shape:
        cuts = sorted({0, 1, n} | set(draw(st.lists(st.integers(0, n), max_size=2))))
        extents = [(a, b - a) for a, b in itertools.pairwise(cuts) if b - a < 100]
        axes.append([ALL if extent == (0, n) and draw(st.booleans()) else extent for extent in extents])
    boxes = draw(st.lists(st.sampled_from(list(itertools.product(*axes))), min_size=1, max_size=6, unique=True))
    own_shapes = [tuple(n if e == ALL else e[1] for e, n in zip(box, shape, strict=True)) for box in boxes]
    return [Slice(key, shape, box, draw(values(dtype, own))) for box, own in zip(boxes, own_shapes, strict=True)]


@st.composite
def shards(draw: st.DrawFn) -> list[list[Slice]]:
    """The slices of some tensors, in any order, spread over bundles of which none is empty."""
    keys = draw(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=6, unique=True))
    slices = draw(st.permutations([part for key in keys for part in draw(tensors(key))]))
    cuts = sorted(set(draw(st.lists(st.integers(1, max(1, len(slices) - 1)), max_size=4))) - {len(slices)})
    return [slices[a:b] for a, b in itertools.pairwise([0, *cuts, len(slices)])]


@given(bundles=shards())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_any_slices_in_any_bundles_are_written_and_merged_as_tensorflow_does(
    tensorflow: TensorFlow, bundles: list[list[Slice]]
) -> None:
    """C361, C366"""
    with TemporaryDirectory() as folder:
        assert_merged_alike(tensorflow, Path(folder), bundles)


def test_thousands_of_keys_are_merged_as_tensorflow_merges_them(tensorflow: TensorFlow, tmp_path: Path) -> None:
    """C361, C379"""
    keys = [f"model/layer_{number * 7919 % 12_000:06d}/{'weight' * (number % 30)}" for number in range(12_000)]
    assert_merged_alike(tensorflow, tmp_path, [[ints(key, [n]) for key in keys[n::3]] for n in range(3)])


def test_tensorflow_reads_slices_that_we_wrote_and_aligned(tensorflow: TensorFlow, prefix: Path) -> None:
    """C365, C371, C395"""
    tensor = np.arange(50, dtype=np.float32).reshape(5, 10)
    writer = _native.BundleWriter([str(data_name(prefix, 0, 1))], f"{prefix}.index", durable=False, alignment=64)
    for extents, part in ((ALL, (0, 1)), tensor[:, :1]), ((ALL, (1, 9)), tensor[:, 1:]):
        memory = np.ascontiguousarray(part)
        writer.add_slice(0, b"w", NUMBERS["float32"], (5, 10), extents, memory.ctypes.data, memory.nbytes)
    writer.finish()
    assert data_name(prefix, 0, 1).stat().st_size == 64 + 192
    assert tensorflow.read_one(prefix, "w") == Value("float32", (5, 10), tensor.tobytes())


# ------------------------------------------------------------------------------------------ the same refusals


@pytest.mark.parametrize("extents", ["0,5", "3,2", "4,1", "0,0", "-1,2", "1,-1", "-:-", "0,2:0,1"])
def test_extents_that_tensorflow_refuses_are_refused(tensorflow: TensorFlow, tmp_path: Path, extents: str) -> None:
    """C375"""
    pairs = [ALL if part == "-" else tuple(map(int, part.split(","))) for part in extents.split(":")]
    with pytest.raises(WorkerError, match=r"InvalidArgument|OutOfRange|Internal"):
        tensorflow.save_tensors(tmp_path / "theirs", [("w", ints("w", [1, 2]).value)], [f"4 {extents}"])
    with pytest.raises(ValueError, match="extents"):
        save_ours(tmp_path / "ours", [ints("w", [1, 2], (4,), tuple(pairs))])


@pytest.mark.parametrize(
    "slices",
    [
        pytest.param([ints("w", [1]), ints("w", [2])], id="tensor twice"),
        pytest.param([ints("w", [1], (3,), ((1, 1),)), ints("w", [2], (3,), ((1, 1),))], id="slice twice"),
        pytest.param([ints("w", [1], (3,), ((1, 1),)), ints("w", [2])], id="tensor after slice"),
    ],
)
def test_duplicates_that_tensorflow_refuses_are_refused(
    tensorflow: TensorFlow, tmp_path: Path, slices: list[Slice]
) -> None:
    """C363"""
    with pytest.raises(WorkerError, match="duplicate key"):
        save_theirs(tensorflow, tmp_path / "theirs", slices)
    with pytest.raises(DuplicateKeyError, match="duplicate key"):
        save_ours(tmp_path / "ours", slices)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(ints("w", [1]), ints("w", [2]), id="tensors"),
        pytest.param(ints("w", [1], (3,), ((1, 1),)), ints("w", [2], (3,), ((1, 1),)), id="one slice"),
        pytest.param(ints("w", [1], (3,), ((1, 1),)), ints("w", [2, 3, 4]), id="tensor after slice"),
        pytest.param(ints("w", [1, 2, 3]), ints("w", [2], (3,), ((1, 1),)), id="slice after tensor"),
    ],
)
def test_keys_of_two_bundles_that_tensorflow_refuses_are_refused(
    tensorflow: TensorFlow, tmp_path: Path, first: Slice, second: Slice
) -> None:
    """C367"""
    prefixes = [tmp_path / "1", tmp_path / "2"]
    save_ours(prefixes[0], [first])
    save_ours(prefixes[1], [ints("a", [0]), second])
    before = files_below(tmp_path)
    with pytest.raises(WorkerError, match="Duplicate tensor keyed by"):
        tensorflow.merge_bundles(prefixes, tmp_path / "merged")
    with pytest.raises(DuplicateKeyError, match="Duplicate tensor keyed by"):
        merge_ours(prefixes, tmp_path / "merged")
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(Slice("w", (3,), ((0, 1),), Value("int8", (1,), b"1")), id="dtype"),
        pytest.param(ints("w", [2], (4,), ((0, 1),)), id="shape"),
    ],
)
def test_slices_that_are_not_of_one_tensor_end_tensorflow_and_are_refused(
    tensorflow: TensorFlow, tmp_path: Path, other: Slice
) -> None:
    prefixes = [tmp_path / "1", tmp_path / "2"]
    save_ours(prefixes[0], [ints("w", [1], (3,), ((1, 1),))])
    save_ours(prefixes[1], [other])
    with pytest.raises(WorkerError, match="ended the worker"):
        tensorflow.merge_bundles(prefixes, tmp_path / "merged")
    with pytest.raises(ValueError, match="dtype or shape"):
        merge_ours(prefixes, tmp_path / "merged")


def test_a_missing_index_is_refused(tensorflow: TensorFlow, tmp_path: Path) -> None:
    prefixes = [tmp_path / "1", tmp_path / "2"]
    save_ours(prefixes[0], [ints("a", [1])])
    with pytest.raises(WorkerError, match="InvalidArgument"):
        tensorflow.merge_bundles(prefixes, tmp_path / "merged")
    with pytest.raises(CheckpointNotFoundError):
        merge_ours(prefixes, tmp_path / "merged")
