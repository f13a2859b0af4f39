"""A map may be written from torch's names to Keras's, or from Keras's to torch's."""

from __future__ import annotations

import pytest
import torch
from interop.golden_models import CASES
from torch import nn

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import MismatchError
from torch_trackckpt.interop.keras import keras_view, load_keras
from torch_trackckpt.interop.keras.given_map import KerasMap, from_torch

(GRU,) = (case for case in CASES if case.name == "k2_functional_gru_adamw")


def read(given: KerasMap, of_torch: str, of_keras: str) -> KerasMap:
    return from_torch(given, of_torch.split().__contains__, of_keras.split().__contains__)


def test_a_map_is_read_in_the_direction_that_its_names_have() -> None:
    assert read({"a": "x", "b": "y"}, "a b", "x y") == {"a": "x", "b": "y"}
    assert {k: list(v or ()) for k, v in read({"x": "a", "y": "b"}, "a b", "x y").items()} == {"a": ["x"], "b": ["y"]}


def test_several_names_on_either_side_are_turned_as_well() -> None:
    assert read({"x": ("a", "b")}, "a b", "x") == {"a": ["x"], "b": ["x"]}
    assert read({"x": "a", "y": "a", "c": None}, "a c", "x y") == {"a": ["x", "y"], "c": None}


def test_a_map_that_means_the_same_both_ways_is_no_question() -> None:
    assert read({"a": "a", "b": "b"}, "a b", "a b") == {"a": "a", "b": "b"}
    assert read({"a": "b", "b": "a"}, "a b", "a b") == {"a": "b", "b": "a"}


def test_a_map_that_means_different_things_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"map=\{'a': 'b', ...\} can be read both ways"):
        read({"a": "b", "b": "c"}, "a b c", "a b c")


def test_names_of_neither_side_are_told_of_as_they_were_given() -> None:
    assert read({"a": "nothing"}, "a", "x") == {"a": "nothing"}


@pytest.mark.parametrize("is_turned", [False, True])
def test_a_golden_model_is_loaded_by_a_map_in_both_directions(is_turned: bool) -> None:
    assert GRU.map
    given: KerasMap = {str(name): key for key, name in GRU.map.items()} if is_turned else GRU.map
    net = GRU.net()
    status = load_keras(net, GRU.prefix, map=given).assert_existing_objects_matched()
    assert not status.unmatched_torch
    for value, expected in zip(GRU.run(net), GRU.outputs(), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=GRU.outputs_within)


def test_a_layer_of_keras_is_left_out_by_its_name(prefix: str) -> None:
    saved = nn.ModuleDict({"body": nn.Linear(3, 2), "head": nn.Linear(2, 1)})
    path = Checkpoint(model=keras_view(saved, flavor="keras3")).write(prefix)
    net = nn.Sequential(nn.Linear(3, 2))

    status = load_keras(net, path, map={"head": None})

    assert torch.equal(net[0].weight, saved["body"].weight)
    assert len(status.unused_keys) == 2
    assert all("head" in key for key in status.unused_keys)
