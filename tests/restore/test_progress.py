"""A restore tells how far it is, and what it read is counted."""

import logging
from collections.abc import Callable

import pytest
import torch
from named_values import full, is_restored, ones, write_named, zeros
from torch import nn

import torch_trackckpt.restore.assign
from torch_trackckpt import Checkpoint, CheckpointOptions
from torch_trackckpt.errors import MismatchError
from torch_trackckpt.metrics import Transfers

Told = list[tuple[int, int]]


def teller(told: Told) -> CheckpointOptions:
    return CheckpointOptions(progress=lambda done, total: told.append((done, total)))


def test_progress_is_told_for_each_batch_and_ends_at_the_total(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_trackckpt.restore.assign, "PROGRESS_BYTES", 64)
    Checkpoint(values=[ones() for _ in range(40)], net=nn.Linear(3, 3)).write(prefix)
    live = [zeros() for _ in range(40)]
    told: Told = []
    Checkpoint(values=live, net=nn.Linear(3, 3)).read(prefix, teller(told))
    total = 40 * live[0].nbytes + 12 * 4
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert {of for _, of in told} == {total}
    assert told[-1] == (total, total)
    assert len(told) > 3
    assert is_restored(*live)


@pytest.mark.parametrize(
    "make", [lambda: Checkpoint(), lambda: Checkpoint(x=zeros()[::2]), lambda: Checkpoint(rng=torch.Generator())]
)
def test_progress_is_told_at_least_once(prefix: str, make: Callable[[], Checkpoint]) -> None:
    Checkpoint(x=torch.ones(1), rng=torch.Generator()).write(prefix)
    told: Told = []
    make().read(prefix, teller(told)).expect_partial()
    assert told
    assert told[-1][0] == told[-1][1]


def test_what_progress_raises_ends_the_restore(prefix: str) -> None:
    Checkpoint(x=ones()).write(prefix)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Checkpoint(x=zeros()).read(prefix, CheckpointOptions(progress=stop))


def test_reads_are_counted_with_the_bytes_of_the_values_and_told_in_one_line(
    prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    Checkpoint(x=ones(), y=full(2.0)).write(prefix)
    checkpoint = Checkpoint(x=zeros(), y=zeros())
    with caplog.at_level(logging.INFO, "torch_trackckpt"):
        checkpoint.read(prefix)
        checkpoint.read(prefix)
    reads = checkpoint.io_metrics.reads
    assert (reads.count, reads.last_bytes) == (2, checkpoint.x.nbytes + checkpoint.y.nbytes)
    assert reads.total_bytes == 2 * reads.last_bytes
    assert 0 < reads.last_seconds < reads.total_seconds
    lines = [record.getMessage() for record in caplog.records if record.levelname == "INFO"]
    assert len(lines) == 2
    assert all(line.startswith(f"Restored {reads.last_bytes} bytes from {prefix!r} in ") for line in lines)


def test_a_restore_by_names_is_counted_too(prefix: str) -> None:
    write_named(prefix, {"x": ones()})
    checkpoint = Checkpoint(x=zeros())
    checkpoint.read(prefix)
    assert checkpoint.io_metrics.reads.last_bytes == checkpoint.x.nbytes


def test_a_restore_that_fails_is_not_counted(prefix: str) -> None:
    Checkpoint(x=ones()).write(prefix)
    checkpoint = Checkpoint(x=torch.zeros(7))
    with pytest.raises(MismatchError):
        checkpoint.read(prefix)
    assert checkpoint.io_metrics.reads == Transfers()
