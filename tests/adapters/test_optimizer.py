"""Optimizers: slot variables, hyper-parameters and irregular state, matched to parameters through the graph."""

import copy
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import witness
from torch import nn, optim
from torch.optim import Optimizer

from torch_trackckpt import AutoTrackable, Checkpoint, CheckpointOptions
from torch_trackckpt.errors import (
    DataLossError,
    MismatchError,
    TrackckptError,
    UnsupportedFormatError,
    UnsupportedValueError,
)
from torch_trackckpt.trackable import SlotOwner

VALUE = ".ATTRIBUTES/VARIABLE_VALUE"
FAST = CheckpointOptions(durable=False)


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "ckpt")


def linear(seed: int = 0, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2, bias=bias)


def adam(model: nn.Module, lr: float = 0.1) -> optim.Adam:
    return optim.Adam(model.parameters(), lr=lr)


def momentum(model: nn.Module, lr: float = 0.1) -> optim.SGD:
    return optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def train(model: nn.Module, optimizer: Optimizer, num_steps: int = 1) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(torch.tensor([[1.0, -2.0, 3.0]])).square().sum()
        loss.backward()
        if isinstance(optimizer, optim.SparseAdam):
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad = parameter.grad.to_sparse()
        return loss

    for _ in range(num_steps):
        if isinstance(optimizer, optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def trained(make: Callable[[nn.Module], Optimizer] = adam, num_steps: int = 1) -> tuple[nn.Linear, Optimizer]:
    model = linear()
    optimizer = make(model)
    train(model, optimizer, num_steps)
    return model, optimizer


def slot_keys(prefix: str) -> list[str]:
    return [key for key in witness.read_bundle(prefix) if ".OPTIMIZER_SLOT" in key]


def py_state(prefix: str, path: str) -> Any:
    (text,) = witness.read_bundle(prefix)[f"{path}/.ATTRIBUTES/py_state"].data
    return json.loads(text)


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def is_same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(is_same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(is_same, left, right))
    return type(left) is type(right) and bool(left == right)


def everything(model: nn.Module, *optimizers: Optimizer) -> Any:
    """A copy of all that a restore could change."""
    parts = [model.state_dict(), *(optimizer.state_dict() for optimizer in optimizers)]
    orders = [[[id(p) for p in group["params"]] for group in o.param_groups] for o in optimizers]
    return copy.deepcopy([*parts, orders])


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


# Restoring slots.


def test_slots_that_exist_are_replaced_in_place(prefix: str) -> None:
    """C104"""
    model, optimizer = trained()
    checkpoint = Checkpoint(model=model, optimizer=optimizer)
    path = checkpoint.save(prefix)
    saved = everything(model, optimizer)
    slots = {name: dict(optimizer.state[p]) for name, p in model.named_parameters()}
    memory = [slot.data_ptr() for state in slots.values() for slot in state.values()]
    train(model, optimizer)

    checkpoint.restore(path).assert_consumed()

    assert is_same(everything(model, optimizer), saved)
    for name, parameter in model.named_parameters():
        assert all(optimizer.state[parameter][slot] is tensor for slot, tensor in slots[name].items())
    assert [slot.data_ptr() for state in slots.values() for slot in state.values()] == memory


def test_slots_that_do_not_exist_yet_are_made_at_once_and_the_next_step_goes_on_from_them(prefix: str) -> None:
    """C105"""
    model, optimizer = trained(num_steps=2)
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)

    other = linear(1)
    other_optimizer = adam(other)
    Checkpoint(model=other, optimizer=other_optimizer).restore(path).assert_consumed()

    assert is_same(other_optimizer.state_dict(), optimizer.state_dict())
    assert [float(state["step"]) for state in other_optimizer.state.values()] == [2.0, 2.0]
    train(model, optimizer)
    train(other, other_optimizer)
    assert is_same(everything(other, other_optimizer)[:2], everything(model, optimizer)[:2])


def test_new_slots_need_no_grad_and_are_independent_of_the_parameter(prefix: str) -> None:
    """C105"""
    model, optimizer = trained()
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)

    Checkpoint(model=model, optimizer=(fresh := adam(model))).restore(path)

    for parameter, state in fresh.state.items():
        assert not any(slot.requires_grad for slot in state.values())
        assert parameter.data_ptr() not in {slot.data_ptr() for slot in state.values()}


def test_hyper_parameters_of_each_group_follow_their_parameters(prefix: str) -> None:
    """C103: groups are told apart by their members, not by their position."""

    def make(model: nn.Linear, order: Iterable[str], lrs: dict[str, float]) -> optim.Adam:
        return optim.Adam([{"params": [getattr(model, name)], "lr": lrs[name]} for name in order], betas=(0.5, 0.6))

    model = linear()
    path = Checkpoint(model=model, optimizer=make(model, ("weight", "bias"), {"weight": 0.5, "bias": 0.25})).save(
        prefix
    )
    optimizer = make(model, ("bias", "weight"), {"weight": 9.0, "bias": 9.0})
    optimizer.param_groups[0]["betas"] = (0.0, 0.0)

    Checkpoint(model=model, optimizer=optimizer).restore(path).assert_consumed()

    assert [(group["lr"], group["betas"]) for group in optimizer.param_groups] == [
        (0.25, (0.5, 0.6)),
        (0.5, (0.5, 0.6)),
    ]
    assert optimizer.param_groups[0]["params"][0] is model.bias
    assert optimizer.param_groups[1]["params"][0] is model.weight


def test_hyper_parameters_that_were_not_restored_are_never_called_consumed(prefix: str) -> None:
    """C103: of groups whose parameters the checkpoint does not reach."""
    model = linear()
    path = Checkpoint(optimizer=optim.SGD(model.parameters(), lr=0.5)).save(prefix)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    status = Checkpoint(optimizer=optimizer).restore(path)

    if optimizer.param_groups[0]["lr"] != 0.5:
        with pytest.raises(AssertionError):
            status.assert_consumed()


def test_a_learning_rate_in_a_tensor_keeps_its_identity(prefix: str) -> None:
    """C103: a captured graph may hold it."""

    def make(model: nn.Linear, lr: float) -> optim.Adam:
        return optim.Adam(model.parameters(), lr=torch.tensor(lr), foreach=False)

    model = linear()
    path = Checkpoint(model=model, optimizer=make(model, 0.5)).save(prefix)
    optimizer = make(model, 0.1)
    lr = optimizer.param_groups[0]["lr"]

    Checkpoint(model=model, optimizer=optimizer).restore(path).assert_consumed()

    assert optimizer.param_groups[0]["lr"] is lr
    assert torch.equal(lr, torch.tensor(0.5))


@pytest.mark.parametrize("as_stored", [float, torch.tensor])
@pytest.mark.parametrize("as_live", [float, torch.tensor])
def test_a_learning_rate_restores_between_number_and_tensor(
    as_stored: Callable[[float], Any], as_live: Callable[[float], Any], prefix: str
) -> None:
    """C103"""
    model = linear()
    stored = optim.Adam(model.parameters(), lr=as_stored(0.5), foreach=False)
    path = Checkpoint(model=model, optimizer=stored).save(prefix)
    optimizer = optim.Adam(model.parameters(), lr=as_live(0.1), foreach=False)

    Checkpoint(model=model, optimizer=optimizer).restore(path).assert_consumed()

    assert float(optimizer.param_groups[0]["lr"]) == 0.5
    train(model, optimizer)


def test_a_file_without_slots_leaves_live_slots_alone(prefix: str) -> None:
    """C112"""
    model = linear()
    path = Checkpoint(model=model, optimizer=adam(model)).save(prefix)
    other, optimizer = trained()
    before = copy.deepcopy(optimizer.state_dict()["state"])

    status = Checkpoint(model=other, optimizer=optimizer).restore(path)

    assert is_same(optimizer.state_dict()["state"], before)
    with pytest.raises(AssertionError, match=r"optimizer's state 'exp_avg' for \(root\)\.model\.weight"):
        status.assert_existing_objects_matched()


@pytest.mark.parametrize("num_steps", [0, 1])
def test_a_file_of_the_model_alone_restores_the_model_and_the_assertion_tells_of_the_optimizer(
    num_steps: int, prefix: str
) -> None:
    """C113"""
    saved = linear(5)
    path = Checkpoint(model=saved).save(prefix)
    model, optimizer = trained(num_steps=num_steps)
    before = copy.deepcopy(optimizer.state_dict())

    status = Checkpoint(model=model, optimizer=optimizer).restore(path)

    assert is_same(model.state_dict(), saved.state_dict())
    assert is_same(optimizer.state_dict(), before)
    with pytest.raises(AssertionError, match=r"\(root\)\.optimizer"):
        status.assert_existing_objects_matched()


def test_the_first_file_gives_the_slots_where_the_second_has_none(prefix: str) -> None:
    """C112, C114"""
    model, optimizer = trained()
    with_slots = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    slots = copy.deepcopy(optimizer.state_dict()["state"])
    newer = linear(5)
    without_slots = Checkpoint(model=newer).save(prefix + "-model")

    other = linear(1)
    other_optimizer = adam(other)
    checkpoint = Checkpoint(model=other, optimizer=other_optimizer)
    checkpoint.restore(with_slots)
    checkpoint.restore(without_slots)

    assert is_same(other.state_dict(), newer.state_dict())
    assert is_same(other_optimizer.state_dict()["state"], slots)


@pytest.mark.parametrize("num_steps", [0, 1])
def test_slots_are_skipped_where_the_restore_is_asked_to(num_steps: int, prefix: str) -> None:
    """C116"""
    saved, optimizer = trained(num_steps=3)
    path = Checkpoint(model=saved, optimizer=optimizer).save(prefix)
    model, live = trained(num_steps=num_steps)
    before = copy.deepcopy(live.state_dict()["state"])

    options = CheckpointOptions(experimental_skip_slot_variables=True)
    status = Checkpoint(model=model, optimizer=live).restore(path, options)

    assert is_same(model.state_dict(), saved.state_dict())
    assert is_same(live.state_dict()["state"], before)
    status.assert_consumed()
    train(model, live)


def test_an_optimizer_whose_state_is_not_all_slots_can_go_on_after_slots_were_skipped(prefix: str) -> None:
    """C116, C121: SparseAdam's step count is a plain number; without its moments it must not arrive either."""
    model, optimizer = trained(lambda model: optim.SparseAdam(model.parameters()), num_steps=2)
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other = linear(1)
    other_optimizer = optim.SparseAdam(other.parameters())

    options = CheckpointOptions(experimental_skip_slot_variables=True)
    Checkpoint(model=other, optimizer=other_optimizer).restore(path, options)

    train(other, other_optimizer)
    assert [state["step"] for state in other_optimizer.state.values()] == [1, 1]


def test_skipping_slots_has_no_effect_on_a_save(tmp_path: Path) -> None:
    """C117"""
    model, optimizer = trained()
    checkpoint = Checkpoint(model=model, optimizer=optimizer)

    checkpoint.write(tmp_path / "plain")
    checkpoint.write(tmp_path / "skipped", CheckpointOptions(experimental_skip_slot_variables=True))

    for suffix in (".index", ".data-00000-of-00001"):
        assert (tmp_path / f"plain{suffix}").read_bytes() == (tmp_path / f"skipped{suffix}").read_bytes()


# State that is not one tensor per parameter.


def test_a_slot_of_another_shape_than_its_parameter_round_trips(prefix: str) -> None:
    """C121"""
    model, optimizer = trained()
    Checkpoint(model=model, optimizer=optimizer).write(prefix)

    assert witness.read_bundle(prefix)[f"model/weight/.OPTIMIZER_SLOT/optimizer/step/{VALUE}"].shape == ()
    other = linear(1)
    other_optimizer = adam(other)
    Checkpoint(model=other, optimizer=other_optimizer).read(prefix).assert_consumed()
    assert is_same(other_optimizer.state_dict(), optimizer.state_dict())


class Odd(Optimizer):
    """An optimizer that keeps whatever it likes."""

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        super().__init__(parameters, {"lr": 0.1, "schedule": (1, {2: 3})})

    def fill(self, parameter: torch.Tensor, state: dict[str, Any]) -> None:
        self.state[parameter] = state


ODD_STATES: dict[str, dict[str, Any]] = {
    "none": {"momentum_buffer": None},
    "numbers": {"step": 7, "beta": 0.5, "is_warm": True},
    "nested": {"history": {"grads": [torch.ones(2), torch.zeros(3)], 5: (None, torch.tensor(1.5))}},
    "counter": {"seen": Counter({3: 1})},
    "both": {"exp_avg": torch.ones(2, 3), "step": 7, "pair": (torch.ones(1), 2)},
    "half precision": {"exp_avg": torch.ones(2, 3, dtype=torch.bfloat16)},
    "integers": {"codes": torch.arange(6, dtype=torch.uint8).reshape(2, 3)},
    "one row": {"row": torch.ones(3)},
    "non-contiguous": {"exp_avg": torch.arange(6.0).reshape(3, 2).T},
    "empty": {},
}


@pytest.mark.parametrize("state", ODD_STATES.values(), ids=ODD_STATES)
def test_irregular_state_round_trips(state: dict[str, Any], prefix: str) -> None:
    """C121"""
    model = linear()
    optimizer = Odd(model.parameters())
    optimizer.fill(model.weight, state)
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)

    other = linear(1)
    other_optimizer = Odd([other.bias, other.weight])
    Checkpoint(model=other, optimizer=other_optimizer).restore(path).assert_consumed()

    assert is_same(other_optimizer.state.get(other.weight, {}), state)
    assert other_optimizer.param_groups[0]["schedule"] == (1, {2: 3})


def test_irregular_state_is_text_under_the_optimizer_by_the_parameters_path(prefix: str) -> None:
    """C121"""
    model = linear()
    optimizer = Odd(model.parameters())
    optimizer.fill(model.bias, {"step": 7, "history": [torch.ones(1)], "exp_avg": torch.ones(2)})

    Checkpoint(model=model, optimizer=optimizer).write(prefix)

    assert py_state(prefix, "optimizer/extra_state") == {
        "model/bias": {"step": 7, "history": [{"$": "tensor", "v": "0"}]}
    }
    assert f"optimizer/extra_state/0/{VALUE}" in witness.read_bundle(prefix)
    assert slot_keys(prefix) == [f"model/bias/.OPTIMIZER_SLOT/optimizer/exp_avg/{VALUE}"]


def test_state_that_cannot_be_encoded_is_refused_with_its_position(prefix: str) -> None:
    """C121, C168"""
    model = linear()
    optimizer = Odd(model.parameters())
    optimizer.fill(model.bias, {"hook": [train]})

    with pytest.raises(UnsupportedValueError) as error:
        Checkpoint(model=model, optimizer=optimizer).save(prefix)

    assert str(error.value).startswith(
        "(root).optimizer.extra_state cannot be saved: the value at ['model/bias']['hook'][0] is a builtins.function"
    )


def test_state_that_belongs_to_no_parameter_is_refused(prefix: str) -> None:
    """C121"""
    model = linear()
    optimizer = Odd(model.parameters())
    optimizer.state["global"] = {"step": 1}  # type: ignore[index]

    with pytest.raises(UnsupportedValueError, match=r"Odd\.state has the key 'global'.*register_adapter"):
        Checkpoint(model=model, optimizer=optimizer).save(prefix)


def test_lbfgs_with_its_history_and_parameters_in_another_order_round_trips(prefix: str) -> None:
    """C121: its state runs over all parameters, so their stored order is taken over."""
    model, optimizer = trained(lambda model: optim.LBFGS(model.parameters(), max_iter=3))
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)

    other = linear(1)
    other_optimizer = optim.LBFGS([other.bias, other.weight], max_iter=3)
    Checkpoint(model=other, optimizer=other_optimizer).restore(path).assert_consumed()

    assert slot_keys(path) == []
    assert other_optimizer.param_groups[0]["params"][0] is other.weight
    assert is_same(other_optimizer.state_dict(), optimizer.state_dict())
    assert len(other_optimizer.state[other.weight]["old_dirs"]) > 0


def test_lbfgs_with_other_parameters_is_a_mismatch(prefix: str) -> None:
    """C121, C122"""
    model, optimizer = trained(lambda model: optim.LBFGS(model.parameters(), max_iter=3))
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other = linear(1)
    other_optimizer = optim.LBFGS([other.weight], max_iter=3)
    before = everything(other, other_optimizer)

    with pytest.raises(MismatchError, match=r"state of LBFGS runs over all of its parameters"):
        Checkpoint(model=other, optimizer=other_optimizer).restore(path)

    assert is_same(everything(other, other_optimizer), before)


# Groups and kinds that differ.


def two_layers(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))


def grouped(model: nn.Module, *groups: str) -> optim.SGD:
    """An optimizer with one group for each text, which names its parameters."""
    named = dict(model.named_parameters())
    return optim.SGD(
        [{"params": [named[name] for name in group.split()], "lr": 0.1 + i} for i, group in enumerate(groups)],
        lr=0.1,
        momentum=0.9,
    )


@pytest.mark.parametrize(
    ("saved", "live"),
    [
        (["0.weight 0.bias", "1.weight 1.bias"], ["0.weight 0.bias 1.weight 1.bias"]),
        (["0.weight 0.bias 1.weight 1.bias"], ["0.weight 0.bias", "1.weight 1.bias"]),
        (["0.weight 0.bias", "1.weight 1.bias"], ["0.weight 1.weight", "0.bias 1.bias"]),
        (["0.weight", "0.bias 1.weight 1.bias"], ["0.weight 0.bias", "1.weight 1.bias"]),
    ],
    ids=["merged", "split", "crossed", "one moved"],
)
def test_groups_that_truly_differ_are_a_mismatch_and_nothing_changes(
    saved: list[str], live: list[str], prefix: str
) -> None:
    """C122"""
    model = two_layers()
    optimizer = grouped(model, *saved)
    train(model, optimizer)
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other = two_layers(1)
    other_optimizer = grouped(other, *live)
    train(other, other_optimizer)
    before = everything(other, other_optimizer)
    checkpoint = Checkpoint(model=other, optimizer=other_optimizer)

    with pytest.raises(MismatchError, match=r"\(root\)\.optimizer\.param_groups .*the parameter groups differ: stored"):
        checkpoint.restore(path)

    assert is_same(everything(other, other_optimizer), before)
    assert int(checkpoint.save_counter) == 0


def test_a_new_parameter_starts_without_state_and_the_others_get_theirs(prefix: str) -> None:
    """C122: the documented partial restore."""
    model = two_layers()
    optimizer = grouped(model, "0.weight 1.weight")
    train(model, optimizer)
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other = two_layers(1)
    other_optimizer = grouped(other, "1.weight 1.bias 0.weight")
    order = [id(parameter) for parameter in other_optimizer.param_groups[0]["params"]]
    other_optimizer.param_groups[0]["lr"] = 9.0

    status = Checkpoint(model=other, optimizer=other_optimizer).restore(path)

    status.assert_consumed()
    assert [id(parameter) for parameter in other_optimizer.param_groups[0]["params"]] == order
    assert other_optimizer.param_groups[0]["lr"] == 0.1
    assert other[1].bias not in other_optimizer.state
    for layer in (0, 1):
        buffers = [
            m.state[n[layer].weight]["momentum_buffer"] for m, n in ((other_optimizer, other), (optimizer, model))
        ]
        assert torch.equal(*buffers)
    train(other, other_optimizer)
    with pytest.raises(AssertionError, match=r"optimizer's state 'momentum_buffer' for \(root\)\.model\.1\.bias"):
        status.assert_existing_objects_matched()


@pytest.mark.parametrize(
    "make", [momentum, lambda model: optim.SparseAdam(model.parameters())], ids=["SGD", "SparseAdam"]
)
def test_a_parameter_that_left_the_optimizer_gets_no_state(make: Callable[[nn.Module], Optimizer], prefix: str) -> None:
    """C122: the rest is restored, and the optimizer can still step and be pickled by PyTorch's own means."""
    model, optimizer = trained(make)
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other = linear(1)
    other_optimizer = make(nn.ParameterList([other.weight]))

    status = Checkpoint(model=other, optimizer=other_optimizer).restore(path)

    assert [id(parameter) for parameter in other_optimizer.state] == [id(other.weight)]
    assert is_same(other_optimizer.state[other.weight], optimizer.state[model.weight])
    assert other_optimizer.state_dict()["state"].keys() == {0}
    status.assert_existing_objects_matched()
    with pytest.raises(AssertionError, match=r"optimizer's state '\w+' for \(root\)\.model\.bias"):
        status.assert_consumed()


def test_a_group_of_new_parameters_keeps_its_own_hyper_parameters(prefix: str) -> None:
    """C122"""
    model = two_layers()
    optimizer = grouped(model, "0.weight", "0.bias")
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other_optimizer = grouped(model, "1.weight", "0.bias", "0.weight")

    Checkpoint(model=model, optimizer=other_optimizer).restore(path).assert_consumed()

    assert [group["lr"] for group in other_optimizer.param_groups] == [0.1, 1.1, 0.1]


def test_state_goes_by_the_graph_where_parameters_have_equal_shapes_in_another_order(prefix: str) -> None:
    """C122: never a shuffle of state between parameters."""

    def make(names: str, seed: int) -> tuple[nn.ModuleDict, optim.SGD]:
        torch.manual_seed(seed)
        model = nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in names})
        return model, optim.SGD([model[name].weight for name in names], lr=0.1, momentum=0.9)

    model, optimizer = make("abc", 0)
    for scale, name in enumerate("abc"):
        model[name].weight.grad = torch.full((3, 3), float(scale))
    optimizer.step()
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)

    other, other_optimizer = make("cab", 1)
    Checkpoint(model=other, optimizer=other_optimizer).restore(path).assert_consumed()

    for scale, name in enumerate("abc"):
        assert torch.equal(other[name].weight, model[name].weight)
        buffer = other_optimizer.state[other[name].weight]["momentum_buffer"]
        assert torch.equal(buffer, torch.full((3, 3), float(scale)))


def test_names_of_parameters_stay_with_their_parameters(prefix: str) -> None:
    """C122"""
    model = linear()
    path = Checkpoint(model=model, optimizer=optim.SGD(model.named_parameters(), lr=0.5)).save(prefix)
    optimizer = optim.SGD([("my bias", model.bias), ("my weight", model.weight)], lr=0.1)

    Checkpoint(model=model, optimizer=optimizer).restore(path).assert_consumed()

    (group,) = optimizer.param_groups
    named = dict(zip(group["param_names"], group["params"], strict=True))
    assert named["my bias"] is model.bias
    assert named["my weight"] is model.weight


KINDS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    name: {"SGD": lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9)}.get(name, getattr(optim, name))
    for name in sorted(optim.__all__)
    if isinstance(getattr(optim, name, None), type)
    and issubclass(getattr(optim, name), Optimizer)
    and getattr(optim, name) is not Optimizer
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_another_kind_of_optimizer_is_a_mismatch_and_nothing_changes(kind: str, prefix: str) -> None:
    """C122: neither its hyper-parameters nor its slots would be what the live one needs at its next step."""
    model = linear(bias=False)
    optimizer = KINDS[kind](list(model.parameters()))
    train(model, optimizer)
    path = Checkpoint(model=model, optimizer=optimizer).write(prefix, FAST)
    refusals = {}

    for other_kind in sorted(KINDS.keys() - {kind}):
        other = linear(1, bias=False)
        other_optimizer = KINDS[other_kind](list(other.parameters()))
        before = everything(other, other_optimizer)
        refusals[other_kind] = refusal(Checkpoint(model=other, optimizer=other_optimizer), path)
        assert not refusals[other_kind] or is_same(everything(other, other_optimizer), before)

    assert [other_kind for other_kind, text in refusals.items() if not text] == []
    for other_kind, text in refusals.items():
        assert all(word in text for word in ("(root).optimizer.param_groups", kind, other_kind))


def refusal(checkpoint: Checkpoint, path: str) -> str:
    """What the error says; nothing where the restore went through."""
    try:
        checkpoint.read(path)
    except MismatchError as error:
        return str(error)
    return ""


def test_a_slot_of_another_dtype_is_a_mismatch_and_nothing_changes(prefix: str) -> None:
    """C067, C122"""
    model = linear()
    optimizer = Odd(model.parameters())
    optimizer.fill(model.weight, {"exp_avg": torch.ones(2, 3)})
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other = linear(1)
    other_optimizer = Odd(other.parameters())
    other_optimizer.fill(other.weight, {"exp_avg": torch.zeros(2, 3, dtype=torch.float64)})
    before = everything(other, other_optimizer)

    with pytest.raises(MismatchError, match=r"optimizer's state 'exp_avg' for \(root\)\.model\.weight: .*float64"):
        Checkpoint(model=other, optimizer=other_optimizer).restore(path)

    assert is_same(everything(other, other_optimizer), before)


# Crafted and hostile content.


class Raw:
    """Bytes in the place of a python state."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    def serialize(self) -> bytes:
        return self.text

    def deserialize(self, value: bytes) -> None:
        raise AssertionError("never restored")


class Forged(SlotOwner):
    """Saves like an optimizer, with content of the test's choice."""

    def __init__(
        self, slots: Mapping[str, list[tuple[torch.Tensor, torch.Tensor]]] | None = None, **children: bytes
    ) -> None:
        self._slots = slots or {}
        self._children = {name: Raw(text) for name, text in children.items()}

    def _trackable_children(self) -> Mapping[str, object]:
        return self._children

    def _slot_variables(self) -> Mapping[str, list[tuple[torch.Tensor, torch.Tensor]]]:
        return self._slots

    def _variables_with_state(self) -> list[tuple[torch.Tensor, str]]:
        return []


GROUPS = {
    "not JSON": b"{",
    "a list": b"[]",
    "a string": b'"SGD"',
    "no groups": b'{"kind":"SGD"}',
    "no kind": b'{"groups":[]}',
    "groups in a dict": b'{"kind":"SGD","groups":{}}',
    "a group that is a number": b'{"kind":"SGD","groups":[5]}',
    "a group without members": b'{"kind":"SGD","groups":[{"lr":1.0}]}',
    "members that are a number": b'{"kind":"SGD","groups":[{"params":5}]}',
    "members that are text": b'{"kind":"SGD","groups":[{"params":"model/weight"}]}',
    "a member that is a number": b'{"kind":"SGD","groups":[{"params":[5]}]}',
    "a member that is a list": b'{"kind":"SGD","groups":[{"params":[["model/weight"]]}]}',
    "a member that is a dict": b'{"kind":"SGD","groups":[{"params":[{"a":1}]}]}',
    "a name that is a number": b'{"kind":"Other","groups":[{"$":"dict","v":[[5,1],["params",[]],["x",1]]}]}',
    "a kind that is a list": b'{"kind":["SGD"],"groups":[{"params":[]}]}',
    "another kind": b'{"kind":"os.system","groups":[{"params":["model/weight","model/bias"],"command":"true"}]}',
    "an unknown tag": b'{"kind":"SGD","groups":[{"$":"pickle","v":[]}]}',
    "a tensor that is not there": b'{"kind":"SGD","groups":[{"params":["model/weight"],"lr":{"$":"tensor","v":"0"}}]}',
}


@pytest.mark.parametrize("text", GROUPS.values(), ids=GROUPS)
def test_groups_that_no_optimizer_wrote_are_refused_and_nothing_changes(text: bytes, prefix: str) -> None:
    """C122, C169"""
    path = Checkpoint(model=linear(5), optimizer=Forged(param_groups=text)).save(prefix)
    model, optimizer = trained(momentum)
    before = everything(model, optimizer)

    with pytest.raises(
        (DataLossError, MismatchError, UnsupportedFormatError), match=r"\(root\)\.optimizer\.param_groups"
    ):
        Checkpoint(model=model, optimizer=optimizer).restore(path)

    assert is_same(everything(model, optimizer), before)


@pytest.mark.parametrize("lr", ['"fast"', "[1.0,2.0]", '{"$":"bytes","v":""}', "null"])
def test_a_value_that_a_learning_rate_in_a_tensor_cannot_take_is_refused_and_nothing_changes(
    lr: str, prefix: str
) -> None:
    """C103, C169"""
    text = f'{{"kind":"Adam","groups":[{{"params":["model/weight","model/bias"],"betas":[0.0,0.0],"lr":{lr}}}]}}'
    path = Checkpoint(model=linear(5), optimizer=Forged(param_groups=text.encode())).save(prefix)
    model = linear()
    optimizer = optim.Adam(model.parameters(), lr=torch.tensor(0.1), foreach=False)
    before = everything(model, optimizer)

    with pytest.raises(TrackckptError, match=r"\(root\)\.optimizer\.param_groups"):
        Checkpoint(model=model, optimizer=optimizer).restore(path)

    assert is_same(everything(model, optimizer), before)


@pytest.mark.parametrize(
    "members",
    ['["model/weight","model/weight"]', '["nowhere"]', '[""]', '["model"]', '["../model/weight"]', "[null]"],
    ids=["one twice", "unknown", "the root", "a module", "a parent", "null"],
)
def test_members_that_name_no_parameter_move_nothing(members: str, prefix: str) -> None:
    """C122, C169: the live group keeps its own parameters, each once, in its order."""
    text = f'{{"kind":"SGD","groups":[{{"params":{members},"param_names":["x"]}}]}}'
    path = Checkpoint(model=linear(), optimizer=Forged(param_groups=text.encode())).save(prefix)
    model, optimizer = trained(momentum)
    before = everything(model, optimizer)

    Checkpoint(model=model, optimizer=optimizer).restore(path)

    assert is_same(everything(model, optimizer)[1:], before[1:])


EXTRA = {
    "a list": b"[]",
    "a number for a parameter": b'{"model/weight":5}',
    "a list for a parameter": b'{"model/weight":[["step",1]]}',
    "not JSON": b"\x80\x04",
}


@pytest.mark.parametrize("text", EXTRA.values(), ids=EXTRA)
def test_extra_state_that_no_optimizer_wrote_is_refused_and_nothing_changes(text: bytes, prefix: str) -> None:
    """C121, C169"""
    path = Checkpoint(model=linear(5), optimizer=Forged(extra_state=text)).save(prefix)
    model, optimizer = trained(momentum)
    before = everything(model, optimizer)

    with pytest.raises(DataLossError, match=r"\(root\)\.optimizer\.extra_state cannot be restored"):
        Checkpoint(model=model, optimizer=optimizer).restore(path)

    assert is_same(everything(model, optimizer), before)


@pytest.mark.parametrize("path", ["nowhere", "", "model", "model/0", "stray"])
def test_extra_state_of_what_is_no_parameter_of_the_optimizer_is_left_aside(path: str, prefix: str) -> None:
    """C121, C169"""
    text = json.dumps({path: {"step": 1}}).encode()
    saved = Checkpoint(model=linear(), optimizer=Forged(extra_state=text), stray=torch.ones(1)).save(prefix)
    model, optimizer = trained(momentum)
    before = copy.deepcopy(optimizer.state_dict())

    Checkpoint(model=model, optimizer=optimizer, stray=torch.ones(1)).restore(saved)

    assert is_same(optimizer.state_dict(), before)


@pytest.mark.parametrize("missing", ["exp_avg", "exp_avg_sq", "step"])
def test_an_incomplete_set_of_slots_is_not_given_to_a_fresh_optimizer(missing: str, prefix: str) -> None:
    """C105: it would break the next step. Another program's file may hold one."""
    model, optimizer = trained()
    slots = {name: [(model.weight, value)] for name, value in optimizer.state[model.weight].items() if name != missing}
    path = Checkpoint(model=model, optimizer=Forged(slots)).save(prefix)
    other = linear(1)
    other_optimizer = adam(other)

    status = Checkpoint(model=other, optimizer=other_optimizer).restore(path)

    assert other_optimizer.state_dict()["state"] == {}
    train(other, other_optimizer)
    with pytest.raises(AssertionError, match=r"\(root\)\.optimizer"):
        status.assert_consumed()


def test_another_programs_slots_go_in_place_of_those_that_are_there(prefix: str) -> None:
    """C104"""
    model, optimizer = trained()
    forged_model = linear()
    slots = {name: [(forged_model.weight, torch.full((2, 3), 7.0))] for name in ("exp_avg", "exp_avg_sq")}
    path = Checkpoint(model=forged_model, optimizer=Forged(slots)).save(prefix)

    Checkpoint(model=model, optimizer=optimizer).restore(path)

    state = optimizer.state[model.weight]
    assert torch.equal(state["exp_avg"], torch.full((2, 3), 7.0))
    assert torch.equal(state["step"], torch.tensor(1.0))
    train(model, optimizer)


@pytest.mark.parametrize("shape", [(), (3, 2), (1, 2, 3)], ids=str)
def test_a_slot_of_another_shape_than_the_live_one_is_a_mismatch_and_nothing_changes(
    shape: tuple[int, ...], prefix: str
) -> None:
    """C065, C122"""
    saved = linear(5)
    path = Checkpoint(model=saved, optimizer=Forged({"exp_avg": [(saved.weight, torch.ones(shape))]})).save(prefix)
    model, optimizer = trained()
    before = everything(model, optimizer)

    with pytest.raises(MismatchError, match=r"optimizer's state 'exp_avg' for \(root\)\.model\.weight: .*shape"):
        Checkpoint(model=model, optimizer=optimizer).restore(path)

    assert is_same(everything(model, optimizer), before)


# Devices and implementations.

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]
FLAGS: dict[str, dict[str, bool]] = {
    "for loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
    "amsgrad, maximize": {"amsgrad": True, "maximize": True},
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_each_implementation_goes_on_from_restored_slots_on_the_parameters_device(
    flags: dict[str, bool], device: str, prefix: str
) -> None:
    """C124"""
    if flags.get("capturable") and device == "cpu":
        pytest.skip("capturable steps need an accelerator")

    def make(seed: int) -> tuple[nn.Linear, optim.Adam]:
        model = linear(seed).to(device)
        return model, optim.Adam(model.parameters(), **flags)  # type: ignore[arg-type]

    def step(model: nn.Linear, optimizer: Optimizer) -> None:
        model(torch.ones(1, 3, device=device)).sum().backward()
        optimizer.step()

    model, optimizer = make(0)
    step(model, optimizer)
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other, other_optimizer = make(1)
    Checkpoint(model=other, optimizer=other_optimizer).restore(path).assert_consumed()

    for parameter, twin in itertools.zip_longest(model.parameters(), other.parameters()):
        devices = {name: slot.device for name, slot in optimizer.state[parameter].items()}
        assert {name: slot.device for name, slot in other_optimizer.state[twin].items()} == devices
    model.zero_grad()
    step(model, optimizer)
    step(other, other_optimizer)
    assert is_same(everything(other, other_optimizer)[:2], everything(model, optimizer)[:2])


@pytest.mark.parametrize("saved", [False, True], ids=["saved for loop", "saved foreach"])
@pytest.mark.parametrize("live", [False, True], ids=["live for loop", "live foreach"])
def test_the_implementation_is_a_hyper_parameter_like_the_others(saved: bool, live: bool, prefix: str) -> None:
    """C103, C124: what was saved decides, as in PyTorch's own load_state_dict."""
    model, optimizer = trained(lambda model: optim.Adam(model.parameters(), foreach=saved))
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other = linear(1)
    other_optimizer = optim.Adam(other.parameters(), foreach=live)

    Checkpoint(model=other, optimizer=other_optimizer).restore(path).assert_consumed()

    assert other_optimizer.param_groups[0]["foreach"] is saved
    train(other, other_optimizer)


def test_slots_of_a_parameter_with_another_memory_format_keep_it(prefix: str) -> None:
    """C057, C124"""
    model = nn.Conv2d(2, 3, 2)
    optimizer = momentum(model)
    model(torch.ones(1, 2, 3, 3)).sum().backward()
    optimizer.step()
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)

    other = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    other_optimizer = momentum(other)
    Checkpoint(model=other, optimizer=other_optimizer).restore(path).assert_consumed()

    buffer = other_optimizer.state[other.weight]["momentum_buffer"]
    assert buffer.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(buffer, optimizer.state[model.weight]["momentum_buffer"])


def test_what_a_subclass_adds_to_its_state_dict_is_refused_by_name(prefix: str) -> None:
    """C168: it would be lost without a word."""

    class WithBeta(optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "beta": 7.0}

    model = linear()
    with pytest.raises(UnsupportedValueError, match=r"\(root\)\.o\.param_groups cannot be saved: With.*beta'\]"):
        Checkpoint(model=model, o=WithBeta(model.parameters(), lr=0.1)).write(prefix)


def test_a_users_own_kind_takes_the_state_of_what_it_derives_from(prefix: str) -> None:
    class MyAdam(optim.Adam):
        pass

    model, other = linear(), linear(1)
    optimizer = adam(model, lr=0.5)
    train(model, optimizer)
    Checkpoint(model=model, optimizer=optimizer).write(prefix, FAST)
    other_optimizer = MyAdam(other.parameters(), lr=0.1)

    Checkpoint(model=other, optimizer=other_optimizer).read(prefix).assert_consumed()

    assert other_optimizer.param_groups[0]["lr"] == 0.5


def test_hyper_parameters_of_an_empty_group_are_never_called_consumed(prefix: str) -> None:
    """C103"""

    def make(lr: float) -> optim.SGD:
        optimizer = optim.SGD([torch.ones(1, requires_grad=True)], lr=1.0)
        optimizer.param_groups[0]["params"].clear()
        optimizer.param_groups[0]["lr"] = lr
        return optimizer

    Checkpoint(o=make(0.3)).write(prefix, FAST)

    with pytest.raises(AssertionError, match="group 0 of 0 parameters"):
        Checkpoint(o=make(9.0)).read(prefix).assert_consumed()
