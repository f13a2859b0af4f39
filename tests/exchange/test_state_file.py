"""Each side finds the other's newest checkpoint by the state file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from torch_trackckpt import Checkpoint, latest_checkpoint

from .conftest import TensorFlow

# TensorFlow writes a backslash as it should, but its search for the files takes it for an escape.
NAMES = ["ckpt", 'with "quotes"', "it's", "é…😀", "tab\there"]


@pytest.mark.parametrize("name", NAMES)
def test_tensorflow_finds_our_latest_checkpoint(tensorflow: TensorFlow, tmp_path: Path, name: str) -> None:
    """C399"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    checkpoint.save(tmp_path / name)
    path = checkpoint.save(tmp_path / name)
    assert tensorflow.latest_checkpoint(tmp_path) == latest_checkpoint(tmp_path) == path == f"{tmp_path / name}-2"


@pytest.mark.parametrize("name", NAMES)
def test_the_latest_checkpoint_of_tensorflow_is_found(tensorflow: TensorFlow, tmp_path: Path, name: str) -> None:
    """C399"""
    path = tensorflow.save(tmp_path / name, x=torch.tensor(1), times=2)
    assert latest_checkpoint(tmp_path) == tensorflow.latest_checkpoint(tmp_path) == path == f"{tmp_path / name}-2"


@pytest.mark.parametrize("name", [*NAMES, "back\\slash", "\x7f\x01"])
def test_the_state_files_of_both_are_the_same(tensorflow: TensorFlow, tmp_path: Path, name: str) -> None:
    """C399"""
    Checkpoint(x=torch.tensor(1)).save(tmp_path / "ours" / name)
    tensorflow.save(tmp_path / "theirs" / name, x=torch.tensor(1))
    ours, theirs = tmp_path / "ours" / "checkpoint", tmp_path / "theirs" / "checkpoint"
    assert ours.read_bytes() == theirs.read_bytes()


def test_neither_finds_a_checkpoint_whose_files_are_gone(tensorflow: TensorFlow, tmp_path: Path) -> None:
    """C399"""
    path = Checkpoint(x=torch.tensor(1)).save(tmp_path / "ckpt")
    Path(path + ".index").unlink()
    assert tensorflow.latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path) is None
