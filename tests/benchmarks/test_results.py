"""Figures are medians, targets compare them, and the tables go between the marks of the page."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.command import main
from benchmarks.report import tables, write_page
from benchmarks.results import Results
from benchmarks.targets import TARGETS, Target, is_essential

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def run(figure: str, contender: str, **metrics: Any) -> dict[str, Any]:
    return {"figure": figure, "contender": contender, "round": 0, "bytes": 10**9, **metrics}


def canned() -> dict[str, Any]:
    return {
        "machine": {"cores": "2"},
        "runs": [
            *(run("save/W1/tmpfs", "torch_trackckpt", wall=wall, peak=5e6) for wall in (0.3, 9.0, 0.2)),
            *(run("save/W1/tmpfs", "safetensors", wall=wall, peak=1e6) for wall in (0.5, 0.4, 0.7)),
            run("read/W1/tmpfs", "torch_trackckpt", wall=0.004),
            run("read/W1/tmpfs", "DCP", wall=0.02),
            run("read/W1/tmpfs", "TensorFlow", wall=0.005),
            run("async/W1/tmpfs", "torch_trackckpt, copy, prewarmed", stall_first=0.3, stall_later=0.1),
            run("load/W1/tmpfs", "torch_trackckpt", wall=0.1, wrong_pieces=3),
            run("probe/W1/tmpfs", "safetensors", noticed=False, text="nothing says so"),
            {"figure": "limits", "contender": "machine", "round": 0, "tmpfs write": 5e9},
        ],
        "left_out": {
            "save/W1/tmpfs: orbax": "pip install orbax-checkpoint",
            "save/W1/tmpfs: torchsnapshot": "the time was up",
            "save/W1/tmpfs: TensorFlow": "the time was up",
        },
    }


def target_of(label: str) -> Target:
    return next(target for target in TARGETS if target.label == label)


def test_a_target_compares_medians_of_the_rounds() -> None:
    outcome = Results(canned()).outcome(target_of("save W1, tmpfs"))

    assert (outcome.ours, outcome.theirs) == (0.3, 0.5)
    assert outcome.ratio == pytest.approx(0.6)
    assert outcome.is_met


def test_the_best_of_several_peers_counts() -> None:
    outcome = Results(canned()).outcome(target_of("read one tensor (5 MB) of W1"))

    assert outcome.peer == "TensorFlow"
    assert outcome.ratio == pytest.approx(0.8)


def test_a_first_call_is_compared_with_later_ones_and_memory_with_a_number() -> None:
    results = Results(canned())

    first = results.outcome(target_of("async stall W1, first call, of a later one"))
    peak = results.outcome(target_of("peak memory of a save of W1, MB"))

    assert first.ratio == pytest.approx(3.0)
    assert first.is_met is False
    assert peak.ratio == pytest.approx(5.0)
    assert peak.is_met


def test_what_is_lost_may_be_less_than_nothing_which_says_nothing() -> None:
    for theirs in (-0.003, 0.0):
        data = canned()
        for run in data["runs"]:
            if run["contender"] == "safetensors":
                run["wall"] = theirs
        assert Results(data).outcome(target_of("save W1, tmpfs")).is_met is None


@pytest.mark.parametrize("wrong", ["torch_trackckpt", "safetensors"])
def test_who_restores_wrong_values_has_met_nothing_and_is_no_peer(wrong: str) -> None:
    data = canned()
    for run in data["runs"]:
        if run["contender"] == wrong and run["figure"] == "save/W1/tmpfs":
            run["wrong_pieces"] = 1
    assert Results(data).outcome(target_of("save W1, tmpfs")).is_met is None


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert Results(canned()).outcome(target_of("cold restore W1, disk")).is_met is None


def test_a_figure_stands_beside_the_limit_of_the_machine() -> None:
    results = Results(canned())

    assert results.times_limit(results.outcome(target_of("save W1, tmpfs"))) == pytest.approx(0.3 * 5)


def test_the_contenders_of_a_target_are_measured_first() -> None:
    assert is_essential("save/W1/tmpfs", "safetensors")
    assert not is_essential("save/W1/tmpfs", "orbax")


def test_tables_have_a_row_for_each_target_and_say_what_is_wrong_or_left_out() -> None:
    found = tables(Results(canned()))

    assert len(found["targets"]) == len(TARGETS) + 2
    assert "| save W1, tmpfs | safetensors | 500 | 300 | 0.6 | <= 0.65 | yes | 1.5 |" in found["targets"]
    assert any("wrong values" in line for line in found["figures"])
    assert "| save/W1/tmpfs | torchsnapshot; TensorFlow | the time was up |" in found["left-out"]
    assert "| safetensors | no | nothing says so |" in found["probe"]


def test_the_prose_of_the_page_stays_when_its_tables_are_written_again(tmp_path: Path) -> None:
    page, stored = tmp_path / "performance.md", tmp_path / "results.json"
    page.write_text(PAGE.read_text())
    stored.write_text(json.dumps(canned()))
    main(["report", str(stored), "--page", str(page)])
    first = page.read_text()

    other = copy.deepcopy(canned())
    other["machine"] = {"cores": r"64 \1"}
    write_page(other, page)

    assert r"| cores | 64 \1 |" in page.read_text()
    assert page.read_text().replace(r"64 \1", "2") == first
    assert first.splitlines()[0] == PAGE.read_text().splitlines()[0]


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Nothing\n")

    with pytest.raises(ValueError, match="no marks for the table machine"):
        write_page(canned(), page)
