"""A training that is killed at any point of a manager's save goes on from a whole checkpoint."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_trackckpt import Checkpoint, CheckpointManager, CheckpointOptions, CheckpointReader, latest_checkpoint
from torch_trackckpt.retention import KeepBest, KeepLatest
from torch_trackckpt.storage.local import LocalStorage

FAST = CheckpointOptions(durable=False)
OPERATIONS = ("put", "remove", "rename", "link", "make_directory")


class Died(BaseException):
    """The process is gone: nothing that it would have done any more happens."""


class Killed:
    """Lets so many changes of the directory happen, and then none any more."""

    def __init__(self, patch: pytest.MonkeyPatch, num_changes: float) -> None:
        self.left = num_changes
        for name in OPERATIONS:
            patch.setattr(LocalStorage, name, self._counting(getattr(LocalStorage, name)))

    def _counting(self, operation: Any) -> Any:
        def counted(storage: LocalStorage, *arguments: Any) -> None:
            self.left -= 1
            if self.left < 0:
                raise Died
            operation(storage, *arguments)

        return counted


def program(directory: Path, **retention: Any) -> int:
    """Goes on from the latest checkpoint and saves once; returns what it found."""
    x = torch.tensor(0)
    manager = CheckpointManager(Checkpoint(x=x), directory, **retention)
    latest = latest_checkpoint(directory)
    assert manager.restore_or_initialize() == latest == manager.latest_checkpoint
    found = int(x)
    x += 1
    manager.save(options=FAST, metrics={"loss": 1 / (found + 1)} if "retention" in retention else None)
    return found


@pytest.mark.parametrize(
    "retention", [{"max_to_keep": 2}, {"max_to_keep": 1}, {"retention": KeepLatest(1) | KeepBest(1, "loss")}]
)
def test_the_state_file_names_a_whole_checkpoint_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, retention: dict[str, Any]
) -> None:
    """C235, C042."""
    found = []
    for num_changes in itertools.count():
        folder = tmp_path / str(num_changes)
        assert [program(folder, **retention) for _ in range(3)] == [0, 1, 2]
        with monkeypatch.context() as patch:
            Killed(patch, num_changes)
            try:
                program(folder, **retention)
            except Died:
                pass
            else:
                break
        path = latest_checkpoint(folder, verify=True)
        assert path == latest_checkpoint(folder)
        found.append(program(folder, **retention))
        # What the killed save had not deleted yet, the next deletes.
        kept = CheckpointManager(Checkpoint(), folder, **retention).checkpoints
        assert sorted(f"{path}.index" for path in kept) == sorted(str(path) for path in folder.glob("*.index"))
        for path in kept:
            CheckpointReader(path).verify()
        assert not [name for name in os.listdir(folder) if "temp" in name or ".next" in name]
    assert found == sorted(found)
    assert {3, 4} == set(found)
    assert not caplog.records
