"""The results as tables of Markdown: to the terminal, and between the marks of docs/performance.md.

Prose stands outside of the marks (`<!-- begin NAME -->` and `<!-- end NAME -->`) and stays as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders.entries import OURS
from benchmarks.results import Outcome, Results
from benchmarks.targets import MEGABYTE, TARGETS

_SECONDS = {
    "wall": "ms",
    "cpu": "CPU ms",
    "again": "second save ms",
    "first": "first cold restore ms",
    "blocked_first": "blocked, first ms",
    "blocked_later": "blocked, later ms",
    "stall_first": "stall, first ms",
    "stall_later": "stall, later ms",
    "lost_step": "lost in the step ms",
    "lost_total": "lost in all ms",
    "complete": "until complete ms",
    "open": "open ms",
    "open_list": "open + list ms",
    "open_one": "open + one ms",
}

Table = list[str]


def tables(results: Results) -> dict[str, Table]:
    """Lines of Markdown by the name of the mark."""
    return {
        "machine": _table(
            ("", ""), [*results.data["machine"].items(), ("processors used by others", results.others())]
        ),
        "targets": _table(
            ("figure", "peer", "peer's", "ours", "ratio", "target", "met", "x limit of the machine"),
            (_target_row(results, results.outcome(target)) for target in TARGETS),
        ),
        "limits": _table(
            ("limit of the machine", "GB/s"),
            ((name, _number((results.limit(name) or 0) / 1e9)) for name in results.limit_names()),
        ),
        "figures": _figure_tables(results),
        "probe": _table(
            ("one flipped byte in the data", "noticed", "by"),
            ((contender, "yes" if noticed else "no", text) for contender, noticed, text in results.probes()),
        ),
        "left-out": _table(
            ("left out", "who", "why"), _left_out(results.data["left_out"] | results.data.get("growth_left_out", {}))
        ),
    }


def print_tables(results: dict[str, Any]) -> None:
    for name, lines in tables(Results(results)).items():
        print(f"\n## {name}\n")
        print("\n".join(lines))


def write_page(results: dict[str, Any], page: Path) -> None:
    """Puts the tables between the marks of a page.

    Raises:
        ValueError: the page has no marks for a table.
    """
    text = page.read_text()
    for name, lines in (tables(Results(results)) | {"plots": _plots(page)}).items():
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(
                f"{page} has no marks for the table {name}: <!-- begin {name} --> and <!-- end {name} -->."
            )
        body = "\n".join(lines) + "\n"
        text = pattern.sub(lambda found, body=body: found[1] + body + found[2], text)  # type: ignore[misc]
    page.write_text(text)


def _table(header: Sequence[str], rows: Any) -> Table:
    body = ["| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in rows]
    if not body:
        return ["none"]
    return ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header), *body]


def _target_row(results: Results, outcome: Outcome) -> tuple[str, ...]:
    target = outcome.target
    met = {True: "yes", False: "**no**", None: "not measured"}[outcome.is_met]
    distance = results.times_limit(outcome)
    in_megabytes = target.metric == "peak"
    return (
        target.label,
        outcome.peer,
        _value(outcome.theirs, in_megabytes),
        _value(outcome.ours, in_megabytes),
        _number(outcome.ratio),
        f"<= {target.factor:g}",
        met,
        _number(distance),
    )


def _figure_tables(results: Results) -> Table:
    lines: Table = []
    for figure in results.figures():
        names = results.contenders(figure)
        metrics = [metric for metric in _SECONDS if any(results.values(figure, name, metric) for name in names)]
        has_peak = any(results.values(figure, name, "peak") for name in names)
        first = metrics[0] if metrics else "wall"
        header = [
            "contender",
            "runs",
            "best ms",
            *(_SECONDS[metric] for metric in metrics),
            *(["peak MB"] if has_peak else []),
        ]
        rows = sorted(_figure_rows(results, figure, metrics, has_peak), key=lambda row: row[0])
        base = results.median(figure, OURS, first)
        lines += [f"**{figure}**", "", *_table((*header, "x ours"), (_with_ratio(row, base) for row in rows)), ""]
    return lines


def _figure_rows(
    results: Results, figure: str, metrics: list[str], has_peak: bool
) -> Iterator[tuple[float, tuple[str, ...]]]:
    for name in results.contenders(figure):
        medians = [results.median(figure, name, metric) for metric in metrics]
        runs = len(results.values(figure, name, metrics[0]))
        best = min(results.values(figure, name, metrics[0]))
        cells = [name, str(runs), _value(best, False), *(_value(value, False) for value in medians)]
        if has_peak:
            cells.append(_value(results.median(figure, name, "peak"), True))
        if any(results.values(figure, name, "wrong_pieces")) and max(results.values(figure, name, "wrong_pieces")):
            cells[0] += " (**wrong values**)"
        yield medians[0] or 0.0, tuple(cells)


def _with_ratio(row: tuple[float, tuple[str, ...]], base: float | None) -> tuple[str, ...]:
    return (*row[1], _number(row[0] / base if base else None))


def _value(value: float | None, in_megabytes: bool) -> str:
    """Milliseconds, or MB."""
    return "" if value is None else _number(value / MEGABYTE if in_megabytes else value * 1e3)


def _number(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _plots(page: Path) -> Table:
    """The PNG files beside the page, in the folder of its name."""
    folder = page.with_suffix("")
    return [f"![{path.stem}]({folder.name}/{path.name})" for path in sorted(folder.glob("*.png"))] or ["none yet"]


def _left_out(reasons: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Contenders together that were left out of the same figure for the same reason."""
    together: dict[tuple[str, str], list[str]] = {}
    for place, why in reasons.items():
        figure, _, contender = place.partition(": ")
        together.setdefault((figure, why), []).append(contender)
    for (figure, why), contenders in together.items():
        yield figure, "; ".join(contenders), why
