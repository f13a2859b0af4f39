"""Bookkeeping in another thread than the save's, and saves in several threads."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_trackckpt import Checkpoint, CheckpointManager, CheckpointOptions, latest_checkpoint

FAST = CheckpointOptions(durable=False)


class LateCheckpoint(Checkpoint):
    """Runs the callbacks of a save in another thread, as an asynchronous save does."""

    def hold(self) -> None:
        self.__dict__["_late"], self.__dict__["_threads"] = threading.Event(), []

    def write(self, file_prefix: Any, options: CheckpointOptions | None = None) -> str:
        assert options is not None
        path = super().write(file_prefix, FAST)
        thread = threading.Thread(target=lambda: self._late.wait() and options.run_write_callbacks(path), daemon=True)
        self._threads.append(thread)
        thread.start()
        return path

    def sync(self) -> None:
        self._late.set()
        for thread in self._threads:
            thread.join()


def test_a_save_whose_bookkeeping_comes_later_is_waited_for(tmp_path: Path) -> None:
    """C237."""
    x = torch.tensor(1)
    checkpoint = LateCheckpoint(x=x)
    checkpoint.hold()
    step = torch.tensor(0)
    manager = CheckpointManager(checkpoint, tmp_path, 2, step_counter=step, checkpoint_interval=1)
    paths = []
    for _ in range(3):
        paths.append(manager.save())
        assert manager.save() is None
        step += 1
    assert paths == [str(tmp_path / f"ckpt-{n}") for n in (1, 2, 3)]
    assert manager.checkpoints == []

    manager.sync()

    assert len(manager.checkpoints) == 2
    assert manager.latest_checkpoint == latest_checkpoint(tmp_path) == manager.checkpoints[-1]
    assert len(list(tmp_path.glob("*.index"))) == 2


def test_a_restore_waits_for_saves_first(tmp_path: Path) -> None:
    x = torch.tensor(1)
    checkpoint = LateCheckpoint(x=x)
    checkpoint.hold()
    manager = CheckpointManager(checkpoint, tmp_path, 2, init_fn=pytest.fail)
    path = manager.save()
    x.zero_()
    assert manager.restore_or_initialize() == path
    assert x == 1


def save_five(manager: CheckpointManager) -> None:
    for _ in range(5):
        manager.save(options=FAST)


def test_saves_from_several_threads_take_turns(tmp_path: Path) -> None:
    checkpoint = Checkpoint(x=torch.ones(1000))
    manager = CheckpointManager(checkpoint, tmp_path, max_to_keep=5)
    threads = [threading.Thread(target=save_five, args=(manager,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [os.path.basename(path) for path in manager.checkpoints] == [f"ckpt-{n}" for n in range(16, 21)]
    for number in range(16, 21):
        restored = Checkpoint()
        restored.restore(tmp_path / f"ckpt-{number}")
        assert int(restored.save_counter) == number
