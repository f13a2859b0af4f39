"""What is written of an optimizer, and what its parameters have to do with it."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import witness
from adapters.optimizers import (
    VALUE,
    adam,
    everything,
    is_same,
    linear,
    momentum,
    py_state,
    slot_keys,
    train,
    trained,
)
from torch import nn, optim
from torch.optim import Optimizer

from torch_trackckpt import AutoTrackable, Checkpoint
from torch_trackckpt.errors import (
    UnsupportedValueError,
)


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


# What is written.


def test_slots_lie_under_their_variable_and_name_their_optimizer(prefix: str) -> None:
    """C098"""
    model, optimizer = trained()

    Checkpoint(model=model, optimizer=optimizer).write(prefix)

    assert slot_keys(prefix) == [
        f"model/{variable}/.OPTIMIZER_SLOT/optimizer/{slot}/{VALUE}"
        for variable in ("bias", "weight")
        for slot in ("exp_avg", "exp_avg_sq", "step")
    ]
    stored = witness.read_bundle(prefix)
    for name, parameter in model.named_parameters():
        for slot, value in optimizer.state[parameter].items():
            assert stored[f"model/{name}/.OPTIMIZER_SLOT/optimizer/{slot}/{VALUE}"].data == tensor_bytes(value)


def test_the_optimizers_node_lists_slot_name_variable_and_slot(prefix: str) -> None:
    """C098: slot nodes come last, by slot name and then by variable, and are nobody's children."""
    model, optimizer = trained()

    Checkpoint(model=model, optimizer=optimizer).write(prefix)

    graph = witness.read_graph(prefix)
    paths = {child.local_name: child.node_id for child in graph[0].children}
    variables = {child.local_name: child.node_id for child in graph[paths["model"]].children}
    references = graph[paths["optimizer"]].slot_variables
    assert [(slot.slot_name, slot.original_variable_node_id) for slot in references] == [
        (slot, variables[name]) for slot in ("exp_avg", "exp_avg_sq", "step") for name in ("weight", "bias")
    ]
    slot_ids = [slot.slot_variable_node_id for slot in references]
    assert slot_ids == list(range(len(graph) - 6, len(graph)))
    assert [graph[slot_id].attributes for slot_id in slot_ids] == [
        [
            witness.Attribute(
                "VARIABLE_VALUE", f"{name}/{slot}", f"model/{name}/.OPTIMIZER_SLOT/optimizer/{slot}/{VALUE}"
            )
        ]
        for slot in ("exp_avg", "exp_avg_sq", "step")
        for name in ("weight", "bias")
    ]
    assert not any(child.node_id in slot_ids for node in graph for child in node.children)
    assert not any(graph[slot_id].children for slot_id in slot_ids)


def test_no_edge_leads_from_an_optimizer_to_a_parameter(prefix: str) -> None:
    """C098: it would shorten the parameter's key."""
    model, optimizer = trained()

    Checkpoint(a=optimizer, deep=nn.Sequential(nn.Sequential(model))).write(prefix)

    assert f"deep/0/0/weight/{VALUE}" in witness.read_bundle(prefix)
    graph = witness.read_graph(prefix)
    (node,) = (graph[child.node_id] for child in graph[0].children if child.local_name == "a")
    assert [child.local_name for child in node.children] == ["param_groups"]


def test_hyper_parameters_and_members_of_each_group_are_one_text(prefix: str) -> None:
    """C103"""
    model = linear()
    groups = [{"params": [model.bias], "lr": 0.5}, {"params": [model.weight], "nesterov": True}]
    optimizer = optim.SGD(groups, lr=0.1, momentum=0.9)

    Checkpoint(model=model, optimizer=optimizer).write(prefix)

    stored = py_state(prefix, "optimizer/param_groups")
    assert stored["kind"] == "SGD"
    assert [(group["params"], group["lr"], group["nesterov"]) for group in stored["groups"]] == [
        (["model/bias"], 0.5, False),
        (["model/weight"], 0.1, True),
    ]
    assert [group.keys() for group in stored["groups"]] == [group.keys() for group in optimizer.param_groups]


def test_without_the_optimizer_in_the_checkpoint_there_are_no_slots(prefix: str) -> None:
    """C099"""
    model, _ = trained()

    Checkpoint(model=model).write(prefix)

    assert slot_keys(prefix) == []


def test_before_its_first_step_an_optimizer_has_no_slots_and_is_saved(prefix: str) -> None:
    """C101"""
    model = linear()
    optimizer = adam(model)
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)

    assert slot_keys(path) == []
    other = linear(1)
    Checkpoint(model=other, optimizer=adam(other)).restore(path).assert_consumed()


def test_two_optimizers_over_one_parameter_have_slots_of_their_own(prefix: str) -> None:
    """C102"""
    model = linear(bias=False)
    first, second = adam(model), adam(model)
    train(model, first)
    train(model, second, 2)
    saved = everything(model, first, second)

    path = Checkpoint(model=model, a=first, b=second).save(prefix)

    assert [key.split(".OPTIMIZER_SLOT/")[1] for key in slot_keys(path)] == [
        f"{optimizer}/{slot}/{VALUE}" for optimizer in ("a", "b") for slot in ("exp_avg", "exp_avg_sq", "step")
    ]
    model = linear(1, bias=False)
    first, second = adam(model), adam(model)
    Checkpoint(model=model, a=first, b=second).restore(path).assert_consumed()
    assert is_same(everything(model, first, second)[:3], saved[:3])


def test_a_parameter_that_two_modules_share_has_one_set_of_slots(prefix: str) -> None:
    """C123"""

    def tied() -> tuple[nn.ModuleDict, Optimizer]:
        first, second = linear(bias=False), linear(bias=False)
        second.weight = first.weight
        model = nn.ModuleDict({"a": first, "b": second})
        return model, optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    model, optimizer = tied()
    train(model["a"], optimizer)
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)

    assert slot_keys(path) == [f"model/a/weight/.OPTIMIZER_SLOT/optimizer/momentum_buffer/{VALUE}"]
    other, other_optimizer = tied()
    Checkpoint(model=other, optimizer=other_optimizer).restore(path).assert_consumed()
    buffer = other_optimizer.state[other["b"].weight]["momentum_buffer"]
    assert torch.equal(buffer, optimizer.state[model["b"].weight]["momentum_buffer"])


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda opt: {"trainer": as_attribute(opt)}, "trainer/opt"),
        (lambda opt: {"trainers": [{"a.b/c": opt}]}, "trainers/0/a..b.Sc"),
    ],
    ids=["attribute", "escaped names"],
)
def test_an_optimizer_inside_another_object_gives_its_whole_path(
    make: Callable[[Optimizer], dict[str, Any]], path: str, prefix: str
) -> None:
    """C125"""
    model, optimizer = trained(momentum)
    saved = Checkpoint(model=model, **make(optimizer)).save(prefix)

    assert slot_keys(saved) == [
        f"model/{name}/.OPTIMIZER_SLOT/{path}/momentum_buffer/{VALUE}" for name in ("bias", "weight")
    ]
    other = linear(1)
    other_optimizer = momentum(other)
    Checkpoint(model=other, **make(other_optimizer)).restore(saved).assert_consumed()
    assert is_same(other_optimizer.state_dict(), optimizer.state_dict())


def as_attribute(optimizer: Optimizer) -> AutoTrackable:
    trainer = AutoTrackable()
    trainer.opt = optimizer
    return trainer


def test_a_slot_that_is_also_a_value_elsewhere_is_refused(tmp_path: Path) -> None:
    """C119"""
    model, optimizer = trained(momentum)
    buffer = optimizer.state[model.weight]["momentum_buffer"]

    with pytest.raises(UnsupportedValueError) as error:
        Checkpoint(model=model, optimizer=optimizer, watched=buffer).save(tmp_path / "ckpt")

    assert str(error.value) == (
        "The slot 'momentum_buffer' that (root).optimizer keeps for (root).model.weight is itself part of the graph, "
        "as (root).watched; it can be only one of the two."
    )
    assert list(tmp_path.iterdir()) == []


# Parameters that the checkpoint does not reach.


def test_state_of_unreachable_parameters_is_left_out_with_one_warning_that_counts_and_names_them(
    prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """C024, C100"""
    model, nuisance = linear(), nn.Linear(2, 4)
    optimizer = optim.Adam([*model.parameters(), *nuisance.parameters()])
    train(nn.Sequential(model, nuisance), optimizer)
    checkpoint = Checkpoint(model=model, optimizer=optimizer)

    with caplog.at_level(logging.WARNING, logger="torch_trackckpt"):
        paths = [checkpoint.save(prefix), checkpoint.save(prefix)]

    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "The state of 2 optimizer parameters is not saved, because the checkpoint does not reach the parameters "
        "themselves; track their module as well. The first: (root).optimizer param_groups[0]['params'][2] (4, 2); "
        "(root).optimizer param_groups[0]['params'][3] (4,)"
    )
    for path in paths:
        assert {key.split("/.OPTIMIZER_SLOT")[0] for key in slot_keys(path)} == {"model/weight", "model/bias"}
        (group,) = py_state(path, "optimizer/param_groups")["groups"]
        assert group["params"] == ["model/weight", "model/bias", None, None]


def test_the_warning_uses_the_names_that_the_optimizer_knows(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """C100"""
    nuisance = linear()
    optimizer = optim.SGD(nuisance.named_parameters(), lr=0.1, momentum=0.9)
    train(nuisance, optimizer)

    Checkpoint(optimizer=optimizer).save(prefix)

    assert "param_groups[0]['params'][0] 'weight' (2, 3)" in caplog.text


def test_the_warning_names_no_more_than_five(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """C100"""
    parameters = [nn.Parameter(torch.ones(1)) for _ in range(9)]
    optimizer = optim.SGD(parameters, lr=0.1, momentum=0.9)
    torch.stack(parameters).sum().backward()
    optimizer.step()

    Checkpoint(optimizer=optimizer).save(prefix)

    assert "The state of 9 optimizer parameters" in caplog.text
    assert "['params'][4]" in caplog.text
    assert "['params'][5]" not in caplog.text


def test_unreachable_parameters_without_state_are_no_reason_to_warn(
    prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """C100"""
    Checkpoint(optimizer=adam(linear())).save(prefix)

    assert caplog.records == []


def test_a_later_restore_leaves_the_state_of_unreachable_parameters_alone(prefix: str) -> None:
    """C100, C122"""
    model, nuisance = linear(), nn.Linear(2, 4)
    optimizer = optim.Adam([*model.parameters(), *nuisance.parameters()])
    train(nn.Sequential(model, nuisance), optimizer)
    checkpoint = Checkpoint(model=model, optimizer=optimizer)
    path = checkpoint.save(prefix)
    saved = copy.deepcopy(optimizer.state[model.weight])
    train(nn.Sequential(model, nuisance), optimizer)
    untouched = copy.deepcopy(optimizer.state[nuisance.weight])

    checkpoint.restore(path).assert_consumed()

    assert is_same(optimizer.state[model.weight], saved)
    assert is_same(optimizer.state[nuisance.weight], untouched)
