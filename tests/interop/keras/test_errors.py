"""What does not fit is refused before anything changes, in words that name both sides and the way out."""

from __future__ import annotations

import copy
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interop.golden_models import CASES, GOLDEN
from torch import nn
from torch.optim import SGD, Adam

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import DataLossError, MismatchError, UnsupportedFormatError, UnsupportedValueError
from torch_trackckpt.interop import keras_view, load_keras

BY_NAME = {case.name: case for case in CASES}
MLP = BY_NAME["k3_sequential_mlp_adam"].path
BERT = str(GOLDEN / "tf1_bert_names" / "bert_model.ckpt")
Damage = Callable[[str, str], None]


def mlp(**others: nn.Module) -> nn.Sequential:
    layers = {"hidden": nn.Linear(5, 8), "bn": nn.BatchNorm1d(8), "head": nn.Linear(8, 2)}
    return nn.Sequential(OrderedDict({**layers, **others}))


def refused(net: nn.Module, path: str, optimizer: torch.optim.Optimizer | None = None, **settings: Any) -> str:
    """The error of `load_keras`, which is that of a view as well; neither changes anything."""
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(MismatchError) as caught:
        load_keras(net, path, optimizer, **settings)
    if optimizer is None:
        with pytest.raises(MismatchError) as of_view:
            Checkpoint(model=keras_view(net, **settings)).restore(path)
        assert str(of_view.value) == str(caught.value)
    else:
        assert not optimizer.state
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    return str(caught.value)


def assert_told(text: str, *parts: str) -> None:
    for part in parts:
        assert part in text, f"{part!r} is not in {text!r}"


def test_one_layer_too_many() -> None:
    text = refused(mlp(extra=nn.Linear(2, 3)), MLP)
    assert_told(text, "extra (Linear; weight [3, 2], bias [3]) has no layer in (root).model")
    assert_told(text, "kernel [2, 3], bias [3]", "map={'extra': None}")


def test_one_layer_too_few() -> None:
    net = nn.Sequential(OrderedDict(hidden=nn.Linear(5, 8), other=nn.BatchNorm1d(8)))
    text = refused(net, MLP)
    assert_told(text, "mlp/head (_functional/_operations/4)", "(root).model", "kernel [8, 2], bias [2]", "map={")


def test_a_swapped_shape() -> None:
    text = refused(mlp(hidden=nn.Linear(8, 5)), MLP)
    assert_told(text, "hidden (Linear) goes with Keras's layer mlp/hidden (_functional/_operations/1) by name")
    assert_told(text, "kernel is [5, 8] in the checkpoint and [8, 5] in the module", "(in torch weight [5, 8])")
    assert_told(text, "Change the module, or pair it with another layer by map={'hidden': ...}")


def test_a_class_of_layers_that_no_rule_knows() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(5, 8))
            self.shift = nn.Parameter(torch.ones(8))

    text = refused(mlp(hidden=Scaled()), MLP)
    assert_told(text, "No rule tells what Keras calls hidden.matrix, hidden.shift", "register_keras_layer(kind, rule)")
    assert_told(text, "hidden.matrix [5, 8]  fits mlp/hidden/kernel", "map={'hidden.matrix': 'layer/variable'}")


def test_a_checkpoint_of_another_flavor(tmp_path: Path) -> None:
    for settings in ({}, {"like": BY_NAME["k2_sequential_legacy_adam"].path}):
        with pytest.raises(MismatchError) as caught:
            Checkpoint(model=keras_view(mlp(), flavor="tf_keras", **settings)).restore(MLP)
        assert_told(str(caught.value), "(root).model of the checkpoint is of the flavor keras3", "made for tf_keras")
        assert_told(str(caught.value), "'_functional/_operations/1'", "Leave flavor out to have it detected")
    with pytest.raises(MismatchError, match=r"of the flavor keras3.*made for tf_keras"):
        Checkpoint(model=keras_view(mlp(), like=MLP, flavor="tf_keras")).save(str(tmp_path / "ckpt"))


def test_a_flavor_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="no flavor 'keras4'; there is 'keras3', 'tf_keras', 'tf_keras_legacy_opt"):
        keras_view(mlp(), flavor="keras4")


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_that_has_names_only(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormatError, match=r"bert_model.ckpt' has no object graph.*load_name_based"):
        load_keras(mlp(), BERT)
    with pytest.raises(MismatchError, match=r"\(root\).model .* no variables of a Keras model.*load_name_based"):
        Checkpoint(model=keras_view(mlp())).restore(BERT)
    with pytest.raises(UnsupportedFormatError, match=r"bert_model.ckpt' has no object graph.*load_name_based"):
        Checkpoint(model=keras_view(mlp(), like=BERT)).save(str(tmp_path / "ckpt"))


def test_a_checkpoint_without_a_model(tmp_path: Path) -> None:
    path = Checkpoint(step=torch.tensor(3)).save(str(tmp_path / "ckpt"))
    with pytest.raises(MismatchError, match=r"no Keras model; its root has step, save_counter.*model="):
        load_keras(mlp(), path)
    net = mlp()
    status = Checkpoint(model=keras_view(net)).restore(path).expect_partial()
    with pytest.raises(AssertionError, match=r"not bound to checkpointed values .* \(root\).model"):
        status.assert_existing_objects_matched()


def test_a_checkpoint_of_torch_modules(tmp_path: Path) -> None:
    path = Checkpoint(model=mlp()).save(str(tmp_path / "ckpt"))
    text = refused(mlp(), path)
    assert_told(text, "(root).model", "weight", "not a checkpoint of Keras", "Checkpoint(model=net).restore(path)")


def test_a_place_where_no_model_is() -> None:
    with pytest.raises(MismatchError, match="nothing at model='net'; there is 'model'"):
        load_keras(mlp(), MLP, model="net")


def test_a_flattened_feature_map() -> None:
    case = BY_NAME["k3_functional_cnn_sgd"]
    text = refused(case.net(), case.path)
    assert_told(text, "head (Linear, 8 inputs) comes after a convolution with 4 channels", "of 2 places")
    assert_told(text, "after_flatten={'head': (height, width, 4)}", "after_flatten={'head': None}")
    text = refused(case.net(), case.path, after_flatten={"head": (3, 1, 4)})
    assert_told(text, "after_flatten['head']", "[3, 1, 4] has 12 elements", "8")


def test_an_optimizer_of_a_module_without_a_view(tmp_path: Path) -> None:
    net = mlp()
    told = r"Adam knows no Keras view of the model.*keras_view\(optimizer, model=view\)"
    with pytest.raises(UnsupportedValueError, match=told):
        Checkpoint(optimizer=keras_view(Adam(net.parameters()))).save(str(tmp_path / "ckpt"))
    with pytest.raises(UnsupportedValueError, match=told):
        Checkpoint(optimizer=keras_view(Adam(net.parameters()))).restore(MLP)


def test_an_optimizer_of_another_module() -> None:
    text = refused(mlp(), MLP, Adam(mlp().parameters()))
    assert_told(text, "Adam optimises no parameter of the layers", "hidden, bn, head", "without optimizer=")


def test_another_kind_of_optimizer_or_none_at_all() -> None:
    net = mlp()
    text = refused(net, MLP, SGD(net.parameters(), lr=0.1, momentum=0.9))
    assert_told(text, "(root).optimizer", "no optimizer of the kind of SGD", "['_momentums', '_velocities']")
    case = BY_NAME["k3_mha_layer"]
    net = case.net()
    assert_told(refused(net, case.path, Adam(net.parameters())), "has no optimizer", "Load without optimizer=")


def test_a_view_that_nobody_told_the_names(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedValueError, match=r"\(root\).model cannot be saved: .* say like=.* or flavor="):
        Checkpoint(model=keras_view(mlp())).save(str(tmp_path / "ckpt"))


@pytest.mark.parametrize("name", ["k3_sequential_mlp_adam", "k2_sequential_legacy_adam"])
def test_a_damaged_value_changes_nothing(name: str, damage: Damage, tmp_path: Path) -> None:
    """Whichever value it is, of the model or of the optimizer, values before it in the file included."""
    case = BY_NAME[name]
    described = case.manifest["optimizer"]
    keys = [variable["key"] for variable in case.manifest["variables"]] + [slot["key"] for slot in described["slots"]]
    for number, key in enumerate(keys):
        folder = tmp_path / str(number)
        shutil.copytree(case.folder, folder)
        prefix = str(folder / "ckpt-1")
        damage(prefix, key)
        net = case.net()
        optimizer = case.optimizer(net)
        before, settings = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())

        with pytest.raises(DataLossError, match="Checksum does not match") as caught:
            load_keras(net, prefix, optimizer)

        assert_told(str(caught.value), key, prefix)
        assert all(torch.equal(value, before[n]) for n, value in net.state_dict().items()), key
        assert all(parameter.requires_grad for parameter in net.parameters())
        assert optimizer.state_dict() == settings, key
