"""Files of the older format, built byte by byte: tables that hold the tensors themselves.

A tensor is stored in slices, one record each; one that is whole is one slice of `ALL` in every dimension.
"""

import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from native.crafted import message_field, number_field, table, varint

Slice = tuple[tuple[int, int], ...]
ALL = (0, -1)

# By dtype: the field of TensorProto, and the width of a value, or the struct code of the memory that a varint is of.
FIXED = {1: (5, 4), 2: (6, 8), 8: (9, 4), 18: (12, 8)}
VARINT = {3: (7, "i"), 4: (7, "B"), 5: (7, "h"), 6: (7, "b"), 9: (10, "q"), 10: (11, "?"), 11: (7, "b"), 12: (7, "B")}
VARINT |= {13: (7, "i"), 14: (13, "H"), 15: (7, "h"), 16: (7, "H"), 17: (7, "H"), 19: (13, "H")}
VARINT |= {22: (16, "I"), 23: (17, "Q")}
STRING = 7


class Record(NamedTuple):
    """A stored slice: the table's record under its key."""

    key: bytes
    value: bytes


# ------------------------------------------------------------------------------------------------- keys


def ordered_number(number: int) -> bytes:
    length = (number.bit_length() + 7) // 8
    return bytes([length]) + number.to_bytes(length, "big")


def ordered_signed(number: int) -> bytes:
    """The shortest of the forms whose payload holds the number: n bytes of which the first n bits are header."""
    length = 1
    while not -(1 << 7 * length - 1) <= number < 1 << 7 * length - 1:
        length += 1
    bits = (number & (1 << 8 * length) - 1) ^ (((1 << length) - 1) << 7 * length)
    return bits.to_bytes(length, "big")


def slice_key(name: bytes, extents: Slice) -> bytes:
    escaped = b"".join({0: b"\0\xff", 255: b"\xff\0"}.get(byte, bytes([byte])) for byte in name)
    numbers = b"".join(ordered_signed(number) for extent in extents for number in extent)
    return b"\0" + escaped + b"\0\1" + ordered_number(len(extents)) + numbers


# --------------------------------------------------------------------------------------------- messages


def slice_message(extents: Slice) -> bytes:
    return b"".join(
        message_field(1, b"" if extent == ALL else number_field(1, extent[0]) + number_field(2, extent[1]))
        for extent in extents
    )


def tensor_meta(name: bytes, dtype: int, shape: Sequence[int], slices: Sequence[Slice]) -> bytes:
    """A SavedSliceMeta."""
    dims = b"".join(message_field(2, number_field(1, dim)) for dim in shape)
    listed = b"".join(message_field(4, slice_message(extents)) for extents in slices)
    return message_field(1, name) + message_field(2, dims) + number_field(3, dtype) + listed


VERSION = message_field(2, number_field(1, 1))


def meta(tensors: Sequence[bytes], version: bytes = VERSION) -> bytes:
    """The first record, from SavedSliceMeta messages."""
    return message_field(1, b"".join(message_field(1, tensor) for tensor in tensors) + version)


def saved(name: bytes, extents: Slice, proto: bytes) -> Record:
    """The record of a slice, from its TensorProto."""
    content = message_field(1, name) + message_field(2, slice_message(extents)) + message_field(3, proto)
    return Record(slice_key(name, extents), message_field(2, content))


def proto(dtype: int, data: bytes | list[bytes], packed: bool = True) -> bytes:
    """A TensorProto with these elements, which are given as they lie in memory."""
    if isinstance(data, list):
        return b"".join(message_field(8, element) for element in data)
    if dtype in FIXED:
        field, width = FIXED[dtype]
        values = [data[at : at + width] for at in range(0, len(data), width)]
        wire_type = 5 if width == 4 else 1
    else:
        field, code = VARINT[dtype]
        values = [varint(value) for (value,) in struct.iter_unpack("<" + code, data)]
        wire_type = 0
    if packed:
        return message_field(field, b"".join(values)) if values else b""
    return b"".join(varint(field << 3 | wire_type) + value for value in values)


# ------------------------------------------------------------------------------------------------ files


def write_records(
    path: Path,
    first: bytes,
    records: Sequence[Record] = (),
    *,
    block_size: int = 262144,
    restart_interval: int = 16,
    compress: Callable[[bytes], bytes] | None = None,
) -> Path:
    """A file of the first record and these."""
    path.write_bytes(table([(b"", first), *sorted(records)], block_size, restart_interval, compress))
    return path


def write_tensor(
    path: Path, dtype: int, shape: tuple[int, ...], data: bytes | list[bytes], name: bytes = b"x", packed: bool = True
) -> Path:
    """A file of one whole tensor."""
    whole = (ALL,) * len(shape)
    first = meta([tensor_meta(name, dtype, shape, [whole])])
    return write_records(path, first, [saved(name, whole, proto(dtype, data, packed))])


def numbers(shape: Sequence[int]) -> bytes:
    """0, 1, 2 ... as int32."""
    count = math.prod(shape)
    return struct.pack(f"<{count}i", *range(count))
