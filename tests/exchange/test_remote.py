"""Checkpoints that went through remote storage, and TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from torch_trackckpt import Checkpoint, CheckpointManager, latest_checkpoint

from .conftest import TensorFlow

FOLDER = "memory://exchange-with-tensorflow"


@pytest.fixture
def files() -> Iterator[Any]:
    """fsspec's memory, in which the folder is gone afterwards."""
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (pip install 'torch_trackckpt[test]')")
    files = fsspec.filesystem("memory")
    yield files
    if files.exists(FOLDER):
        files.rm(FOLDER, recursive=True)


def test_tensorflow_restores_what_was_downloaded(tensorflow: TensorFlow, tmp_path: Path, files: Any) -> None:
    """C231: also by the state file, whose names are relative. The second has data files of which one is empty."""
    x = torch.arange(6.0).reshape(2, 3)
    checkpoint = Checkpoint(x=x)
    manager = CheckpointManager(checkpoint, FOLDER)
    manager.save()
    path = manager.save()
    checkpoint.write(path)
    files.get(FOLDER, str(tmp_path / "run"), recursive=True)

    found = tensorflow.latest_checkpoint(tmp_path / "run")

    assert found == str(tmp_path / "run" / "ckpt-2")
    assert (tmp_path / "run" / "ckpt-2.data-00001-of-00002").read_bytes() == b""
    restored = torch.zeros(2, 3)
    tensorflow.restore(found, ["assert_existing_objects_matched"], x=restored)
    assert torch.equal(restored, x)


def test_what_tensorflow_wrote_is_restored_from_where_it_was_uploaded(
    tensorflow: TensorFlow, tmp_path: Path, files: Any
) -> None:
    x = torch.arange(6.0).reshape(2, 3)
    tensorflow.save(tmp_path / "run" / "ckpt", SimpleNamespace(x=x))
    files.put(str(tmp_path / "run"), FOLDER, recursive=True)

    path = latest_checkpoint(FOLDER)

    assert path == FOLDER + "/ckpt-1"
    live = torch.zeros(2, 3)
    Checkpoint(x=live).restore(path).assert_consumed()
    assert torch.equal(live, x)
