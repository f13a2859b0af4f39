"""Golden checkpoints of Keras go on in torch, come back, and are what they were."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interop.by_hand import assert_loaded, assert_optimizer_loaded, in_torch
from interop.golden_models import CASES, Array, GoldenCase, Text
from keras_oracle import Keras, Program, functional, inputs, layer, sequential
from torch import nn
from torch.optim import Optimizer

from torch_trackckpt import Checkpoint, load_checkpoint
from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.graph.messages import read_object_graph
from torch_trackckpt.interop import KerasLoadStatus, keras_view, load_keras
from torch_trackckpt.interop.keras import KerasEpsilon, KerasModelView, KerasRMSprop

BY_NAME = {case.name: case for case in CASES}
LOST = ("blocks.1.running_mean", "blocks.1.running_var")
"""What `k3_subclassed_list_attr` has in a list, which Keras 3 did not save."""

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_trained_case = pytest.mark.parametrize("case", [c for c in CASES if c.is_trained], ids=lambda case: case.name)
every_checkpoint = pytest.mark.parametrize(
    "case", [c for c in CASES if "saved_model" not in c.manifest], ids=lambda case: case.name
)


@dataclasses.dataclass
class Loaded:
    """A torch program that has a case's checkpoint."""

    case: GoldenCase
    net: nn.Module
    optimizer: Optimizer | None
    status: KerasLoadStatus

    def fill(self) -> None:
        """Gives the module what Keras lost."""
        state = self.net.state_dict()
        for name, array in in_torch(self.case, self.case.not_in_checkpoint()).items():
            if name in LOST:
                state[name].copy_(torch.from_numpy(array))

    def step(self) -> None:
        """The step that comes after the checkpoint."""
        assert self.optimizer is not None
        inputs, labels = self.case.next_batch()
        self.net.train()
        self.optimizer.zero_grad()
        self.case.loss(self.net(*inputs), labels).backward()
        self.optimizer.step()

    def assert_near(self, variables: dict[str, Array], within: float) -> None:
        """The module has these variables of Keras."""
        state = self.net.state_dict()
        for name, array in in_torch(self.case, variables).items():
            np.testing.assert_allclose(state[name].numpy(), array, rtol=0, atol=within, err_msg=name)

    def save(self, prefix: Path, **settings: Any) -> str:
        """As a Keras program like that of the case saves it."""
        if self.optimizer is None:
            return Checkpoint(model=self.view(**settings)).save(str(prefix))
        return Checkpoint(model=self.view(**settings), optimizer=keras_view(self.optimizer)).save(str(prefix))

    def view(self, **settings: Any) -> KerasModelView:
        case = self.case
        return keras_view(self.net, map=case.map, after_flatten=case.after_flatten, **settings)


def optimizer_of(case: GoldenCase, net: nn.Module) -> Optimizer:
    """One whose steps are those of Keras."""
    optimizer = case.optimizer(net)
    if case.epsilon is not None:
        KerasEpsilon(optimizer)
    if isinstance(optimizer, torch.optim.RMSprop):
        (settings,) = optimizer.param_groups
        names = ("lr", "alpha", "eps", "momentum", "centered")
        return KerasRMSprop(settings["params"], **{name: settings[name] for name in names})
    return optimizer


def load(case: GoldenCase, *, exact: bool = True) -> Loaded:
    """A program with random weights, and then those of the checkpoint; with an optimizer that steps as Keras's."""
    torch.manual_seed(0)
    net = case.net()
    optimizer = None
    if case.is_trained:
        optimizer = optimizer_of(case, net) if exact else case.optimizer(net)
    status = load_keras(net, case.path, optimizer, case.map, after_flatten=case.after_flatten)
    return Loaded(case, net, optimizer, status)


def assert_outputs(found: list[torch.Tensor], expected: list[Array] | list[torch.Tensor], within: float) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine.numpy(), np.asarray(theirs), rtol=0, atol=within, strict=True)


# From Keras to torch.


@every_case
def test_every_value_is_the_one_that_was_converted_by_hand(case: GoldenCase) -> None:
    loaded = load(case)
    assert_loaded(loaded.net, case, but=loaded.status.unmatched_torch)
    if loaded.optimizer is not None:
        assert_optimizer_loaded(loaded.optimizer, case)


@every_case
def test_outputs_are_those_of_keras(case: GoldenCase) -> None:
    loaded = load(case)
    loaded.fill()
    assert_outputs(case.run(loaded.net), case.outputs(), case.outputs_within)


@every_case
def test_the_status_knows_of_everything(case: GoldenCase) -> None:
    status = load(case).status
    status.assert_nontrivial_match()
    assert status.unused_keys == ()
    status.assert_consumed() if case.name != "k3_subclassed_list_attr" else None
    assert {line.torch_name.removesuffix(".0").removesuffix(".1") for line in status.bound} >= {
        name.removesuffix(".0").removesuffix(".1") for name in case.layers.values()
    }
    # The module of the SavedModels has a batch norm as torch trains it.
    has_plain_norm = "saved_model" in case.manifest
    assert [item.name for item in status.inexact] == ["bn.running_var"] * has_plain_norm
    assert status.frozen == (("reader.bias_hh_l0",) if case.net is Text else ())


def test_what_keras_lost_is_named_and_without_it_outputs_differ() -> None:
    case = BY_NAME["k3_subclassed_list_attr"]
    loaded = load(case)
    assert loaded.status.unmatched_torch == LOST
    with pytest.raises(AssertionError, match=r"has nothing for blocks\.1\.running_mean, blocks\.1\.running_var"):
        loaded.status.assert_existing_objects_matched()
    with pytest.raises(AssertionError, match=r"Keras 3 does not store what is in lists or dicts"):
        loaded.status.assert_consumed()
    (found,), (expected,) = case.run(loaded.net), case.outputs()
    assert float((found - expected).abs().max()) > 1e-3


@every_trained_case
def test_one_more_step_leads_where_keras_goes(case: GoldenCase) -> None:
    assert case.step_within is not None
    loaded = load(case)
    loaded.fill()
    loaded.step()
    loaded.assert_near(case.after(), case.step_within)


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.is_trained and (c.epsilon is not None or not c.is_step_exact)],
    ids=lambda case: case.name,
)
def test_a_step_that_is_another_than_that_of_keras_is_reported(case: GoldenCase) -> None:
    loaded = load(case, exact=False)
    (inexact,) = loaded.status.inexact
    assert inexact.name == "eps"
    assert ("KerasRMSprop" if case.epsilon is None else "KerasEpsilon") in inexact.reason
    loaded.fill()
    loaded.step()
    state = loaded.net.state_dict()
    differences = [float(np.abs(state[n].numpy() - a).max()) for n, a in in_torch(case, case.after()).items()]
    # The smaller epsilon is, the less does it matter where it is added.
    assert max(differences) > (1e-3 if case.name != "k2_functional_gru_adamw" and case.epsilon != 1e-7 else 0.0)
    assert not load(case).status.inexact


def test_load_keras_moves_epsilon_itself_where_it_is_asked() -> None:
    case = BY_NAME["k2_sequential_legacy_adam"]
    net = case.net()
    optimizer = case.optimizer(net)
    status = load_keras(net, case.path, optimizer, keras_epsilon=True)
    assert not status.inexact
    loaded = Loaded(case, net, optimizer, status)
    loaded.step()
    assert case.step_within is not None
    loaded.assert_near(case.after(), case.step_within)


def test_the_second_bias_of_an_lstm_becomes_zero_and_stays_so() -> None:
    case = BY_NAME["k3_lstm_text_rmsprop"]
    net = Text()
    nn.init.normal_(net.reader.bias_hh_l0.requires_grad_(True))
    optimizer = KerasRMSprop(net.parameters(), lr=1.0, momentum=0.8, centered=True)
    loaded = Loaded(case, net, optimizer, load_keras(net, case.path, optimizer))
    assert loaded.status.frozen == ("reader.bias_hh_l0",)
    assert not loaded.status.inexact
    assert not net.reader.bias_hh_l0.requires_grad
    loaded.step()
    assert not net.reader.bias_hh_l0.any()
    assert case.step_within is not None
    loaded.assert_near(case.after(), case.step_within)


# From torch to Keras.


@every_checkpoint
def test_keras_takes_back_what_torch_has_loaded(keras: Keras, case: GoldenCase, tmp_path: Path) -> None:
    loaded = load(case)
    prefix = loaded.save(tmp_path / "ckpt", like=case.path)

    outputs, after = keras.restore_case(case.name, prefix)

    for mine, theirs in zip(outputs, case.outputs(), strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=0, atol=1e-6, strict=True)
    expected = case.after() if case.is_trained else {}
    assert after.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(after[name], value, rtol=0, atol=1e-6, err_msg=name)


@every_checkpoint
def test_keras_goes_on_where_torch_has_gone_on(keras: Keras, case: GoldenCase, tmp_path: Path) -> None:
    loaded = load(case)
    loaded.fill()
    if case.is_trained:
        loaded.step()
    else:
        with torch.no_grad():
            for parameter in loaded.net.parameters():
                parameter.mul_(1.25)
    prefix = loaded.save(tmp_path / "ckpt", like=case.path)
    # What a checkpoint of Keras 3 does not have, Keras has as before.
    loaded.fill()

    outputs, after = keras.restore_case(case.name, prefix)

    assert_outputs(case.run(loaded.net), outputs, 2 * case.outputs_within)
    (changed, *_), (before, *_) = outputs, case.outputs()
    assert float(np.abs(changed - before.numpy()).max()) > 1e-3
    if case.is_trained:
        assert case.step_within is not None
        loaded.step()
        loaded.assert_near(after, 2 * case.step_within)


@pytest.mark.parametrize("name", ["k3_saved_model_tf", "k2_saved_model"])
def test_keras_takes_a_saved_models_variables_back(keras: Keras, name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    loaded = load(case)
    with torch.no_grad():
        for parameter in loaded.net.parameters():
            parameter.mul_(1.25)
    prefix = Checkpoint(loaded.view(like=case.path)).write(str(tmp_path / "variables"))

    outputs, _ = keras.restore_case(name, prefix)

    assert_outputs(case.run(loaded.net), outputs, 2 * case.outputs_within)


def test_an_exported_model_is_written_by_the_names_of_a_flavor(keras: Keras, tmp_path: Path) -> None:
    case = BY_NAME["k3_saved_model_export"]
    loaded = load(case)
    with pytest.raises(UnsupportedValueError, match="those of an exported model, a list of variables"):
        Checkpoint(loaded.view(like=case.path)).write(str(tmp_path / "none"))
    # The net is a Sequential, Keras's model is not.
    view = loaded.view(flavor="keras3", layers=["input", "hidden", "drop", "bn", "head"])
    # The Keras model of the other case has the same layers.
    prefix = Checkpoint(view).write(str(tmp_path / "variables"))

    outputs, _ = keras.restore_case("k3_saved_model_tf", prefix)

    other = BY_NAME["k3_saved_model_tf"]
    assert_outputs(other.run(loaded.net), outputs, 2 * case.outputs_within)


FLAVORS: dict[str, dict[str, Any]] = {
    "k3_sequential_mlp_adam": {"flavor": "keras3", "layers": ["0", "drop", "3", "4"]},
    "k3_functional_cnn_sgd": {
        "flavor": "keras3",
        "layers": ["image", "conv", "bn", "relu", "dw", ("sep.0", "sep.1"), "pool", "flat", "head"],
    },
    "k3_lstm_text_rmsprop": {"flavor": "keras3", "layers": ["ids", "words", "the mask", "reader", "classes"]},
    "k3_mha_layer": {"flavor": "keras3", "layers": ["q", "v", "attention"]},
    "k2_sequential_legacy_adam": {
        "flavor": "tf_keras_legacy_optimizer",
        "layers": ["hidden", "drop", "bn", "head"],
    },
    "k2_functional_gru_adamw": {"flavor": "tf_keras", "layers": ["seq", "listener", "norm", "mean", "answer"]},
    "k2_subclassed": {"flavor": "tf_keras_legacy_optimizer"},
}
"""What has to be said where no checkpoint of Keras tells. Of the other cases only a checkpoint can tell: that a Linear
of `k3_layers_zoo` is an EinsumDense, and what Keras 3 has in a list."""


@pytest.mark.parametrize("name", FLAVORS)
def test_keras_finds_the_names_of_a_flavor(keras: Keras, name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    loaded = load(case)
    view = keras_view(loaded.net, after_flatten=case.after_flatten, **FLAVORS[name])
    children: dict[str, Any] = {"model": view}
    if loaded.optimizer is not None:
        children["optimizer"] = keras_view(loaded.optimizer, model=view)
    prefix = Checkpoint(**children).save(str(tmp_path / "ckpt"))

    outputs, after = keras.restore_case(name, prefix)

    for mine, theirs in zip(outputs, case.outputs(), strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=0, atol=1e-6, strict=True)
    for variable, value in case.after().items() if case.is_trained else ():
        np.testing.assert_allclose(after[variable], value, rtol=0, atol=1e-6, err_msg=variable)


@pytest.mark.parametrize("first", ["0", "flatten", "input"])
def test_a_sequential_of_keras_3_is_found_whatever_it_begins_with(keras: Keras, first: str, tmp_path: Path) -> None:
    """The net is a class of its own, so that nothing says of which kind the Keras model is."""
    is_flat = first == "flatten"
    described = [layer("Flatten")] * is_flat + [layer("Dense", units=3)]
    given = inputs(4)
    program = Program("k3", sequential(*described, inputs=given), [given])
    if first == "input":
        model = functional([inputs(4, name="x")], {"head": layer("Dense", units=3)}, [("y", "head", ["x"])], ["y"])
        program = Program("k3", model, [given])
    net = nn.ModuleDict({"0": nn.Linear(4, 3)})
    layers = ["0"] if first == "0" else [first, "0"]
    prefix = Checkpoint(model=keras_view(net, flavor="keras3", layers=layers)).save(str(tmp_path / "ckpt"))

    restored = keras.restore(program, prefix, keras.write(program, tmp_path / "theirs"))

    restored.assert_used()
    np.testing.assert_array_equal(restored.variables[0].value, net["0"].weight.detach().T.numpy())
    other = nn.ModuleDict({"0": nn.Linear(4, 3)})
    load_keras(other, prefix).assert_consumed()
    assert torch.equal(other["0"].weight, net["0"].weight)


# There and back.


def values(path: str) -> tuple[Any, Any]:
    reader = load_checkpoint(path)
    graph = read_object_graph(reader)
    assert graph is not None
    return graph, reader


def pairs(mine: Any, theirs: Any) -> Iterator[tuple[int, int, str]]:
    """The nodes of two graphs that paths of the same names lead to from the roots, with one of the paths."""
    todo = [(0, 0, "")]
    seen = {(0, 0)}
    for a, b, path in todo:
        yield a, b, path
        others = {child.local_name: child.node_id for child in theirs.nodes[b].children}
        for child in mine.nodes[a].children:
            pair = (child.node_id, others.get(child.local_name))
            if pair[1] is not None and pair not in seen:
                seen.add(pair)
                todo.append((*pair, f"{path}/{child.local_name}"))
    owners = {(a, b) for a, b in seen if mine.nodes[a].slot_variables}
    for a, b in owners:
        found = {(slot.variable_id, slot.slot_name): slot.slot_id for slot in theirs.nodes[b].slot_variables}
        for slot in mine.nodes[a].slot_variables:
            for other in [other for variable, other in seen if variable == slot.variable_id]:
                if (other, slot.slot_name) in found:
                    yield slot.slot_id, found[other, slot.slot_name], slot.slot_name


def assert_same_values(mine: str, theirs: str, *, but: tuple[str, ...] = ()) -> None:
    """Two checkpoints have the same values at the same paths, bit for bit; ``but`` ends keys that only theirs has."""
    (my_graph, mine_read), (their_graph, theirs_read) = values(mine), values(theirs)
    left = {key for key in theirs_read.get_variable_to_shape_map() if not key.endswith("OBJECT_GRAPH")}
    extra = {key for key in mine_read.get_variable_to_shape_map() if not key.endswith("OBJECT_GRAPH")}
    for a, b, path in pairs(my_graph, their_graph):
        my_attributes, their_attributes = my_graph.nodes[a].attributes, their_graph.nodes[b].attributes
        for attribute, other in zip(my_attributes, their_attributes, strict=True):
            found = mine_read.get_tensor(attribute.checkpoint_key)
            expected = theirs_read.get_tensor(other.checkpoint_key)
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape), path
            assert found.numpy().tobytes() == expected.numpy().tobytes(), path
            left.discard(other.checkpoint_key)
            extra.discard(attribute.checkpoint_key)
    assert {key for key in left if not key.endswith(but)} == set()
    assert extra == set()


@every_checkpoint
def test_there_and_back_everything_is_where_it_was_and_what_it_was(case: GoldenCase, tmp_path: Path) -> None:
    assert_same_values(load(case).save(tmp_path / "ckpt", like=case.path), case.path)


@pytest.mark.parametrize("name", ["k3_saved_model_tf", "k2_saved_model"])
def test_there_and_back_the_variables_of_a_saved_model_are_the_same(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    prefix = Checkpoint(load(case).view(like=case.path)).write(str(tmp_path / "variables"))
    assert_same_values(prefix, case.path)


@every_checkpoint
def test_what_is_restored_tells_how_to_save(case: GoldenCase, tmp_path: Path) -> None:
    net = case.net()
    optimizer = optimizer_of(case, net) if case.is_trained else None
    settings = {"map": case.map, "after_flatten": case.after_flatten}
    children: dict[str, Any] = {"model": keras_view(net, **settings)}
    if optimizer is not None:
        children["optimizer"] = keras_view(optimizer)
    checkpoint = Checkpoint(**children)

    status = checkpoint.restore(case.path)

    but = children["model"].unmatched_torch
    if case.name == "k3_subclassed_list_attr":
        assert but == LOST
        with pytest.raises(AssertionError, match=r"Object \(root\)\.model not assigned"):
            status.assert_existing_objects_matched()
    else:
        assert but == ()
        status.assert_existing_objects_matched()
    assert_loaded(net, case, but=but)
    if optimizer is not None:
        assert_optimizer_loaded(optimizer, case)
    prefix = checkpoint.write(str(tmp_path / "ckpt"))
    assert_same_values(prefix, case.path, but=("save_counter/.ATTRIBUTES/VARIABLE_VALUE",))
