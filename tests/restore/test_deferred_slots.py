"""Optimizers, models and their slots, in whatever order they are attached after a restore."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from torch_trackckpt import Checkpoint, CheckpointOptions

Make = Callable[[nn.Module], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Callable[[nn.Module, float], torch.optim.Optimizer]] = {
    "adam": lambda model, lr: torch.optim.Adam(model.parameters(), lr=lr),
    "momentum": lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
    "lbfgs": lambda model, lr: torch.optim.LBFGS(model.parameters(), lr=lr),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = ((model(torch.tensor([1.0, 2.0])) - 1) ** 2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]


def values_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[object]:
    state = optimizer.state_dict()
    slots = [(index, sorted(values.items())) for index, values in sorted(state["state"].items())]
    return [str(tensor.tolist()) for tensor in model.state_dict().values()] + [str(slots), str(state["param_groups"])]


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
@pytest.mark.parametrize("late", [["optimizer"], ["model"], ["model", "optimizer"], ["optimizer", "model"]], ids=str)
def test_training_continues_bit_for_bit_whichever_comes_late(prefix: str, kind: str, late: list[str]) -> None:
    """C105, C106, C107, C111"""
    model = nn.Linear(2, 2)
    optimizer = OPTIMIZERS[kind](model, 0.125)
    step(model, optimizer)
    Checkpoint(model=model, optimizer=optimizer).write(prefix)
    live_model = nn.Linear(2, 2)
    live = {"model": live_model, "optimizer": OPTIMIZERS[kind](live_model, 0.5)}
    checkpoint = Checkpoint(**{name: value for name, value in live.items() if name not in late})
    status = checkpoint.read(prefix)
    for name in late:
        setattr(checkpoint, name, live[name])
    status.assert_consumed()
    for _ in range(2):
        step(model, optimizer)
        step(live_model, live["optimizer"])  # type: ignore[arg-type]
    assert values_of(live_model, live["optimizer"]) == values_of(model, optimizer)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", list(itertools.permutations(["encoder", "head", "optimizer"])), ids="-".join)
def test_an_optimizer_of_two_modules_continues_in_whichever_order_they_come(
    prefix: str, order: tuple[str, ...]
) -> None:
    """C106, C107"""

    def make(lr: float) -> dict[str, object]:
        encoder, head = nn.Linear(2, 2), nn.Linear(2, 1)
        groups = [{"params": encoder.parameters(), "lr": lr}, {"params": head.parameters(), "lr": 2 * lr}]
        return {"encoder": encoder, "head": head, "optimizer": torch.optim.Adam(groups)}

    saved, live = make(0.125), make(0.5)
    step(nn.Sequential(saved["encoder"], saved["head"]), saved["optimizer"])  # type: ignore[arg-type]
    Checkpoint(**saved).write(prefix)
    checkpoint = Checkpoint()
    status = checkpoint.read(prefix)
    for name in order:
        setattr(checkpoint, name, live[name])
    status.assert_consumed()
    expected, found = [
        values_of(nn.Sequential(parts["encoder"], parts["head"]), parts["optimizer"])  # type: ignore[arg-type]
        for parts in (saved, live)
    ]
    assert found == expected


def test_a_parameter_group_that_was_added_meanwhile_gets_its_slots(prefix: str) -> None:
    """C107"""
    body, head = nn.Linear(2, 2), nn.Linear(2, 1)
    optimizer = torch.optim.SGD([{"params": body.parameters()}, {"params": head.parameters()}], lr=0.125, momentum=0.9)
    step(nn.Sequential(body, head), optimizer)
    Checkpoint(body=body, head=head, optimizer=optimizer).write(prefix)
    live_body, live_head = nn.Linear(2, 2), nn.Linear(2, 1)
    live = torch.optim.SGD(live_body.parameters(), lr=0.5, momentum=0.9)
    checkpoint = Checkpoint(body=live_body, optimizer=live)
    checkpoint.read(prefix)
    live.add_param_group({"params": live_head.parameters()})
    checkpoint.head = live_head
    slot = optimizer.state[head.weight]["momentum_buffer"]
    assert torch.equal(live.state[live_head.weight]["momentum_buffer"], slot)


def test_slots_that_are_skipped_are_skipped_for_late_objects_too(prefix: str) -> None:
    """C116"""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.125)
    step(model, optimizer)
    Checkpoint(model=model, optimizer=optimizer).write(prefix)
    live = nn.Linear(2, 2)
    checkpoint = Checkpoint(model=live)
    status = checkpoint.read(prefix, CheckpointOptions(experimental_skip_slot_variables=True))
    checkpoint.optimizer = torch.optim.Adam(live.parameters(), lr=0.5)
    assert not checkpoint.optimizer.state
    assert checkpoint.optimizer.param_groups[0]["lr"] == 0.125
    status.assert_consumed()


def test_an_optimizer_attached_in_inference_mode_can_make_its_next_step(prefix: str) -> None:
    """C071"""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer)
    Checkpoint(model=model, optimizer=optimizer).write(prefix)
    live = nn.Linear(2, 2)
    checkpoint = Checkpoint(model=live)
    checkpoint.read(prefix)
    with torch.inference_mode():
        checkpoint.optimizer = torch.optim.Adam(live.parameters())
    step(live, checkpoint.optimizer)
    step(model, optimizer)
    assert values_of(live, checkpoint.optimizer) == values_of(model, optimizer)


def test_the_scheduler_of_a_late_optimizer_continues(prefix: str) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    step(model, optimizer)
    scheduler.step()
    Checkpoint(model=model, optimizer=optimizer, scheduler=scheduler).write(prefix)
    live = nn.Linear(2, 2)
    checkpoint = Checkpoint(model=live)
    status = checkpoint.read(prefix)
    checkpoint.optimizer = torch.optim.SGD(live.parameters(), lr=0.5)
    checkpoint.scheduler = torch.optim.lr_scheduler.StepLR(checkpoint.optimizer, 1, gamma=0.5)
    status.assert_consumed()
    assert checkpoint.scheduler.state_dict() == scheduler.state_dict()
    assert checkpoint.optimizer.param_groups[0]["lr"] == 0.25
