"""What saving and restoring cost, counted for each checkpoint."""

import copy
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import names_in

from torch_trackckpt import Checkpoint, CheckpointOptions
from torch_trackckpt.metrics import CheckpointMetrics, Durations, Transfers

FAST = CheckpointOptions(durable=False)
ASYNC = CheckpointOptions(durable=False, enable_async=True)
PATIENCE_SECONDS = 60


def clock(*times: float) -> Iterator[float]:
    return iter(times)


def test_a_synchronous_save_counts_until_its_end_and_an_asynchronous_one_until_its_beginning() -> None:
    times = clock(100, 110, 115, 130, 150, 200, 204)
    metrics = CheckpointMetrics(times.__next__)

    metrics.wrote(metrics.begin("ckpt-1"), in_background=False)
    assert metrics.training_time_saved_seconds == 15
    metrics.wrote(metrics.begin("ckpt-2"), in_background=True)
    assert metrics.training_time_saved_seconds == 30
    write = metrics.begin("ckpt-3")
    write.num_bytes = 7
    metrics.wrote(write, in_background=False)

    assert metrics.training_time_saved_seconds == 104
    assert metrics.writes == Transfers(3, total_seconds=29, last_seconds=4, total_bytes=7, last_bytes=7)


def test_stalls_and_reads_are_counted_when_they_end_well() -> None:
    times = clock(0, 1, 3, 10, 14, 20, 30, 40)
    metrics = CheckpointMetrics(times.__next__)
    with metrics.stalling():
        pass
    with metrics.reading("ckpt-1") as transfer:
        transfer.num_bytes = 12
    with pytest.raises(LookupError), metrics.stalling():
        raise LookupError
    with pytest.raises(LookupError), metrics.reading("ckpt-2"):
        raise LookupError
    assert metrics.stalls == Durations(1, total_seconds=2, last_seconds=2)
    assert metrics.reads == Transfers(1, total_seconds=4, last_seconds=4, total_bytes=12, last_bytes=12)


def test_what_was_read_of_the_metrics_does_not_change() -> None:
    metrics = CheckpointMetrics()
    before = metrics.writes
    metrics.wrote(metrics.begin("ckpt-1"), in_background=False)
    assert (before.count, metrics.writes.count) == (0, 1)


def test_a_checkpoint_counts_its_saves_and_writes_with_the_bytes_of_the_files(tmp_path: Path) -> None:
    checkpoint = Checkpoint(x=torch.zeros(1000))
    checkpoint.save(tmp_path / "ckpt", FAST)
    checkpoint.write(tmp_path / "other", FAST)
    sizes = {name: os.path.getsize(tmp_path / name) for name in names_in(tmp_path) if name != "checkpoint"}
    writes = checkpoint.io_metrics.writes
    assert writes.count == checkpoint.io_metrics.stalls.count == 2
    assert writes.total_bytes == sum(sizes.values())
    assert writes.last_bytes == sum(size for name, size in sizes.items() if name.startswith("other"))
    assert checkpoint.io_metrics.training_time_saved_seconds > 0


def test_an_asynchronous_save_counts_as_a_stall_at_once_and_as_a_write_when_it_is_complete(tmp_path: Path) -> None:
    checkpoint = Checkpoint(x=torch.zeros(1000))
    gate = threading.Event()
    held = CheckpointOptions(durable=False, enable_async=True, progress=lambda done, total: gate.wait(PATIENCE_SECONDS))
    path = checkpoint.save(tmp_path / "ckpt", held)
    assert checkpoint.io_metrics.stalls.count == 1
    assert checkpoint.io_metrics.writes == Transfers()
    gate.set()
    checkpoint.sync()
    assert checkpoint.io_metrics.writes.count == 1
    assert checkpoint.io_metrics.writes.last_bytes == sum(
        os.path.getsize(path + suffix) for suffix in (".index", ".data-00000-of-00001")
    )


def test_a_save_that_fails_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    checkpoint = Checkpoint(x=torch.zeros(3))
    with pytest.raises(NotADirectoryError):
        checkpoint.save(tmp_path / "file" / "ckpt", FAST)
    assert checkpoint.io_metrics.stalls == Durations()
    assert checkpoint.io_metrics.writes == Transfers()
    assert checkpoint.io_metrics.training_time_saved_seconds == 0


def test_an_asynchronous_save_that_fails_is_counted_as_a_stall_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    checkpoint = Checkpoint(x=torch.zeros(3))
    checkpoint.save(tmp_path / "file" / "ckpt", ASYNC)
    with pytest.raises(NotADirectoryError):
        checkpoint.sync()
    assert checkpoint.io_metrics.stalls.count == 1
    assert checkpoint.io_metrics.writes == Transfers()
    assert checkpoint.io_metrics.training_time_saved_seconds == 0


def test_each_save_says_so_in_one_line_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = Checkpoint(x=torch.zeros(3))
    with caplog.at_level(logging.INFO, "torch_trackckpt"):
        first = checkpoint.save(tmp_path / "ckpt", FAST)
        second = checkpoint.save(tmp_path / "ckpt", ASYNC)
        checkpoint.sync()
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in lines] == ["INFO", "INFO"]
    assert lines[0][1].startswith(f"Saved {checkpoint.io_metrics.writes.last_bytes} bytes to '{first}' in ")
    assert f" bytes asynchronously to '{second}' in " in lines[1][1]


def test_checkpoints_count_for_themselves_and_a_copy_begins_anew(tmp_path: Path) -> None:
    checkpoint, other = Checkpoint(x=torch.zeros(3)), Checkpoint(x=torch.zeros(3))
    checkpoint.write(tmp_path / "ckpt", FAST)
    assert other.io_metrics.writes.count == 0
    assert copy.copy(checkpoint).io_metrics.writes.count == 0
