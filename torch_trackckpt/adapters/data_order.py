"""What decides in which order a data loader goes through its data: random generators, epochs, states of samplers.

A loader that has no state of its own can be put back into the middle of an epoch by this: its order is set to what it
was when the epoch began, the same epoch begins again, what was handed out is skipped, and then everything is set to
what it was when the checkpoint was made.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data.distributed import DistributedSampler

from torch_trackckpt.errors import MismatchError

__all__ = [
    "DataOrder",
    "epoch_state",
    "has_own_state",
    "kept_process_random_state",
    "process_random_state",
    "set_epoch_state",
    "set_process_random_state",
]


@dataclasses.dataclass(frozen=True)
class _Part:
    """One thing that decides the order."""

    get: Callable[[], Any]
    set: Callable[[Any], None]
    is_only_for_iter: bool = False
    """Whether it moves on by itself when the epoch begins again, and may hold a position within the epoch."""


class DataOrder:
    """What decides the order of one loader, apart from the random state of the process.

    Args:
        loader: its own generator counts, and those of its samplers; and the epochs of its samplers.
        is_all: whether the loader leaves all the rest to the caller, too: the states of samplers that have one, and
            the generator and the epoch of the data set.
    """

    def __init__(self, loader: object, *, is_all: bool) -> None:
        self._parts: dict[str, _Part] = {}
        known: set[int] = set()
        for name, holder in _holders(loader, with_data_set=is_all):
            for part_name, thing, part in _parts_of(holder, with_state=is_all and holder is not loader):
                # A sampler often has the generator of its loader.
                if id(thing) not in known:
                    known.add(id(thing))
                    self._parts[f"{name}.{part_name}"] = part

    def state(self) -> dict[str, Any]:
        """As it is now."""
        return {name: part.get() for name, part in self._parts.items()}

    def set(self, state: Mapping[str, Any]) -> None:
        """Makes it what `state` returned."""
        for name, part in self._parts.items():
            part.set(state[name])

    def set_after_iter(self, state: Mapping[str, Any]) -> None:
        """The same for an epoch that has begun again, and goes on."""
        for name, part in self._parts.items():
            if not part.is_only_for_iter:
                part.set(state[name])

    def check(self, state: object) -> None:
        """Raises `MismatchError` where a state is that of a loader with other parts."""
        stored = sorted(state) if isinstance(state, dict) else []
        if stored != sorted(self._parts):
            raise MismatchError(
                f"the order of the stored loader's data is decided by {', '.join(stored) or 'nothing random'}, that of "
                f"the live one by {', '.join(sorted(self._parts)) or 'nothing random'}; build the loader with the same "
                "samplers, and with generators of their own where the stored one had them."
            )


def _holders(loader: object, *, with_data_set: bool) -> Iterator[tuple[str, object]]:
    """What may hold a part of the order, and how to call it."""
    yield "loader", loader
    if with_data_set:
        yield "dataset", getattr(loader, "dataset", None)
    # The plain sampler first: a batch sampler has it inside.
    yield "sampler", getattr(loader, "sampler", None)
    name, holder = "batch_sampler", getattr(loader, "batch_sampler", None)
    seen: set[int] = set()
    while holder is not None and id(holder) not in seen:
        seen.add(id(holder))
        yield name, holder
        name, holder = f"{name}.sampler", getattr(holder, "sampler", None)


def _parts_of(holder: object, *, with_state: bool) -> Iterator[tuple[str, object, _Part]]:
    if with_state and has_own_state(holder) and not isinstance(holder, torch.utils.data.Dataset):
        yield "state", holder, _part_of_state(holder)
        return
    generator = getattr(holder, "generator", None)
    if isinstance(generator, torch.Generator):
        yield "generator", generator, _Part(generator.get_state, functools.partial(_set_generator, generator))
    if isinstance(holder, DistributedSampler) and not has_own_state(holder):
        yield "epoch", holder, _Part(lambda: epoch_state(holder), lambda state: set_epoch_state(holder, state))
    elif callable(set_epoch := getattr(holder, "set_epoch", None)) and type(getattr(holder, "epoch", None)) is int:
        yield "epoch", holder, _Part(lambda: holder.epoch, set_epoch)  # type: ignore[attr-defined]


def _part_of_state(sampler: Any) -> _Part:
    # A state may be what the sampler goes on to change.
    return _Part(
        get=lambda: copy.deepcopy(sampler.state_dict()),
        set=lambda state: sampler.load_state_dict(copy.deepcopy(state)),
        is_only_for_iter=True,
    )


def _set_generator(generator: torch.Generator, state: torch.Tensor) -> None:
    generator.set_state(state)


def epoch_state(sampler: DistributedSampler[Any]) -> dict[str, int]:
    """Which of its orders a sampler is at."""
    return {"epoch": sampler.epoch, "seed": sampler.seed}


def set_epoch_state(sampler: DistributedSampler[Any], state: Mapping[str, int]) -> None:
    """Takes over what `epoch_state` returned."""
    sampler.seed = state["seed"]
    sampler.set_epoch(state["epoch"])


def has_own_state(value: object) -> bool:
    """Whether an object's class has ``state_dict`` and ``load_state_dict``."""
    return all(callable(getattr(type(value), name, None)) for name in ("state_dict", "load_state_dict"))


# The generators of the process that samplers use when they have none of their own: those of Python, NumPy and torch's
# on the CPU. Other than in `RNGState`, all values are such that `torch.load` takes them with ``weights_only``.


def process_random_state() -> dict[str, Any]:
    """The states of these generators."""
    numpy: Any = np.random.get_state(legacy=False)
    words = {name: word.tolist() if isinstance(word, np.ndarray) else word for name, word in numpy["state"].items()}
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": words},
        "torch": torch.get_rng_state(),
    }


def set_process_random_state(state: Mapping[str, Any]) -> None:
    """Takes over what `process_random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])


@contextlib.contextmanager
def kept_process_random_state() -> Iterator[None]:
    """Undoes what happens to these generators inside of it."""
    before = process_random_state()
    try:
        yield
    finally:
        set_process_random_state(before)
