"""The results of a run, asked for medians."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from benchmarks.targets import ALLOWANCE_BYTES, MEGABYTE, PROBE, Target


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One target, as it was met or missed. Missing values are None."""

    target: Target
    peer: str
    theirs: float | None
    """Of the best peer, or of what ours is compared with; in the unit of the metric."""
    ours: float | None
    ratio: float | None
    """Ours to theirs; of a limit in MB, the number of MB."""

    @property
    def is_met(self) -> bool | None:
        return None if self.ratio is None else self.ratio <= self.target.factor


@dataclasses.dataclass(frozen=True)
class Results:
    """What `python -m benchmarks run` wrote."""

    data: dict[str, Any]

    def figures(self) -> list[str]:
        """What takes time, in the order in which it was measured first."""
        found = dict.fromkeys(run["figure"] for run in self.data["runs"])
        return [figure for figure in found if figure not in ("limits", PROBE)]

    def probes(self) -> list[tuple[str, bool, str]]:
        """Contender, whether it noticed a damaged byte, and what it said."""
        return [(run["contender"], run["noticed"], run["text"]) for run in self.data["runs"] if run["figure"] == PROBE]

    def contenders(self, figure: str) -> list[str]:
        return list(dict.fromkeys(run["contender"] for run in self.data["runs"] if run["figure"] == figure))

    def values(self, figure: str, contender: str, metric: str) -> list[float]:
        return [
            run[metric]
            for run in self.data["runs"]
            if run["figure"] == figure and run["contender"] == contender and run.get(metric) is not None
        ]

    def median(self, figure: str, contender: str, metric: str) -> float | None:
        found = self.values(figure, contender, metric)
        return statistics.median(found) if found else None

    def is_wrong(self, figure: str, contender: str) -> bool:
        """Whether any run had wrong values."""
        return any(
            run.get("wrong_pieces")
            for run in self.data["runs"]
            if run["figure"] == figure and run["contender"] == contender
        )

    def others(self) -> str:
        """How much of the processors others used while this was measured: figures of a busy machine are noise."""
        shares = [run["others"] for run in self.data["runs"] if "others" in run]
        if not shares:
            return "unknown"
        busy = sum(share > 0.1 for share in shares) / len(shares)
        return f"{statistics.median(shares):.0%} in the median run; more than 10% in {busy:.0%} of the runs"

    def limit(self, name: str) -> float | None:
        """Bytes a second."""
        return self.median("limits", "machine", name)

    def limit_names(self) -> list[str]:
        """In the order in which they were measured."""
        fixed = {"figure", "contender", "round", "process"}
        return list(
            dict.fromkeys(
                name for run in self.data["runs"] if run["figure"] == "limits" for name in run if name not in fixed
            )
        )

    def series(self, name: str, contender: str, metric: str) -> list[tuple[float, float]]:
        """How a figure grows: medians over the rounds, in order."""
        found: dict[float, list[float]] = {}
        for run in self.data.get("growth", []):
            if run["series"] == name and run["contender"] == contender:
                found.setdefault(run["at"], []).append(run[metric])
        return sorted((at, statistics.median(values)) for at, values in found.items())

    def outcome(self, target: Target) -> Outcome:
        # Whoever restores wrong values has met nothing, and is no peer.
        is_sound = not self.is_wrong(target.figure, target.ours)
        ours = self.median(target.figure, target.ours, target.metric) if is_sound else None
        if target.peers:
            measured = {peer: self.median(target.figure, peer, target.metric) for peer in target.peers}
            present = {
                peer: value
                for peer, value in measured.items()
                if value is not None and not self.is_wrong(target.figure, peer)
            }
            peer = min(present, key=present.__getitem__) if present else ""
            theirs = present.get(peer)
        elif target.reference:
            peer = "ours, later calls" if target.reference == "stall_later" else "payload + 32 MB"
            theirs = self.median(target.figure, target.ours, target.reference)
            if theirs is not None and target.reference == "bytes":
                theirs += ALLOWANCE_BYTES
        else:
            peer, theirs = "", float(MEGABYTE)
        # What is lost is a difference, and noise may make it negative: that says nothing.
        ratio = ours / theirs if ours is not None and theirs is not None and theirs > 0 else None
        return Outcome(target, peer, theirs if target.peers or target.reference else None, ours, ratio)

    def times_limit(self, outcome: Outcome) -> float | None:
        """How many times longer ours takes than the machine needs for these bytes, with one thread or two."""
        name = outcome.target.limit
        rates = [rate for rate in (self.limit(name), self.limit(f"{name}, 1 thread")) if rate is not None]
        rate = max(rates, default=None)
        nbytes = self.median(outcome.target.figure, outcome.target.ours, "bytes")
        if rate is None or nbytes is None or outcome.ours is None:
            return None
        return outcome.ours * rate / nbytes
