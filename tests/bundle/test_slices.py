"""Parts of tensors: texts of the format, Python's indices, and how parts are written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trackckpt import CheckpointReader, _native
from torch_trackckpt.bundle.slices import Index, TensorSlice, resolve_index
from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.errors import DuplicateKeyError, WriterClosedError

ALL = (0, -1)


# ------------------------------------------------------------------------------------------------ texts


@pytest.mark.parametrize(
    ("text", "full_shape", "offset", "shape"),
    [
        ("", (), (), ()),
        ("4 -", (4,), (0,), (4,)),
        ("4 0,4", (4,), (0,), (4,)),
        ("4 6 0,2:-", (4, 6), (0, 0), (2, 6)),
        ("4 6 3,1:5,1", (4, 6), (3, 5), (1, 1)),
        ("0 -", (0,), (0,), (0,)),
        ("2 0 1,1:-", (2, 0), (1, 0), (1, 0)),
        ("5000000000 4999999999,1", (5000000000,), (4999999999,), (1,)),
    ],
)
def test_a_text_is_read_and_given_back(
    text: str, full_shape: tuple[int, ...], offset: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    part = TensorSlice.parse(text)
    assert (part.full_shape, part.offset, part.shape) == (full_shape, offset, shape)
    assert part.num_elements == math.prod(shape)
    assert str(part) == text


@pytest.mark.parametrize(
    "text",
    [
        *["4", "4 ", " ", " 0,4", "4  0,4", "4 0,4 ", " 4 0,4", "-", "0,4", "four -", "-4 -", "+4 -", "4.0 -", "4\t-"],
        *["4 0,5", "4 4,1", "4 0,0", "4 -1,2", "4 1,-1", "4 0,-1", "4 0", "4 0,", "4 ,4", "4 0,4,1", "4 0:4", "4 --"],
        *["4 0, 4", "4 0,4\n", "4\n-", "4 -:-", "4 6 -", "4 6 -:", "4 6 :-", "4 6 -:-:-", "4 6 -,-", "0 0,0", "0 0,1"],
        *[
            "4 1_0,1",
            "4 0x0,4",
            "\u0664 -",
            "4 \u0660,\u0664",
            "4 0,4\x00",
            "4 99999999999999999999,1",
            "4 0,99999999999999999999",
        ],
    ],
)
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"slice|dimension"):
        TensorSlice.parse(text)


@pytest.mark.parametrize("extents", [((0, 5),), ((3, 2),), ((-1, 2),), ((0, 0),), ((1, -1),), (), (ALL, ALL)], ids=str)
def test_a_box_that_is_not_inside_the_tensor_is_refused(extents: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="dimension"):
        TensorSlice((4,), extents)


SHAPES = st.lists(st.integers(1, 6), max_size=4).map(tuple)


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...]) -> TensorSlice:
    """A part of a tensor of the shape; all of a dimension is written in both ways."""
    extents = []
    for size in shape:
        start = draw(st.integers(0, size - 1))
        extents.append(draw(st.just(ALL) | st.tuples(st.just(start), st.integers(1, size - start))))
    return TensorSlice(shape, tuple(extents))


def place_of(part: TensorSlice) -> tuple[slice, ...]:
    return tuple(slice(start, start + length) for start, length in zip(part.offset, part.shape, strict=True))


def numbered(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.arange(math.prod(shape)).reshape(shape)


@given(data=st.data(), shape=SHAPES)
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_boxes_are_what_numpy_takes_for_them(data: st.DataObject, shape: tuple[int, ...]) -> None:
    first, second = data.draw(boxes(shape)), data.draw(boxes(shape))
    array = numbered(shape)
    assert TensorSlice.parse(str(first)) == first
    assert array[place_of(first)].shape == first.shape
    assert first.num_elements == array[place_of(first)].size
    assert first.is_whole is (array[place_of(first)].size == array.size)
    common = set(array[place_of(first)].ravel().tolist()) & set(array[place_of(second)].ravel().tolist())
    assert first.overlaps(second) is second.overlaps(first) is bool(common)
    inner = data.draw(boxes(first.shape))
    nested = inner.within(first)
    assert nested.full_shape == shape
    assert np.array_equal(array[place_of(nested)], array[place_of(first)][place_of(inner)])


def test_the_whole_of_a_tensor_is_all_of_each_dimension() -> None:
    assert str(TensorSlice.whole((4, 0))) == "4 0 -:-"
    assert TensorSlice.whole((4, 0)).is_whole
    assert str(TensorSlice.whole(())) == ""
    assert str(TensorSlice.box((4, 6), (1, 2), (3, 4))) == "4 6 1,3:2,4"


# ----------------------------------------------------------------------------------------------- indices

POSITIONS = st.integers(-9, 9) | st.none()
SLICES = st.builds(slice, POSITIONS, POSITIONS, st.sampled_from([None, 1]))
ITEMS = st.integers(-7, 7) | SLICES | st.just(...)
INDICES = ITEMS | st.lists(ITEMS, max_size=5).map(tuple)


@given(shape=st.lists(st.integers(0, 6), max_size=4).map(tuple), index=INDICES)
@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
def test_an_index_picks_what_it_picks_of_a_numpy_array(shape: tuple[int, ...], index: Any) -> None:
    array = numbered(shape)
    try:
        expected = array[index]
    except IndexError:
        with pytest.raises(IndexError):
            resolve_index(shape, index)
        return
    extents, result_shape = resolve_index(shape, index)
    assert result_shape == expected.shape
    assert all(
        start >= 0 and length >= 0 and start + length <= n for (start, length), n in zip(extents, shape, strict=True)
    )
    place = tuple(slice(start, start + length) for start, length in extents)
    assert np.array_equal(array[place].reshape(result_shape), expected)


@pytest.mark.parametrize("number", [np.int64(1), np.uint8(1), torch.tensor(1), np.array(1)], ids=repr)
def test_numbers_of_other_libraries_are_indices(number: Any) -> None:
    assert resolve_index((3, 2), number) == (((1, 1), (0, 2)), (2,))
    assert resolve_index((3, 2), slice(number, None)) == (((1, 2), (0, 2)), (2, 2))


@pytest.mark.parametrize(
    "index", [slice(None, None, 2), slice(None, None, -1), (0, slice(3, 0, -1)), slice(0, 1, 0)], ids=str
)
def test_steps_are_refused(index: Index) -> None:
    with pytest.raises(ValueError, match="step"):
        resolve_index((4, 4), index)


@pytest.mark.parametrize(
    "index",
    [
        None,
        (None, 0),
        1.0,
        [0, 1],
        (0, [1]),
        np.array([0, 1]),
        torch.tensor([0, 1]),
        b"0,1",
        slice(0.0, 1.0),
        slice("a"),
    ],
    ids=repr,
)
def test_what_picks_no_box_is_refused(index: Any) -> None:
    with pytest.raises(TypeError):
        resolve_index((4, 4), index)


@pytest.mark.parametrize("index", [True, False, (0, True), np.True_], ids=repr)
def test_a_truth_value_is_a_mask_to_numpy_and_no_number(index: Any) -> None:
    with pytest.raises(TypeError):
        resolve_index((4, 4), index)


@pytest.mark.parametrize("index", [4, -5, (0, 0, 0), (..., 0, ...), (0, 6), (slice(None),) * 3], ids=str)
def test_an_index_outside_of_the_tensor_is_refused(index: Index) -> None:
    with pytest.raises(IndexError, match=r"range|dimensions"):
        resolve_index((4, 6), index)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ("0,2:-", (((0, 2), ALL), (2, 6))),
        ("-:-", ((ALL, ALL), (4, 6))),
        ("4 6 3,1:0,6", (((3, 1), (0, 6)), (1, 6))),
        (TensorSlice.parse("4 6 3,1:-"), (((3, 1), ALL), (1, 6))),
    ],
    ids=str,
)
def test_a_text_picks_what_it_stands_for_and_keeps_every_dimension(index: Any, expected: Any) -> None:
    assert resolve_index((4, 6), index) == expected


def test_the_empty_text_is_all_of_a_scalar_alone() -> None:
    assert resolve_index((), "") == ((), ())
    with pytest.raises(ValueError, match="dimensions"):
        resolve_index((4,), "")


@pytest.mark.parametrize("index", ["4 7 -:-", "6 4 -:-", "4 -", TensorSlice.whole((6, 4))], ids=str)
def test_a_text_of_another_tensor_is_refused(index: Any) -> None:
    """C375: the stored shape and that of the text differ."""
    with pytest.raises(ValueError, match="does not match the stored shape"):
        resolve_index((4, 6), index)


@pytest.mark.parametrize("index", ["0,5:-", "-", "-:-:-", "0,2", "first", "0:2"])
def test_a_text_without_shape_that_does_not_fit_is_refused(index: str) -> None:
    """C375"""
    with pytest.raises(ValueError, match=r"slice|dimension"):
        resolve_index((4, 6), index)


# ------------------------------------------------------------------------------------------- writing parts


@pytest.fixture
def paths(tmp_path: Path) -> tuple[str, str]:
    return str(tmp_path / "ckpt.data-00000-of-00001"), str(tmp_path / "ckpt.index")


@given(data=st.data(), shape=SHAPES)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_parts_of_tensors_and_strings_are_written_and_read_again(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, shape: tuple[int, ...]
) -> None:
    """C371"""
    part = data.draw(boxes(shape))
    tensor = torch.from_numpy(numbered(shape))
    strings = np.empty(shape, dtype=object)
    strings[...] = b"word"
    prefix = str(tmp_path_factory.mktemp("slices") / "ckpt")
    with BundleWriter(prefix + ".data-00000-of-00001", prefix + ".index", durable=False) as writer:
        writer.add_slice("x", tensor[place_of(part)], part)
        writer.add_strings("s", strings[place_of(part)], part)
    reader = CheckpointReader(prefix)
    assert reader.stored_slices("x") == reader.stored_slices("s") == ([] if part.is_whole else [part])
    assert torch.equal(reader.get_tensor("x", part), tensor[place_of(part)])  # type: ignore[arg-type]
    assert np.array_equal(reader.get_tensor("s", part), strings[place_of(part)])  # type: ignore[arg-type]


def test_a_value_that_has_not_the_shape_of_the_part_is_refused(paths: tuple[str, str]) -> None:
    part = TensorSlice.parse("4 6 0,2:-")
    with BundleWriter(*paths, durable=False) as writer:
        for tensor in (torch.zeros(4, 6), torch.zeros(6, 2), torch.zeros(12), torch.tensor(0.0)):
            with pytest.raises(ValueError, match=r"is not the part '4 6 0,2:-', whose shape is \[2, 6\]"):
                writer.add_slice("x", tensor, part)
        with pytest.raises(ValueError, match="is not the part"):
            writer.add_strings("s", np.array([b"a"], dtype=object), part)
        writer.add_slice("x", torch.ones(2, 6), part)
    assert CheckpointReader(paths[1]).stored_slices("x") == [part]


@pytest.mark.parametrize("second", ["4 0,2", "4 -"])
def test_a_part_that_is_there_already_spoils_the_writer(paths: tuple[str, str], second: str) -> None:
    """C363: finishing fails as well, and no file is left."""
    part = TensorSlice.parse(second)
    writer = BundleWriter(*paths, durable=False)
    writer.add_slice("x", torch.zeros(2), TensorSlice.parse("4 0,2"))
    writer.add_slice("x", torch.zeros(part.shape), part)
    with pytest.raises(DuplicateKeyError, match="duplicate key"):
        writer.finish()
    with pytest.raises(WriterClosedError):
        writer.finish()


def test_finishing_twice_is_refused(paths: tuple[str, str]) -> None:
    """C364"""
    writer = BundleWriter(*paths, durable=False)
    writer.add("x", torch.zeros(2))
    writer.finish()
    with pytest.raises(WriterClosedError):
        writer.finish()
    assert CheckpointReader(paths[1]).get_tensor("x").tolist() == [0, 0]


@pytest.mark.parametrize("alignment", [1, 2, 64, 4096])
def test_parts_and_strings_are_aligned_too(paths: tuple[str, str], alignment: int) -> None:
    """C365"""
    with BundleWriter(*paths, durable=False, alignment=alignment) as writer:
        writer.add("a", torch.zeros(3, dtype=torch.uint8))
        writer.add_strings("b", b"text")
        writer.add_slice("c", torch.ones(1, dtype=torch.uint8), TensorSlice.parse("4 0,1"))
        writer.add_slice("c", torch.ones(3, dtype=torch.uint8), TensorSlice.parse("4 1,3"))
        writer.add_strings("d", np.array([b"x"], dtype=object), TensorSlice.parse("2 1,1"))
        writer.add("e", torch.zeros((), dtype=torch.float64))
    reader = _native.BundleReader(paths[1], paths[1].removesuffix(".index"))
    assert [entry.offset % alignment for entry in reader.entries()] == [0] * 5
    assert CheckpointReader(paths[1]).get_tensor("c").tolist() == [1] * 4
    assert Path(paths[0]).stat().st_size >= 5 * alignment
