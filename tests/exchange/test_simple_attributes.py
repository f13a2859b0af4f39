"""Plain attributes, which TensorFlow does not save, and what it makes of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from torch_trackckpt import AutoTrackable, Checkpoint

from .conftest import TensorFlow, WorkerError


class Net(AutoTrackable):
    def __init__(self, value: float, units: int) -> None:
        self.units = units
        self.names = ["a", "b"]
        self.x = torch.tensor(value)


def test_tensorflow_restores_the_children_and_tells_of_the_attributes(tensorflow: TensorFlow, prefix: Path) -> None:
    """C025, C396: the JSON is an attribute that its objects do not know."""
    path = Checkpoint(net=Net(1.5, 3)).save(prefix)
    net = SimpleNamespace(x=torch.tensor(0.0))
    tensorflow.restore(path, ["expect_partial", "assert_existing_objects_matched"], net=net)
    assert net.x.item() == 1.5
    with pytest.raises(WorkerError, match=r"(?s)Unused attributes .*py_state"):
        tensorflow.restore(path, ["assert_consumed"], net=net)


def test_an_object_that_tensorflow_saved_keeps_its_numbers(tensorflow: TensorFlow, prefix: Path) -> None:
    """C025"""
    path = tensorflow.save(prefix, net=SimpleNamespace(x=torch.tensor(1.5)))
    net = Net(0.0, 3)
    Checkpoint(net=net).restore(path).assert_consumed().assert_existing_objects_matched()
    assert (net.x.item(), net.units, net.names) == (1.5, 3, ["a", "b"])
