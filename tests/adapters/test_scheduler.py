"""Learning rate schedules: what is stored of them, and that they take the state of their own kind only."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import witness
from adapters.optimizers import py_state
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import SWALR

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import DataLossError, MismatchError, UnsupportedValueError
from torch_trackckpt.trackable import PYTHON_STATE, Trackable, Value


class MyStepLR(StepLR):
    """A user's own, which keeps what it derives from."""

    @classmethod
    def of(cls, optimizer: Optimizer) -> "MyStepLR":
        return cls(optimizer, 3)


def optimizer() -> Optimizer:
    return SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)


@pytest.mark.parametrize("other", [CosineAnnealingLR(optimizer(), 5), ExponentialLR(optimizer(), 0.5)])
def test_the_state_of_another_kind_of_scheduler_is_a_mismatch_and_nothing_changes(
    other: LRScheduler, prefix: str
) -> None:
    """C165"""
    Checkpoint(schedule=StepLR(optimizer(), 3)).write(prefix)
    before = other.state_dict()

    with pytest.raises(MismatchError, match=r"\(root\)\.schedule .* nothing has been assigned.* StepLR"):
        Checkpoint(schedule=other).read(prefix)

    assert other.state_dict() == before


def test_a_users_own_kind_takes_the_state_of_what_it_derives_from(prefix: str) -> None:
    written = StepLR(optimizer(), 3)
    written.last_epoch = 7
    Checkpoint(schedule=written).write(prefix)
    fresh = MyStepLR(optimizer(), 3)

    Checkpoint(schedule=fresh).read(prefix).assert_consumed()

    assert fresh.last_epoch == 7


FORMS = {
    "a state alone": b'{"step_size":3}',
    "a list": b"[]",
    "no kind": b'{"state":{}}',
    "no state": b'{"kind":"SequentialLR"}',
    "a kind that is a number": b'{"kind":5,"state":{}}',
    "a state that is a list": b'{"kind":"SequentialLR","state":[]}',
    "more than there should be": b'{"kind":"SequentialLR","state":{},"more":1}',
    "parts that are a number": b'{"kind":"SequentialLR","parts":2,"state":{"_schedulers":[{},{}]}}',
    "parts without kinds": b'{"kind":"SequentialLR","parts":[{},{}],"state":{"_schedulers":[{},{}]}}',
    "parts without states": b'{"kind":"SequentialLR","parts":[{"kind":"StepLR"},{"kind":"StepLR"}],"state":{}}',
    "a state too few": b'{"kind":"ChainedScheduler","parts":[{"kind":"A"},{"kind":"B"}],"state":{"_schedulers":[{}]}}',
    "a part's state that is a number": b'{"kind":"SequentialLR","parts":[{"kind":"A"}],"state":{"_schedulers":[5]}}',
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_a_state_that_no_scheduler_wrote_is_damage_and_nothing_changes(text: bytes, prefix: str) -> None:
    """C165, C169"""

    class Stored(Trackable):
        def _serialize_to_tensors(self) -> dict[str, Value]:
            return {PYTHON_STATE: text}

    Checkpoint(schedule=Stored()).write(prefix)
    scheduler = sequence(MyStepLR.of, MyStepLR.of)(optimizer())
    before = repr(scheduler.state_dict())

    with pytest.raises(DataLossError, match=r"\(root\)\.schedule .* expected form"):
        Checkpoint(schedule=scheduler).read(prefix)

    assert repr(scheduler.state_dict()) == before


# Schedules that are made of others.


def linear(optimizer: Optimizer) -> LRScheduler:
    return LinearLR(optimizer, 0.5, total_iters=3)


def cosine(optimizer: Optimizer) -> LRScheduler:
    return CosineAnnealingLR(optimizer, 5)


def constant(optimizer: Optimizer) -> LRScheduler:
    return ConstantLR(optimizer, 0.5)


def exponential(optimizer: Optimizer) -> LRScheduler:
    return ExponentialLR(optimizer, 0.5)


Make = Callable[[Optimizer], LRScheduler]


def sequence(*parts: Make) -> Make:
    return lambda optimizer: SequentialLR(
        optimizer, [part(optimizer) for part in parts], milestones=list(range(1, len(parts)))
    )


def chain(*parts: Make) -> Make:
    return lambda optimizer: ChainedScheduler([part(optimizer) for part in parts], optimizer)


NESTED: dict[str, tuple[Make, Make, str]] = {
    "swapped": (
        sequence(linear, cosine),
        sequence(cosine, linear),
        r"the state of a LinearLR, but number 0 of the schedulers in the live scheduler is a CosineAnnealingLR",
    ),
    "one other": (
        chain(linear, exponential),
        chain(linear, constant),
        r"the state of a ExponentialLR, but number 1 of the schedulers in the live scheduler is a ConstantLR",
    ),
    "more": (
        sequence(linear, cosine),
        sequence(linear, cosine, exponential),
        r"a SequentialLR of 2 schedulers \(LinearLR, CosineAnnealingLR\), but the live scheduler has 3 "
        r"\(LinearLR, CosineAnnealingLR, ExponentialLR\)",
    ),
    "fewer": (chain(linear, constant), chain(linear), r"a ChainedScheduler of 2 .*, but the live scheduler has 1"),
    "deeper": (
        sequence(linear, chain(constant, exponential)),
        sequence(linear, chain(exponential, constant)),
        r"ConstantLR, but number 0 of the schedulers in number 1 of the schedulers in the live scheduler is a Exponent",
    ),
    "flat": (
        sequence(linear, chain(constant)),
        sequence(linear, constant),
        r"ChainedScheduler, but number 1 .*ConstantLR",
    ),
}


@pytest.mark.parametrize(("saved", "live", "complaint"), NESTED.values(), ids=NESTED)
def test_other_schedulers_inside_are_a_mismatch_and_nothing_changes(
    saved: Make, live: Make, complaint: str, prefix: str
) -> None:
    """C165: their attributes would be mixed without a word."""
    Checkpoint(schedule=saved(optimizer())).write(prefix)
    scheduler, weight = live(optimizer()), torch.ones(2)
    before = repr(scheduler.state_dict())

    with pytest.raises(MismatchError, match=rf"\(root\)\.schedule .* nothing has been assigned: .*{complaint}"):
        Checkpoint(schedule=scheduler, weight=weight).read(prefix)

    assert repr(scheduler.state_dict()) == before


def test_the_kinds_of_nested_schedulers_are_stored_beside_the_state(prefix: str) -> None:
    """C165"""
    Checkpoint(schedule=sequence(linear, chain(constant, MyStepLR.of))(optimizer())).write(prefix)

    stored = py_state(prefix, "schedule")

    assert {name: value for name, value in stored.items() if name not in ("state", "groups")} == {
        "kind": "SequentialLR",
        "parts": [
            {"kind": "LinearLR"},
            {"kind": "ChainedScheduler", "parts": [{"kind": "ConstantLR"}, {"kind": "MyStepLR"}]},
        ],
    }


def test_a_users_own_kind_inside_takes_the_state_of_what_it_derives_from(prefix: str) -> None:
    """C165"""
    written = chain(linear, lambda o: StepLR(o, 3))(optimizer())
    Checkpoint(schedule=written).write(prefix)

    Checkpoint(schedule=chain(linear, MyStepLR.of)(optimizer())).read(prefix).assert_consumed()


# SWALR of torch 2.6, which has a function in its state.


@pytest.fixture
def old_torch(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called once the schedulers are made, turns SWALR into that of torch 2.6."""

    def become_old() -> None:
        monkeypatch.delattr(SWALR, "_set_anneal_func", raising=False)
        for name in ("state_dict", "load_state_dict"):
            monkeypatch.setattr(SWALR, name, vars(LRScheduler)[name])

    return become_old


@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize("is_nested", [False, True])
def test_the_annealing_of_an_swa_schedule_is_stored_by_name_whatever_the_torch(
    strategy: str, is_nested: bool, prefix: str, old_torch: Callable[[], None]
) -> None:
    """C165, C168"""

    def make(strategy: str) -> tuple[SWALR, Any]:
        group = optimizer()
        swa = SWALR(group, swa_lr=0.1, anneal_epochs=4, anneal_strategy=strategy)  # type: ignore[arg-type]
        return swa, SequentialLR(group, [ConstantLR(group), swa], milestones=[2]) if is_nested else swa

    other = {"cos": "linear", "linear": "cos"}[strategy]
    (written, schedule), (fresh, live) = make(strategy), make(other)
    newer = Checkpoint(schedule=schedule).write(prefix)
    old_torch()
    for scheduler in (written, fresh):
        vars(scheduler).pop("_anneal_strategy", None)

    older = Checkpoint(schedule=schedule).write(f"{prefix}-old")
    assert py_state(older, "schedule") == py_state(newer, "schedule")
    Checkpoint(schedule=live).read(newer).assert_consumed()

    assert fresh.anneal_func is getattr(SWALR, {"cos": "_cosine_anneal", "linear": "_linear_anneal"}[strategy])


def test_an_annealing_function_of_the_users_own_is_refused(tmp_path: Path, old_torch: Callable[[], None]) -> None:
    """C168"""
    scheduler = SWALR(optimizer(), swa_lr=0.1)
    old_torch()
    scheduler.anneal_func = lambda t: t

    with pytest.raises(UnsupportedValueError, match=r"\['state'\]\['anneal_func'\] is a builtins\.function"):
        Checkpoint(schedule=scheduler).save(tmp_path / "ckpt")

    assert list(tmp_path.iterdir()) == []


# What is stored, and with what.


def test_a_scheduler_is_one_node_and_its_optimizer_is_not_copied_into_it(prefix: str) -> None:
    """C165, C170"""
    model = nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=0.5, momentum=0.9)
    scheduler = MultiStepLR(optimizer, [2, 2, 3])
    model(torch.ones(1)).backward()
    optimizer.step()

    Checkpoint(model=model, scheduler=scheduler, zoptimizer=optimizer).write(prefix)

    root, *_ = graph = witness.read_graph(prefix)
    (node,) = (graph[child.node_id] for child in root.children if child.local_name == "scheduler")
    assert node.children == []
    assert node.slot_variables == []
    stored = py_state(prefix, "scheduler")
    assert stored["kind"] == "MultiStepLR"
    state = stored["state"]
    assert state["milestones"] == {"$": "counter", "v": [[2, 2], [3, 1]]}
    assert "optimizer" not in state
    assert [key for key in witness.read_bundle(prefix) if "momentum_buffer" in key] == [
        "model/bias/.OPTIMIZER_SLOT/zoptimizer/momentum_buffer/.ATTRIBUTES/VARIABLE_VALUE",
        "model/weight/.OPTIMIZER_SLOT/zoptimizer/momentum_buffer/.ATTRIBUTES/VARIABLE_VALUE",
    ]


def test_a_scheduler_restores_without_its_optimizer_in_the_checkpoint(prefix: str) -> None:
    """C165, C170"""

    def make() -> ReduceLROnPlateau:
        return ReduceLROnPlateau(SGD(nn.Linear(1, 1).parameters(), lr=0.5), patience=3)

    scheduler = make()
    scheduler.step(2.0)
    scheduler.step(2.5)
    path = Checkpoint(scheduler=scheduler).save(prefix)

    other = make()
    Checkpoint(scheduler=other).restore(path).assert_consumed()

    assert other.state_dict() == scheduler.state_dict()
    assert (other.best, other.num_bad_epochs) == (2.0, 1)


class Warmup:
    """A schedule as an object; its attributes are its state, as PyTorch has it."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, epoch: int) -> float:
        return min(1.0, (epoch + 1) / self.steps)


def test_the_attributes_of_a_callable_schedule_travel_and_a_function_does_not(prefix: str) -> None:
    """C165"""

    def make(steps: int) -> LambdaLR:
        model = nn.Linear(1, 1)
        groups = [{"params": [model.weight]}, {"params": [model.bias]}]
        return LambdaLR(SGD(groups, lr=0.5), [Warmup(steps), lambda epoch: 1.0])

    path = Checkpoint(scheduler=make(4)).save(prefix)
    other = make(10)
    Checkpoint(scheduler=other).restore(path).assert_consumed()

    assert py_state(path, "scheduler")["state"]["lr_lambdas"] == [{"steps": 4}, None]
    assert other.lr_lambdas[0].steps == 4
    assert other.lr_lambdas[1](7) == 1.0


def test_a_schedule_that_holds_what_cannot_be_saved_is_refused_with_its_position(prefix: str) -> None:
    """C165, C168"""
    schedule = Warmup(4)
    schedule.callback = object()  # type: ignore[attr-defined]
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=0.5)

    with pytest.raises(
        UnsupportedValueError, match=r"\(root\)\.s cannot be saved: .* \['state'\]\['lr_lambdas'\]\[0\]"
    ):
        Checkpoint(s=LambdaLR(optimizer, schedule)).save(prefix)
