"""Generators of NumPy and Python that a program has of its own: the stream after a restore is that after the save."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from adapters.optimizers import py_state

from torch_trackckpt import Checkpoint, RNGState
from torch_trackckpt.errors import DataLossError, MismatchError, RestoreError, UnsupportedValueError
from torch_trackckpt.trackable import PYTHON_STATE, Trackable, Value

BIT_GENERATORS: dict[str, type[np.random.BitGenerator]] = {
    name: kind
    for name, kind in vars(np.random).items()
    if isinstance(kind, type) and issubclass(kind, np.random.BitGenerator) and kind is not np.random.BitGenerator
}
MAKERS: dict[str, Callable[[int], Any]] = {
    **{name: lambda seed, kind=kind: np.random.Generator(kind(seed)) for name, kind in BIT_GENERATORS.items()},
    "RandomState": np.random.RandomState,
    "RandomState of another kind": lambda seed: np.random.RandomState(np.random.Philox(seed)),
    "random.Random": random.Random,
}


def draw(generator: Any) -> list[Any]:
    """Draws of all kinds that may leave something in reserve for the next."""
    if isinstance(generator, random.Random):
        return [generator.random(), generator.gauss(0, 1), generator.randrange(1000)]
    small = generator.integers if isinstance(generator, np.random.Generator) else generator.randint
    numbers = [generator.standard_normal(), small(0, 2**31, dtype=np.int32), generator.random()]
    return [float(number).hex() for number in numbers]


def test_every_bit_generator_of_this_numpy_is_tried() -> None:
    assert BIT_GENERATORS.keys() >= {"MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("num_before", [0, 1, 2])
def test_a_stream_continues_where_it_was_saved(make: Callable[[int], Any], num_before: int, prefix: str) -> None:
    """C166, C167: also with half a word or a normal variate in reserve."""
    generator = make(1)
    for _ in range(num_before):
        draw(generator)
    path = Checkpoint(generator=generator).save(prefix)
    uninterrupted = [draw(generator) for _ in range(5)]

    other = make(2)
    draw(other)
    Checkpoint(generator=other).restore(path).assert_consumed()

    assert [draw(other) for _ in range(5)] == uninterrupted


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_saving_draws_nothing(make: Callable[[int], Any], prefix: str) -> None:
    """C167"""
    generator, undisturbed = make(1), make(1)

    Checkpoint(generator=generator).write(prefix)

    assert draw(generator) == draw(undisturbed)


def test_a_generator_is_one_node_wherever_it_stands(prefix: str) -> None:
    """C023"""
    generator = np.random.default_rng(1)

    Checkpoint(a=generator, b=[generator]).write(prefix)

    assert py_state(prefix, "a")["bit_generator"] == "PCG64"
    with pytest.raises(KeyError):
        py_state(prefix, "b/0")


@pytest.mark.parametrize(
    ("saved", "live", "kinds"),
    [
        (np.random.default_rng(1), np.random.Generator(np.random.MT19937(1)), ("PCG64", "MT19937")),
        (np.random.RandomState(1), np.random.RandomState(np.random.SFC64(1)), ("MT19937", "SFC64")),
        (np.random.Generator(np.random.Philox(1)), np.random.RandomState(1), ("Philox", "MT19937")),
    ],
    ids=["Generator", "RandomState", "both"],
)
def test_the_state_of_another_bit_generator_is_a_mismatch_and_nothing_changes(
    saved: Any, live: Any, kinds: tuple[str, str], prefix: str
) -> None:
    """C166"""
    path = Checkpoint(generator=saved, weight=torch.ones(1)).save(prefix)
    weight, expected = torch.zeros(1), repr(state_of(live))

    with pytest.raises(
        MismatchError, match=rf"\(root\)\.generator .*state of a {kinds[0]}, .* draws from a {kinds[1]}"
    ):
        Checkpoint(generator=live, weight=weight).restore(path)

    assert repr(state_of(live)) == expected
    assert float(weight) == 0


def state_of(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return generator.bit_generator.state


class Stateful:
    """Puts a chosen value where a generator has its state."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        raise AssertionError("never restored")


def numpy_state(name: str, *path: str, value: Any) -> Any:
    """The state of a generator with one entry of another value."""
    state = inner = dict(state_of(MAKERS[name](1)))
    for key in path[:-1]:
        inner[key] = inner = dict(inner[key])
    inner[path[-1]] = value
    return state


def python_state(index: int, value: Any) -> Any:
    state: list[Any] = list(random.Random(1).getstate())
    state[index] = value
    return tuple(state)


HOSTILE: dict[str, tuple[str, Any]] = {
    "a number": ("PCG64", 5),
    "an empty dict": ("PCG64", {}),
    "a list": ("RandomState", ["MT19937", [1]]),
    "a kind that is a list": ("PCG64", numpy_state("PCG64", "bit_generator", value=["PCG64"])),
    "a word too large": ("PCG64", numpy_state("PCG64", "state", "state", value=2**200)),
    "a negative word": ("PCG64", numpy_state("PCG64", "state", "inc", value=-1)),
    "a word that is a float": ("PCG64DXSM", numpy_state("PCG64DXSM", "state", "state", value=1.0)),
    "half a word too large": ("SFC64", numpy_state("SFC64", "uinteger", value=2**32)),
    "one entry more": ("SFC64", numpy_state("SFC64", "more", value=1)),
    "a key too short": ("MT19937", numpy_state("MT19937", "state", "key", value=np.zeros(623, np.uint32))),
    "a key of another type": ("MT19937", numpy_state("MT19937", "state", "key", value=np.zeros(624))),
    "a position outside": ("MT19937", numpy_state("MT19937", "state", "pos", value=10**6)),
    "a position before": ("MT19937", numpy_state("MT19937", "state", "pos", value=-1)),
    "a position outside of the buffer": ("Philox", numpy_state("Philox", "buffer_pos", value=1000)),
    "such a position of a RandomState": ("RandomState", numpy_state("RandomState", "state", "pos", value=10**6)),
    "a reserve that is text": ("RandomState", numpy_state("RandomState", "gauss", value="1.0")),
    "no tuple": ("random.Random", [3, (1,), None]),
    "another version": ("random.Random", python_state(0, 9)),
    "too few words": ("random.Random", python_state(1, (1, 2, 3))),
    "words that are text": ("random.Random", python_state(1, ("1",) * 625)),
    "a word beyond 64 bits": ("random.Random", python_state(1, (2**70,) * 625)),
    "an index outside": ("random.Random", python_state(1, (*[1] * 624, 10**6))),
    "a variate that is text": ("random.Random", python_state(2, "1.0")),
}


@pytest.mark.parametrize(("name", "state"), HOSTILE.values(), ids=HOSTILE)
def test_a_value_that_is_no_state_is_refused_and_nothing_changes(name: str, state: Any, prefix: str) -> None:
    """C163, C169: NumPy itself takes positions outside of its buffers, and reads there."""
    path = Checkpoint(generator=Stateful(state), weight=torch.ones(1)).save(prefix)
    generator, weight = MAKERS[name](1), torch.zeros(1)
    before = repr(state_of(generator))

    with pytest.raises(DataLossError, match=r"\(root\)\.generator cannot be restored .* no state of"):
        Checkpoint(generator=generator, weight=weight).restore(path)

    assert repr(state_of(generator)) == before
    assert float(weight) == 0


# Generators without a state.


class Own(random.Random):
    def getstate(self) -> tuple[Any, ...]:
        return ("mine",)


@pytest.mark.parametrize("generator", [random.SystemRandom(), Own()], ids=["SystemRandom", "another state"])
def test_a_generator_that_does_not_draw_from_such_a_state_is_refused_by_name(
    generator: random.Random, prefix: str
) -> None:
    """C168"""
    name = type(generator).__name__

    with pytest.raises(UnsupportedValueError, match=rf"\(root\)\.generator cannot be saved: {name} .*register_adapter"):
        Checkpoint(generator=generator).save(prefix)

    path = Checkpoint(generator=random.Random(1)).save(prefix)
    with pytest.raises(MismatchError, match=rf"\(root\)\.generator .* which a {name} does not draw from"):
        Checkpoint(generator=generator).restore(path)


class Lagged(random.Random):
    """A user's own generator on top of Python's."""


def test_a_class_that_derives_from_random_and_keeps_its_state_continues(prefix: str) -> None:
    """C166"""
    generator, other = Lagged(1), Lagged(2)
    path = Checkpoint(generator=generator).save(prefix)

    Checkpoint(generator=other).restore(path).assert_consumed()

    assert draw(other) == draw(generator)


# The random state of the whole process.


@pytest.mark.parametrize("part", ["python", "numpy", "torch"])
def test_a_damaged_part_of_the_process_state_leaves_all_generators_as_they_were(part: str, prefix: str) -> None:
    """C167, C169"""
    bad = {
        "python": python_state(2, "1.0"),
        "numpy": numpy_state("RandomState", "state", "pos", value=10**6),
        "torch": torch.zeros(3, dtype=torch.uint8),
    }
    rng = RNGState()
    before = repr(rng.state_dict())
    path = Checkpoint(rng=Stateful({**rng.state_dict(), part: bad[part]})).save(prefix)

    with pytest.raises(RestoreError, match=r"\(root\)\.rng did not take its state"):
        Checkpoint(rng=rng).restore(path)

    assert repr(rng.state_dict()) == before


class Stored(Trackable):
    def _serialize_to_tensors(self) -> dict[str, Value]:
        return {PYTHON_STATE: b'{"bit_generator":"PCG64"'}


def test_cut_text_in_the_place_of_a_state_is_damage(prefix: str) -> None:
    """C169"""
    path = Checkpoint(generator=Stored()).save(prefix)

    with pytest.raises(DataLossError, match=r"\(root\)\.generator cannot be restored .*damaged"):
        Checkpoint(generator=np.random.default_rng(1)).restore(path)
