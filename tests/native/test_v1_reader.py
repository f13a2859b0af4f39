"""The older format: values bit for bit from TensorFlow's files and from made-up ones; damage is named."""

import hashlib
import itertools
import math
import os
import re
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import witness
from hypothesis import given, settings
from hypothesis import strategies as st
from native import crafted, crafted_v1, snappy
from native.crafted_v1 import ALL, Slice, meta, numbers, proto, saved, tensor_meta, write_records, write_tensor

from torch_trackckpt._native import BundleEntry, V1Reader
from torch_trackckpt.errors import (
    CheckpointNotFoundError,
    DataLossError,
    TensorNotFoundError,
    TrackckptError,
    UnsupportedFormatError,
)

FLOAT, INT32, UINT8, STRING = crafted.FLOAT, crafted.INT32, crafted.UINT8, crafted.STRING
GOLDEN = [name for name, vector in crafted.MANIFEST.items() if vector["format"] == "V1"]
DTYPES = [*crafted_v1.FIXED, *crafted_v1.VARINT]
REFUSALS = (TrackckptError, OSError, ValueError)
FILL = 0xA5

Value = bytes | list[bytes]
Array = np.ndarray[tuple[int], np.dtype[np.uint8]]


def golden_files(name: str) -> list[Path]:
    pattern = Path(str(crafted.MANIFEST[name]["prefix"]))
    return sorted((crafted.GOLDEN / pattern.parent).glob(pattern.name))


def open_files(*paths: Path) -> V1Reader:
    return V1Reader([str(path) for path in paths])


def destination(size: int) -> Array:
    """Memory with eight bytes too many, in which nothing may be written."""
    return np.full(size + 8, FILL, np.uint8)


def value_of(reader: V1Reader, found: BundleEntry) -> Value:
    if found.dtype == STRING:
        return reader.read_strings(found.key)
    size = math.prod(found.shape) * witness.ELEMENT_SIZES[found.dtype]
    memory = destination(size)
    reader.read([(found.key, memory.ctypes.data, size)])
    assert (memory[size:] == FILL).all()
    return memory[:size].tobytes()


def part_of(reader: V1Reader, key: bytes, extents: Slice, size: int, *, verify: bool = False) -> bytes:
    memory = destination(size)
    reader.read_slice(key, extents, memory.ctypes.data, size, verify=verify)
    assert (memory[size:] == FILL).all()
    return memory[:size].tobytes()


def all_values(reader: V1Reader) -> dict[bytes, tuple[int, tuple[int, ...], Value]]:
    return {found.key: (found.dtype, found.shape, value_of(reader, found)) for found in reader.entries()}


def value_in(path: Path) -> Value:
    """The value of the only tensor in a file."""
    reader = open_files(path)
    (found,) = reader.entries()
    return value_of(reader, found)


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


def part_index(extent: tuple[int, int]) -> slice:
    return slice(None) if extent == ALL else slice(extent[0], extent[0] + extent[1])


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


def write_parts(
    folder: Path,
    shape: tuple[int, ...],
    parts: Sequence[Slice],
    num_files: int = 1,
    dtype: int = INT32,
    values: np.ndarray | None = None,
) -> list[Path]:
    """0, 1, 2 ... as int32, or given strings, stored in these parts, which take turns among the files."""
    whole = np.arange(math.prod(shape), dtype=np.int32) if values is None else values
    paths = []
    for number in range(num_files):
        mine = parts[number::num_files]
        records = []
        for part in mine:
            elements = np.asarray(whole.reshape(shape)[tuple(map(part_index, part))], whole.dtype)
            content = elements.ravel().tolist() if dtype == STRING else elements.tobytes()
            records.append(saved(b"x", part, proto(dtype, content)))
        first = meta([tensor_meta(b"x", dtype, shape, mine)] if mine else [])
        paths.append(write_records(folder / f"file-{number:05d}-of-{num_files:05d}", first, records))
    return paths


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


# ---------------------------------------------------------------------------------------- bad records


def bad_record(path: Path, record: bytes, dtype: int = FLOAT) -> V1Reader:
    """A file with a sound tensor `good` before and behind `bad`, three elements with this record."""
    good = [b"good", b"zgood"]
    first = meta([tensor_meta(name, dtype if name == b"bad" else UINT8, (3,), [(ALL,)]) for name in (b"bad", *good)])
    records = [crafted_v1.Record(crafted_v1.slice_key(b"bad", (ALL,)), record)]
    records += [saved(name, (ALL,), proto(UINT8, b"abc")) for name in good]
    return open_files(write_records(path, first, records))


THREE = struct.pack("<3f", 1, 2, 3)
BAD_RECORDS = {
    "no data": saved(b"bad", (ALL,), b"").value,
    "nothing": b"",
    "one element too few": saved(b"bad", (ALL,), proto(FLOAT, THREE[:8])).value,
    "one element too many": saved(b"bad", (ALL,), proto(FLOAT, THREE + THREE[:4])).value,
    "half an element": saved(b"bad", (ALL,), crafted.message_field(5, THREE[:10])).value,
    "another field": saved(b"bad", (ALL,), proto(INT32, THREE)).value,
    "only tensor_content, which TensorFlow does not read": saved(b"bad", (ALL,), crafted.message_field(4, THREE)).value,
    "no message": b"\xff" * 11,
    "cut": saved(b"bad", (ALL,), proto(FLOAT, THREE)).value[:-1],
    "a field that runs out of the record": b"\x12\x7f" + saved(b"bad", (ALL,), proto(FLOAT, THREE)).value,
    "sound values and then nonsense": saved(b"bad", (ALL,), proto(FLOAT, THREE)).value + b"\x0b",
    "sound values and then nonsense in the slice": crafted.message_field(
        2, crafted.message_field(3, proto(FLOAT, THREE)) + b"\x0b"
    ),
    "sound values and then nonsense in the tensor": saved(b"bad", (ALL,), proto(FLOAT, THREE) + b"\x0b").value,
    "the meta record": meta([]),
}


@pytest.mark.parametrize("record", BAD_RECORDS.values(), ids=list(BAD_RECORDS))
def test_a_bad_record_costs_only_its_own_tensor(tmp_path: Path, record: bytes) -> None:
    reader = bad_record(tmp_path / "file", record)
    memory = [destination(3), destination(12), destination(3)]
    requests = [
        (key, array.ctypes.data, array.nbytes - 8)
        for key, array in zip((b"good", b"bad", b"zgood"), memory, strict=True)
    ]
    with pytest.raises(DataLossError, match="bad") as caught:
        reader.read(requests)
    assert str(tmp_path / "file") in str(caught.value)
    assert (getattr(caught.value, "completed", None), getattr(caught.value, "touched", None)) == (1, False)
    assert memory[0][:3].tobytes() == b"abc"
    assert (memory[1] == FILL).all()
    with pytest.raises(DataLossError, match="bad"):
        reader.verify([b"bad"])
    with pytest.raises(DataLossError, match="bad"):
        part_of(reader, b"bad", ((0, 1),), 4)
    reader.verify([b"good", b"zgood"])
    reader.read([requests[0], requests[2]])
    assert memory[2][:3].tobytes() == b"abc"


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(b"\x80", id="cut"),
        pytest.param(b"\1\2\x80", id="cut after others"),
        pytest.param(b"\1\2" + b"\xff" * 10 + b"\1", id="without an end"),
        pytest.param(b"\1\2" + b"\xff" * 9 + b"\x02", id="of 65 bits"),
        pytest.param(b"\1\2", id="one too few"),
        pytest.param(b"\1\2\3\4", id="one too many"),
    ],
)
def test_bad_varints_are_found_before_memory_is_touched(tmp_path: Path, values: bytes) -> None:
    reader = bad_record(tmp_path / "file", saved(b"bad", (ALL,), crafted.message_field(7, values)).value, INT32)
    memory = destination(12)
    with pytest.raises(DataLossError, match="bad"):
        reader.read([(b"bad", memory.ctypes.data, 12)])
    assert (memory == FILL).all()


@pytest.mark.parametrize("words", [[], [b"a", b"b"], [b"a", b"b", b"c", b"d"]])
def test_a_wrong_number_of_strings_is_refused(tmp_path: Path, words: list[bytes]) -> None:
    reader = bad_record(tmp_path / "file", saved(b"bad", (ALL,), proto(STRING, words)).value, STRING)
    for use in (lambda: reader.read_strings(b"bad"), lambda: reader.verify([b"bad"])):
        with pytest.raises(DataLossError, match="bad"):
            use()


def test_a_shape_far_beyond_its_record_takes_no_memory(tmp_path: Path) -> None:
    for dtype, content in ((STRING, proto(STRING, [b"a"])), (UINT8, proto(UINT8, b"a"))):
        first = meta([tensor_meta(b"x", dtype, (1 << 40,), [(ALL,)])])
        reader = open_files(write_records(tmp_path / "file", first, [saved(b"x", (ALL,), content)]))
        with pytest.raises(DataLossError, match="1099511627776 elements"):
            reader.verify([b"x"])
    first = meta([tensor_meta(b"x", STRING, (1 << 40,), [(ALL,)])])
    reader = open_files(write_records(tmp_path / "file", first, [saved(b"x", (ALL,), proto(STRING, [b"a"]))]))
    with pytest.raises(DataLossError, match="x"):
        reader.read_strings(b"x")


def test_a_listed_slice_without_a_record_is_noticed_by_check(tmp_path: Path) -> None:
    first = meta([tensor_meta(b"x", UINT8, (3,), [((0, 2),), ((2, 1),)])])
    reader = open_files(write_records(tmp_path / "file", first, [saved(b"x", ((0, 2),), proto(UINT8, b"ab"))]))
    for use in (reader.check, reader.verify):
        with pytest.raises(DataLossError, match=r"missing(.|\n)*key x"):
            use([b"x"])
    assert part_of(reader, b"x", ((0, 2),), 2) == b"ab"


def test_with_verify_a_part_is_checked_as_a_whole_before_memory_is_touched(tmp_path: Path) -> None:
    parts: list[Slice] = [((0, 2),), ((2, 2),)]
    first = meta([tensor_meta(b"x", UINT8, (4,), parts)])
    records = [saved(b"x", parts[0], proto(UINT8, b"ab")), saved(b"x", parts[1], proto(UINT8, b"c"))]
    reader = open_files(write_records(tmp_path / "file", first, records))
    memory = destination(4)
    with pytest.raises(DataLossError, match="x"):
        reader.read_slice(b"x", (ALL,), memory.ctypes.data, 4, verify=True)
    assert (memory == FILL).all()
    with pytest.raises(DataLossError, match="x") as caught:
        reader.read([(b"x", memory.ctypes.data, 4)])
    assert memory[:2].tobytes() == b"ab"
    assert (getattr(caught.value, "completed", None), getattr(caught.value, "touched", None)) == (0, True)


@pytest.mark.parametrize("dtype", [0, 20, 21, 24, 29, 33, 77, 101, -1])
def test_a_dtype_that_is_not_read_is_named_by_number(tmp_path: Path, dtype: int) -> None:
    reader = bad_record(tmp_path / "file", saved(b"bad", (ALL,), proto(UINT8, b"abc")).value, dtype)
    assert next((found.key, found.dtype) for found in reader.entries()) == (b"bad", dtype)
    memory = destination(3)
    for use in (
        lambda: reader.check([b"bad"]),
        lambda: reader.verify([b"bad"]),
        lambda: reader.read([(b"bad", memory.ctypes.data, 3)]),
    ):
        with pytest.raises(UnsupportedFormatError, match=rf"bad has DataType {dtype}\b"):
            use()
    reader.verify([b"good"])


# ------------------------------------------------------------------------------------------------- callers


def test_what_is_not_in_the_files_is_not_found(tmp_path: Path) -> None:
    reader = open_files(write_tensor(tmp_path / "file", UINT8, (3,), b"abc"))
    memory = destination(3)
    assert reader.find(b"y") is None
    for use in (
        lambda: reader.check([b"x", b"y"]),
        lambda: reader.verify([b"y"]),
        lambda: reader.read([(b"y", memory.ctypes.data, 3)]),
        lambda: reader.read_slice(b"y", (ALL,), memory.ctypes.data, 3, verify=False),
        lambda: reader.read_strings(b"y"),
    ):
        with pytest.raises(TensorNotFoundError, match=re.escape(str(tmp_path / "file"))):
            use()


def test_mistakes_of_the_caller_are_value_errors(tmp_path: Path) -> None:
    reader = open_files(
        write_tensor(tmp_path / "a", UINT8, (3,), b"abc"), write_tensor(tmp_path / "b", STRING, (1,), [b"s"], name=b"s")
    )
    memory = destination(3)
    address = memory.ctypes.data
    for use in (
        lambda: reader.read([(b"x", address, 2)]),
        lambda: reader.read([(b"x", 0, 3)]),
        lambda: reader.read([(b"s", address, 1)]),
        lambda: reader.read_strings(b"x"),
        lambda: reader.read_slice(b"x", (), address, 3, verify=False),
        lambda: reader.read_slice(b"x", ((0, 4),), address, 4, verify=False),
        lambda: reader.read_slice(b"x", ((-1, 2),), address, 2, verify=False),
        lambda: reader.read_slice(b"x", ((1, -1),), address, 2, verify=False),
        lambda: reader.read_slice(b"x", ((0, 2),), address, 3, verify=False),
        lambda: reader.read_strings(b"s", ((0, 2),)),
        lambda: V1Reader([]),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            use()
    assert (memory == FILL).all()


def test_all_requests_are_checked_before_any_is_served(tmp_path: Path) -> None:
    reader = open_files(write_tensor(tmp_path / "file", UINT8, (3,), b"abc"))
    memory = destination(3)
    with pytest.raises(TensorNotFoundError) as caught:
        reader.read([(b"x", memory.ctypes.data, 3), (b"y", memory.ctypes.data, 3)])
    assert getattr(caught.value, "completed", None) == 0
    assert (memory == FILL).all()


def test_many_threads_read_from_one_reader(tmp_path: Path) -> None:
    values = {b"%03d" % n: np.random.default_rng(n).bytes(5000) for n in range(40)}
    first = meta([tensor_meta(name, UINT8, (5000,), [(ALL,)]) for name in values])
    records = [saved(name, (ALL,), proto(UINT8, value)) for name, value in values.items()]
    reader = open_files(write_records(tmp_path / "file", first, records, block_size=4096))

    def read_one(name: bytes) -> bytes:
        return part_of(reader, name, (ALL,), 5000)

    with ThreadPoolExecutor(8) as pool:
        assert dict(zip(values, pool.map(read_one, values), strict=True)) == values


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
