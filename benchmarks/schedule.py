"""In which order what is measured: rounds, in which all contenders take turns, until the time is up.

The first pass has what the targets need, the second everybody else; then each pass for everybody else follows two of
those that the targets need. In each pass the order of the contenders is another one, so that a slow minute of the
machine meets them all. A contender is left out
from then on when it is not available or fails, and the results say why.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.contenders.entries import ENTRIES, OURS, Entry
from benchmarks.memory import available_bytes
from benchmarks.process import run_measurement
from benchmarks.targets import PROBE, is_essential
from benchmarks.workloads import num_bytes

Run = dict[str, Any]

_PROBE_SCALE = 0.01

_TIME = "the time was up"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run of the harness may take."""

    tmpfs: Path
    disk: Path
    scales: dict[str, float]
    rounds: int
    seconds: float
    num_keys: int = 100_000
    step_seconds: float = 0.5
    num_saves: int = 3
    limit_bytes: int = 2**29
    only: frozenset[str] = frozenset()
    """Figures to measure, by the beginning of their names; empty for all."""

    contenders: frozenset[str] = frozenset()
    """Names; empty for all."""

    def directory(self, medium: str) -> Path:
        return self.tmpfs if medium == "tmpfs" else self.disk

    def wants(self, figure: str, contender: str = "") -> bool:
        is_wanted = not self.contenders or not contender or contender in self.contenders
        return is_wanted and (not self.only or any(figure.startswith(prefix) for prefix in self.only))


@dataclasses.dataclass(frozen=True)
class Task:
    """What one contender, or those that read its files, do in one go."""

    figure: str
    contender: str
    steps: tuple[tuple[str, str], ...]
    """Figure and contender of each process, in order."""


GROUPS = (
    ("W1", "tmpfs", ("save", "load", "read")),
    ("W2", "tmpfs", ("save", "load")),
    ("W3", "tmpfs", ("save",)),
    ("W1", "disk", ("save", "load", "cold")),
)
"""Workload, medium, and what is done with the files of one save."""


def transfer_tasks(settings: Settings, essential: bool) -> Iterator[list[Task]]:
    """Groups of tasks of saving and restoring; those of a group are compared with each other."""
    for workload, medium, actions in GROUPS:
        tasks = []
        for writer in ENTRIES:
            if "save" not in writer.does or writer.only_workload not in ("", workload):
                continue
            steps = tuple(_steps(writer, workload, medium, actions, settings, essential))
            if steps:
                save = (f"save/{workload}/{medium}", writer.name)
                steps = (save, *(step for step in steps if step != save))
                tasks.append(Task(save[0], writer.name, steps))
        if tasks:
            yield tasks


def _steps(
    writer: Entry, workload: str, medium: str, actions: tuple[str, ...], settings: Settings, essential: bool
) -> Iterator[tuple[str, str]]:
    family = [writer, *(entry for entry in ENTRIES if entry.writer == writer.name)]
    for action in actions:
        figure = f"{action}/{workload}/{medium}"
        for entry in family:
            does = "load" if action == "cold" else action
            takes_part = does in entry.does and entry.only_workload in ("", workload)
            if takes_part and settings.wants(figure, entry.name) and is_essential(figure, entry.name) == essential:
                yield figure, entry.name


def single_tasks(settings: Settings, essential: bool) -> Iterator[list[Task]]:
    """Groups of one process for each contender, and one for the limits of the machine."""
    if essential and settings.wants("limits"):
        yield [Task("limits", "machine", (("limits", "machine"),))]
    members = {
        "index/keys/tmpfs": [OURS, "TensorFlow"],
        "async/W1/tmpfs": [entry.name for entry in ENTRIES if "async" in entry.does],
        PROBE: [entry.name for entry in ENTRIES if "load" in entry.does],
    }
    for figure, names in members.items():
        tasks = [
            Task(figure, name, ((figure, name),))
            for name in names
            if settings.wants(figure, name) and is_essential(figure, name) == essential
        ]
        if tasks:
            yield tasks


def passes(rounds: int) -> Iterator[tuple[int, bool]]:
    """The number of each pass, and whether it is for what the targets need, of which there are so many."""
    for number in range(rounds):
        yield number, True
        if number % 2 == 0:
            yield number // 2, False


class Schedule:
    """Runs the passes and collects what came of them."""

    def __init__(
        self,
        settings: Settings,
        tell: Callable[[str], object] = print,
        keep: Callable[[Schedule], object] = lambda schedule: None,
    ) -> None:
        self._settings = settings
        self._tell = tell
        self._keep = keep
        self._end = time.monotonic() + settings.seconds
        self._seconds: dict[Task, float] = {}
        self.runs: list[Run] = []
        self.left_out: dict[str, str] = {}

    def run(self) -> None:
        for number, essential in passes(self._settings.rounds):
            groups = [
                *transfer_tasks(self._settings, essential),
                *single_tasks(self._settings, essential),
            ]
            for tasks in groups:
                turn = number % len(tasks)
                for task in tasks[turn:] + tasks[:turn]:
                    self._run_task(task, number)
                # Whoever stops the run finds what it has measured so far.
                self._keep(self)

    def _run_task(self, task: Task, number: int) -> None:
        if task.figure == PROBE and number:
            return
        remaining = self._end - time.monotonic()
        if remaining < self._seconds.get(task, 5.0):
            for figure, contender in task.steps:
                if not any(run["figure"] == figure and run["contender"] == contender for run in self.runs):
                    self.left_out.setdefault(f"{figure}: {contender}", _TIME)
            return
        began = time.monotonic()
        medium = task.figure.rpartition("/")[2]
        with tempfile.TemporaryDirectory(dir=self._settings.directory(medium)) as directory:
            for figure, contender in task.steps:
                path = Path(directory) / "checkpoint"
                if figure.startswith(("save", "async", "probe")):
                    shutil.rmtree(path, ignore_errors=True)
                    path.mkdir()
                if not self._run_step(figure, contender, path, number):
                    break
        self._seconds[task] = time.monotonic() - began

    def _run_step(self, figure: str, contender: str, path: Path, number: int) -> bool:
        place = f"{figure}: {contender}"
        if self.left_out.get(place, _TIME) != _TIME:
            return not figure.startswith("save")
        module, request = self._request(figure, contender, path)
        began = time.monotonic()
        result = run_measurement(module, request, timeout_seconds=300)
        seconds = time.monotonic() - began
        if "unavailable" in result or "failed" in result:
            self.left_out[place] = result.get("unavailable") or result["failed"]
            self._tell(f"{place}: left out: {self.left_out[place]}")
            return not figure.startswith("save")
        self.left_out.pop(place, None)
        self.runs.append({"figure": figure, "contender": contender, "round": number, "process": seconds, **result})
        self._tell(f"round {number + 1}  {place:60}{seconds:5.1f} s  {_brief(result)}")
        return True

    def _request(self, figure: str, contender: str, path: Path) -> tuple[str, Run]:
        action = figure.partition("/")[0]
        if action == "limits":
            directories = {"tmpfs": str(self._settings.tmpfs), "disk": str(self._settings.disk)}
            return "limits", {"directories": directories, "bytes": self._settings.limit_bytes}
        if action == "index":
            path = self._settings.tmpfs / "keys"
            keys = {"path": str(path), "num_keys": self._settings.num_keys}
            if not path.exists():
                run_measurement("index", {"contender": "", **keys}, timeout_seconds=300)
            return "index", {"contender": contender, **keys}
        _, workload, medium = figure.split("/")
        request: Run = {
            "action": "load" if action == "cold" else action,
            "contender": contender,
            "workload": workload,
            "scale": self._settings.scales[workload],
            "path": str(path),
            "durable": medium == "disk",
            "cold": action == "cold",
            "again": action == "save" and workload == "W2",
        }
        if action == "probe":
            request["scale"] *= _PROBE_SCALE
        if action == "async":
            request["settings"] = {
                "step_seconds": self._settings.step_seconds,
                # The stall of the first save is apart, so that there have to be two.
                "num_saves": self._settings.num_saves if is_essential(figure, contender) else 2,
            }
        return "measure", request


def _brief(result: Run) -> str:
    times = ("wall", "stall_later", "lost_step", "lost_total", "open_list", "open_one")
    shown = [f"{name} {result[name] * 1e3:.1f} ms" for name in times if name in result]
    if "noticed" in result:
        shown.append(f"flipped byte noticed: {result['noticed']}")
    if result.get("wrong_pieces"):
        shown.append("WRONG VALUES")
    return "  ".join(shown)


def scales_that_fit(scales: dict[str, float], tmpfs: Path, tell: Callable[[str], object] = print) -> dict[str, float]:
    """The scales, made smaller where neither memory nor the tmpfs holds a save, a restore and a copy."""
    fitting = {}
    for name, scale in scales.items():
        available = available_bytes() * 0.9
        needed = 4.5 * num_bytes(name, scale)
        share = min(1.0, available / needed, shutil.disk_usage(tmpfs).free / (1.1 * num_bytes(name, scale)))
        fitting[name] = scale * share
        if share < 1:
            tell(f"{name} is made smaller, to {share:.2f} of its size: memory has {available / 1e9:.1f} GB left.")
    return fitting
