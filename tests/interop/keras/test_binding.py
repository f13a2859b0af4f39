"""Modules and saved layers find each other by the caller's map, by names, by order; what is not clear is an error."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import MismatchError
from torch_trackckpt.interop.keras import KerasArray, LayerForm, Piece, keras_view, load_keras, register_keras_layer

GOLDEN = Path(__file__).parents[2] / "golden" / "keras"
MLP = GOLDEN / "k3_sequential_mlp_adam" / "ckpt-1"
CNN = GOLDEN / "k3_functional_cnn_sgd" / "ckpt-1"


def named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def mlp(**others: nn.Module) -> nn.Sequential:
    return named(a=nn.Linear(5, 8), b=nn.BatchNorm1d(8), c=nn.Linear(8, 2), **others)


def how(net: nn.Module, path: str | Path, **settings: Any) -> list[tuple[str, str, str]]:
    status = load_keras(net, path, **settings)
    return [(line.torch_name, line.keras.partition(" ")[0], line.how) for line in status.bound]


def error(net: nn.Module, path: str | Path, **settings: Any) -> str:
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(MismatchError) as caught:
        load_keras(net, path, **settings)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} changed"
    return str(caught.value)


def written(tmp_path: Path, net: nn.Module, **settings: Any) -> str:
    """A checkpoint of a Keras program that has layers like a module's."""
    return Checkpoint(model=keras_view(net, **settings)).write(str(tmp_path / "ckpt"))


# How they are found.


def test_by_order_where_all_shapes_fit() -> None:
    assert how(mlp(), MLP) == [
        ("a", "mlp/hidden", "order"),
        ("b", "mlp/bn", "order"),
        ("c", "mlp/head", "order"),
    ]


def test_by_names_in_any_order() -> None:
    net = named(head=nn.Linear(8, 2), bn=nn.BatchNorm1d(8), hidden=nn.Linear(5, 8))
    assert {line[2] for line in how(net, MLP)} == {"name"}


def test_by_the_last_part_of_a_name() -> None:
    net = nn.ModuleDict({"body": named(hidden=nn.Linear(5, 8), norm=nn.BatchNorm1d(8)), "top": mlp().c})
    assert how(net, MLP) == [
        ("body.hidden", "mlp/hidden", "name"),
        ("body.norm", "mlp/bn", "order"),
        ("top", "mlp/head", "order"),
    ]


def test_by_the_callers_map() -> None:
    given = {"c": "mlp/head", "a": "_functional/_operations/1", "b": "bn"}
    assert [line[2] for line in how(mlp(), MLP, map=given)] == ["map", "map", "map"]
    paths = {"c": "model/_functional/_operations/4", "a": "hidden", "b": "mlp.bn"}
    assert [line[2] for line in how(mlp(), MLP, map=paths)] == ["map", "map", "map"]


def test_by_shapes_that_are_there_once_on_both_sides() -> None:
    net = named(c=nn.Linear(8, 2), b=nn.BatchNorm1d(8), a=nn.Linear(5, 8))
    assert {line[2] for line in how(net, MLP)} == {"shape"}


def test_numbers_are_trusted_only_where_both_sides_have_the_same(tmp_path: Path) -> None:
    keras = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])})
    path = written(tmp_path, keras, flavor="tf_keras")
    torch_side = nn.ModuleDict({"blocks": nn.Sequential(nn.Flatten(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))})
    status = load_keras(torch_side, path)
    assert [(line.torch_name, line.keras, line.how) for line in status.bound] == [
        ("blocks.1", "blocks/0", "order"),
        ("blocks.3", "blocks/1", "order"),
    ]
    assert torch.equal(torch_side["blocks"][1].weight, keras["blocks"][0].weight)


def test_a_layer_may_be_several_modules_and_a_module_several_layers(tmp_path: Path) -> None:
    sep = named(first=nn.Conv2d(12, 12, 3, groups=12, bias=False), second=nn.Conv2d(12, 4, 1))
    net = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 6, 3),
            "bn": nn.BatchNorm2d(6),
            "dw": nn.Conv2d(6, 12, 3, groups=6),
            "x": sep,
            "head": nn.Linear(8, 3),
        }
    )
    settings: dict[str, Any] = {"after_flatten": {"head": (2, 1, 4)}}
    assert how(net, CNN, **settings)[3:5] == [("x.first", "sep", "order"), ("x.second", "sep", "order")]
    given = {"x.first": "sep", "x.second": "sep"}
    assert how(net, CNN, map=given, **settings)[3:5] == [("x.first", "sep", "map"), ("x.second", "sep", "map")]
    assert how(net, CNN, map={"x": "sep"}, **settings)[3:5] == [("x.first", "sep", "map"), ("x.second", "sep", "map")]

    stack = nn.ModuleDict({"rnn": nn.LSTM(3, 4, 2)})
    path = written(tmp_path, stack, flavor="tf_keras", layers=["rnn.l0", "rnn.l1"])
    paths, names = ["layer_with_weights-0", "layer_with_weights-1"], ["rnn/l0", "rnn/l1"]
    assert how(stack, path) == [("rnn.l0", names[0], "order"), ("rnn.l1", names[1], "order")]
    mapped = how(stack, path, map={"rnn": paths})
    assert mapped == [("rnn.l0", names[0], "map"), ("rnn.l1", names[1], "map")]
    swapped = how(
        nn.ModuleDict({"rnn": nn.LSTM(4, 4, 2)}),
        written(tmp_path, nn.ModuleDict({"rnn": nn.LSTM(4, 4, 2)}), flavor="tf_keras", layers=["rnn.l0", "rnn.l1"]),
        map={"rnn.l1": paths[0]},
    )
    assert swapped == [("rnn.l1", names[0], "map"), ("rnn.l0", names[1], "order")]


def test_attention_may_be_four_modules() -> None:
    net = nn.ModuleDict({name: nn.Linear(8, 8) for name in "qkvo"})
    path = GOLDEN / "k3_mha_layer" / "ckpt-1"
    assert how(net, path) == [(name, "mha", "order") for name in "qkvo"]


def test_a_parameter_without_a_rule_is_found_by_name_or_map(tmp_path: Path) -> None:
    class Token(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.register_parameter(name, nn.Parameter(torch.randn(3)))
            self.out = nn.Linear(3, 2)

    keras = Token("token")
    path = written(tmp_path, keras, flavor="keras3")
    assert how(Token("token"), path)[0] == ("token", "(the", "name")
    net = Token("other")
    text = error(net, path)
    assert "No rule tells what Keras calls other" in text
    assert "register_keras_layer" in text
    assert "map={'other': 'layer/variable'}" in text
    load_keras(net, path, map={"other": "token"}).assert_consumed()
    assert torch.equal(net.other, keras.token)
    assert load_keras(net, path, map={"other": None}).unused_keys == ("model/token/.ATTRIBUTES/VARIABLE_VALUE",)


def test_a_rule_of_ones_own(tmp_path: Path) -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.randn(3))

    def scale(module: Scale, stored: object) -> LayerForm:
        return LayerForm("Scale", {"gamma": KerasArray((Piece("factor"),), (3,))})

    register_keras_layer(Scale, scale)
    keras = nn.ModuleDict({"scale": Scale()})
    path = written(tmp_path, keras, flavor="keras3")
    net = nn.ModuleDict({"scale": Scale()})
    load_keras(net, path).assert_consumed()
    assert torch.equal(net["scale"].factor, keras["scale"].factor)


def test_a_shared_module_is_one_layer_and_a_tied_one_none(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(6, 4)
            self.again = self.words
            self.decoder = nn.Linear(4, 6, bias=False)
            self.decoder.weight = self.words.weight

    path = written(tmp_path, nn.ModuleDict({"words": nn.Embedding(6, 4)}), flavor="keras3")
    assert how(Tied(), path) == [("words", "words", "name")]


def test_one_tensor_cannot_be_two_variables(tmp_path: Path) -> None:
    keras = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    path = written(tmp_path, keras, flavor="keras3")
    net = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    net["b"].weight = net["a"].weight
    text = error(net, path)
    assert "b.weight and a tensor of a are one and the same" in text
    assert "map={'b': None}" in text


def test_wrappers_have_no_names() -> None:
    net = named(hidden=nn.Linear(5, 8), bn=nn.BatchNorm1d(8), head=nn.Linear(8, 2))
    compiled = torch.compile(net, backend="eager")
    inside = named(hidden=nn.DataParallel(net.hidden), bn=net.bn, head=torch.compile(net.head, backend="eager"))
    for wrapped in (compiled, nn.DataParallel(net), inside):
        assert [line[0] for line in how(wrapped, MLP)] == ["hidden", "bn", "head"]  # type: ignore[arg-type]


# What the layer in Keras lacks.


def test_what_the_layer_lacks_gets_the_value_that_makes_no_difference_and_is_frozen(tmp_path: Path) -> None:
    keras = nn.ModuleDict({"a": nn.Linear(3, 4, bias=False)})
    path = written(tmp_path, keras, flavor="keras3")
    net = nn.ModuleDict({"a": nn.Linear(3, 4)})
    status = load_keras(net, path).assert_consumed()
    assert status.frozen == ("a.bias",)
    assert not net["a"].bias.any()
    assert not net["a"].bias.requires_grad
    assert net["a"].weight.requires_grad


def test_a_second_bias_becomes_zero_and_is_frozen() -> None:
    net = nn.ModuleDict({"emb": nn.Embedding(20, 6), "lstm": nn.LSTM(6, 5), "head": nn.Linear(5, 3)})
    status = load_keras(net, GOLDEN / "k3_lstm_text_rmsprop" / "ckpt-1")
    assert status.frozen == ("lstm.bias_hh_l0",)
    assert not net["lstm"].bias_hh_l0.any()
    assert not net["lstm"].bias_hh_l0.requires_grad
    assert net["lstm"].bias_ih_l0.requires_grad


# Errors.


def test_one_layer_too_many() -> None:
    text = error(mlp(extra=nn.Linear(7, 3)), MLP)
    assert text.startswith("extra (Linear; weight [3, 7], bias [3]) has no layer in (root).model of the checkpoint")
    assert "map={'extra': None}" in text
    assert "kernel [7, 3], bias [3]" in text
    load_keras(mlp(extra=nn.Linear(7, 3)), MLP, map={"extra": None}).assert_consumed()


def test_one_layer_too_few() -> None:
    net = named(a=nn.Linear(5, 8), b=nn.BatchNorm1d(8))
    text = error(net, MLP)
    assert text.startswith("mlp/head (_functional/_operations/4) of (root).model in the checkpoint has no module")
    assert "mlp/head (_functional/_operations/4)  kernel [8, 2], bias [2]" in text
    assert "say map={'a': 'mlp/hidden', 'b': 'mlp/bn'}" in text
    status = load_keras(net, MLP, map={"a": "hidden", "b": "bn"})
    assert [key.split("/.")[0] for key in status.unused_keys] == [f"optimizer/_trainable_variables/{i}" for i in (4, 5)]
    with pytest.raises(AssertionError, match="values that nothing took: optimizer/_trainable_variables/4"):
        status.assert_consumed()


def test_one_layer_too_many_of_several_that_are_alike(tmp_path: Path) -> None:
    path = written(tmp_path, nn.ModuleDict({"x": nn.Linear(3, 3), "y": nn.Linear(3, 3)}), flavor="keras3")
    text = error(nn.ModuleDict({name: nn.Linear(3, 3) for name in "abc"}), path)
    assert "3 of the net's modules and 2 of Keras's layers" in text
    assert "None leaves a module out" in text


def test_a_shape_that_does_not_fit_a_module_of_the_same_name() -> None:
    net = named(hidden=nn.Linear(5, 9), bn=nn.BatchNorm1d(8), head=nn.Linear(8, 2))
    text = error(net, MLP)
    assert "hidden (Linear) goes with Keras's layer mlp/hidden (_functional/_operations/1) by name" in text
    assert (
        "kernel is [5, 8] in the checkpoint and [5, 9] in the module, in Keras's layout (in torch weight [9, 5])"
        in text
    )
    assert "bias is [8] in the checkpoint and [9] in the module" in text
    assert "map={'hidden': ...}" in text


def test_a_swapped_shape() -> None:
    net = named(hidden=nn.Linear(8, 5), bn=nn.BatchNorm1d(8), head=nn.Linear(8, 2))
    text = error(net, MLP)
    assert (
        "kernel is [5, 8] in the checkpoint and [8, 5] in the module, in Keras's layout (in torch weight [5, 8])"
        in text
    )


def test_a_module_that_has_less_than_the_layer() -> None:
    net = named(hidden=nn.Linear(5, 8, bias=False), bn=nn.BatchNorm1d(8), head=nn.Linear(8, 2))
    assert "the layer has bias [8], of which the Linear has nothing (weight [8, 5])" in error(net, MLP)


def test_another_kind_of_layer() -> None:
    net = named(hidden=nn.Linear(5, 8), bn=nn.LayerNorm(8), head=nn.Linear(8, 2))
    text = error(net, MLP)
    assert "the layer has moving_mean [8], moving_variance [8], of which the LayerNorm has nothing" in text


def test_two_that_fit_both_ways_are_not_guessed(tmp_path: Path) -> None:
    keras = nn.ModuleDict({"one": nn.Linear(3, 3), "two": nn.Linear(3, 3), "end": nn.Linear(3, 5)})
    path = written(tmp_path, keras, flavor="keras3")
    net = nn.ModuleDict({"last": nn.Linear(3, 5), "a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    text = error(net, path)
    assert "2 of the net's modules and 2 of Keras's layers" in text
    assert text.count("fits one, two") == 2
    assert "map={'a': 'one', ...}" in text


def test_a_map_with_wrong_names() -> None:
    text = error(mlp(), MLP, map={"d": "head"})
    assert "map names 'd', which is no layer of the net, or is there twice. There is a, b, c" in text
    text = error(mlp(), MLP, map={"c": "haed"})
    assert "map names 'haed', which is no layer of (root).model in the checkpoint" in text
    assert "mlp/head" in text


def test_a_map_with_wrong_shapes() -> None:
    text = error(mlp(), MLP, map={"a": "head"})
    assert "a (Linear) goes with Keras's layer mlp/head (_functional/_operations/4) by map" in text
    assert "kernel is [8, 2] in the checkpoint and [5, 8] in the module" in text


def test_a_layer_that_only_looks_alike() -> None:
    net = nn.ModuleDict({"emb": nn.Embedding(20, 6), "lstm": nn.LSTM(6, 5, proj_size=2), "head": nn.Linear(5, 3)})
    assert "Keras has no projection" in error(net, GOLDEN / "k3_lstm_text_rmsprop" / "ckpt-1")


def test_a_computed_weight() -> None:
    net = named(
        hidden=nn.utils.parametrizations.weight_norm(nn.Linear(5, 8)), bn=nn.BatchNorm1d(8), head=nn.Linear(8, 2)
    )
    assert "hidden.weight is neither a parameter nor a buffer but computed" in error(net, MLP)


def test_a_lazy_module() -> None:
    net = named(hidden=nn.LazyLinear(8), bn=nn.BatchNorm1d(8), head=nn.Linear(8, 2))
    with pytest.raises(MismatchError, match=r"hidden \(LazyLinear\) has no shapes yet .* run one forward pass first"):
        load_keras(net, MLP)


# Flattening.


def cnn() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "head": nn.Linear(8, 3),
            "conv": nn.Conv2d(3, 6, 3),
            "bn": nn.BatchNorm2d(6),
            "dw": nn.Conv2d(6, 12, 3, groups=6),
            "sep": nn.Sequential(nn.Conv2d(12, 12, 3, groups=12, bias=False), nn.Conv2d(12, 4, 1)),
        }
    )


def test_the_order_of_a_flattened_feature_map_has_to_be_said() -> None:
    text = error(cnn(), CNN)
    assert "head (Linear, 8 inputs) comes after a convolution with 4 channels" in text
    assert "after_flatten={'head': (height, width, 4)}" in text
    assert "after_flatten={'head': None}" in text


def test_the_order_of_a_flattened_feature_map_is_that_of_torch_or_left_alone() -> None:
    plain, moved = cnn(), cnn()
    load_keras(plain, CNN, after_flatten={"head": None})
    load_keras(moved, CNN, after_flatten={"head": (2, 1, 4)})
    weight = plain["head"].weight.reshape(3, 2, 1, 4).permute(0, 3, 1, 2).reshape(3, 8)
    assert torch.equal(moved["head"].weight, weight)


def test_a_feature_map_of_another_size_or_name() -> None:
    text = error(cnn(), CNN, after_flatten={"head": (3, 1, 4)})
    assert "after_flatten['head']: A feature map of shape [3, 1, 4] has 12 elements" in text
    assert "after_flatten names 'haed', which is no layer of the net" in error(cnn(), CNN, after_flatten={"haed": None})


def test_what_is_normalised_behind_a_flattened_feature_map_is_in_another_order_as_well(tmp_path: Path) -> None:
    def net() -> nn.ModuleDict:
        return nn.ModuleDict({"conv": nn.Conv2d(1, 3, 1), "bn": nn.BatchNorm1d(12), "out": nn.Linear(12, 2)})

    order: dict[str, Any] = {"bn": (2, 2, 3), "out": (2, 2, 3)}
    keras = net()
    nn.init.normal_(keras["bn"].weight)
    path = written(tmp_path, keras, flavor="keras3", after_flatten=order)
    assert "bn (BatchNorm1d, 12 inputs) comes after a convolution with 3 channels" in error(net(), path)
    assert "out (Linear, 12 inputs)" in error(net(), path, after_flatten={"bn": (2, 2, 3)})
    back, raw = net(), net()
    load_keras(back, path, after_flatten=order)
    assert torch.equal(back["bn"].weight, keras["bn"].weight)
    load_keras(raw, path, after_flatten={"bn": None, "out": None})
    assert torch.equal(raw["bn"].weight, keras["bn"].weight.reshape(3, 2, 2).permute(1, 2, 0).reshape(-1))
