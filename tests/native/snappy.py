"""A tiny compressor of the raw Snappy format, independent of the core, that uses every kind of element.

stream    varint length, then elements: a tag byte whose low bits say which, and what belongs to it
00        literal: length - 1 in the upper six bits, or 60 to 63 and length - 1 in 1 to 4 bytes; then the bytes
01 10 11  copy, its offset in 11 bits, 2 bytes or 4 bytes; it may be longer than its offset
"""

import random

from native.crafted import varint


def literal(data: bytes, width: int | None = None) -> bytes:
    """An element that stands for itself; `width` is the number of bytes that hold its length."""
    last = len(data) - 1
    if width is None:
        width = 0 if last < 60 else (last.bit_length() + 7) // 8
    if width == 0:
        return bytes([last << 2]) + data
    return bytes([59 + width << 2]) + last.to_bytes(width, "little") + data


def copy(offset: int, length: int, width: int | None = None) -> bytes:
    """An element that repeats `length` bytes from `offset` before the end; `width` is that of the offset."""
    if width is None:
        width = 1 if offset < 1 << 11 and 4 <= length <= 11 else 2 if offset < 1 << 16 else 4
    if width == 1:
        return bytes([offset >> 8 << 5 | length - 4 << 2 | 1, offset & 0xFF])
    return bytes([length - 1 << 2 | (2 if width == 2 else 3)]) + offset.to_bytes(width, "little")


def compress(data: bytes, seed: int | None = None) -> bytes:
    """A stream for `data`: longest copies, or with a `seed` arbitrary ones in arbitrary forms."""
    choose = None if seed is None else random.Random(seed)
    out = bytearray(varint(len(data)))
    last_seen: dict[bytes, int] = {}
    pending = at = 0
    while at < len(data):
        before = last_seen.get(data[at : at + 4])
        last_seen[data[at : at + 4]] = at
        if before is None or (choose and choose.random() < 0.2):
            at += 1
            continue
        length = common_length(data, before, at)
        if choose:
            length = choose.randint(1, length)
        if pending < at:
            out += literal(data[pending:at], choose and choose.choice([None, 2, 3, 4]))
        out += copy(at - before, length, choose and wide_enough(at - before, choose))
        at += length
        pending = at
    if pending < at:
        out += literal(data[pending:at])
    return bytes(out)


def common_length(data: bytes, before: int, at: int) -> int:
    """How much of what is at `at` repeats what is at `before`, at most as much as a copy can."""
    length = 0
    while length < 64 and at + length < len(data) and data[before + length] == data[at + length]:
        length += 1
    return length


def wide_enough(offset: int, choose: random.Random) -> int | None:
    return choose.choice([None, 4] if offset >= 1 << 16 else [None, 2, 4])


def uncompress(stream: bytes) -> bytes | None:
    """What a stream stands for, byte by byte; None if it is malformed."""
    try:
        size, at = read_varint(stream)
        out = bytearray()
        while at < len(stream):
            tag = stream[at]
            if tag & 3 == 0:
                width = max(0, (tag >> 2) - 59)
                last = int.from_bytes(take(stream, at + 1, width), "little") if width else tag >> 2
                out += take(stream, at + 1 + width, last + 1)
                at += 2 + width + last
                continue
            width = {1: 1, 2: 2, 3: 4}[tag & 3]
            offset = int.from_bytes(take(stream, at + 1, width), "little")
            length = (tag >> 2) + 1
            if width == 1:
                offset, length = offset | tag >> 5 << 8, (tag >> 2 & 7) + 4
            if not 0 < offset <= len(out):
                return None
            for _ in range(length):
                out.append(out[-offset])
            at += 1 + width
    except IndexError:
        return None
    return bytes(out) if len(out) == size else None


def take(stream: bytes, at: int, size: int) -> bytes:
    if at + size > len(stream):
        raise IndexError
    return stream[at : at + size]


def read_varint(stream: bytes) -> tuple[int, int]:
    """The number that the stream begins with, of at most 32 bits, and where it ends."""
    number = at = 0
    while True:
        number |= (stream[at] & 0x7F) << 7 * at
        at += 1
        if number >= 1 << 32 or at > 10:
            raise IndexError
        if stream[at - 1] < 0x80:
            return number, at
