"""How a thread that writes leaves the processors to the program."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

__all__ = ["give_way"]

_NICE = 19


def give_way() -> None:
    """Has the calling thread, and those that it starts, get what the program does not use of the processors.

    It gets a small part even of a processor that is always busy, so that what it does is done some time.
    """
    # Elsewhere a priority belongs to the process.
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
