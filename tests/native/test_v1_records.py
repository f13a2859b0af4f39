"""The older format: bad records cost their own tensors alone, and callers are told of their mistakes."""

import re
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from native import crafted, crafted_v1
from native.crafted_v1 import ALL, Slice, meta, proto, saved, tensor_meta, write_records, write_tensor
from native.v1_values import FILL, FLOAT, INT32, STRING, UINT8, destination, open_files, part_of

from torch_trackckpt._native import V1Reader
from torch_trackckpt.errors import (
    DataLossError,
    TensorNotFoundError,
    UnsupportedFormatError,
)

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
    assert getattr(caught.value, "touched", None) == [0]
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
    assert getattr(caught.value, "touched", None) == [0]


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
    assert getattr(caught.value, "touched", None) == []
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
