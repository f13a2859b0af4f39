"""What the machine allows: the same bytes, moved by plain calls of the system between buffers that are warm.

Copies by memmove, files by pwrite and pread of 1 MiB, with one thread and with two (each with a file of its own). No
checkpoint can be faster than these, unless it moves less; so each figure can be put beside its limit. Writing to a disk
includes fsync.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.files import evict, sync_all
from benchmarks.memory import make_present
from benchmarks.process import run_alone

_CHUNK = 1 << 20
_REPEATS = 3

Part = Callable[[int], object]
"""What the thread of this number does with its part of the bytes."""


def perform(request: dict[str, Any]) -> dict[str, float]:
    """Bytes a second by name.

    Args:
        request: `directories` by medium (tmpfs, disk), and how many `bytes` each way moves.
    """
    nbytes = request["bytes"]
    make_present(4 * nbytes)
    source, target = _touched(nbytes), _touched(nbytes)
    rates = _memory(source, target, nbytes)
    for medium, directory in request["directories"].items():
        with tempfile.TemporaryDirectory(dir=directory) as place:
            rates |= _files(medium, Path(place), source, target, nbytes)
    return rates


def _memory(source: mmap.mmap, target: mmap.mmap, nbytes: int) -> dict[str, float]:
    rates = {}
    for threads in (2, 1):
        name = "memory copy" + _suffix(threads)
        rates[name] = nbytes / _median(lambda threads=threads: _copy(source, target, nbytes, threads))  # type: ignore[misc]
    for name, advice in (("fresh", None), ("fresh huge", mmap.MADV_HUGEPAGE)):
        for threads in (2, 1):

            def copy_to_fresh(threads: int = threads, advice: int | None = advice) -> None:
                fresh = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                if advice is not None:
                    fresh.madvise(advice)
                _copy(source, fresh, nbytes, threads)

            rates[f"memory copy, {name} pages{_suffix(threads)}"] = nbytes / _median(copy_to_fresh)
    return rates


def _files(medium: str, directory: Path, source: mmap.mmap, target: mmap.mmap, nbytes: int) -> dict[str, float]:
    is_disk = medium == "disk"
    view, into = memoryview(source), memoryview(target)
    rates: dict[str, float] = {}
    for threads in (1, 2):
        size = nbytes // threads

        def write(number: int, size: int = size) -> None:
            descriptor = os.open(directory / str(number), os.O_WRONLY | os.O_CREAT)
            for start in range(0, size, _CHUNK):
                os.pwrite(descriptor, view[number * size + start : number * size + start + _CHUNK], start)
            if is_disk:
                os.fsync(descriptor)
            os.close(descriptor)

        def write_all(threads: int = threads, write: Part = write) -> None:
            _in_threads(threads, write)
            if is_disk:
                sync_all(directory)

        rates[f"{medium} write{_suffix(threads)}"] = nbytes / _median(write_all, before=lambda: _empty(directory))
        rates[f"{medium} overwrite{_suffix(threads)}"] = nbytes / _median(write_all)

        def read(number: int, size: int = size) -> None:
            descriptor = os.open(directory / str(number), os.O_RDONLY)
            for start in range(0, size, _CHUNK):
                os.preadv(descriptor, [into[number * size + start : number * size + start + _CHUNK]], start)
            os.close(descriptor)

        def read_all(threads: int = threads, read: Part = read) -> None:
            _in_threads(threads, read)

        rates[f"{medium} read{_suffix(threads)}"] = nbytes / _median(read_all)
        if is_disk:
            rates[f"{medium} cold read{_suffix(threads)}"] = nbytes / _median(read_all, before=lambda: evict(directory))
    return rates


def _suffix(threads: int) -> str:
    """Two threads are what a limit without further words means."""
    return ", 1 thread" if threads == 1 else ""


def _touched(nbytes: int) -> mmap.mmap:
    made = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, nbytes, _CHUNK):
        made[start : start + _CHUNK] = os.urandom(64) * (min(_CHUNK, nbytes - start) // 64)
    return made


def _copy(source: mmap.mmap, target: mmap.mmap, nbytes: int, threads: int) -> None:
    size = nbytes // threads
    addresses = [ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in (target, source)]
    _in_threads(threads, lambda part: ctypes.memmove(addresses[0] + part * size, addresses[1] + part * size, size))


def _in_threads(threads: int, part: Part) -> None:
    running = [threading.Thread(target=part, args=(number,)) for number in range(1, threads)]
    for thread in running:
        thread.start()
    part(0)
    for thread in running:
        thread.join()


def _median(action: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    seconds = []
    for _ in range(_REPEATS):
        before()
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


if __name__ == "__main__":
    run_alone(perform)
