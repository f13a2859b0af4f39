"""The index table as the core writes it, judged by the witness and by a plain second writer."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import witness
from hypothesis import given
from hypothesis import strategies as st
from native import crafted, snappy

from torch_trackckpt.errors import DataLossError

SMALL_BLOCK = 256


def write_keys(prefix: Path, keys: Sequence[bytes], block_size: int = SMALL_BLOCK) -> None:
    """One uint8 scalar under each key, given to the writer in reverse order."""
    tensors: list[crafted.Tensor] = [(key, crafted.UINT8, (), bytes([len(key) % 251])) for key in keys]
    crafted.write_bundle(prefix, reversed(tensors), block_size=block_size)


def assert_table_of(prefix: Path, keys: Sequence[bytes], block_size: int = SMALL_BLOCK) -> None:
    """Right keys in the right order, read back by the core, and the bytes of the plain writer."""
    index = Path(f"{prefix}.index")
    items = witness.table_items(index)
    assert [key for key, _ in items] == [b"", *sorted(keys)]
    assert items[0][1] == bytes.fromhex("08011a020801")
    assert index.read_bytes() == crafted.table(items, block_size)
    assert [found.key for found in crafted.open_reader(prefix).entries()] == sorted(keys)


def index_keys(prefix: Path) -> list[bytes]:
    return [key for key, _ in witness.table_blocks(f"{prefix}.index")]


@pytest.mark.parametrize("name", ["v2_dtypes", "v2_manykeys", "v2_merge", "v2_slices", "obj_keras3"])
def test_the_plain_writer_makes_the_tables_of_tensorflow(name: str) -> None:
    index = crafted.GOLDEN / f"{crafted.MANIFEST[name]['prefix']}.index"
    assert crafted.table(witness.table_items(index)) == index.read_bytes()


def test_a_single_key_makes_one_block_with_the_known_bytes(prefix: Path) -> None:
    """C359, C362"""
    crafted.write_bundle(prefix, [(b"a", 6, (3,), b"\x01\x02\x03")])
    header = bytes.fromhex("000006 08011a020801")
    entry = bytes.fromhex("00010f 61 0806 12041202 0803 2803 35") + witness.mask(
        witness.crc32c(b"\x01\x02\x03")
    ).to_bytes(4, "little")
    data_block = crafted.seal(header + entry + bytes(4) + b"\x01\0\0\0")
    empty_block = bytes.fromhex("0000000001000000 00 c0f2a1b0")
    index_block = crafted.seal(b"\0\1\2b\0" + bytes([len(data_block) - 5]) + bytes(4) + b"\x01\0\0\0")
    handles = bytes([len(data_block), 8, len(data_block) + len(empty_block), len(index_block) - 5])
    footer = handles.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")
    assert Path(f"{prefix}.index").read_bytes() == data_block + empty_block + index_block + footer


def test_a_writer_without_tensors_leaves_the_header_alone(prefix: Path) -> None:
    crafted.open_writer(prefix).finish()
    assert witness.table_items(f"{prefix}.index") == [(b"", bytes.fromhex("08011a020801"))]
    assert Path(f"{prefix}.data-00000-of-00001").read_bytes() == b""
    assert crafted.open_reader(prefix).entries() == []


@pytest.mark.parametrize("block_size", [1, 64, 256, 4096, 262144])
def test_many_keys_fill_many_blocks(prefix: Path, block_size: int) -> None:
    """C360, C379"""
    keys = [f"layer_{number * 7919 % 1000}/kernel/{number}".encode() for number in range(1000)]
    write_keys(prefix, keys, block_size)
    assert_table_of(prefix, keys, block_size)


def test_long_shared_prefixes_are_stored_once_in_sixteen_entries(prefix: Path) -> None:
    shared = b"encoder/" * 100
    keys = [shared + b"%04d" % number for number in range(320)]
    write_keys(prefix, keys, block_size=262144)
    assert_table_of(prefix, keys, block_size=262144)
    assert Path(f"{prefix}.index").stat().st_size < 30 * len(shared)


def test_keys_may_hold_any_byte(prefix: Path) -> None:
    """C379"""
    keys = [bytes([byte]) for byte in range(256)] + [bytes([byte, 0xFF]) for byte in range(256)]
    keys += [b"\0" * length for length in range(2, 40)] + [b"\xff" * length for length in range(3, 40)]
    write_keys(prefix, keys)
    assert_table_of(prefix, keys)


@pytest.mark.parametrize(
    ("last", "following", "expected"),
    [
        pytest.param(b"abc1", b"axc2", b"ac", id="shortened where the keys part"),
        pytest.param(b"ab1", b"ac1", b"ab1", id="whole where the next byte is taken"),
        pytest.param(b"ab", b"ab1", b"ab", id="whole where it begins the following key"),
        pytest.param(b"a\xff1", b"b1", b"a\xff1", id="whole before the neighbouring byte"),
        pytest.param(b"a\xfe1", b"a\xff1", b"a\xfe1", id="whole before 0xff"),
        pytest.param(b"a\xfd1", b"a\xff1", b"a\xfe", id="raised to 0xfe"),
        pytest.param(b"\xff\xff1", b"\xff\xff3", b"\xff\xff2", id="after a common 0xff"),
    ],
)
def test_separators_follow_the_rule(prefix: Path, last: bytes, following: bytes, expected: bytes) -> None:
    write_keys(prefix, [last, following], block_size=1)
    assert index_keys(prefix)[1] == expected
    assert_table_of(prefix, [last, following], block_size=1)


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (b"weight", b"x"),
        (b"\xffweight", b"\xffx"),
        (b"\xff\xff", b"\xff\xff"),
        (b"\xfe", b"\xff"),
        (b"\0", b"\1"),
    ],
)
def test_the_last_index_key_is_a_short_successor(prefix: Path, last: bytes, expected: bytes) -> None:
    write_keys(prefix, [last])
    assert index_keys(prefix) == [expected]


def test_an_overlong_entry_gets_a_block_of_its_own(prefix: Path) -> None:
    keys = [b"a", b"b" * (2 * SMALL_BLOCK), b"c", b"d" * SMALL_BLOCK, b"e"]
    write_keys(prefix, keys)
    assert_table_of(prefix, keys)
    blocks = [[key[:1] for key, _ in items] for _, items in witness.table_blocks(f"{prefix}.index")]
    assert blocks == [[b"", b"a"], [b"b"], [b"c", b"d"], [b"e"]]


def test_a_key_larger_than_a_real_block_is_kept(prefix: Path) -> None:
    keys = [b"a", b"k" * 600_000, b"k" * 600_001, b"z"]
    write_keys(prefix, keys, block_size=262144)
    assert_table_of(prefix, keys, block_size=262144)


@given(
    keys=st.sets(
        st.one_of(st.binary(min_size=1, max_size=12), st.text("ab/\xff", min_size=1).map(str.encode)),
        min_size=1,
        max_size=60,
    ),
    block_size=st.integers(1, 300),
)
def test_any_keys_make_the_table_of_the_plain_writer(keys: set[bytes], block_size: int) -> None:
    with TemporaryDirectory() as folder:
        prefix = Path(folder) / "ckpt"
        write_keys(prefix, list(keys), block_size)
        assert_table_of(prefix, list(keys), block_size)


# -------------------------------------------------------------------------------- tables of other writers

KEYS = [b"", *sorted(f"layer_{number * 7919 % 500}/kernel/{number}".encode() for number in range(300))]
VALUES = [crafted.ONE_SHARD, *(crafted.entry(crafted.UINT8, (number,)) for number in range(300))]


def assert_all_is_found(prefix: Path) -> None:
    """The entries of `KEYS`, listed and one by one, and nothing between them."""
    reader = crafted.open_reader(prefix)
    assert [(found.key, found.shape) for found in reader.entries()] == [
        (key, (number,)) for number, key in enumerate(KEYS[1:])
    ]
    for number, key in enumerate(KEYS[1:]):
        found = reader.find(key)
        assert found is not None
        assert (found.key, found.shape) == (key, (number,))
        assert reader.find(key + b"\0") is None
        assert reader.find(key[:-1] + bytes([key[-1] - 1]) + b"\xff") is None
    assert reader.find(b"\0") is None
    assert reader.find(b"\xff" * 9) is None


@pytest.mark.parametrize("compress", [None, snappy.compress], ids=["stored", "Snappy"])
@pytest.mark.parametrize("restart_interval", [1, 2, 16, 1 << 20])
@pytest.mark.parametrize("block_size", [1, 64, 300, 4096, 262144])
def test_any_block_size_and_restart_interval_is_read(
    prefix: Path, block_size: int, restart_interval: int, compress: Callable[[bytes], bytes] | None
) -> None:
    """C378"""
    items = list(zip(KEYS, VALUES, strict=True))
    Path(f"{prefix}.index").write_bytes(crafted.table(items, block_size, restart_interval, compress))
    assert_all_is_found(prefix)


def just_before(key: bytes) -> bytes:
    return key[:-1] + bytes([key[-1] - 1]) + b"\xff" * 5


@pytest.mark.parametrize(
    "between",
    [
        pytest.param(lambda last, following: last, id="the last key"),
        pytest.param(lambda last, following: last + b"\0", id="right behind the last key"),
        pytest.param(lambda last, following: max(last, just_before(following)), id="right before the following key"),
    ],
)
@pytest.mark.parametrize("entries_per_block", [1, 7])
def test_any_separator_between_two_blocks_is_read(
    prefix: Path, entries_per_block: int, between: Callable[[bytes, bytes], bytes]
) -> None:
    """C378"""
    items = list(zip(KEYS, VALUES, strict=True))
    cut = [items[at : at + entries_per_block] for at in range(0, len(items), entries_per_block)]
    separators = [between(a[-1][0], b[0][0]) for a, b in itertools.pairwise(cut)]
    blocks = zip([*separators, b"\xff" * 40], map(crafted.block, cut), strict=True)
    Path(f"{prefix}.index").write_bytes(crafted.assemble(blocks))
    assert_all_is_found(prefix)


def test_an_index_block_with_any_restart_interval_is_read(prefix: Path) -> None:
    """C378"""
    items = list(zip(KEYS, VALUES, strict=True))
    content = crafted.table(items, block_size=64)
    for restart_interval in (2, 16, 1 << 20):
        data_blocks = content[: content.index(EMPTY_BLOCK)]
        index = crafted.seal(crafted.block(index_entries(content), restart_interval))
        handles = b"".join(map(crafted.varint, (len(data_blocks), 8, len(data_blocks) + 13, len(index) - 5)))
        footer = handles.ljust(40, b"\0") + witness.MAGIC.to_bytes(8, "little")
        Path(f"{prefix}.index").write_bytes(data_blocks + EMPTY_BLOCK + index + footer)
        assert_all_is_found(prefix)


EMPTY_BLOCK = bytes.fromhex("0000000001000000 00 c0f2a1b0")


def index_entries(content: bytes) -> list[tuple[bytes, bytes]]:
    """What the index block of a stored table holds, by the witness."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        path.write_bytes(content)
        offset, entries = 0, []
        for separator, items in witness.table_blocks(path):
            size = len(crafted.block(items))
            entries.append((separator, crafted.varint(offset) + crafted.varint(size)))
            offset += size + 5
    return entries


def test_blocks_that_overlap_in_the_file_are_refused(prefix: Path) -> None:
    """Each may be as large as the file; together they would be as large as its square."""
    inner = crafted.seal(crafted.block([(b"b", b"v" * 1000)]))
    outer = crafted.block([(b"", crafted.ONE_SHARD), (b"a", inner)])
    index = crafted.seal(
        crafted.block(
            [
                (b"a", crafted.varint(0) + crafted.varint(len(outer))),
                (b"b", crafted.varint(outer.index(inner)) + crafted.varint(len(inner) - 5)),
            ]
        )
    )
    data = crafted.seal(outer)
    footer = b"".join(map(crafted.varint, (0, 0, len(data), len(index) - 5))).ljust(40, b"\0")
    Path(f"{prefix}.index").write_bytes(data + index + footer + witness.MAGIC.to_bytes(8, "little"))
    with pytest.raises(DataLossError, match="overlap"):
        crafted.open_reader(prefix).find(b"b")


@pytest.mark.parametrize("compress", [None, snappy.compress], ids=["stored", "Snappy"])
def test_a_block_with_one_restart_point_for_thousands_of_entries_is_searched_as_any_other(
    prefix: Path, compress: Callable[[bytes], bytes] | None
) -> None:
    """C378: such a block gets restart points of its own, so that lookups do not go through all of it."""
    keys = [b"key/%05d/%s" % (number, b"x" * (number % 40)) for number in range(4000)]
    items = [
        (b"", crafted.header()),
        *((key, crafted.entry(crafted.UINT8, (number,))) for number, key in enumerate(keys)),
    ]
    Path(f"{prefix}.index").write_bytes(crafted.table(items, 1 << 30, 1 << 30, compress))
    reader = crafted.open_reader(prefix)

    found = [reader.find(key) for key in keys]

    assert [entry.shape for entry in found if entry is not None] == [(number,) for number in range(4000)]
    assert [entry.key for entry in reader.entries()] == keys
    assert not any(reader.find(key + b"!") or reader.find(key[:-1]) for key in keys[1:40])
