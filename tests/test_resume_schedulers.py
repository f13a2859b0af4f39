"""Learning rate schedules that are resumed give the learning rates of a run that was not interrupted."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import FAST, Net, ParamGroups, Run, is_same
from torch import optim
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedulers

from torch_trackckpt import Checkpoint


class Decay:
    """A schedule as an object, whose attributes are saved."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, epoch: int) -> float:
        return self.rate**epoch


MakeScheduler = Callable[[Optimizer], Any]


def chained(optimizer: Optimizer) -> schedulers.ChainedScheduler:
    return schedulers.ChainedScheduler(
        [schedulers.ConstantLR(optimizer, 0.1, total_iters=4), schedulers.ExponentialLR(optimizer, 0.9)], optimizer
    )


def in_sequence(optimizer: Optimizer) -> schedulers.SequentialLR:
    parts: list[Any] = [
        schedulers.LinearLR(optimizer, 0.1, total_iters=3),
        schedulers.CosineAnnealingLR(optimizer, T_max=9),
    ]
    return schedulers.SequentialLR(optimizer, parts, milestones=[4])


def nested(optimizer: Optimizer) -> schedulers.ChainedScheduler:
    annealing = optim.swa_utils.SWALR(optimizer, swa_lr=0.01, anneal_epochs=3, anneal_strategy="linear")
    steps = schedulers.MultiStepLR(optimizer, milestones=[1, 1, 3])
    sequence = schedulers.SequentialLR(optimizer, [steps, annealing], milestones=[2])
    return schedulers.ChainedScheduler([sequence, schedulers.ExponentialLR(optimizer, 0.9)], optimizer)


SCHEDULERS: dict[str, MakeScheduler] = {
    "StepLR": lambda o: schedulers.StepLR(o, step_size=2, gamma=0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, milestones=[1, 4, 4, 5], gamma=0.5),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, gamma=0.9),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, T_max=7, eta_min=0.001),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, T_0=2, T_mult=2),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, max_lr=0.2, total_steps=20),
    "OneCycleLR, linear, three phases": lambda o: schedulers.OneCycleLR(
        o, max_lr=[0.2, 0.3], total_steps=20, anneal_strategy="linear", three_phase=True
    ),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, base_lr=0.01, max_lr=0.1, step_size_up=2),
    "CyclicLR, exp_range": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, step_size_up=2, mode="exp_range", gamma=0.9),
    "CyclicLR, a schedule of its own": lambda o: schedulers.CyclicLR(
        o, 0.01, 0.1, step_size_up=2, scale_fn=Decay(0.9), scale_mode="iterations"
    ),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=1, factor=0.5, cooldown=1),
    "ReduceLROnPlateau, max": lambda o: schedulers.ReduceLROnPlateau(o, "max", patience=0, min_lr=[0.01, 0.02]),
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda epoch: 0.9**epoch),
    "LambdaLR, objects": lambda o: schedulers.LambdaLR(o, [Decay(0.9), Decay(0.8)]),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda epoch: 0.9),
    "LinearLR": lambda o: schedulers.LinearLR(o, total_iters=5),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, total_iters=4),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, total_iters=9, power=2.0),
    "SequentialLR": in_sequence,
    "ChainedScheduler": chained,
    "ChainedScheduler, nested": nested,
    "SWALR": lambda o: optim.swa_utils.SWALR(o, swa_lr=0.01, anneal_epochs=4),
}
SCHEDULED: dict[str, Callable[[ParamGroups], Optimizer]] = {
    "SGD": lambda groups: optim.SGD(groups, lr=0.05, momentum=0.9),
    "Adam": lambda groups: optim.Adam(groups, lr=0.05),
}


@dataclasses.dataclass
class ScheduledRun:
    """A run with a scheduler; both orders of the groups are the same, as schedulers go by position."""

    run: Run
    scheduler: Any
    rates: list[list[float]] = dataclasses.field(default_factory=list)

    @classmethod
    def build(
        cls, names: Iterable[str], make: Callable[[ParamGroups], Optimizer], schedule: MakeScheduler
    ) -> "ScheduledRun":
        model = Net(names)
        groups = [{"params": list(model.first.parameters())}, {"params": list(model.second.parameters()), "lr": 0.02}]
        optimizer = make(groups)
        return cls(Run(model, optimizer), schedule(optimizer))

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(model=self.run.model, optimizer=self.run.optimizer, scheduler=self.scheduler)

    def train(self, num_steps: int) -> None:
        for _ in range(num_steps):
            metric = float(self.run.num_steps % 3)
            self.run.train(1)
            if isinstance(self.scheduler, schedulers.ReduceLROnPlateau):
                self.scheduler.step(metric)
            else:
                self.scheduler.step()
            self.rates.append([float(group["lr"]) for group in self.run.optimizer.param_groups])


def test_every_scheduler_of_this_torch_is_resumed_by_a_test() -> None:
    """C165: a class that a later torch adds fails here until it has its case above."""
    every = {
        kind
        for module in (schedulers, optim.swa_utils)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, schedulers.LRScheduler) and not kind.__name__.startswith("_")
    }
    model = Net(("first", "second"))
    groups: ParamGroups = [{"params": [parameter]} for parameter in model.first.parameters()]

    covered = {type(make(SCHEDULED["SGD"](groups))) for make in SCHEDULERS.values()}

    assert every - {schedulers.LRScheduler} <= covered


@pytest.mark.parametrize("make", SCHEDULED.values(), ids=SCHEDULED)
@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_resumed_scheduler_gives_the_learning_rates_of_an_uninterrupted_run(
    schedule: MakeScheduler, make: Callable[[ParamGroups], Optimizer], tmp_path: Path
) -> None:
    """C165"""
    torch.manual_seed(0)
    uninterrupted = ScheduledRun.build(("first", "second"), make, schedule)
    uninterrupted.train(3 + 5)
    torch.manual_seed(0)
    first = ScheduledRun.build(("first", "second"), make, schedule)
    first.train(3)
    path = first.checkpoint.save(tmp_path / "ckpt", FAST)

    second = ScheduledRun.build(("second", "first"), make, schedule)
    second.checkpoint.restore(path).assert_consumed()
    second.run.num_steps = 3
    second.train(5)

    assert second.rates == uninterrupted.rates[3:]
    assert len({tuple(rates) for rates in uninterrupted.rates}) > 1
    assert is_same(second.run.result(), uninterrupted.run.result())
    assert is_same(second.scheduler.state_dict(), uninterrupted.scheduler.state_dict())


def test_a_learning_rate_in_a_tensor_is_still_the_schedulers_after_a_restore(tmp_path: Path) -> None:
    """C103, C165"""

    def build() -> ScheduledRun:
        return ScheduledRun.build(
            ("first", "second"),
            lambda groups: optim.Adam([g | {"lr": torch.tensor(0.1)} for g in groups], foreach=False),
            lambda o: schedulers.ExponentialLR(o, gamma=0.5),
        )

    first = build()
    first.train(2)
    path = first.checkpoint.save(tmp_path / "ckpt", FAST)
    first.train(2)

    second = build()
    second.checkpoint.restore(path).assert_consumed()
    second.train(2)

    assert second.rates == first.rates[2:]
    assert all(isinstance(group["lr"], torch.Tensor) for group in second.run.optimizer.param_groups)
