"""A manager whose saves are asynchronous."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from held import PATIENCE_SECONDS

from torch_trackckpt import (
    Checkpoint,
    CheckpointManager,
    CheckpointOptions,
    latest_checkpoint,
    preemption_save_context,
)
from torch_trackckpt.retention import KeepLatest

ASYNC = CheckpointOptions(enable_async=True)


def names(manager: CheckpointManager) -> list[str]:
    return [os.path.basename(path) for path in manager.checkpoints]


@pytest.mark.parametrize("kept", [{"max_to_keep": 2}, {"retention": KeepLatest(2)}], ids=["max_to_keep", "retention"])
def test_list_files_and_state_are_updated_after_each_write(tmp_path: Path, kept: dict[str, Any]) -> None:
    """C326"""
    x = torch.zeros(1000)
    manager = CheckpointManager(Checkpoint(x=x), tmp_path, **kept)
    for number in range(1, 7):
        x += 1
        assert manager.save(options=ASYNC) == str(tmp_path / f"ckpt-{number}")
    manager.sync()
    assert names(manager) == ["ckpt-5", "ckpt-6"]
    assert sorted(path.name for path in tmp_path.glob("ckpt-*.index")) == ["ckpt-5.index", "ckpt-6.index"]
    assert latest_checkpoint(tmp_path, verify=True) == manager.latest_checkpoint == str(tmp_path / "ckpt-6")


def test_the_stored_counter_is_right_so_that_numbers_go_on_in_the_next_program(tmp_path: Path) -> None:
    """C326"""
    manager = CheckpointManager(Checkpoint(x=torch.zeros(1000)), tmp_path, max_to_keep=3)
    for options in (ASYNC, None, ASYNC):
        manager.save(options=options)
    manager.sync()
    following = CheckpointManager(Checkpoint(x=torch.zeros(1000)), tmp_path, max_to_keep=3)
    assert following.restore_or_initialize() == str(tmp_path / "ckpt-3")
    assert int(following.checkpoint.save_counter) == 3
    assert following.save(options=ASYNC) == str(tmp_path / "ckpt-4")
    following.sync()
    assert names(following) == ["ckpt-2", "ckpt-3", "ckpt-4"]


def test_a_failure_in_the_background_is_raised_by_the_next_save_and_leaves_the_list(tmp_path: Path) -> None:
    """C236, C320"""

    def fail() -> None:
        raise RuntimeError("the disk is on fire")

    manager = CheckpointManager(Checkpoint(x=torch.ones(3)), tmp_path, max_to_keep=2)
    manager.save()
    manager.save(options=CheckpointOptions(enable_async=True, experimental_write_callbacks=[fail]))
    with pytest.raises(RuntimeError, match="on fire"):
        manager.save()
    assert names(manager) == ["ckpt-1"]
    assert os.path.basename(manager.save() or "") == "ckpt-3"


@pytest.mark.parametrize("fails", [False, True])
def test_the_last_save_makes_up_for_one_of_the_same_step_that_failed(
    tmp_path: Path, fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The step counts as saved when its save has begun, but not before the process ends."""
    step = torch.tensor(7)
    gate = threading.Event()

    def finish() -> None:
        assert gate.wait(PATIENCE_SECONDS)
        if fails:
            raise OSError("no space")

    manager = CheckpointManager(Checkpoint(step=step), tmp_path, step_counter=step, checkpoint_interval=5)
    manager.save(options=CheckpointOptions(enable_async=True, experimental_write_callbacks=[finish]))
    assert manager.save(check_interval=False) is None
    gate.set()
    with preemption_save_context():
        assert manager.save(check_interval=False) == (str(tmp_path / "ckpt-2") if fails else None)
        assert latest_checkpoint(tmp_path) == str(tmp_path / ("ckpt-2" if fails else "ckpt-1"))
    if fails:
        with pytest.raises(OSError, match="no space"):
            manager.sync()


def test_a_callback_that_saves_by_the_same_manager_is_an_error_not_a_deadlock(tmp_path: Path) -> None:
    manager = CheckpointManager(Checkpoint(x=torch.ones(3)), tmp_path, max_to_keep=2)
    callbacks = [lambda: manager.save()]
    manager.save(options=CheckpointOptions(enable_async=True, experimental_write_callbacks=callbacks))
    with pytest.raises(RuntimeError, match="would wait for this very save"):
        manager.sync()


def test_each_save_counts_once_as_a_stall(tmp_path: Path) -> None:
    manager = CheckpointManager(Checkpoint(x=torch.ones(3)), tmp_path, max_to_keep=2)
    for options in (ASYNC, None):
        manager.save(options=options)
    manager.sync()
    assert manager.checkpoint.io_metrics.stalls.count == manager.checkpoint.io_metrics.writes.count == 2
