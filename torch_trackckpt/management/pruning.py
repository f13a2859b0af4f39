"""Which checkpoints leave a manager's ledger: by TensorFlow's two numbers, or by a retention policy."""

from __future__ import annotations

import dataclasses
import logging
from typing import Protocol

from torch_trackckpt.management.ledger import Ledger
from torch_trackckpt.retention import Retention, SavedCheckpoint

__all__ = ["ByPolicy", "Leaving", "MaxToKeep", "PruningRule"]

_SECONDS_PER_HOUR = 3600.0

_logger = logging.getLogger("torch_trackckpt")


@dataclasses.dataclass(frozen=True)
class Leaving:
    """What leaves a ledger."""

    deleted: tuple[SavedCheckpoint, ...]
    """Their files are removed."""
    preserved: tuple[SavedCheckpoint, ...]
    """Their files stay for good, and nobody looks at them any more."""
    last_preserved: float
    """When the last preserved one was made, these included."""


class PruningRule(Protocol):
    """Decides what leaves."""

    @property
    def needs_records(self) -> bool:
        """Whether steps and metrics count."""
        ...

    def recovered(self, ledger: Ledger, now: float) -> Ledger:
        """What a new manager goes on with, of what it found. The others are never deleted."""
        ...

    def leaving(self, ledger: Ledger) -> Leaving:
        """What leaves after a save; never the newest."""
        ...


@dataclasses.dataclass(frozen=True)
class MaxToKeep:
    """TensorFlow's rule: a number of checkpoints, and besides one of every few hours."""

    max_to_keep: int | None
    keep_every_n_hours: float | None

    @property
    def needs_records(self) -> bool:
        return False

    def recovered(self, ledger: Ledger, now: float) -> Ledger:
        last_preserved = ledger.last_preserved
        if now < last_preserved:
            _logger.warning(
                "The clock is %f seconds behind the last preserved checkpoint. The checkpoints that are there are kept "
                "for good, and time counts from now on.",
                last_preserved - now,
            )
            last_preserved = now
        # A time that is yet to come would have the checkpoint preserved, and all others deleted until then.
        capped = [dataclasses.replace(saved, timestamp=min(saved.timestamp, now)) for saved in ledger.active]
        active = tuple(saved for saved in capped if saved.timestamp > last_preserved)
        return dataclasses.replace(ledger, active=active, last_preserved=last_preserved)

    def leaving(self, ledger: Ledger) -> Leaving:
        surplus = () if self.max_to_keep is None else ledger.active[: -self.max_to_keep]
        deleted: list[SavedCheckpoint] = []
        preserved: list[SavedCheckpoint] = []
        last = ledger.last_preserved
        for saved in surplus:
            if self.keep_every_n_hours and saved.timestamp - self.keep_every_n_hours * _SECONDS_PER_HOUR >= last:
                preserved.append(saved)
                last = saved.timestamp
            else:
                deleted.append(saved)
        return Leaving(tuple(deleted), tuple(preserved), last)


@dataclasses.dataclass(frozen=True)
class ByPolicy:
    """A retention policy. What it keeps stays in the ledger, where it is looked at again after the next save."""

    retention: Retention

    @property
    def needs_records(self) -> bool:
        return True

    def recovered(self, ledger: Ledger, now: float) -> Ledger:
        # No policy compares times with the clock, so that it does not matter if the clock was set back.
        return ledger

    def leaving(self, ledger: Ledger) -> Leaving:
        kept = {saved.path for saved in self.retention.kept(ledger.active)} | {ledger.latest}
        deleted = tuple(saved for saved in ledger.active if saved.path not in kept)
        return Leaving(deleted, (), ledger.last_preserved)
