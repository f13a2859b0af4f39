"""Without a checkpoint of the Keras program, its names are those of a flavor; real Keras finds variables by them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from keras_oracle import Description, Keras, Program, inputs, layer, sequential, subclassed
from keras_oracle import functional as functional_model
from torch import nn

from torch_trackckpt import Checkpoint, list_variables
from torch_trackckpt.errors import MismatchError
from torch_trackckpt.interop import keras_view, load_keras

GENERATIONS = [("k3", "keras3"), ("k2", "tf_keras")]
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def keys(path: str) -> list[str]:
    return [key.removesuffix(VALUE) for key, _ in list_variables(path) if key.endswith(VALUE)]


def written(net: nn.Module, path: Path, **settings: Any) -> str:
    return Checkpoint(model=keras_view(net, **settings)).save(str(path / "ckpt"))


def taken(keras: Keras, program: Program, net: nn.Module, tmp_path: Path, **settings: Any) -> None:
    """Asserts that a Keras program finds its variables in what a view saves, and that it is loaded as it was."""
    for module in net.modules():
        if isinstance(module, nn.LSTM):
            # Keras has one bias, so that only the sum of two goes there and back.
            for name in ("bias_hh_l0", "bias_hh_l0_reverse"):
                nn.init.zeros_(getattr(module, name, torch.empty(1)))
    other = keras.write(program, tmp_path / "theirs")
    path = written(net, tmp_path / "ours", **settings)
    restored = keras.restore(program, path, other)
    restored.assert_used()
    back = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(back)
    order = {"after_flatten": settings["after_flatten"]} if "after_flatten" in settings else {}
    load_keras(net, path, **order).assert_consumed()
    for name, value in net.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(value, expected[name]), name
    stored = sorted(tuple(v.value.shape) for v in restored.variables)
    mine = sorted(tuple(shape) for key, shape in list_variables(path) if key.startswith("model/"))
    assert stored == mine


LAYERS: dict[str, tuple[list[Description], Description, list[nn.Module], list[str]]] = {
    "dense": (
        [layer("Dense", units=4), layer("Dropout", rate=0.1), layer("BatchNormalization"), layer("Dense", units=2)],
        inputs(3),
        [nn.Linear(3, 4), nn.Dropout(0.1), nn.BatchNorm1d(4), nn.Linear(4, 2)],
        ["0", "dropout", "2", "3"],
    ),
    "convolutions": (
        [
            layer("Conv2D", filters=4, kernel_size=3),
            layer("ReLU"),
            layer("DepthwiseConv2D", kernel_size=2),
            layer("SeparableConv2D", filters=5, kernel_size=2),
            layer("Conv2DTranspose", filters=2, kernel_size=2),
            layer("Flatten"),
            layer("Dense", units=2),
        ],
        inputs(6, 5, 1),
        [
            nn.Conv2d(1, 4, 3),
            nn.ReLU(),
            nn.Conv2d(4, 4, 2, groups=4),
            nn.Conv2d(4, 4, 2, groups=4, bias=False),
            nn.Conv2d(4, 5, 1),
            nn.ConvTranspose2d(5, 2, 2),
            nn.Flatten(),
            nn.Linear(12, 2),
        ],
        ["0", "relu", "2", ("3", "4"), "5", "flatten", "7"],  # type: ignore[list-item]
    ),
    "text": (
        [
            layer("Embedding", input_dim=9, output_dim=3),
            layer("Bidirectional", layer=layer("LSTM", units=4, return_sequences=True)),
            layer("GRU", units=3, return_sequences=True),
            layer("LayerNormalization"),
            layer("LSTM", units=2, return_sequences=True),
            layer("LSTM", units=2),
        ],
        inputs(5, high=9),
        [
            nn.Embedding(9, 3),
            nn.LSTM(3, 4, bidirectional=True),
            nn.GRU(8, 3),
            nn.LayerNorm(3),
            nn.LSTM(3, 2),
            nn.LSTM(2, 2),
        ],
        ["0", "1", "2", "3", "4", "5"],
    ),
}


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize(("generation", "flavor"), GENERATIONS)
def test_a_sequential_is_found_by_keras(keras: Keras, case: str, generation: str, flavor: str, tmp_path: Path) -> None:
    described, given, modules, layers = LAYERS[case]
    program = Program(generation, sequential(*described, inputs=given), [given])
    order = {"7": (3, 2, 2)} if case == "convolutions" else {}
    settings = {"flavor": flavor, "layers": layers, "after_flatten": order}
    if case == "convolutions":
        # Valid convolutions: 6 x 5, 4 x 3, 3 x 2, 2 x 1, and the transposed one makes it 3 x 2.
        assert modules[-1].in_features == 12
    taken(keras, program, nn.Sequential(*copy.deepcopy(modules)), tmp_path, **settings)


@pytest.mark.parametrize(("generation", "flavor"), GENERATIONS)
def test_a_functional_model_is_found_by_keras(keras: Keras, generation: str, flavor: str, tmp_path: Path) -> None:
    model = functional_model(
        [inputs(4, 8, name="x")],
        {"attention": layer("MultiHeadAttention", num_heads=2, key_dim=4), "head": layer("Dense", units=3)},
        [("a", "attention", ["x", "x"]), ("sum", "add", ["a", "x"]), ("y", "head", ["sum"])],
        ["y"],
    )
    net = nn.ModuleDict({"head": nn.Linear(8, 3), "attention": nn.MultiheadAttention(8, 2)})
    layers = ["x", "attention", "add", "head"]
    taken(keras, Program(generation, model, [inputs(4, 8)]), net, tmp_path, flavor=flavor, layers=layers)


@pytest.mark.parametrize(("generation", "flavor"), GENERATIONS)
def test_a_subclassed_model_is_found_by_keras(keras: Keras, generation: str, flavor: str, tmp_path: Path) -> None:
    attributes = {
        "first": layer("Dense", units=4),
        "pair": {"tuple": [layer("Dense", units=4), layer("BatchNormalization")]},
        "shift": {"weight": [4]},
    }
    model = subclassed(attributes, ["first", "pair/0", "pair/1", ("add", "shift")])
    net = nn.ModuleDict({"pair": nn.ModuleList([nn.Linear(4, 4), nn.BatchNorm1d(4)]), "first": nn.Linear(3, 4)})
    net.register_parameter("shift", nn.Parameter(torch.randn(4)))
    taken(keras, Program(generation, model, [inputs(3)]), net, tmp_path, flavor=flavor)


def test_the_names_of_keras_3(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    path = written(net, tmp_path, flavor="keras3", layers=["0", "relu", "2"])
    assert keys(path) == [
        "model/_functional/_operations/1/_kernel",
        "model/_functional/_operations/1/bias",
        "model/_functional/_operations/3/_kernel",
        "model/_functional/_operations/3/bias",
        "save_counter",
    ]


def test_the_names_of_tf_keras_need_no_layers_without_weights(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert keys(written(net, tmp_path, flavor="tf_keras_legacy_optimizer"))[2:] == [
        "model/layer_with_weights-1/bias",
        "model/layer_with_weights-1/kernel",
        "save_counter",
    ]


def test_the_names_of_sonnet(tmp_path: Path) -> None:
    net = nn.ModuleDict({"conv": nn.Conv2d(1, 2, 1), "bn": nn.BatchNorm2d(2), "out": nn.LSTM(2, 3)})
    path = written(net, tmp_path, flavor="sonnet")
    assert keys(path) == [
        "model/bn/moving_mean/_counter",
        "model/bn/moving_mean/_hidden",
        "model/bn/moving_mean/average",
        "model/bn/moving_variance/_counter",
        "model/bn/moving_variance/_hidden",
        "model/bn/moving_variance/average",
        "model/bn/offset",
        "model/bn/scale",
        "model/conv/b",
        "model/conv/w",
        "model/out/_w_h",
        "model/out/_w_i",
        "model/out/b",
        "save_counter",
    ]
    status = load_keras(net, path).assert_consumed()
    assert "sonnet" in str(status)


def test_variables_of_sonnet_are_trained_in_the_order_of_their_names(tmp_path: Path) -> None:
    net = nn.ModuleDict({"z": nn.Linear(1, 2), "a": nn.Linear(2, 3)})
    view = keras_view(net)
    Checkpoint(model=view).read(written(net, tmp_path, flavor="sonnet"))
    assert [variable.readable for variable in view.bound().trainable()] == ["a/b", "a/w", "z/b", "z/w"]


def refused(net: nn.Module, **settings: Any) -> str:
    with pytest.raises((MismatchError, TypeError)) as caught:
        Checkpoint(model=keras_view(net, **settings)).save("/nowhere/ckpt")
    return str(caught.value)


def test_layers_without_weights_have_to_be_said_to_keras_3() -> None:
    text = refused(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), flavor="keras3")
    assert "1 may be layers there or not" in text
    assert "layers=[...]" in text
    assert "like=" in text


def test_every_layer_has_to_be_listed_once() -> None:
    net = nn.Sequential(OrderedDict(a=nn.Linear(3, 4), b=nn.Linear(4, 2)))
    assert "b is missing" in refused(net, flavor="keras3", layers=["a", "dropout"])
    assert "each has to be there once" in refused(net, flavor="keras3", layers=["a", "a", "b"])
    assert "only a depthwise convolution and the one after it" in refused(net, flavor="keras3", layers=[("a", "b")])


def test_a_sequential_inside_is_not_guessed() -> None:
    net = nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 4))})
    assert "body is a Sequential inside of a model" in refused(net, flavor="keras3")


def test_a_module_that_keras_has_not() -> None:
    net = nn.ModuleDict({"up": nn.ConvTranspose2d(4, 4, 2, groups=2)})
    assert "up (ConvTranspose2d): Conv2DTranspose has no groups" in refused(net, flavor="keras3")
    assert "gru (GRU): Sonnet's GRU applies its reset gate" in refused(
        nn.ModuleDict({"gru": nn.GRU(2, 2)}), flavor="sonnet"
    )


def test_layers_need_a_flavor() -> None:
    with pytest.raises(ValueError, match="say flavor= as well"):
        keras_view(nn.Linear(1, 1), layers=["a"])


def test_values_are_those_of_now(keras: Keras, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    program = Program("k3", sequential(layer("Dense", units=2), inputs=inputs(3)), [inputs(3)])
    theirs = keras.write(program, tmp_path / "theirs")
    view = keras_view(net, flavor="keras3")
    checkpoint = Checkpoint(model=view)
    for _ in range(2):
        nn.init.normal_(net[0].weight)
        restored = keras.restore(program, checkpoint.save(str(tmp_path / "ckpt")), theirs)
        restored.assert_used()
        np.testing.assert_array_equal(restored.variable("kernel").value, net[0].weight.detach().numpy().T)
        expected = net(torch.from_numpy(restored.inputs[0] if restored.inputs else theirs.inputs[0])).detach()
        np.testing.assert_allclose(restored.outputs[0], expected.numpy(), rtol=0, atol=1e-6)
