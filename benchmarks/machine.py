"""The machine in words, and which versions were compared."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

from benchmarks.memory import available_bytes

_PACKAGES = (
    "torch_trackckpt",
    "torch",
    "safetensors",
    "fastsafetensors",
    "torch_checkpointing",
    "torchsnapshot",
    "orbax-checkpoint",
    "tensorflow-cpu",
    "tensorflow",
)


def describe_machine(tmpfs: Path, disk: Path) -> dict[str, str]:
    """What one has to know to compare figures of two machines."""
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "available": f"{available_bytes() / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "huge pages": _huge_pages(),
        "tmpfs": f"{tmpfs} ({file_system_of(tmpfs)})",
        "disk": f"{disk} ({file_system_of(disk)})",
        "python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.1f}",
    } | _versions()


def file_system_of(path: Path) -> str:
    """The type of the file system, by the longest mount point above the path."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    place = str(path.resolve())
    above = [(point, kind) for point, kind in mounts if place == point or place.startswith(point.rstrip("/") + "/")]
    return max(above, key=lambda mount: len(mount[0]))[1]


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    flags = set(text.split())
    has = [flag for flag in ("sse4_2", "avx2", "avx512f", "vpclmulqdq", "crc32", "pmull") if flag in flags]
    return f"{found[1] if found else platform.machine()} ({', '.join(has)})"


def _huge_pages() -> str:
    place = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return place.read_text().strip() if place.exists() else "unknown"


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
