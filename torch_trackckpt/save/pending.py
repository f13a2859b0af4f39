"""A save whose values are taken, and which a thread of its own completes."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  which is to register before `_wait_at_exit`: the last is called first
import contextlib
import logging
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Callable

from torch_trackckpt.save.background import Pace
from torch_trackckpt.save.late import LateCopy

__all__ = ["PendingSave", "can_be_pending"]

_logger = logging.getLogger("torch_trackckpt")


def can_be_pending() -> bool:
    """Whether a thread that is started now will be waited for: not once the interpreter has begun to exit."""
    return threading.main_thread().is_alive()


def _wait_at_exit(thread: threading.Thread, pace: Pace) -> None:
    """Has the interpreter wait for a thread before executors end. This is how they have it wait for their own threads;
    there is no other way."""
    running, its_pace = weakref.ref(thread), weakref.ref(pace)

    def wait() -> None:
        if (hurried := its_pace()) is not None:
            hurried.hurry()
        if (waited := running()) is not None:
            waited.join()

    # Who is late finds the executors gone, or, of a save that needs no new connection, does without.
    with contextlib.suppress(RuntimeError):
        threading._register_atexit(wait)  # type: ignore[attr-defined]


class PendingSave:
    """Runs the rest of a save in a thread that outlives its maker and that the interpreter waits for at its exit.

    Whoever made it calls `start`, and `abandon` where that, or anything before it, was interrupted. After a fork it is
    the parent's; the child finds it complete.

    Args:
        path: what is being saved, for messages.
        complete: what is left to do.
        pace: that of its threads; they rest no more when somebody waits.
        late: the values that are still to be copied by it.
        needs_executors: whether what is left to do takes threads of `concurrent.futures`, as remote file systems do.
            At its exit the interpreter ends these before it waits for ordinary threads.
    """

    def __init__(
        self,
        path: str,
        complete: Callable[[], None],
        pace: Pace | None = None,
        late: LateCopy | None = None,
        *,
        needs_executors: bool = False,
    ) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._saved_in = os.getpid(), threading.get_ident()
        self._pace = pace or Pace()
        self._late = late
        self._may_begin = threading.Event()
        self._has_begun = False
        self._is_abandoned = False
        # A daemon thread would be stopped in the middle of a file when the interpreter exits.
        self._thread = threading.Thread(target=self._run, args=(complete,), name=f"save {path}", daemon=False)
        self._needs_executors = needs_executors

    def start(self) -> None:
        """Has the thread begin. It waits for the end of this call, which an interrupt may cut short at any place."""
        self._thread.start()
        if self._needs_executors:
            _wait_at_exit(self._thread, self._pace)
        self._may_begin.set()

    def abandon(self) -> bool:
        """Has a thread that has not begun do nothing, and no step wait for it. Whether there was time for that."""
        with self._lock:
            if self._has_begun:
                return False
            self._is_abandoned = True
        self._may_begin.set()
        self._forget_late()
        return True

    def _run(self, complete: Callable[[], None]) -> None:
        self._may_begin.wait()
        with self._lock:
            if self._is_abandoned:
                return
            self._has_begun = True
        try:
            complete()
        except BaseException as error:
            if sys.version_info >= (3, 11):
                error.add_note(f"This comes from the asynchronous save to {self._path!r}.")
            # Nobody may ever ask again.
            _logger.error("The asynchronous save to %r failed.", self._path, exc_info=error)
            self._error = error
            # It may be long before anybody asks, and the copies of all values hang on where it happened.
            traceback.clear_frames(error.__traceback__)
        finally:
            del complete
            if self._late is not None:
                self._late.give_up()

    @property
    def is_this_thread(self) -> bool:
        """Whether it is the pending save itself that asks, in one of its callbacks."""
        return threading.current_thread() is self._thread

    def join(self) -> None:
        """Waits until it is over, well or not."""
        is_halted = (os.getpid(), threading.get_ident()) == self._saved_in
        # Where another thread waits, the program goes on.
        if is_halted:
            self._pace.hurry()
            if self._late is not None:
                self._late.hasten()
        self._thread.join()
        if is_halted:
            self._forget_late()

    def wait(self) -> None:
        """Waits until it is over, and raises the error with which it failed, to the first who waits."""
        self.join()
        with self._lock:
            error, self._error = self._error, None
        if error is not None:
            raise error

    def _forget_late(self) -> None:
        late, self._late = self._late, None
        if late is not None:
            late.give_up()
            late.unhook()
