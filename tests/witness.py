"""A slow, plain reader of tensor bundles, to judge the package by.

It shares nothing with the package and imports only the standard library. Everything that it passes over
is checked: block, length and value checksums, the order of the keys, the separators between blocks.
Damage raises `Damaged`. Compressed blocks and the older single-table format are beyond it.

A table is a sequence of blocks, each followed by a type byte and a masked CRC-32C, and a footer of 48
bytes that leads to the index block, which leads to the data blocks:

    block   entry* restart-offset* restart-count         entry   shared, unshared, value size, key rest, value
"""

import itertools
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

MAGIC = 0xDB4775248B80FB57
DT_STRING = 7
ELEMENT_SIZES = {
    8: 8,
    18: 16,
    1: 4,
    2: 8,
    3: 4,
    5: 2,
    9: 8,
    13: 4,
    14: 2,
    15: 2,
    16: 2,
    17: 2,
    19: 2,
    22: 4,
    23: 8,
}
ELEMENT_SIZES |= dict.fromkeys((4, 6, 10, 11, 12, *range(24, 34)), 1)
Extents = tuple[tuple[int, int], ...]
ALL = (0, -1)
GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"


class Damaged(Exception):
    """A file contradicts the format."""


Extents = tuple[tuple[int, int], ...]
"""A slice: start and length in each dimension; all of a dimension is (0, -1)."""


class Child(NamedTuple):
    local_name: str
    node_id: int


class Attribute(NamedTuple):
    name: str
    full_name: str
    checkpoint_key: str


class SlotVariable(NamedTuple):
    slot_name: str
    original_variable_node_id: int
    slot_variable_node_id: int


@dataclass(frozen=True)
class Node:
    """One object of the saved graph; its id is its place in the list."""

    children: list[Child]
    attributes: list[Attribute]
    slot_variables: list[SlotVariable]
    registered_saver: tuple[str, str] | None
    has_checkpoint_values: bool | None


@dataclass(frozen=True)
class Tensor:
    """One entry and its value: the stored bytes, or for strings the elements in row-major order.

    An entry with `slices` has no bytes of its own; `data` is put together from its parts and is empty where they do
    not make up the whole.
    """

    dtype: int
    shape: tuple[int, ...]
    data: bytes | list[bytes]
    shard_id: int
    offset: int
    size: int
    crc32c: int
    slices: tuple[Extents, ...]

    @property
    def num_slices(self) -> int:
        return len(self.slices)


_CRC_TABLE = list(range(256))
for _ in range(8):
    _CRC_TABLE = [(crc >> 1) ^ (0x82F63B78 if crc & 1 else 0) for crc in _CRC_TABLE]


def crc32c(data: bytes, crc: int = 0) -> int:
    """CRC-32C (Castagnoli, reflected), continuing from `crc`."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def mask(crc: int) -> int:
    """The form in which checksums are stored."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _check(condition: bool, complaint: str) -> None:
    if not condition:
        raise Damaged(complaint)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        _check(at < len(data) and shift < 70, "varint without an end")
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            _check(value < 1 << 64, "varint beyond 64 bits")
            return value, at


def _block_entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    num_restarts = int.from_bytes(block[-4:], "little")
    limit = len(block) - 4 - 4 * num_restarts
    _check(num_restarts >= 1 and limit >= 0, "restart points do not fit into the block")
    restarts = set(struct.unpack_from(f"<{num_restarts}I", block, limit))
    _check(0 in restarts, "the first restart point is not 0")
    key, at = b"", 0
    while at < limit:
        start = at
        shared, at = _varint(block, at)
        unshared, at = _varint(block, at)
        value_size, at = _varint(block, at)
        _check(shared <= len(key) and at + unshared + value_size <= limit, f"bad entry at {start}")
        _check(start not in restarts or shared == 0, f"prefix shared at the restart point {start}")
        key = key[:shared] + block[at : at + unshared]
        yield key, block[at + unshared : at + unshared + value_size]
        at += unshared + value_size
    _check(at == limit, "the last entry runs into the restart points")


def _block_at(table: bytes, offset: int, size: int) -> bytes:
    _check(offset + size + 5 <= len(table) - 48, f"block at {offset} runs past the footer")
    stored = int.from_bytes(table[offset + size + 1 : offset + size + 5], "little")
    _check(mask(crc32c(table[offset : offset + size + 1])) == stored, f"checksum of the block at {offset}")
    _check(table[offset + size] == 0, f"compressed block at {offset}")
    return table[offset : offset + size]


def table_blocks(path: Path | str) -> list[tuple[bytes, list[tuple[bytes, bytes]]]]:
    """For each data block its separator, taken from the index block, and its (key, value) pairs."""
    table = Path(path).read_bytes()
    _check(len(table) >= 48 and int.from_bytes(table[-8:], "little") == MAGIC, "no footer")
    at = len(table) - 48
    handles = []
    for _ in range(4):
        number, at = _varint(table, at)
        handles.append(number)
    _check(not any(table[at:-8]), "footer not padded with zeros")
    _check(list(_block_entries(_block_at(table, *handles[:2]))) == [], "metaindex block not empty")
    blocks = []
    previous = None
    for separator, handle in _block_entries(_block_at(table, *handles[2:])):
        offset, at = _varint(handle, 0)
        size, _ = _varint(handle, at)
        items = list(_block_entries(_block_at(table, offset, size)))
        for key, _ in items:
            _check(previous is None or previous < key, f"{key!r} not after {previous!r}")
            previous = key
        _check(items != [] and items[-1][0] <= separator, f"{separator!r} before the end of its block")
        previous = separator
        blocks.append((separator, items))
    return blocks


def table_items(path: Path | str) -> list[tuple[bytes, bytes]]:
    """Every (key, value) of a table, in order."""
    return [item for _, items in table_blocks(path) for item in items]


def message_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The (number, value) pairs of a serialised protobuf message; 64-bit numbers come signed."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            number, at = _varint(message, at)
            yield tag >> 3, number - (number >> 63 << 64)
            continue
        _check(tag & 7 in (2, 5), f"wire type {tag & 7}")
        size, at = _varint(message, at) if tag & 7 == 2 else (4, at)
        _check(at + size <= len(message), "field runs past its message")
        content = message[at : at + size]
        yield tag >> 3, content if tag & 7 == 2 else int.from_bytes(content, "little")
        at += size


def _number(message: bytes, field: int) -> int:
    return next((v for number, v in message_fields(message) if number == field and isinstance(v, int)), 0)


def _parts(message: bytes, field: int) -> list[bytes]:
    return [v for number, v in message_fields(message) if number == field and isinstance(v, bytes)]


def _text(message: bytes, field: int) -> str:
    return b"".join(_parts(message, field)[-1:]).decode()


def _extents(message: bytes) -> Extents:
    # A length of 0 would be written: only its absence says "all of the dimension".
    return tuple((_number(extent, 1), dict(message_fields(extent)).get(2, -1)) for extent in _parts(message, 1))


def slice_key(name: bytes, extents: Extents) -> bytes:
    """The key of a slice of the tensor `name`."""
    escaped = b"".join({0x00: b"\x00\xff", 0xFF: b"\xff\x00"}.get(byte, bytes([byte])) for byte in name)
    rank = bytes([len(extents)]).lstrip(b"\0")
    key = b"\x00" + escaped + b"\x00\x01" + bytes([len(rank)]) + rank
    return key + b"".join(_ordered(number) for extent in extents for number in extent)


def _ordered(number: int) -> bytes:
    """As many ones as there are bytes, then the number; where it is negative, all of its bits inverted."""
    magnitude = number if number >= 0 else ~number
    size = next(n for n in range(1, 11) if magnitude < 1 << (7 * n - 1))
    code = magnitude | ((1 << size) - 1) << (7 * size)
    if number < 0:
        code ^= (1 << 8 * size) - 1
    return code.to_bytes(size, "big")


def _strings(stored: bytes, count: int, byteorder: str) -> tuple[list[bytes], int]:
    lengths, at = [], 0
    for _ in range(count):
        length, at = _varint(stored, at)
        lengths.append(length)
    order = "<" if byteorder == "little" else ">"
    crc = crc32c(b"".join(struct.pack(order + ("I" if n < 1 << 32 else "Q"), n) for n in lengths))
    _check(struct.pack(order + "I", mask(crc)) == stored[at : at + 4], "length checksum")
    _check(at + 4 + sum(lengths) == len(stored), "lengths do not add up to the size")
    crc = crc32c(stored[at:], crc)
    ends = list(itertools.accumulate(lengths, initial=at + 4))
    return [stored[start:end] for start, end in itertools.pairwise(ends)], crc


def _read_stored(entry: bytes, prefix: str, num_shards: int, byteorder: str) -> Tensor:
    _check(len(_parts(entry, 2)) == 1, "no shape")
    shape = tuple(_number(dim, 1) for dim in _parts(_parts(entry, 2)[0], 2))
    dtype, shard_id, offset, size, stored_crc = (_number(entry, field) for field in (1, 3, 4, 5, 6))
    _check(min(shape, default=0) >= 0, "negative dimension")
    slices = tuple(_extents(part) for part in _parts(entry, 7))
    if slices:
        return Tensor(dtype, shape, b"", shard_id, offset, size, stored_crc, slices)
    _check(0 <= shard_id < num_shards, "no such shard")
    with open(f"{prefix}.data-{shard_id:05d}-of-{num_shards:05d}", "rb") as file:
        file.seek(offset)
        stored = file.read(size)
    _check(len(stored) == size, "value runs past the data file")
    data: bytes | list[bytes] = stored
    if dtype == DT_STRING:
        data, crc = _strings(stored, math.prod(shape), byteorder)
    else:
        _check(size == math.prod(shape) * ELEMENT_SIZES[dtype], "size contradicts dtype and shape")
        crc = crc32c(stored)
    _check(mask(crc) == stored_crc, "checksum of the value")
    return Tensor(dtype, shape, data, shard_id, offset, size, stored_crc, ())


def _assembled(shape: tuple[int, ...], slices: list[tuple[Extents, Tensor]]) -> bytes | list[bytes]:
    """One element after the other; empty if one is missing."""
    elements: dict[tuple[int, ...], bytes] = {}
    for extents, part in slices:
        size = 0 if isinstance(part.data, list) else len(part.data) // max(math.prod(part.shape), 1)
        starts = [start for start, _ in extents]
        for i, position in enumerate(itertools.product(*map(range, part.shape))):
            place = tuple(start + p for start, p in zip(starts, position, strict=True))
            _check(place not in elements, "overlapping slices")
            elements[place] = part.data[i] if isinstance(part.data, list) else part.data[i * size : i * size + size]
    if len(elements) != math.prod(shape):
        return b""
    ordered = [elements[place] for place in itertools.product(*map(range, shape))]
    return ordered if all(isinstance(part.data, list) for _, part in slices) else b"".join(ordered)


def read_entries(prefix: Path | str) -> dict[str, Tensor]:
    """Every entry in key order, those of slices as well; a tensor in slices has no data.

    Bytes of a key that are no UTF-8 become surrogates, as in file names.
    """
    items = table_items(f"{prefix}.index")
    _check(items != [] and items[0][0] == b"", "the first key is not the header")
    header = items[0][1]
    byteorder = "big" if _number(header, 2) else "little"
    entries = {}
    for key, entry in items[1:]:
        try:
            entries[_name(key)] = _read_stored(entry, str(prefix), _number(header, 1), byteorder)
        except Damaged as damage:
            raise Damaged(f"{key!r}: {damage}") from damage
    return entries


def read_bundle(prefix: Path | str) -> dict[str, Tensor]:
    """Every tensor in key order; those in slices are put together."""
    entries = read_entries(prefix)
    tensors = dict(entries)
    for name, tensor in entries.items():
        keys = [_name(slice_key(name.encode("utf-8", "surrogateescape"), extents)) for extents in tensor.slices]
        if keys:
            parts = list(zip(tensor.slices, (entries[key] for key in keys), strict=True))
            tensors[name] = replace(tensor, data=_assembled(tensor.shape, parts))
            for key in keys:
                del tensors[key]
    return tensors


def _name(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def read_graph(prefix: Path | str) -> list[Node]:
    """The nodes of the object graph, the root first."""
    values = read_bundle(prefix)[GRAPH_KEY].data
    return [_read_node(node) for node in _parts(bytes(values[0]), 1)]


def _read_node(node: bytes) -> Node:
    saver = _parts(node, 4)
    flag = _parts(node, 5)
    return Node(
        children=[Child(_text(child, 2), _number(child, 1)) for child in _parts(node, 1)],
        attributes=[Attribute(_text(a, 1), _text(a, 2), _text(a, 3)) for a in _parts(node, 2)],
        slot_variables=[SlotVariable(_text(s, 2), _number(s, 1), _number(s, 3)) for s in _parts(node, 3)],
        registered_saver=(_text(saver[0], 1), _text(saver[0], 2)) if saver else None,
        has_checkpoint_values=bool(_number(flag[0], 1)) if flag else None,
    )
