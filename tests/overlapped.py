"""What tests of overlapped saves have in common: a training, and a look at what is still to be copied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from torch_trackckpt import (
    Checkpoint,
    CheckpointOptions,
    load_checkpoint,
)
from torch_trackckpt.adapters.step_hook import StepHook

SYNC = CheckpointOptions(durable=False)
OVERLAPPED = CheckpointOptions(durable=False, enable_async=True, async_copy="overlapped")


class Training:
    """A small one, with buffers that each forward pass changes."""

    def __init__(self, make: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.optimizer = make(self.model.parameters(), lr=0.1)
        self.checkpoint = Checkpoint(model=self.model, optimizer=self.optimizer)
        self.train()

    @property
    def weight(self) -> nn.Parameter:
        weight = self.model[0].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def pass_through(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss: torch.Tensor = self.model(torch.rand(5, 6)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def train(self) -> None:
        self.pass_through()
        self.optimizer.step()


def hooks_of(optimizer: torch.optim.Optimizer) -> int:
    """Its own, and those who wait for a step of it."""
    members = {id(member) for group in optimizer.param_groups for member in group["params"]}
    waiting = [
        waiting
        for waiting in StepHook.shared()._waiting
        if waiting.callback() is not None and not waiting.tensors.isdisjoint(members)
    ]
    own = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    return len(waiting) + sum(map(len, own))


def late_keys(checkpoint: Checkpoint) -> set[str]:
    """What the pending save has not copied at its call."""
    pending = checkpoint._own.pending
    assert pending is not None
    assert pending._late is not None
    return {key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE") for key in pending._late._keys}


def assert_same_files(expected: Path, saved: Path) -> None:
    for suffix in (".index", ".data-00000-of-00001"):
        assert Path(f"{saved}{suffix}").read_bytes() == Path(f"{expected}{suffix}").read_bytes(), suffix


def weight_in(path: str | Path) -> torch.Tensor:
    return torch.as_tensor(load_checkpoint(path).get_tensor("model/0/weight/.ATTRIBUTES/VARIABLE_VALUE"))
