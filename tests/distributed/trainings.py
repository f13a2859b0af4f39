"""What the jobs of several files have in common: options, a sharded training, and its values as plain data."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from torch_trackckpt import CheckpointOptions

FAST = CheckpointOptions(durable=False)
MODES = {
    "first": CheckpointOptions(durable=False, enable_async=True),
    "overlapped": CheckpointOptions(durable=False, enable_async=True, async_copy="overlapped"),
    "synchronous": FAST,
}


def listed(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.tolist()
    if isinstance(state, dict):
        return {str(key): listed(value) for key, value in state.items()}
    return [listed(value) for value in state] if isinstance(state, (list, tuple)) else state


def sharded_training(mesh: Any = None) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Layers whose sides no number of processes divides."""
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 1))
    named = {} if mesh is None else {"mesh": mesh}
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, **named)
    fully_shard(model, **named)
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps whose gradients are the same however many processes there are: all have the whole batch."""
    for step in steps:
        optimizer.zero_grad()
        model(torch.randn(4, 5, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()


def whole(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """All values, put together from all processes."""

    def full(value: Any) -> Any:
        return value.full_tensor().tolist() if isinstance(value, DTensor) else listed(value)

    found = {name: full(value.detach()) for name, value in model.named_parameters()}
    for name, value in model.named_parameters():
        found[f"{name}'s state"] = {key: full(slot) for key, slot in sorted(optimizer.state[value].items())}
    return found
