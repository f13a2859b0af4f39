"""Signs of life: each process gives one about every second, and those that wait for it look for them.

trackckpt/alive/<rank>     changes about once a second for as long as the process lives
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Sequence

from torch_trackckpt.distributed.store import Store, connection, peek

__all__ = ["Heart", "Pulse"]

_BEAT_SECONDS = 1.0

_PAUSE_SECONDS = 0.1
"""How long the interpreter waits for the thread at its exit, at most."""

_JOIN_SECONDS = 600.0
"""How long a process is waited for of which nothing was ever heard: it may still be on its way to its first save."""


class Pulse:
    """Which of the ranks that are waited for give no sign of life.

    Args:
        store: what the ranks share.
        silence: for how many seconds a rank may give none.
    """

    def __init__(self, store: Store, silence: float) -> None:
        self._store = store
        self._silence = silence
        self._begin = time.monotonic()
        self._last: dict[int, tuple[str | None, float]] = {}

    def lost(self, ranks: Sequence[int]) -> str | None:
        """What to say of those that are lost."""
        now = time.monotonic()
        lost = [rank for rank in ranks if now - self._heard(rank, now) > self._silence]
        if not lost:
            return None
        which = ", ".join(map(str, lost[:10])) + (", ..." if len(lost) > 10 else "")
        return (
            f"rank {which} gave no sign of life for {self._silence:g} seconds, so that its process has died or hangs "
            "(CheckpointOptions.rank_silence_seconds)"
        )

    def _heard(self, rank: int, now: float) -> float:
        beat = peek(self._store, _key(rank))
        if beat is None:
            # It has not begun its first session yet, and may be anywhere on its way there.
            return now if now - self._begin < _JOIN_SECONDS else self._begin
        before, when = self._last.get(rank, (None, now))
        if beat != before:
            self._last[rank] = beat, now
            return now
        return when


class Heart:
    """A thread that tells the others that this process lives.

    Args:
        store: what the ranks share.
        rank: that of this process.
    """

    def __init__(self, store: Store, rank: int) -> None:
        self._store = store
        self._own = connection(store)
        self._key = _key(rank)
        self._stopped = threading.Event()
        self._has_begun = False
        self.num_sessions = 0
        """How many sessions are open; the thread of an asynchronous save goes on when the main thread is over."""

    def begin(self) -> None:
        """Begins to beat, if it does not yet."""
        if self._has_begun:
            return
        self._has_begun = True
        self._beat(0)
        threading.Thread(target=self._run, name="torch_trackckpt heart", daemon=False).start()

    def stop(self) -> None:
        """Beats no more."""
        self._stopped.set()

    def _run(self) -> None:
        # No daemon: Python would stop one within the call of the store, which ends in an abort. The interpreter waits
        # for this thread, which sees that the main thread is over.
        pauses = max(1, round(_BEAT_SECONDS / _PAUSE_SECONDS))
        for number in itertools.count(1):
            is_needed = self.num_sessions > 0 or threading.main_thread().is_alive()
            if self._stopped.wait(_PAUSE_SECONDS) or not is_needed:
                return
            if number % pauses == 0:
                self._beat(number)

    def _beat(self, number: int) -> None:
        try:
            self._own.set(self._key, f"{os.getpid()} {number}")
        except Exception:
            # The next may be heard again; where the store is gone for good, nobody is there to hear.
            with contextlib.suppress(Exception):
                self._own = connection(self._store)


def _key(rank: int) -> str:
    return f"trackckpt/alive/{rank}"
