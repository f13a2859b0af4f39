"""What a schedule keeps for each parameter group follows the groups, which are matched by their parameters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapters.optimizers import py_state
from torch import nn
from torch.optim import SGD
from torch.optim import lr_scheduler as schedules

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import DataLossError, MismatchError

Make = Callable[[torch.optim.Optimizer], Any]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.ones(2)) for _ in range(3))


def program(groups: list[str], make: Make, rates: dict[str, float] | None = None) -> dict[str, Any]:
    """Groups are named by the parameters in them, such as ``"ab"``."""
    net = Net()
    rates = rates or {}
    optimizer = SGD(
        [{"params": [getattr(net, name) for name in group], "lr": rates.get(group, 0.5)} for group in groups],
        momentum=0.9,
    )
    return {"net": net, "optimizer": optimizer, "schedule": make(optimizer)}


def run(objects: dict[str, Any], num_steps: int) -> list[dict[str, float]]:
    """The learning rate of each parameter after each step."""
    seen = []
    names = {id(parameter): name for name, parameter in objects["net"].named_parameters()}
    for _ in range(num_steps):
        for parameter in objects["net"].parameters():
            parameter.grad = torch.ones(2)
        objects["optimizer"].step()
        is_plateau = isinstance(objects["schedule"], schedules.ReduceLROnPlateau)
        objects["schedule"].step(*([1.0] if is_plateau else []))
        groups = objects["optimizer"].param_groups
        seen.append({names[id(p)]: group["lr"] for group in groups for p in group["params"]})
    return seen


def sequential(optimizer: torch.optim.Optimizer) -> Any:
    parts = [schedules.LinearLR(optimizer, 0.1, total_iters=4), schedules.ExponentialLR(optimizer, 0.9)]
    return schedules.SequentialLR(optimizer, parts, [4])


def chained(optimizer: torch.optim.Optimizer) -> Any:
    return schedules.ChainedScheduler(
        [schedules.StepLR(optimizer, 2, 0.7), schedules.CosineAnnealingLR(optimizer, 9)], optimizer
    )


SCHEDULES: dict[str, Make] = {
    "LambdaLR": lambda optimizer: schedules.LambdaLR(optimizer, lambda step: 0.9**step),
    "MultiplicativeLR": lambda optimizer: schedules.MultiplicativeLR(optimizer, lambda step: 0.9),
    "StepLR": lambda optimizer: schedules.StepLR(optimizer, 2, 0.7),
    "LinearLR": lambda optimizer: schedules.LinearLR(optimizer, 0.1, total_iters=8),
    "CosineAnnealingLR": lambda optimizer: schedules.CosineAnnealingLR(optimizer, 9),
    "CosineAnnealingWarmRestarts": lambda optimizer: schedules.CosineAnnealingWarmRestarts(optimizer, 4),
    "OneCycleLR": lambda optimizer: schedules.OneCycleLR(
        optimizer, [10 * group["lr"] for group in optimizer.param_groups], total_steps=20
    ),
    "CyclicLR": lambda optimizer: schedules.CyclicLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        [10 * group["lr"] for group in optimizer.param_groups],
        step_size_up=3,
    ),
    "ReduceLROnPlateau": lambda optimizer: schedules.ReduceLROnPlateau(
        optimizer, patience=0, min_lr=[group["lr"] / 8 for group in optimizer.param_groups]
    ),
    "SequentialLR": sequential,
    "ChainedScheduler": chained,
}
RATES = {"a": 0.1, "bc": 0.2, "cb": 0.2}
every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)


@every_schedule
@pytest.mark.parametrize("num_before", [3, 5])
def test_each_parameter_keeps_its_rate_where_the_groups_come_in_another_order(
    make: Make, num_before: int, prefix: str
) -> None:
    saved = program(["a", "bc"], make, RATES)
    run(saved, num_before)
    Checkpoint(**saved).write(prefix)
    rebuilt = program(["cb", "a"], make, RATES)
    Checkpoint(**rebuilt).read(prefix).assert_consumed()
    assert run(rebuilt, 6) == run(saved, 6)


@every_schedule
def test_a_group_that_is_split_gives_its_rate_to_each_part(make: Make, prefix: str) -> None:
    saved = program(["abc"], make)
    run(saved, 3)
    Checkpoint(**saved).write(prefix)
    rebuilt = program(["c", "ab"], make)
    Checkpoint(**rebuilt).read(prefix).assert_consumed()
    assert run(rebuilt, 6) == run(saved, 6)


@every_schedule
def test_groups_of_equal_rates_may_be_merged(make: Make, prefix: str) -> None:
    saved = program(["a", "bc"], make)
    run(saved, 3)
    Checkpoint(**saved).write(prefix)
    rebuilt = program(["abc"], make)
    Checkpoint(**rebuilt).read(prefix).assert_consumed()
    assert run(rebuilt, 6) == run(saved, 6)


def test_merged_groups_of_other_rates_are_a_mismatch_and_nothing_changes(prefix: str) -> None:
    saved = program(["a", "bc"], SCHEDULES["StepLR"], RATES)
    run(saved, 3)
    Checkpoint(net=saved["net"], schedule=saved["schedule"]).write(prefix)
    rebuilt = program(["abc"], SCHEDULES["StepLR"])
    before = rebuilt["schedule"].state_dict()
    with pytest.raises(
        MismatchError, match=r"\(root\)\.schedule .* not clear which of the stored base_lrs \[0.1, 0.2\]"
    ):
        Checkpoint(net=rebuilt["net"], schedule=rebuilt["schedule"]).read(prefix)
    assert rebuilt["schedule"].state_dict() == before


def test_without_the_model_the_order_of_the_groups_is_all_that_is_known(prefix: str) -> None:
    saved = program(["a", "bc"], SCHEDULES["StepLR"], RATES)
    run(saved, 3)
    Checkpoint(schedule=saved["schedule"]).write(prefix)
    rebuilt = program(["a", "bc"], SCHEDULES["StepLR"], {})
    Checkpoint(schedule=rebuilt["schedule"]).read(prefix).assert_consumed()
    assert rebuilt["schedule"].base_lrs == [0.1, 0.2]


def test_groups_are_known_by_all_their_parameters(prefix: str) -> None:
    saved = program(["a", "bc"], SCHEDULES["StepLR"])
    Checkpoint(**saved).write(prefix)
    assert py_state(prefix, "schedule")["groups"] == [["net/a"], ["net/b", "net/c"]]


def with_a_parameter_outside(names: str) -> dict[str, Any]:
    """The first parameter of each group is not the model's."""
    objects = program(list(names), SCHEDULES["LambdaLR"], {"a": 0.1, "b": 0.2, "c": 0.3})
    for group in objects["optimizer"].param_groups:
        group["params"].insert(0, nn.Parameter(torch.ones(2)))
    return objects


def test_a_group_is_known_by_any_parameter_that_the_checkpoint_reaches(prefix: str) -> None:
    saved = with_a_parameter_outside("abc")
    Checkpoint(net=saved["net"], schedule=saved["schedule"]).write(prefix)
    rebuilt = with_a_parameter_outside("cab")
    rebuilt["schedule"].base_lrs = [0.0, 0.0, 0.0]
    Checkpoint(net=rebuilt["net"], schedule=rebuilt["schedule"]).read(prefix).assert_consumed()
    assert rebuilt["schedule"].base_lrs == [0.3, 0.1, 0.2]


@pytest.mark.parametrize("names", ["a", "ab"])
def test_a_new_group_keeps_the_values_of_the_live_schedule(names: str, prefix: str) -> None:
    saved = program(list(names), SCHEDULES["LambdaLR"])
    run(saved, 3)
    Checkpoint(**saved).write(prefix)
    rebuilt = program(["c", *names], SCHEDULES["LambdaLR"], {"c": 0.001})
    Checkpoint(**rebuilt).read(prefix)
    assert rebuilt["schedule"].base_lrs == [0.001] + [0.5] * len(names)
    assert rebuilt["schedule"].last_epoch == 3


def test_a_group_that_is_gone_is_named(prefix: str) -> None:
    saved = program(["a", "b"], SCHEDULES["LambdaLR"], RATES)
    Checkpoint(net=saved["net"], schedule=saved["schedule"]).write(prefix)
    rebuilt = program(["c", "a"], SCHEDULES["LambdaLR"], {"c": 0.001})
    status = Checkpoint(net=rebuilt["net"], schedule=rebuilt["schedule"]).read(prefix)
    with pytest.raises(AssertionError, match=r"\(root\)\.schedule: the values for a group of 1 .* \(net/b\)"):
        status.assert_consumed()
    assert rebuilt["schedule"].base_lrs == [0.001, 0.1]


def test_a_schedule_waits_for_the_model_that_tells_its_groups_apart(prefix: str) -> None:
    saved = program(["a", "bc"], SCHEDULES["LambdaLR"], RATES)
    run(saved, 3)
    Checkpoint(**saved).write(prefix)
    rebuilt = program(["cb", "a"], SCHEDULES["LambdaLR"], RATES)
    checkpoint = Checkpoint(schedule=rebuilt["schedule"])
    status = checkpoint.read(prefix)
    with pytest.raises(AssertionError, match=r"\(root\)\.schedule: .* a group of 2 parameters, none of which is known"):
        status.assert_consumed()
    checkpoint.optimizer = rebuilt["optimizer"]
    checkpoint.net = rebuilt["net"]
    status.assert_consumed()
    assert run(rebuilt, 6) == run(saved, 6)


def test_groups_without_a_path_are_no_place_for_those_of_another_number(prefix: str) -> None:
    Checkpoint(schedule=program(["abc"], SCHEDULES["StepLR"])["schedule"]).write(prefix)
    rebuilt = program(["a", "bc"], SCHEDULES["StepLR"])["schedule"]
    status = Checkpoint(schedule=rebuilt).read(prefix)
    with pytest.raises(
        AssertionError, match=r"\(root\)\.schedule: the values for a group whose parameters had no path"
    ):
        status.assert_consumed()


def test_groups_whose_parameters_have_no_path_go_by_their_order(prefix: str) -> None:
    def make() -> dict[str, Any]:
        objects = program(["a", "b"], SCHEDULES["LambdaLR"], {"a": 0.1, "b": 0.2})
        del objects["net"].a
        return {"net": objects["net"], "schedule": objects["schedule"]}

    saved = make()
    saved["schedule"].base_lrs = [0.3, 0.4]
    Checkpoint(**saved).write(prefix)
    rebuilt = make()
    Checkpoint(**rebuilt).read(prefix).assert_consumed()
    assert rebuilt["schedule"].base_lrs == [0.3, 0.4]


class Factor:
    """A schedule as an object that holds a tensor."""

    def __init__(self, rate: float) -> None:
        self.rates = torch.full((2,), rate)

    def __call__(self, epoch: int) -> float:
        return float(self.rates[0]) ** epoch


def of_factors(rate: float) -> Make:
    return lambda optimizer: schedules.LambdaLR(optimizer, [Factor(rate) for _ in optimizer.param_groups])


def test_schedules_as_objects_are_merged_by_what_they_hold(prefix: str) -> None:
    saved = program(["a", "bc"], of_factors(0.9))
    run(saved, 3)
    Checkpoint(**saved).write(prefix)
    rebuilt = program(["abc"], of_factors(0.5))
    Checkpoint(**rebuilt).read(prefix).assert_consumed()
    assert run(rebuilt, 6) == run(saved, 6)


def test_the_parts_of_a_split_group_share_nothing(prefix: str) -> None:
    Checkpoint(**program(["abc"], of_factors(0.9))).write(prefix)
    rebuilt = program(["a", "bc"], of_factors(0.5))
    Checkpoint(**rebuilt).read(prefix).assert_consumed()
    first, second = rebuilt["schedule"].lr_lambdas
    assert torch.equal(first.rates, second.rates)
    assert first.rates is not second.rates


class Ramp(schedules.LRScheduler):
    """A program's own schedule, with a list of its own."""

    def __init__(self, optimizer: torch.optim.Optimizer, heights: list[float]) -> None:
        self.heights = heights
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        return [height * (1 + self.last_epoch) for height in self.heights]


def test_a_list_of_another_schedule_that_follows_the_groups_is_taken(prefix: str) -> None:
    saved = program(["a", "bc"], lambda optimizer: Ramp(optimizer, [1.0, 2.0]))
    run(saved, 3)
    Checkpoint(**saved).write(prefix)
    rebuilt = program(["cb", "a"], lambda optimizer: Ramp(optimizer, [2.0, 1.0]))
    Checkpoint(**rebuilt).read(prefix).assert_consumed()
    assert run(rebuilt, 6) == run(saved, 6)


def test_a_list_of_another_schedule_that_may_be_for_groups_is_a_mismatch_where_their_order_differs(prefix: str) -> None:
    saved = program(["a", "bc"], lambda optimizer: Ramp(optimizer, [1.0, 2.0]))
    Checkpoint(**saved).write(prefix)
    rebuilt = program(["cb", "a"], lambda optimizer: Ramp(optimizer, [5.0, 6.0]))
    with pytest.raises(MismatchError, match=r"\(root\)\.schedule .* items of the stored Ramp.heights \[1.0, 2.0\]"):
        Checkpoint(**rebuilt).read(prefix)


@pytest.mark.parametrize("groups", ["a", [1], {"a": "b"}, ["net/a"], [[None]]])
def test_groups_that_no_schedule_wrote_are_damage(groups: object, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = program(["a", "bc"], SCHEDULES["StepLR"])
    with monkeypatch.context() as patch:
        patch.setattr("torch_trackckpt.adapters.scheduler.members_of_groups", lambda scheduler, path_of: groups)
        Checkpoint(**saved).write(prefix)
    with pytest.raises(DataLossError, match=r"\(root\)\.schedule"):
        Checkpoint(**program(["a", "bc"], SCHEDULES["StepLR"])).read(prefix)
