"""Files whose numbers lie with their high byte first."""

from pathlib import Path

import numpy as np
import pytest
import witness
from native import crafted

from torch_trackckpt._native import BundleReader
from torch_trackckpt.errors import DataLossError, UnsupportedFormatError

NUMBERS = {
    1: "f4", 2: "f8", 3: "i4", 4: "u1", 5: "i2", 6: "i1", 8: "c8", 9: "i8", 10: "?", 13: "i4", 14: "u2", 15: "i2",
    16: "u2", 17: "u2", 18: "c16", 19: "f2", 22: "u4", 23: "u8", 24: "u1", 25: "u1", 29: "u1", 31: "u1", 33: "u1",
}  # fmt: skip


def numbers(dtype: int, count: int) -> crafted.Array:
    rng = np.random.default_rng(dtype)
    content = np.frombuffer(rng.bytes(count * np.dtype(NUMBERS[dtype]).itemsize), NUMBERS[dtype])
    # A bool is read as 0 or 1.
    return (content.view(np.uint8) & 1).view(np.bool_) if dtype == 10 else content


def read(reader: BundleReader, key: bytes, like: crafted.Array, offset: int = 0) -> bytes:
    """Through memory that may begin at any address."""
    memory = np.empty(like.nbytes + offset, np.uint8)
    reader.read([(key, memory.ctypes.data + offset, like.nbytes)])
    return memory[offset:].tobytes()


@pytest.mark.parametrize(("name", "is_big_endian"), [("crafted_big_endian", True), ("v2_dtypes", False)])
def test_a_reader_tells_the_byte_order_of_the_files(name: str, is_big_endian: bool) -> None:
    """C376"""
    reader = crafted.open_reader(crafted.GOLDEN / str(crafted.MANIFEST[name]["prefix"]))
    assert reader.is_big_endian is is_big_endian


@pytest.mark.parametrize("count", [0, 1, 7, 1000, crafted.CHUNK // 2 + 3])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_elements_of_every_type_arrive_in_the_order_of_this_machine(prefix: Path, dtype: int, count: int) -> None:
    """C376"""
    array = numbers(dtype, count)
    bundle = crafted.Bundle("big")
    bundle.add(b"one byte", crafted.UINT8, (1,), b"!")
    bundle.add_array(b"x", dtype, array)
    reader = bundle.write(prefix)
    for offset in (0, 1, 3):
        assert read(reader, b"x", array, offset) == array.tobytes()
    reader.verify([b"x"])


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_parts_arrive_in_the_order_of_this_machine(prefix: Path, dtype: int, verify: bool) -> None:
    """C376: short runs that are read together, a long one that is read straight, and a cut tensor."""
    array = numbers(dtype, 300 * 2000).reshape(300, 2000)
    bundle = crafted.Bundle("big")
    bundle.add_array(b"whole", dtype, array)
    bundle.add_slices(b"cut", dtype, array, [((0, 7), crafted.ALL), ((7, 293), (0, 1)), ((7, 293), (1, 1999))])
    reader = bundle.write(prefix)
    assert read(reader, b"cut", array) == array.tobytes()
    for extents in (((1, 290), (3, 5)), (crafted.ALL, (0, 1999)), ((5, 290), crafted.ALL), ((9, 1), (9, 1))):
        expected = np.ascontiguousarray(array[crafted.as_index(extents)])
        for key in (b"whole", b"cut"):
            assert crafted.read_part(reader, key, extents, expected, verify=verify).tobytes() == expected.tobytes()


def test_checksums_cover_the_bytes_as_they_lie_in_the_file(prefix: Path) -> None:
    """C376"""
    array = numbers(1, 4)
    bundle = crafted.Bundle("big")
    bundle.add_array(b"x", 1, array)
    crc = witness.mask(witness.crc32c(array.tobytes()))
    bundle.entries[b"x"] = crafted.entry(1, (4,), size=16, crc32c=crc)
    with pytest.raises(DataLossError, match="Checksum does not match"):
        read(bundle.write(prefix), b"x", array)


WORDS = [b"ab", b"", b"x" * 300]


def test_strings_have_their_length_checksum_with_the_high_byte_first(prefix: Path) -> None:
    """C376"""
    bundle = crafted.Bundle("big")
    bundle.add(b"words", crafted.STRING, (3,), WORDS)
    reader = bundle.write(prefix)
    assert reader.read_strings(b"words") == WORDS
    assert reader.read_strings(b"words", ((1, 2),)) == WORDS[1:]
    reader.verify([b"words"])


@pytest.mark.parametrize(("stored", "declared"), [("little", 1), ("big", 0)])
def test_strings_of_the_other_byte_order_are_damage(prefix: Path, stored: crafted.ByteOrder, declared: int) -> None:
    """C376"""
    content, crc = crafted.encode_strings(WORDS, stored)
    record = crafted.entry(crafted.STRING, (3,), size=len(content), crc32c=crc)
    crafted.write_crafted(prefix, {b"words": record}, content, crafted.header(endianness=declared))
    with pytest.raises(DataLossError, match="length checksum"):
        crafted.open_reader(prefix).read_strings(b"words")


@pytest.mark.parametrize("endianness", [2, -1, 1 << 30])
def test_an_unknown_byte_order_is_refused_with_its_number(prefix: Path, endianness: int) -> None:
    crafted.write_crafted(prefix, {}, head=crafted.header(endianness=endianness))
    with pytest.raises(UnsupportedFormatError, match=f"endianness {endianness}"):
        crafted.open_reader(prefix)
