"""Tables with Snappy blocks: what is in them is what was compressed, and nothing hostile gets further."""

import resource
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import witness
from hypothesis import example, given, settings
from hypothesis import strategies as st
from native import crafted, crafted_v1, snappy
from native.snappy import copy, literal

from torch_trackckpt._native import V1Reader
from torch_trackckpt.errors import DataLossError, TrackckptError

SCALAR = crafted_v1.meta([crafted_v1.tensor_meta(b"x", crafted.STRING, (), [()])])


def block_of(value: bytes) -> bytes:
    """A data block whose last value ends with `value`."""
    record = crafted_v1.saved(b"x", (), crafted_v1.proto(crafted.STRING, [value]))
    return crafted.block([(b"", SCALAR), (record.key, record.value)])


def file_of_stream(path: Path, stream: bytes) -> Path:
    """A V1 file whose data block is this stream."""
    path.write_bytes(crafted.assemble([(b"z", stream)], lambda block: block if block is stream else as_literal(block)))
    return path


def as_literal(contents: bytes) -> bytes:
    return crafted.varint(len(contents)) + literal(contents)


def stream_for(elements: bytes, value: bytes) -> bytes:
    """A stream for the block of `value`, in which these elements stand for the value."""
    contents = block_of(value)
    head, tail = contents[: contents.rindex(value)], contents[contents.rindex(value) + len(value) :]
    return crafted.varint(len(contents)) + literal(head) + elements + literal(tail)


def value_in(path: Path) -> bytes:
    return V1Reader([str(path)]).read_strings(b"x")[0]


FAR = bytes(range(256)) * 300
ELEMENTS = {
    "a short literal": (literal(b"a" * 60, 0), b"a" * 60),
    "a literal with a length of one byte": (literal(b"a" * 61, 1), b"a" * 61),
    "a literal with a length of two bytes": (literal(b"abc" * 100, 2), b"abc" * 100),
    "a literal with a length of three bytes": (literal(FAR, 3), FAR),
    "a literal with a length of four bytes": (literal(b"a", 4), b"a"),
    "a copy with an offset of eleven bits": (literal(FAR[:2000]) + copy(2000, 11, 1), FAR[:2000] + FAR[:11]),
    "a copy with an offset of two bytes": (literal(FAR[:60_000]) + copy(60_000, 64, 2), FAR[:60_000] + FAR[:64]),
    "a copy with an offset of four bytes": (literal(FAR) + copy(len(FAR), 64, 4), FAR + FAR[:64]),
    "a copy of one byte": (literal(b"xyz") + copy(2, 1, 2), b"xyzy"),
    "a copy as long as its offset": (literal(b"abcdef") + copy(6, 6, 1), b"abcdef" * 2),
    "a copy one longer than its offset": (literal(b"abcdef") + copy(6, 7, 1), b"abcdefabcdefa"),
    "copies that repeat what they put out": (literal(b"ab") + copy(2, 64, 2) + copy(2, 10, 4), b"ab" * 38),
    "a run of one byte": (literal(b"a") + copy(1, 64, 2) * 100, b"a" * 6401),
}


@pytest.mark.parametrize(("elements", "value"), ELEMENTS.values(), ids=list(ELEMENTS))
def test_every_kind_of_element_is_read(tmp_path: Path, elements: bytes, value: bytes) -> None:
    """C378"""
    stream = stream_for(elements, value)
    assert snappy.uncompress(stream) == block_of(value)
    assert value_in(file_of_stream(tmp_path / "file", stream)) == value


@settings(max_examples=200)
@given(
    chunks=st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.integers(1, 200)), max_size=12),
    seed=st.one_of(st.none(), st.integers(0, 1 << 32)),
)
def test_what_was_compressed_comes_back(chunks: list[tuple[bytes, int]], seed: int | None) -> None:
    """C378"""
    value = b"".join(chunk * times for chunk, times in chunks) + b"."
    stream = snappy.compress(block_of(value), seed)
    with TemporaryDirectory() as folder:
        assert value_in(file_of_stream(Path(folder) / "file", stream)) == value


@pytest.mark.parametrize(
    ("name", "same_as"), [("crafted_snappy_v2", "v2_shapes"), ("crafted_snappy_v1", "v1_basic")], ids=["V2", "V1"]
)
def test_the_compressed_golden_files_hold_what_the_others_hold(name: str, same_as: str) -> None:
    """C378"""
    ours, theirs = (crafted.GOLDEN / str(crafted.MANIFEST[each]["prefix"]) for each in (name, same_as))
    assert crafted.MANIFEST[name]["tensors"] == crafted.MANIFEST[same_as]["tensors"]
    if name == "crafted_snappy_v2":
        assert crafted.read_bundle(ours) == crafted.read_bundle(theirs)
        assert Path(f"{ours}.index").read_bytes() != Path(f"{theirs}.index").read_bytes()
    else:
        assert ours.read_bytes() != theirs.read_bytes()


# ---------------------------------------------------------------------------------------------- hostile


VALUE = b"abcd" * 30
MALFORMED = {
    "a copy from before the beginning": stream_for(copy(1000, 8), VALUE),
    "a copy of offset 0": stream_for(literal(VALUE[:100]) + copy(0, 20, 2), VALUE),
    "a copy past the end": stream_for(literal(VALUE) + copy(4, 64, 2), VALUE) + copy(4, 64, 2),
    "a literal past the end": stream_for(literal(VALUE + VALUE), VALUE),
    "less than announced": stream_for(literal(VALUE[:-1]), VALUE),
    "nothing at all": b"",
    "a length without an end": b"\xff" * 12,
    "a length of more than 32 bits": crafted.varint(1 << 32) + literal(b"a"),
    "a literal without its bytes": crafted.varint(40) + bytes([39 << 2]),
    "a literal without its length": crafted.varint(40) + bytes([63 << 2, 1, 0, 0]),
    "a literal of 4 GiB": crafted.varint(40) + bytes([63 << 2]) + b"\xff" * 4 + b"a",
    "a copy without its offset": crafted.varint(5) + literal(b"a") + b"\x01",
    "a copy without half of its offset": crafted.varint(5) + literal(b"a") + bytes([3 << 2 | 2, 1]),
    "a copy without most of its offset": crafted.varint(5) + literal(b"a") + bytes([3 << 2 | 3, 1, 0, 0]),
    "a copy with an offset of 4 GiB": crafted.varint(5) + literal(b"a") + bytes([3 << 2 | 3]) + b"\xff" * 4,
    "a copy before anything else": crafted.varint(4) + copy(1, 4, 1),
}


@pytest.mark.parametrize("stream", MALFORMED.values(), ids=list(MALFORMED))
def test_a_malformed_stream_is_data_loss(tmp_path: Path, stream: bytes) -> None:
    assert snappy.uncompress(stream) is None
    path = file_of_stream(tmp_path / "file", stream)
    with pytest.raises(DataLossError, match="compressed") as caught:
        value_in(path)
    assert str(path) in str(caught.value)


def test_a_stream_that_announces_more_than_it_can_hold_takes_no_memory(tmp_path: Path) -> None:
    path = file_of_stream(tmp_path / "file", crafted.varint((1 << 32) - 1) + literal(b"a" * 1000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataLossError, match="compressed"):
        value_in(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def test_the_checksum_covers_the_bytes_as_they_are_stored(tmp_path: Path) -> None:
    path = file_of_stream(tmp_path / "file", stream_for(literal(VALUE), VALUE))
    crafted.flip(path, path.read_bytes().index(VALUE))
    with pytest.raises(DataLossError, match="block checksum mismatch"):
        value_in(path)


def outcome(path: Path) -> bytes | type[Exception]:
    try:
        return value_in(path)
    except (TrackckptError, ValueError, IndexError) as error:  # it may have become a tensor of another type or shape
        return type(error)


@settings(max_examples=400)
@given(
    value=st.sampled_from([VALUE, b"", b"a" * 500, bytes(range(256))]),
    seed=st.integers(0, 5),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=3),
    extra=st.binary(max_size=6),
)
@example(value=bytes(range(256)), seed=0, changes=[(5320, 1)], extra=b"")
def test_a_changed_stream_is_refused_or_read_as_a_plain_decoder_reads_it(
    value: bytes, seed: int, changes: list[tuple[int, int]], extra: bytes
) -> None:
    stream = bytearray(snappy.compress(block_of(value), seed) + extra)
    for position, byte in changes:
        stream[position % len(stream)] = byte
    contents = snappy.uncompress(bytes(stream))
    with TemporaryDirectory() as folder:
        found = outcome(file_of_stream(Path(folder) / "compressed", bytes(stream)))
        if contents is None:
            assert found is DataLossError
        else:
            (Path(folder) / "plain").write_bytes(crafted.assemble([(b"z", contents)]))
            assert found == outcome(Path(folder) / "plain")


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_arbitrary_bytes_as_a_stream_are_survived(stream: bytes) -> None:
    with TemporaryDirectory() as folder:
        assert isinstance(outcome(file_of_stream(Path(folder) / "file", stream)), type)


# ------------------------------------------------------------------------------------- tables of bundles


def test_entries_of_compressed_blocks_stay_valid_while_others_are_read(prefix: Path) -> None:
    """C378"""
    tensors: list[crafted.Tensor] = [(b"layer/%03d" % n, crafted.UINT8, (1,), bytes([n])) for n in range(200)]
    crafted.write_bundle(prefix, tensors)
    index = Path(f"{prefix}.index")
    items = witness.table_items(index)
    index.write_bytes(crafted.table(items, block_size=200, compress=snappy.compress))
    reader = crafted.open_reader(prefix)
    for key, dtype, shape, value in reversed(tensors):
        found = reader.find(key)
        assert found is not None
        assert (found.dtype, found.shape, crafted.read_value(reader, found)) == (dtype, shape, value)
    assert crafted.read_bundle(prefix) == tensors


def test_a_damaged_compressed_block_is_refused_every_time(prefix: Path) -> None:
    items = [(b"", crafted.ONE_SHARD), *((b"%03d" % n, crafted.entry(crafted.UINT8, (0,))) for n in range(100))]
    content = crafted.table(items, block_size=200, compress=snappy.compress)
    Path(f"{prefix}.index").write_bytes(content)
    crafted.flip(Path(f"{prefix}.index"), len(content) // 3)
    reader = crafted.open_reader(prefix)
    for _ in range(2):
        with pytest.raises(DataLossError, match="checksum"):
            reader.entries()
