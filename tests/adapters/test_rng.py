"""Random generators: the stream after a restore is the stream after the save."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import witness

from torch_trackckpt import Checkpoint, RNGState
from torch_trackckpt.errors import MismatchError
from torch_trackckpt.trackable import Trackable, Value


@pytest.fixture(autouse=True)
def _own_random_state() -> Iterator[None]:
    """Each test starts from seeded generators and leaves those of the others as they were."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)
        yield
    random.setstate(python)
    np.random.set_state(legacy)


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "ckpt")


DRAWS: dict[str, Callable[[], object]] = {
    "random.random": random.random,
    "random.gauss": lambda: random.gauss(0, 1),
    "random.sample": lambda: random.sample(range(100), 5),
    "numpy.random.rand": lambda: np.random.rand(3).tolist(),
    "numpy.random.standard_normal": lambda: np.random.standard_normal(),
    "numpy.random.permutation": lambda: np.random.permutation(20).tolist(),
    "torch.rand": lambda: torch.rand(3).tolist(),
    "torch.randn": lambda: torch.randn(1).tolist(),
    "torch.randperm": lambda: torch.randperm(20).tolist(),
    "torch.nn.functional.dropout": lambda: torch.nn.functional.dropout(torch.ones(32)).tolist(),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("num_before", [0, 1])
def test_a_stream_continues_where_it_was_saved(draw: Callable[[], object], num_before: int, prefix: str) -> None:
    """C167: after one draw, too, when normal variates have a second one in reserve."""
    for _ in range(num_before):
        draw()
    path = Checkpoint(rng=RNGState()).save(prefix)
    uninterrupted = [draw() for _ in range(3)]
    for _ in range(7):
        draw()

    Checkpoint(rng=RNGState()).restore(path).assert_consumed()

    assert [draw() for _ in range(3)] == uninterrupted


def test_saving_draws_no_random_number(prefix: str) -> None:
    """C167"""

    def draw_all() -> list[object]:
        return [draw() for draw in DRAWS.values()]

    states = RNGState().state_dict()
    without_save = draw_all()
    RNGState().load_state_dict(states)

    Checkpoint(rng=RNGState()).save(prefix)

    assert draw_all() == without_save


def test_restoring_the_rest_of_a_checkpoint_does_not_disturb_the_stream(prefix: str) -> None:
    """C167: the stored state is what counts, wherever the random state stands in the graph."""
    modules = {name: torch.nn.Linear(4, 4) for name in ("a", "z")}
    path = Checkpoint(m_rng=RNGState(), **modules).save(prefix)
    uninterrupted = torch.rand(4)

    Checkpoint(m_rng=RNGState(), **{name: torch.nn.Linear(4, 4) for name in modules}).restore(path).assert_consumed()

    assert torch.equal(torch.rand(4), uninterrupted)


def test_the_state_is_one_python_state_with_the_tensors_beside_it(prefix: str) -> None:
    """C167, C169: torch's state is stored as a tensor of bytes, and nothing as a pickle."""
    Checkpoint(rng=RNGState()).write(prefix)

    stored = witness.read_bundle(prefix)

    assert stored["rng/.ATTRIBUTES/py_state"].dtype == witness.DT_STRING
    assert stored["rng/0/.ATTRIBUTES/VARIABLE_VALUE"].data == bytes(torch.get_rng_state().tolist())


def test_states_of_cuda_devices_are_left_aside_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """C167: a checkpoint of a machine with accelerators restores on one without."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    state = RNGState().state_dict() | {"cuda": [torch.zeros(16, dtype=torch.uint8)]}
    uninterrupted = torch.rand(2)

    RNGState().load_state_dict(state)

    assert torch.equal(torch.rand(2), uninterrupted)


def test_states_for_more_cuda_devices_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """C167"""
    state = RNGState().state_dict() | {"cuda": [torch.zeros(16, dtype=torch.uint8)] * 2}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    with pytest.raises(ValueError, match=r"random states of 2 CUDA devices, but there are 1"):
        RNGState().load_state_dict(state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_stream_of_a_cuda_device_continues(prefix: str) -> None:
    """C167"""
    torch.rand(2, device="cuda")
    path = Checkpoint(rng=RNGState()).save(prefix)
    uninterrupted = torch.rand(3, device="cuda")

    Checkpoint(rng=RNGState()).restore(path).assert_consumed()

    assert torch.equal(torch.rand(3, device="cuda"), uninterrupted)


# Generators.


def test_a_generator_continues_its_own_stream(prefix: str) -> None:
    """C166"""
    generator = torch.Generator().manual_seed(5)
    torch.randn(3, generator=generator)
    path = Checkpoint(generator=generator).save(prefix)
    uninterrupted = torch.randn(5, generator=generator)

    other = torch.Generator()
    Checkpoint(generator=other).restore(path).assert_consumed()

    assert torch.equal(torch.randn(5, generator=other), uninterrupted)


def test_a_generator_that_two_objects_share_is_one_node(prefix: str) -> None:
    """C166"""
    generator = torch.Generator()

    Checkpoint(a=generator, b=[generator]).write(prefix)

    assert [key for key in witness.read_bundle(prefix) if key.startswith(("a/", "b/"))] == [
        "a/.ATTRIBUTES/VARIABLE_VALUE"
    ]


def test_a_restored_generator_leaves_the_global_stream_alone(prefix: str) -> None:
    """C166"""
    generator = torch.Generator().manual_seed(5)
    path = Checkpoint(generator=generator).save(prefix)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)

    Checkpoint(generator=generator).restore(path)

    assert torch.equal(torch.rand(3), expected)


class Stored(Trackable):
    """Puts chosen values where another object has its own."""

    def __init__(self, values: dict[str, Value]) -> None:
        self._values = values

    def _serialize_to_tensors(self) -> dict[str, Value]:
        return self._values


@pytest.mark.parametrize(
    "value",
    [torch.zeros(5056), torch.zeros(3, dtype=torch.uint8), torch.zeros((), dtype=torch.uint8), b"text"],
    ids=["another dtype", "too short", "a scalar", "a string"],
)
def test_a_value_that_is_no_state_of_a_generator_is_refused_and_changes_nothing(value: Value, prefix: str) -> None:
    """C163, C166"""
    path = Checkpoint(generator=Stored({"VARIABLE_VALUE": value})).save(prefix)
    generator, bystander = torch.Generator().manual_seed(5), torch.nn.Linear(2, 2)
    before = generator.get_state(), bystander.weight.clone()

    with pytest.raises(MismatchError, match=r"\(root\)\.generator cannot be restored .* no state of this kind"):
        Checkpoint(generator=generator, bystander=bystander).restore(path)

    assert torch.equal(generator.get_state(), before[0])
    assert torch.equal(bystander.weight, before[1])


class Sampler:
    """Shuffles with a generator of its own, as a training loop's sampler does."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.epoch = 0

    def order(self) -> list[int]:
        self.epoch += 1
        order: list[int] = torch.randperm(10, generator=self.generator).tolist()
        return order

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.generator.set_state(state["generator"])


def test_a_sampler_with_a_generator_inside_its_state_continues(prefix: str) -> None:
    """C166"""
    sampler = Sampler(seed=1)
    sampler.order()
    path = Checkpoint(sampler=sampler).save(prefix)
    uninterrupted = [sampler.order(), sampler.order()]

    other = Sampler(seed=2)
    Checkpoint(sampler=other).restore(path).assert_consumed()

    assert [other.order(), other.order()] == uninterrupted
    assert other.epoch == 3


def test_the_form_of_the_first_checkpoints_is_taken_as_well(prefix: str) -> None:
    np.random.seed(3)
    np.random.standard_normal()
    state = RNGState()
    old = {**state.state_dict(), "numpy": np.random.get_state()}
    assert isinstance(old["numpy"], tuple)
    expected = [np.random.standard_normal(), np.random.rand()]

    class Old(RNGState):
        def state_dict(self) -> dict[str, Any]:
            return old

    Checkpoint(rng=Old()).write(prefix)
    Checkpoint(rng=state).read(prefix).assert_consumed()
    assert [np.random.standard_normal(), np.random.rand()] == expected
