"""The arguments of `python -m benchmarks`, and what they lead to."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe_machine, file_system_of
from benchmarks.report import print_tables, write_page
from benchmarks.schedule import Schedule, Settings, probe, scales_that_fit

FULL = {"W1": 1.0, "W2": 1.0, "W3": 1.0}
SHORT = {"W1": 0.125, "W2": 1.0, "W3": 0.0625}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="measure the figures of the targets")
    run.add_argument("--short", action="store_true", help="smaller and fewer, in three minutes: whether all works")
    run.add_argument("--results", type=Path, default=Path("build/benchmarks/results.json"))
    run.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"), help="a directory in memory")
    run.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()), help="a directory on a disk")
    run.add_argument("--rounds", type=int, help="at most")
    run.add_argument("--seconds", type=float, help="at most")
    run.add_argument("--scale", type=float, default=1.0, help="of W1, W2 and W3")
    run.add_argument("--only", nargs="*", default=[], help="figures, such as save/W1 or async")
    run.set_defaults(command=_run)
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
            seconds=arguments.seconds or (160 if arguments.short else 1080),
            num_keys=20_000 if arguments.short else 100_000,
            step_seconds=0.1 if arguments.short else 0.5,
            num_saves=3 if arguments.short else 4,
            limit_bytes=2**26 if arguments.short else 2**29,
            only=frozenset(arguments.only),
        )
        machine = describe_machine(Path(tmpfs), Path(disk))
        if file_system_of(Path(disk)) == "tmpfs":
            print(f"{disk} is no disk; give one by --disk.")
        schedule = Schedule(settings)
        probed = probe(settings)
        schedule.run()
    results = {
        "machine": machine,
        "scales": settings.scales,
        "seconds": time.monotonic() - began,
        "runs": schedule.runs,
        "left_out": schedule.left_out,
        "probe": probed,
    }
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(results, indent=1) + "\n")
    print_tables(results)
    print(f"\n{time.monotonic() - began:.0f} s; results in {arguments.results}")


def _report(arguments: argparse.Namespace) -> None:
    results = json.loads(arguments.results.read_text())
    if arguments.page is None:
        print_tables(results)
    else:
        write_page(results, arguments.page)
