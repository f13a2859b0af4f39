"""Programs that train, are interrupted, and are written once more by someone else: other initial values, modules and
parameters declared in another order, and the optimizer's groups and members in another order."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn, optim
from torch.optim import Optimizer

from torch_trackckpt import Checkpoint, CheckpointOptions

FAST = CheckpointOptions(durable=False)
ParamGroups = list[dict[str, Any]]


def is_same(left: Any, right: Any) -> bool:
    """Equal in type and in every bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(is_same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(is_same, left, right))
    return bool(left == right)


class Net(nn.Module):
    """Two layers, registered in the order of `names`."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        sizes = {"first": (3, 5), "second": (5, 2)}
        for name in names:
            self.add_module(name, nn.Linear(*sizes[name]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        second: torch.Tensor = self.second(torch.tanh(self.first(x)))
        return second


class Matrices(nn.Module):
    """The same without biases, for optimizers that take nothing but matrices."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.randn({"first": (3, 5), "second": (5, 2)}[name])))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.first) @ self.second


class Embeddings(nn.Module):
    """Parameters whose gradients are sparse."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Embedding({"first": 6, "second": 9}[name], 2, sparse=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = (x[:, 0].abs() * 7).long()
        embedded: torch.Tensor = self.first(rows % 6) * self.second(rows % 9)
        return embedded


@dataclasses.dataclass
class Run:
    """One program: its objects, and how far it has come."""

    model: nn.Module
    optimizer: Optimizer
    num_steps: int = 0

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(model=self.model, optimizer=self.optimizer)

    def train(self, num_steps: int) -> None:
        for _ in range(num_steps):
            generator = torch.Generator().manual_seed(self.num_steps)
            x, y = torch.randn(4, 3, generator=generator), torch.randn(4, 2, generator=generator)

            def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
                self.optimizer.zero_grad()
                loss = (self.model(x) - y).square().mean()
                loss.backward()
                return loss

            if isinstance(self.optimizer, optim.LBFGS):
                self.optimizer.step(closure)
            else:
                closure()
                self.optimizer.step()
            self.num_steps += 1

    def result(self) -> dict[str, Any]:
        """For each parameter: its value, all its state, and the hyper-parameters of its group."""
        group_of = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        return {
            name: {
                "value": parameter.detach(),
                "state": dict(self.optimizer.state.get(parameter, {})),
                "group": {k: v for k, v in group_of[id(parameter)].items() if k not in ("params", "param_names")},
            }
            for name, parameter in self.model.named_parameters()
        }


@dataclasses.dataclass(frozen=True)
class Case:
    """An optimizer and what it is tried on."""

    make: Callable[[Any], Optimizer]
    model: Callable[[Iterable[str]], nn.Module] = Net
    num_groups: int = 1

    def original(self) -> Run:
        torch.manual_seed(0)
        model = self.model(("first", "second"))
        return Run(model, self.make(self.groups(model)))

    def rebuilt(self) -> Run:
        """The same program written by someone else."""
        torch.manual_seed(1)
        model = self.model(("second", "first"))
        groups = self.groups(model)
        for group in groups:
            group["params"].reverse()
        return Run(model, self.make(groups[::-1]))

    def groups(self, model: nn.Module) -> ParamGroups:
        if self.num_groups == 1:
            return [{"params": list(model.parameters())}]
        named = list(model.named_parameters())
        return [
            {"params": [parameter for name, parameter in named if name.startswith("first")], "lr": 0.02},
            {"params": [parameter for name, parameter in named if name.startswith("second")], "weight_decay": 0.03},
        ]


def with_options(name: str, **options: Any) -> Callable[[Any], Optimizer]:
    def make(parameters: Any) -> Optimizer:
        optimizer: Optimizer = getattr(optim, name)(parameters, **options)
        return optimizer

    return make
