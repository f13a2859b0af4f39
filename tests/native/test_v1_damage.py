"""The older format: files that change, that are others' and that are damaged or hostile."""

import itertools
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import witness
from hypothesis import given, settings
from hypothesis import strategies as st
from native import crafted, crafted_v1
from native.crafted_v1 import ALL, Slice, meta, proto, saved, tensor_meta, write_records, write_tensor
from native.v1_values import (
    REFUSALS,
    STRING,
    UINT8,
    Value,
    all_values,
    golden_files,
    open_files,
    value_in,
    value_of,
    write_parts,
)

from torch_trackckpt._native import V1Reader
from torch_trackckpt.errors import (
    CheckpointNotFoundError,
    DataLossError,
    UnsupportedFormatError,
)

# ---------------------------------------------------------------------------------------------- whole files


def test_no_file_stays_open_between_calls(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    reader = open_files(*write_parts(tmp_path, (4, 4), [((0, 2), ALL), ((2, 2), ALL)], num_files=2))
    (found,) = reader.entries()
    value_of(reader, found)
    with pytest.raises(DataLossError):
        open_files(tmp_path / "file-00000-of-00002", tmp_path / "file-00000-of-00002")
    assert len(os.listdir("/proc/self/fd")) == before


def replace(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(replace, id="replaced by an equal one"),
        pytest.param(lambda path: os.utime(path, ns=(0, 1)), id="touched"),
        pytest.param(lambda path: crafted.cut(path, 100), id="cut"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes() + b"\0"), id="longer"),
    ],
)
def test_a_file_that_changes_while_a_reader_exists_is_refused(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = write_tensor(tmp_path / "file", UINT8, (3,), b"abc")
    reader = open_files(path)
    change(path)
    with pytest.raises(DataLossError, match=re.escape(f"{path}: the file has changed since it was opened")):
        value_of(reader, reader.entries()[0])


def test_a_file_that_is_gone_is_not_found(tmp_path: Path) -> None:
    path = write_tensor(tmp_path / "file", UINT8, (3,), b"abc")
    reader = open_files(path)
    path.unlink()
    for use in (lambda: reader.verify([b"x"]), lambda: open_files(path)):
        with pytest.raises(CheckpointNotFoundError, match=re.escape(str(path))):
            use()


def test_the_index_of_a_newer_checkpoint_is_refused_with_the_remedy() -> None:
    for name in ("v2_dtypes", "crafted_big_endian", "crafted_snappy_v2"):
        index = Path(f"{crafted.GOLDEN / str(crafted.MANIFEST[name]['prefix'])}.index")
        with pytest.raises(UnsupportedFormatError, match=r"pass the path without `\.index`") as caught:
            open_files(index)
        assert str(index) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "file is too short to be an sstable", id="empty"),
        pytest.param(bytes(47), "file is too short to be an sstable", id="shorter than a footer"),
        pytest.param(bytes(100), r"not an sstable \(bad magic number\)", id="zeros"),
        pytest.param(crafted.table([]), "saved tensor slices", id="an empty table"),
        pytest.param(crafted.table([(b"a", meta([]))]), "saved tensor slices", id="a table without a first record"),
        pytest.param(crafted.table([(b"", b"")]), "saved tensor slices", id="an empty first record"),
        pytest.param(crafted.table([(b"", b"\xff" * 11)]), "saved tensor slices", id="a first record of nonsense"),
        pytest.param(crafted.table([(b"", meta([b"\x0b"]))]), "saved tensor slices", id="a tensor of nonsense"),
        pytest.param(
            crafted.table([(b"", meta([tensor_meta(b"x", 1, (4,), [((-1, 2),)])]))]),
            "saved tensor slices",
            id="a slice with a negative start",
        ),
        pytest.param(
            crafted.table([(b"", meta([tensor_meta(b"x", 1, (4,), [((0, -2),)])]))]),
            "saved tensor slices",
            id="a slice with a negative length",
        ),
        pytest.param(crafted.table([(b"", b"\x0a\x05")]), "saved tensor slices", id="a first record that is cut"),
    ],
)
def test_what_is_no_checkpoint_is_data_loss(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataLossError, match=message) as caught:
        open_files(path)
    assert str(path) in str(caught.value)


def test_a_checkpoint_without_tensors_is_empty(tmp_path: Path) -> None:
    assert open_files(write_records(tmp_path / "file", meta([]))).entries() == []


def version(*fields: tuple[int, int]) -> bytes:
    return crafted.message_field(2, b"".join(crafted.number_field(*field) for field in fields))


@pytest.mark.parametrize("written", [b"", version(), version((1, 7000), (2, 1)), version((1, 1), (3, 2))])
def test_versions_that_allow_this_reader_are_read(tmp_path: Path, written: bytes) -> None:
    """Files of 2015 have none."""
    record = saved(b"x", (ALL,), proto(UINT8, b"abc"))
    first = meta([tensor_meta(b"x", UINT8, (3,), [(ALL,)])], written)
    assert value_in(write_records(tmp_path / "file", first, [record])) == b"abc"


@pytest.mark.parametrize("written", [version((1, -1)), version((1, 3), (2, 2)), version((3, 1))])
def test_versions_that_exclude_this_reader_are_refused(tmp_path: Path, written: bytes) -> None:
    path = write_records(tmp_path / "file", meta([], written))
    with pytest.raises(UnsupportedFormatError, match=re.escape(str(path))):
        open_files(path)


# -------------------------------------------------------------------------------------- damage and hostility


def values_or_refusals(reader: V1Reader) -> dict[bytes, tuple[int, tuple[int, ...], Value]]:
    values = {}
    for found in reader.entries():
        try:
            reader.check([found.key])
            if found.dtype == STRING or math.prod(found.shape) < 1 << 20:
                values[found.key] = (found.dtype, found.shape, value_of(reader, found))
        except REFUSALS:
            continue
    return values


def put_byte(path: Path, position: int, byte: int) -> None:
    """Changes a file in its place, which is much faster than to write it again."""
    with path.open("r+b") as file:
        file.seek(position, os.SEEK_SET if position >= 0 else os.SEEK_END)
        file.write(bytes([byte]))


@pytest.mark.parametrize("name", ["v1_basic", "v1_slices", "v1_saver", "crafted_snappy_v1"])
@pytest.mark.parametrize("bits", [0x01, 0xFF])
def test_a_flip_of_any_byte_gives_an_error_or_the_right_values(tmp_path: Path, name: str, bits: int) -> None:
    (path,) = golden_files(name)
    content = path.read_bytes()
    sound = all_values(open_files(path))
    copy = tmp_path / "file"
    copy.write_bytes(content)
    refused = 0
    for position in range(len(content)):
        put_byte(copy, position, content[position] ^ bits)
        put_byte(copy, position - 1, content[position - 1])
        try:
            reader = open_files(copy)
        except REFUSALS:
            refused += 1
            continue
        assert [found.key for found in reader.entries()] == list(sound)
        values = values_or_refusals(reader)
        refused += len(values) < len(sound)
        assert all(value == sound[key] for key, value in values.items())
    assert refused > len(content) - 48 - 13  # all but the padding of the footer and the block that nothing reads


@pytest.mark.parametrize("name", ["v1_slices", "crafted_snappy_v1"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    (path,) = golden_files(name)
    copy = tmp_path / "file"
    copy.write_bytes(path.read_bytes())
    for size in reversed(range(path.stat().st_size)):
        os.truncate(copy, size)
        with pytest.raises(DataLossError):
            open_files(copy)


def field_of(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """One field of a message with arbitrary content."""
    return st.one_of(
        st.builds(crafted.number_field, st.integers(1, 18), st.integers(-(1 << 63), (1 << 63) - 1)),
        st.builds(crafted.message_field, st.integers(1, 18), content),
    )


MESSAGES = st.recursive(
    st.one_of(st.binary(max_size=12), field_of(st.binary(max_size=12))),
    lambda inner: st.lists(field_of(inner), max_size=4).map(b"".join),
    max_leaves=8,
)
NUMBERS = st.one_of(st.integers(-2, 6), st.integers(-(1 << 63), (1 << 63) - 1))


@settings(max_examples=400)
@given(
    tensors=st.lists(
        st.one_of(
            MESSAGES,
            st.builds(
                tensor_meta,
                name=st.sampled_from([b"a", b"b", b""]),
                dtype=st.integers(0, 35),
                shape=st.lists(NUMBERS, max_size=2),
                slices=st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=2).map(tuple), max_size=3),
            ),
        ),
        max_size=4,
    ),
    rest=MESSAGES,
    contents=st.lists(MESSAGES, max_size=3),
)
def test_hostile_records_are_survived(tensors: list[bytes], rest: bytes, contents: list[bytes]) -> None:
    wanted: list[Slice] = [(), (ALL,), ((0, 1),), ((0, 2),), (ALL, ALL)]
    records = {
        crafted_v1.slice_key(name, part): saved(name, part, contents[number % len(contents)]).value
        for number, (name, part) in enumerate(itertools.product((b"a", b"b", b""), wanted))
        if contents
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        items = sorted(crafted_v1.Record(key, value) for key, value in records.items())
        write_records(
            path, crafted.message_field(1, b"".join(crafted.message_field(1, t) for t in tensors) + rest), items
        )
        try:
            reader = open_files(path)
        except REFUSALS:
            return
        values_or_refusals(reader)


@settings(max_examples=200)
@given(first=MESSAGES)
def test_hostile_first_records_are_survived(first: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = write_records(Path(folder) / "file", first)
        try:
            reader = open_files(path)
        except REFUSALS:
            return
        values_or_refusals(reader)


def test_blocks_that_overlap_in_the_file_are_refused_at_opening(tmp_path: Path) -> None:
    """Each may be as large as the file: going through them all would take the square of its size."""
    first = meta([tensor_meta(b"x", UINT8, (4,), [(ALL,)])])
    block = crafted.block([(b"", first)])
    handle = crafted.varint(0) + crafted.varint(len(block))
    index = crafted.seal(crafted.block([(b"key%d" % number, handle) for number in range(9)]))
    data = crafted.seal(block)
    footer = b"".join(map(crafted.varint, (0, 0, len(data), len(index) - 5))).ljust(40, b"\0")
    path = tmp_path / "overlapping"
    path.write_bytes(data + index + footer + witness.MAGIC.to_bytes(8, "little"))
    with pytest.raises(DataLossError, match="blocks overlap"):
        open_files(path)
