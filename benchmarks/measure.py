"""One measurement in a process of its own: one contender, one action, one round.

    python -m benchmarks.measure '{"action": "save", "contender": "torch", "workload": "W1", ...}'

What is measured is the action alone: wall seconds, CPU seconds of this process and its children, and the peak of
resident memory above what the process had with its live model. Before it, the same is done with a few kilobytes, so
that no import and no first use is counted. After a restore, the values are checked bit for bit. The result is printed
as JSON; `unavailable` in it says why a contender cannot take part.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.async_loop import run_loop
from benchmarks.contenders.base import Contender
from benchmarks.contenders.entries import entry_named, make_contender
from benchmarks.files import evict, files_of, flipped_byte, num_bytes_of, sync_all
from benchmarks.memory import PeakMemory, make_present
from benchmarks.process import run_alone
from benchmarks.processor import ProcessorTime
from benchmarks.workloads import SMALLEST, differing, make_workload

_NUM_READS = 5

SAVED, OTHER = 1, 2
"""The seeds of what is saved, and of what is in the live tensors before a restore."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What one process does."""

    action: str
    """save, load, read, async or probe."""
    contender: str
    workload: str
    scale: float
    path: str
    """The directory of the checkpoint: empty before a save."""
    durable: bool = False
    """Whether a save counts until the disk has everything, which is what disks are measured by."""
    cold: bool = False
    """Whether a restore finds nothing of the files in memory."""
    again: bool = False
    """Whether a second save of the same objects is measured as well."""
    shards: int = 0
    """Of our own contender: into how many data files; 0 for what it does by itself."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of the asynchronous loop."""


def perform(arguments: dict[str, Any]) -> dict[str, Any]:
    """The figures of one `Request`, given as a dict."""
    request = Request(**arguments)
    if request.action == "async":
        return _async(request)
    if request.action == "probe":
        return _probe(request)
    with tempfile.TemporaryDirectory(dir=Path(request.path).parent) as rehearsal:
        _rehearse(request, Path(rehearsal))
    return {"save": _save, "load": _load, "read": _read}[request.action](request)


def _rehearse(request: Request, path: Path) -> None:
    tiny = dataclasses.replace(request, scale=SMALLEST[request.workload], path=str(path))
    for action in dict.fromkeys(("save", request.action)):
        contender = _contender(tiny, SAVED)
        _action(contender, tiny, action)()
        contender.close()


def _contender(request: Request, seed: int) -> Contender:
    workload = make_workload(request.workload, request.scale, seed)
    return make_contender(request.contender, workload, request.durable, request.shards)


def _action(contender: Contender, request: Request, action: str) -> Callable[[], object]:
    path = Path(request.path)
    if action == "load":
        return lambda: contender.load(path)
    if action == "read":
        return lambda: contender.read_one(path, contender.workload.one)

    def save() -> None:
        contender.save(path)
        if request.durable and not contender.syncs_files:
            sync_all(path)

    return save


def timed(action: Callable[[], object]) -> dict[str, float]:
    """Wall and CPU seconds, the share of the processors that others took, and bytes of memory above those before."""
    gc.collect()
    peak = PeakMemory()
    processor = ProcessorTime()
    start = time.perf_counter()
    action()
    wall = time.perf_counter() - start
    return {"wall": wall, "cpu": processor.own(), "others": processor.others(), "peak": peak.above()}


def _save(request: Request) -> dict[str, Any]:
    contender = _contender(request, SAVED)
    _make_present(contender)
    if request.durable:
        os.sync()
    measured: dict[str, Any] = timed(_action(contender, request, "save"))
    measured["bytes"] = contender.workload.nbytes()
    measured["file_bytes"] = num_bytes_of(Path(request.path))
    if request.again:
        with tempfile.TemporaryDirectory(dir=Path(request.path).parent) as second:
            measured["again"] = timed(_action(contender, dataclasses.replace(request, path=second), "save"))["wall"]
    contender.close()
    return measured


def _load(request: Request) -> dict[str, Any]:
    contender = _contender(request, OTHER)
    _make_present(contender)
    load = _action(contender, request, "load")
    measured: dict[str, Any] = {}
    how = "warm"
    if request.cold:
        # What a virtual machine has just written, its host may still be writing. The second time, the host has it.
        evict(Path(request.path))
        measured["first"] = timed(load)["wall"]
        how = evict(Path(request.path))
    measured |= timed(load)
    measured["bytes"] = contender.workload.nbytes()
    measured["cache"] = how
    measured["wrong_pieces"] = differing(contender.live(), SAVED)
    contender.close()
    return measured


def _make_present(contender: Contender) -> None:
    """What a file takes, or a copy in memory."""
    make_present(contender.workload.nbytes() * 9 // 8)


def _async(request: Request) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=Path(request.path).parent) as rehearsal:
        tiny = _contender(dataclasses.replace(request, scale=SMALLEST[request.workload]), SAVED)
        tiny.begin(Path(rehearsal))()
        tiny.close()
    workload = make_workload(request.workload, request.scale, SAVED)
    assert workload.training is not None
    make_present(2 * workload.nbytes())
    return run_loop(
        workload.training,
        lambda: make_contender(request.contender, workload, request.durable),
        request.path,
        **request.settings,
    )


def _read(request: Request) -> dict[str, Any]:
    contender = _contender(request, SAVED)
    value = float(contender.workload.tensors()[contender.workload.one].sum())
    _make_present(contender)
    _warm(Path(request.path))
    summed: list[float] = []
    runs = [
        timed(lambda: summed.append(contender.read_one(Path(request.path), contender.workload.one)))
        for _ in range(_NUM_READS)
    ]
    # Of two milliseconds another program can take one.
    measured: dict[str, Any] = sorted(runs, key=lambda run: run["wall"])[_NUM_READS // 2]
    measured["wrong_pieces"] = int(abs(summed[0] - value) > 1e-3 * abs(value))
    contender.close()
    return measured


def _warm(directory: Path) -> None:
    for path in files_of(directory):
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def _probe(request: Request) -> dict[str, Any]:
    """Whether one damaged byte, in the middle of the largest file, is noticed when it is restored."""
    path = Path(request.path)
    writer = entry_named(request.contender).writer or request.contender
    saver = _contender(dataclasses.replace(request, contender=writer), SAVED)
    saver.save(path)
    saver.close()
    largest = max(files_of(path), key=lambda file: file.stat().st_size)
    size = largest.stat().st_size
    for offset in (size // 2, size // 2 + 4099, size // 3, size // 4):
        with flipped_byte(largest, offset):
            contender = _contender(request, OTHER)
            try:
                contender.load(path)
            except Exception as error:
                return {"noticed": True, "text": f"{type(error).__name__}: {error}".split(",")[0][:100]}
            if differing(contender.live(), SAVED):
                return {"noticed": False, "text": "the values are wrong, and nothing says so"}
    shutil.rmtree(path)
    raise RuntimeError(f"No flipped byte of {largest.name} changed a value.")


if __name__ == "__main__":
    run_alone(perform)
