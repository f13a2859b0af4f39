"""Slot variables of one side as the other sees them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from torch_trackckpt import Checkpoint, list_variables, load_checkpoint

from .conftest import TensorFlow, Value


def stepped(optimizer: torch.optim.Optimizer, module: nn.Module) -> torch.optim.Optimizer:
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


# ------------------------------------------------------------------------------------------ ours in TensorFlow


def test_tensorflow_lists_our_slots_under_their_variables(tensorflow: TensorFlow, prefix: Path) -> None:
    """C398"""
    module = nn.Linear(3, 2)
    path = Checkpoint(model=module, optimizer=stepped(torch.optim.Adam(module.parameters()), module)).save(prefix)
    slot = "model/{}/.OPTIMIZER_SLOT/optimizer/{}/.ATTRIBUTES/VARIABLE_VALUE"
    expected = {
        slot.format(variable, name): shape
        for variable, full in [("weight", [2, 3]), ("bias", [2])]
        for name, shape in [("exp_avg", full), ("exp_avg_sq", full), ("step", [])]
    }
    listed = tensorflow.list_variables(path)
    assert {key: shape for key, shape in listed if ".OPTIMIZER_SLOT" in key} == expected
    assert listed == list_variables(path)


def test_tensorflow_reads_our_slots_bit_for_bit(tensorflow: TensorFlow, prefix: Path) -> None:
    """C395, C398"""
    module = nn.Linear(3, 2)
    optimizer = stepped(torch.optim.Adam(module.parameters()), module)
    path = Checkpoint(model=module, optimizer=optimizer).save(prefix)
    found = tensorflow.read_all(path)
    for name, tensor in optimizer.state[module.weight].items():
        key = f"model/weight/.OPTIMIZER_SLOT/optimizer/{name}/.ATTRIBUTES/VARIABLE_VALUE"
        assert found[key] == Value.of(tensor)


def test_an_optimizer_of_tensorflow_takes_our_slots(tensorflow: TensorFlow, prefix: Path) -> None:
    """C398"""
    # Adam's `step` is beyond TensorFlow, whose slots have the shapes of their variables.
    module = nn.Linear(3, 2)
    optimizer = stepped(torch.optim.SGD(module.parameters(), momentum=0.9), module)
    path = Checkpoint(model=module, optimizer=optimizer).save(prefix)
    model = SimpleNamespace(weight=torch.zeros(2, 3), bias=torch.zeros(2))
    slots = tensorflow.restore_slots(path, ["momentum_buffer"], model=model)
    buffers = [optimizer.state[parameter]["momentum_buffer"] for parameter in [module.weight, module.bias]]
    assert slots == {"momentum_buffer": [Value.of(buffer) for buffer in buffers]}


# ------------------------------------------------------------------------------------------ TensorFlow's here


def variable_model(w: float) -> nn.Module:
    return nn.ParameterDict({"w": torch.tensor([w, w])})


def test_the_slots_of_tensorflow_are_listed_and_read(tensorflow: TensorFlow, prefix: Path) -> None:
    """C348, C398"""
    written = tensorflow.write_with_adam(prefix, model=SimpleNamespace(w=torch.tensor([1.0, 2.0])))
    reader = load_checkpoint(prefix)
    assert any(".OPTIMIZER_SLOT" in key for key in written)
    assert list_variables(prefix) == tensorflow.list_variables(prefix)
    assert {key: Value.of(reader.get_tensor(key)) for key in reader.get_variable_to_shape_map()} == written


@pytest.mark.parametrize("step_first", [False, True])
def test_a_model_is_restored_although_its_optimizer_has_other_slots(
    tensorflow: TensorFlow, prefix: Path, step_first: bool
) -> None:
    """C397, C398"""
    written = tensorflow.write_with_adam(prefix, model=SimpleNamespace(w=torch.tensor([1.0, 2.0])))
    model = variable_model(0.0)
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters())
    if step_first:
        stepped(optimizer, model)
    before = {name: tensor.clone() for name, tensor in optimizer.state.get(model["w"], {}).items()}
    status = Checkpoint(model=model, optimizer=optimizer).read(prefix)
    assert Value.of(model["w"]) == written["model/w/.ATTRIBUTES/VARIABLE_VALUE"]
    assert all(torch.equal(optimizer.state[model["w"]][name], tensor) for name, tensor in before.items())
    assert optimizer.state.get(model["w"], {}).keys() == before.keys()
    with pytest.raises(AssertionError, match=r"not bound .*: \(root\)\.optimizer\.param_groups"):
        status.assert_existing_objects_matched()


def test_slots_without_their_optimizer_are_named(tensorflow: TensorFlow, prefix: Path) -> None:
    """C397, C398"""
    tensorflow.write_with_adam(prefix, model=SimpleNamespace(w=torch.tensor([1.0, 2.0])))
    status = Checkpoint(model=variable_model(0.0)).read(prefix).assert_existing_objects_matched()
    with pytest.raises(AssertionError) as caught:
        status.assert_consumed()
    for name in ["m", "v"]:
        assert f"(root).optimizer's state '{name}' for (root).model.w" in str(caught.value)


def test_the_slots_that_found_no_place_are_named(tensorflow: TensorFlow, prefix: Path) -> None:
    """C397, C398"""
    tensorflow.write_with_adam(prefix, model=SimpleNamespace(w=torch.tensor([1.0, 2.0])))
    model = variable_model(0.0)
    status = Checkpoint(model=model, optimizer=torch.optim.Adam(model.parameters())).read(prefix)
    with pytest.raises(AssertionError, match=re.escape("(root).optimizer's state 'm' for (root).model.w")):
        status.assert_consumed()


class TensorFlowNames(torch.optim.Optimizer):
    """Keeps its state under TensorFlow's names."""

    def __init__(self, parameters: list[torch.Tensor]) -> None:
        super().__init__(parameters, {"lr": 0.1})
        for parameter in parameters:
            self.state[parameter] = {"m": torch.zeros_like(parameter), "v": torch.zeros_like(parameter)}

    def step(self, closure: Callable[[], float] | None = None) -> None:
        raise NotImplementedError


def test_an_optimizer_with_slots_of_the_same_names_takes_those_of_tensorflow(
    tensorflow: TensorFlow, prefix: Path
) -> None:
    """C398"""
    written = tensorflow.write_with_adam(prefix, model=SimpleNamespace(w=torch.tensor([1.0, 2.0])))
    model = variable_model(0.0)
    optimizer = TensorFlowNames(list(model.parameters()))
    Checkpoint(model=model, optimizer=optimizer).read(prefix)
    for name in ["m", "v"]:
        key = f"model/w/.OPTIMIZER_SLOT/optimizer/{name}/.ATTRIBUTES/VARIABLE_VALUE"
        assert Value.of(optimizer.state[model["w"]][name]) == written[key]
    assert torch.count_nonzero(optimizer.state[model["w"]]["m"]) == 2
