"""Damaged, cut and contradictory files: a named error with a place, never a wrong value."""

import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import witness
from hypothesis import given, settings
from hypothesis import strategies as st
from native import crafted

from torch_trackckpt._native import BundleReader
from torch_trackckpt.errors import (
    CheckpointNotFoundError,
    DataLossError,
    TrackckptError,
    UnsupportedFormatError,
)

BIG = crafted.CHUNK + 1
FILL = 0xA5
METAINDEX_BLOCK = bytes.fromhex("0000000001000000 00 c0f2a1b0")


def data_file(prefix: Path) -> Path:
    return Path(f"{prefix}.data-00000-of-00001")


def index_file(prefix: Path) -> Path:
    return Path(f"{prefix}.index")


def destination(size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.full(size, FILL, np.uint8)


def is_untouched(memory: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> bool:
    return bool((memory == FILL).all())


def value_of(prefix: Path, key: bytes) -> bytes | list[bytes]:
    reader = crafted.open_reader(prefix)
    found = reader.find(key)
    assert found is not None
    return crafted.read_value(reader, found)


@pytest.fixture
def numbers(prefix: Path) -> Path:
    """Three tensors: a at offset 0, b at 4, c at 8."""
    tensors: list[crafted.Tensor] = [
        (b"layer/a", crafted.UINT8, (4,), b"aaaa"),
        (b"layer/b", crafted.UINT8, (4,), b"bbbb"),
        (b"layer/c", crafted.UINT8, (4,), b"cccc"),
    ]
    crafted.write_bundle(prefix, tensors)
    return prefix


# ----------------------------------------------------------------------------------------------- values


def test_a_flipped_byte_is_found_and_other_tensors_are_read(numbers: Path) -> None:
    """C382, C355"""
    crafted.flip(data_file(numbers), 5)
    with pytest.raises(DataLossError, match="Checksum does not match") as caught:
        value_of(numbers, b"layer/b")
    assert "layer/b" in str(caught.value)
    assert str(data_file(numbers)) in str(caught.value)
    assert (value_of(numbers, b"layer/a"), value_of(numbers, b"layer/c")) == (b"aaaa", b"cccc")


def test_verify_finds_the_flipped_byte_and_keeps_to_the_keys_it_was_given(numbers: Path) -> None:
    """C382"""
    crafted.flip(data_file(numbers), 11)
    reader = crafted.open_reader(numbers)
    reader.verify([b"layer/a", b"layer/b"])
    with pytest.raises(DataLossError, match=r"layer/c(.|\n)*Checksum does not match|Checksum(.|\n)*layer/c"):
        reader.verify([b"layer/a", b"layer/b", b"layer/c"])


@pytest.mark.parametrize("position", range(12))
def test_every_single_byte_is_covered_by_a_checksum(numbers: Path, position: int) -> None:
    """C382"""
    crafted.flip(data_file(numbers), position, bits=0x80)
    with pytest.raises(DataLossError, match="Checksum does not match"):
        crafted.read_bundle(numbers)


def test_a_stored_checksum_of_zero_is_checked_too(prefix: Path) -> None:
    crafted.write_crafted(prefix, {b"k": crafted.entry(crafted.UINT8, (1,), size=1)}, b"a")
    with pytest.raises(DataLossError, match="Checksum does not match"):
        value_of(prefix, b"k")


@pytest.mark.parametrize("position", [0, 1])
def test_flipped_string_lengths_are_found(prefix: Path, position: int) -> None:
    """C383"""
    crafted.write_bundle(prefix, [(b"words", crafted.STRING, (2,), [b"ab", b"cdef"]), (b"k", 4, (1,), b"k")])
    crafted.flip(data_file(prefix), position)
    with pytest.raises(DataLossError, match="length checksum") as caught:
        value_of(prefix, b"words")
    assert "words" in str(caught.value)
    assert value_of(prefix, b"k") == b"k"


def test_exchanged_string_lengths_are_found(prefix: Path) -> None:
    """C383"""
    crafted.write_bundle(prefix, [(b"words", crafted.STRING, (2,), [b"ab", b"cdef"])])
    stored = data_file(prefix).read_bytes()
    data_file(prefix).write_bytes(stored[1::-1] + stored[2:])
    with pytest.raises(DataLossError, match="length checksum"):
        value_of(prefix, b"words")


@pytest.mark.parametrize("position", [2, 3, 4, 5])
def test_a_flipped_length_checksum_is_found(prefix: Path, position: int) -> None:
    """C383"""
    crafted.write_bundle(prefix, [(b"words", crafted.STRING, (2,), [b"ab", b"cdef"])])
    crafted.flip(data_file(prefix), position)
    with pytest.raises(DataLossError, match="length checksum"):
        value_of(prefix, b"words")


def test_flipped_string_content_is_found(prefix: Path) -> None:
    """C382"""
    crafted.write_bundle(prefix, [(b"words", crafted.STRING, (2,), [b"ab", b"cdef"])])
    crafted.flip(data_file(prefix), -1)
    with pytest.raises(DataLossError, match="Checksum does not match"):
        value_of(prefix, b"words")


@pytest.mark.parametrize(
    ("shape", "stored"),
    [
        pytest.param((1,), b"", id="no bytes for one element"),
        pytest.param((0,), b"\xd8\xea\x82", id="a cut checksum"),
        pytest.param((1,), b"\x05\xd8\xea\x82\xa2", id="length past the end"),
        pytest.param((1,), b"\xff" * 9 + b"\x01\xd8\xea\x82\xa2", id="length of 2 to the 64th"),
        pytest.param((1,), b"\xff" * 20, id="varint without an end"),
        pytest.param((2,), b"\x80\x80", id="cut varint"),
        pytest.param((3,), b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f" * 3 + bytes(4), id="sum beyond 64 bits"),
        pytest.param((1 << 40,), b"\0" * 20, id="more elements than bytes"),
    ],
)
def test_string_tensors_that_contradict_themselves_are_refused(
    prefix: Path, shape: tuple[int, ...], stored: bytes
) -> None:
    """C383"""
    crc = witness.mask(witness.crc32c(stored))
    record = crafted.entry(crafted.STRING, shape, size=len(stored), crc32c=crc)
    crafted.write_crafted(prefix, {b"words": record}, stored)
    with pytest.raises(DataLossError, match="words"):
        value_of(prefix, b"words")


# --------------------------------------------------------------------- what a failing read leaves behind


@pytest.mark.parametrize("size", [1, 4096, crafted.CHUNK])
def test_a_damaged_value_up_to_a_chunk_leaves_its_memory_untouched(prefix: Path, size: int) -> None:
    """C382"""
    tensors: list[crafted.Tensor] = [(b"bad", crafted.UINT8, (size,), bytes(size))]
    crafted.write_bundle(prefix, tensors)
    crafted.flip(data_file(prefix), size - 1)
    memory = destination(size)
    with pytest.raises(DataLossError, match="Checksum does not match") as caught:
        crafted.open_reader(prefix).read([(b"bad", memory.ctypes.data, size)])
    assert is_untouched(memory)
    assert getattr(caught.value, "touched", None) == []


def test_a_damaged_value_beyond_a_chunk_was_read_in_place(prefix: Path) -> None:
    """C382"""
    value = np.random.default_rng(0).bytes(BIG)
    crafted.write_bundle(prefix, [(b"bad", crafted.UINT8, (BIG,), value)])
    crafted.flip(data_file(prefix), BIG - 1)
    memory = destination(BIG)
    with pytest.raises(DataLossError, match="Checksum does not match") as caught:
        crafted.open_reader(prefix).read([(b"bad", memory.ctypes.data, BIG)])
    assert memory.tobytes()[: crafted.CHUNK] == value[: crafted.CHUNK]
    assert getattr(caught.value, "touched", None) == [0]


@pytest.mark.parametrize("num_sound", [0, 1, 2])
def test_a_failing_read_tells_which_requests_were_served(numbers: Path, num_sound: int) -> None:
    keys = [b"layer/a", b"layer/b", b"layer/c"]
    crafted.flip(data_file(numbers), 4 * num_sound)
    memory = {key: destination(4) for key in keys}
    with pytest.raises(DataLossError, match=keys[num_sound].decode()) as caught:
        crafted.open_reader(numbers).read([(key, memory[key].ctypes.data, 4) for key in keys])
    assert getattr(caught.value, "touched", None) == list(range(num_sound))
    for key in keys[:num_sound]:
        assert memory[key].tobytes() == key[-1:] * 4
    assert is_untouched(memory[keys[num_sound]])


def test_requests_are_served_in_the_order_of_the_file_and_named_by_that_of_the_call(numbers: Path) -> None:
    crafted.flip(data_file(numbers), 4)
    memory = {key: destination(4) for key in (b"layer/c", b"layer/a", b"layer/b")}
    with pytest.raises(DataLossError, match="layer/b") as caught:
        crafted.open_reader(numbers).read([(key, array.ctypes.data, 4) for key, array in memory.items()])
    assert getattr(caught.value, "touched", None) == [1]
    assert memory[b"layer/a"].tobytes() == b"aaaa"
    assert is_untouched(memory[b"layer/b"])
    assert is_untouched(memory[b"layer/c"])


def test_a_failure_after_large_values_names_them(prefix: Path) -> None:
    tensors: list[crafted.Tensor] = [
        (b"a", crafted.UINT8, (BIG,), bytes(BIG)),
        (b"b", crafted.UINT8, (1,), b"b"),
    ]
    crafted.write_bundle(prefix, tensors)
    crafted.flip(data_file(prefix), BIG)
    large, small = destination(BIG), destination(1)
    with pytest.raises(DataLossError, match="b") as caught:
        crafted.open_reader(prefix).read([(b"a", large.ctypes.data, BIG), (b"b", small.ctypes.data, 1)])
    assert getattr(caught.value, "touched", None) == [0]
    assert large.tobytes() == bytes(BIG)
    assert is_untouched(small)


# ------------------------------------------------------------------------------------------- data files


@pytest.mark.parametrize(("size", "num_sound"), [(11, 2), (8, 2), (7, 1), (4, 1), (3, 0), (0, 0)])
def test_a_cut_data_file_costs_only_the_tensors_beyond_the_cut(numbers: Path, size: int, num_sound: int) -> None:
    """C384, C385"""
    crafted.cut(data_file(numbers), size)
    keys = [b"layer/a", b"layer/b", b"layer/c"]
    for key in keys[:num_sound]:
        assert value_of(numbers, key) == key[-1:] * 4
    for key in keys[num_sound:]:
        with pytest.raises(DataLossError, match=key.decode()) as caught:
            value_of(numbers, key)
        assert str(data_file(numbers)) in str(caught.value)


def test_check_finds_a_cut_data_file_without_reading_values(numbers: Path) -> None:
    """C384"""
    crafted.flip(data_file(numbers), 0)
    crafted.cut(data_file(numbers), 9)
    reader = crafted.open_reader(numbers)
    reader.check([b"layer/a", b"layer/b"])
    with pytest.raises(DataLossError, match="layer/c"):
        reader.check([b"layer/a", b"layer/b", b"layer/c"])


def test_a_large_value_cut_short_is_refused(prefix: Path) -> None:
    """C384"""
    crafted.write_bundle(prefix, [(b"k", crafted.UINT8, (BIG,), bytes(BIG))])
    crafted.cut(data_file(prefix), BIG - 1)
    with pytest.raises(DataLossError, match="k"):
        value_of(prefix, b"k")


def test_a_missing_data_file_is_named_on_first_use(numbers: Path) -> None:
    """C385"""
    data_file(numbers).unlink()
    reader = crafted.open_reader(numbers)
    memory = destination(4)
    calls: list[Callable[[], None]] = [
        lambda: reader.check([b"layer/a"]),
        lambda: reader.verify([b"layer/a"]),
        lambda: reader.read([(b"layer/a", memory.ctypes.data, 4)]),
    ]
    for call in calls:
        with pytest.raises(CheckpointNotFoundError, match=re.escape(str(data_file(numbers)))):
            call()
    assert is_untouched(memory)


def test_a_missing_shard_costs_only_its_own_tensors(tmp_path: Path) -> None:
    """C385"""
    for source in (crafted.GOLDEN / "v2_merge").iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    (tmp_path / "ckpt.data-00001-of-00003").unlink()
    assert value_of(tmp_path / "ckpt", b"b") == (98).to_bytes(4, "little")
    with pytest.raises(CheckpointNotFoundError, match=r"ckpt.data-00001-of-00003"):
        value_of(tmp_path / "ckpt", b"a")


def test_failures_leave_no_file_open(numbers: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    crafted.flip(data_file(numbers), 0)
    crafted.cut(data_file(numbers), 6)
    for key in (b"layer/a", b"layer/b", b"layer/c"):
        with pytest.raises(DataLossError):
            value_of(numbers, key)
    crafted.flip(index_file(numbers), 20)
    with pytest.raises(DataLossError):
        crafted.open_reader(numbers)
    assert len(os.listdir("/proc/self/fd")) == before


# ------------------------------------------------------------------------------------------------ index


def test_a_missing_index_is_not_found(prefix: Path) -> None:
    """C386, C353"""
    with pytest.raises(CheckpointNotFoundError, match=re.escape(str(index_file(prefix)))):
        crafted.open_reader(prefix)


def swap_magic(content: bytes) -> bytes:
    return content[:-8] + content[-4:] + content[-8:-4]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda content: b"", "too short", id="empty"),
        pytest.param(lambda content: content[-47:], "too short", id="shorter than a footer"),
        pytest.param(lambda content: content[:-1], "magic", id="cut by one byte"),
        pytest.param(lambda content: content[:48], "magic", id="cut in the first block"),
        pytest.param(swap_magic, "magic", id="magic words exchanged"),
        pytest.param(lambda content: bytes(range(256)), "magic", id="garbage"),
        pytest.param(lambda content: content + b"\0", "magic", id="a byte too many"),
        pytest.param(lambda content: content[1:], "checksum|block", id="first byte lost"),
    ],
)
def test_a_damaged_index_is_data_loss(numbers: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    """C386"""
    index_file(numbers).write_bytes(damage(index_file(numbers).read_bytes()))
    with pytest.raises(DataLossError, match=message) as caught:
        crafted.open_reader(numbers)
    assert str(index_file(numbers)) in str(caught.value)


def test_a_flipped_byte_in_any_block_of_the_index_is_found(numbers: Path) -> None:
    """C387"""
    content = index_file(numbers).read_bytes()
    index_start = len(content) - 48
    metaindex_start = content.index(METAINDEX_BLOCK)
    for position in [*range(metaindex_start), *range(metaindex_start + 13, index_start)]:
        crafted.flip(index_file(numbers), position)
        with pytest.raises(DataLossError, match=r"checksum mismatch|compression|block type"):
            crafted.open_reader(numbers)
        index_file(numbers).write_bytes(content)


def test_a_flipped_byte_in_a_later_block_is_found_when_the_block_is_used(prefix: Path) -> None:
    """C387"""
    tensors: list[crafted.Tensor] = [(b"%03d" % n, crafted.UINT8, (1,), b"a") for n in range(100)]
    crafted.write_bundle(prefix, tensors, block_size=256)
    last_key, _ = witness.table_items(index_file(prefix))[-1]
    crafted.flip(index_file(prefix), index_file(prefix).read_bytes().index(METAINDEX_BLOCK) - 6)
    with pytest.raises(DataLossError, match="block checksum mismatch"):
        crafted.open_reader(prefix).entries()
    with pytest.raises(DataLossError, match="block checksum mismatch"):
        crafted.open_reader(prefix).find(last_key)


@pytest.mark.parametrize(
    "handles",
    [
        pytest.param([(0, 8), (1 << 20, 10)], id="index block past the end"),
        pytest.param([(0, 8), (0, 1 << 20)], id="index block longer than the file"),
        pytest.param([(0, 8), ((1 << 64) - 1, (1 << 64) - 1)], id="index block beyond 64 bits"),
        pytest.param([(0, 8), (-5, 5)], id="a sum that wraps round"),
    ],
)
def test_a_footer_that_points_outside_is_refused(numbers: Path, handles: list[tuple[int, int]]) -> None:
    """C386"""
    content = index_file(numbers).read_bytes()
    footer = b"".join(crafted.varint(number) for handle in handles for number in handle)
    index_file(numbers).write_bytes(content[:-48] + footer.ljust(40, b"\0")[:40] + content[-8:])
    with pytest.raises(DataLossError):
        crafted.open_reader(numbers)


@pytest.mark.parametrize(
    "contents",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\0\0\0", id="shorter than a count"),
        pytest.param(b"\xff\xff\xff\xff", id="more restart points than bytes"),
        pytest.param(b"\0\0\0\x40", id="restart points whose size wraps round"),
        pytest.param(b"\0\1\1a" + bytes(4) + b"\1\0\0\0", id="a value that runs into the restart points"),
        pytest.param(b"\3\1\0a" + bytes(4) + b"\1\0\0\0", id="a shared prefix of nothing"),
        pytest.param(b"\0\xff\xff\xff\xff\x0f\0" + bytes(4) + b"\1\0\0\0", id="a key of 4 GiB"),
        pytest.param(b"\0" + b"\xff" * 12 + bytes(4) + b"\1\0\0\0", id="a length without an end"),
        pytest.param(b"\0\0" + bytes(4) + b"\1\0\0\0", id="an entry cut short"),
    ],
)
def test_a_sealed_block_of_nonsense_is_refused(prefix: Path, contents: bytes) -> None:
    """C386"""
    index_file(prefix).write_bytes(crafted.assemble([(b"z", contents)]))
    with pytest.raises(DataLossError):
        crafted.open_reader(prefix)


def test_keys_out_of_order_are_refused(prefix: Path) -> None:
    record = crafted.entry(crafted.UINT8, (0,), crc32c=witness.mask(0))
    for keys in ([b"b", b"a"], [b"a", b"a"]):
        items = [(b"", crafted.ONE_SHARD), *((key, record) for key in keys)]
        index_file(prefix).write_bytes(crafted.table(items))
        reader = crafted.open_reader(prefix)
        with pytest.raises(DataLossError, match="order"):
            reader.entries()


def test_blocks_that_overlap_in_their_keys_are_refused(prefix: Path) -> None:
    record = crafted.entry(crafted.UINT8, (0,), crc32c=witness.mask(0))
    header = (b"", crafted.ONE_SHARD)
    for first, second, index_keys in (
        ([header, (b"c", record)], [(b"b", record)], [b"c", b"d"]),
        ([header, (b"b", record)], [(b"c", record)], [b"b", b"bb"]),
        ([header, (b"b", record)], [(b"c", record)], [b"cc", b"d"]),
    ):
        blocks = map(crafted.block, (first, second))
        index_file(prefix).write_bytes(crafted.assemble(zip(index_keys, blocks, strict=True)))
        reader = crafted.open_reader(prefix)
        with pytest.raises(DataLossError, match=r"order|separator"):
            reader.entries()


# ------------------------------------------------------------------------------------------ the header


def test_an_index_whose_first_key_is_not_the_header_is_refused(prefix: Path) -> None:
    index_file(prefix).write_bytes(crafted.table([(b"a", crafted.ONE_SHARD)]))
    with pytest.raises(DataLossError, match="header"):
        crafted.open_reader(prefix)


def test_an_index_without_entries_is_refused(prefix: Path) -> None:
    """C386"""
    index_file(prefix).write_bytes(crafted.table([]))
    with pytest.raises(DataLossError, match="header"):
        crafted.open_reader(prefix)


@pytest.mark.parametrize("head", [b"\x08", b"\x1a\x05\x08", b"\xff" * 11, b"\x0b", b"\x08" + b"\xff" * 10])
def test_a_header_that_is_no_message_is_refused(prefix: Path, head: bytes) -> None:
    crafted.write_crafted(prefix, {}, head=head)
    with pytest.raises(DataLossError, match="header"):
        crafted.open_reader(prefix)


def test_versions_that_exclude_this_reader_have_messages_of_their_own(prefix: Path) -> None:
    """C389"""
    messages = []
    for head in (
        crafted.header(min_consumer=2),
        crafted.header(bad_consumers=(0, 1)),
        crafted.header(producer=-1),
    ):
        crafted.write_crafted(prefix, {}, head=head)
        with pytest.raises(UnsupportedFormatError) as caught:
            crafted.open_reader(prefix)
        assert str(prefix) in str(caught.value)
        messages.append(re.sub(r"\d+", "", str(caught.value)))
    assert len(set(messages)) == 3


def test_bad_consumers_are_read_packed_and_unpacked(prefix: Path) -> None:
    """C389"""
    unpacked = crafted.number_field(1, 1) + crafted.number_field(3, 5) + crafted.number_field(3, 1)
    head = crafted.number_field(1, 1) + crafted.message_field(3, unpacked)
    crafted.write_crafted(prefix, {}, head=head)
    with pytest.raises(UnsupportedFormatError):
        crafted.open_reader(prefix)


@pytest.mark.parametrize("num_shards", [0, -1])
def test_a_number_of_shards_below_one_is_refused_before_any_value(prefix: Path, num_shards: int) -> None:
    record = crafted.entry(crafted.UINT8, (1,), size=1, crc32c=witness.mask(witness.crc32c(b"a")))
    crafted.write_crafted(prefix, {b"k": record}, b"a", crafted.header(num_shards=num_shards))
    with pytest.raises((DataLossError, CheckpointNotFoundError)):
        value_of(prefix, b"k")


# ---------------------------------------------------------------------------------------------- entries


SOUND = crafted.entry(crafted.UINT8, (1,), size=1, crc32c=witness.mask(witness.crc32c(b"a")))
CONTRADICTORY = {
    "negative dimension": crafted.entry(crafted.UINT8, (-1,), size=1),
    "two negative dimensions": crafted.entry(crafted.UINT8, (-1, -1), size=1),
    "size too small": crafted.entry(crafted.FLOAT, (2,), size=4),
    "size too large": crafted.entry(crafted.FLOAT, (2,), size=9),
    "size of nothing": crafted.entry(crafted.FLOAT, (2,)),
    "negative size": crafted.entry(crafted.UINT8, (1,), size=-1),
    "negative offset": crafted.entry(crafted.UINT8, (1,), offset=-1, size=1),
    "offset past the end": crafted.entry(crafted.UINT8, (1,), offset=1 << 40, size=1),
    "end beyond 63 bits": crafted.entry(crafted.UINT8, (2,), offset=(1 << 63) - 1, size=2),
    "element count of 2 to the 64th": crafted.entry(crafted.UINT8, (1 << 32, 1 << 32)),
    "byte count of 2 to the 64th": crafted.entry(crafted.FLOAT, (1 << 62,)),
    "element count that wraps round to the size": crafted.entry(crafted.UINT8, ((1 << 62) + 1, 4), size=4),
    "larger than any file": crafted.entry(crafted.UINT8, (1 << 60,), size=1 << 60),
    "shard beyond the last": crafted.entry(crafted.UINT8, (1,), shard_id=1, size=1),
    "negative shard": crafted.entry(crafted.UINT8, (1,), shard_id=-1, size=1),
    "unknown dtype": crafted.entry(77, (1,), size=1),
    "no dtype": crafted.entry(0, (1,), size=1),
    "reference dtype": crafted.entry(101, (1,), size=4),
    "resource": crafted.entry(20, (1,), size=1),
    "not a message": b"\xff" * 11,
    "cut message": SOUND[:-1],
}


def use(prefix: Path, key: bytes, call: str) -> None:
    """Opens the bundle and asks for one value through one of the calls of the reader."""
    reader = crafted.open_reader(prefix)
    if call == "read":
        memory = destination(64)
        found = reader.find(key)
        assert found is not None
        reader.read([(key, memory.ctypes.data, min(max(found.size, 0), 64))])
    else:
        getattr(reader, call)([key])


@pytest.mark.parametrize("call", ["check", "verify", "read"])
@pytest.mark.parametrize("record", CONTRADICTORY.values(), ids=list(CONTRADICTORY))
def test_an_entry_that_contradicts_itself_is_refused_by_name(prefix: Path, record: bytes, call: str) -> None:
    crafted.write_crafted(prefix, {b"layer/bad": record, b"layer/good": SOUND}, b"a" + bytes(15))
    with pytest.raises(TrackckptError, match="layer/bad") as caught:
        use(prefix, b"layer/bad", call)
    assert isinstance(caught.value, (DataLossError, UnsupportedFormatError, ValueError))


@pytest.mark.parametrize("kind", ["unknown dtype", "resource", "offset past the end", "size too small"])
def test_an_entry_that_cannot_be_read_leaves_its_neighbours_readable(prefix: Path, kind: str) -> None:
    """C355, C381"""
    crafted.write_crafted(prefix, {b"bad": CONTRADICTORY[kind], b"good": SOUND}, b"a")
    assert [found.key for found in crafted.open_reader(prefix).entries()] == [b"bad", b"good"]
    assert value_of(prefix, b"good") == b"a"


# ------------------------------------------------------------------------------------ damage at random


REFUSALS = (TrackckptError, OSError, ValueError)
FUZZED = [
    *("v2_dtypes", "v2_shapes", "v2_strings", "v2_merge", "obj_adam_slots"),
    *("v2_slices_merged", "obj_sharded", "crafted_big_endian"),
]


def golden_files(name: str) -> dict[str, bytes]:
    folder = (crafted.GOLDEN / str(crafted.MANIFEST[name]["prefix"])).parent
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "checkpoint"}


def values_or_refusals(reader: BundleReader) -> dict[bytes, tuple[int, tuple[int, ...], bytes | list[bytes]]]:
    """What can still be read of a damaged bundle."""
    values = {}
    for found in reader.entries():
        try:
            reader.check([found.key])
            values[found.key] = (found.dtype, found.shape, crafted.read_value(reader, found))
        except REFUSALS:
            continue
    return values


@cache
def sound_values(name: str) -> dict[bytes, tuple[int, tuple[int, ...], bytes | list[bytes]]]:
    return values_or_refusals(crafted.open_reader(crafted.GOLDEN / str(crafted.MANIFEST[name]["prefix"])))


GOLDEN_FILES = {name: golden_files(name) for name in FUZZED}


def mutated(content: bytes, kind: str, position: int, extra: bytes) -> bytes:
    at = position % (len(content) + 1)
    if kind == "flip":
        changed = bytes(a ^ b for a, b in zip(content[at:], extra, strict=False))
        return content[:at] + changed + content[at + len(changed) :]
    if kind == "cut":
        return content[:at]
    if kind == "insert":
        return content[:at] + extra + content[at:]
    return content[:at] + content[at + len(extra) :]


@pytest.mark.parametrize("name", FUZZED)
@settings(max_examples=120)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from(["flip", "cut", "insert", "remove"]),
            st.integers(0, 1 << 16),
            st.binary(min_size=1, max_size=8),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_damage_anywhere_gives_an_error_or_the_right_values(
    name: str, mutations: list[tuple[int, str, int, bytes]]
) -> None:
    """C382, C384, C386, C387"""
    files = dict(GOLDEN_FILES[name])
    for number, kind, position, extra in mutations:
        file = list(files)[number % len(files)]
        files[file] = mutated(files[file], kind, position, extra)
    prefix_name = Path(str(crafted.MANIFEST[name]["prefix"])).name
    sound = sound_values(name)
    with TemporaryDirectory() as folder:
        for file, content in files.items():
            (Path(folder) / file).write_bytes(content)
        try:
            reader = crafted.open_reader(Path(folder) / prefix_name)
            keys = [found.key for found in reader.entries()]
        except REFUSALS:
            return
        assert keys == list(sound)
        for key, value in values_or_refusals(reader).items():
            assert value == sound[key]


@settings(max_examples=300)
@given(
    records=st.dictionaries(
        st.binary(min_size=1, max_size=4),
        st.one_of(
            st.binary(max_size=40),
            st.builds(
                crafted.entry,
                dtype=st.integers(0, 40),
                shape=st.lists(st.one_of(st.integers(-2, 5), st.integers(-(1 << 63), (1 << 63) - 1)), max_size=3),
                shard_id=st.integers(-1, 2),
                offset=st.one_of(st.integers(-2, 70), st.integers(-(1 << 63), (1 << 63) - 1)),
                size=st.one_of(st.integers(-2, 70), st.integers(-(1 << 63), (1 << 63) - 1)),
                crc32c=st.integers(0, (1 << 32) - 1),
                slices=st.lists(st.lists(st.tuples(st.integers(-1, 5), st.integers(-1, 5)), max_size=3), max_size=3),
            ),
        ),
        max_size=4,
    ),
    head=st.one_of(st.just(crafted.ONE_SHARD), st.binary(max_size=20)),
)
def test_sealed_nonsense_in_entries_is_survived(records: dict[bytes, bytes], head: bytes) -> None:
    with TemporaryDirectory() as folder:
        prefix = Path(folder) / "ckpt"
        crafted.write_crafted(prefix, records, bytes(64), head)
        try:
            reader = crafted.open_reader(prefix)
            values_or_refusals(reader)
        except REFUSALS:
            return


@settings(max_examples=300)
@given(contents=st.binary(max_size=80), in_index_block=st.booleans())
def test_sealed_nonsense_in_blocks_is_survived(contents: bytes, in_index_block: bool) -> None:
    with TemporaryDirectory() as folder:
        prefix = Path(folder) / "ckpt"
        data = crafted.seal(contents)
        index = crafted.seal(
            contents if in_index_block else crafted.block([(b"z", b"\0" + crafted.varint(len(contents)))])
        )
        handles = b"".join(map(crafted.varint, (0, 0, len(data), len(index) - 5)))
        footer = handles.ljust(40, b"\0") + witness.MAGIC.to_bytes(8, "little")
        index_file(prefix).write_bytes(data + index + footer)
        try:
            reader = crafted.open_reader(prefix)
            values_or_refusals(reader)
        except REFUSALS:
            return
