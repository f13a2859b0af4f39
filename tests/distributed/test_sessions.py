"""Saves of several processes that have come apart find together, end together, and see the same directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed.test_joint_saves import in_folders
from ranks import results_of, run_ranks

from torch_trackckpt import latest_checkpoint, load_checkpoint


@pytest.mark.parametrize("alone", [0, 1])
def test_a_save_in_one_process_alone_that_was_interrupted_does_not_disturb_the_next(alone: int, tmp_path: Path) -> None:
    expected = [str(tmp_path / name) for name in ("ckpt-1", "other-1", "ckpt-2")]
    results = results_of(run_ranks(2, "distributed.session_jobs:save_alone_and_go_on", str(tmp_path), alone))
    assert results == [expected] * 2


@pytest.mark.parametrize("is_async", [False, True])
def test_a_process_that_left_out_a_save_is_at_one_of_the_next(is_async: bool, tmp_path: Path) -> None:
    first, second = results_of(run_ranks(2, "distributed.session_jobs:leave_one_out", str(tmp_path), is_async))
    assert first == second
    assert {0, 1, 5, 6} <= set(first)
    assert 2 not in first
    for number in first:
        stored = load_checkpoint(tmp_path / f"ckpt-{number}")
        for name in ("x", "mine"):
            assert (stored.get_tensor(f"{name}/.ATTRIBUTES/VARIABLE_VALUE") == number).all()
    assert {name.split(".")[0] for name in in_folders(tmp_path)} == {"checkpoint", *(f"ckpt-{n}" for n in first)}


def test_the_process_that_keeps_the_store_may_end_right_after_the_last_save(tmp_path: Path) -> None:
    first, second = run_ranks(2, "distributed.session_jobs:leave_at_once", str(tmp_path), keeps_store=False)
    assert first.status == 0, first.output
    assert second.status == 7, second.output


def test_a_program_ends_after_a_save_that_failed(tmp_path: Path) -> None:
    outcomes = run_ranks(2, "distributed.session_jobs:fail_and_exit", str(tmp_path), exits=True, timeout=60)
    assert [outcome.result for outcome in outcomes] == ["RankError", "ValueError"]


def test_all_go_on_from_the_checkpoint_that_the_first_process_sees(tmp_path: Path) -> None:
    results = results_of(run_ranks(3, "distributed.session_jobs:look_at_another_state", str(tmp_path), 3))
    assert all(result == results[0] for result in results)
    paths = [str(tmp_path / f"ckpt-{number}") for number in (1, 2, 3, 4)]
    assert results[0] == {
        "restored": paths[2],
        "x": [3.0, 3.0],
        "begun": 0,
        "latest": paths[2],
        "after": paths,
        "newest": paths[3],
    }
    assert latest_checkpoint(tmp_path) == paths[3]


def test_where_the_first_process_sees_no_checkpoint_all_begin_anew(tmp_path: Path) -> None:
    results = results_of(run_ranks(2, "distributed.session_jobs:look_at_another_state", str(tmp_path), 0))
    path = str(tmp_path / "ckpt-1")
    expected = {"restored": None, "x": [-1.0, -1.0], "begun": 1, "latest": None, "after": [path], "newest": path}
    assert results == [expected] * 2
