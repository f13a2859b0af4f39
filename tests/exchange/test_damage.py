"""TensorFlow finds damage in our files: the checksums are the ones that it checks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from torch_trackckpt import Checkpoint, CheckpointReader, Trackable
from torch_trackckpt.errors import DataLossError

from .conftest import TensorFlow, Value, WorkerError

X = "x/.ATTRIBUTES/VARIABLE_VALUE"
Y = "y/.ATTRIBUTES/VARIABLE_VALUE"


def flip(path: str, position: int) -> None:
    data = bytearray(Path(path).read_bytes())
    data[position] ^= 0x10
    Path(path).write_bytes(data)


@pytest.mark.parametrize("position", [0, 5, 11])
def test_a_flipped_byte_of_a_tensor_is_found_by_both(tensorflow: TensorFlow, prefix: Path, position: int) -> None:
    """C362, C382"""
    path = Checkpoint(x=torch.ones(3), y=torch.tensor(2.0)).write(prefix)
    flip(f"{path}.data-00000-of-00001", position)
    with pytest.raises(WorkerError, match="Checksum does not match"):
        tensorflow.read_one(path, X)
    with pytest.raises(DataLossError, match="Checksum does not match"):
        CheckpointReader(path).get_tensor(X)
    assert tensorflow.read_one(path, Y) == Value.of(torch.tensor(2.0))


class Words(Trackable):
    def _serialize_to_tensors(self) -> Mapping[str, bytes]:
        return {"words": b"some words"}


@pytest.mark.parametrize(("position", "message"), [(0, "ength"), (2, "(?i)checksum"), (8, "Checksum does not match")])
def test_a_flipped_byte_of_a_string_is_found_by_both(
    tensorflow: TensorFlow, prefix: Path, position: int, message: str
) -> None:
    """C362, C383"""
    path = Checkpoint(x=Words()).write(prefix)
    flip(f"{path}.data-00000-of-00001", position)
    with pytest.raises(WorkerError, match=message):
        tensorflow.read_one(path, "x/.ATTRIBUTES/words")
    with pytest.raises(DataLossError, match=message):
        CheckpointReader(path).get_tensor("x/.ATTRIBUTES/words")


@pytest.mark.parametrize("position", [3, -60, -1])
def test_a_flipped_byte_of_the_index_is_found_by_both(tensorflow: TensorFlow, prefix: Path, position: int) -> None:
    """C362, C386, C387"""
    path = Checkpoint(x=torch.ones(3)).write(prefix)
    flip(f"{path}.index", position)
    with pytest.raises(WorkerError):
        tensorflow.read_one(path, X)
    with pytest.raises(DataLossError):
        CheckpointReader(path)


def test_a_flipped_byte_in_a_file_of_tensorflow_is_found(tensorflow: TensorFlow, prefix: Path) -> None:
    """C362, C382"""
    path = tensorflow.write(prefix, x=torch.ones(3))
    x = torch.zeros(3)
    flip(f"{path}.data-00000-of-00001", 5)
    with pytest.raises(DataLossError, match="Checksum does not match"):
        Checkpoint(x=x).read(path)
    assert torch.equal(x, torch.zeros(3))
