"""Files around a measurement: making them durable, evicting them from memory, and damaging one byte."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def num_bytes_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in files_of(directory))


def sync_all(directory: Path) -> None:
    """fsync of every file and directory, for those who do not do it themselves."""
    for path in [directory, *directory.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def evict(directory: Path) -> str:
    """Removes the files from the page cache, and says how.

    Raises:
        RuntimeError: pages are still in memory.
    """
    sync_all(directory)
    for path in files_of(directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    how = "posix_fadvise"
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("1")
        how += " and drop_caches"
    left = sum(resident_pages(path) for path in files_of(directory))
    if left:
        raise RuntimeError(f"{left} pages of {directory} are still in memory after {how}.")
    return how


def resident_pages(path: Path) -> int:
    """How many pages of the file are in memory, by mincore."""
    size = path.stat().st_size
    if not size:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    descriptor = os.open(path, os.O_RDONLY)
    try:
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    finally:
        os.close(descriptor)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), f"mmap of {path}")
    num_pages = -(-size // mmap.PAGESIZE)
    pages = (ctypes.c_ubyte * num_pages)()
    try:
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages):
            raise OSError(ctypes.get_errno(), f"mincore of {path}")
    finally:
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return bytes(pages).translate(bytes(number & 1 for number in range(256))).count(1)


@contextlib.contextmanager
def flipped_byte(path: Path, offset: int) -> Iterator[None]:
    """One byte of the file is another one in the meantime."""
    with open(path, "r+b", buffering=0) as file:
        before = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([before[0] ^ 0x10]), offset)
        try:
            yield
        finally:
            os.pwrite(file.fileno(), before, offset)
