"""What saving and restoring have cost so far, counted for each `Checkpoint` as TensorFlow counts it for a process.

| Here | TensorFlow's counter |
| --- | --- |
| `CheckpointMetrics.stalls` | checkpoint write duration: how long the caller was held up |
| `CheckpointMetrics.writes` | async checkpoint write duration, and checkpoint size |
| `CheckpointMetrics.reads` | checkpoint read duration |
| `CheckpointMetrics.training_time_saved_seconds` | training time saved |
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator

__all__ = ["CheckpointMetrics", "Durations", "Transfer", "Transfers"]

_logger = logging.getLogger("torch_trackckpt")


@dataclasses.dataclass(frozen=True)
class Durations:
    """How many operations there were, and how long they took."""

    count: int = 0
    total_seconds: float = 0.0
    last_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Transfers(Durations):
    """Operations that moved bytes."""

    total_bytes: int = 0
    last_bytes: int = 0


@dataclasses.dataclass
class Transfer:
    """One operation that is under way; whoever performs it sets the bytes."""

    path: str
    started_at: float
    num_bytes: int = 0


class CheckpointMetrics:
    """The counts of one `Checkpoint`, each of which is a value that does not change under the reader's hands.

    Only what succeeded is counted. Each save and restore also gives one line of the level INFO to the logger
    ``torch_trackckpt``.

    Args:
        clock: tells the time in seconds, from any beginning.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import Checkpoint
        >>> checkpoint = Checkpoint(x=torch.zeros(1000))
        >>> path = checkpoint.save(tempfile.mkdtemp() + "/ckpt")
        >>> checkpoint.io_metrics.writes.count, checkpoint.io_metrics.writes.last_bytes > 4000
        (1, True)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._safe_until = clock()
        self.stalls = Durations()
        """For each call of `save` and `write`, how long it held up the caller; it may have waited for the one
        before."""
        self.writes = Transfers()
        """For each checkpoint that was completed, the time from the moment its values are of, and the size of its
        files."""
        self.reads = Transfers()
        """For each `restore` and `read`, the time, and the bytes of the values that were read."""
        self.training_time_saved_seconds = 0.0
        """How much time has passed whose work would not be lost now: from the making of the `Checkpoint` to the last
        complete checkpoint. An asynchronous one counts to the moment that its values are of, a synchronous one to its
        end."""

    @contextlib.contextmanager
    def stalling(self) -> Iterator[None]:
        """Counts the block as a time in which the caller could not train."""
        start = self._clock()
        yield
        with self._lock:
            self.stalls = _longer(self.stalls, self._clock() - start)

    @contextlib.contextmanager
    def reading(self, path: str) -> Iterator[Transfer]:
        """Counts the block as a restore, once it has ended well; the block sets ``num_bytes`` of what it gets."""
        transfer = self.begin(path)
        yield transfer
        seconds = self._clock() - transfer.started_at
        with self._lock:
            self.reads = _larger(self.reads, seconds, transfer.num_bytes)
        _logger.info("Restored %d bytes from %r in %.3f s.", transfer.num_bytes, path, seconds)

    def begin(self, path: str) -> Transfer:
        """An operation that begins now."""
        return Transfer(path, self._clock())

    def wrote(self, write: Transfer, *, in_background: bool) -> None:
        """Counts a checkpoint that is complete now."""
        now = self._clock()
        seconds = now - write.started_at
        with self._lock:
            self.writes = _larger(self.writes, seconds, write.num_bytes)
            safe_until = write.started_at if in_background else now
            self.training_time_saved_seconds += safe_until - self._safe_until
            self._safe_until = safe_until
        manner = "asynchronously " if in_background else ""
        _logger.info("Saved %d bytes %sto %r in %.3f s.", write.num_bytes, manner, write.path, seconds)


def _longer(past: Durations, seconds: float) -> Durations:
    return Durations(past.count + 1, past.total_seconds + seconds, seconds)


def _larger(past: Transfers, seconds: float, num_bytes: int) -> Transfers:
    return Transfers(past.count + 1, past.total_seconds + seconds, seconds, past.total_bytes + num_bytes, num_bytes)
