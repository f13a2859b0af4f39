"""How cost grows: with the number of tensors, with the bytes, and with the number of data files.

One series for each of them and each of a few contenders, saved and restored in memory. Points that memory or the file
system do not hold are left out, and the results say so; so is what would take a contender minutes.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.contenders.entries import OURS
from benchmarks.memory import available_bytes
from benchmarks.process import run_measurement
from benchmarks.workloads import num_bytes

Run = dict[str, Any]

_CONTENDERS = (OURS, "safetensors", "torch", "DCP", "TensorFlow")
_SHARDS_MEGABYTES = 1000
_TIMEOUT_SECONDS = 180


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement of a series."""

    series: str
    """tensors, bytes or shards."""
    at: float
    """How many of them."""
    contender: str
    workload: str
    scale: float
    shards: int = 0


def points(largest: float = 1.0) -> Iterator[Point]:
    """Of all series; `largest` is the share of the largest ones that is still wanted."""
    for exponent in (2, 3, 4, 5, 6):
        if 10**exponent <= 1e6 * largest:
            yield from (Point("tensors", 10**exponent, name, "tiny", 10**exponent) for name in _CONTENDERS)
    for megabytes in (10, 30, 100, 300, 1000, 3000, 10_000):
        if megabytes <= 1e4 * largest:
            yield from (Point("bytes", megabytes * 1e6, name, "equal", megabytes) for name in _CONTENDERS)
    for shards in (1, 2, 4, 8, 16, 32, 64):
        yield Point("shards", shards, OURS, "equal", _SHARDS_MEGABYTES * min(1.0, largest), shards)


def measure_growth(
    directory: Path,
    rounds: int,
    largest: float,
    tell: Callable[[str], object] = print,
    keep: Callable[[list[Run], dict[str, str]], object] = lambda runs, left_out: None,
) -> tuple[list[Run], dict[str, str]]:
    """Runs all points, round by round; what a contender cannot do is not tried with more of it.

    Args:
        directory: where the files are made.
        rounds: how often.
        largest: the share of the largest sizes that is wanted.
        tell: gets a line for each point.
        keep: gets what there is after each point: whoever stops the run finds that.
    """
    runs: list[Run] = []
    left_out: dict[str, str] = {}
    for number in range(rounds):
        for point in points(largest):
            place = f"growth/{point.series}: {point.contender}"
            if place in left_out:
                continue
            why = _does_not_fit(point, directory)
            if why:
                left_out.setdefault(f"growth/{point.series}/{point.at:g}: {point.contender}", why)
                continue
            measured = _measure(point, directory)
            if "failed" in measured or "unavailable" in measured:
                left_out[place] = f"at {point.at:g}: {measured.get('failed') or measured['unavailable']}"
                continue
            runs.append({**dataclasses.asdict(point), "round": number, **measured})
            seconds = "  ".join(f"{action} {measured[action] * 1e3:9.1f} ms" for action in ("save", "load"))
            tell(f"{place:40}{point.at:>12g}  {seconds}")
            keep(runs, left_out)
    return runs, left_out


def _does_not_fit(point: Point, directory: Path) -> str:
    nbytes = num_bytes(point.workload, point.scale)
    # A file, the live tensors, and for some contenders a copy of them, beside what each tensor takes as an object.
    needed = 3.2 * nbytes + 4000 * (point.scale if point.workload == "tiny" else 0)
    if needed > available_bytes():
        return f"needs {needed / 1e9:.0f} GB of memory, and {available_bytes() / 1e9:.0f} GB are left"
    free = shutil.disk_usage(directory).free
    return f"needs {nbytes / 1e9:.0f} GB in {directory}" if 1.1 * nbytes > free else ""


def _measure(point: Point, directory: Path) -> Run:
    measured: Run = {}
    with tempfile.TemporaryDirectory(dir=directory) as place:
        path = Path(place) / "checkpoint"
        path.mkdir()
        for action in ("save", "load"):
            request = {
                "action": action,
                "contender": point.contender,
                "workload": point.workload,
                "scale": point.scale,
                "path": str(path),
                "shards": point.shards,
            }
            result = run_measurement("measure", request, _TIMEOUT_SECONDS)
            if "wall" not in result:
                return result
            measured[action] = result["wall"]
            measured[f"{action}_peak"] = result["peak"]
    return measured
