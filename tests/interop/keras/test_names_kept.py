"""What a view writes has Keras's names, so that it is bound again as what Keras wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from interop.golden_models import CASES, GoldenCase
from torch import nn

from torch_trackckpt import Checkpoint, load_checkpoint
from torch_trackckpt.graph.messages import read_object_graph
from torch_trackckpt.interop import keras_view, load_keras


def full_names(path: str) -> dict[str, str]:
    """Of the values that are stored, by key."""
    graph = read_object_graph(load_checkpoint(path))
    assert graph is not None
    return {each.checkpoint_key: each.full_name for node in graph.nodes for each in node.attributes}


# Of an export nothing is written; and what is in a list has its name from the state of the optimizer alone.
WRITTEN = [case for case in CASES if case.name not in ("k3_saved_model_export", "k3_subclassed_list_attr")]


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: case.name)
def test_what_is_written_like_a_golden_checkpoint_is_bound_as_that_was(case: GoldenCase, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"map": case.map, "after_flatten": case.after_flatten}
    net = case.net()
    table = load_keras(net, case.path, **settings).bound
    view = keras_view(net, like=case.path, **settings)
    path = Checkpoint(model=view).save(str(tmp_path / "ckpt"))
    assert {variable.full_name for variable in view.bound().variables} <= set(full_names(path).values())
    assert load_keras(case.net(), path, **settings).bound == table


class Turned(nn.Module):
    """Layers that only names tell apart, not in the order of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(4, 4)
        self.first = nn.Linear(4, 4)


def test_what_is_written_by_a_flavor_has_the_names_of_the_modules(tmp_path: Path) -> None:
    net = Turned()
    layers = ["input", "first", "second"]
    path = Checkpoint(model=keras_view(net, flavor="keras3", layers=layers)).save(str(tmp_path / "ckpt"))
    assert full_names(path)["model/_operations/1/_kernel/.ATTRIBUTES/VARIABLE_VALUE"] == "first/kernel"
    for restore in (
        lambda other: load_keras(other, path),
        lambda other: Checkpoint(model=keras_view(other, flavor="keras3", layers=layers)).restore(path),
    ):
        other = Turned()
        restore(other)
        assert torch.equal(other.first.weight, net.first.weight)
        assert torch.equal(other.second.weight, net.second.weight)


def test_numbers_are_no_names(tmp_path: Path) -> None:
    view = keras_view(nn.Sequential(nn.Linear(2, 2)), flavor="tf_keras")
    path = Checkpoint(model=view).save(str(tmp_path / "ckpt"))
    key = "model/layer_with_weights-0/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    assert full_names(path)[key] == key.partition("/.A")[0].replace("/", ".")
