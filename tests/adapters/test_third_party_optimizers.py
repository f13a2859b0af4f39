"""Optimizers of other packages that keep to `state` and `param_groups` resume bit for bit; others are refused."""

import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from runs import FAST, Net, ParamGroups, Run, is_same
from torch import optim
from torch.optim import Optimizer

from torch_trackckpt import Checkpoint
from torch_trackckpt.adapters import Adapter
from torch_trackckpt.errors import MismatchError, UnsupportedValueError
from torch_trackckpt.trackable import Value

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:This overload of add:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:Using backward\(\) with create_graph=True:UserWarning"),
]


def imported(name: str) -> ModuleType:
    """A package whose import warns, of old habits of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


PACKAGES = [imported(name) for name in ("torch_optimizer", "lion_pytorch", "prodigyopt")]
CLASSES: dict[str, type[Optimizer]] = {
    f"{package.__name__}.{name}": kind
    for package in PACKAGES
    for name, kind in vars(package).items()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
}
WRAPPERS = {"torch_optimizer.Lookahead"}
# A rate that differs by group is more than Prodigy takes; the others are given one where the two groups differ in it.
OPTIONS: dict[str, dict[str, Any]] = {
    "torch_optimizer.LARS": {"momentum": 0.9},
    "torch_optimizer.PID": {"momentum": 0.9},
    "torch_optimizer.SGDP": {"momentum": 0.9},
    "torch_optimizer.SGDW": {"momentum": 0.9},
    "torch_optimizer.Shampoo": {"momentum": 0.9},
    "torch_optimizer.SWATS": {"amsgrad": True},
    "torch_optimizer.AdaBound": {"amsbound": True},
    "prodigyopt.Prodigy": {"d0": 0.01},
}


class WithGraph(Run):
    """Keeps the graph of the gradients, for second derivatives, and draws the same random numbers in each run."""

    def train(self, num_steps: int) -> None:
        for _ in range(num_steps):
            torch.manual_seed(self.num_steps)
            self.optimizer.zero_grad()
            self.model(torch.randn(4, 3)).square().mean().backward(create_graph=True)
            self.optimizer.step()
            self.num_steps += 1


RUNS: dict[str, type[Run]] = {"torch_optimizer.Adahessian": WithGraph}


def build(name: str, *, is_rebuilt: bool = False) -> Run:
    """A program with two groups; or the same one with modules and members of the groups in another order."""
    torch.manual_seed(int(is_rebuilt))
    model = Net(("second", "first") if is_rebuilt else ("first", "second"))
    groups: ParamGroups = [
        {"params": list(model.first.parameters())},
        {"params": list(model.second.parameters()), "weight_decay": 0.03},
    ]
    if name != "prodigyopt.Prodigy":
        groups[0]["lr"] = 0.02
    if is_rebuilt:
        for group in groups:
            group["params"].reverse()
    optimizer = CLASSES[name](groups, **OPTIONS.get(name, {}))
    return RUNS.get(name, Run)(model, optimizer)


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - WRAPPERS))
def test_a_foreign_optimizer_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    """C103, C105, C111, C121, C122"""
    uninterrupted = build(name)
    uninterrupted.train(3 + 3)
    first = build(name)
    first.train(3)
    path = first.checkpoint.save(tmp_path / "ckpt", FAST)

    second = build(name, is_rebuilt=True)
    second.checkpoint.restore(path).assert_consumed()
    assert is_same(second.result(), first.result())
    second.num_steps = first.num_steps
    second.train(3)

    assert is_same(second.result(), uninterrupted.result())
    assert is_same(global_state(second.optimizer), global_state(uninterrupted.optimizer))


def global_state(optimizer: Optimizer) -> dict[Any, Any]:
    return {key: value for key, value in optimizer.state.items() if not isinstance(key, torch.Tensor)}


# Wrappers.


def lookahead() -> tuple[Net, Optimizer]:
    model = Net(("first", "second"))
    return model, CLASSES["torch_optimizer.Lookahead"](optim.SGD(model.parameters(), lr=0.1), k=2)  # type: ignore[arg-type]


def test_a_wrapper_that_is_no_proper_optimizer_is_refused_by_name_and_nothing_is_written(tmp_path: Path) -> None:
    """C168"""
    model, optimizer = lookahead()
    Run(model, optimizer).train(1)

    with pytest.raises(UnsupportedValueError) as error:
        Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "ckpt")

    assert str(error.value).startswith("(root).optimizer.param_groups cannot be saved: Lookahead derives from")
    assert "register_adapter" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_such_a_wrapper_does_not_take_the_state_of_another_optimizer(tmp_path: Path) -> None:
    """C122"""
    model, optimizer = lookahead()
    adam = optim.Adam(model.parameters())
    Run(model, adam).train(1)
    path = Checkpoint(model=model, optimizer=adam).save(tmp_path / "ckpt", FAST)

    with pytest.raises(MismatchError, match=r"state of a Adam, but the live optimizer is a Lookahead"):
        Checkpoint(model=model, optimizer=optimizer).restore(path)

    assert optimizer.state == {}


def test_such_a_wrapper_can_be_given_an_adapter(tmp_path: Path) -> None:
    """C168: the adapter that the message asks for. The slow weights are values of it, the inner optimizer a child."""

    class Slow(Adapter):
        """A proxy for the wrapper; registering an adapter for its class would be for the whole process."""

        def _trackable_children(self) -> dict[str, object]:
            return {"inner": self.adapted.optimizer}

        def _serialize_to_tensors(self) -> dict[str, Value]:
            slow = [self.adapted.state[p]["slow_param"] for g in self.adapted.param_groups for p in g["params"]]
            return {str(index): tensor for index, tensor in enumerate(slow)}

        def _attribute_names(self) -> tuple[str, ...]:
            return tuple(map(str, range(4)))

        def _restore_from_tensors(self, values: Any) -> None:
            parameters = [p for g in self.adapted.param_groups for p in g["params"]]
            for name, value in values.items():
                self.adapted.state[parameters[int(name)]]["slow_param"] = value

    def checkpoint(run: Run) -> Checkpoint:
        return Checkpoint(model=run.model, slow=Slow(run.optimizer))

    torch.manual_seed(0)
    uninterrupted = Run(*lookahead())
    uninterrupted.train(6)
    torch.manual_seed(0)
    first = Run(*lookahead())
    first.train(4)
    path = checkpoint(first).save(tmp_path / "ckpt", FAST)
    second = Run(*lookahead(), num_steps=4)
    checkpoint(second).restore(path).assert_consumed()
    second.train(2)

    assert is_same(second.result(), uninterrupted.result())


def test_every_class_of_these_packages_that_makes_a_step_is_among_them() -> None:
    assert len(CLASSES) >= 30
    assert all(name in CLASSES for name in (*OPTIONS, *RUNS, *WRAPPERS))
