"""Tensors of strings: parts, slices, very long strings, and no more memory than the strings need."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import witness
from native import crafted
from native.memory import growth_in_mib, write_sparse

from torch_trackckpt._native import crc32c
from torch_trackckpt.errors import DataLossError

WORDS = np.array([b"word %d " % i * i for i in range(24)], object).reshape(4, 6)
ALL = crafted.ALL


def crc_of_zeros(count: int, crc: int) -> int:
    block = bytes(1 << 18)
    for _ in range(count // len(block)):
        crc = crc32c(block, crc)
    return crc32c(bytes(count % len(block)), crc)


def write_long_string(prefix: Path, length: int, flipped: bool = False) -> None:
    """One string of zeros, for which there is no space on the disk."""
    head = crafted.varint(length)
    length_crc = witness.crc32c(length.to_bytes(4 if length < 1 << 32 else 8, "little"))
    checksum = witness.mask(length_crc).to_bytes(4, "little")
    crc = crc_of_zeros(length, witness.crc32c(checksum, length_crc))
    size = len(head) + 4 + length
    record = crafted.entry(crafted.STRING, (), size=size, crc32c=witness.mask(crc))
    crafted.write_crafted(prefix, {b"long": record})
    parts = {0: head + checksum} | ({size - 1: b"\1"} if flipped else {})
    write_sparse(Path(f"{prefix}.data-00000-of-00001"), size, parts)


@pytest.fixture
def memory_prefix(tmp_path: Path) -> Iterator[Path]:
    """A prefix in a file system that reads a file of zeros without finding room for it, where there is one."""
    fast = Path("/dev/shm")
    with TemporaryDirectory(dir=fast if os.access(fast, os.W_OK) else tmp_path) as folder:
        yield Path(folder) / "ckpt"


@pytest.mark.parametrize(
    "extents", [(ALL, ALL), ((0, 4), (0, 6)), ((1, 2), (3, 2)), ((3, 1), ALL), (ALL, (5, 1)), ((4, 0), ALL)]
)
@pytest.mark.parametrize("key", [b"whole", b"cut"])
def test_parts_of_strings_come_in_row_major_order(prefix: Path, key: bytes, extents: crafted.Extents) -> None:
    """C372"""
    bundle = crafted.Bundle()
    bundle.add_array(b"whole", crafted.STRING, WORDS)
    bundle.add_slices(b"cut", crafted.STRING, WORDS, [(ALL, (0, 5)), ((0, 3), (5, 1)), ((3, 1), (5, 1))])
    reader = bundle.write(prefix)
    assert reader.read_strings(key, extents) == WORDS[crafted.as_index(extents)].ravel().tolist()
    assert reader.read_strings(key) == WORDS.ravel().tolist()


def test_a_part_outside_of_the_strings_is_refused(prefix: Path) -> None:
    crafted.write_bundle(prefix, [(b"words", crafted.STRING, (2,), [b"a", b"b"])])
    reader = crafted.open_reader(prefix)
    for extents in ((), ((0, 3),), ((2, 1),), ((-1, 1),), (ALL, ALL)):
        with pytest.raises(ValueError, match="words"):
            reader.read_strings(b"words", extents)
    assert reader.read_strings(b"words", None) == [b"a", b"b"]


def test_strings_without_elements_have_parts_without_elements(prefix: Path) -> None:
    crafted.write_bundle(prefix, [(b"none", crafted.STRING, (0, 3), [])])
    assert crafted.open_reader(prefix).read_strings(b"none", (ALL, (1, 2))) == []


def test_a_damaged_slice_of_strings_costs_only_those_who_need_it(prefix: Path) -> None:
    """C383"""
    bundle = crafted.Bundle()
    bundle.add_slices(b"cut", crafted.STRING, WORDS, [((0, 2), ALL), ((2, 2), ALL)], range(2))
    reader = bundle.write(prefix)
    crafted.flip(Path(f"{prefix}.data-00001-of-00002"), 0)
    assert reader.read_strings(b"cut", ((1, 1), ALL)) == WORDS[1].tolist()
    for call in (lambda: reader.read_strings(b"cut"), lambda: reader.verify([b"cut"])):
        with pytest.raises(DataLossError, match=r"length checksum.*cut \(slice 2,2:-\)"):
            call()


def test_the_old_layout_of_strings_is_the_same_for_all_lengths_below_4_gib(prefix: Path) -> None:
    """C377: lengths as 32-bit varints, which enter their checksum as 32-bit numbers."""
    words = [b"", b"a" * 127, b"b" * 128, b"c" * 16384, b"d" * (1 << 21)]
    lengths = np.array([len(word) for word in words], "<u4").tobytes()
    crc = crc32c(lengths)
    rest = witness.mask(crc).to_bytes(4, "little") + b"".join(words)
    stored = b"".join(crafted.varint(len(word)) for word in words) + rest
    record = crafted.entry(crafted.STRING, (5,), size=len(stored), crc32c=witness.mask(crc32c(rest, crc)))
    crafted.write_crafted(prefix, {b"old": record}, stored, crafted.header(producer=0))
    reader = crafted.open_reader(prefix)
    assert reader.read_strings(b"old") == words
    reader.verify([b"old"])


@pytest.mark.parametrize("count", [52_428, 52_429, 600_000])
def test_lengths_that_fill_several_portions_are_read(prefix: Path, count: int) -> None:
    """C358: varints of two bytes lie across the boundaries of what is read at once."""
    words = [bytes([i % 251]) * (128 + i % 3) for i in range(64)]
    values = [words[i * i % 64] for i in range(count)]
    crafted.write_bundle(prefix, [(b"k", 4, (1,), b"k"), (b"words", crafted.STRING, (count,), values)])
    reader = crafted.open_reader(prefix)
    assert reader.read_strings(b"words") == values
    reader.verify([b"words"])


@pytest.mark.memory
def test_a_string_beyond_4_gib_is_verified_in_a_few_megabytes(memory_prefix: Path) -> None:
    """C358: its length enters the length checksum as a 64-bit number."""
    prefix = memory_prefix
    write_long_string(prefix, (1 << 32) + 5)
    growth = growth_in_mib(prefix, "reader.verify([b'long'])")
    assert growth < 4


def test_a_flipped_byte_at_the_end_of_a_long_string_is_found(prefix: Path) -> None:
    """C382"""
    write_long_string(prefix, 1 << 26, flipped=True)
    with pytest.raises(DataLossError, match="Checksum does not match"):
        crafted.open_reader(prefix).verify([b"long"])


@pytest.mark.memory
def test_many_empty_strings_need_little_more_than_their_bytes(prefix: Path) -> None:
    """C390: a byte of the file, eight for the place of a string, and eight for that in Python's list."""
    count = 1 << 22
    length_crc = crc_of_zeros(4 * count, 0)
    checksum = witness.mask(length_crc).to_bytes(4, "little")
    crc = witness.mask(witness.crc32c(checksum, length_crc))
    record = crafted.entry(crafted.STRING, (count,), size=count + 4, crc32c=crc)
    crafted.write_crafted(prefix, {b"none": record}, bytes(count) + checksum)
    assert growth_in_mib(prefix, "reader.verify([b'none'])") < 4
    assert 4 * (8 + 8) - 4 < growth_in_mib(prefix, "reader.read_strings(b'none')") < 4 * (1 + 8 + 8) + 4


@pytest.mark.memory
def test_the_memory_of_long_strings_is_theirs_and_that_of_the_result(prefix: Path) -> None:
    write_long_string(prefix, 64 << 20)
    growth = growth_in_mib(prefix, "reader.read_strings(b'long')")
    assert 128 - 4 < growth < 128 + 4
