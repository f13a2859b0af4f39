"""Keras's checkpoints are loaded in one line, and the status tells what went where."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interop.golden_models import CASES, GOLDEN, GoldenCase
from keras_oracle import Keras, Program, functional, inputs, layer, optimizer, sequential, subclassed
from torch import nn

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import CheckpointNotFoundError, MismatchError, UnsupportedFormatError
from torch_trackckpt.interop import KerasLoadStatus, keras_view, load_keras

MLP = str(GOLDEN / "k3_sequential_mlp_adam" / "ckpt-1")


def named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def mlp() -> nn.Sequential:
    return named(hidden=nn.Linear(5, 8), bn=nn.BatchNorm1d(8), head=nn.Linear(8, 2))


def loaded(case: GoldenCase, net: nn.Module, optim: torch.optim.Optimizer | None = None) -> KerasLoadStatus:
    return load_keras(net, case.path, optim, case.map, after_flatten=case.after_flatten)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_golden_checkpoint_gives_the_outputs_of_keras(case: GoldenCase) -> None:
    net = case.net()
    status = loaded(case, net)
    lost = case.not_in_checkpoint()
    if lost:
        net.blocks[1].running_mean.copy_(torch.from_numpy(lost["block_1/moving_mean"]))
        net.blocks[1].running_var.copy_(torch.from_numpy(lost["block_1/moving_variance"]))
        assert status.unmatched_torch == ("blocks.1.running_mean", "blocks.1.running_var")
    else:
        status.assert_consumed().assert_existing_objects_matched().assert_nontrivial_match()
        assert status.unmatched_torch == ()
    assert status.unused_keys == ()
    for mine, theirs in zip(case.run(net), case.outputs(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=case.outputs_within)


@pytest.mark.parametrize("case", [case for case in CASES if case.is_trained], ids=lambda case: case.name)
def test_with_its_optimizer_all_of_a_golden_checkpoint_is_used(case: GoldenCase) -> None:
    net = case.net()
    status = loaded(case, net, case.optimizer(net))
    assert status.unused_keys == ()
    if not case.not_in_checkpoint():
        status.assert_consumed()


def test_the_status_tells_what_went_where() -> None:
    net = nn.ModuleDict({"emb": nn.Embedding(20, 6), "lstm": nn.LSTM(6, 5), "out": nn.Linear(5, 3)})
    status = load_keras(net, GOLDEN / "k3_lstm_text_rmsprop" / "ckpt-1")
    assert str(status) == (
        "6 variables of keras3:\n"
        "  emb  Embedding  <-  Embedding emb (_operations/1)  by name\n"
        "  lstm  LSTM  <-  LSTM lstm (_operations/3)  by name\n"
        "  out  Linear  <-  Dense head (_operations/4)  by order\n"
        "frozen:\n"
        "  lstm.bias_hh_l0"
    )
    assert [(line.torch_name, line.how) for line in status.bound] == [
        ("emb", "name"),
        ("lstm", "name"),
        ("out", "order"),
    ]


def test_the_status_tells_what_is_inexact() -> None:
    net = mlp()
    status = load_keras(net, MLP, torch.optim.Adam(net.parameters()))
    assert {each.name for each in status.inexact} == {"bn.running_var", "eps"}
    assert "\ninexact:\n  bn.running_var: " in str(status)


def test_what_the_file_lacks_is_said_and_fails_the_assertions() -> None:
    (case,) = [case for case in CASES if case.name == "k3_subclassed_list_attr"]
    status = loaded(case, case.net())
    assert "unmatched in torch:\n  blocks.1.running_mean\n" in str(status)
    for assertion in (status.assert_consumed, status.assert_existing_objects_matched):
        with pytest.raises(AssertionError, match=r"nothing for blocks.1.running_mean, blocks.1.running_var"):
            assertion()


def test_the_log_says_what_the_file_lacks(caplog: pytest.LogCaptureFixture) -> None:
    (case,) = [case for case in CASES if case.name == "k3_subclassed_list_attr"]
    with caplog.at_level(logging.WARNING, "torch_trackckpt"):
        loaded(case, case.net())
    assert "has nothing for blocks.1.running_mean, blocks.1.running_var" in caplog.text
    caplog.clear()
    load_keras(mlp(), MLP)
    assert caplog.text == ""


def test_a_directory_stands_for_its_latest_checkpoint_or_saved_model() -> None:
    net = mlp()
    status = load_keras(net, GOLDEN / "k3_sequential_mlp_adam").assert_consumed()
    assert status.report().checkpoint.endswith("ckpt-1")


def test_nothing_changes_where_something_does_not_fit() -> None:
    net = named(hidden=nn.Linear(5, 8), bn=nn.BatchNorm1d(8), head=nn.Linear(8, 3))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(MismatchError, match=r"kernel is \[8, 2\] in the checkpoint and \[8, 3\] in the module"):
        load_keras(net, MLP)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())


# Where the model is.


def test_the_model_may_have_any_name(tmp_path: Path) -> None:
    view = keras_view(mlp(), flavor="tf_keras")
    path = Checkpoint(net=view, step=torch.tensor(3)).save(str(tmp_path / "ckpt"))
    net = mlp()
    load_keras(net, path).assert_consumed()
    assert torch.equal(net.head.weight, view.module.head.weight)
    root = Checkpoint(view).save(str(tmp_path / "root"))
    load_keras(mlp(), root).assert_consumed()


def test_of_several_models_the_one_is_taken_that_fits(tmp_path: Path) -> None:
    big, small = keras_view(mlp(), flavor="keras3"), keras_view(nn.Sequential(nn.Linear(2, 2)), flavor="keras3")
    path = Checkpoint(generator=big, critic=small).save(str(tmp_path / "ckpt"))
    net = nn.Sequential(nn.Linear(2, 2))
    load_keras(net, path).assert_consumed()
    assert torch.equal(net[0].weight, small.module[0].weight)
    with pytest.raises(MismatchError) as caught:
        load_keras(nn.Sequential(nn.Linear(2, 7)), path)
    assert "fits none of 'critic', 'generator'; model= says which is meant" in str(caught.value)


def test_of_several_models_that_fit_none_is_taken(tmp_path: Path) -> None:
    first, second = (keras_view(nn.Sequential(nn.Linear(2, 2)), flavor="keras3") for _ in range(2))
    path = Checkpoint(model=first, average=second).save(str(tmp_path / "ckpt"))
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(MismatchError, match=r"fits several objects.*model=, one of 'average', 'model'"):
        load_keras(net, path)
    load_keras(net, path, model="average").assert_consumed()
    assert torch.equal(net[0].weight, second.module[0].weight)
    with pytest.raises(MismatchError, match="has nothing at model='mean'; there is 'average', 'model'"):
        load_keras(net, path, model="mean")


def test_a_checkpoint_without_a_model(tmp_path: Path) -> None:
    path = Checkpoint(step=torch.tensor(1)).save(str(tmp_path / "ckpt"))
    with pytest.raises(MismatchError):
        load_keras(mlp(), path)
    empty = Checkpoint(other={}).save(str(tmp_path / "empty"))
    with pytest.raises(MismatchError, match="The checkpoint has no Keras model; its root has other, save_counter"):
        load_keras(mlp(), empty)


def test_a_checkpoint_with_names_only_or_none_at_all(tmp_path: Path) -> None:
    bert = GOLDEN.parents[1] / "corpus" / "v2-bert-toy" / "bert_model.ckpt"
    with pytest.raises(UnsupportedFormatError, match=r"names only.*load_name_based"):
        load_keras(mlp(), bert)
    with pytest.raises(CheckpointNotFoundError):
        load_keras(mlp(), tmp_path / "nothing")


def test_an_optimizer_that_is_not_there() -> None:
    net = nn.ModuleDict({"mha": nn.MultiheadAttention(8, 2)})
    with pytest.raises(MismatchError, match=r"has no optimizer: there is none. Load without optimizer="):
        load_keras(net, GOLDEN / "k3_mha_layer" / "ckpt-1", torch.optim.SGD(net.parameters()))
    net = mlp()
    with pytest.raises(MismatchError, match=r"at 'adam': there is 'optimizer'. Say optimizer_path="):
        load_keras(net, MLP, torch.optim.Adam(net.parameters()), optimizer_path="adam")


# Keras's models of other forms, live.


class Model(nn.Module):
    """Modules by name, and what to do with them."""

    def __init__(self, forward: Any, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._forward = forward

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._forward(self, *values)
        return found


def stacked() -> tuple[Any, Any, Model]:
    given = inputs(5, 3)
    lstm = [layer("LSTM", units=4, return_sequences=True), layer("LSTM", units=4), layer("Dense", units=2)]
    net = Model(lambda m, x: m.out(m.rnn(x)[0][:, -1]), rnn=nn.LSTM(3, 4, 2, batch_first=True), out=nn.Linear(4, 2))
    return sequential(*lstm, inputs=given), given, net


def both_ways() -> tuple[Any, Any, Model]:
    given = inputs(5, 3)
    gru = layer("Bidirectional", layer=layer("GRU", units=4, return_sequences=True))
    dense = layer("TimeDistributed", layer=layer("Dense", units=2))
    rnn = nn.GRU(3, 4, batch_first=True, bidirectional=True)
    return (
        sequential(gru, dense, inputs=given),
        given,
        Model(lambda m, x: m.out(m.rnn(x)[0]), rnn=rnn, out=nn.Linear(8, 2)),
    )


def nested() -> tuple[Any, Any, Model]:
    inner = sequential(layer("Dense", units=4), layer("Dense", units=4), inputs=inputs(3), name="inner")
    calls: Any = [("h", "inner", ["x"]), ("y", "head", ["h"])]
    model = functional([inputs(3, name="x")], {"inner": inner, "head": layer("Dense", units=2)}, calls, ["y"])
    body = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    return model, inputs(3), Model(lambda m, x: m.head(m.body(x)), body=body, head=nn.Linear(4, 2))


def shared() -> tuple[Any, Any, Model]:
    layers = {"twice": layer("Dense", units=4), "head": layer("Dense", units=2)}
    calls: Any = [("a", "twice", ["x"]), ("b", "twice", ["a"]), ("c", "add", ["a", "b"]), ("y", "head", ["c"])]
    model = functional([inputs(4, name="x")], layers, calls, ["y"])
    net = Model(lambda m, x: m.head(m.twice(x) + m.twice(m.twice(x))), twice=nn.Linear(4, 4), head=nn.Linear(4, 2))
    return model, inputs(4), net


def own_weight() -> tuple[Any, Any, Model]:
    pair = {"tuple": [layer("Dense", units=4), layer("BatchNormalization")]}
    attributes = {"first": layer("Dense", units=4), "pair": pair, "shift": {"weight": [4]}}
    model = subclassed(attributes, ["first", "pair/0", "pair/1", ("add", "shift")])
    modules = {"first": nn.Linear(3, 4), "pair": nn.ModuleList([nn.Linear(4, 4), nn.BatchNorm1d(4, eps=1e-3)])}
    net = Model(lambda m, x: m.pair[1](m.pair[0](m.first(x))) + m.shift, **modules)
    net.shift = nn.Parameter(torch.zeros(4))
    return model, inputs(3), net


def lacking() -> tuple[Any, Any, Model]:
    layers = [layer("Dense", units=4, use_bias=False), layer("BatchNormalization", scale=False)]
    net = Model(lambda m, x: m.b(m.a(x)), a=nn.Linear(3, 4), b=nn.BatchNorm1d(4, eps=1e-3))
    return sequential(*layers, inputs=inputs(3)), inputs(3), net


def attention() -> tuple[Any, Any, Model]:
    layers = {"att": layer("MultiHeadAttention", num_heads=2, key_dim=4)}
    model = functional([inputs(4, 8, name="x")], layers, [("y", "att", ["x", "x"])], ["y"])
    return model, inputs(4, 8), Model(lambda m, x: m.a(x, x, x)[0], a=nn.MultiheadAttention(8, 2, batch_first=True))


FORMS = {form.__name__: form for form in (stacked, both_ways, nested, shared, own_weight, lacking, attention)}
WAYS = [(generation, how) for generation in ("k3", "k2") for how in ("save", "root", "export", "saved_model")]
WAYS += [("k2", "save_weights"), ("k2", "model.save")]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("generation", "how"), WAYS)
def test_a_model_of_any_form_gives_the_outputs_of_keras(
    keras: Keras, form: str, generation: str, how: str, tmp_path: Path
) -> None:
    described, given, net = FORMS[form]()
    program = Program(generation, described, [given])
    written = keras.write(program, tmp_path / "theirs", how=how)
    # An exported model has no names of attributes.
    given_map = {"shift": "own"} if form == "own_weight" and how == "export" else None
    load_keras(net, written.prefix, map=given_map).assert_consumed()
    outputs = net.eval()(*[torch.from_numpy(array) for array in written.inputs])
    np.testing.assert_allclose(outputs.detach().numpy(), written.outputs[0], rtol=0, atol=1e-6)
    if how == "save":
        path = Checkpoint(model=keras_view(net, like=written.prefix)).save(str(tmp_path / "ours"))
        restored = keras.restore(program, path, written, tmp_path / "back")
        restored.assert_used()
        restored.assert_same(written, steps=None)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_list_of_keras_3_is_read_from_the_optimizers_list(keras: Keras, momentum: float, tmp_path: Path) -> None:
    blocks = [layer("Dense", units=4), layer("Dense", units=4), layer("LayerNormalization")]
    model = subclassed(
        {"first": layer("Dense", units=4), "blocks": blocks}, ["first", "blocks/0", "blocks/1", "blocks/2"]
    )
    sgd = optimizer("SGD", learning_rate=0.1, momentum=momentum)
    program = Program("k3", model, [inputs(3)], optimizer=sgd)
    written = keras.write(program, tmp_path / "theirs", num_steps=1)
    modules = {
        "first": nn.Linear(3, 4),
        "blocks": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4, eps=1e-3)),
    }
    net = Model(lambda m, x: m.blocks(m.first(x)), **modules)
    load_keras(net, written.prefix).assert_consumed()
    outputs = net(torch.from_numpy(written.inputs[0]))
    np.testing.assert_allclose(outputs.detach().numpy(), written.outputs[0], rtol=0, atol=1e-6)


def test_a_list_of_keras_3_without_an_optimizer_is_not_there(keras: Keras, tmp_path: Path) -> None:
    model = subclassed({"first": layer("Dense", units=4), "blocks": [layer("Dense", units=4)]}, ["first", "blocks/0"])
    written = keras.write(Program("k3", model, [inputs(3)]), tmp_path / "theirs")
    net = Model(None, first=nn.Linear(3, 4), blocks=nn.ModuleList([nn.Linear(4, 4)]))
    with pytest.raises(MismatchError) as caught:
        load_keras(net, written.prefix)
    assert str(caught.value).startswith("blocks.0 (Linear; weight [4, 4], bias [4]) has no layer in (root).model")
    assert "Keras 3 does not store layers in lists or dicts" in str(caught.value)
    load_keras(net, written.prefix, map={"blocks.0": None}).assert_consumed()
