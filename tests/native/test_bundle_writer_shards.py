"""The writer: several data files with one index, written by several threads at once."""

import errno
import os
import random
import resource
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import witness
from native import crafted

from torch_trackckpt import _native
from torch_trackckpt.errors import DuplicateKeyError, WriterClosedError

TYPES = (torch.Tensor, torch.nn.Parameter)
ALL = (0, -1)


def open_writer(prefix: Path, num_shards: int, *, durable: bool = False, alignment: int = 1) -> _native.BundleWriter:
    paths = [f"{prefix}.data-{shard:05d}-of-{num_shards:05d}" for shard in range(num_shards)]
    return _native.BundleWriter(paths, f"{prefix}.index", durable=durable, alignment=alignment)


def add(writer: _native.BundleWriter, shard: int, key: bytes, value: bytes) -> None:
    memory = np.frombuffer(value, np.uint8)
    writer.add(shard, [(key, crafted.UINT8, (len(value),), memory.ctypes.data, memory.nbytes)])


def add_slice(writer: _native.BundleWriter, shard: int, key: bytes, start: int, value: bytes, dtype: int = 4) -> None:
    memory = np.frombuffer(value, np.uint8)
    writer.add_slice(shard, key, dtype, (8,), ((start, len(value)),), memory.ctypes.data, memory.nbytes)


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


# ------------------------------------------------------------------------------------------- rows of a table


def tensors_of_all_sizes() -> list[torch.Tensor]:
    """Such that are gathered, such that are written as they lie, and such that end with either."""
    sizes = [1, 0, 7, 65_535, 65_536, 65_537, 300_000, 3, 600_000, 524_288, 1_048_576, 5, 524_287, 524_289, 65_536, 9]
    return [torch.randint(0, 256, (size,), dtype=torch.uint8) for size in sizes]


@pytest.mark.parametrize("alignment", [1, 64])
def test_rows_are_written_as_the_same_bytes_as_tensors_one_by_one(prefix: Path, alignment: int) -> None:
    """C356, C361, C365"""
    tensors = [*tensors_of_all_sizes(), torch.rand(3, 1, 4), torch.tensor(2.0), torch.empty(0, 3)]
    keys = [f"k{number:02d}" for number in range(len(tensors))]
    random.Random(1).shuffle(keys)
    writer = open_writer(prefix, 1, alignment=alignment)
    writer.add_rows(0, keys, _native.TensorTable(tensors, TYPES), np.arange(len(tensors)))
    writer.finish()
    plain = prefix.with_name("plain")
    writer = open_writer(plain, 1, alignment=alignment)
    for key, tensor in zip(keys, tensors, strict=True):
        number = crafted.UINT8 if tensor.dtype == torch.uint8 else crafted.FLOAT
        writer.add(0, [(key.encode(), number, tuple(tensor.shape), tensor.data_ptr(), tensor.nbytes)])
    writer.finish()
    assert crafted.data_file(prefix).read_bytes() == crafted.data_file(plain).read_bytes()
    assert crafted.index_file(prefix).read_bytes() == crafted.index_file(plain).read_bytes()
    if alignment == 1:
        assert crafted.data_file(prefix).read_bytes() == b"".join(tensor.numpy().tobytes() for tensor in tensors)


def test_any_rows_go_to_any_shard_in_the_given_order(prefix: Path) -> None:
    """C359, C361"""
    table = _native.TensorTable([torch.tensor([n], dtype=torch.uint8) for n in range(4)], TYPES)
    keys = ["b", "ä", "c", "d"]
    writer = open_writer(prefix, 2)
    writer.add_rows(1, keys, table, rows(3, 1))
    writer.add_rows(0, keys, table, rows())
    writer.add_rows(0, keys, table, rows(2, 0))
    writer.finish()
    written = witness.read_entries(prefix)
    assert {key: (entry.shard_id, entry.offset, entry.data) for key, entry in written.items()} == {
        "b": (0, 1, b"\0"),
        "c": (0, 0, b"\2"),
        "d": (1, 0, b"\3"),
        "ä": (1, 1, b"\1"),
    }


@pytest.mark.parametrize("row", [1, 2, 3, -1])
def test_a_row_that_is_not_plain_or_not_there_is_refused_and_spoils_the_writer(prefix: Path, row: int) -> None:
    table = _native.TensorTable([torch.ones(2), torch.ones(4)[::2], b"text"], TYPES)
    writer = open_writer(prefix, 1)
    with pytest.raises(ValueError, match=f"no plain row {row}"):
        writer.add_rows(0, ["a", "b", "c"], table, rows(0, row))
    with pytest.raises(WriterClosedError):
        writer.finish()
    writer.abandon()


def test_a_key_that_is_no_text_is_refused_and_spoils_the_writer(prefix: Path) -> None:
    table = _native.TensorTable([torch.ones(2)], TYPES)
    for key, error in (("\ud800", UnicodeEncodeError), (1, TypeError)):
        writer = open_writer(prefix, 1)
        with pytest.raises(error):
            writer.add_rows(0, [key], table, rows(0))  # type: ignore[list-item]
        with pytest.raises(WriterClosedError):
            writer.finish()
        writer.abandon()


# -------------------------------------------------------------------------------------------- shards and index


@pytest.mark.parametrize("order", ["ascending", "descending", "mixed"])
def test_the_index_is_the_same_in_whatever_order_keys_come(prefix: Path, order: str) -> None:
    """C359, C360"""
    keys = sorted(f"{number % 7}/layer/{number}".encode() for number in range(3000))
    if order != "ascending":
        keys = keys[::-1]
    if order == "mixed":
        random.Random(3).shuffle(keys)
    writer = open_writer(prefix, 3)
    for number, key in enumerate(keys):
        add(writer, number % 3, key, b"")
    writer.finish()
    stored = [key for key, _ in witness.table_items(crafted.index_file(prefix))]
    assert stored == [b"", *sorted(keys)]


@pytest.mark.parametrize("durable", [False, True])
def test_threads_may_write_to_a_shard_each(prefix: Path, durable: bool) -> None:
    """C295"""
    values = {b"%d/%d" % (shard, n): os.urandom(n % 4000) for shard in range(4) for n in range(300)}
    writer = open_writer(prefix, 4, durable=durable)

    def write(shard: int) -> None:
        for key, value in values.items():
            if key.startswith(b"%d/" % shard):
                add(writer, shard, key, value)
        writer.finish_shard(shard)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    writer.finish()
    written = witness.read_entries(prefix)
    assert {key.encode(): entry.data for key, entry in written.items()} == values
    assert {entry.shard_id for entry in written.values()} == {0, 1, 2, 3}
    reader = crafted.open_reader(prefix)
    assert reader.num_shards == 4
    reader.verify(list(values))


def test_threads_may_write_to_one_shard_in_turns(prefix: Path) -> None:
    writer = open_writer(prefix, 1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: add(writer, 0, b"%d" % n, b"%d" % n), range(200)))
    writer.finish()
    assert {key: entry.data for key, entry in witness.read_entries(prefix).items()} == {
        str(n): b"%d" % n for n in range(200)
    }


def test_a_shard_without_tensors_is_an_empty_file(prefix: Path) -> None:
    writer = open_writer(prefix, 2)
    add(writer, 1, b"k", b"value")
    writer.finish()
    assert Path(f"{prefix}.data-00000-of-00002").read_bytes() == b""
    assert witness.read_entries(prefix)["k"].data == b"value"


def test_slices_of_a_tensor_may_lie_in_several_shards_and_are_listed_in_their_order(prefix: Path) -> None:
    """C361"""
    writer = open_writer(prefix, 3)
    add_slice(writer, 2, b"w", 6, b"gh")
    add_slice(writer, 1, b"w", 3, b"def")
    add_slice(writer, 2, b"w", 1, b"bc")
    add_slice(writer, 1, b"w", 0, b"a")
    writer.finish()
    whole = witness.read_entries(prefix)["w"]
    assert whole.slices == (((3, 3),), ((0, 1),), ((6, 2),), ((1, 2),))
    assert whole.shard_id == 1
    found = np.empty(8, np.uint8)
    crafted.open_reader(prefix).read([(b"w", found.ctypes.data, 8)])
    assert found.tobytes() == b"abcdefgh"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda w: add(w, 0, b"w", b"a"), lambda w: add(w, 1, b"w", b"a")),
        (lambda w: add(w, 0, b"w", b"a"), lambda w: add_slice(w, 1, b"w", 0, b"ab")),
        (lambda w: add_slice(w, 0, b"w", 0, b"ab"), lambda w: add_slice(w, 1, b"w", 0, b"ab")),
        (lambda w: add_slice(w, 0, b"w", 0, b"ab"), lambda w: w.add_strings(1, b"w", (), [b""])),
    ],
)
def test_what_is_in_two_shards_is_found_by_finish(
    prefix: Path, first: Callable[[_native.BundleWriter], None], second: Callable[[_native.BundleWriter], None]
) -> None:
    """C363"""
    writer = open_writer(prefix, 2)
    first(writer)
    second(writer)
    with pytest.raises(DuplicateKeyError, match=r"duplicate key: .*w"):
        writer.finish()
    writer.abandon()
    assert crafted.file_names(prefix) == []


def test_slices_that_differ_between_shards_are_refused_by_finish(prefix: Path) -> None:
    writer = open_writer(prefix, 2)
    add_slice(writer, 0, b"w", 0, b"ab")
    add_slice(writer, 1, b"w", 2, b"cd", dtype=6)
    with pytest.raises(ValueError, match="dtype or its shape"):
        writer.finish()
    writer.abandon()
    assert crafted.file_names(prefix) == []


@pytest.mark.parametrize("shard", [2, 1 << 40])
def test_a_shard_that_is_not_there_is_refused(prefix: Path, shard: int) -> None:
    writer = open_writer(prefix, 2)
    with pytest.raises(ValueError, match=f"no shard {shard}"):
        add(writer, shard, b"k", b"a")
    with pytest.raises(ValueError, match="at least one data file"):
        _native.BundleWriter([], f"{prefix}.other", durable=False)


# -------------------------------------------------------------------------------------------------- life cycle


def test_a_complete_shard_takes_no_more_tensors(prefix: Path) -> None:
    """C364"""
    writer = open_writer(prefix, 2)
    add(writer, 0, b"k", b"a")
    writer.finish_shard(0)
    writer.finish_shard(0)
    with pytest.raises(WriterClosedError, match="shard is complete"):
        add(writer, 0, b"l", b"a")
    with pytest.raises(WriterClosedError):
        writer.finish()
    writer.abandon()


def test_a_data_file_is_open_from_its_first_tensor_until_it_is_complete(prefix: Path) -> None:
    def num_open() -> int:
        return len(os.listdir("/proc/self/fd")) - before

    before = len(os.listdir("/proc/self/fd"))
    writer = open_writer(prefix, 100)
    assert num_open() == 0
    add(writer, 0, b"a", b"a")
    add(writer, 7, b"b", b"a")
    assert num_open() == 2
    writer.finish_shard(7)
    assert num_open() == 1
    writer.abandon()
    assert num_open() == 0


def test_where_one_file_exists_none_of_the_others_stays(prefix: Path) -> None:
    existing = Path(f"{prefix}.data-00002-of-00004")
    existing.write_bytes(b"precious")
    with pytest.raises(FileExistsError) as caught:
        open_writer(prefix, 4)
    assert os.fsdecode(caught.value.filename) == str(existing)
    assert crafted.file_names(prefix) == [existing.name]
    assert existing.read_bytes() == b"precious"


@pytest.mark.parametrize("end", ["abandon", "failure"])
def test_a_thread_in_the_middle_of_its_tensor_stops_when_the_writer_is_closed(prefix: Path, end: str) -> None:
    """C364: it would otherwise go on for the size of its tensor."""
    writer = open_writer(prefix, 2)
    memory = np.zeros(1 << 20, np.uint8)
    record = (crafted.UINT8, memory.shape, memory.ctypes.data, memory.nbytes)
    outcomes: list[BaseException] = []
    begun = threading.Event()

    def write() -> None:
        try:
            for number in range(1 << 30):
                writer.add(0, [(b"%d/%d" % (number, part), *record) for part in range(4)])
                begun.set()
        except WriterClosedError as error:
            outcomes.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    assert begun.wait(60)
    if end == "failure":
        with pytest.raises(ValueError, match="empty key"):
            add(writer, 1, b"", b"a")
    writer.abandon()
    thread.join()
    assert len(outcomes) == 1
    assert crafted.file_names(prefix) == []


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Lets no file of this process grow beyond `size`: a full disk without a disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("durable", [False, True])
def test_a_refusal_in_one_of_several_threads_names_its_file_and_ends_the_others(prefix: Path, durable: bool) -> None:
    writer = open_writer(prefix, 3, durable=durable)
    memory = np.zeros(1 << 20, np.uint8)

    def write(shard: int) -> None:
        for number in range(100 if shard == 1 else 1):
            writer.add(shard, [(b"%d/%d" % (shard, number), 4, memory.shape, memory.ctypes.data, memory.nbytes)])
        writer.finish_shard(shard)

    with largest_file(50 << 20), ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(write, shard) for shard in range(3)]
        with pytest.raises(OSError, match="large") as caught:
            futures[1].result()
    assert caught.value.errno == errno.EFBIG
    assert os.fsdecode(caught.value.filename) == f"{prefix}.data-00001-of-00003"
    with pytest.raises(WriterClosedError, match=r"it failed: .*large"):
        writer.finish()
    writer.abandon()
    assert crafted.file_names(prefix) == []


def test_a_forked_child_leaves_the_files_of_its_parent_alone(prefix: Path) -> None:
    writer = open_writer(prefix, 2)
    add(writer, 0, b"a", b"a")
    child = os.fork()
    if child == 0:
        writer.abandon()
        del writer
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    add(writer, 1, b"b", b"b")
    writer.finish()
    assert {key: entry.data for key, entry in witness.read_entries(prefix).items()} == {"a": b"a", "b": b"b"}
