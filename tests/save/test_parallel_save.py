"""Large checkpoints are written by several threads, a data file by each."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import planned
import pytest
import torch
import witness
from checkpoints import names_in
from sharded import Words, contents, files

from torch_trackckpt import Checkpoint, CheckpointOptions, CheckpointReader, load_checkpoint
from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.errors import ValueChangedError, WriterClosedError
from torch_trackckpt.save import balance
from torch_trackckpt.save.at_once import at_once
from torch_trackckpt.save.staging import BATCH_BYTES, StagingMemory, stage
from torch_trackckpt.sharding import ShardByTaskPolicy
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY

GOLDEN = Path(__file__).parents[1] / "golden"
MIB = 1 << 20


def threads(count: int | None, **others: object) -> CheckpointOptions:
    return CheckpointOptions(durable=False, num_threads=count, **others)  # type: ignore[arg-type]


@pytest.fixture
def any_size_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "SHARD_BYTES", 1)


def values() -> dict[str, torch.Tensor]:
    return {f"v{number:02d}": torch.full((100 + number,), float(number)) for number in range(40)}


# ------------------------------------------------------------------------------------------- how many files


@pytest.mark.parametrize(
    ("size", "options", "count"),
    [
        (16 * MIB, threads(2), 2),
        (16 * MIB, threads(1), 1),
        (16 * MIB, threads(8), 2),
        (15 * MIB, threads(8), 1),
        (16 * MIB, threads(2, experimental_sharding_callback=ShardByTaskPolicy()), 1),
        (16 * MIB, threads(2, enable_async=True), 2),
    ],
)
def test_a_checkpoint_of_32_mib_has_a_data_file_for_each_thread(
    tmp_path: Path, size: int, options: CheckpointOptions, count: int
) -> None:
    """C281"""
    saved = {name: torch.full((size,), number, dtype=torch.uint8) for number, name in enumerate("ab")}
    checkpoint = Checkpoint(**saved)
    path = checkpoint.write(tmp_path / "ckpt", options)
    checkpoint.sync()
    assert names_in(tmp_path) == files("ckpt", count)
    load_checkpoint(path).verify()
    live = {name: torch.ones_like(tensor) for name, tensor in saved.items()}
    Checkpoint(**live).read(path).assert_consumed()
    assert all(torch.equal(live[name], saved[name]) for name in saved)


def test_without_a_number_there_are_as_many_threads_as_processors_but_at_most_eight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for processors, count in ((1, 1), (3, 3), (64, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, n=processors: set(range(n)))
        assert CheckpointOptions().thread_count == count
        assert CheckpointOptions(num_threads=17).thread_count == 17


@pytest.mark.parametrize("count", [0, -1, 1.0, "2", True])
def test_a_number_of_threads_that_is_none_is_refused(count: object) -> None:
    with pytest.raises(ValueError, match="num_threads must be None or a number from 1 to 1024, not "):
        CheckpointOptions(num_threads=count)  # type: ignore[arg-type]


@pytest.mark.parametrize("golden", ["v2_shapes", "v2_strings", "v2_manykeys", "v2_order"])
def test_the_values_of_a_file_of_tensorflow_become_its_bytes(prefix: str, golden: str) -> None:
    """C356, C360, C361"""
    reader, places = CheckpointReader(GOLDEN / golden / "ckpt"), witness.read_entries(GOLDEN / golden / "ckpt")
    keys = sorted(places, key=lambda key: (places[key].offset, places[key].size))
    planned.publish(prefix, {key: reader.get_tensor(key) for key in keys})
    theirs = contents(GOLDEN / golden)
    assert contents(Path(prefix).parent) == {name: theirs[name] for name in files("ckpt", 1)}


@pytest.mark.usefixtures("any_size_is_large")
def test_strings_and_the_object_graph_lie_in_the_last_file(prefix: str) -> None:
    Checkpoint(words=Words(b"a", b"b" * 1000), **values()).write(prefix, threads(4))
    stored = witness.read_bundle(prefix)
    assert {entry.shard_id for entry in stored.values()} == {0, 1, 2, 3}
    assert stored[OBJECT_GRAPH_KEY].shard_id == 3
    assert stored["words/.ATTRIBUTES/VARIABLE_VALUE"].shard_id == 3


@pytest.mark.usefixtures("any_size_is_large")
@pytest.mark.parametrize("is_async", [False, True])
def test_a_checkpoint_is_replaced_by_one_of_another_number_of_threads(tmp_path: Path, is_async: bool) -> None:
    """C049, C294, C295"""
    for number, count in enumerate([3, 1, 2, 5]):
        checkpoint = Checkpoint(**values(), n=torch.tensor(number))
        checkpoint.write(tmp_path / "ckpt", threads(count, enable_async=is_async))
        checkpoint.sync()
        assert names_in(tmp_path) == files("ckpt", count)
        assert load_checkpoint(tmp_path / "ckpt").get_tensor("n/.ATTRIBUTES/VARIABLE_VALUE").item() == number


# ----------------------------------------------------------------------------------------------- copies, progress


@pytest.mark.usefixtures("any_size_is_large")
def test_copies_of_several_threads_share_one_bound(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """C026"""
    monkeypatch.setattr("torch_trackckpt.save.staging.BATCH_BYTES", 4096)
    taken: list[int] = []
    add_all = BundleWriter.add_all

    def watched(writer: BundleWriter, tensors: object, *, shard: int = 0) -> None:
        taken.append(memory[0]._taken)
        add_all(writer, tensors, shard=shard)  # type: ignore[arg-type]

    memory: list[StagingMemory] = []
    init = StagingMemory.__init__
    monkeypatch.setattr(StagingMemory, "__init__", lambda self, count: (init(self, count), memory.append(self))[0])
    monkeypatch.setattr(BundleWriter, "add_all", watched)
    live = {f"v{n}": torch.arange(float(300 + n)).expand(2, -1).t() for n in range(60)}
    Checkpoint(**live).write(prefix, threads(4))
    assert max(taken) <= 4096
    assert memory[0]._taken == 0
    for name, tensor in live.items():
        assert torch.equal(load_checkpoint(prefix).get_tensor(f"{name}/.ATTRIBUTES/VARIABLE_VALUE"), tensor)


def test_one_value_that_is_larger_than_the_bound_is_copied_alone() -> None:
    memory = StagingMemory(2)
    order: list[str] = []
    with memory.taking(10):
        waiting = threading.Thread(target=lambda: take_large(memory, order))
        waiting.start()
        with memory.taking(BATCH_BYTES - 10):
            order.append("small")
    waiting.join()
    assert order == ["small", "large"]


def take_large(memory: StagingMemory, order: list[str]) -> None:
    with memory.taking(2 * BATCH_BYTES):
        order.append("large")


def test_a_batch_of_copies_is_gone_before_the_next_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_trackckpt.save.staging.BATCH_BYTES", 1024)
    memory = StagingMemory(1)
    plan = planned.plan({str(n): torch.rand(256, 2)[:, 0] for n in range(4)})
    for batch in stage(plan, 0, memory):
        assert batch.num_bytes == memory._taken == 1024
    assert memory._taken == 0


@pytest.mark.usefixtures("any_size_is_large")
@pytest.mark.parametrize("count", [1, 4])
def test_progress_is_told_in_the_callers_thread_and_grows_to_the_total(
    prefix: str, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("torch_trackckpt.save.staging.BATCH_BYTES", 1000)
    told: list[tuple[int, int, int]] = []
    options = threads(count, progress=lambda done, total: told.append((done, total, threading.get_ident())))
    Checkpoint(**values()).write(prefix, options)
    done, totals, where = zip(*told, strict=True)
    assert list(done) == sorted(set(done))
    assert set(totals) == {done[-1]}
    assert set(where) == {threading.get_ident()}
    assert len(told) > 5


@pytest.mark.usefixtures("any_size_is_large")
@pytest.mark.parametrize("num_elements", [10, 4_000_000], ids=["small", "large"])
def test_a_tensor_that_is_given_other_memory_meanwhile_is_read_where_it_was_and_then_refused(
    prefix: str, monkeypatch: pytest.MonkeyPatch, num_elements: int
) -> None:
    monkeypatch.setattr("torch_trackckpt.save.staging.BATCH_BYTES", 1000)
    live = {str(number): torch.ones(num_elements) for number in range(3)}

    def move(done: int, total: int) -> None:
        for tensor in live.values():
            tensor.data = torch.zeros_like(tensor)

    with pytest.raises(ValueChangedError, match="changed while they were being saved"):
        Checkpoint(values=live).write(prefix, threads(1, progress=move))
    assert not Path(f"{prefix}.index").exists()


# -------------------------------------------------------------------------------------------------- failures


@pytest.mark.usefixtures("any_size_is_large")
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "the disk is full"), KeyboardInterrupt(), MemoryError()])
def test_an_error_in_one_of_several_threads_is_raised_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, existing: bool
) -> None:
    """C295"""
    group = Checkpoint(**values())
    if existing:
        group.write(tmp_path / "ckpt", threads(2))
    before = contents(tmp_path)
    add_rows = BundleWriter.add_rows

    def failing(writer: BundleWriter, *columns: object, shard: int = 0) -> None:
        if shard == 2:
            raise error
        add_rows(writer, *columns, shard=shard)  # type: ignore[arg-type]

    monkeypatch.setattr(BundleWriter, "add_rows", failing)
    num_threads = threading.active_count()
    with pytest.raises(type(error)) as caught:
        group.write(tmp_path / "ckpt", threads(4))
    assert caught.value is error
    assert contents(tmp_path) == before
    assert threading.active_count() == num_threads


@pytest.mark.parametrize("which", [0, 1, 2])
def test_of_several_errors_the_one_that_caused_the_others_is_raised(which: int) -> None:
    """Whichever thread is the first to say so."""
    is_stopped = threading.Event()

    def work(number: int) -> Iterator[int]:
        if number == which:
            # Tells of it last.
            is_stopped.wait(60)
            raise OSError(errno.ENOSPC, "the disk is full")
        raise WriterClosedError("it failed")
        yield 0

    with pytest.raises(OSError, match="full"):
        list(at_once([work(number) for number in range(3)], 3, stop=is_stopped.set))


@pytest.mark.usefixtures("any_size_is_large")
def test_an_interrupt_from_the_keyboard_ends_all_threads_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C295"""
    add_rows = BundleWriter.add_rows
    interrupted = threading.Event()

    def held_up(writer: BundleWriter, *columns: object, shard: int = 0) -> None:
        if shard == 0:
            # Another thread may get what is sent to the process, and Python's main thread would sleep on.
            signal.pthread_kill(main_thread, signal.SIGINT)
        # No thread is done before the main thread has been told.
        assert interrupted.wait(60)
        add_rows(writer, *columns, shard=shard)  # type: ignore[arg-type]

    def abandon(writer: BundleWriter) -> None:
        interrupted.set()
        writer._writer.abandon()

    monkeypatch.setattr(BundleWriter, "add_rows", held_up)
    monkeypatch.setattr(BundleWriter, "abandon", abandon)
    num_threads = threading.active_count()
    main_thread = threading.get_ident()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            Checkpoint(**values()).write(tmp_path / "ckpt", threads(3))
    finally:
        signal.signal(signal.SIGINT, before)
    assert names_in(tmp_path) == []
    # A thread that was being started when the interrupt came ends by itself.
    deadline = time.monotonic() + 60
    while threading.active_count() != num_threads and time.monotonic() < deadline:
        time.sleep(0.001)
    assert threading.active_count() == num_threads


@pytest.mark.usefixtures("any_size_is_large")
def test_what_progress_raises_ends_all_threads_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch_trackckpt.save.staging.BATCH_BYTES", 1000)

    def refuse(done: int, total: int) -> None:
        raise ZeroDivisionError

    num_threads = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        Checkpoint(**values()).write(tmp_path / "ckpt", threads(3, progress=refuse))
    assert names_in(tmp_path) == []
    assert threading.active_count() == num_threads


@pytest.mark.usefixtures("any_size_is_large")
def test_a_value_that_changes_while_other_threads_write_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C058"""
    saved = values()
    finish_shard = BundleWriter.finish_shard

    def train(writer: BundleWriter, shard: int) -> None:
        finish_shard(writer, shard)
        if shard == 1:
            saved["v07"].add_(1)

    monkeypatch.setattr(BundleWriter, "finish_shard", train)
    with pytest.raises(ValueChangedError, match=r"1 values changed .* the first is v07/"):
        Checkpoint(**saved).write(tmp_path / "ckpt", threads(3))
    assert names_in(tmp_path) == []


@pytest.mark.usefixtures("any_size_is_large")
@pytest.mark.parametrize("given", [0, 1])
def test_where_the_system_gives_fewer_threads_the_save_is_complete_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: int
) -> None:
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def refuse(thread: threading.Thread) -> None:
        if len(started) >= given:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    Checkpoint(**values()).write(tmp_path / "ckpt", threads(4))
    monkeypatch.undo()
    assert names_in(tmp_path) == files("ckpt", 4)
    load_checkpoint(tmp_path / "ckpt").verify()


PROGRAM = """
import sys, torch
from torch_trackckpt import Checkpoint, CheckpointOptions
checkpoint = Checkpoint(a=torch.ones(5 << 20), b=torch.ones(5 << 20))
{save}
"""


@pytest.mark.parametrize(
    "save",
    [
        "checkpoint.write(sys.argv[1], CheckpointOptions(durable=False, num_threads=2, enable_async=True))",
        "import atexit; atexit.register(checkpoint.write, sys.argv[1], CheckpointOptions(num_threads=2))",
    ],
    ids=["pending", "atexit"],
)
def test_a_save_at_the_exit_of_the_interpreter_writes_all_its_files(tmp_path: Path, save: str) -> None:
    program = PROGRAM.format(save=save)
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "ckpt")], check=True)
    assert names_in(tmp_path) == files("ckpt", 2)
    load_checkpoint(tmp_path / "ckpt").verify()


# ---------------------------------------------------------------------------------------------------- the threads


def test_what_works_yield_comes_from_all_of_them() -> None:
    for num_threads in (1, 2, 5, 99):
        found = list(at_once([iter(range(n)) for n in range(50)], num_threads, stop=lambda: None))
        assert sorted(found) == sorted(i for n in range(50) for i in range(n))


def test_no_more_works_run_at_once_than_there_are_threads() -> None:
    barrier = threading.Barrier(3)

    def work() -> Iterator[int]:
        yield barrier.wait(60)
        assert threading.active_count() <= before + 3

    before = threading.active_count()
    assert len(list(at_once([work() for _ in range(9)], 3, stop=lambda: None))) == 9
