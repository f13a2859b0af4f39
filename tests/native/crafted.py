"""What the tests of the core share: bundles built byte by byte, and values moved through memory.

`table` follows TensorFlow's writing rules to the byte, and bends them on request, so that it serves both
as a second opinion on what the core writes and as a source of tables that TensorFlow never writes.
"""

import hashlib
import itertools
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import witness

from torch_trackckpt._native import BundleEntry, BundleReader, BundleWriter, crc32c

FLOAT, INT32, UINT8, STRING = 1, 3, 4, 7
CHUNK = 1 << 20  # The largest value that is checked before its destination is touched.

GOLDEN = Path(__file__).parent.parent / "golden"
MANIFEST: dict[str, dict[str, Any]] = {
    vector["name"]: vector for vector in json.loads((GOLDEN / "manifest.json").read_text())["vectors"]
}

Extents = tuple[tuple[int, int], ...]
ALL = witness.ALL
Array = np.ndarray[Any, np.dtype[Any]]
ByteOrder = Literal["little", "big"]
Tensor = tuple[bytes, int, tuple[int, ...], bytes | list[bytes]]
"""Key, dtype, shape, and the value's bytes or, of a string tensor, its elements."""


def golden(name: str) -> Path:
    return GOLDEN / str(MANIFEST[name]["prefix"])


def manifest_digest(value: bytes | list[bytes]) -> str:
    """The hash of a value by the `hash_rule` of the manifest."""
    if isinstance(value, list):
        value = b"".join(struct.pack("<Q", len(element)) + element for element in value)
    return hashlib.sha256(value).hexdigest()


# --------------------------------------------------------------------------------------------- protobuf


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def number_field(field: int, number: int) -> bytes:
    return varint(field << 3) + varint(number) if number else b""


def message_field(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def header(
    num_shards: int = 1,
    endianness: int = 0,
    producer: int = 1,
    min_consumer: int = 0,
    bad_consumers: Sequence[int] = (),
) -> bytes:
    version = number_field(1, producer) + number_field(2, min_consumer)
    if bad_consumers:
        version += message_field(3, b"".join(map(varint, bad_consumers)))
    return number_field(1, num_shards) + number_field(2, endianness) + message_field(3, version)


ONE_SHARD = header()


def slice_message(extents: Extents) -> bytes:
    """A serialised TensorSliceProto. A length is written even where it is 0, as in every `oneof`."""
    return b"".join(
        message_field(1, b"" if extent == ALL else number_field(1, extent[0]) + varint(2 << 3) + varint(extent[1]))
        for extent in extents
    )


def entry(
    dtype: int,
    shape: Sequence[int],
    shard_id: int = 0,
    offset: int = 0,
    size: int = 0,
    crc32c: int = 0,
    slices: Iterable[Extents] = (),
) -> bytes:
    """A serialised BundleEntryProto; `crc32c` is the masked checksum."""
    dims = b"".join(message_field(2, number_field(1, dim)) for dim in shape)
    return (
        number_field(1, dtype)
        + message_field(2, dims)
        + number_field(3, shard_id)
        + number_field(4, offset)
        + number_field(5, size)
        + (b"\x35" + crc32c.to_bytes(4, "little") if crc32c else b"")
        + b"".join(message_field(7, slice_message(extents)) for extents in slices)
    )


# ------------------------------------------------------------------------------------------------ table


def seal(contents: bytes, kind: int = 0) -> bytes:
    """A block with its trailer."""
    sealed = contents + bytes([kind])
    return sealed + witness.mask(witness.crc32c(sealed)).to_bytes(4, "little")


class Block:
    """The contents of one block, entry by entry."""

    def __init__(self, restart_interval: int) -> None:
        self.restart_interval = restart_interval
        self.entries = bytearray()
        self.restarts = [0]
        self.keys: list[bytes] = []

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self.keys and len(self.keys) % self.restart_interval == 0:
            self.restarts.append(len(self.entries))
        elif self.keys:
            shared = shared_prefix(self.keys[-1], key)
        self.keys.append(key)
        self.entries += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value

    def size(self) -> int:
        return len(self.entries) + 4 * len(self.restarts) + 4

    def contents(self) -> bytes:
        numbers = [*self.restarts, len(self.restarts)]
        return bytes(self.entries) + b"".join(number.to_bytes(4, "little") for number in numbers)


def block(items: Iterable[tuple[bytes, bytes]], restart_interval: int = 16) -> bytes:
    built = Block(restart_interval)
    for key, value in items:
        built.add(key, value)
    return built.contents()


def shared_prefix(a: bytes, b: bytes) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def separator(last: bytes, following: bytes) -> bytes:
    """The index key between a block that ends with `last` and one that begins with `following`."""
    i = shared_prefix(last, following)
    if i == min(len(last), len(following)) or last[i] == 0xFF or last[i] + 1 >= following[i]:
        return last
    return last[:i] + bytes([last[i] + 1])


def successor(last: bytes) -> bytes:
    """The index key after the last block."""
    i = next((i for i, byte in enumerate(last) if byte != 0xFF), None)
    return last if i is None else last[:i] + bytes([last[i] + 1])


def blocks_of(items: Sequence[tuple[bytes, bytes]], block_size: int, restart_interval: int) -> Iterator[Block]:
    """Cuts the items into data blocks: after the entry that fills a block, and before an overlong one."""
    current = Block(restart_interval)
    for key, value in items:
        if current.keys and len(key) + len(value) >= 2 * block_size:
            yield current
            current = Block(restart_interval)
        current.add(key, value)
        if current.size() >= block_size:
            yield current
            current = Block(restart_interval)
    if current.keys:
        yield current


def table(
    items: Sequence[tuple[bytes, bytes]],
    block_size: int = 262144,
    restart_interval: int = 16,
    compress: Callable[[bytes], bytes] | None = None,
) -> bytes:
    """A table of these (key, value) pairs, in the given order; `compress` makes Snappy of a block's contents."""
    blocks = list(blocks_of(items, block_size, restart_interval))
    index_keys = [separator(a.keys[-1], b.keys[0]) for a, b in itertools.pairwise(blocks)]
    index_keys += [successor(last.keys[-1]) for last in blocks[-1:]]
    return assemble(zip(index_keys, (built.contents() for built in blocks), strict=True), compress)


def assemble(blocks: Iterable[tuple[bytes, bytes]], compress: Callable[[bytes], bytes] | None = None) -> bytes:
    """A table of finished block contents, each under its index key."""
    out = bytearray()

    def put(contents: bytes) -> bytes:
        stored = compress(contents) if compress else contents
        handle = varint(len(out)) + varint(len(stored))
        out.extend(seal(stored, kind=1 if compress else 0))
        return handle

    index = [(key, put(contents)) for key, contents in blocks]
    handles = put(block([])) + put(block(index, restart_interval=1))
    return bytes(out) + handles.ljust(40, b"\0") + witness.MAGIC.to_bytes(8, "little")


# ---------------------------------------------------------------------------------------------- bundles


def write_crafted(prefix: Path, entries: dict[bytes, bytes], data: bytes = b"", head: bytes = ONE_SHARD) -> None:
    """A bundle of one shard from serialised entries and the content of its data file."""
    Path(f"{prefix}.index").write_bytes(table([(b"", head), *sorted(entries.items())]))
    Path(f"{prefix}.data-00000-of-00001").write_bytes(data)


def encode_strings(values: Sequence[bytes], byteorder: ByteOrder = "little") -> tuple[bytes, int]:
    """The stored form of a string tensor, and its masked checksum."""
    lengths = b"".join(len(v).to_bytes(4 if len(v) < 1 << 32 else 8, byteorder) for v in values)
    crc = witness.crc32c(lengths)
    rest = witness.mask(crc).to_bytes(4, byteorder) + b"".join(values)
    return b"".join(varint(len(v)) for v in values) + rest, witness.mask(witness.crc32c(rest, crc))


class Bundle:
    """A bundle of any number of shards, gathered value by value. `entries` may be bent before it is written."""

    def __init__(self, byteorder: ByteOrder = "little") -> None:
        self.byteorder = byteorder
        self.entries: dict[bytes, bytes] = {}
        self.shards: dict[int, bytearray] = {0: bytearray()}

    def add(
        self, key: bytes, dtype: int, shape: Sequence[int], value: bytes | Sequence[bytes], shard_id: int = 0
    ) -> None:
        """A value in one piece: its stored bytes, or strings."""
        if isinstance(value, bytes):
            stored, crc = value, witness.mask(crc32c(value))
        else:
            stored, crc = encode_strings(value, self.byteorder)
        data = self.shards.setdefault(shard_id, bytearray())
        self.entries[key] = entry(dtype, shape, shard_id, len(data), len(stored), crc)
        data += stored

    def add_array(self, key: bytes, dtype: int, array: Array, shard_id: int = 0) -> None:
        """An array of strings, or of numbers in the byte order of this machine."""
        self.add(key, dtype, array.shape, stored_form(array, self.byteorder), shard_id)

    def add_slices(
        self, key: bytes, dtype: int, array: Array, slices: Iterable[Extents], shards: Iterable[int] = (0,)
    ) -> None:
        """Parts of an array, laid into the shards in turn."""
        listed = list(slices)
        for extents, shard_id in zip(listed, itertools.cycle(shards), strict=False):
            self.add_array(witness.slice_key(key, extents), dtype, array[as_index(extents)], shard_id)
        self.entries[key] = entry(dtype, array.shape, slices=listed)

    def write(self, prefix: Path) -> BundleReader:
        num_shards = max(self.shards) + 1
        head = header(num_shards, endianness=int(self.byteorder == "big"))
        Path(f"{prefix}.index").write_bytes(table([(b"", head), *sorted(self.entries.items())]))
        for shard_id, data in self.shards.items():
            Path(f"{prefix}.data-{shard_id:05d}-of-{num_shards:05d}").write_bytes(data)
        return open_reader(prefix)


def as_index(extents: Extents) -> tuple[Any, ...]:
    """The part of an array, for its brackets; an array even where it has no dimensions."""
    return (..., *(slice(None) if extent == ALL else slice(extent[0], sum(extent)) for extent in extents))


def stored_form(array: Array, byteorder: ByteOrder) -> bytes | list[bytes]:
    if array.dtype == object:
        return list(array.ravel())
    return array.astype(array.dtype.newbyteorder(byteorder)).tobytes()


def data_file(prefix: Path) -> Path:
    return Path(f"{prefix}.data-00000-of-00001")


def index_file(prefix: Path) -> Path:
    return Path(f"{prefix}.index")


def file_names(prefix: Path) -> list[str]:
    return sorted(path.name for path in prefix.parent.iterdir())


def open_writer(prefix: Path, *, block_size: int = 262144, durable: bool = False, alignment: int = 1) -> BundleWriter:
    return BundleWriter(
        [f"{prefix}.data-00000-of-00001"],
        f"{prefix}.index",
        durable=durable,
        block_size=block_size,
        alignment=alignment,
    )


def open_reader(prefix: Path) -> BundleReader:
    return BundleReader(f"{prefix}.index", str(prefix))


def write_bundle(prefix: Path, tensors: Iterable[Tensor], *, block_size: int = 262144) -> None:
    """Writes the tensors through the core, in the given order."""
    writer = open_writer(prefix, block_size=block_size)
    for key, dtype, shape, value in tensors:
        add(writer, key, dtype, shape, value)
    writer.finish()


def add(writer: BundleWriter, key: bytes, dtype: int, shape: tuple[int, ...], value: bytes | list[bytes]) -> None:
    if isinstance(value, list):
        writer.add_strings(0, key, shape, value)
    else:
        memory = np.frombuffer(value, np.uint8)
        writer.add(0, [(key, dtype, shape, memory.ctypes.data, memory.nbytes)])


def add_slice(
    writer: BundleWriter,
    key: bytes,
    dtype: int,
    shape: tuple[int, ...],
    extents: witness.Extents,
    value: bytes | list[bytes],
) -> None:
    if isinstance(value, list):
        writer.add_strings_slice(0, key, shape, extents, value)
    else:
        memory = np.frombuffer(value, np.uint8)
        writer.add_slice(0, key, dtype, shape, extents, memory.ctypes.data, memory.nbytes)


def read_value(reader: BundleReader, found: BundleEntry) -> bytes | list[bytes]:
    """The value of an entry, read through the core."""
    if found.dtype == STRING:
        return reader.read_strings(found.key)
    size = math.prod(found.shape) * witness.ELEMENT_SIZES[found.dtype] if found.slices else found.size
    memory = np.empty(size, np.uint8)
    reader.read([(found.key, memory.ctypes.data, memory.nbytes)])
    return memory.tobytes()


def read_part(reader: BundleReader, key: bytes, extents: Extents, like: Array, *, verify: bool = False) -> Array:
    """A part of a tensor, read through the core into an array of the shape and dtype of `like`."""
    if like.dtype == object:
        part = np.empty(like.size, object)
        part[:] = reader.read_strings(key, extents)
        return part.reshape(like.shape)
    part = np.empty(like.shape, like.dtype)
    reader.read_slice(key, extents, part.ctypes.data, part.nbytes, verify=verify)
    return part


def read_bundle(prefix: Path) -> list[Tensor]:
    """Every tensor of a bundle without slices, read through the core, in the order of the data file."""
    reader = open_reader(prefix)
    stored = sorted(reader.entries(), key=lambda found: (found.shard_id, found.offset, found.size))
    return [(found.key, found.dtype, found.shape, read_value(reader, found)) for found in stored]


def flip(path: Path, position: int, bits: int = 0x01) -> None:
    """Changes one byte of a file; a negative position counts from the end."""
    content = bytearray(path.read_bytes())
    content[position] ^= bits
    path.write_bytes(content)


def cut(path: Path, size: int) -> None:
    """Leaves the first `size` bytes of a file."""
    path.write_bytes(path.read_bytes()[:size])
