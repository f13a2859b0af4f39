"""The arguments of `python -m benchmarks`, and what they lead to."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.growth import measure_growth
from benchmarks.machine import describe_machine, file_system_of
from benchmarks.plots import plot_all
from benchmarks.report import print_tables, write_page
from benchmarks.results import Results
from benchmarks.schedule import Schedule, Settings, scales_that_fit

FULL = {"W1": 1.0, "W2": 1.0, "W3": 1.0}
SHORT = {"W1": 0.125, "W2": 1.0, "W3": 0.0625}

_RESULTS = Path("build/benchmarks/results.json")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="measure the figures of the targets")
    run.add_argument("--short", action="store_true", help="smaller and fewer, in three minutes: whether all works")
    run.add_argument("--results", type=Path, default=_RESULTS)
    run.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"), help="a directory in memory")
    run.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()), help="a directory on a disk")
    run.add_argument("--rounds", type=int, help="at most")
    run.add_argument("--seconds", type=float, help="at most")
    run.add_argument("--scale", type=float, default=1.0, help="of W1, W2 and W3")
    run.add_argument("--only", nargs="*", default=[], help="figures, such as save/W1 or async")
    run.add_argument("--contenders", nargs="*", default=[], help="by name; all of them otherwise")
    run.set_defaults(command=_run)
    growth = commands.add_parser("growth", help="measure how cost grows, and add it to the results")
    growth.add_argument("--results", type=Path, default=_RESULTS)
    growth.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"), help="a directory in memory")
    growth.add_argument("--rounds", type=int, default=3)
    growth.add_argument("--largest", type=float, default=1.0, help="share of the largest sizes")
    growth.set_defaults(command=_growth)
    plot = commands.add_parser("plot", help="PNG files from a JSON")
    plot.add_argument("results", type=Path)
    plot.add_argument("--directory", type=Path, default=Path("docs/performance"))
    plot.set_defaults(command=_plot)
    report = commands.add_parser("report", help="the tables of a JSON, into a page where one is given")
    report.add_argument("results", type=Path)
    report.add_argument("--page", type=Path, help="a page with marks, such as docs/performance.md")
    report.set_defaults(command=_report)
    chosen = parser.parse_args(arguments)
    chosen.command(chosen)


def _run(arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    scales = {name: scale * arguments.scale for name, scale in (SHORT if arguments.short else FULL).items()}
    with (
        tempfile.TemporaryDirectory(dir=arguments.tmpfs) as tmpfs,
        tempfile.TemporaryDirectory(dir=arguments.disk) as disk,
    ):
        settings = Settings(
            Path(tmpfs),
            Path(disk),
            scales_that_fit(scales, Path(tmpfs)),
            rounds=arguments.rounds or (1 if arguments.short else 5),
            seconds=arguments.seconds or (165 if arguments.short else 1080),
            num_keys=20_000 if arguments.short else 100_000,
            step_seconds=0.1 if arguments.short else 0.5,
            num_saves=2 if arguments.short else 3,
            limit_bytes=2**26 if arguments.short else 2**29,
            only=frozenset(arguments.only),
            contenders=frozenset(arguments.contenders),
        )
        machine = describe_machine(arguments.tmpfs, arguments.disk)
        if os.getloadavg()[0] > 0.5:
            print(f"Others use this machine (load {os.getloadavg()[0]:.1f}): the figures will be noise.")
        if file_system_of(arguments.disk) == "tmpfs":
            print(f"{disk} is no disk; give one by --disk.")

        def keep(schedule: Schedule) -> None:
            results = _stored(arguments.results) | {
                "machine": machine,
                "scales": settings.scales,
                "seconds": time.monotonic() - began,
                "runs": schedule.runs,
                "left_out": schedule.left_out,
            }
            _store(results, arguments.results)

        Schedule(settings, keep=keep).run()
    print_tables(_stored(arguments.results))
    print(f"\n{time.monotonic() - began:.0f} s; results in {arguments.results}")


def _growth(arguments: argparse.Namespace) -> None:
    before = _stored(arguments.results)

    def keep(runs: list[dict[str, Any]], left_out: dict[str, str]) -> None:
        _store(before | {"growth": runs, "growth_left_out": left_out}, arguments.results)

    with tempfile.TemporaryDirectory(dir=arguments.tmpfs) as directory:
        runs, left_out = measure_growth(Path(directory), arguments.rounds, arguments.largest, keep=keep)
    keep(runs, left_out)
    for place, why in left_out.items():
        print(f"{place}: left out: {why}")


def _plot(arguments: argparse.Namespace) -> None:
    for path in plot_all(Results(_stored(arguments.results)), arguments.directory):
        print(path)


def _stored(path: Path) -> dict[str, Any]:
    """What other commands have put there: growth is measured apart."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _store(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def _report(arguments: argparse.Namespace) -> None:
    results = json.loads(arguments.results.read_text())
    if arguments.page is None:
        print_tables(results)
    else:
        write_page(results, arguments.page)
