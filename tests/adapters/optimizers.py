"""Optimizers with a little state, and comparisons of all that they hold."""

import copy
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import witness
from torch import nn, optim
from torch.optim import Optimizer

from torch_trackckpt import CheckpointOptions

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


def is_same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, Mapping):
        is_same_kind = type(left) is type(right) and left.keys() == right.keys()
        return is_same_kind and all(is_same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple, deque)):
        return type(left) is type(right) and len(left) == len(right) and all(map(is_same, left, right))
    return type(left) is type(right) and bool(left == right)


def everything(model: nn.Module, *optimizers: Optimizer) -> Any:
    """A copy of all that a restore could change."""
    parts = [model.state_dict(), *(optimizer.state_dict() for optimizer in optimizers)]
    orders = [[[id(p) for p in group["params"]] for group in o.param_groups] for o in optimizers]
    return copy.deepcopy([*parts, orders])


class Odd(Optimizer):
    """An optimizer that keeps whatever it likes."""

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        super().__init__(parameters, {"lr": 0.1, "schedule": (1, {2: 3})})

    def fill(self, parameter: torch.Tensor, state: dict[str, Any]) -> None:
        self.state[parameter] = state
