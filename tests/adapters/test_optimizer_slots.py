"""Slot variables find their parameters again, through the graph and on their device."""

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.optimizers import FAST, adam, everything, is_same, linear, momentum, train, trained
from torch import nn, optim
from torch.optim import Optimizer

from torch_trackckpt import AutoTrackable, Checkpoint, CheckpointOptions
from torch_trackckpt.errors import (
    UnsupportedValueError,
)
from torch_trackckpt.trackable import SlotOwner

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

    with pytest.raises(AssertionError, match="a group of 0 parameters"):
        Checkpoint(o=make(9.0)).read(prefix).assert_consumed()


class Nested(SlotOwner):
    """Keeps an object with children for a tensor, which no optimizer of torch does."""

    def __init__(self, variable: torch.Tensor, slot: Any) -> None:
        self._slots = {"shadow": [(variable, slot)]}

    def _slot_variables(self) -> Mapping[str, list[tuple[torch.Tensor, torch.Tensor]]]:
        return self._slots

    def _variables_with_state(self) -> list[torch.Tensor]:
        return []


@pytest.mark.parametrize("slot", [AutoTrackable(), nn.Linear(1, 1), [torch.ones(2)]], ids=["object", "module", "list"])
def test_a_slot_with_children_of_its_own_is_refused(slot: Any, tmp_path: Path) -> None:
    """C120"""
    variable = torch.ones(2)

    with pytest.raises(UnsupportedValueError) as error:
        Checkpoint(x=variable, keeper=Nested(variable, slot)).save(tmp_path / "ckpt")

    assert str(error.value) == (
        f"The slot 'shadow' that (root).keeper keeps for (root).x is a {type(slot).__name__}; a slot is a tensor, and "
        "has no children of its own."
    )
    assert list(tmp_path.iterdir()) == []
