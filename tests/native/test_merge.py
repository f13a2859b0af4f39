"""One index for several bundles: the bytes of TensorFlow, the numbers of data files, and clean refusals."""

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import witness
from native import crafted
from native.test_bundle_writer import largest_file

from torch_trackckpt import _native
from torch_trackckpt.errors import (
    CheckpointNotFoundError,
    DataLossError,
    DuplicateKeyError,
    UnsupportedFormatError,
)

ALL = (0, -1)
GOLDEN = [
    "v2_slices/ckpt",
    "v2_slices_merged/ckpt",
    "v2_merge/ckpt",
    "obj_sharded/ckpt-1",
    "name_based_v2/model.ckpt-9",
    "v2_dtypes/ckpt",
    "v2_manykeys/ckpt",
]
ONE_DATA_FILE = ["v2_slices/ckpt", "name_based_v2/model.ckpt-9", "v2_dtypes/ckpt", "v2_manykeys/ckpt"]

Entries = dict[bytes, bytes]
Items = list[tuple[bytes, bytes]]


def merge(tmp_path: Path, *indexes: Path, durable: bool = False) -> list[tuple[int, int, int]]:
    return _native.merge_indexes([str(index) for index in indexes], str(tmp_path / "merged.index"), durable=durable)


def write_index(path: Path, entries: Entries, head: bytes = crafted.ONE_SHARD) -> Path:
    """An index without its data file: merging reads no data."""
    path.write_bytes(crafted.table([(b"", head), *sorted(entries.items())]))
    return path


def merged_items(tmp_path: Path) -> Items:
    return witness.table_items(tmp_path / "merged.index")


def plain(shard_id: int = 0, offset: int = 0) -> bytes:
    return crafted.entry(crafted.UINT8, (1,), shard_id, offset, 1, 0x12345678)


def sliced(slices: Sequence[witness.Extents], dtype: int = crafted.UINT8, shape: tuple[int, ...] = (4,)) -> bytes:
    """The entry of a tensor that is stored in slices."""
    encoded = crafted.entry(dtype, shape)
    for extents in slices:
        parts = (b"" if e == ALL else crafted.number_field(1, e[0]) + crafted.number_field(2, e[1]) for e in extents)
        encoded += crafted.message_field(7, b"".join(crafted.message_field(1, part) for part in parts))
    return encoded


# ------------------------------------------------------------------------------------------ exact bytes


def write_shards(folder: Path, original: Path) -> list[Path]:
    """The values of a bundle, written as one bundle for each of its data files."""
    stored = {key.encode("utf-8", "surrogateescape"): t for key, t in witness.read_entries(original).items()}
    slices = {
        witness.slice_key(key, extents): (key, tensor.shape, extents)
        for key, tensor in stored.items()
        for extents in tensor.slices
    }
    prefixes = [folder / f"part-{n:05d}" for n in range(1 + max(tensor.shard_id for tensor in stored.values()))]
    writers = [crafted.open_writer(prefix) for prefix in prefixes]
    for key, tensor in sorted(stored.items(), key=lambda item: (item[1].offset, item[1].size)):
        if key in slices:
            full_key, shape, extents = slices[key]
            crafted.add_slice(writers[tensor.shard_id], full_key, tensor.dtype, shape, extents, tensor.data)
        elif not tensor.slices:
            crafted.add(writers[tensor.shard_id], key, tensor.dtype, tensor.shape, tensor.data)
    for writer in writers:
        writer.finish()
    return prefixes


@pytest.mark.parametrize("golden", GOLDEN)
def test_a_bundle_of_tensorflow_is_written_and_merged_as_the_same_bytes(tmp_path: Path, golden: str) -> None:
    """C361, C366"""
    original = crafted.GOLDEN / golden
    prefixes = write_shards(tmp_path, original)
    data_files = merge(tmp_path, *(Path(f"{prefix}.index") for prefix in prefixes))
    assert (tmp_path / "merged.index").read_bytes() == Path(f"{original}.index").read_bytes()
    assert data_files == [(number, 0, 1) for number in range(len(prefixes))]
    for number, prefix in enumerate(prefixes):
        name = f"{original}.data-{number:05d}-of-{len(prefixes):05d}"
        assert Path(f"{prefix}.data-00000-of-00001").read_bytes() == Path(name).read_bytes()


@pytest.mark.parametrize("golden", ONE_DATA_FILE)
@pytest.mark.parametrize("durable", [False, True])
def test_merging_one_bundle_of_one_data_file_copies_its_index(tmp_path: Path, golden: str, durable: bool) -> None:
    """C366"""
    index = Path(f"{crafted.GOLDEN / golden}.index")
    assert merge(tmp_path, index, durable=durable) == [(0, 0, 1)]
    assert (tmp_path / "merged.index").read_bytes() == index.read_bytes()


# ----------------------------------------------------------------------------------------- data files


def test_data_files_are_numbered_by_their_bundle_and_then_by_first_key(tmp_path: Path) -> None:
    """C366"""
    first = write_index(
        tmp_path / "1.index",
        {b"m": plain(2, 20), b"n": plain(0, 1), b"o": plain(2, 30), b"p": plain(1, 5)},
        crafted.header(num_shards=3),
    )
    second = write_index(tmp_path / "2.index", {b"a": plain(0, 7), b"z": plain(0, 9)})
    assert merge(tmp_path, first, second) == [(0, 2, 3), (0, 0, 3), (0, 1, 3), (1, 0, 1)]
    assert merged_items(tmp_path) == [
        (b"", crafted.header(num_shards=4)),
        (b"a", plain(3, 7)),
        (b"m", plain(0, 20)),
        (b"n", plain(1, 1)),
        (b"o", plain(0, 30)),
        (b"p", plain(2, 5)),
        (b"z", plain(3, 9)),
    ]


def test_a_data_file_that_holds_nothing_is_left_out_and_not_counted(tmp_path: Path) -> None:
    first = write_index(tmp_path / "1.index", {b"b": plain(1)}, crafted.header(num_shards=2))
    empty = write_index(tmp_path / "2.index", {})
    third = write_index(tmp_path / "3.index", {b"a": plain(4)}, crafted.header(num_shards=5))
    assert merge(tmp_path, first, empty, third) == [(0, 1, 2), (2, 4, 5)]
    assert merged_items(tmp_path) == [(b"", crafted.header(num_shards=2)), (b"a", plain(1)), (b"b", plain(0))]


def test_bundles_without_tensors_become_one_without_tensors(tmp_path: Path) -> None:
    indexes = [write_index(tmp_path / f"{n}.index", {}) for n in range(2)]
    assert merge(tmp_path, *indexes) == []
    assert merged_items(tmp_path) == [(b"", crafted.ONE_SHARD)]
    assert crafted.open_reader(tmp_path / "merged").entries() == []


def test_a_merged_bundle_can_be_merged_again(tmp_path: Path) -> None:
    """C361"""
    golden = [crafted.GOLDEN / f"{name}.index" for name in ("v2_merge/ckpt", "v2_slices_merged/ckpt", GOLDEN[4])]
    data_files = merge(tmp_path, *golden)
    # In the first, the key that comes first lies in the second data file; so does a slice of the second.
    assert data_files == [(0, 1, 3), (0, 0, 3), (0, 2, 3), (1, 1, 2), (1, 0, 2), (2, 0, 1)]
    expected = {}
    for source, index in enumerate(golden):
        for key, value in witness.table_items(index)[1:]:
            expected[key] = (source, value)
    items = merged_items(tmp_path)
    assert items[0] == (b"", crafted.header(num_shards=6))
    assert [key for key, _ in items[1:]] == sorted(expected)
    for key, value in items[1:]:
        source, original = expected[key]
        assert without_shard(value) == without_shard(original)
        assert data_files[shard_of(value)][:2] == (source, shard_of(original))


def shard_of(entry: bytes) -> int:
    return next((int(number) for field, number in witness.message_fields(entry) if field == 3), 0)


def without_shard(entry: bytes) -> list[tuple[int, int | bytes]]:
    return [field for field in witness.message_fields(entry) if field[0] != 3]


def test_ten_thousand_keys_in_each_of_eight_bundles_become_one_sorted_table(tmp_path: Path) -> None:
    """C366, C379"""
    entries: list[Entries] = [
        {b"layer/%07x/weight" % (n * 0x9E3779B1 % (1 << 28)): plain(0, n) for n in range(source, 80_000, 8)}
        for source in range(8)
    ]
    indexes = [write_index(tmp_path / f"{n}.index", part) for n, part in enumerate(entries)]
    assert merge(tmp_path, *indexes) == [(n, 0, 1) for n in range(8)]
    united = {key: plain(n, 8 * i + n) for n, part in enumerate(entries) for i, key in enumerate(part)}
    assert len(united) == 80_000
    expected = crafted.table([(b"", crafted.header(num_shards=8)), *sorted(united.items())])
    assert (tmp_path / "merged.index").read_bytes() == expected


# --------------------------------------------------------------------------------------------- slices


def test_slices_of_several_bundles_are_listed_in_the_order_of_the_bundles(tmp_path: Path) -> None:
    """C361"""
    parts: list[list[witness.Extents]] = [[((3, 1),), ((0, 1),)], [((2, 1),)], [((1, 1),)]]
    indexes = []
    for number, slices in enumerate(parts):
        keys = {witness.slice_key(b"w", extents): plain(0, i) for i, extents in enumerate(slices)}
        indexes.append(write_index(tmp_path / f"{number}.index", {b"w": sliced(slices)} | keys))
    assert merge(tmp_path, *indexes) == [(0, 0, 1), (1, 0, 1), (2, 0, 1)]
    items = merged_items(tmp_path)
    assert items[0] == (b"", crafted.header(num_shards=3))
    assert items[1:5] == [
        (witness.slice_key(b"w", ((0, 1),)), plain(0, 1)),
        (witness.slice_key(b"w", ((1, 1),)), plain(2, 0)),
        (witness.slice_key(b"w", ((2, 1),)), plain(1, 0)),
        (witness.slice_key(b"w", ((3, 1),)), plain(0, 0)),
    ]
    assert items[5:] == [(b"w", sliced([((3, 1),), ((0, 1),), ((2, 1),), ((1, 1),)]))]


@pytest.mark.parametrize("other", [sliced([((2, 2),)], dtype=6), sliced([((2, 2),)], shape=(5,))])
def test_slices_of_another_dtype_or_shape_are_refused(tmp_path: Path, other: bytes) -> None:
    first = write_index(tmp_path / "1.index", {b"w": sliced([((0, 2),)])})
    second = write_index(tmp_path / "2.index", {b"w": other})
    with pytest.raises(ValueError, match=r"2\.index.*key w.*dtype or shape"):
        merge(tmp_path, first, second)
    assert not (tmp_path / "merged.index").exists()


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param({b"k": plain()}, {b"k": plain()}, id="two tensors"),
        pytest.param({b"k": sliced([((0, 2),)])}, {b"k": plain()}, id="slices and a tensor"),
        pytest.param({b"k": plain()}, {b"k": sliced([((0, 2),)])}, id="a tensor and slices"),
        pytest.param({b"\0\xffk": plain()}, {b"a": plain(), b"\0\xffk": plain()}, id="the same slice"),
    ],
)
@pytest.mark.parametrize("between", [False, True])
def test_a_key_of_two_bundles_is_refused(tmp_path: Path, first: Entries, second: Entries, between: bool) -> None:
    """C363, C367"""
    indexes = [write_index(tmp_path / "1.index", first)]
    indexes += [write_index(tmp_path / "between.index", {b"j": plain(), b"l": plain()})] if between else []
    indexes += [write_index(tmp_path / "2.index", second)]
    with pytest.raises(DuplicateKeyError, match=r"Duplicate tensor keyed by .*k: also in .*2\.index"):
        merge(tmp_path, *indexes)
    assert not (tmp_path / "merged.index").exists()


def test_merging_a_bundle_with_itself_is_refused(tmp_path: Path) -> None:
    """C367"""
    index = crafted.GOLDEN / "v2_order/ckpt.index"
    with pytest.raises(DuplicateKeyError, match="Duplicate"):
        merge(tmp_path, index, index)


def test_merging_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no bundle"):
        merge(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.index"
    with pytest.raises(CheckpointNotFoundError) as caught:
        merge(tmp_path, crafted.GOLDEN / "v2_order/ckpt.index", missing)
    assert os.fsdecode(caught.value.filename) == str(missing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        pytest.param(crafted.header(endianness=1), "byte orders", id="big-endian"),
        pytest.param(crafted.header(producer=2), "versions", id="producer"),
        pytest.param(crafted.header(producer=0), "versions", id="no version"),
        pytest.param(crafted.header(min_consumer=1), "versions", id="consumer"),
        pytest.param(crafted.header(bad_consumers=[2]), "versions", id="bad consumers"),
    ],
)
@pytest.mark.parametrize("is_first", [False, True])
def test_bundles_of_another_kind_are_refused(tmp_path: Path, head: bytes, complaint: str, is_first: bool) -> None:
    ours = write_index(tmp_path / "ours.index", {b"a": plain()})
    other = write_index(tmp_path / "other.index", {b"b": plain()}, head)
    with pytest.raises(ValueError, match=complaint):
        merge(tmp_path, *([other, ours] if is_first else [ours, other]))
    assert not (tmp_path / "merged.index").exists()


@pytest.mark.parametrize(
    "options",
    [{"endianness": 1}, {"producer": 7}, {"producer": 0}, {"min_consumer": 1}, {"bad_consumers": [2, 1 << 30, -5]}],
    ids=str,
)
def test_what_all_headers_say_is_kept(tmp_path: Path, options: dict[str, int]) -> None:
    head = crafted.header(**options)  # type: ignore[arg-type]
    indexes = [write_index(tmp_path / f"{n}.index", {b"%d" % n: plain()}, head) for n in range(2)]
    merge(tmp_path, *indexes)
    assert merged_items(tmp_path) == [
        (b"", crafted.header(num_shards=2, **options)),  # type: ignore[arg-type]
        (b"0", plain(0)),
        (b"1", plain(1)),
    ]


@pytest.mark.parametrize(
    "head",
    [crafted.header(producer=-1), crafted.header(min_consumer=2), crafted.header(bad_consumers=[1])],
    ids=["producer", "consumer", "bad consumer"],
)
def test_bundles_for_other_readers_are_refused(tmp_path: Path, head: bytes) -> None:
    index = write_index(tmp_path / "1.index", {b"a": plain()}, head)
    with pytest.raises(UnsupportedFormatError, match=re.escape(str(index))):
        merge(tmp_path, index)


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        pytest.param(b"\x08", "unable to parse", id="cut"),
        pytest.param(plain(shard_id=1), "shard 1 of 1", id="no such shard"),
        pytest.param(plain(shard_id=-1), "shard -1 of 1", id="negative shard"),
        pytest.param(crafted.entry(crafted.UINT8, (-1,)), "Invalid tensor shape", id="negative dimension"),
    ],
)
def test_a_damaged_entry_is_named(tmp_path: Path, entry: bytes, complaint: str) -> None:
    first = write_index(tmp_path / "1.index", {b"a": plain()})
    second = write_index(tmp_path / "2.index", {b"layer/weight": entry})
    with pytest.raises(DataLossError, match=complaint) as caught:
        merge(tmp_path, first, second)
    assert "layer/weight" in str(caught.value)
    assert "2.index" in str(caught.value)
    assert not (tmp_path / "merged.index").exists()


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(plain() + crafted.number_field(8, 1), id="in the entry"),
        pytest.param(plain() + crafted.number_field(3, 1 << 32), id="bits of a known number"),
        pytest.param(
            crafted.number_field(1, 4) + crafted.message_field(2, crafted.message_field(9, b"")), id="in the shape"
        ),
        pytest.param(
            crafted.number_field(1, 4)
            + crafted.message_field(2, crafted.message_field(2, crafted.number_field(1, 1) + b"\x12\x01x")),
            id="name of a dimension",
        ),
    ],
)
def test_an_entry_with_fields_that_would_be_lost_is_refused(tmp_path: Path, entry: bytes) -> None:
    index = write_index(tmp_path / "1.index", {b"layer/weight": entry})
    with pytest.raises(UnsupportedFormatError, match="layer/weight has fields that are not known"):
        merge(tmp_path, index)
    assert not (tmp_path / "merged.index").exists()


@pytest.mark.parametrize(
    "items",
    [[], [(b"a", plain())], [(b"", b"\x08")], [(b"", crafted.header(num_shards=0))]],
    ids=["no entries", "no header", "damaged header", "no shards"],
)
def test_an_index_without_a_sound_header_is_refused(tmp_path: Path, items: Items) -> None:
    index = tmp_path / "1.index"
    index.write_bytes(crafted.table(items))
    with pytest.raises(DataLossError, match=re.escape(str(index))):
        merge(tmp_path, index)


def test_an_existing_file_is_never_touched(tmp_path: Path) -> None:
    merged = tmp_path / "merged.index"
    merged.write_bytes(b"precious")
    with pytest.raises(FileExistsError) as caught:
        merge(tmp_path, crafted.GOLDEN / "v2_order/ckpt.index")
    assert os.fsdecode(caught.value.filename) == str(merged)
    assert merged.read_bytes() == b"precious"


@pytest.mark.parametrize("durable", [False, True])
def test_a_merged_index_that_cannot_be_written_is_removed(tmp_path: Path, durable: bool) -> None:
    index = write_index(tmp_path / "1.index", {b"%0500d" % number: plain() for number in range(100)})
    before = len(os.listdir("/proc/self/fd"))
    with largest_file(1000), pytest.raises(OSError, match="large") as caught:
        merge(tmp_path, index, durable=durable)
    assert caught.value.errno == errno.EFBIG
    assert os.fsdecode(caught.value.filename) == str(tmp_path / "merged.index")
    assert not (tmp_path / "merged.index").exists()
    assert len(os.listdir("/proc/self/fd")) == before
