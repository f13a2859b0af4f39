"""The writer: the bytes of TensorFlow, sound checksums, and clean refusals."""

import errno
import hashlib
import os
import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import witness
from hypothesis import given, settings
from hypothesis import strategies as st
from native import crafted

from torch_trackckpt import _native
from torch_trackckpt.errors import DuplicateKeyError, WriterClosedError

ONE_SHARD_WITHOUT_SLICES = [
    "v2_dtypes/ckpt",
    "v2_shapes/ckpt",
    "v2_strings/ckpt",
    "v2_manykeys/ckpt",
    "v2_order/ckpt",
    "obj_module/ckpt-1",
    "obj_kwargs/ckpt",
    "obj_root_and_kwargs/ckpt-1",
    "obj_adam_slots/ckpt-1",
    "obj_keras3/ckpt-1",
    "manager/ckpt-3",
    "manager/ckpt-4",
    "saved_model/export/variables/variables",
]


# ------------------------------------------------------------------------------------------ exact bytes


@pytest.mark.parametrize("golden", ONE_SHARD_WITHOUT_SLICES)
def test_tensors_of_a_tensorflow_file_are_written_as_the_same_bytes(prefix: Path, golden: str) -> None:
    """C356, C359, C360, C361"""
    original = crafted.GOLDEN / golden
    crafted.write_bundle(prefix, crafted.read_bundle(original))
    assert crafted.data_file(prefix).read_bytes() == crafted.data_file(original).read_bytes()
    assert crafted.index_file(prefix).read_bytes() == crafted.index_file(original).read_bytes()


def test_durable_files_have_the_same_bytes(prefix: Path) -> None:
    tensors = crafted.read_bundle(crafted.GOLDEN / "v2_order/ckpt")
    writer = crafted.open_writer(prefix, durable=True)
    for key, dtype, shape, value in tensors:
        crafted.add(writer, key, dtype, shape, value)
    writer.finish()
    assert crafted.index_file(prefix).read_bytes() == (crafted.GOLDEN / "v2_order/ckpt.index").read_bytes()


def test_one_call_may_add_many_tensors(prefix: Path) -> None:
    memory = np.arange(24, dtype=np.uint8)
    address = memory.ctypes.data
    writer = crafted.open_writer(prefix)
    writer.add(0, [(b"z", crafted.UINT8, (4,), address, 4), (b"a", crafted.FLOAT, (2, 2), address + 4, 16)])
    writer.add(0, [])
    writer.add(0, [(b"m", crafted.INT32, (), address + 20, 4)])
    writer.finish()
    assert crafted.data_file(prefix).read_bytes() == memory.tobytes()
    assert {key: tensor.offset for key, tensor in witness.read_entries(prefix).items()} == {
        "a": 4,
        "m": 20,
        "z": 0,
    }


def test_the_example_of_a_string_tensor_has_its_known_bytes(prefix: Path) -> None:
    """C358"""
    crafted.write_bundle(prefix, [(b"s", crafted.STRING, (2,), [b"ab", b""])])
    assert crafted.data_file(prefix).read_bytes() == bytes.fromhex("0200 78270b34 6162")
    assert witness.read_entries(prefix)["s"].crc32c.to_bytes(4, "little") == bytes.fromhex("9188b04d")


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 1 << 40)])
def test_a_string_tensor_without_elements_is_its_length_checksum(prefix: Path, shape: tuple[int, ...]) -> None:
    """C358"""
    crafted.write_bundle(prefix, [(b"s", crafted.STRING, shape, [])])
    assert crafted.data_file(prefix).read_bytes() == bytes.fromhex("d8ea82a2")
    written = witness.read_entries(prefix)["s"]
    assert (written.shape, written.data, written.crc32c) == (shape, [], 0x640CC1F6)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([b""], id="empty"),
        pytest.param([b"\0", b"a\0b", b"\0\0\0"], id="NUL bytes"),
        pytest.param([b"x" * 127, b"y" * 128, b"z" * 16384], id="lengths of one to three varint bytes"),
        pytest.param([bytes(range(256)), b"", "日本語".encode()], id="binary"),
        pytest.param([b"%d" % number for number in range(5000)], id="many"),
    ],
)
def test_strings_of_every_kind_are_written_soundly(prefix: Path, values: list[bytes]) -> None:
    """C358"""
    crafted.write_bundle(prefix, [(b"s", crafted.STRING, (len(values),), values)])
    assert witness.read_entries(prefix)["s"].data == values
    assert crafted.open_reader(prefix).read_strings(b"s") == values


def test_a_string_of_32_mib_is_written_soundly(prefix: Path) -> None:
    """C358"""
    value = bytes(range(256)) * (1 << 17)
    crafted.write_bundle(prefix, [(b"s", crafted.STRING, (), [value])])
    # The witness would take seconds, so the rule is spelled out with a kernel that is tested on its own.
    lengths = _native.crc32c(struct.pack("<I", 1 << 25), 0, "portable")
    stored = b"\x80\x80\x80\x10" + struct.pack("<I", witness.mask(lengths)) + value
    assert crafted.data_file(prefix).read_bytes() == stored
    found = crafted.open_reader(prefix).entries()[0]
    assert found.crc32c == witness.mask(_native.crc32c(stored[4:], lengths, "portable"))
    assert crafted.open_reader(prefix).read_strings(b"s") == [value]


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 1618), (16, 0, 18), (0, 1 << 62), (1,) * 40, (3, 5, 7)])
@pytest.mark.parametrize("dtype", sorted(witness.ELEMENT_SIZES))
def test_every_shape_of_every_dtype_is_kept(prefix: Path, shape: tuple[int, ...], dtype: int) -> None:
    """C356, C357"""
    count = int(np.prod(shape, dtype=object))
    value = (bytes(range(256)) * 16)[: count * witness.ELEMENT_SIZES[dtype]]
    crafted.write_bundle(prefix, [(b"before", crafted.UINT8, (1,), b"!"), (b"t", dtype, shape, value)])
    assert crafted.data_file(prefix).read_bytes() == b"!" + value
    written = witness.read_entries(prefix)["t"]
    assert (written.dtype, written.shape, written.data, written.offset) == (dtype, shape, value, 1)
    assert written.crc32c == witness.mask(witness.crc32c(value))


@settings(max_examples=40)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 70), st.one_of(st.integers(0, 200), st.integers(0, 20_000))), max_size=8)
)
def test_memory_at_any_address_and_of_any_length_is_written(pieces: list[tuple[int, int]]) -> None:
    """C362"""
    memory = np.frombuffer(os.urandom(21_000), np.uint8)
    with TemporaryDirectory() as folder:
        prefix = Path(folder) / "ckpt"
        writer = crafted.open_writer(prefix)
        writer.add(
            0,
            [
                (b"%d" % number, crafted.UINT8, (size,), memory.ctypes.data + start, size)
                for number, (start, size) in enumerate(pieces)
            ],
        )
        writer.finish()
        written = witness.read_entries(prefix)
    for number, (start, size) in enumerate(pieces):
        assert written[str(number)].data == memory[start : start + size].tobytes()


def test_a_tensor_of_many_chunks_is_written_whole(prefix: Path) -> None:
    value = np.random.default_rng(0).bytes(5 * crafted.CHUNK + 3)
    crafted.write_bundle(prefix, [(b"a", crafted.UINT8, (1,), b"a"), (b"t", crafted.UINT8, (len(value),), value)])
    assert hashlib.sha256(crafted.data_file(prefix).read_bytes()).digest() == hashlib.sha256(b"a" + value).digest()
    found = crafted.open_reader(prefix).find(b"t")
    assert found is not None
    assert found.crc32c == witness.mask(_native.crc32c(value, 0, "portable"))


# ------------------------------------------------------------------------------------------- alignment


@pytest.mark.parametrize("alignment", [1, 2, 3, 64, 100, 4096, 10_000])
def test_every_offset_is_a_multiple_of_the_alignment(prefix: Path, alignment: int) -> None:
    """C365"""
    values = [os.urandom(size) for size in (1, 0, 63, 64, 65, 4096, 9_999, 7)]
    writer = crafted.open_writer(prefix, alignment=alignment)
    for number, value in enumerate(values):
        crafted.add(writer, b"%d" % number, crafted.UINT8, (len(value),), value)
    crafted.add(writer, b"s", crafted.STRING, (2,), [b"ab", b""])
    crafted.add_slice(writer, b"w", crafted.UINT8, (4,), ((0, 2),), b"ab")
    crafted.add_slice(writer, b"w", crafted.UINT8, (4,), ((2, 2),), b"cd")
    writer.finish()
    strings = bytes.fromhex("0200 78270b34 6162")
    stored = [value + bytes(-len(value) % alignment) for value in [*values, strings, b"ab", b"cd"]]
    assert crafted.data_file(prefix).read_bytes() == b"".join(stored)
    written = witness.read_entries(prefix)
    assert [written[str(number)].data for number in range(len(values))] == values
    assert all(tensor.offset % alignment == 0 for tensor in written.values())


def test_many_aligned_tensors_of_one_call_are_written_as_one_by_one(prefix: Path) -> None:
    """C365"""
    memory = np.arange(3000, dtype=np.uint16).view(np.uint8)
    records = [(b"%04d" % n, crafted.UINT8, (3,), memory.ctypes.data + 3 * n, 3) for n in range(2000)]
    writer = crafted.open_writer(prefix, alignment=1000)
    writer.add(0, records)
    writer.finish()
    expected = b"".join(memory[3 * n : 3 * n + 3].tobytes() + bytes(997) for n in range(2000))
    assert crafted.data_file(prefix).read_bytes() == expected


@pytest.mark.parametrize("alignment", [0, -1, -64])
def test_an_alignment_below_1_is_refused_before_a_file_is_made(prefix: Path, alignment: int) -> None:
    """C365"""
    with pytest.raises(ValueError, match="Alignment"):
        crafted.open_writer(prefix, alignment=alignment)
    assert crafted.file_names(prefix) == []


# ------------------------------------------------------------------------------------------- life cycle


def test_a_key_given_twice_is_found_by_finish_and_spoils_the_writer(prefix: Path) -> None:
    """C363"""
    writer = crafted.open_writer(prefix)
    crafted.add(writer, b"layer/weight", crafted.UINT8, (1,), b"a")
    crafted.add(writer, b"layer/bias", crafted.UINT8, (1,), b"c")
    crafted.add(writer, b"layer/weight", crafted.UINT8, (1,), b"b")
    with pytest.raises(DuplicateKeyError, match="layer/weight"):
        writer.finish()
    with pytest.raises(WriterClosedError):
        writer.finish()
    writer.abandon()
    assert crafted.file_names(prefix) == []


def test_a_key_is_used_up_by_a_string_tensor_too(prefix: Path) -> None:
    """C363"""
    writer = crafted.open_writer(prefix)
    writer.add_strings(0, b"k", (), [b"text"])
    writer.add_strings(0, b"k", (), [b"text"])
    with pytest.raises(DuplicateKeyError, match="k"):
        writer.finish()
    writer.abandon()


def test_a_key_given_twice_in_one_call_is_refused(prefix: Path) -> None:
    """C363"""
    memory = np.zeros(1, np.uint8)
    record = (b"k", crafted.UINT8, (1,), memory.ctypes.data, 1)
    writer = crafted.open_writer(prefix)
    writer.add(0, [record, record])
    with pytest.raises(DuplicateKeyError, match="k"):
        writer.finish()
    writer.abandon()


def test_finishing_twice_is_refused_and_keeps_the_files(prefix: Path) -> None:
    """C364"""
    writer = crafted.open_writer(prefix)
    crafted.add(writer, b"k", crafted.UINT8, (1,), b"a")
    writer.finish()
    with pytest.raises(WriterClosedError):
        writer.finish()
    writer.abandon()
    assert witness.read_entries(prefix)["k"].data == b"a"


@pytest.mark.parametrize(
    "late_call",
    [
        pytest.param(lambda writer: writer.add(0, []), id="add"),
        pytest.param(lambda writer: writer.add_strings(0, b"s", (), [b""]), id="add_strings"),
        pytest.param(lambda writer: writer.add_slice(0, b"w", 4, (0,), ((0, -1),), 0, 0), id="add_slice"),
        pytest.param(lambda writer: writer.add_strings_slice(0, b"s", (), (), [b""]), id="add_strings_slice"),
        pytest.param(lambda writer: writer.finish_shard(0), id="finish_shard"),
        pytest.param(lambda writer: writer.finish(), id="finish"),
    ],
)
@pytest.mark.parametrize("ending", ["finish", "abandon", "failure"])
def test_every_call_after_the_end_is_refused(
    prefix: Path, late_call: Callable[[_native.BundleWriter], None], ending: str
) -> None:
    """C364"""
    writer = crafted.open_writer(prefix)
    if ending == "failure":
        with pytest.raises(ValueError, match="empty"):
            writer.add_strings(0, b"", (), [b""])
    else:
        getattr(writer, ending)()
    with pytest.raises(WriterClosedError):
        late_call(writer)
    writer.abandon()


def test_abandoning_removes_both_files(prefix: Path) -> None:
    writer = crafted.open_writer(prefix)
    crafted.add(writer, b"k", crafted.UINT8, (3,), b"abc")
    assert crafted.file_names(prefix) != []
    writer.abandon()
    writer.abandon()
    assert crafted.file_names(prefix) == []


@pytest.mark.parametrize("existing", [crafted.data_file, crafted.index_file])
def test_an_existing_file_is_never_touched(prefix: Path, existing: Callable[[Path], Path]) -> None:
    existing(prefix).write_bytes(b"precious")
    with pytest.raises(FileExistsError) as caught:
        crafted.open_writer(prefix)
    assert os.fsdecode(caught.value.filename) == str(existing(prefix))
    assert crafted.file_names(prefix) == [existing(prefix).name]
    assert existing(prefix).read_bytes() == b"precious"


# --------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        pytest.param(crafted.FLOAT, (2, 3), 23, id="too small"),
        pytest.param(crafted.FLOAT, (2, 3), 25, id="too large"),
        pytest.param(crafted.FLOAT, (), 0, id="nothing for a scalar"),
        pytest.param(crafted.FLOAT, (0, 7), 4, id="something for an empty tensor"),
        pytest.param(crafted.UINT8, (-1,), 1, id="negative dimension"),
        pytest.param(crafted.UINT8, (-2, -3), 6, id="two negative dimensions"),
        pytest.param(crafted.UINT8, (1 << 32, 1 << 32), 0, id="element count of 2 to the 64th"),
        pytest.param(crafted.FLOAT, (1 << 62,), 0, id="byte count of 2 to the 64th"),
        pytest.param(crafted.STRING, (), 1, id="string"),
        pytest.param(0, (), 1, id="invalid dtype"),
        pytest.param(20, (), 1, id="resource"),
        pytest.param(21, (), 1, id="variant"),
        pytest.param(101, (), 4, id="reference"),
    ],
)
def test_a_size_that_contradicts_dtype_and_shape_is_refused(
    prefix: Path, dtype: int, shape: tuple[int, ...], size: int
) -> None:
    memory = np.zeros(64, np.uint8)
    writer = crafted.open_writer(prefix)
    with pytest.raises(ValueError, match="layer/weight"):
        writer.add(0, [(b"layer/weight", dtype, shape, memory.ctypes.data, size)])
    with pytest.raises(WriterClosedError):
        writer.finish()
    writer.abandon()
    assert crafted.file_names(prefix) == []


@pytest.mark.parametrize(("shape", "values"), [((2,), [b"a"]), ((), []), ((0,), [b""]), ((-1,), [b"a"])])
def test_a_count_of_strings_that_contradicts_the_shape_is_refused(
    prefix: Path, shape: tuple[int, ...], values: list[bytes]
) -> None:
    writer = crafted.open_writer(prefix)
    with pytest.raises(ValueError, match="vocabulary"):
        writer.add_strings(0, b"vocabulary", shape, values)
    writer.abandon()


def test_the_empty_key_is_refused_since_it_is_the_headers(prefix: Path) -> None:
    writer = crafted.open_writer(prefix)
    with pytest.raises(ValueError, match="empty"):
        crafted.add(writer, b"", crafted.UINT8, (1,), b"a")
    writer.abandon()


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    prefix = tmp_path / "missing" / "ckpt"
    with pytest.raises(FileNotFoundError) as caught:
        crafted.open_writer(prefix)
    assert caught.value.errno == errno.ENOENT
    assert os.fsdecode(caught.value.filename) == str(crafted.data_file(prefix))


def test_a_folder_without_permission_is_named(prefix: Path) -> None:
    prefix.parent.chmod(0o500)
    if os.access(prefix.parent, os.W_OK):
        # Whoever may write everywhere still makes no files among the kernel's.
        prefix = Path("/sys/ckpt")
    with pytest.raises(PermissionError) as caught:
        crafted.open_writer(prefix)
    assert os.fsdecode(caught.value.filename) == str(crafted.data_file(prefix))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Lets no file of this process grow beyond `size`: a full disk without a disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def add_and_finish(writer: _native.BundleWriter, record: tuple[bytes, int, tuple[int, ...], int, int]) -> None:
    writer.add(0, [record])
    writer.finish()


@pytest.mark.parametrize("durable", [False, True])
def test_a_write_that_the_system_refuses_names_the_data_file(prefix: Path, durable: bool) -> None:
    memory = np.zeros(4 * crafted.CHUNK, np.uint8)
    record = (b"k", crafted.UINT8, memory.shape, memory.ctypes.data, memory.nbytes)
    writer = crafted.open_writer(prefix, durable=durable)
    with largest_file(crafted.CHUNK), pytest.raises(OSError, match="large") as caught:
        add_and_finish(writer, record)
    assert caught.value.errno == errno.EFBIG
    assert os.fsdecode(caught.value.filename) == str(crafted.data_file(prefix))
    with pytest.raises(WriterClosedError):
        writer.finish()
    writer.abandon()
    assert crafted.file_names(prefix) == []


def test_a_refused_index_names_the_index_file(prefix: Path) -> None:
    writer = crafted.open_writer(prefix)
    for number in range(100):
        crafted.add(writer, b"%0500d" % number, crafted.UINT8, (1,), b"a")
    with largest_file(1000), pytest.raises(OSError, match="large") as caught:
        writer.finish()
    assert os.fsdecode(caught.value.filename) == str(crafted.index_file(prefix))
    writer.abandon()
    assert crafted.file_names(prefix) == []


def test_a_finished_or_abandoned_writer_leaves_no_file_open(prefix: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    crafted.write_bundle(prefix, [(b"k", crafted.UINT8, (1,), b"a")])
    abandoned = crafted.open_writer(prefix.with_name("other"))
    abandoned.abandon()
    failed = crafted.open_writer(prefix.with_name("third"))
    with pytest.raises(ValueError, match="empty"):
        crafted.add(failed, b"", crafted.UINT8, (1,), b"a")
    failed.abandon()
    with pytest.raises(FileExistsError):
        crafted.open_writer(prefix)
    assert len(os.listdir("/proc/self/fd")) == before
