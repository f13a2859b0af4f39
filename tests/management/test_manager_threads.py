"""Bookkeeping in another thread than the save's, and saves in several threads."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_trackckpt.management.manager
from torch_trackckpt import Checkpoint, CheckpointManager, CheckpointOptions, latest_checkpoint

FAST = CheckpointOptions(durable=False)


class LateCheckpoint(Checkpoint):
    """Leaves the callbacks of its saves to another thread, as an asynchronous save does; `sync` waits for that."""

    def hold(self) -> None:
        self.__dict__["_late"] = []

    def write(self, file_prefix: str | os.PathLike[str], options: CheckpointOptions | None = None) -> str:
        assert options is not None
        path = super().write(file_prefix, FAST)
        self._late.append(lambda: options.run_write_callbacks(path))
        return path

    def sync(self) -> None:
        thread = threading.Thread(target=lambda: [run() for run in self._late])
        thread.start()
        thread.join()
        self._late.clear()


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

    assert manager.checkpoints == paths[1:]
    assert manager.latest_checkpoint == latest_checkpoint(tmp_path) == paths[-1]
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


@pytest.mark.parametrize("directory", ["run", "."])
def test_a_program_may_change_its_directory_before_the_bookkeeping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str
) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    checkpoint = LateCheckpoint()
    checkpoint.hold()
    manager = CheckpointManager(checkpoint, directory, max_to_keep=1)
    for _ in range(2):
        path = manager.save()
    monkeypatch.chdir(tmp_path / "there")
    manager.sync()
    assert manager.checkpoints == [path] == [os.path.join(directory, "ckpt-2")]
    assert list((tmp_path / "there").iterdir()) == []
    monkeypatch.chdir(tmp_path / "here")
    assert latest_checkpoint(directory) == path
    assert len(list(Path(directory).iterdir())) == 3


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


def test_a_save_in_a_signal_handler_in_the_middle_of_the_bookkeeping_is_an_error_not_a_deadlock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = CheckpointManager(Checkpoint(x=torch.zeros(2)), tmp_path, max_to_keep=2)
    write_ledger = torch_trackckpt.management.manager.write_ledger

    def interrupted(*args: Any, **kwargs: Any) -> None:
        monkeypatch.undo()
        manager.save()
        write_ledger(*args, **kwargs)

    monkeypatch.setattr(torch_trackckpt.management.manager, "write_ledger", interrupted)
    with pytest.raises(RuntimeError, match="SaveOnSignal"):
        manager.save()
    assert manager.save() == manager.latest_checkpoint
