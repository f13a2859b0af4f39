"""The memory of this process: its peak above what it had before; and that of the machine."""

from __future__ import annotations

import ctypes
import gc
import mmap
import re
import threading
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """Begins when it is made; `above` ends it. Pages of mapped files count, as they do for the machine.

    The kernel keeps the peak, and is asked to begin anew where that is allowed. Elsewhere a thread looks every
    millisecond, which misses what is shorter.
    """

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self._ends = threading.Event()
        self._sampled = 0
        self._thread: threading.Thread | None = None
        try:
            _CLEAR.write_text("5")
        except OSError:
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        self._before = _status_bytes("VmRSS")

    @property
    def how(self) -> str:
        return "VmHWM" if self._thread is None else "sampled"

    def above(self) -> int:
        """Bytes."""
        if self._thread is None:
            return max(0, _status_bytes("VmHWM") - self._before)
        self._ends.set()
        self._thread.join()
        return max(0, self._sampled - self._before)

    def _sample(self) -> None:
        while not self._ends.wait(0.001):
            self._sampled = max(self._sampled, _status_bytes("VmRSS"))


def make_present(num_bytes: int) -> None:
    """Has the machine find so much memory, and gives it back at once.

    A virtual machine gets memory from its host when it first touches it, and may have given back what it did not use;
    that takes longer than to copy into it. Whoever comes first would pay for all others.
    """
    num_bytes = min(num_bytes, available_bytes() // 2)
    with mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        first = ctypes.c_char.from_buffer(memory)
        ctypes.memset(ctypes.addressof(first), 1, num_bytes)
        del first


def available_bytes() -> int:
    """What the machine can give without swapping."""
    return _kibibytes(Path("/proc/meminfo").read_text(), "MemAvailable")


def _status_bytes(field: str) -> int:
    return _kibibytes(_STATUS.read_text(), field)


def _kibibytes(text: str, field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB", text, re.MULTILINE)
    if found is None:
        raise OSError(f"The kernel does not tell {field}.")
    return int(found[1]) * 1024
