"""Saves a checkpoint under rising numbers into one directory, deletes old ones, and finds the newest one that is sound.

A save is `Checkpoint.write` with one more write callback, the last, which does the bookkeeping once the files are
durable:

    record the checkpoint -> write the state file -> delete what is not kept -> write the state file again

The state file thus always names a checkpoint that is whole. With asynchronous options the callback runs in another
thread, maybe after the next save has been asked for: it shares with `save` nothing but the ledger, which it replaces
under a lock.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat, SupportsIndex, SupportsInt

import torch

from torch_trackckpt.bundle.reader import CheckpointReader
from torch_trackckpt.checkpoint import Checkpoint, numbering
from torch_trackckpt.errors import CheckpointNotFoundError, DataLossError
from torch_trackckpt.fallback import first_sound
from torch_trackckpt.graph.keys import BY_RANK
from torch_trackckpt.management.ledger import Ledger, read_ledger, write_ledger
from torch_trackckpt.management.pruning import ByPolicy, MaxToKeep, PruningRule
from torch_trackckpt.options import Books, CheckpointOptions
from torch_trackckpt.preemption import in_preemption_save_context
from torch_trackckpt.retention import Retention, SavedCheckpoint, checked_integer
from torch_trackckpt.save.commit import remove_checkpoint
from torch_trackckpt.save.publish import remove_unfinished
from torch_trackckpt.state_file import find_listed
from torch_trackckpt.storage import paths
from torch_trackckpt.storage.base import Storage
from torch_trackckpt.storage.choice import storage_for

__all__ = ["CheckpointManager"]

StepCounter = torch.Tensor | SupportsInt | Callable[[], torch.Tensor | SupportsInt]

_logger = logging.getLogger("torch_trackckpt")


class CheckpointManager:
    """Numbers, deletes and finds the checkpoints of a directory. TensorFlow's ``tf.train.CheckpointManager``.

    What it knows is in the directory, so that a later manager goes on, be it this package's or TensorFlow's. One
    manager at a time may save to a directory; anyone may read.

    Args:
        checkpoint: what is saved and restored.
        directory: where; made by the first save.
        max_to_keep: how many checkpoints stay; None keeps all. (In TensorFlow it must be given.)
        keep_checkpoint_every_n_hours: a checkpoint that would be deleted is kept for good, and leaves `checkpoints`, if
            it was made at least so long after the last one that was.
        checkpoint_name: what file names begin with; may name a subdirectory.
        step_counter: the training step: a tensor, a number, or a callable that returns one.
        checkpoint_interval: the least number of steps between two saves.
        init_fn: called by `restore_or_initialize` where there is no checkpoint.
        last_checkpoint_step: the step from which the first interval counts.
        retention: instead of ``max_to_keep`` and ``keep_checkpoint_every_n_hours``: what to keep, as policies of
            `torch_trackckpt.retention`. What they do not keep is deleted after the next save. Not in TensorFlow.
        clock: tells the time in seconds since 1970.

    Raises:
        ValueError: an argument is out of range; both kinds of retention are given; ``checkpoint_interval`` is without
            ``step_counter``; or the directory's state file names no checkpoint.
        TypeError: an argument is of another type.
        DataLossError: the file with the steps and metrics of the directory's checkpoints is damaged.

    Example:
        >>> import os, tempfile, torch
        >>> from torch_trackckpt import Checkpoint, CheckpointManager
        >>> directory = tempfile.mkdtemp()
        >>> manager = CheckpointManager(Checkpoint(x=torch.ones(2)), directory, max_to_keep=2)
        >>> for _ in range(3):
        ...     path = manager.save()
        >>> [os.path.basename(path) for path in manager.checkpoints]
        ['ckpt-2', 'ckpt-3']
        >>> manager.restore_or_initialize() == manager.latest_checkpoint == path
        True
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        directory: str | os.PathLike[str],
        max_to_keep: int | None = None,
        keep_checkpoint_every_n_hours: float | None = None,
        checkpoint_name: str = "ckpt",
        step_counter: StepCounter | None = None,
        checkpoint_interval: int | None = None,
        init_fn: Callable[[], object] | None = None,
        last_checkpoint_step: int | None = None,
        *,
        retention: Retention | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not isinstance(checkpoint, Checkpoint):
            raise TypeError(f"CheckpointManager: checkpoint must be a Checkpoint, not a {type(checkpoint).__name__}.")
        if checkpoint_interval is not None and step_counter is None:
            raise ValueError("CheckpointManager: checkpoint_interval counts steps; pass a step_counter as well.")
        self._checkpoint = checkpoint
        self._directory = os.fsdecode(directory)
        self._prefix = paths.joined(self._directory, checkpoint_name)
        self._rule = _pruning_rule(max_to_keep, keep_checkpoint_every_n_hours, retention)
        self._metrics = frozenset() if retention is None else retention.metrics
        self._step_counter = step_counter
        self._interval = _integer_or_none("checkpoint_interval", checkpoint_interval, least=0)
        self._last_step = self._complete_step = last_checkpoint_step
        self._init_fn = init_fn
        self._clock = clock
        self._lock = threading.Lock()
        self._has_tidied = False
        self._recording_in: int | None = None
        """The thread that holds the lock."""
        now = clock()
        self._ledger = self._rule.recovered(read_ledger(self._directory, now), now)

    # What is there.

    @property
    def checkpoint(self) -> Checkpoint:
        """What is saved and restored."""
        return self._checkpoint

    @property
    def directory(self) -> str:
        """Where the checkpoints are."""
        return self._directory

    @property
    def checkpoint_interval(self) -> int | None:
        """The least number of steps between two saves."""
        return self._interval

    @property
    def checkpoints(self) -> list[str]:
        """The paths of the managed checkpoints, oldest first; those that are preserved are not among them."""
        return [saved.path for saved in self._ledger.active]

    @property
    def records(self) -> list[SavedCheckpoint]:
        """The managed checkpoints, oldest first, with their times, steps and metrics. Not in TensorFlow."""
        return list(self._ledger.active)

    @property
    def latest_checkpoint(self) -> str | None:
        """The path of the newest checkpoint; None where there is none."""
        return self._ledger.latest

    # Saving.

    def save(
        self,
        checkpoint_number: SupportsIndex | None = None,
        check_interval: bool = True,
        options: CheckpointOptions | None = None,
        *,
        metrics: Mapping[str, SupportsFloat] | None = None,
    ) -> str | None:
        """Saves if it is time to, and deletes what is not to be kept any more.

        The checkpoint's ``save_counter`` rises by one. Old checkpoints are deleted once the new one is durable and the
        state file names it. If the save fails, everything is as before but for the counter; TensorFlow counts the step
        as saved even so. Where `Checkpoint.write` leaves the files to another thread, that one does the bookkeeping as
        well, `sync` waits for both, and the step counts as saved at once. Within `preemption_save_context` it counts
        only once there is its checkpoint.

        Args:
            checkpoint_number: what to call the checkpoint instead of the save counter.
            check_interval: whether to wait for ``checkpoint_interval``. The same step is not saved twice in any case.
            options: see `CheckpointOptions`; its write callbacks run before the bookkeeping.
            metrics: numbers to remember with the checkpoint, by name, such as ``{"loss": 0.1}``. Not in TensorFlow.

        Returns:
            The path of the new checkpoint, or None if none was due.

        Raises:
            TypeError: the number is no integer, or a metric no number.
            ValueError: the metrics lack one that the retention policy compares, or the step counter is no integer.
            UnsupportedValueError, ValueChangedError, OSError: as `Checkpoint.save`.
        """
        options = options or CheckpointOptions()
        number = _integer_or_none("checkpoint_number", checkpoint_number, least=-math.inf)
        measured = self._checked_metrics(metrics)
        step = self._current_step()
        if in_preemption_save_context():
            # There is no later save that could make up for one that fails, or has failed, in its thread.
            self.sync()
            self._last_step = self._complete_step
        # Asked first, because a save that is not due waits for none that is pending.
        if not self._is_due(step, check_interval):
            return None
        purpose = numbering(self._prefix, step)
        with self._checkpoint._own.turn(options, purpose):
            # Another thread may have saved the step meanwhile.
            if not self._is_due(step, check_interval):
                return None
            counted = self._checkpoint._spend_number(purpose, options)
            number = counted if number is None else number
            books = _Books(self, number if step is None else step, measured, options)
            callbacks: tuple[Callable[..., Any], ...] = (*options.experimental_write_callbacks, books)
            with_books = dataclasses.replace(options, experimental_write_callbacks=callbacks)
            path = self._checkpoint.write(f"{self._prefix}-{number}", with_books)
            self._last_step = step
        return path

    def _checked_metrics(self, metrics: Mapping[str, SupportsFloat] | None) -> dict[str, float]:
        if metrics is None:
            return {}
        lacking = sorted(self._metrics - metrics.keys())
        if lacking:
            raise ValueError(
                f"The metrics lack {', '.join(lacking)}, which the retention policy compares; they have "
                f"{', '.join(sorted(metrics)) or 'none'}. To save without a comparison, give no metrics at all."
            )
        return {name: _as_metric(name, value) for name, value in metrics.items()}

    def _current_step(self) -> int | None:
        counter = self._step_counter
        return None if counter is None else _as_step(counter() if callable(counter) else counter)

    def _is_due(self, step: int | None, check_interval: bool) -> bool:
        if self._interval is None or self._last_step is None or step is None:
            return True
        return step != self._last_step and not (check_interval and step < self._last_step + self._interval)

    # Bookkeeping; maybe in another thread.

    def _enter(self, saved: SavedCheckpoint, here: str, storage: Storage) -> None:
        if self._recording_in == threading.get_ident():
            raise RuntimeError(
                f"A signal handler saved {saved.path!r} while the manager was recording a save in the same thread; "
                "note the signal and save at the next step, as torch_trackckpt.SaveOnSignal does."
            )
        with self._lock:
            self._recording_in = threading.get_ident()
            try:
                self._record(saved, here, storage)
                self._complete_step = saved.step
            finally:
                self._recording_in = None

    def _follow(self, ledger: Ledger, step: int | None) -> None:
        self._ledger = ledger
        self._complete_step = step

    def _record(self, saved: SavedCheckpoint, here: str, storage: Storage) -> None:
        self._replace_ledger(self._ledger.with_newest(saved), here, storage)
        leaving = self._rule.leaving(self._ledger)
        for old in leaving.deleted:
            remove_checkpoint(paths.joined(here, old.path), storage)
        if leaving.deleted or leaving.preserved:
            remaining = self._ledger.without((*leaving.deleted, *leaving.preserved), leaving.last_preserved)
            self._replace_ledger(remaining, here, storage)
        if storage.is_remote and not self._has_tidied:
            self._has_tidied = True
            remove_unfinished(self._prefix, storage)

    def _replace_ledger(self, ledger: Ledger, here: str, storage: Storage) -> None:
        directory = paths.joined(here, self._directory)
        write_ledger(ledger.seen_from(here), directory, storage, with_records=self._rule.needs_records)
        self._ledger = ledger

    def sync(self) -> None:
        """Waits until every save is complete, its bookkeeping included."""
        self._checkpoint.sync()

    # Restoring.

    def restore_or_initialize(self, *, options: CheckpointOptions | None = None) -> str | None:
        """Restores the newest checkpoint that is sound; where there is none at all, calls ``init_fn``.

        Where files of the newest are damaged or missing, the next older one that the state file lists is restored, and
        the log says which were passed over and why; TensorFlow raises. To find damage costs nothing beyond the restore
        itself: in a checkpoint of more than 64 MiB it may be found when some values have been read already. They are
        then overwritten from the older checkpoint, which must have every value that the damaged one has; with
        ``CheckpointOptions(verify="before")``, everything is checked before anything changes. What waits for objects
        that are still to be made is checked when they take it.

        Args:
            options: as for `Checkpoint.restore`. Not in TensorFlow.

        Returns:
            The path of the checkpoint that was restored, or None if there was none.

        Raises:
            CheckpointNotFoundError, DataLossError: there are checkpoints, but none is sound. Nothing is initialized.
            MismatchError, RestoreError, UnsupportedFormatError: as `Checkpoint.restore`; no older one is tried.
        """
        listed = self._agree_on_listed(options or CheckpointOptions())
        if listed:
            restored = first_sound(listed, _Restoring(self._checkpoint, options).restore)
            self._last_step = self._complete_step = self._current_step()
            return restored
        if self._init_fn is not None:
            self._init_fn()
            _logger.info("There is no checkpoint in %r; init_fn was called.", self._directory)
        return None

    def _agree_on_listed(self, options: CheckpointOptions) -> list[str]:
        """Where the checkpoints are, newest first. Rank 0 looks: others may see an older state of a shared file
        system."""
        own = self._checkpoint._own

        def look() -> Any:
            self.sync()
            if not own.decides(options):
                return None
            ledger = self._ledger
            return [ledger.message(), [find_listed(path, self._directory) or path for path in ledger.listed]]

        (ledger, listed), *_ = own.agree_on(
            f"Looking for checkpoints in {paths.anchored(self._directory)!r}", look, options
        )
        if not own.decides(options):
            self._ledger = Ledger.heard(ledger)
        return list(listed)


class _Books(Books):
    """Enters one checkpoint of a manager, when there is it; maybe in another thread. What rank 0 has in its books then,
    all have.

    Args:
        manager: whose books they are.
        step, metrics: those of the checkpoint.
        options: those of the save.
    """

    def __init__(
        self, manager: CheckpointManager, step: int, metrics: dict[str, float], options: CheckpointOptions
    ) -> None:
        self._manager = manager
        self._step = step
        self._metrics = metrics
        self._storage = storage_for(manager.directory, durable=options.durable)
        # The program may change its directory while a save is pending.
        self._here = "" if paths.is_absolute(manager.directory) else os.getcwd()

    def __call__(self, path: str) -> Any:
        manager = self._manager
        manager._enter(SavedCheckpoint(path, manager._clock(), self._step, self._metrics), self._here, self._storage)
        return manager._ledger.message()

    def follow(self, known: Any) -> None:
        self._manager._follow(Ledger.heard(known), self._step)


class _Restoring:
    """Restores one checkpoint after the other until one is sound, and leaves no value of a damaged one."""

    def __init__(self, checkpoint: Checkpoint, options: CheckpointOptions | None) -> None:
        self._checkpoint = checkpoint
        self._options = options
        self._half_restored: list[str] = []

    def restore(self, path: str) -> None:
        damage: CheckpointNotFoundError | DataLossError | None = None

        def restore() -> str | None:
            nonlocal damage
            try:
                for damaged in self._half_restored:
                    _check_covers(path, damaged)
                self._checkpoint.restore(path, self._options)
            except (CheckpointNotFoundError, DataLossError) as error:
                damage = error
            return None if damage is None else str(damage)

        # What one rank finds damaged, no rank takes: all go on from the same checkpoint.
        said = self._checkpoint._own.agree_on(f"The restore of {path!r}", restore, self._options or CheckpointOptions())
        found = [f"rank {rank}: {text}" for rank, text in enumerate(said) if text is not None]
        if damage is None and not found:
            return
        if damage is None or (isinstance(damage, DataLossError) and damage.overwritten):
            self._half_restored.append(path)
        raise damage or DataLossError(f"{path!r} is damaged, as other processes have found: {'; '.join(found)}")


def _check_covers(path: str, damaged: str) -> None:
    """Checks that to restore one checkpoint overwrites everything that another may have brought."""
    there = {key.partition(BY_RANK)[0] for key in CheckpointReader(path)}
    lacking = sorted({key.partition(BY_RANK)[0] for key in CheckpointReader(damaged)} - there)
    if lacking:
        raise DataLossError(
            f"live values had been overwritten from {damaged!r} when damage was found in it, and {path!r} lacks "
            f"{len(lacking)} of its keys, the first is {lacking[0]}, so that they might stay; restart the program, and "
            "restore with CheckpointOptions(verify='before')."
        )


# Arguments.


def _pruning_rule(
    max_to_keep: int | None, keep_every_n_hours: float | None, retention: Retention | None
) -> PruningRule:
    if retention is not None:
        if not isinstance(retention, Retention):
            raise TypeError(f"retention must be a policy of torch_trackckpt.retention, not {retention!r}.")
        if max_to_keep is not None or keep_every_n_hours is not None:
            raise ValueError(
                "retention stands for max_to_keep and keep_checkpoint_every_n_hours; pass either these, or retention "
                "alone, as in retention=KeepLatest(3) | KeepEveryHours(1)."
            )
        return ByPolicy(retention)
    if keep_every_n_hours is not None and not keep_every_n_hours >= 0:
        raise ValueError(f"keep_checkpoint_every_n_hours must not be negative, but is {keep_every_n_hours!r}.")
    return MaxToKeep(_integer_or_none("max_to_keep (None keeps all)", max_to_keep, least=1), keep_every_n_hours)


def _integer_or_none(what: str, number: SupportsIndex | None, *, least: float) -> int | None:
    return None if number is None else checked_integer(what, number, least=least)


def _as_step(value: Any) -> int:
    """A step as an int; optimizers of torch count in tensors of floats."""
    number = value.item() if isinstance(value, torch.Tensor) else value
    try:
        step = int(number)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"The step counter must give a whole number, not {value!r}.") from None
    if step != number:
        raise ValueError(f"The step counter must give a whole number, not {value!r}.")
    return step


def _as_metric(name: str, value: SupportsFloat) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"The metric {name!r} must be a number, not {value!r}.") from error
