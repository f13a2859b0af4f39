"""A view has the names of the checkpoint that it was restored from, or of a template, and real Keras takes it back."""

from __future__ import annotations

import copy
import gc
import io
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interop.golden_models import CASES, GOLDEN, GoldenCase
from keras_oracle import Keras, Program, inputs, layer, optimizer, sequential
from torch import nn

from torch_trackckpt import Checkpoint, list_variables, load_checkpoint
from torch_trackckpt.errors import MismatchError, UnsupportedFormatError, UnsupportedValueError
from torch_trackckpt.interop import keras_view, load_keras
from torch_trackckpt.interop.keras import Flavor, KerasModelView, KerasOptimizerView
from torch_trackckpt.interop.keras.view import find_view

MLP = str(GOLDEN / "k3_sequential_mlp_adam" / "ckpt-1")
WRITTEN_BY_CHECKPOINT = [case for case in CASES if "saved_model" not in case.name]
COUNTER = "save_counter/.ATTRIBUTES/VARIABLE_VALUE"
RECORD = "_CHECKPOINTABLE_OBJECT_GRAPH"


def named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def mlp() -> nn.Sequential:
    return named(hidden=nn.Linear(5, 8), bn=nn.BatchNorm1d(8), head=nn.Linear(8, 2))


def small() -> nn.Sequential:
    return named(hidden=nn.Linear(5, 4), bn=nn.BatchNorm1d(4), head=nn.Linear(4, 2))


def settings(case: GoldenCase) -> dict[str, Any]:
    return {
        "map": case.map,
        "after_flatten": case.after_flatten,
    }


def values(path: str) -> dict[str, torch.Tensor]:
    reader = load_checkpoint(path)
    found = {key: reader.get_tensor(key) for key in reader if key not in (COUNTER, RECORD)}
    return {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}


def assert_same_values(ours: str, theirs: str) -> None:
    mine, expected = values(ours), values(theirs)
    assert mine.keys() == expected.keys()
    for key, value in expected.items():
        assert value.dtype == mine[key].dtype
        assert torch.equal(mine[key], value), key


@pytest.mark.parametrize("case", WRITTEN_BY_CHECKPOINT, ids=lambda case: case.name)
def test_what_is_restored_and_saved_is_the_same_under_the_same_keys_and_keras_takes_it(
    keras: Keras, case: GoldenCase, tmp_path: Path
) -> None:
    net = case.net()
    objects: dict[str, Any] = {"model": keras_view(net, **settings(case))}
    if case.is_trained:
        objects["optimizer"] = keras_view(case.optimizer(net))
    checkpoint = Checkpoint(**objects)
    checkpoint.restore(case.prefix).expect_partial()
    path = checkpoint.save(str(tmp_path / "ckpt"))
    assert_same_values(path, case.prefix)
    outputs, after = keras.restore_case(case.name, path)
    if not case.not_in_checkpoint():
        for value, expected in zip(outputs, case.outputs(), strict=True):
            np.testing.assert_allclose(value, expected.numpy(), rtol=0, atol=1e-6)
        for name, value in after.items():
            np.testing.assert_allclose(value, case.after()[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["k3_saved_model_tf", "k2_saved_model"])
def test_saved_models_of_layers_go_there_and_back(keras: Keras, name: str, tmp_path: Path) -> None:
    (case,) = [case for case in CASES if case.name == name]
    checkpoint = Checkpoint(keras_view(case.net()))
    checkpoint.restore(case.path).expect_partial()
    path = checkpoint.write(str(tmp_path / "ckpt"))
    assert_same_values(path, case.prefix)


def test_an_exported_model_has_to_be_told_how_to_save(tmp_path: Path) -> None:
    (case,) = [case for case in CASES if case.name == "k3_saved_model_export"]
    checkpoint = Checkpoint(keras_view(case.net()))
    checkpoint.restore(case.path).expect_partial()
    with pytest.raises(UnsupportedValueError, match=r"an exported model, a list of variables.*say like=.*or flavor="):
        checkpoint.save(str(tmp_path / "ckpt"))

    template = str(GOLDEN / "k3_saved_model_tf" / "saved_model")
    net = case.net()
    other = Checkpoint(keras_view(net, like=template))
    other.restore(case.path).expect_partial()
    path = other.write(str(tmp_path / "ckpt"))
    assert values(path).keys() == values(template).keys()
    again = case.net()
    load_keras(again, path).assert_consumed()
    for one, two in zip(case.run(again), case.run(net), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("generation", ["k3", "k2"])
def test_a_template_gives_the_names(keras: Keras, generation: str, tmp_path: Path) -> None:
    layers = [layer("Dense", units=8), layer("Dropout", rate=0.5), layer("BatchNormalization"), layer("Dense", units=2)]
    adam = optimizer("Adam", learning_rate=0.01)
    program = Program(generation, sequential(*layers, inputs=inputs(5)), [inputs(5)], optimizer=adam)
    template = keras.write(program, tmp_path / "theirs", num_steps=1)
    net = mlp()
    view = keras_view(net, like=template.prefix)
    adam_here = torch.optim.Adam(net.parameters(), lr=0.01)
    path = Checkpoint(model=view, optimizer=keras_view(adam_here)).save(str(tmp_path / "ours"))
    assert {key for key, _ in list_variables(path)} == {key for key, _ in list_variables(template.prefix)}
    restored = keras.restore(program, path, template, tmp_path / "restored")
    restored.assert_used()
    expected = net.eval()(torch.from_numpy(template.inputs[0]))
    # Of the epsilon of batch normalization, which differs here, nothing is stored.
    assert restored.outputs[0].shape == tuple(expected.shape)


def test_a_template_may_be_a_directory(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "k3_sequential_mlp_adam", tmp_path / "theirs")
    for like in (tmp_path / "theirs", GOLDEN / "k2_saved_model" / "saved_model"):
        net = (
            mlp()
            if like.name == "theirs"
            else named(hidden=nn.Linear(5, 4), bn=nn.BatchNorm1d(4), head=nn.Linear(4, 2))
        )
        view = keras_view(net, like=like)
        assert len(view.bound().variables) == 8
        assert view.bound().graph is not None


def test_a_restored_view_has_the_names_of_what_it_was_restored_from_last(tmp_path: Path) -> None:
    view = keras_view(small())
    checkpoint = Checkpoint(view)
    for name, flavor in (("k2_saved_model", Flavor.TF_KERAS), ("k3_saved_model_tf", Flavor.KERAS3)):
        checkpoint.restore(str(GOLDEN / name / "saved_model")).expect_partial()
        assert view.bound().flavor is flavor


def test_without_names_nothing_can_be_saved(tmp_path: Path) -> None:
    view = keras_view(mlp())
    with pytest.raises(UnsupportedValueError, match=r"\(root\).model cannot be saved: .* does not know .* say like="):
        Checkpoint(model=view).save(str(tmp_path / "ckpt"))
    with pytest.raises(MismatchError, match=r"say like=, the path of one, or flavor= \(keras3, tf_keras"):
        view.bound()


def test_a_checkpoint_of_another_flavor_is_refused() -> None:
    net = mlp()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(MismatchError) as caught:
        Checkpoint(model=keras_view(net, flavor="tf_keras")).restore(MLP)
    text = str(caught.value)
    assert "(root).model of the checkpoint is of the flavor keras3" in text
    assert "_functional/_operations/1" in text
    assert "the view was made for tf_keras" in text
    assert "Leave flavor out" in text
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_both_optimizers_of_tf_keras_are_of_one_flavor() -> None:
    (case,) = [case for case in CASES if case.name == "k2_subclassed"]
    status = Checkpoint(model=keras_view(case.net(), flavor="tf_keras")).restore(case.prefix)
    status.assert_existing_objects_matched().expect_partial()


def test_a_checkpoint_of_torch_modules_is_none_of_keras(tmp_path: Path) -> None:
    path = Checkpoint(model=mlp()).save(str(tmp_path / "ckpt"))
    with pytest.raises(MismatchError, match=r"as PyTorch calls them.*Checkpoint\(model=net\).restore\(path\)"):
        Checkpoint(model=keras_view(mlp())).restore(path)


def test_a_checkpoint_without_a_graph_is_no_template() -> None:
    bert = GOLDEN.parents[1] / "corpus" / "v2-bert-toy" / "bert_model.ckpt"
    with pytest.raises(UnsupportedFormatError, match=r"has no object graph.*load_name_based"):
        keras_view(mlp(), like=bert).bound()


def test_a_dtype_that_does_not_fit_is_refused_before_anything_changes() -> None:
    net = mlp().double()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(
        MismatchError, match=r"is torch.float64 of .*Keras's mlp/.* is torch.float32 of .*convert the module"
    ):
        Checkpoint(model=keras_view(net)).restore(MLP)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# What only one side has.


def test_what_keras_has_and_torch_has_not_is_kept_on_request(tmp_path: Path) -> None:
    net = named(hidden=nn.Linear(5, 8), head=nn.Linear(8, 2))
    lacking = Checkpoint(model=keras_view(net))
    lacking.restore(MLP).expect_partial()
    with pytest.raises(UnsupportedValueError, match=r"gamma|_trainable_variables/2.*keep_others=True"):
        lacking.save(str(tmp_path / "ckpt"))

    model = {key for key in values(MLP) if not key.startswith("optimizer/_")} | {
        f"optimizer/_trainable_variables/{i}/.ATTRIBUTES/VARIABLE_VALUE" for i in range(6)
    }
    for view in (keras_view(net, keep_others=True), keras_view(net, keep_others=True, like=MLP)):
        checkpoint = Checkpoint(model=view)
        if view is not None and view._like is None:
            checkpoint.restore(MLP).expect_partial()
        path = checkpoint.save(str(tmp_path / "kept"))
        whole = mlp()
        load_keras(whole, path).assert_consumed()
        assert len(values(path)) == len(model)
        theirs = mlp()
        load_keras(theirs, MLP)
        assert torch.equal(whole.bn.weight, theirs.bn.weight)


def test_what_was_read_as_a_constant_may_not_have_been_trained(tmp_path: Path) -> None:
    keras_side = keras_view(nn.ModuleDict({"a": nn.Linear(3, 2, bias=False)}), flavor="keras3")
    path = Checkpoint(model=keras_side).save(str(tmp_path / "theirs"))
    net = nn.ModuleDict({"a": nn.Linear(3, 2)})
    checkpoint = Checkpoint(model=keras_view(net))
    checkpoint.restore(path).assert_existing_objects_matched()
    checkpoint.save(str(tmp_path / "ours"))
    with torch.no_grad():
        net["a"].bias += 1
    with pytest.raises(UnsupportedValueError, match=r"a.bias has been trained.*requires_grad_\(False\)"):
        checkpoint.save(str(tmp_path / "ours"))


def test_what_the_checkpoint_lacks_fails_the_assertion() -> None:
    (case,) = [case for case in CASES if case.name == "k3_subclassed_list_attr"]
    net = case.net()
    view = keras_view(net)
    status = Checkpoint(model=view, optimizer=keras_view(case.optimizer(net))).restore(case.prefix)
    assert view.unmatched_torch == ("blocks.1.running_mean", "blocks.1.running_var")
    with pytest.raises(AssertionError):
        status.assert_existing_objects_matched()
    # Without the optimizer's view, nothing leads to the rest either.
    alone = keras_view(case.net())
    Checkpoint(model=alone).restore(case.prefix).expect_partial()
    assert {name for name in alone.unmatched_torch if not name.startswith("blocks.1.running")} == {
        "blocks.0.weight",
        "blocks.0.bias",
        "blocks.1.weight",
        "blocks.1.bias",
    }


# The view itself.


def test_a_parameter_knows_its_view_and_its_copies_do_not() -> None:
    net = mlp()
    view = keras_view(net)
    assert find_view(net.hidden.weight) is view
    assert find_view(copy.deepcopy(net).hidden.weight) is None
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    torch.save(net.hidden.weight, file := io.BytesIO())
    file.seek(0)
    assert find_view(torch.load(file, weights_only=True)) is None
    assert find_view(nn.Parameter(torch.zeros(1))) is None
    del view
    gc.collect()
    assert find_view(net.hidden.weight) is None


def test_keras_view_is_for_modules_and_optimizers() -> None:
    net = mlp()
    assert isinstance(keras_view(net), KerasModelView)
    assert isinstance(keras_view(torch.optim.SGD(net.parameters())), KerasOptimizerView)
    with pytest.raises(TypeError, match="a module or an optimizer, not a dict"):
        keras_view({})  # type: ignore[call-overload]


def test_an_optimizer_below_a_compiled_model(keras: Keras, tmp_path: Path) -> None:
    layers = [layer("Dense", units=8), layer("Dense", units=2)]
    momentum = optimizer("SGD", learning_rate=0.1, momentum=0.9)
    for generation in ("k3", "k2"):
        program = Program(
            generation, sequential(*layers, inputs=inputs(5)), [inputs(5)], optimizer=momentum, is_compiled=True
        )
        theirs = keras.write(program, tmp_path / generation, how="root", num_steps=2)
        net = named(a=nn.Linear(5, 8), b=nn.Linear(8, 2))
        view = keras_view(net)
        view.beside["optimizer"] = keras_view(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), model=view)
        checkpoint = Checkpoint(view)
        checkpoint.restore(theirs.prefix).assert_existing_objects_matched().expect_partial()
        path = checkpoint.save(str(tmp_path / generation / "ours"))
        restored = keras.restore(program, path, theirs, tmp_path / generation / "restored", how="root")
        restored.assert_used()
        restored.assert_same(theirs, steps=None)


def test_weights_that_only_an_optimizer_of_keras_stores_are_not_lost_in_silence(prefix: str) -> None:
    (case,) = (each for each in CASES if each.name == "k3_subclassed_list_attr")
    net = case.net()
    load_keras(net, case.prefix)

    with pytest.raises(UnsupportedValueError, match=r"blocks\..* would be lost: Keras 3 stores nothing of lists"):
        Checkpoint(model=keras_view(net, like=case.prefix)).write(prefix)

    optimizer = case.optimizer(net)
    load_keras(net, case.prefix, optimizer=optimizer)
    path = Checkpoint(model=keras_view(net, like=case.prefix), optimizer=keras_view(optimizer)).write(prefix)
    again = case.net()
    load_keras(again, path)
    for name, value in net.named_parameters():
        assert torch.equal(value, again.get_parameter(name)), name
