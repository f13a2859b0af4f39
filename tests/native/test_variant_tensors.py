"""Tensors of variants, and of types that nobody knows."""

from pathlib import Path

import numpy as np
import pytest
import witness
from native import crafted

from torch_trackckpt.errors import DataLossError, UnsupportedFormatError

VARIANT = 21
GOLDEN = crafted.GOLDEN / "variant" / "ckpt"
MESSAGES = [b"", b"\n\5hello", b"\x12\xac\x02" + b"m" * 300]


def encode_variants(messages: list[bytes]) -> tuple[bytes, int]:
    """The stored form and its masked checksum."""
    stored, crc = b"", 0
    for message in messages:
        crc = witness.crc32c(len(message).to_bytes(8, "little") + message, crc)
        checksum = witness.mask(crc).to_bytes(4, "little")
        crc = witness.crc32c(checksum, crc)
        stored += crafted.varint(len(message)) + message + checksum
    return stored, witness.mask(crc)


def write_variants(prefix: Path, shape: tuple[int, ...] = (3,), **bent: int) -> bytes:
    stored, crc = encode_variants(MESSAGES)
    place = {"offset": 1, "size": len(stored), "crc32c": crc} | bent
    entries = {
        b"variants": crafted.entry(VARIANT, shape, 0, place["offset"], place["size"], place["crc32c"]),
        b"number": crafted.entry(crafted.UINT8, (1,), size=1, crc32c=witness.mask(witness.crc32c(b"!"))),
    }
    crafted.write_crafted(prefix, entries, b"!" + stored)
    return stored


def is_tensor_list(message: bytes) -> bool:
    """The first field of a VariantTensorDataProto is the name of its type."""
    return next(witness.message_fields(message)) == (1, b"tensorflow::TensorList")


def test_variants_of_tensorflow_are_split_into_their_messages() -> None:
    """C381"""
    reader = crafted.open_reader(GOLDEN)
    assert {found.key: (found.dtype, found.shape) for found in reader.entries()} == {
        b"matrix": (VARIANT, (2, 2)),
        b"none": (VARIANT, (0, 2)),
        b"number": (crafted.INT32, (1,)),
        b"scalar": (VARIANT, ()),
    }
    scalar, matrix = reader.read_variants(b"scalar"), reader.read_variants(b"matrix")
    assert len(scalar) == 1
    assert [message == scalar[0] for message in matrix] == [True, False, False, True]
    assert all(map(is_tensor_list, matrix))
    tensors = [field for field, _ in witness.message_fields(matrix[2]) if field == 3]
    assert (len(tensors), len(matrix[2]) > 127) == (20, True)
    assert reader.read_variants(b"none") == []
    reader.check([b"scalar", b"matrix", b"none"])
    reader.verify([b"scalar", b"matrix", b"none"])


def test_numbers_beside_variants_are_read() -> None:
    """C381"""
    reader = crafted.open_reader(GOLDEN)
    found = reader.find(b"number")
    assert found is not None
    assert crafted.read_value(reader, found) == (7).to_bytes(4, "little")


def test_a_variant_is_not_read_as_numbers_or_strings(prefix: Path) -> None:
    """C381"""
    stored = write_variants(prefix)
    reader = crafted.open_reader(prefix)
    memory = np.full(len(stored), 0xA5, np.uint8)
    with pytest.raises(UnsupportedFormatError, match="variants is a variant tensor"):
        reader.read([(b"variants", memory.ctypes.data, len(stored))])
    with pytest.raises(UnsupportedFormatError, match="variants is a variant tensor"):
        reader.read_slice(b"variants", ((0, 1),), memory.ctypes.data, 1, verify=False)
    with pytest.raises(ValueError, match="variants is no string tensor"):
        reader.read_strings(b"variants")
    with pytest.raises(ValueError, match="number is no variant tensor"):
        reader.read_variants(b"number")
    assert (memory == 0xA5).all()


def test_variants_that_lie_in_slices_are_put_in_order(prefix: Path) -> None:
    bundle = crafted.Bundle()
    slices: list[crafted.Extents] = [((1, 2),), ((0, 1),)]
    for extents, messages in zip(slices, (MESSAGES[1:], MESSAGES[:1]), strict=True):
        stored, crc = encode_variants(messages)
        offset = len(bundle.shards[0])
        key = witness.slice_key(b"cut", extents)
        bundle.entries[key] = crafted.entry(VARIANT, (len(messages),), 0, offset, len(stored), crc)
        bundle.shards[0] += stored
    bundle.entries[b"cut"] = crafted.entry(VARIANT, (3,), slices=slices)
    reader = bundle.write(prefix)
    assert reader.read_variants(b"cut") == MESSAGES
    reader.verify([b"cut"])


def test_every_byte_of_a_variant_tensor_is_covered_by_a_checksum(prefix: Path) -> None:
    """C382"""
    stored = write_variants(prefix)
    data = Path(f"{prefix}.data-00000-of-00001")
    reader = crafted.open_reader(prefix)
    assert reader.read_variants(b"variants") == MESSAGES
    for position in range(1, 1 + len(stored)):
        crafted.flip(data, position, 0x80)
        with pytest.raises(DataLossError, match="variants"):
            reader.read_variants(b"variants")
        with pytest.raises(DataLossError, match="variants"):
            reader.verify([b"variants"])
        crafted.flip(data, position, 0x80)


@pytest.mark.parametrize(
    ("shape", "bent"),
    [
        ((2,), {}),
        ((4,), {}),
        ((1 << 40,), {}),
        ((1 << 62,), {}),
        ((3,), {"size": 14}),
        ((3,), {"size": 15}),
        ((3,), {"size": 1 << 40}),
        ((0,), {}),
        ((3,), {"crc32c": 1}),
    ],
)
def test_a_variant_tensor_that_contradicts_itself_is_refused(
    prefix: Path, shape: tuple[int, ...], bent: dict[str, int]
) -> None:
    """C390"""
    write_variants(prefix, shape, **bent)
    reader = crafted.open_reader(prefix)
    for call in (lambda: reader.read_variants(b"variants"), lambda: reader.verify([b"variants"])):
        with pytest.raises(DataLossError, match="variants"):
            call()


@pytest.mark.parametrize("length", [b"\xff" * 9 + b"\1", b"\xff" * 9 + b"\2", b"\x7f", b"\x80\x80\x80\x80\x80"])
def test_a_length_past_the_end_of_a_variant_is_refused(prefix: Path, length: bytes) -> None:
    """C390"""
    stored = length + bytes(10)
    crafted.write_crafted(prefix, {b"variants": crafted.entry(VARIANT, (), size=len(stored))}, stored)
    with pytest.raises(DataLossError, match="variants"):
        crafted.open_reader(prefix).read_variants(b"variants")


def test_variants_of_the_other_byte_order_are_refused(prefix: Path) -> None:
    stored, crc = encode_variants(MESSAGES)
    entries = {b"variants": crafted.entry(VARIANT, (3,), size=len(stored), crc32c=crc)}
    crafted.write_crafted(prefix, entries, stored, crafted.header(endianness=1))
    reader = crafted.open_reader(prefix)
    assert [found.key for found in reader.entries()] == [b"variants"]
    with pytest.raises(UnsupportedFormatError, match="byte order"):
        reader.read_variants(b"variants")


@pytest.mark.parametrize("dtype", [20, 34, 77, 101, 121, (1 << 31) - 1, -1])
def test_a_type_that_nobody_knows_is_listed_and_refused_with_its_number(prefix: Path, dtype: int) -> None:
    """C381, C390"""
    slices: list[crafted.Extents] = [((0, 1),)]
    bundle = crafted.Bundle()
    bundle.add(b"known", crafted.UINT8, (1,), b"!")
    bundle.entries[b"strange"] = crafted.entry(dtype, (1,), size=1)
    bundle.entries[b"strange slices"] = crafted.entry(dtype, (1,), slices=slices)
    reader = bundle.write(prefix)
    assert [(found.key, found.dtype) for found in reader.entries()] == [
        (b"known", crafted.UINT8),
        (b"strange", dtype),
        (b"strange slices", dtype),
    ]
    memory = np.empty(1, np.uint8)
    for key in (b"strange", b"strange slices"):
        for call in (
            lambda key=key: reader.read([(key, memory.ctypes.data, 1)]),
            lambda key=key: reader.read_slice(key, ((0, 1),), memory.ctypes.data, 1, verify=True),
            lambda key=key: reader.read_strings(key),
            lambda key=key: reader.read_variants(key),
            lambda key=key: reader.check([key]),
            lambda key=key: reader.verify([key]),
        ):
            with pytest.raises(UnsupportedFormatError, match=f"{key.decode()} has DataType {dtype}"):
                call()
    reader.verify([b"known"])
