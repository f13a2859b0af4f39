"""Which checkpoints a `CheckpointManager` keeps.

A policy looks at all checkpoints and says which it wants to keep; joined by ``|``, several keep what any of them wants.
What none wants is deleted after the next save, but never the newest.

Each policy decides the same whether the ones that it does not want are still there or gone, so that it makes no
difference how often, and after which restarts, it is asked.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, SupportsIndex

__all__ = [
    "KeepBest",
    "KeepEveryHours",
    "KeepEverySteps",
    "KeepLatest",
    "Retention",
    "SavedCheckpoint",
]

_SECONDS_PER_HOUR = 3600.0


@dataclasses.dataclass(frozen=True)
class SavedCheckpoint:
    """What a manager knows of a checkpoint."""

    path: str
    timestamp: float
    """When it was complete, in seconds since 1970."""
    step: int | None
    """What the manager's step counter said; without one, the number in the name; None where neither is known."""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What was given to `CheckpointManager.save`."""


class Retention(abc.ABC):
    """A rule for what is kept. Implement `kept` for one of your own.

    Example:
        >>> from torch_trackckpt.retention import KeepBest, KeepEverySteps, KeepLatest
        >>> KeepLatest(3) | KeepBest(2, "loss") | KeepEverySteps(1000)
        KeepLatest(3) | KeepBest(2, 'loss', mode='min') | KeepEverySteps(1000)
    """

    @abc.abstractmethod
    def kept(self, checkpoints: Sequence[SavedCheckpoint]) -> Iterable[SavedCheckpoint]:
        """Which of the checkpoints, given in the order in which they were saved, are to be kept."""

    @property
    def metrics(self) -> frozenset[str]:
        """The names of the metrics that the rule compares."""
        return frozenset()

    def __or__(self, other: Retention) -> Retention:
        if not isinstance(other, Retention):
            return NotImplemented
        return _AnyOf((*_parts(self), *_parts(other)))


@dataclasses.dataclass(frozen=True, repr=False)
class _AnyOf(Retention):
    policies: tuple[Retention, ...]

    def kept(self, checkpoints: Sequence[SavedCheckpoint]) -> Iterable[SavedCheckpoint]:
        return itertools.chain.from_iterable(policy.kept(checkpoints) for policy in self.policies)

    @property
    def metrics(self) -> frozenset[str]:
        return frozenset().union(*(policy.metrics for policy in self.policies))

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.policies))


def _parts(policy: Retention) -> tuple[Retention, ...]:
    return policy.policies if isinstance(policy, _AnyOf) else (policy,)


@dataclasses.dataclass(frozen=True, repr=False)
class KeepLatest(Retention):
    """Keeps the newest checkpoints.

    Raises:
        ValueError, TypeError: the number is not a positive integer.

    Example:
        >>> from torch_trackckpt.retention import KeepLatest, SavedCheckpoint
        >>> saved = [SavedCheckpoint(f"ckpt-{number}", float(number), number) for number in (1, 2, 3)]
        >>> [checkpoint.path for checkpoint in KeepLatest(2).kept(saved)]
        ['ckpt-2', 'ckpt-3']
    """

    num_checkpoints: int

    def __post_init__(self) -> None:
        checked_integer("KeepLatest: num_checkpoints", self.num_checkpoints)

    def kept(self, checkpoints: Sequence[SavedCheckpoint]) -> Iterable[SavedCheckpoint]:
        return checkpoints[-self.num_checkpoints :]

    def __repr__(self) -> str:
        return f"KeepLatest({self.num_checkpoints})"


@dataclasses.dataclass(frozen=True, repr=False)
class KeepBest(Retention):
    """Keeps the checkpoints with the best values of a metric; of equal ones, those that were saved first.

    A checkpoint that was saved without metrics, or whose metric is NaN, is not among the best.

    Args:
        num_checkpoints: how many.
        metric: its name among the ``metrics`` of `CheckpointManager.save`.
        mode: whether the lowest (``"min"``) or the highest (``"max"``) value is best.

    Raises:
        ValueError, TypeError: the number is not a positive integer, or the mode is neither of these.

    Example:
        >>> from torch_trackckpt.retention import KeepBest, SavedCheckpoint
        >>> saved = [SavedCheckpoint(f"ckpt-{n}", n, n, {"loss": loss}) for n, loss in enumerate([0.5, 0.1, 0.3])]
        >>> [checkpoint.path for checkpoint in KeepBest(2, "loss").kept(saved)]
        ['ckpt-1', 'ckpt-2']
    """

    num_checkpoints: int
    metric: str
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        checked_integer("KeepBest: num_checkpoints", self.num_checkpoints)
        if self.mode not in ("min", "max"):
            raise ValueError(f"KeepBest: mode must be 'min' or 'max', not {self.mode!r}.")
        if not isinstance(self.metric, str):
            raise TypeError(f"KeepBest: metric must be the name of a metric, not {self.metric!r}.")

    def kept(self, checkpoints: Sequence[SavedCheckpoint]) -> Iterable[SavedCheckpoint]:
        measured = [saved for saved in checkpoints if not math.isnan(saved.metrics.get(self.metric, math.nan))]
        sign = 1 if self.mode == "min" else -1
        return sorted(measured, key=lambda saved: sign * saved.metrics[self.metric])[: self.num_checkpoints]

    @property
    def metrics(self) -> frozenset[str]:
        return frozenset([self.metric])

    def __repr__(self) -> str:
        return f"KeepBest({self.num_checkpoints}, {self.metric!r}, mode={self.mode!r})"


@dataclasses.dataclass(frozen=True, repr=False)
class KeepEverySteps(Retention):
    """Keeps the first checkpoint at or after each multiple of a number of steps, zero included.

    Raises:
        ValueError, TypeError: the number is not a positive integer.

    Example:
        >>> from torch_trackckpt.retention import KeepEverySteps, SavedCheckpoint
        >>> saved = [SavedCheckpoint(f"ckpt-{step}", float(step), step) for step in range(900, 2400, 300)]
        >>> [checkpoint.path for checkpoint in KeepEverySteps(1000).kept(saved)]
        ['ckpt-900', 'ckpt-1200', 'ckpt-2100']
    """

    num_steps: int

    def __post_init__(self) -> None:
        checked_integer("KeepEverySteps: num_steps", self.num_steps)

    def kept(self, checkpoints: Sequence[SavedCheckpoint]) -> Iterable[SavedCheckpoint]:
        first: dict[int, SavedCheckpoint] = {}
        for saved in checkpoints:
            if saved.step is not None:
                first.setdefault(saved.step // self.num_steps, saved)
        return first.values()

    def __repr__(self) -> str:
        return f"KeepEverySteps({self.num_steps})"


@dataclasses.dataclass(frozen=True, repr=False)
class KeepEveryHours(Retention):
    """Keeps the first checkpoint, and each that was made at least so many hours after the last that it keeps.

    One that was made before that last one tells of a clock that was set back: it is kept, and counting goes on from it.

    Raises:
        ValueError: the number of hours is not positive and finite.

    Example:
        >>> from torch_trackckpt.retention import KeepEveryHours, SavedCheckpoint
        >>> saved = [SavedCheckpoint(f"ckpt-{hour}", hour * 3600.0, hour) for hour in range(6)]
        >>> [checkpoint.path for checkpoint in KeepEveryHours(2.5).kept(saved)]
        ['ckpt-0', 'ckpt-3']
    """

    num_hours: float

    def __post_init__(self) -> None:
        if not 0 < self.num_hours < math.inf:
            raise ValueError(f"KeepEveryHours: num_hours must be a positive number, not {self.num_hours!r}.")

    def kept(self, checkpoints: Sequence[SavedCheckpoint]) -> Iterable[SavedCheckpoint]:
        last: float | None = None
        for saved in checkpoints:
            if last is None or not 0 <= saved.timestamp - last < self.num_hours * _SECONDS_PER_HOUR:
                last = saved.timestamp
                yield saved

    def __repr__(self) -> str:
        return f"KeepEveryHours({self.num_hours})"


def checked_integer(what: str, number: SupportsIndex, *, least: float = 1) -> int:
    """The number as an int.

    Raises:
        ValueError: it is less than ``least``.
        TypeError: it is no integer.
    """
    try:
        value = operator.index(number)
    except TypeError:
        raise TypeError(f"{what} must be an integer, not {number!r}.") from None
    if value < least:
        raise ValueError(f"{what} must be at least {least}, but is {value}.")
    return value
