"""Reads files of the older format through the core, with memory that shows what was written beyond its end."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import witness
from native import crafted, crafted_v1
from native.crafted_v1 import ALL, Slice, meta, proto, saved, tensor_meta, write_records

from torch_trackckpt._native import BundleEntry, V1Reader
from torch_trackckpt.errors import (
    TrackckptError,
)

FLOAT, INT32, UINT8, STRING = crafted.FLOAT, crafted.INT32, crafted.UINT8, crafted.STRING
GOLDEN = [name for name, vector in crafted.MANIFEST.items() if vector["format"] == "V1"]
DTYPES = [*crafted_v1.FIXED, *crafted_v1.VARINT]
REFUSALS = (TrackckptError, OSError, ValueError)
FILL = 0xA5

Value = bytes | list[bytes]
Array = np.ndarray[tuple[int], np.dtype[np.uint8]]


def golden_files(name: str) -> list[Path]:
    pattern = Path(str(crafted.MANIFEST[name]["prefix"]))
    return sorted((crafted.GOLDEN / pattern.parent).glob(pattern.name))


def open_files(*paths: Path) -> V1Reader:
    return V1Reader([str(path) for path in paths])


def destination(size: int) -> Array:
    """Memory with eight bytes too many, in which nothing may be written."""
    return np.full(size + 8, FILL, np.uint8)


def value_of(reader: V1Reader, found: BundleEntry) -> Value:
    if found.dtype == STRING:
        return reader.read_strings(found.key)
    size = math.prod(found.shape) * witness.ELEMENT_SIZES[found.dtype]
    memory = destination(size)
    reader.read([(found.key, memory.ctypes.data, size)])
    assert (memory[size:] == FILL).all()
    return memory[:size].tobytes()


def part_of(reader: V1Reader, key: bytes, extents: Slice, size: int, *, verify: bool = False) -> bytes:
    memory = destination(size)
    reader.read_slice(key, extents, memory.ctypes.data, size, verify=verify)
    assert (memory[size:] == FILL).all()
    return memory[:size].tobytes()


def all_values(reader: V1Reader) -> dict[bytes, tuple[int, tuple[int, ...], Value]]:
    return {found.key: (found.dtype, found.shape, value_of(reader, found)) for found in reader.entries()}


def value_in(path: Path) -> Value:
    """The value of the only tensor in a file."""
    reader = open_files(path)
    (found,) = reader.entries()
    return value_of(reader, found)


def part_index(extent: tuple[int, int]) -> slice:
    return slice(None) if extent == ALL else slice(extent[0], extent[0] + extent[1])


def write_parts(
    folder: Path,
    shape: tuple[int, ...],
    parts: Sequence[Slice],
    num_files: int = 1,
    dtype: int = INT32,
    values: np.ndarray | None = None,
) -> list[Path]:
    """0, 1, 2 ... as int32, or given strings, stored in these parts, which take turns among the files."""
    whole = np.arange(math.prod(shape), dtype=np.int32) if values is None else values
    paths = []
    for number in range(num_files):
        mine = parts[number::num_files]
        records = []
        for part in mine:
            elements = np.asarray(whole.reshape(shape)[tuple(map(part_index, part))], whole.dtype)
            content = elements.ravel().tolist() if dtype == STRING else elements.tobytes()
            records.append(saved(b"x", part, proto(dtype, content)))
        first = meta([tensor_meta(b"x", dtype, shape, mine)] if mine else [])
        paths.append(write_records(folder / f"file-{number:05d}-of-{num_files:05d}", first, records))
    return paths
