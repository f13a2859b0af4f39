"""How threads that save leave the processors to the program, which goes on meanwhile.

A training on the processors waits at the end of each of its operations for the slowest of its threads. Whoever takes
one processor stops all of them, so what is written costs least when all threads write at the same time, and then rest
at the same time: it costs no more than a synchronous save, and a part of that in each step. A low priority is worse, by
measurement: a thread that gets little is in the way of the others for long.
"""

from __future__ import annotations

import threading
import time

__all__ = ["Pace"]

_PERIOD_SECONDS = 0.1

_SHARE = 0.3
"""Which part of the time is for writing."""


class Pace:
    """Has all threads that use it work during the same parts of the time, and rest between them.

    A save takes three to four times as long with it, whatever else the processors do.
    """

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._is_awaited = threading.Event()

    def rest(self) -> None:
        """Returns when it is time to work; at once where somebody waits, as the interpreter does at its exit."""
        worked = (time.monotonic() - self._begin) % _PERIOD_SECONDS
        if worked > _SHARE * _PERIOD_SECONDS and threading.main_thread().is_alive():
            self._is_awaited.wait(_PERIOD_SECONDS - worked)

    def hurry(self) -> None:
        """Says that somebody waits: no thread rests any more."""
        self._is_awaited.set()
