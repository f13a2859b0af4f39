"""Lazy modules, whose parameters have no memory before the first forward pass, and the optimizers that hold them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import MismatchError

Make = Callable[[], nn.Module]

KINDS: dict[str, tuple[Make, Make, torch.Tensor]] = {
    "linear": (lambda: nn.Linear(3, 2), lambda: nn.LazyLinear(2), torch.ones(4, 3)),
    "no_bias": (lambda: nn.Linear(3, 2, bias=False), lambda: nn.LazyLinear(2, bias=False), torch.ones(4, 3)),
    "conv": (lambda: nn.Conv1d(3, 2, 2), lambda: nn.LazyConv1d(2, 2), torch.ones(1, 3, 5)),
    "conv2d": (lambda: nn.Conv2d(3, 2, 2), lambda: nn.LazyConv2d(2, 2), torch.ones(1, 3, 5, 5)),
    "transposed": (
        lambda: nn.ConvTranspose1d(3, 2, 2),
        lambda: nn.LazyConvTranspose1d(2, 2),
        torch.ones(1, 3, 5),
    ),
    "norm": (lambda: nn.BatchNorm1d(3), lambda: nn.LazyBatchNorm1d(), torch.arange(12.0).reshape(4, 3)),
    "norm_in_eval": (
        lambda: nn.BatchNorm2d(3).eval(),
        lambda: nn.LazyBatchNorm2d().eval(),
        torch.arange(24.0).reshape(2, 3, 2, 2),
    ),
}
EACH_KIND = pytest.mark.parametrize("kind", list(KINDS))


def randomized(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return module


def assert_same_values(live: nn.Module, saved: nn.Module) -> None:
    found, expected = live.state_dict(), saved.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def num_hooks(module: nn.Module) -> int:
    return sum(len(part._load_state_dict_pre_hooks) + len(part._forward_pre_hooks) for part in module.modules())


# ------------------------------------------------------------------------------------- the first forward pass


@EACH_KIND
def test_a_lazy_module_uses_the_stored_values_in_its_first_forward_pass(prefix: str, kind: str) -> None:
    """C077"""
    make, make_lazy, data = KINDS[kind]
    saved, live = randomized(make()), make_lazy()
    Checkpoint(net=saved).write(prefix)
    status = Checkpoint(net=live).read(prefix)
    assert torch.equal(live(data), saved(data))
    assert_same_values(live, saved)
    status.assert_consumed()
    assert num_hooks(live) == 0


@EACH_KIND
def test_a_lazy_module_in_a_sequential_that_is_appended_later_likewise(prefix: str, kind: str) -> None:
    """C078"""
    make, make_lazy, data = KINDS[kind]
    saved = nn.Sequential(nn.Identity(), randomized(make()))
    Checkpoint(net=saved).write(prefix)
    live = nn.Sequential(nn.Identity())
    status = Checkpoint(net=live).read(prefix)
    live.append(make_lazy().train(saved[1].training))
    assert torch.equal(live(data), saved(data))
    assert_same_values(live, saved)
    status.assert_consumed()


@EACH_KIND
def test_what_a_lazy_module_saves_after_a_forward_pass_is_restored_into_a_fresh_one(prefix: str, kind: str) -> None:
    """C077"""
    _, make_lazy, data = KINDS[kind]
    saved, live = make_lazy(), make_lazy()
    saved(data)
    Checkpoint(net=saved).write(prefix)
    status = Checkpoint(net=live).read(prefix)
    assert_same_values(live, saved)
    status.assert_consumed()


def no_bias() -> nn.Linear:
    module = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        module.weight.fill_(0.5)
    return module


@pytest.mark.parametrize("late", [False, True])
def test_values_of_some_lazy_parameters_land_between_their_making_and_their_first_use(prefix: str, late: bool) -> None:
    """C077, C078: the file has no bias, and the lazy module makes all of its parameters, or none."""
    Checkpoint(net=nn.Sequential(no_bias())).write(prefix)
    live, lazy = nn.Sequential(), nn.LazyLinear(2)
    if not late:
        live.append(lazy)
    status = Checkpoint(net=live).read(prefix)
    if late:
        live.append(lazy)
    data = torch.ones(1, 3)
    result = live(data)
    assert torch.equal(lazy.weight, torch.full((2, 3), 0.5))
    assert torch.equal(result, torch.nn.functional.linear(data, lazy.weight, lazy.bias))
    assert num_hooks(live) == 0
    with pytest.raises(AssertionError, match=r"\(root\)\.net\.0\.bias"):
        status.assert_existing_objects_matched()


def test_values_that_landed_are_not_written_again_by_later_forward_passes(prefix: str) -> None:
    """C080"""
    Checkpoint(net=no_bias()).write(prefix)
    live = nn.LazyLinear(2)
    Checkpoint(net=live).read(prefix)
    live(torch.ones(1, 3))
    with torch.no_grad():
        live.weight.fill_(7.0)
    live(torch.ones(1, 3))
    assert torch.equal(live.weight, torch.full((2, 3), 7.0))


def test_a_first_pass_that_makes_another_shape_is_an_error_of_that_pass(prefix: str) -> None:
    """C086"""
    Checkpoint(net=no_bias()).write(prefix)
    live = nn.LazyLinear(2)
    Checkpoint(net=live).read(prefix)
    with pytest.raises(MismatchError, match=r"shape \[2, 3\].* shape \[2, 4\]"):
        live(torch.ones(1, 4))


def test_a_lazy_module_of_another_dtype_is_refused_when_it_comes(prefix: str) -> None:
    """C086"""
    Checkpoint(net=nn.Sequential(nn.BatchNorm1d(3))).write(prefix)
    live = nn.Sequential()
    Checkpoint(net=live).read(prefix)
    with pytest.raises(MismatchError, match="dtype"):
        live.append(nn.LazyBatchNorm1d(dtype=torch.float64))
    assert len(live) == 0
    live.append(nn.LazyBatchNorm1d())
    assert live[0].running_mean.shape == (3,)


def test_a_module_that_was_copied_before_its_first_pass_is_as_lazy_as_the_original(prefix: str) -> None:
    """C096"""
    Checkpoint(net=no_bias()).write(prefix)
    live = nn.LazyLinear(2)
    Checkpoint(net=live).read(prefix)
    other = copy.deepcopy(live)
    other(torch.ones(1, 3))
    assert not torch.equal(other.weight, torch.full((2, 3), 0.5))
    live(torch.ones(1, 3))
    assert torch.equal(live.weight, torch.full((2, 3), 0.5))


# -------------------------------------------------------------------------------------------- load_state_dict


def test_what_the_caller_loads_into_a_lazy_module_wins_over_what_waits(prefix: str) -> None:
    Checkpoint(net=no_bias()).write(prefix)
    live = nn.LazyLinear(2)
    Checkpoint(net=live).read(prefix)
    live.load_state_dict({"weight": torch.full((2, 3), 7.0), "bias": torch.full((2,), 7.0)})
    live(torch.ones(1, 3))
    assert torch.equal(live.weight, torch.full((2, 3), 7.0))
    assert num_hooks(live) == 0


def test_what_waits_for_a_lazy_module_is_offered_to_load_state_dict(prefix: str) -> None:
    Checkpoint(net=no_bias()).write(prefix)
    live = nn.Sequential(nn.LazyLinear(2))
    Checkpoint(net=live[0]).read(prefix)
    live.load_state_dict({"0.bias": torch.full((2,), 7.0)})
    live(torch.ones(1, 3))
    assert torch.equal(live[0].weight, torch.full((2, 3), 0.5))
    assert torch.equal(live[0].bias, torch.full((2,), 7.0))


def test_what_waits_is_not_offered_where_the_rest_of_a_lazy_module_stays_unmade(prefix: str) -> None:
    """torch's first forward pass would fail on a module that is half made."""
    Checkpoint(net=no_bias()).write(prefix)
    live = nn.LazyLinear(2)
    Checkpoint(net=live).read(prefix)
    with pytest.raises(RuntimeError, match="Missing key"):
        live.load_state_dict({})
    live.load_state_dict({}, strict=False)
    live(torch.ones(1, 3))
    assert torch.equal(live.weight, torch.full((2, 3), 0.5))


def test_what_the_caller_assigns_to_a_lazy_module_wins_as_well(prefix: str) -> None:
    Checkpoint(net=no_bias()).write(prefix)
    live = nn.LazyLinear(2)
    Checkpoint(net=live).read(prefix)
    live.load_state_dict({"bias": torch.full((2,), 7.0)}, assign=True)
    live(torch.ones(1, 3))
    assert torch.equal(live.weight, torch.full((2, 3), 0.5))
    assert torch.equal(live.bias, torch.full((2,), 7.0))


# ---------------------------------------------------------------------------------------------- optimizers


def step(net: nn.Module, optimizer: torch.optim.Optimizer, data: torch.Tensor) -> None:
    optimizer.zero_grad()
    net(data).square().sum().backward()
    optimizer.step()


def state_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    slots = [optimizer.state[p][name] for p in net.parameters() for name in sorted(optimizer.state[p])]
    return [*(value.clone() for value in net.state_dict().values()), *(slot.clone() for slot in slots)]


def assert_equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    assert len(left) == len(right)
    assert all(map(torch.equal, left, right))


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.Adamax, torch.optim.NAdam])
@pytest.mark.parametrize("late", [[], ["net"], ["optimizer"], ["net", "optimizer"], ["optimizer", "net"]], ids=str)
def test_training_goes_on_with_an_optimizer_that_holds_the_lazy_parameters(
    prefix: str, make: Callable[..., torch.optim.Optimizer], late: list[str]
) -> None:
    """C109, C110: the parameters stay the same objects, so the optimizer's state is theirs."""
    data = torch.arange(6.0).reshape(2, 3)
    saved = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = make(saved.parameters(), lr=0.125)
    step(saved, optimizer, data)
    Checkpoint(net=saved, optimizer=optimizer).write(prefix)
    net = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(2))
    live = {"net": net, "optimizer": make(net.parameters(), lr=1.0)}
    parameters = list(net.parameters())
    checkpoint = Checkpoint(**{name: value for name, value in live.items() if name not in late})
    status = checkpoint.read(prefix)
    for name in late:
        setattr(checkpoint, name, live[name])
    status.assert_consumed()
    assert all(now is before for now, before in zip(net.parameters(), parameters, strict=True))
    for _ in range(2):
        step(saved, optimizer, data)
        step(net, live["optimizer"], data)  # type: ignore[arg-type]
    assert_equal(state_of(net, live["optimizer"]), state_of(saved, optimizer))  # type: ignore[arg-type]


@pytest.mark.parametrize("late", [False, True])
def test_the_slots_of_a_lazy_parameter_come_with_its_value(prefix: str, late: bool) -> None:
    """C107, C109: the file has no bias, so the weight is made by the first pass."""
    data = torch.ones(1, 3)
    saved = no_bias()
    optimizer = torch.optim.Adam(saved.parameters())
    step(saved, optimizer, data)
    Checkpoint(net=nn.Sequential(saved), optimizer=optimizer).write(prefix)
    lazy = nn.LazyLinear(2)
    net = nn.Sequential() if late else nn.Sequential(lazy)
    live = torch.optim.Adam(lazy.parameters())
    weight = lazy.weight
    Checkpoint(net=net, optimizer=live).read(prefix)
    if late:
        net.append(lazy)
    assert weight not in live.state
    net(data)
    assert lazy.weight is weight
    assert torch.equal(weight, saved.weight)
    assert live.state[weight].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert all(torch.equal(value, optimizer.state[saved.weight][name]) for name, value in live.state[weight].items())
    assert lazy.bias not in live.state
