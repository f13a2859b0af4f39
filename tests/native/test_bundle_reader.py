"""The reader: the values of TensorFlow's files, whatever the table and the shards look like."""

import hashlib
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import witness
from native import crafted
from native.crafted import golden, manifest_digest

from torch_trackckpt._native import BundleReader
from torch_trackckpt.errors import TrackckptError

OF_TENSORFLOW = [
    name for name, vector in crafted.MANIFEST.items() if (vector["format"], vector["origin"]) == ("V2", "tensorflow")
]
READABLE = [*OF_TENSORFLOW, "crafted_big_endian"]
INCOMPLETE = {b"partial_cover", b"far"}  # Of v2_slices, which stores a part of them only.
WITH_GRAPH = [name for name, vector in crafted.MANIFEST.items() if "object_graph" in vector]

# One below 8 bits is stored and hashed alike: one byte for each element, unused high bits zero.
BELOW_8_BITS = {29: 0x0F, 30: 0x0F, 31: 0x03, 32: 0x03, 33: 0x0F}
COMPONENT_SIZES = {**witness.ELEMENT_SIZES, 8: 4, 18: 8}


def native_order(name: str, dtype: int, value: bytes | list[bytes]) -> bytes | list[bytes]:
    """The witness hands out bytes as stored; the core turns those of a big-endian file round."""
    if name != "crafted_big_endian" or isinstance(value, list):
        return value
    size = COMPONENT_SIZES[dtype]
    return b"".join(value[at : at + size][::-1] for at in range(0, len(value), size))


def assert_equals_manifest(name: str, values: dict[str, tuple[int, tuple[int, ...], bytes | list[bytes]]]) -> None:
    """Values by key as (dtype, shape, value), against what TensorFlow read."""
    vector = crafted.MANIFEST[name]
    digests = {key: manifest_digest(value) for key, (_, _, value) in values.items()}
    expected: dict[str, Any] = {key: t for key, t in vector["tensors"].items() if key in values}
    assert expected != {}
    for key, tensor in expected.items():
        dtype, shape, _ = values[key]
        assert (dtype, list(shape), digests[key]) == (
            tensor.get("enum", dtype),
            tensor["shape"],
            tensor["sha256"],
        ), key
    if "tensors_digest" in vector:
        lines = (key.encode() + b"\0" + digests[key].encode() for key in sorted(digests))
        assert len(digests) == vector["num_tensors"]
        assert hashlib.sha256(b"".join(lines)).hexdigest() == vector["tensors_digest"]


def read_all(name: str) -> dict[str, tuple[int, tuple[int, ...], bytes | list[bytes]]]:
    reader = crafted.open_reader(golden(name))
    return {
        found.key.decode("utf-8", "surrogateescape"): (
            found.dtype,
            found.shape,
            crafted.read_value(reader, found),
        )
        for found in reader.entries()
        if found.key not in INCOMPLETE
    }


# ------------------------------------------------------------------------------------------- the witness


@pytest.mark.parametrize("name", READABLE)
def test_the_witness_reads_what_tensorflow_read(name: str) -> None:
    values = {
        key: (tensor.dtype, tensor.shape, native_order(name, tensor.dtype, tensor.data))
        for key, tensor in witness.read_bundle(golden(name)).items()
        if key.encode("utf-8", "surrogateescape") not in INCOMPLETE
    }
    assert_equals_manifest(name, values)


@pytest.mark.parametrize("name", WITH_GRAPH)
def test_the_witness_decodes_the_graph_that_tensorflow_decoded(name: str) -> None:
    nodes = [
        {
            "children": [list(child) for child in node.children],
            "attributes": [list(attribute) for attribute in node.attributes],
            "slot_variables": [list(slot) for slot in node.slot_variables],
            "has_checkpoint_values": node.has_checkpoint_values,
        }
        for node in witness.read_graph(golden(name))
    ]
    assert nodes == crafted.MANIFEST[name]["object_graph"]


# ----------------------------------------------------------------------------------------- golden files


@pytest.mark.parametrize("name", READABLE)
def test_values_are_those_that_tensorflow_read(name: str) -> None:
    """C356, C357, C358"""
    assert_equals_manifest(name, read_all(name))


@pytest.mark.parametrize("name", READABLE)
def test_entries_are_those_that_the_witness_reads(name: str) -> None:
    """C355, C360"""
    reader = crafted.open_reader(golden(name))
    read = [(e.key, e.dtype, e.shape, e.shard_id, e.offset, e.size, e.crc32c, len(e.slices)) for e in reader.entries()]
    assert read == [
        (
            *(key.encode("utf-8", "surrogateescape"), t.dtype, t.shape, t.shard_id, t.offset, t.size),
            *(t.crc32c, t.num_slices),
        )
        for key, t in witness.read_bundle(golden(name)).items()
    ]
    assert [key for key, *_ in read] == sorted(key for key, *_ in read)


def test_types_below_8_bits_are_stored_one_to_a_byte_with_zero_high_bits() -> None:
    """C356"""
    stored = {dtype: value for dtype, _, value in read_all("v2_dtypes").values() if isinstance(value, bytes)}
    for dtype, used_bits in BELOW_8_BITS.items():
        assert max(stored[dtype]) == used_bits
        assert sorted(set(stored[dtype])) == list(range(used_bits + 1))
    assert stored[29] == bytes.fromhex("08090a0b0c0d0e0f0001020304050607")


@pytest.mark.parametrize(("name", "num_shards"), [("v2_dtypes", 1), ("v2_merge", 3), ("obj_sharded", 3)])
def test_shards_are_counted_by_the_header(name: str, num_shards: int) -> None:
    """C359"""
    assert crafted.open_reader(golden(name)).num_shards == num_shards


def test_values_of_several_shards_are_read_in_one_call() -> None:
    reader = crafted.open_reader(golden("v2_merge"))
    memory = {found.key: np.empty(found.size // 4, np.int32) for found in reader.entries()}
    reader.read([(key, array.ctypes.data, array.nbytes) for key, array in reversed(memory.items())])
    assert {key: array.tolist() for key, array in memory.items()} == {
        b"a": [97, 97],
        b"b": [98],
        b"c": [99, 99, 99],
        b"d": [100],
        b"e": [101, 101, 101],
        b"f": [102, 102, 102],
    }


def test_sliced_tensors_report_the_number_of_their_slices() -> None:
    found = crafted.open_reader(golden("v2_slices")).find(b"grid")
    assert found is not None
    assert (len(found.slices), found.shape, found.size) == (4, (4, 6), 0)


@pytest.mark.parametrize("name", READABLE)
def test_sound_files_pass_check_and_verify(name: str) -> None:
    reader = crafted.open_reader(golden(name))
    keys = [found.key for found in reader.entries() if found.key not in INCOMPLETE]
    reader.check(keys)
    reader.verify(keys)


# ------------------------------------------------------------------------------------------------- calls


def test_find_gives_the_entry_or_none() -> None:
    reader = crafted.open_reader(golden("v2_order"))
    found = reader.find(b"m")
    assert found is not None
    assert (found.key, found.dtype, found.shape, found.offset, found.size) == (b"m", 2, (), 3, 8)
    for absent in (b"", b"A", b"b", b"mm", b"zz", b"\0", b"\xff" * 9):
        assert reader.find(absent) is None


@pytest.mark.parametrize("call", ["check", "verify", "read", "read_strings"])
def test_an_absent_key_is_named(call: str) -> None:
    """C350"""
    reader = crafted.open_reader(golden("v2_order"))
    memory = np.empty(4, np.uint8)
    argument = {"read": [(b"nothing", memory.ctypes.data, 4)], "read_strings": b"nothing"}.get(call, [b"nothing"])
    with pytest.raises(KeyError, match="nothing") as caught:
        getattr(reader, call)(argument)
    assert isinstance(caught.value, TrackckptError)


@pytest.mark.parametrize("size", [0, 7, 9])
def test_memory_of_another_size_is_refused_and_stays_untouched(size: int) -> None:
    reader = crafted.open_reader(golden("v2_order"))
    memory = np.full(16, 0xA5, np.uint8)
    with pytest.raises(ValueError, match="m"):
        reader.read([(b"m", memory.ctypes.data, size)])
    assert memory.tobytes() == b"\xa5" * 16


def test_strings_are_not_read_into_memory_nor_numbers_as_strings() -> None:
    memory = np.full(256, 0xA5, np.uint8)
    reader = crafted.open_reader(golden("v2_dtypes"))
    found = reader.find(b"string")
    assert found is not None
    with pytest.raises((ValueError, TypeError), match="string"):
        reader.read([(b"string", memory.ctypes.data, found.size)])
    with pytest.raises((ValueError, TypeError), match="int32"):
        reader.read_strings(b"int32")
    assert memory.tobytes() == b"\xa5" * 256


def test_no_file_stays_open_between_calls() -> None:
    before = len(os.listdir("/proc/self/fd"))
    reader = crafted.open_reader(golden("v2_merge"))
    for found in reader.entries():
        crafted.read_value(reader, found)
    reader.check([b"a", b"b"])
    reader.verify([b"a", b"b"])
    assert len(os.listdir("/proc/self/fd")) == before


def test_opening_touches_no_data_file(tmp_path: Path) -> None:
    index = tmp_path / "ckpt.index"
    index.write_bytes(Path(f"{golden('v2_dtypes')}.index").read_bytes())
    assert len(crafted.open_reader(tmp_path / "ckpt").entries()) == 31


def test_a_data_file_is_looked_for_under_each_suffix_in_turn(tmp_path: Path) -> None:
    index = Path(f"{golden('v2_order')}.index")
    data = Path(f"{golden('v2_order')}.data-00000-of-00001").read_bytes()
    (tmp_path / "ckpt.data-00000-of-00001.b").write_bytes(data)
    (tmp_path / "ckpt.data-00000-of-00001.c").write_bytes(bytes(len(data)))
    reader = BundleReader(str(index), str(tmp_path / "ckpt"), (".a", ".b", ".c"))
    found = reader.find(b"z")
    assert found is not None
    assert crafted.read_value(reader, found) == b"\x01\x02\x03"


def test_values_of_every_size_around_a_chunk_are_read(prefix: Path) -> None:
    sizes = [crafted.CHUNK - 1, crafted.CHUNK, crafted.CHUNK + 1, 3 * crafted.CHUNK + 5]
    values = {b"%d" % size: np.random.default_rng(size).bytes(size) for size in sizes}
    crafted.write_bundle(prefix, [(key, crafted.UINT8, (len(v),), v) for key, v in values.items()])
    reader = crafted.open_reader(prefix)
    assert {found.key: crafted.read_value(reader, found) for found in reader.entries()} == values


# ----------------------------------------------------------------------- what other producers may write


def write_numbers(prefix: Path, numbers: range, block_size: int, restart_interval: int) -> None:
    data = bytes(number % 251 for number in numbers)
    items = [(b"", crafted.ONE_SHARD)]
    for key, number in sorted((b"layer/%d" % number, number) for number in numbers):
        crc = witness.mask(witness.crc32c(data[number : number + 1]))
        items.append((key, crafted.entry(crafted.UINT8, (), offset=number, size=1, crc32c=crc)))
    Path(f"{prefix}.index").write_bytes(crafted.table(items, block_size, restart_interval))
    Path(f"{prefix}.data-00000-of-00001").write_bytes(data)


@pytest.mark.parametrize("restart_interval", [1, 2, 16, 1000])
@pytest.mark.parametrize("block_size", [1, 100, 262144])
def test_tables_of_any_block_size_and_restart_interval_are_read(
    prefix: Path, block_size: int, restart_interval: int
) -> None:
    """C378, C379"""
    write_numbers(prefix, range(500), block_size, restart_interval)
    reader = crafted.open_reader(prefix)
    assert len(reader.entries()) == 500
    for number in range(0, 500, 7):
        found = reader.find(b"layer/%d" % number)
        assert found is not None
        assert crafted.read_value(reader, found) == bytes([number % 251])


def test_any_separator_between_two_blocks_is_read(prefix: Path) -> None:
    """C378"""
    crc = witness.mask(witness.crc32c(b"!"))
    record = crafted.entry(crafted.UINT8, (), size=1, crc32c=crc)
    blocks = [[(b"", crafted.ONE_SHARD), (b"a", record)], [(b"ab", record)], [(b"b\xff", record)]]
    index_keys = [b"a\0\0\0\0", b"b\xfe\xff", b"\xff" * 30]
    Path(f"{prefix}.index").write_bytes(crafted.assemble(zip(index_keys, map(crafted.block, blocks), strict=True)))
    Path(f"{prefix}.data-00000-of-00001").write_bytes(b"!")
    reader = crafted.open_reader(prefix)
    assert [found.key for found in reader.entries()] == [b"a", b"ab", b"b\xff"]
    assert all(crafted.read_value(reader, found) == b"!" for found in reader.entries())


def test_gaps_overlaps_and_trailing_bytes_of_a_data_file_are_read_over(prefix: Path) -> None:
    """C370"""
    data = b"....abcdef...."
    spans = {b"whole": (4, 10), b"part": (5, 7), b"same": (5, 7), b"none": (14, 14)}
    crafted.write_crafted(
        prefix,
        {
            key: crafted.entry(
                crafted.UINT8,
                (end - start,),
                offset=start,
                size=end - start,
                crc32c=witness.mask(witness.crc32c(data[start:end])),
            )
            for key, (start, end) in spans.items()
        },
        data,
    )
    reader = crafted.open_reader(prefix)
    for key, (start, end) in spans.items():
        found = reader.find(key)
        assert found is not None
        assert crafted.read_value(reader, found) == data[start:end]


def test_a_number_of_shards_beyond_five_digits_names_its_files_in_full(prefix: Path) -> None:
    """C370"""
    crc = witness.mask(witness.crc32c(b"!"))
    record = crafted.entry(crafted.UINT8, (), shard_id=123456, size=1, crc32c=crc)
    crafted.write_crafted(prefix, {b"k": record}, head=crafted.header(num_shards=1234567))
    Path(f"{prefix}.data-123456-of-1234567").write_bytes(b"!")
    reader = crafted.open_reader(prefix)
    assert [crafted.read_value(reader, found) for found in reader.entries()] == [b"!"]


def test_unknown_fields_of_header_and_entry_are_skipped(prefix: Path) -> None:
    extra = crafted.number_field(90, 7) + crafted.message_field(91, b"new") + crafted.varint(92 << 3 | 1) + bytes(8)
    crc = witness.mask(witness.crc32c(b"!"))
    record = extra + crafted.entry(crafted.UINT8, (), size=1, crc32c=crc) + extra
    crafted.write_crafted(prefix, {b"k": record}, b"!", extra + crafted.ONE_SHARD + extra)
    reader = crafted.open_reader(prefix)
    assert [crafted.read_value(reader, found) for found in reader.entries()] == [b"!"]


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(crafted.number_field(1, 1), id="no version"),
        pytest.param(crafted.header(producer=0), id="the oldest producer"),
        pytest.param(crafted.header(producer=7000), id="a later producer"),
        pytest.param(crafted.header(min_consumer=1), id="this reader as the oldest allowed"),
        pytest.param(crafted.header(bad_consumers=(0, 2, 3)), id="other readers refused"),
    ],
)
def test_versions_that_allow_this_reader_are_read(prefix: Path, head: bytes) -> None:
    """C389"""
    crafted.write_crafted(prefix, {}, head=head)
    assert crafted.open_reader(prefix).entries() == []


def test_an_empty_string_tensor_may_have_no_bytes_at_all(prefix: Path) -> None:
    record = crafted.entry(crafted.STRING, (0,), crc32c=witness.mask(0))
    crafted.write_crafted(prefix, {b"k": record})
    assert crafted.open_reader(prefix).read_strings(b"k") == []


def test_values_read_side_by_side_are_the_same(prefix: Path) -> None:
    rng = np.random.default_rng(0)
    values = {
        b"%03d" % number: rng.bytes(size) for number, size in zip(range(200), itertools.cycle((0, 1, 999, 70_001)))
    }
    crafted.write_bundle(prefix, [(key, crafted.UINT8, (len(v),), v) for key, v in values.items()])
    reader = crafted.open_reader(prefix)
    memory = {key: np.empty(len(value), np.uint8) for key, value in values.items()}
    reader.read([(key, array.ctypes.data, array.nbytes) for key, array in memory.items()])
    assert {key: array.tobytes() for key, array in memory.items()} == values


def test_memory_at_address_zero_is_refused_instead_of_touched(prefix: Path) -> None:
    crafted.write_bundle(prefix, [(b"x", 6, (3,), b"abc")])
    with pytest.raises(ValueError, match="no memory at address 0"):
        crafted.open_reader(prefix).read([(b"x", 0, 3)])
