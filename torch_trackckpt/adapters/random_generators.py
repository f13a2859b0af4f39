"""NumPy's and Python's random generators as nodes: the stream after a restore goes on where it was saved.

A state is checked before it is given to a generator: by its form and limits first, because NumPy takes positions that
lie outside of its buffers, and then by a copy of the generator, which takes it on trial.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from torch_trackckpt.adapters.registry import register_adapter
from torch_trackckpt.adapters.state_node import StateNode
from torch_trackckpt.errors import DataLossError, MismatchError, UnsupportedValueError
from torch_trackckpt.trackable import Prepared

__all__ = [
    "NumpyGeneratorAdapter",
    "PythonRandomAdapter",
    "RandomStateAdapter",
    "check_numpy_state",
    "check_python_state",
]

_LIMITS = {"pos": 624, "buffer_pos": 4, "has_uint32": 1, "has_gauss": 1, "uinteger": 2**32 - 1}
"""The largest values of NumPy's own generators; beyond the positions, draws would read foreign memory."""

_Put = Callable[[Any, Any], None]


def check_numpy_state(stored: Any, live: dict[str, Any]) -> None:
    """Checks a state of a NumPy generator against one of the live generator.

    Raises:
        MismatchError: it is of another kind of bit generator.
        DataLossError: it is no state at all.
    """
    kind = stored.get("bit_generator") if isinstance(stored, dict) else None
    if isinstance(kind, str) and kind != live["bit_generator"]:
        raise MismatchError(
            f"the checkpoint holds the state of a {kind}, but the live generator draws from a "
            f"{live['bit_generator']}; make it with the bit generator that was saved."
        )
    if not _has_form(stored, live):
        raise DataLossError(f"The stored value is no state of a {live['bit_generator']}.")


def _has_form(stored: Any, live: Any, name: str = "") -> bool:
    if type(stored) is not type(live):
        return False
    if isinstance(stored, dict):
        return stored.keys() == live.keys() and all(_has_form(stored[key], live[key], key) for key in live)
    if isinstance(stored, np.ndarray):
        return bool(stored.dtype == live.dtype and stored.shape == live.shape)
    return not isinstance(stored, int) or 0 <= stored <= _LIMITS.get(name, stored)


def check_python_state(stored: Any) -> None:
    """Checks a state of `random.Random`.

    Raises:
        DataLossError: it is none.
    """
    is_state = isinstance(stored, tuple) and len(stored) == 3 and (stored[2] is None or type(stored[2]) is float)
    if not is_state or not isinstance(stored[1], tuple) or any(type(word) is not int for word in stored[1]):
        raise DataLossError("The stored value is no state of a random.Random.")
    _try(random.Random(), stored, random.Random.setstate)


def _try(generator: Any, stored: Any, put: _Put) -> None:
    try:
        put(generator, stored)
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise DataLossError(f"The stored value is no state of this generator: {error}") from error


class NumpyGeneratorAdapter(StateNode):
    """A ``numpy.random.Generator``: the state of its bit generator.

    How many children its seed sequence has spawned is no part of that state, in NumPy's own pickles of it either.
    """

    def __init__(self, generator: np.random.Generator) -> None:
        super().__init__(
            generator,
            None,
            capture=lambda path_of: generator.bit_generator.state,
            prepare=lambda stored, resolve: _prepare_numpy(
                generator, stored, dict(generator.bit_generator.state), _put_generator
            ),
        )
        self.adapted = generator


class RandomStateAdapter(StateNode):
    """A ``numpy.random.RandomState``, with the normal variate that it may have in reserve."""

    def __init__(self, generator: np.random.RandomState) -> None:
        super().__init__(
            generator,
            None,
            capture=lambda path_of: generator.get_state(legacy=False),
            prepare=lambda stored, resolve: _prepare_numpy(
                generator, stored, dict(generator.get_state(legacy=False)), np.random.RandomState.set_state
            ),
        )
        self.adapted = generator


def _put_generator(generator: np.random.Generator, state: Any) -> None:
    generator.bit_generator.state = state


def _prepare_numpy(generator: Any, stored: Any, live: dict[str, Any], put: _Put) -> Prepared:
    check_numpy_state(stored, live)
    _try(copy.deepcopy(generator), stored, put)
    return Prepared(lambda: put(generator, stored))


class PythonRandomAdapter(StateNode):
    """A ``random.Random``."""

    def __init__(self, generator: random.Random) -> None:
        super().__init__(
            generator,
            None,
            capture=lambda path_of: _python_state(generator),
            prepare=lambda stored, resolve: _prepare_python(generator, stored),
        )
        self.adapted = generator


def _python_state(generator: random.Random) -> object:
    if not _has_state(generator):
        raise UnsupportedValueError(
            f"{type(generator).__name__} does not draw from the state of a random.Random; register an adapter for it "
            "(torch_trackckpt.register_adapter), or leave it out."
        )
    return generator.getstate()


def _prepare_python(generator: random.Random, stored: Any) -> Prepared:
    check_python_state(stored)
    if not _has_state(generator):
        raise MismatchError(
            f"the checkpoint holds the state of a random.Random, which a {type(generator).__name__} does not draw from."
        )
    return Prepared(lambda: generator.setstate(stored))


def _has_state(generator: random.Random) -> bool:
    """SystemRandom has none, and a class with methods of its own may keep anything."""
    kind = type(generator)
    return (kind.getstate, kind.setstate) == (random.Random.getstate, random.Random.setstate)


register_adapter(np.random.Generator, NumpyGeneratorAdapter)
register_adapter(np.random.RandomState, RandomStateAdapter)
register_adapter(random.Random, PythonRandomAdapter)
