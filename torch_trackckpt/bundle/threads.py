"""How many threads read or write at once."""

from __future__ import annotations

import os

__all__ = ["num_threads"]

_MOST_THREADS = 8
"""More of them than this only wait for each other's memory and files."""


def num_threads(wanted: int | None = None) -> int:
    """The number that a caller wants, or as many as processors this process may use, at most 8."""
    if wanted is not None:
        return wanted
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    return min(os.cpu_count() or 1, _MOST_THREADS)
