"""What a first attempt gets wrong is told before anything changes."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from interop.golden_models import GOLDEN
from torch import nn

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import MismatchError, UnsupportedFormatError, UnsupportedValueError
from torch_trackckpt.interop import keras_view, load_keras
from torch_trackckpt.interop.keras import KerasBatchNorm1d, KerasEpsilon

MLP = str(GOLDEN / "k3_sequential_mlp_adam" / "ckpt-1")


def mlp(width: int = 8) -> nn.Sequential:
    norm = KerasBatchNorm1d(width, eps=1e-3, momentum=0.01)
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), norm, nn.Linear(width, 2))


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    inputs = torch.arange(80.0).reshape(16, 5) / 80
    net(inputs).square().mean().backward()
    optimizer.step()


def test_loading_twice_has_the_epsilon_of_loading_once() -> None:
    weights = []
    for times in (1, 2):
        net = mlp()
        optimizer = torch.optim.Adam(net.parameters(), eps=1e-3)
        for _ in range(times):
            load_keras(net, MLP, optimizer, keras_epsilon=True)
        step(net, optimizer)
        weights.append(net[0].weight.detach())
    assert torch.equal(*weights)


def test_a_removed_epsilon_stays_removed() -> None:
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters())
    first, second = KerasEpsilon(optimizer), KerasEpsilon(optimizer)
    second.remove()
    first.remove()
    assert not KerasEpsilon.is_on(optimizer)


def test_an_epsilon_that_is_no_adams_is_refused_before_anything_changes(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 1))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    view = keras_view(net, flavor="keras3")
    path = Checkpoint(model=view, optimizer=keras_view(optimizer)).save(str(tmp_path / "ckpt"))
    other = nn.Sequential(nn.Linear(2, 1))
    before = other[0].weight.detach().clone()
    with pytest.raises(UnsupportedValueError, match="SGD is no Adam"):
        load_keras(other, path, torch.optim.SGD(other.parameters(), 0.1), keras_epsilon=True)
    with pytest.raises(ValueError, match="none was given"):
        load_keras(other, path, keras_epsilon=True)
    assert torch.equal(other[0].weight, before)


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.weights.h5"])
def test_files_of_kerass_own_formats_are_refused_with_what_to_save(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(UnsupportedFormatError, match=r"tf\.train\.Checkpoint"):
        load_keras(mlp(), path)
    with pytest.raises(ValueError, match=r"tf\.train\.Checkpoint"):
        keras_view(mlp(), like=path).bound()


def test_a_module_on_the_meta_device_is_refused() -> None:
    with torch.device("meta"):
        net = mlp()
    with pytest.raises(MismatchError, match="to_empty"):
        load_keras(net, MLP)


def test_an_unknown_flavor_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="'keras3', 'tf_keras', 'tf_keras_legacy_optimizer', 'sonnet'"):
        keras_view(mlp(), flavor="keras")


def test_a_map_of_names_of_both_sides_that_lead_nowhere_is_told() -> None:
    with pytest.raises(MismatchError, match="It is one of Keras, but not all that map says can be read"):
        load_keras(mlp(), MLP, map={"mlp/hidden": "nothing of the kind"})


def test_a_map_that_is_proposed_has_what_the_callers_leaves_out() -> None:
    with pytest.raises(MismatchError) as caught:
        load_keras(mlp(), MLP, map={"3": None})
    assert "map={'0': 'mlp/hidden', '2': 'mlp/bn', '3': None}" in str(caught.value)


def test_as_many_modules_as_layers_are_compared_one_by_one() -> None:
    with pytest.raises(MismatchError) as caught:
        load_keras(mlp(7), MLP)
    assert "0 is not mlp/hidden (_functional/_operations/1): kernel is [5, 8]" in str(caught.value)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4 * 6 * 5, 3)


def test_a_feature_map_in_the_order_of_torch_is_doubted(tmp_path: Path) -> None:
    view = keras_view(Images(), flavor="keras3", after_flatten={"fc": (6, 5, 4)})
    path = Checkpoint(model=view).save(str(tmp_path / "ckpt"))
    assert load_keras(Images(), path, after_flatten={"fc": (6, 5, 4)}).inexact == ()
    (doubt,) = load_keras(Images(), path, after_flatten={"fc": (4, 6, 5)}).inexact
    assert doubt.name == "fc"
    assert "say (6, 5, 4)" in doubt.reason


def test_a_view_of_a_module_is_found_when_a_younger_one_has_gone(tmp_path: Path) -> None:
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters())
    older = keras_view(net, like=MLP)
    younger = keras_view(net, like=MLP)
    assert keras_view(optimizer).model is younger
    del younger
    gc.collect()
    assert keras_view(optimizer).model is older


def test_an_unused_key_is_shown_with_the_name_of_the_variable() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), KerasBatchNorm1d(8))
    status = load_keras(net, MLP, map={"0": "hidden", "2": "bn"})
    assert "optimizer/_trainable_variables/4/.ATTRIBUTES/VARIABLE_VALUE  mlp/head/kernel" in str(status)
