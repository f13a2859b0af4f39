"""Processor time: of this process, and of everybody else, who spoil the figures."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path


class ProcessorTime:
    """Begins when it is made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._own = _own_seconds()
        self._busy = _busy_seconds()

    def own(self) -> float:
        """CPU seconds of this process and its children that have ended."""
        return _own_seconds() - self._own

    def others(self) -> float:
        """The share of all processors that others used, by the kernel's count in hundredths of a second."""
        available = (time.perf_counter() - self._start) * (os.cpu_count() or 1)
        return max(0.0, _busy_seconds() - self._busy - self.own()) / available


def _own_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _busy_seconds() -> float:
    """User, nice, system, interrupts and stolen: the whole machine's."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, hard, soft, stolen = map(int, fields[:8])
    return (user + nice + system + hard + soft + stolen) / os.sysconf("SC_CLK_TCK")
