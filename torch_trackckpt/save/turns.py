"""Whose turn it is: one save of a checkpoint after the other, alone or together with other processes."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch_trackckpt import _native
from torch_trackckpt.devices.access import Devices
from torch_trackckpt.distributed.group import Group, find_group
from torch_trackckpt.errors import RankError
from torch_trackckpt.metrics import CheckpointMetrics
from torch_trackckpt.options import CheckpointOptions
from torch_trackckpt.preemption import in_preemption_save_context
from torch_trackckpt.save.agreement import Agreement
from torch_trackckpt.save.joint import JointSave
from torch_trackckpt.save.pending import PendingSave, can_be_pending
from torch_trackckpt.save.solo import Save, SoloSave
from torch_trackckpt.save.staging import StagingBuffer
from torch_trackckpt.storage.choice import storage_for
from torch_trackckpt.storage.paths import anchored

__all__ = ["Turns", "saving"]

_logger = logging.getLogger("torch_trackckpt")


class Turns:
    """What a checkpoint keeps for itself, out of sight of its children.

    Args:
        root: whose children are those of the checkpoint, if there is one.
    """

    def __init__(self, root: object) -> None:
        self.root = root
        self.has_warned_of_unreachable = False
        self.has_looked_for_lost = False
        self.lock = threading.RLock()
        self.turn_of: int | None = None
        """The thread that saves."""
        self.graph_record: _native.GraphRecord | None = None
        self.devices = Devices()
        self.staging = StagingBuffer(self.devices)
        self.pending: PendingSave | None = None
        self.group: Group | None = None
        """The processes that this one saves together with, as soon as that is known."""
        self.agreement = Agreement()
        self.metrics = CheckpointMetrics()

    @contextlib.contextmanager
    def turn(
        self, options: CheckpointOptions | None = None, purpose: str = "", *, is_save: bool = True
    ) -> Iterator[None]:
        """A time in which no other save of the checkpoint runs or is pending; a manager's may hold that of a write.

        Args:
            options: those of what is going to be done, if all ranks do it together.
            purpose: that of the session which then comes first.
            is_save: whether it counts as a save in the metrics.
        """
        self._refuse_pending_save_itself()
        if self.turn_of == threading.get_ident():
            # A callback that saves asynchronously may do so again, and there is one buffer for the copies.
            self.wait_for_pending()
            yield
            return
        with self.metrics.stalling() if is_save else contextlib.nullcontext(), self.lock:
            self.turn_of = threading.get_ident()
            try:
                try:
                    self.wait_for_pending()
                except BaseException as error:
                    self._tell(error, purpose, options)
                    raise
                yield
            finally:
                self.turn_of = None

    def _tell(self, error: BaseException, purpose: str, options: CheckpointOptions | None) -> None:
        """Has the other ranks, which come to what this one will not do, not wait for it."""
        group = None if options is None else self.group_for(options)
        if group is not None and options is not None:
            session = group.session(purpose, options.rank_silence_seconds)
            with contextlib.suppress(type(error), RankError), session.telling():
                raise error

    def group_for(self, options: CheckpointOptions) -> Group | None:
        """The processes that do together what these options are for; None where this one does it alone."""
        if not options.all_ranks:
            return None
        if self.group is None or not self.group.is_current:
            self.group = find_group()
        return self.group

    def decides(self, options: CheckpointOptions) -> bool:
        """Whether this process is the one that looks, where all have to see the same."""
        group = self.group_for(options)
        return group is None or group.rank == 0

    def agree_on(self, purpose: str, work: Callable[[], Any], options: CheckpointOptions) -> list[Any]:
        """What became of some work in all processes, by rank."""
        group = self.group_for(options)
        if group is None:
            return [work()]
        session = group.session(purpose, options.rank_silence_seconds)
        try:
            said: list[Any] = session.agree(work, list)
        finally:
            session.close()
        return said

    def begin_save(self, path: str, options: CheckpointOptions) -> Save:
        """The save that this process, alone or with all others, begins now; without a path it will not be made."""
        group = self.group_for(options)
        if group is None:
            is_async = _becomes_pending(path, options)
            storage = storage_for(path, durable=options.durable)
            # A thread must not need the current directory, which the program may change meanwhile.
            return SoloSave(anchored(path) if is_async else path, storage, is_async)
        place = anchored(path) if path else ""
        session = group.session(saving(path), options.rank_silence_seconds)
        with session.telling():
            # In the caller's thread: fsspec has other connections for each thread that opens a place.
            storage = storage_for(path, durable=options.durable)
            is_async = _becomes_pending(path, options)
        return JointSave(session, place, storage, is_async, self.agreement, durable=options.durable)

    def wait_for_pending(self) -> None:
        """Waits for the pending save; its error is raised once, unless there is no time left for it."""
        self._refuse_pending_save_itself()
        if self.pending is not None and in_preemption_save_context():
            self.pending.join()
        elif self.pending is not None:
            self.pending.wait()

    def _refuse_pending_save_itself(self) -> None:
        # It must not even ask for the lock, whose holder may be waiting for it.
        if self.pending is not None and self.pending.is_this_thread:
            raise RuntimeError(
                "A write callback, or progress, of an asynchronous save used the checkpoint that is being saved, which "
                "would wait for this very save; use another Checkpoint, or save synchronously."
            )

    # A copy has a lock, metrics and pending saves of its own.

    def __getstate__(self) -> tuple[object]:
        return (self.root,)

    def __setstate__(self, state: tuple[object]) -> None:
        Turns.__init__(self, *state)


def _becomes_pending(path: str, options: CheckpointOptions) -> bool:
    """Whether a save is left to a thread: where that was asked for, and the process has the time."""
    if not options.is_async:
        return False
    if in_preemption_save_context():
        _logger.warning("The save to %r is synchronous, although enable_async is set: it is the last one.", path)
        return False
    if not can_be_pending():
        _logger.warning("The save to %r is synchronous, although enable_async is set: Python is exiting.", path)
        return False
    return True


def saving(path: str) -> str:
    """What ranks do together when they save; without a path, they only make ready for it."""
    return f"The save to {anchored(path)!r}" if path else "Making ready for saves"
