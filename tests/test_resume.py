"""Training that is interrupted and resumed from a checkpoint equals training that was not, bit for bit.

The second half always runs with new objects: other initial values, modules and parameters declared in another
order, and the optimizer's groups and members in another order.
"""

import json
import random
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import witness
from runs import FAST, Case, Embeddings, Matrices, Run, is_same, with_options
from torch import nn, optim
from torch.optim import Optimizer

from torch_trackckpt import Checkpoint, latest_checkpoint

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD": ("SGD", {"lr": 0.05}),
    "SGD, momentum": ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.1}),
    "SGD, nesterov": ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "Adam": ("Adam", {"lr": 0.05}),
    "Adam, amsgrad": ("Adam", {"lr": 0.05, "amsgrad": True}),
    "Adam, maximize": ("Adam", {"lr": 0.05, "maximize": True, "betas": (0.5, 0.6)}),
    "Adam, learning rate in a tensor": ("Adam", {"lr": torch.tensor(0.05), "foreach": False}),
    "AdamW": ("AdamW", {"lr": 0.05, "weight_decay": 0.1}),
    "AdamW, amsgrad": ("AdamW", {"lr": 0.05, "amsgrad": True}),
    "RMSprop": ("RMSprop", {"lr": 0.05}),
    "RMSprop, momentum": ("RMSprop", {"lr": 0.05, "momentum": 0.9}),
    "RMSprop, centered": ("RMSprop", {"lr": 0.05, "momentum": 0.9, "centered": True}),
    "Adagrad": ("Adagrad", {"lr": 0.05, "lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    "Adamax": ("Adamax", {"lr": 0.05}),
    "NAdam": ("NAdam", {"lr": 0.05, "momentum_decay": 0.1}),
    "NAdam, decoupled": ("NAdam", {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "RAdam": ("RAdam", {"lr": 0.05}),
    "Adadelta": ("Adadelta", {"lr": 0.5}),
    "ASGD": ("ASGD", {"lr": 0.05, "t0": 2.0, "lambd": 0.1}),
    "Rprop": ("Rprop", {"lr": 0.05}),
    "Adafactor": ("Adafactor", {"lr": 0.05}),
}
FUSED_ON_CPU = {"SGD", "Adam", "AdamW", "Adagrad"}


def cases() -> Iterator[tuple[str, Case]]:
    for variant, (name, options) in VARIANTS.items():
        if not hasattr(optim, name):
            continue
        yield variant, Case(with_options(name, **options))
        yield f"{variant}, two groups", Case(with_options(name, **options), num_groups=2)
        if "foreach" not in options:
            for foreach in (False, True):
                yield f"{variant}, foreach={foreach}", Case(with_options(name, **options, foreach=foreach))
        if name in FUSED_ON_CPU:
            fused = {key: value for key, value in options.items() if key != "foreach"}
            yield f"{variant}, fused", Case(with_options(name, **fused, fused=True), num_groups=2)
    for name in ("LBFGS", "LBFGS, strong_wolfe"):
        options = {"line_search_fn": "strong_wolfe"} if "," in name else {}
        make = with_options("LBFGS", lr=0.1, max_iter=4, history_size=3, **options)
        yield name, Case(make)
        yield f"{name}, matrices", Case(make, Matrices)
    if hasattr(optim, "Muon"):
        yield "Muon", Case(with_options("Muon", lr=0.05), Matrices)
        yield "Muon, two groups", Case(with_options("Muon", lr=0.05), Matrices, num_groups=2)
    yield "SparseAdam", Case(with_options("SparseAdam", lr=0.05), Embeddings)
    yield "SGD, sparse gradients", Case(with_options("SGD", lr=0.05), Embeddings)


CASES = dict(cases())


def test_every_optimizer_of_this_torch_is_resumed_by_a_test() -> None:
    """C111"""
    every = {
        name
        for name, kind in vars(optim).items()
        if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
    }

    assert {type(case.original().optimizer).__name__ for case in CASES.values()} == every


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_resumed_optimizer_goes_on_bit_for_bit(case: Case, tmp_path: Path) -> None:
    """C103, C105, C111, C121, C122"""
    uninterrupted = case.original()
    uninterrupted.train(3 + 3)
    first = case.original()
    first.train(3)
    path = first.checkpoint.save(tmp_path / "ckpt", FAST)

    second = case.rebuilt()
    second.checkpoint.restore(path).assert_consumed()
    assert is_same(second.result(), first.result())
    second.num_steps = first.num_steps
    second.train(3)

    assert is_same(second.result(), uninterrupted.result())


@pytest.mark.parametrize("case", [CASES[name] for name in ("Adam", "LBFGS", "SGD, momentum")], ids=lambda case: "")
def test_restoring_into_objects_that_have_trained_on_goes_back_bit_for_bit(case: Case, tmp_path: Path) -> None:
    """C104, C111: state is overwritten, not mixed."""
    run = case.original()
    run.train(3)
    path = run.checkpoint.save(tmp_path / "ckpt", FAST)
    run.train(2)
    expected = {name: {"value": entry["value"].clone()} for name, entry in run.result().items()}
    run.train(4)

    run.checkpoint.restore(path).assert_consumed()
    run.num_steps = 3
    run.train(2)

    assert is_same({name: {"value": entry["value"]} for name, entry in run.result().items()}, expected)


def test_saving_does_not_disturb_the_training(tmp_path: Path) -> None:
    """C111"""
    case = CASES["Adam, two groups"]
    undisturbed, saving = case.original(), case.original()

    undisturbed.train(4)
    for _ in range(4):
        saving.checkpoint.save(tmp_path / "ckpt", FAST)
        saving.train(1)

    assert is_same(saving.result(), undisturbed.result())


def test_a_chain_of_resumed_runs_equals_one_run(tmp_path: Path) -> None:
    """C070, C111"""
    case = CASES["RMSprop, centered, two groups"]
    uninterrupted = case.original()
    uninterrupted.train(6)

    for index in range(3):
        run = case.rebuilt() if index % 2 else case.original()
        latest = latest_checkpoint(tmp_path)
        if latest is not None:
            run.checkpoint.restore(latest).assert_consumed()
        run.num_steps = 2 * index
        run.train(2)
        path = run.checkpoint.save(tmp_path / f"ckpt-{index}", FAST)
        assert latest_checkpoint(tmp_path) == path

    assert is_same(run.result(), uninterrupted.result())


# Other companions of a training loop.


def test_a_resumed_average_of_the_weights_goes_on(tmp_path: Path) -> None:
    """C166"""

    def build(case_run: Run) -> tuple[Run, optim.swa_utils.AveragedModel]:
        average = optim.swa_utils.get_ema_multi_avg_fn(0.9)
        return case_run, optim.swa_utils.AveragedModel(case_run.model, multi_avg_fn=average)

    def train(run: Run, ema: optim.swa_utils.AveragedModel, num_steps: int) -> None:
        for _ in range(num_steps):
            run.train(1)
            ema.update_parameters(run.model)

    case = CASES["Adam"]
    uninterrupted, ema = build(case.original())
    train(uninterrupted, ema, 6)
    first, first_ema = build(case.original())
    train(first, first_ema, 3)
    path = Checkpoint(model=first.model, ema=first_ema, optimizer=first.optimizer).save(tmp_path / "ckpt", FAST)

    second, second_ema = build(case.rebuilt())
    second_checkpoint = Checkpoint(model=second.model, ema=second_ema, optimizer=second.optimizer)
    second_checkpoint.restore(path).assert_consumed()
    second.num_steps = 3
    train(second, second_ema, 3)

    assert int(second_ema.n_averaged) == 6
    assert is_same(dict(second_ema.state_dict()), {name: ema.state_dict()[name] for name in second_ema.state_dict()})
    assert is_same(second.result(), uninterrupted.result())


class Noisy(nn.Module):
    """Draws from a generator of its own, and counts its calls in its extra state."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.generator = generator
        self.num_calls = 0

    def forward(self) -> torch.Tensor:
        self.num_calls += 1
        return (self.weight * torch.randn(3, generator=self.generator)).sum()

    def get_extra_state(self) -> dict[str, int]:
        return {"num_calls": self.num_calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.num_calls = state["num_calls"]


class Loader:
    """Shuffled batches that know where they are."""

    def __init__(self, seed: int) -> None:
        self.order = torch.randperm(8, generator=torch.Generator().manual_seed(seed)).tolist()
        self.position = 0

    def __next__(self) -> int:
        self.position += 1
        return int(self.order[(self.position - 1) % 8])

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.position = state["order"], state["position"]


def test_generators_loaders_and_extra_state_resume_together(tmp_path: Path) -> None:
    """C166"""

    def build(seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        model = Noisy(generator)
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return {"model": model, "optimizer": optimizer, "generator": generator, "loader": Loader(seed)}

    def train(program: dict[str, Any], num_steps: int) -> list[float]:
        losses = []
        for _ in range(num_steps):
            loss = program["model"]() * next(program["loader"])
            loss.backward()
            program["optimizer"].step()
            losses.append(loss.item())
        return losses

    program = build(1)
    train(program, 3)
    program["optimizer"].zero_grad()
    path = Checkpoint(**program).save(tmp_path / "ckpt", FAST)
    expected = train(program, 4)

    resumed = build(2)
    Checkpoint(**resumed).restore(path).assert_consumed()

    assert train(resumed, 4) == expected
    assert resumed["model"].num_calls == 7
    assert torch.equal(resumed["model"].weight, program["model"].weight)


# A new process.

PROGRAM = '''
"""Trains with dropout and shuffled data; goes on from the latest checkpoint of its directory."""

import random
import sys

import numpy as np
import torch
from torch import nn

from torch_trackckpt import Checkpoint, RNGState, latest_checkpoint


def train(directory: str, num_steps: int, save_at: tuple[int, ...], seed: int, reverse: bool) -> list[str]:
    torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
    layers = {"a": nn.Linear(3, 6), "dropout": nn.Dropout(0.4), "norm": nn.BatchNorm1d(6), "z": nn.Linear(6, 2)}
    names = list(layers)
    model = nn.ModuleDict({name: layers[name] for name in (names[::-1] if reverse else names)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    step = torch.zeros((), dtype=torch.int64)
    checkpoint = Checkpoint(model=model, optimizer=optimizer, scheduler=scheduler, step=step, rng=RNGState())
    latest = latest_checkpoint(directory)
    if latest is not None:
        checkpoint.restore(latest).assert_consumed()
    losses = []
    while step < num_steps:
        x = torch.randn(5, 3) * random.random() + np.random.rand()
        for name in names:
            x = model[name](x)
        loss = x.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        step += 1
        losses.append(loss.item().hex())
        if int(step) in save_at:
            checkpoint.save(directory + "/ckpt")
    return losses


if __name__ == "__main__":
    print(*train(sys.argv[1], num_steps=6, save_at=(6,), seed=2, reverse=True))
'''


@pytest.fixture
def _kept_random_state() -> Iterator[None]:
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(legacy)


@pytest.mark.usefixtures("_kept_random_state")
def test_a_new_process_goes_on_from_the_latest_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    """C070, C111, C165, C167: dropout included. The second run of the program seeds and declares otherwise."""
    script = tmp_path / "train.py"
    script.write_text(PROGRAM)
    train = runpy.run_path(str(script))["train"]
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    losses = train(str(tmp_path / "whole"), num_steps=6, save_at=(3, 6), seed=1, reverse=False)
    train(str(tmp_path / "parts"), num_steps=3, save_at=(3,), seed=1, reverse=False)

    second = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(tmp_path / "parts")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert second.returncode == 0, second.stderr
    assert second.stdout.split() == losses[3:]
    whole, parts = (values_of(latest_checkpoint(tmp_path / name)) for name in ("whole", "parts"))
    assert parts == whole


def values_of(path: str | None) -> dict[str, bytes | list[bytes]]:
    """Every value of the checkpoint; the groups are told apart by the order in which they were declared."""
    assert path is not None
    values = {key: tensor.data for key, tensor in witness.read_bundle(path).items() if key != witness.GRAPH_KEY}
    (text,) = values["optimizer/param_groups/.ATTRIBUTES/py_state"]
    assert isinstance(text, bytes)
    groups = json.loads(text)
    for group in groups["groups"]:
        group["params"].sort()
    values["optimizer/param_groups/.ATTRIBUTES/py_state"] = json.dumps(groups, sort_keys=True).encode()
    return values
