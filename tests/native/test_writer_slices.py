"""The writer: tensors that are stored in slices."""

import itertools
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import witness
from hypothesis import given, settings
from hypothesis import strategies as st
from native import crafted

from torch_trackckpt import _native
from torch_trackckpt.errors import DuplicateKeyError, WriterClosedError

ALL = (0, -1)


def test_slices_are_stored_in_the_order_of_the_calls_and_listed_by_their_tensor(prefix: Path) -> None:
    """C361"""
    writer = crafted.open_writer(prefix)
    crafted.add_slice(writer, b"w", crafted.UINT8, (4, 2), ((2, 2), ALL), b"efgh")
    crafted.add(writer, b"other", crafted.UINT8, (1,), b"!")
    crafted.add_slice(writer, b"w", crafted.UINT8, (4, 2), ((0, 2), ALL), b"abcd")
    writer.finish()
    assert crafted.data_file(prefix).read_bytes() == b"efgh!abcd"
    written = witness.read_entries(prefix)
    whole = written["w"]
    assert (whole.dtype, whole.shape, whole.slices) == (crafted.UINT8, (4, 2), (((2, 2), ALL), ((0, 2), ALL)))
    assert (whole.shard_id, whole.offset, whole.size, whole.crc32c) == (0, 0, 0, 0)
    parts = [written[witness.slice_key(b"w", extents).decode("utf-8", "surrogateescape")] for extents in whole.slices]
    assert [(part.shape, part.data, part.offset) for part in parts] == [((2, 2), b"efgh", 0), ((2, 2), b"abcd", 5)]
    assert len(written) == 4


def test_the_example_of_a_slice_key_has_its_known_bytes(prefix: Path) -> None:
    """C361"""
    writer = crafted.open_writer(prefix)
    crafted.add_slice(writer, b"w", crafted.UINT8, (4,), ((0, 2),), b"ab")
    writer.finish()
    assert [key for key, _ in witness.table_items(crafted.index_file(prefix))] == [
        b"",
        bytes.fromhex("0077 0001 0101 8082"),
        b"w",
    ]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("notation", ["all", "explicit", "mixed"])
def test_a_slice_that_is_the_whole_tensor_is_stored_as_the_tensor(
    prefix: Path, shape: tuple[int, ...], notation: str
) -> None:
    """C361, C373"""
    value = bytes(range(int(np.prod(shape))))
    explicit = {"all": 0, "explicit": len(shape), "mixed": len(shape) // 2}[notation]
    extents = tuple((0, n) if n and d < explicit else ALL for d, n in enumerate(shape))
    writer = crafted.open_writer(prefix)
    crafted.add_slice(writer, b"t", crafted.UINT8, shape, extents, value)
    crafted.add_slice(writer, b"s", crafted.STRING, shape, extents, [b"%d" % byte for byte in value])
    writer.finish()
    plain = prefix.with_name("plain")
    strings = [b"%d" % byte for byte in value]
    crafted.write_bundle(plain, [(b"t", crafted.UINT8, shape, value), (b"s", crafted.STRING, shape, strings)])
    assert crafted.index_file(prefix).read_bytes() == crafted.index_file(plain).read_bytes()
    assert crafted.data_file(prefix).read_bytes() == crafted.data_file(plain).read_bytes()


def test_an_explicit_extent_over_a_whole_dimension_stays_explicit(prefix: Path) -> None:
    """C361"""
    writer = crafted.open_writer(prefix)
    crafted.add_slice(writer, b"w", crafted.UINT8, (4, 2), ((0, 4), (0, 1)), b"abcd")
    crafted.add_slice(writer, b"w", crafted.UINT8, (4, 2), (ALL, (1, 1)), b"efgh")
    writer.finish()
    assert witness.read_entries(prefix)["w"].slices == (((0, 4), (0, 1)), (ALL, (1, 1)))


def test_a_string_tensor_is_stored_in_slices(prefix: Path) -> None:
    """C358, C361"""
    writer = crafted.open_writer(prefix)
    crafted.add_slice(writer, b"s", crafted.STRING, (3,), ((0, 2),), [b"ab", b""])
    crafted.add_slice(writer, b"s", crafted.STRING, (3,), ((2, 1),), [b"c"])
    writer.finish()
    assert crafted.data_file(prefix).read_bytes()[:8] == bytes.fromhex("0200 78270b34 6162")
    written = witness.read_entries(prefix)
    assert [part.data for part in written.values()] == [[b"ab", b""], [b"c"], b""]


@st.composite
def partitioned(draw: st.DrawFn) -> tuple[tuple[int, ...], list[witness.Extents]]:
    """A shape, and the boxes of a grid over it in some order and some notation."""
    shape = tuple(draw(st.lists(st.integers(1, 300), min_size=1, max_size=3)))
    axes = []
    for n in shape:
        cuts = sorted({0, n} | set(draw(st.lists(st.integers(1, n), max_size=3))))
        axes.append([(a, b - a) for a, b in itertools.pairwise(cuts)])
    boxes = draw(st.permutations(list(itertools.product(*axes))))
    is_all = draw(st.booleans())
    return shape, [
        tuple(ALL if is_all and extent == (0, n) else extent for extent, n in zip(box, shape, strict=True))
        for box in boxes
    ]


@settings(max_examples=40)
@given(partition=partitioned(), name=st.binary(min_size=1, max_size=5))
def test_the_slices_of_any_partition_make_up_the_tensor(
    partition: tuple[tuple[int, ...], list[witness.Extents]], name: bytes
) -> None:
    """C361"""
    shape, boxes = partition
    tensor = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    found = np.full(shape, -1, np.float32)
    with TemporaryDirectory() as folder:
        prefix = Path(folder) / "ckpt"
        writer = crafted.open_writer(prefix)
        for box in boxes:
            crafted.add_slice(writer, name, crafted.FLOAT, shape, box, tensor[numpy_index(box)].tobytes())
        writer.finish()
        written = {key.encode("utf-8", "surrogateescape"): t for key, t in witness.read_entries(prefix).items()}
    for box in boxes:
        part = written.get(witness.slice_key(name, box), written[name])
        found[numpy_index(box)] = np.frombuffer(part.data, np.float32).reshape(part.shape)
    assert found.tobytes() == tensor.tobytes()
    assert written[name].slices == (tuple(boxes) if len(boxes) > 1 else ())


def numpy_index(extents: witness.Extents) -> tuple[slice, ...]:
    return tuple(slice(None) if extent == ALL else slice(extent[0], sum(extent)) for extent in extents)


@pytest.mark.parametrize(
    "extents",
    [
        pytest.param(((0, 5), ALL), id="too long"),
        pytest.param(((3, 2), ALL), id="past the end"),
        pytest.param(((4, 1), ALL), id="behind the end"),
        pytest.param(((1, (1 << 63) - 1), ALL), id="end beyond 64 bits"),
        pytest.param((((1 << 63) - 1, 1), ALL), id="start at the limit"),
        pytest.param(((0, 0), ALL), id="no elements"),
        pytest.param(((-1, 2), ALL), id="negative start"),
        pytest.param(((0, -2), ALL), id="negative length"),
        pytest.param(((1, -1), ALL), id="all of a dimension but its start"),
        pytest.param((ALL,), id="too few dimensions"),
        pytest.param((ALL, ALL, ALL), id="too many dimensions"),
        pytest.param((), id="no dimensions"),
    ],
)
def test_extents_outside_of_the_shape_are_refused(prefix: Path, extents: witness.Extents) -> None:
    """C375"""
    writer = crafted.open_writer(prefix)
    with pytest.raises(ValueError, match=r"layer/weight.*extents"):
        crafted.add_slice(writer, b"layer/weight", crafted.UINT8, (4, 2), extents, b"abcdefgh")
    with pytest.raises(WriterClosedError):
        writer.finish()
    writer.abandon()
    strings = crafted.open_writer(prefix)
    with pytest.raises(ValueError, match=r"vocabulary.*extents"):
        crafted.add_slice(strings, b"vocabulary", crafted.STRING, (4, 2), extents, [b"a"] * 8)
    strings.abandon()
    assert crafted.file_names(prefix) == []


@pytest.mark.parametrize(
    ("dtype", "shape", "extents", "value"),
    [
        pytest.param(crafted.FLOAT, (4,), ((0, 2),), b"x" * 16, id="bytes of the whole"),
        pytest.param(crafted.FLOAT, (4,), ((0, 2),), b"x" * 7, id="too few bytes"),
        pytest.param(crafted.STRING, (4,), ((0, 2),), [b"x"] * 4, id="strings of the whole"),
        pytest.param(crafted.UINT8, (-4,), (ALL,), b"", id="negative dimension"),
        pytest.param(crafted.UINT8, (1 << 32, 1 << 32), ((0, 1), (0, 1)), b"x", id="element count of 2 to the 64th"),
        pytest.param(21, (4,), ((0, 2),), b"x", id="variant"),
    ],
)
def test_a_slice_that_contradicts_its_dtype_and_extents_is_refused(
    prefix: Path, dtype: int, shape: tuple[int, ...], extents: witness.Extents, value: bytes | list[bytes]
) -> None:
    writer = crafted.open_writer(prefix)
    with pytest.raises(ValueError, match="layer/weight"):
        crafted.add_slice(writer, b"layer/weight", dtype, shape, extents, value)
    writer.abandon()
    assert crafted.file_names(prefix) == []


@pytest.mark.parametrize(("dtype", "shape"), [(5, (4,)), (crafted.UINT8, (5,)), (crafted.UINT8, (4, 1))])
def test_slices_of_one_tensor_agree_in_its_dtype_and_shape(prefix: Path, dtype: int, shape: tuple[int, ...]) -> None:
    writer = crafted.open_writer(prefix)
    crafted.add_slice(writer, b"w", crafted.UINT8, (4,), ((0, 2),), b"ab")
    extents = ((2, 2), ALL)[: len(shape)]
    with pytest.raises(ValueError, match="dtype or its shape"):
        crafted.add_slice(writer, b"w", dtype, shape, extents, b"cdef"[: 2 * witness.ELEMENT_SIZES[dtype]])
    writer.abandon()


def add_whole(writer: _native.BundleWriter) -> None:
    crafted.add(writer, b"w", crafted.UINT8, (4,), b"abcd")


def add_part(writer: _native.BundleWriter) -> None:
    crafted.add_slice(writer, b"w", crafted.UINT8, (4,), ((0, 2),), b"ab")


def add_whole_as_slice(writer: _native.BundleWriter) -> None:
    crafted.add_slice(writer, b"w", crafted.UINT8, (4,), (ALL,), b"abcd")


def add_under_slice_key(writer: _native.BundleWriter) -> None:
    crafted.add(writer, witness.slice_key(b"w", ((0, 2),)), crafted.UINT8, (2,), b"ab")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (add_part, add_part),
        (add_part, add_whole),
        (add_part, add_whole_as_slice),
        (add_part, add_under_slice_key),
        (add_whole, add_part),
        (add_whole, add_whole_as_slice),
        (add_whole_as_slice, add_part),
        (add_under_slice_key, add_part),
    ],
)
def test_what_was_added_before_is_refused(
    prefix: Path,
    first: Callable[[_native.BundleWriter], None],
    second: Callable[[_native.BundleWriter], None],
) -> None:
    """C363"""
    writer = crafted.open_writer(prefix)
    first(writer)
    second(writer)
    with pytest.raises(DuplicateKeyError, match=r"duplicate key: .*w"):
        writer.finish()
    with pytest.raises(WriterClosedError):
        writer.finish()
    writer.abandon()


def test_a_slice_of_the_empty_key_is_refused(prefix: Path) -> None:
    writer = crafted.open_writer(prefix)
    with pytest.raises(ValueError, match="empty key"):
        crafted.add_slice(writer, b"", crafted.UINT8, (4,), ((0, 2),), b"ab")
    writer.abandon()


@pytest.mark.parametrize("extents", [((0,),), ((0, 1, 2),), (0,), (("0", 1),), ((0, 1.0),)])
def test_extents_of_another_form_are_refused_and_spoil_the_writer(prefix: Path, extents: Any) -> None:
    writer = crafted.open_writer(prefix)
    with pytest.raises(TypeError, match="extents"):
        crafted.add_slice(writer, b"w", crafted.UINT8, (4,), extents, b"ab")
    with pytest.raises(WriterClosedError):
        writer.finish()
    writer.abandon()
