"""Optimizers, their parameters and what goes with them, in every order of creation, restore and attachment."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import witness
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LRScheduler, StepLR

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import MismatchError


def linear(value: float = 0.0) -> nn.Linear:
    module = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        module.weight.fill_(value)
    return module


def train(optimizer: Optimizer, num_steps: int = 1) -> None:
    """With gradients that need no model."""
    for _ in range(num_steps):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = parameter.detach() + 1
        optimizer.step()


def parameters_of(*modules: nn.Module) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters()]


def slots_of(optimizer: Optimizer, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in optimizer.state.get(parameter, {}).items()}


def is_same_state(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def num_hooks(optimizer: Optimizer) -> int:
    return (
        len(optimizer._optimizer_step_pre_hooks)
        + len(optimizer._optimizer_load_state_dict_pre_hooks)
        + len(optimizer._optimizer_load_state_dict_post_hooks)
    )


class Saved:
    """Two layers with an optimizer that has a group for each, trained and saved."""

    def __init__(
        self, prefix: str, value: float = 1.0, make: Callable[..., Optimizer] = Adam, lr: float = 0.25
    ) -> None:
        self.first, self.second = linear(value), linear(value + 1)
        self.optimizer = two_groups(self.first, self.second, make, lr)
        train(self.optimizer, 2)
        self.path = self.checkpoint().write(prefix)

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(first=self.first, second=self.second, optimizer=self.optimizer)

    def slots(self, name: str) -> dict[str, torch.Tensor]:
        return slots_of(self.optimizer, getattr(self, name).weight)


def two_groups(
    first: nn.Linear, second: nn.Linear, make: Callable[..., Optimizer] = Adam, lr: float = 0.5
) -> Optimizer:
    return make([{"params": [first.weight], "lr": lr}, {"params": [second.weight], "lr": lr / 2}])


def rates(optimizer: Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


# ------------------------------------------------------------------------------------------------ every order


class Loader:
    """Hands out numbered batches."""

    def __init__(self) -> None:
        self.position = 0

    def batch(self) -> torch.Tensor:
        self.position += 1
        return torch.full((2, 2), float(self.position))

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


class Program:
    """A training program that makes its parts when they are asked for."""

    def __init__(self, value: float) -> None:
        self._value = value
        self._parts: dict[str, Any] = {}

    def part(self, name: str) -> Any:
        if name not in self._parts:
            self._parts[name] = getattr(self, f"_{name}")()
        return self._parts[name]

    def _model(self) -> nn.Module:
        return nn.Sequential(linear(self._value), nn.Tanh(), linear(self._value))

    def _optimizer(self) -> Optimizer:
        return AdamW(self.part("model").parameters(), lr=self._value)

    def _schedule(self) -> LRScheduler:
        return StepLR(self.part("optimizer"), step_size=2, gamma=0.5)

    def _loader(self) -> Loader:
        return Loader()

    def train(self, num_steps: int) -> None:
        model, optimizer, schedule, loader = (self.part(name) for name in PARTS)
        for _ in range(num_steps):
            optimizer.zero_grad()
            (model(loader.batch()) - 1).square().sum().backward()
            optimizer.step()
            schedule.step()

    def everything(self) -> Any:
        return {name: self.part(name).state_dict() for name in PARTS}


PARTS = ("model", "optimizer", "schedule", "loader")


def is_same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(is_same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(is_same, left, right))
    return bool(left == right)


@pytest.mark.parametrize("order", list(itertools.permutations(PARTS)), ids="-".join)
def test_training_goes_on_bit_for_bit_in_every_order_of_creation_restore_and_attachment(
    prefix: str, order: tuple[str, ...]
) -> None:
    """C105, C106, C107, C111"""
    saved = Program(0.5)
    saved.train(3)
    Checkpoint(**{name: saved.part(name) for name in PARTS}).write(prefix)
    saved.train(3)
    for num_attached_before in range(len(order) + 1):
        for are_made_first in (False, True):
            live = Program(0.75)
            if are_made_first:
                live.everything()
            checkpoint = Checkpoint(**{name: live.part(name) for name in order[:num_attached_before]})
            status = checkpoint.read(prefix)
            for name in order[num_attached_before:]:
                setattr(checkpoint, name, live.part(name))
            status.assert_consumed()
            live.train(3)
            assert is_same(live.everything(), saved.everything())
            assert num_hooks(live.part("optimizer")) == 0


# --------------------------------------------------------------------------------------------- late parameters


@pytest.mark.parametrize("make", [Adam, RMSprop, lambda groups: SGD(groups, momentum=0.9)], ids=["adam", "rms", "sgd"])
def test_a_parameter_group_that_is_added_gets_its_slots_by_the_next_step(
    prefix: str, make: Callable[..., Optimizer]
) -> None:
    """C107"""
    saved = Saved(prefix, make=make)
    first, second = linear(), linear()
    optimizer = make([{"params": [first.weight], "lr": 9.0}])
    status = Checkpoint(first=first, second=second, optimizer=optimizer).read(saved.path)
    optimizer.add_param_group({"params": [second.weight], "lr": 9.0})
    train(optimizer)
    train(saved.optimizer)
    assert is_same_state(slots_of(optimizer, first.weight), saved.slots("first"))
    assert is_same_state(slots_of(optimizer, second.weight), saved.slots("second"))
    assert rates(optimizer) == rates(saved.optimizer)
    assert torch.equal(second.weight, saved.second.weight)
    status.assert_consumed()
    assert num_hooks(optimizer) == 0


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.* is deprecated:DeprecationWarning")  # of torch's own
def test_a_compiled_step_gives_an_added_group_its_slots_as_well(prefix: str) -> None:
    """C107"""
    saved = Saved(prefix)
    first, second = linear(), linear()
    optimizer = Adam([first.weight])
    Checkpoint(first=first, second=second, optimizer=optimizer).read(saved.path)
    optimizer.add_param_group({"params": [second.weight]})
    for parameter in (first.weight, second.weight):
        parameter.grad = parameter.detach() + 1
    torch.compile(optimizer.step, backend="eager")()
    train(saved.optimizer)
    assert is_same_state(slots_of(optimizer, second.weight), saved.slots("second"))
    assert num_hooks(optimizer) == 0


def test_a_parameter_that_takes_another_s_place_in_the_optimizer_gets_its_slots(prefix: str) -> None:
    """C107: the number of parameters stays as it was."""
    saved = Saved(prefix)
    first, second = linear(), linear()
    optimizer = Adam([first.weight])
    Checkpoint(first=first, second=second, optimizer=optimizer).read(saved.path)
    optimizer.param_groups[0]["params"][0] = second.weight
    train(optimizer)
    train(saved.optimizer)
    assert is_same_state(slots_of(optimizer, second.weight), saved.slots("second"))


@pytest.mark.parametrize("order", list(itertools.permutations(["module", "group", "optimizer"])), ids="-".join)
def test_module_group_and_optimizer_come_in_any_order(prefix: str, order: tuple[str, ...]) -> None:
    """C106, C107"""
    saved = Saved(prefix)
    first, second = linear(), linear()
    optimizer = Adam([{"params": [first.weight], "lr": 9.0}])
    checkpoint = Checkpoint(first=first)
    status = checkpoint.read(saved.path)
    for step in order:
        if step == "group":
            optimizer.add_param_group({"params": [second.weight], "lr": 9.0})
        else:
            setattr(checkpoint, {"module": "second"}.get(step, step), second if step == "module" else optimizer)
    train(optimizer)
    train(saved.optimizer)
    assert is_same_state(slots_of(optimizer, second.weight), saved.slots("second"))
    assert rates(optimizer) == rates(saved.optimizer)
    status.assert_consumed()


def test_a_save_right_after_a_group_was_added_has_its_slots_and_hyper_parameters(prefix: str) -> None:
    """C107"""
    saved = Saved(prefix)
    first, second = linear(), linear()
    optimizer = Adam([{"params": [first.weight], "lr": 9.0}])
    checkpoint = Checkpoint(first=first, second=second, optimizer=optimizer)
    checkpoint.read(saved.path)
    optimizer.add_param_group({"params": [second.weight], "lr": 9.0})
    checkpoint.write(prefix + "-again")
    values = [witness.read_bundle(path) for path in (saved.path, prefix + "-again")]
    assert values[0].keys() == values[1].keys()
    assert [key for key in values[0] if values[0][key].data != values[1][key].data] == []


def test_a_save_right_after_a_group_was_added_has_its_irregular_state(prefix: str) -> None:
    """C107, C121: SparseAdam counts its steps in a plain number."""

    def table() -> nn.Embedding:
        return nn.Embedding(3, 2, sparse=True)

    saved, live = (table(), table()), (table(), table())
    optimizer = torch.optim.SparseAdam(parameters_of(*saved))
    torch.stack([part(torch.tensor([1])).sum() for part in saved]).sum().backward()
    optimizer.step()
    Checkpoint(first=saved[0], second=saved[1], optimizer=optimizer).write(prefix)
    other = torch.optim.SparseAdam(live[0].parameters())
    checkpoint = Checkpoint(second=live[1], optimizer=other)
    checkpoint.read(prefix).expect_partial()
    other.add_param_group({"params": list(live[1].parameters())})
    checkpoint.write(prefix + "-again")
    assert other.state[live[1].weight]["step"] == 1
    state = witness.read_bundle(prefix + "-again")["optimizer/extra_state/.ATTRIBUTES/py_state"]
    assert b'"second/weight"' in state.data[0]


def test_what_the_user_changed_meanwhile_is_not_written_again_when_another_group_comes(prefix: str) -> None:
    """C103, C107"""
    saved = Saved(prefix)
    first, second = linear(), linear()
    optimizer = Adam([{"params": [first.weight], "lr": 9.0}])
    Checkpoint(first=first, second=second, optimizer=optimizer).read(saved.path)
    optimizer.param_groups[0]["lr"] = 0.0625
    optimizer.state[first.weight]["exp_avg"].fill_(7.0)
    optimizer.add_param_group({"params": [second.weight], "lr": 9.0})
    optimizer.zero_grad()
    optimizer.step()
    assert rates(optimizer) == [0.0625, rates(saved.optimizer)[1]]
    assert torch.equal(optimizer.state[first.weight]["exp_avg"], torch.full((2, 2), 7.0))


def test_a_late_module_whose_group_does_not_fit_those_before_is_refused(prefix: str) -> None:
    """C122: one live group cannot take the hyper-parameters of two, whenever they come."""
    saved = Saved(prefix)
    first, second = linear(), linear()
    optimizer = Adam([first.weight, second.weight], lr=9.0)
    checkpoint = Checkpoint(first=first, optimizer=optimizer)
    checkpoint.read(saved.path).expect_partial()
    with pytest.raises(MismatchError, match=r"live group 0 has parameters of stored groups 0 .*and 1 "):
        checkpoint.second = second
    assert rates(optimizer) == rates(saved.optimizer)[:1]
    assert not second.weight.any()
    assert second.weight not in optimizer.state


def test_a_late_parameter_whose_group_does_not_fit_those_before_is_refused(prefix: str) -> None:
    """C122"""
    saved = Saved(prefix)
    first, second = linear(), linear()
    optimizer = Adam([first.weight], lr=9.0)
    Checkpoint(first=first, second=second, optimizer=optimizer).read(saved.path).expect_partial()
    optimizer.param_groups[0]["params"].append(second.weight)
    with pytest.raises(MismatchError, match=r"live group 0 has parameters of stored groups 0 .*and 1 "):
        optimizer.step()
    assert rates(optimizer) == rates(saved.optimizer)[:1]
    assert second.weight not in optimizer.state


def test_slots_that_do_not_fit_are_an_error_of_the_step_that_would_use_them(prefix: str) -> None:
    """C086"""
    saved = Saved(prefix)
    first, second = linear(), linear()
    optimizer = Adam([first.weight])
    Checkpoint(first=first, second=second, optimizer=optimizer).read(saved.path)
    optimizer.add_param_group({"params": [second.weight]})
    optimizer.state[second.weight] = {name: torch.zeros(3) for name in ("step", "exp_avg", "exp_avg_sq")}
    before = second.weight.detach().clone()
    second.weight.grad = torch.ones(2, 2)
    with pytest.raises(MismatchError, match=r"optimizer's state 'exp_avg' for \(root\)\.second\.weight"):
        optimizer.step()
    assert torch.equal(second.weight, before)


def test_slots_of_an_optimizer_that_never_comes_are_named(prefix: str) -> None:
    """C118"""
    saved = Saved(prefix)
    checkpoint = Checkpoint(first=linear(), second=linear())
    status = checkpoint.read(saved.path)
    with pytest.raises(AssertionError, match=r"\(root\)\.optimizer's state 'exp_avg' for \(root\)\.first\.weight"):
        status.assert_consumed()
    status.assert_existing_objects_matched()
    checkpoint.optimizer = two_groups(checkpoint.first, checkpoint.second)
    status.assert_consumed()


def test_slots_of_a_parameter_that_the_optimizer_never_gets_are_named(prefix: str) -> None:
    """C118"""
    saved = Saved(prefix)
    first, second = linear(), linear()
    status = Checkpoint(first=first, second=second, optimizer=Adam([first.weight])).read(saved.path)
    with pytest.raises(AssertionError, match=r"\(root\)\.optimizer's state 'exp_avg' for \(root\)\.second\.weight"):
        status.assert_consumed()


@pytest.mark.parametrize("order", list(itertools.permutations(["first", "second", "optimizer"])), ids="-".join)
def test_the_slots_of_a_parameter_that_was_two_come_from_where_its_value_came(
    prefix: str, order: tuple[str, ...]
) -> None:
    """C123, C136: two saved parameters, tied in the program."""
    saved = {"first": linear(1.0), "second": linear(2.0)}
    theirs = Adam(parameters_of(*saved.values()))
    train(theirs)
    Checkpoint(**saved, optimizer=theirs).write(prefix)
    first, second = linear(), linear()
    second.weight = first.weight
    parts = {"first": first, "second": second, "optimizer": Adam([first.weight])}
    checkpoint = Checkpoint()
    checkpoint.read(prefix).expect_partial()
    for name in order:
        setattr(checkpoint, name, parts[name])
    source = saved[next(name for name in order if name != "optimizer")]
    assert torch.equal(first.weight, source.weight)
    assert is_same_state(slots_of(checkpoint.optimizer, first.weight), slots_of(theirs, source.weight))


# ------------------------------------------------------------------------------------------- two files


def test_the_model_of_one_file_and_the_optimizer_of_another_do_not_disturb_each_other(prefix: str) -> None:
    """C114"""
    model_of = Saved(prefix + "-model", 1.0)
    optimizer_of = Saved(prefix + "-optimizer", 5.0)
    for late in itertools.permutations(["first", "second", "optimizer"]):
        first, second = linear(), linear()
        parts = {"first": first, "second": second, "optimizer": two_groups(first, second)}
        checkpoint = Checkpoint()
        checkpoint.read(optimizer_of.path).expect_partial()
        model_of_path = Checkpoint(first=model_of.first, second=model_of.second).write(prefix + "-only")
        checkpoint.read(model_of_path).expect_partial()
        for name in late:
            setattr(checkpoint, name, parts[name])
        assert torch.equal(first.weight, model_of.first.weight)
        assert torch.equal(second.weight, model_of.second.weight)
        assert is_same_state(slots_of(checkpoint.optimizer, second.weight), optimizer_of.slots("second"))


# ---------------------------------------------------------------------------------------- load_state_dict


def loaded(optimizer: Optimizer) -> dict[str, Any]:
    """A state that the user brings along, of the optimizer's groups, in which everything is 3."""
    other = copy.deepcopy(optimizer)
    train(other)
    state = other.state_dict()
    for slots in state["state"].values():
        for slot in slots.values():
            slot.fill_(3.0)
    for group in state["param_groups"]:
        group["lr"] = 3.0
    return state


def is_loaded(optimizer: Optimizer, parameter: torch.Tensor) -> bool:
    return all(bool((slot == 3.0).all()) for slot in optimizer.state[parameter].values())


def test_a_state_that_the_user_loads_wins_over_what_waits(prefix: str) -> None:
    saved = Saved(prefix)
    first, second = linear(), linear()
    optimizer = two_groups(first, second)
    checkpoint = Checkpoint(first=first, optimizer=optimizer)
    status = checkpoint.read(saved.path)
    optimizer.load_state_dict(loaded(optimizer))
    checkpoint.second = second
    assert torch.equal(second.weight, saved.second.weight)
    assert is_loaded(optimizer, second.weight)
    assert is_loaded(optimizer, first.weight)
    assert rates(optimizer) == [3.0, 3.0]
    status.assert_consumed()


def test_a_state_that_the_user_loads_wins_over_what_an_added_group_waits_for(prefix: str) -> None:
    saved = Saved(prefix)
    first, second = linear(), linear()
    optimizer = Adam([first.weight])
    Checkpoint(first=first, second=second, optimizer=optimizer).read(saved.path)
    optimizer.add_param_group({"params": [second.weight]})
    optimizer.load_state_dict(loaded(optimizer))
    optimizer.zero_grad()
    optimizer.step()
    assert is_loaded(optimizer, second.weight)
    assert rates(optimizer) == [3.0, 3.0]


def test_what_waits_is_offered_for_parameters_that_the_loaded_state_has_nothing_for(prefix: str) -> None:
    saved = Saved(prefix)
    first, second = linear(), linear()
    optimizer = Adam([first.weight])
    Checkpoint(first=first, second=second, optimizer=optimizer).read(saved.path)
    optimizer.add_param_group({"params": [second.weight]})
    state = loaded(optimizer)
    del state["state"][1]
    optimizer.load_state_dict(state)
    assert is_loaded(optimizer, first.weight)
    assert is_same_state(slots_of(optimizer, second.weight), saved.slots("second"))
    assert num_hooks(optimizer) == 0


def test_slots_of_a_parameter_that_comes_after_the_load_still_find_their_place(prefix: str) -> None:
    saved = Saved(prefix)
    first, second = linear(), linear()
    optimizer = Adam([first.weight])
    Checkpoint(first=first, second=second, optimizer=optimizer).read(saved.path)
    optimizer.load_state_dict(loaded(optimizer))
    optimizer.add_param_group({"params": [second.weight]})
    optimizer.zero_grad()
    optimizer.step()
    assert is_loaded(optimizer, first.weight)
    assert is_same_state(slots_of(optimizer, second.weight), saved.slots("second"))


# -------------------------------------------------------------------------------------------------- hooks


def waiting_optimizer(path: str) -> tuple[nn.Linear, nn.Linear, Optimizer, Checkpoint]:
    first, second = linear(), linear()
    optimizer = Adam([first.weight])
    checkpoint = Checkpoint(first=first, second=second, optimizer=optimizer)
    checkpoint.read(path).expect_partial()
    assert num_hooks(optimizer) == 3
    return first, second, optimizer, checkpoint


@pytest.mark.parametrize("end", ["step", "load"])
def test_hooks_of_the_user_do_not_mind_the_end_of_a_wait(prefix: str, end: str) -> None:
    _, second, optimizer, checkpoint = waiting_optimizer(Saved(prefix).path)
    seen: list[str] = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: seen.append("step")),
        optimizer.register_load_state_dict_pre_hook(lambda *_: seen.append("load")),
        optimizer.register_load_state_dict_post_hook(lambda *_: seen.append("loaded")),
    ]
    optimizer.add_param_group({"params": [second.weight]})
    if end == "step":
        optimizer.step()
    else:
        optimizer.load_state_dict(optimizer.state_dict())
    assert seen == (["step"] if end == "step" else ["load", "loaded"])
    assert optimizer.state[second.weight]["step"] == 2
    for handle in handles:
        handle.remove()
    # Those that could not be removed serve the next wait, and go with it.
    checkpoint.read(Saved(prefix + "-other").path)
    assert num_hooks(optimizer) in (0, 3)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda value: pickle.loads(pickle.dumps(value))])
def test_nothing_waits_for_the_parameters_of_a_copied_optimizer(prefix: str, duplicate: Callable[[Any], Any]) -> None:
    """C096"""
    _, second, optimizer, _ = waiting_optimizer(Saved(prefix).path)
    other = duplicate(optimizer)
    assert num_hooks(other) == 0
    if duplicate is not copy.copy:
        other.add_param_group({"params": [second.weight]})
        other.step()
        assert second.weight not in other.state


def test_other_optimizers_of_the_same_parameters_are_left_alone(prefix: str) -> None:
    """C096"""
    _, second, optimizer, _ = waiting_optimizer(Saved(prefix).path)
    other = Adam([second.weight])
    other.step()
    assert num_hooks(other) == 0
    assert not other.state
    optimizer.add_param_group({"params": [second.weight]})
    optimizer.step()
    assert second.weight in optimizer.state


def test_what_waits_for_an_optimizer_forms_no_cycle_with_it(prefix: str) -> None:
    """C089"""
    path = Saved(prefix).path
    gc.collect()
    gc.disable()
    try:
        first, second, optimizer, checkpoint = waiting_optimizer(path)
        gone = [weakref.ref(value) for value in (first, second, optimizer, checkpoint)]
        del first, second, optimizer, checkpoint
        assert [reference() for reference in gone] == [None] * 4
    finally:
        gc.enable()
