"""Makes the inputs that the fuzz targets begin with, out of the golden checkpoints: `make_seeds.py FOLDER`.

One folder for each target, in the form that the top of its file says; input.h and tables.h have the parts.
"""

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent.parent / "tests"
sys.path.insert(0, str(TESTS))

import witness  # noqa: E402

MAX_SIZE = 20_000
FILE, BLOCKS, ENTRIES = b"\0", b"\1", b"\2"


def chunk(content: bytes) -> bytes:
    return len(content).to_bytes(2, "little") + content


def handle_at(data: bytes, at: int) -> tuple[int, int, int]:
    """Offset and size of a block, and where the handle ends."""
    offset, at = witness._varint(data, at)
    size, at = witness._varint(data, at)
    return offset, size, at


def data_blocks(table: bytes) -> list[tuple[int, bytes]]:
    """Type and stored contents of every data block. Of a table of compressed blocks, all that is before its
    metaindex block: that is one block, if the table is small."""
    metaindex, _, at = handle_at(table[-48:], 0)
    index, index_size, _ = handle_at(table[-48:], at)
    if table[index + index_size]:
        return [(table[metaindex - 5], table[: metaindex - 5])]
    handles = [handle_at(value, 0) for _, value in witness._block_entries(table[index : index + index_size])]
    return [(table[offset + size], table[offset : offset + size]) for offset, size, _ in handles]


def forms(path: Path) -> Iterator[bytes]:
    """A table in each of the three ways to give one."""
    content = path.read_bytes()
    yield FILE + content
    blocks = data_blocks(content)
    if all(len(contents) < MAX_SIZE for _, contents in blocks):
        yield BLOCKS + b"".join(chunk(bytes([kind]) + contents) for kind, contents in blocks)
    if all(kind == 0 for kind, _ in blocks):
        yield entries_of(witness.table_items(path))


def entries_of(items: list[tuple[bytes, bytes]]) -> bytes:
    return ENTRIES + b"".join(chunk(key) + chunk(value) for key, value in items)


def bundles() -> Iterator[tuple[Path, list[Path]]]:
    for index in sorted(TESTS.glob("golden/**/*.index")):
        if index.stat().st_size < MAX_SIZE:
            yield index, sorted(index.parent.glob(index.stem + ".data-*"))


def table_seeds() -> Iterator[bytes]:
    for path in [index for index, _ in bundles()] + v1_files():
        yield from forms(path)


def bundle_seeds() -> Iterator[bytes]:
    for index, data_files in bundles():
        contents = [path.read_bytes() for path in data_files][:2]
        if len(data_files) <= 2 and all(len(content) < MAX_SIZE for content in contents):
            data = b"".join(chunk(content) for content in [*contents, b""][:2])
            for form in forms(index):
                yield b"\x01" + data + form
                yield b"\xa2" + data + form


def merge_seeds() -> Iterator[bytes]:
    items = [witness.table_items(index) for index, _ in bundles() if "snappy" not in str(index)]
    for given in items:
        header, entries = given[:1], given[1:]
        yield b"".join(chunk(entries_of(header + entries[n::3])) for n in range(3))
    for three in itertools.combinations(items[:6], 3):
        yield b"".join(chunk(entries_of(given)) for given in three)


def v1_files() -> list[Path]:
    files = [path for path in sorted(TESTS.glob("golden/*v1*/*")) if path.stat().st_size < MAX_SIZE]
    return [path for path in files if path.read_bytes().endswith(witness.MAGIC.to_bytes(8, "little"))]


def v1_seeds() -> Iterator[bytes]:
    for path in v1_files():
        for form in forms(path):
            yield b"\x35" + chunk(form)
    for first, second in itertools.pairwise(v1_files()):
        for form, other in zip(forms(first), forms(second), strict=False):
            yield b"\x9b" + chunk(form) + chunk(other)


def graph_seeds() -> Iterator[bytes]:
    golden = TESTS / "golden"
    for vector in json.loads((golden / "manifest.json").read_text())["vectors"]:
        if "object_graph" in vector:
            yield bytes(witness.read_bundle(golden / vector["prefix"])[witness.GRAPH_KEY].data[0])


def snappy_seeds() -> Iterator[bytes]:
    for path in [index for index, _ in bundles()] + v1_files():
        yield from (contents for kind, contents in data_blocks(path.read_bytes()) if kind == 1)


def slice_seeds() -> Iterator[bytes]:
    whole = b"\0\xff"
    yield b"\x02\x04\x06" + whole * 2 + b"\0\x02" + whole + b"\x02\x02" + whole
    yield b"\x02\x04\x06" + b"\x01\x02\x02\x03" + b"\0\x02\0\x03" + b"\0\x02\x03\x03" + b"\x02\x02\0\x06"
    yield (
        b"\x03\x02\x03\x04"
        + whole * 3
        + b"\0\x01"
        + whole * 2
        + b"\x01\x01\0\x02"
        + whole
        + b"\x01\x01\x02\x01"
        + whole
    )
    yield b"\x01\x06" + b"\x01\x04" + b"\x03\x03\0\x03"
    yield b"\0"


def main(folder: Path) -> None:
    targets = {
        "bundle": bundle_seeds,
        "merge": merge_seeds,
        "slice": slice_seeds,
        "graph": graph_seeds,
        "snappy": snappy_seeds,
        "table": table_seeds,
        "v1": v1_seeds,
    }
    for target, seeds in targets.items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        for seed in seeds():
            if len(seed) < 3 * MAX_SIZE:
                (folder / target / hashlib.sha1(seed).hexdigest()).write_bytes(seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
