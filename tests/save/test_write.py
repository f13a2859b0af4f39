"""Staged values become files under temporary names, or nothing at all."""

import os
import threading
from pathlib import Path

import planned
import pytest
import torch
import witness

from torch_trackckpt import Checkpoint, CheckpointOptions, latest_checkpoint, load_checkpoint
from torch_trackckpt.errors import ValueChangedError
from torch_trackckpt.save.write import write_shards
from torch_trackckpt.storage.local import LocalStorage

SOUND = LocalStorage(durable=False)
FAST = CheckpointOptions(durable=False)


def test_a_value_that_changes_while_it_is_written_is_noticed_and_nothing_is_left(tmp_path: Path) -> None:
    """C058: its bytes may not be those that the checksum was computed of."""
    x, y = torch.ones(3), torch.ones(3)

    def train(done: int, total: int) -> None:
        y.add_(1)

    with pytest.raises(ValueChangedError, match=r"1 values changed .* the first is y; no checkpoint"):
        write_shards(planned.plan({"x": x, "y": y}), str(tmp_path / "ckpt"), SOUND, durable=False, progress=train)

    assert os.listdir(tmp_path) == []


def test_threads_that_save_one_checkpoint_take_turns(tmp_path: Path) -> None:
    """C040: each gets a number of its own, and every file is sound."""
    checkpoint = Checkpoint(x=torch.ones(1000))
    paths: list[str] = []
    threads = [
        threading.Thread(target=lambda: paths.extend(checkpoint.save(tmp_path / "ckpt", FAST) for _ in range(20)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(paths) == sorted(str(tmp_path / f"ckpt-{number}") for number in range(1, 61))
    for path in paths:
        counter = witness.read_bundle(path)["save_counter/.ATTRIBUTES/VARIABLE_VALUE"].data
        assert isinstance(counter, bytes)
        assert int.from_bytes(counter, "little") == int(path.rsplit("-", 1)[1])
        load_checkpoint(path).verify()
    assert latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-60")
