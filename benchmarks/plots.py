"""The results as PNG files: each figure as bars in the order of the contenders' times, and how cost grows as lines."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from benchmarks.contenders.entries import OURS
from benchmarks.results import Results

_OURS_COLOUR, _PEER_COLOUR = "#d95f02", "#7f8fa6"
_METRICS = {"async": ("stall_later", "lost_total"), "index": ("open_list", "open_one")}
_TITLES = {
    "wall": "",
    "stall_later": "stall",
    "lost_total": "lost to the training in all",
    "open_list": "open + list",
    "open_one": "open + read one",
}
_AXES = {"tensors": "tensors of 64 bytes", "bytes": "bytes in 64 tensors", "shards": "data files for 1 GB"}


def plot_all(results: Results, directory: Path) -> list[Path]:
    """Writes the files and returns their paths."""
    pyplot = _pyplot()
    directory.mkdir(parents=True, exist_ok=True)
    made = []
    for figure in results.figures():
        for metric in _METRICS.get(figure.partition("/")[0], ("wall",)):
            axes = _bars(pyplot, results, figure, metric)
            if axes is not None:
                suffix = "" if metric == "wall" else f"-{metric}"
                made.append(_save(pyplot, axes, directory / f"{figure.replace('/', '-')}{suffix}.png"))
    for series in _AXES:
        for action in ("save", "load"):
            axes = _lines(pyplot, results, series, action)
            if axes is not None:
                made.append(_save(pyplot, axes, directory / f"growth-{series}-{action}.png"))
    return made


def _pyplot() -> Any:
    importlib.import_module("matplotlib").use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def _bars(pyplot: Any, results: Results, figure: str, metric: str) -> Any:
    medians = {name: results.median(figure, name, metric) for name in results.contenders(figure)}
    present = sorted(((value, name) for name, value in medians.items() if value is not None), reverse=True)
    if not present:
        return None
    _, axes = pyplot.subplots(figsize=(8, 0.8 + 0.32 * len(present)))
    names = [name for _, name in present]
    colours = [_OURS_COLOUR if name.startswith(OURS) else _PEER_COLOUR for name in names]
    bars = axes.barh(names, [value * 1e3 for value, _ in present], color=colours)
    axes.bar_label(bars, fmt="%.3g", padding=3)
    axes.margins(x=0.12)
    axes.set_xlabel("milliseconds, median")
    axes.set_title(f"{figure.replace('/', ', ')} {_TITLES[metric]}")
    return axes


def _lines(pyplot: Any, results: Results, series: str, action: str) -> Any:
    contenders = dict.fromkeys(run["contender"] for run in results.data.get("growth", []) if run["series"] == series)
    if not contenders:
        return None
    _, axes = pyplot.subplots(figsize=(7, 4.5))
    for name in contenders:
        points = results.series(series, name, action)
        is_ours = name.startswith(OURS)
        axes.plot(
            [at for at, _ in points],
            [seconds for _, seconds in points],
            marker="o",
            label=name,
            linewidth=2.5 if is_ours else 1.2,
            color=_OURS_COLOUR if is_ours else None,
        )
    axes.set_xscale("log", base=2 if series == "shards" else 10)
    axes.set_yscale("log")
    axes.set_xlabel(_AXES[series])
    axes.set_ylabel("seconds, median")
    axes.set_title(f"{action} in memory")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    return axes


def _save(pyplot: Any, axes: Any, path: Path) -> Path:
    axes.figure.tight_layout()
    axes.figure.savefig(path, dpi=110)
    pyplot.close(axes.figure)
    return path
