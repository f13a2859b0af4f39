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


def test_a_schedule_over_one_group_is_stored_without_a_word_of_groups(prefix: str) -> None:
    saved = program(["abc"], SCHEDULES["StepLR"])
    Checkpoint(**saved).write(prefix)
    assert py_state(prefix, "schedule").keys() == {"kind", "state"}


@pytest.mark.parametrize("groups", ["a", [1], {"a": "b"}])
def test_groups_that_no_schedule_wrote_are_damage(groups: object, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = program(["a", "bc"], SCHEDULES["StepLR"])
    with monkeypatch.context() as patch:
        patch.setattr("torch_trackckpt.adapters.scheduler.first_members", lambda scheduler, path_of: groups)
        Checkpoint(**saved).write(prefix)
    with pytest.raises(DataLossError, match=r"\(root\)\.schedule"):
        Checkpoint(**program(["a", "bc"], SCHEDULES["StepLR"])).read(prefix)
