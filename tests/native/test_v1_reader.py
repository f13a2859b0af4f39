"""The older format: values bit for bit from TensorFlow's files and from made-up ones."""

import hashlib
import itertools
import math
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import witness
from hypothesis import given, settings
from hypothesis import strategies as st
from native import crafted, snappy
from native.crafted_v1 import ALL, Slice, meta, numbers, proto, saved, tensor_meta, write_records, write_tensor
from native.v1_values import (
    DTYPES,
    FILL,
    FLOAT,
    GOLDEN,
    INT32,
    STRING,
    UINT8,
    Array,
    all_values,
    destination,
    golden_files,
    open_files,
    part_index,
    part_of,
    value_in,
    value_of,
    write_parts,
)

from torch_trackckpt.errors import (
    DataLossError,
)

# --------------------------------------------------------------------------------------- TensorFlow's files


@pytest.mark.parametrize("name", GOLDEN)
def test_the_values_of_tensorflow_s_files_are_read_bit_for_bit(name: str) -> None:
    """C380"""
    reader = open_files(*golden_files(name))
    expected = crafted.MANIFEST[name]["tensors"]
    values = all_values(reader)
    assert {key.decode() for key in values} == set(expected)
    for key, (dtype, shape, value) in values.items():
        if isinstance(value, list):
            value = b"".join(struct.pack("<Q", len(element)) + element for element in value)
        tensor = expected[key.decode()]
        assert (dtype, list(shape), hashlib.sha256(value).hexdigest()) == (
            tensor["enum"],
            tensor["shape"],
            tensor["sha256"],
        ), key
    reader.check(list(values))
    reader.verify(list(values))


@pytest.mark.parametrize("name", GOLDEN)
def test_entries_come_in_key_order_and_place_nothing(name: str) -> None:
    reader = open_files(*golden_files(name))
    entries = reader.entries()
    assert [found.key for found in entries] == sorted(found.key for found in entries)
    assert reader.num_shards == len(golden_files(name))
    for found in entries:
        assert (found.shard_id, found.offset, found.size, found.crc32c) == (0, 0, 0, 0)
        again = reader.find(found.key)
        assert again is not None
        assert (again.key, again.dtype, again.shape, again.slices) == (
            found.key,
            found.dtype,
            found.shape,
            found.slices,
        )


@pytest.mark.parametrize(
    ("name", "slices"),
    [
        ("v1_slices", (((0, 1), ALL), ((1, 3), ALL))),
        ("v1_sharded", (((0, 2), ALL), ((2, 2), ALL))),
    ],
)
def test_every_part_of_a_tensor_in_slices_is_read(name: str, slices: tuple[Slice, ...]) -> None:
    reader = open_files(*golden_files(name))
    found = reader.find(b"w")
    assert found is not None
    assert (found.shape, found.slices) == ((4, 6), slices)
    whole = np.frombuffer(bytes(value_of(reader, found)), np.float32).reshape(4, 6)
    ranges = [[ALL, *((a, b - a) for a, b in itertools.combinations(range(size + 1), 2))] for size in (4, 6)]
    for rows, columns in itertools.product(*ranges):
        part = whole[part_index(rows), part_index(columns)]
        for verify in (False, True):
            assert part_of(reader, b"w", (rows, columns), part.nbytes, verify=verify) == part.tobytes()


def test_tensors_stored_whole_have_no_slices() -> None:
    for name in ("v1_basic", "v1_saver"):
        assert [found.slices for found in open_files(*golden_files(name)).entries() if found.slices] == []


# -------------------------------------------------------------------------------------------------- values


def random_value(dtype: int, count: int) -> bytes:
    data = np.random.default_rng(dtype).bytes(count * witness.ELEMENT_SIZES[dtype])
    return bytes(byte & 1 for byte in data) if dtype == 10 else data


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "one by one"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read_in_both_wire_forms(tmp_path: Path, dtype: int, packed: bool) -> None:
    """C380"""
    for shape in ((), (7,), (3, 5), (0, 4)):
        value = random_value(dtype, math.prod(shape))
        assert value_in(write_tensor(tmp_path / "file", dtype, shape, value, packed=packed)) == value


def test_packed_and_single_values_may_alternate(tmp_path: Path) -> None:
    value = random_value(INT32, 9)
    forms = itertools.cycle([True, False])
    content = b"".join(proto(INT32, value[at : at + 12], next(forms)) for at in range(0, 36, 12))
    first = meta([tensor_meta(b"x", INT32, (9,), [(ALL,)])])
    assert value_in(write_records(tmp_path / "file", first, [saved(b"x", (ALL,), content)])) == value


def test_complex_numbers_may_be_cut_between_their_parts(tmp_path: Path) -> None:
    value = random_value(8, 3)
    content = proto(1, value[:4]) + proto(1, value[4:])
    content = content.replace(bytes([5 << 3 | 2]), bytes([9 << 3 | 2]), 1)
    content = crafted.message_field(9, value[:4]) + crafted.message_field(9, b"") + crafted.message_field(9, value[4:])
    first = meta([tensor_meta(b"x", 8, (3,), [(ALL,)])])
    assert value_in(write_records(tmp_path / "file", first, [saved(b"x", (ALL,), content)])) == value


@pytest.mark.parametrize(
    ("dtype", "field", "code"),
    [(6, 7, "b"), (4, 7, "B"), (5, 7, "h"), (17, 7, "H"), (3, 7, "i"), (19, 13, "H"), (22, 16, "I")],
)
def test_integers_are_narrowed_to_their_low_bits(tmp_path: Path, dtype: int, field: int, code: str) -> None:
    wide = [300, -1, -300, 70_000, -70_000, (1 << 33) + 7, -(1 << 63), (1 << 64) - 2]
    content = crafted.message_field(field, b"".join(map(crafted.varint, wide)))
    first = meta([tensor_meta(b"x", dtype, (8,), [(ALL,)])])
    mask = (1 << 8 * struct.calcsize(code)) - 1
    expected = struct.pack(f"<8{code.upper()}", *(number & mask for number in wide))
    assert value_in(write_records(tmp_path / "file", first, [saved(b"x", (ALL,), content)])) == expected


def test_any_number_but_zero_is_true(tmp_path: Path) -> None:
    content = crafted.message_field(11, b"".join(map(crafted.varint, [0, 1, 2, 256, 1 << 40, -1])))
    first = meta([tensor_meta(b"x", 10, (6,), [(ALL,)])])
    path = write_records(tmp_path / "file", first, [saved(b"x", (ALL,), content)])
    assert value_in(path) == b"\0\1\1\1\1\1"


def test_strings_are_read_in_order(tmp_path: Path) -> None:
    words = [b"", b"a", b"\0\xff" * 200, "é".encode(), b"", b"z" * 5000]
    assert value_in(write_tensor(tmp_path / "file", STRING, (2, 3), words)) == words
    assert value_in(write_tensor(tmp_path / "file", STRING, (), [b"word"])) == [b"word"]
    assert value_in(write_tensor(tmp_path / "file", STRING, (0,), [])) == []


@pytest.mark.parametrize("name", [b"", b"\0", b"a/b", b"\xff\xfe", "é".encode(), b"\0\xff\0", b"k" * 1000])
def test_names_may_be_any_bytes(tmp_path: Path, name: bytes) -> None:
    reader = open_files(write_tensor(tmp_path / "file", UINT8, (2,), b"ab", name=name))
    assert all_values(reader) == {name: (UINT8, (2,), b"ab")}


def test_fields_that_are_not_known_are_passed_over(tmp_path: Path) -> None:
    extra = crafted.number_field(90, 7) + crafted.message_field(91, b"new") + crafted.varint(92 << 3 | 1) + bytes(8)
    content = extra + crafted.number_field(1, INT32) + proto(UINT8, b"abc") + extra
    record = saved(b"x", (ALL,), content)
    first = extra + meta([tensor_meta(b"x", UINT8, (3,), [(ALL,)]) + extra]) + extra
    path = write_records(tmp_path / "file", first, [record._replace(value=extra + record.value + extra)])
    assert value_in(path) == b"abc"


@pytest.mark.parametrize("compress", [None, snappy.compress], ids=["stored", "Snappy"])
@pytest.mark.parametrize("restart_interval", [1, 16, 1 << 20])
@pytest.mark.parametrize("block_size", [1, 500, 262144])
def test_tables_of_any_blocks_are_read(
    tmp_path: Path, block_size: int, restart_interval: int, compress: Callable[[bytes], bytes] | None
) -> None:
    """C378, C380"""
    values = {b"%03d" % n: np.random.default_rng(n).bytes(n * n % 1000) for n in range(60)}
    first = meta([tensor_meta(name, UINT8, (len(value),), [(ALL,)]) for name, value in values.items()])
    records = [saved(name, (ALL,), proto(UINT8, value)) for name, value in values.items()]
    path = tmp_path / "file"
    write_records(path, first, records, block_size=block_size, restart_interval=restart_interval, compress=compress)
    assert {name: value for name, (_, _, value) in all_values(open_files(path)).items()} == values


# -------------------------------------------------------------------------------------------------- slices


@st.composite
def partitions(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Slice]]:
    """A shape, and boxes that make it up, cut again and again."""
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=3)))
    boxes: list[Slice] = [tuple((0, size) for size in shape)]
    for _ in range(draw(st.integers(0, 6))):
        box = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        wide = [d for d, (_, length) in enumerate(box) if length > 1]
        if not wide:
            boxes.append(box)
            continue
        d = draw(st.sampled_from(wide))
        start, length = box[d]
        cut = draw(st.integers(1, length - 1))
        boxes += [(*box[:d], (start, cut), *box[d + 1 :]), (*box[:d], (start + cut, length - cut), *box[d + 1 :])]
    draw(st.randoms()).shuffle(boxes)
    named: list[Slice] = [
        tuple(
            ALL if extent == (0, size) and draw(st.booleans()) else extent
            for extent, size in zip(box, shape, strict=True)
        )
        for box in boxes
    ]
    return shape, named


@settings(max_examples=150)
@given(partition=partitions(), num_files=st.integers(1, 3), data=st.data())
def test_any_part_is_put_together_from_any_slices(
    partition: tuple[tuple[int, ...], list[Slice]], num_files: int, data: st.DataObject
) -> None:
    shape, parts = partition
    words = np.array([b"%d" % n * (n % 4) for n in range(math.prod(shape))], dtype=object)
    wanted: Slice = tuple(
        data.draw(
            st.one_of(
                st.just(ALL),
                st.integers(0, size).flatmap(lambda a, n=size: st.tuples(st.just(a), st.integers(0, n - a))),
            )
        )
        for size in shape
    )
    index = tuple(map(part_index, wanted))
    expected = np.frombuffer(numbers(shape), np.int32).reshape(shape)[index]
    with TemporaryDirectory() as folder:
        reader = open_files(*write_parts(Path(folder), shape, parts, num_files))
        reader.check([b"x"])
        (found,) = reader.entries()
        assert value_of(reader, found) == numbers(shape)
        assert part_of(reader, b"x", wanted, expected.nbytes, verify=data.draw(st.booleans())) == expected.tobytes()
        strings = open_files(*write_parts(Path(folder), shape, parts, num_files, STRING, words))
        assert strings.read_strings(b"x") == words.tolist()
        assert strings.read_strings(b"x", wanted) == np.asarray(words.reshape(shape)[index], object).ravel().tolist()


def test_tensors_of_several_files_are_united(tmp_path: Path) -> None:
    a = write_tensor(tmp_path / "a", UINT8, (2,), b"aa", name=b"a")
    b = write_tensor(tmp_path / "b", STRING, (), [b"bb"], name=b"b")
    reader = open_files(b, a)
    assert reader.num_shards == 2
    assert all_values(reader) == {b"a": (UINT8, (2,), b"aa"), b"b": (STRING, (), [b"bb"])}


def test_a_tensor_listed_twice_in_one_file_is_united(tmp_path: Path) -> None:
    parts: list[Slice] = [((0, 2),), ((2, 1),)]
    first = meta([tensor_meta(b"x", UINT8, (3,), [part]) for part in parts])
    records = [saved(b"x", part, proto(UINT8, value)) for part, value in zip(parts, (b"ab", b"c"), strict=True)]
    assert value_in(write_records(tmp_path / "file", first, records)) == b"abc"


def test_a_tensor_without_slices_is_not_there(tmp_path: Path) -> None:
    first = meta([tensor_meta(b"x", UINT8, (3,), [])])
    reader = open_files(write_records(tmp_path / "file", first))
    assert (reader.entries(), reader.find(b"x")) == ([], None)


CONTRADICTORY: dict[str, list[list[tuple[int, tuple[int, ...], Slice]]]] = {
    "another dtype in the other file": [[(FLOAT, (2,), ((0, 1),))], [(INT32, (2,), ((1, 1),))]],
    "another shape in the other file": [[(FLOAT, (2,), ((0, 1),))], [(FLOAT, (3,), ((1, 1),))]],
    "another rank in the other file": [[(FLOAT, (2,), ((0, 1),))], [(FLOAT, (2, 1), ((1, 1), ALL))]],
    "another shape in the same file": [[(FLOAT, (2,), ((0, 1),)), (FLOAT, (3,), ((1, 1),))]],
    "the same slice in both files": [[(FLOAT, (2,), ((0, 1),))], [(FLOAT, (2,), ((0, 1),))]],
    "the same slice twice": [[(FLOAT, (2,), ((0, 1),)), (FLOAT, (2,), ((0, 1),))]],
    "the whole in both files": [[(FLOAT, (2,), (ALL,))], [(FLOAT, (2,), (ALL,))]],
    "nothing, twice": [[(FLOAT, (0,), (ALL,))], [(FLOAT, (0,), (ALL,))]],
    "a scalar in both files": [[(FLOAT, (), ())], [(FLOAT, (), ())]],
    "overlapping slices": [[(FLOAT, (4,), ((0, 3),)), (FLOAT, (4,), ((2, 2),))]],
    "a slice beside the whole": [[(FLOAT, (4,), (ALL,)), (FLOAT, (4,), ((2, 2),))]],
    "the whole, named in two ways": [[(FLOAT, (4,), (ALL,)), (FLOAT, (4,), ((0, 4),))]],
    "a slice past the end": [[(FLOAT, (4,), ((2, 3),))]],
    "a start past the end": [[(FLOAT, (4,), ((5, 1),))]],
    "a slice of another rank": [[(FLOAT, (4,), ((0, 4), ALL))]],
    "a gap between the slices": [[(FLOAT, (4,), ((0, 1),)), (FLOAT, (4,), ((2, 2),))]],
    "a slice of 2 to the 63rd": [[(FLOAT, (4,), ((1, (1 << 63) - 1),))]],
    "a negative dimension": [[(FLOAT, (-4,), (ALL,))]],
    "more elements than 63 bits count": [[(FLOAT, (1 << 40, 1 << 40), (ALL, ALL))]],
    "more bytes than 64 bits count": [[(FLOAT, (1 << 62,), (ALL,))]],
}


def open_and_use(paths: Sequence[Path], key: bytes, use: str, memory: Array) -> None:
    reader = open_files(*paths)
    if use == "read":
        reader.read([(key, memory.ctypes.data, memory.nbytes - 8)])
    else:
        getattr(reader, use)([key])


@pytest.mark.parametrize("use", ["check", "verify", "read"])
@pytest.mark.parametrize("files", CONTRADICTORY.values(), ids=list(CONTRADICTORY))
def test_contradictory_slices_are_refused_by_name(
    tmp_path: Path, files: list[list[tuple[int, tuple[int, ...], Slice]]], use: str
) -> None:
    paths = []
    for number, listed in enumerate(files):
        first = meta([tensor_meta(b"layer/x", dtype, shape, [part]) for dtype, shape, part in listed])
        unique = {part: saved(b"layer/x", part, proto(FLOAT, bytes(16))) for _, _, part in listed}
        paths.append(write_records(tmp_path / str(number), first, list(unique.values())))
    memory = destination(16)
    with pytest.raises(DataLossError, match=re.escape("layer/x in " + str(tmp_path))):
        open_and_use(paths, b"layer/x", use, memory)
    assert (memory == FILL).all()


def test_a_name_that_is_too_long_for_its_slices_to_have_records_is_refused(tmp_path: Path) -> None:
    """The keys of these slices would take a gigabyte."""
    parts: list[Slice] = [((start, 1),) for start in range(2000)]
    path = write_records(tmp_path / "file", meta([tensor_meta(b"n" * 500_000, UINT8, (2000,), parts)]))
    with pytest.raises(DataLossError, match="keys too long"):
        open_files(path)


def test_a_gap_costs_only_what_lies_in_it(tmp_path: Path) -> None:
    (path,) = write_parts(tmp_path, (5,), [((0, 2),), ((3, 2),)])
    reader = open_files(path)
    assert part_of(reader, b"x", ((3, 2),), 8) == numbers((5,))[12:]
    assert part_of(reader, b"x", ((4, 1),), 4) == numbers((5,))[16:]
    with pytest.raises(DataLossError, match="sufficient slices"):
        part_of(reader, b"x", ((1, 2),), 8)


def test_a_missing_shard_is_noticed_by_check(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, (4, 4), [((0, 2), ALL), ((2, 2), ALL)], num_files=2)
    with pytest.raises(DataLossError, match="sufficient slices"):
        open_files(paths[0]).check([b"x"])
