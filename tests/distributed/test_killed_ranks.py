"""A process is killed in the middle of a save: the others say so, and the checkpoint before is whole."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from distributed.killed_rank_jobs import PLACES
from ranks import run_ranks

from torch_trackckpt import Checkpoint, latest_checkpoint, load_checkpoint

ONLY_RANK_0 = ("joining", "renaming data", "renaming the index", "naming it", "telling of it")
# Places that come after the checkpoint exists.
COMMITTED = ("naming it", "telling of it")


def check(path: Path, victim: int, place: str, is_async: bool, keeps_store: bool = True) -> None:
    outcomes = run_ranks(
        2, "distributed.killed_rank_jobs:die", str(path), victim, place, is_async, keeps_store=keeps_store, timeout=90
    )
    assert outcomes[victim].status == -signal.SIGKILL, outcomes[victim].output
    other = outcomes[1 - victim]
    assert other.status == 0, other.output
    assert "was given up, because" in other.result["error"]
    assert other.result["seconds"] < 30

    latest = latest_checkpoint(path)
    assert latest == str(path / ("ckpt-2" if place == "telling of it" else "ckpt-1"))
    numbers = [1, 2] if place in COMMITTED else [1]
    for number in numbers:
        stored = load_checkpoint(path / f"ckpt-{number}")
        stored.verify()
        weight = stored.get_tensor("model/weight/.ATTRIBUTES/VARIABLE_VALUE")
        assert torch.equal(weight, torch.full((100, 100), 2.0 - number))
    assert (path / "ckpt-2.index").exists() == (place in COMMITTED)

    # What the dead process has left is no obstacle, and does not stay.
    checkpoint = Checkpoint(model=torch.nn.Linear(100, 100))
    checkpoint.restore(path / "ckpt-1").assert_existing_objects_matched()
    checkpoint.save(path / "ckpt")
    names = sorted(file.name for file in path.iterdir() if file.name.startswith("ckpt-2"))
    assert names == ["ckpt-2.data-00000-of-00001", "ckpt-2.index"]


@pytest.mark.parametrize(
    ("victim", "place"),
    [(victim, place) for place in PLACES for victim in (0, 1) if victim == 0 or place not in ONLY_RANK_0],
)
def test_the_others_raise_and_the_checkpoint_before_is_the_latest_and_whole(
    victim: int, place: str, tmp_path: Path
) -> None:
    check(tmp_path, victim, place, is_async=False)


@pytest.mark.parametrize(("victim", "place"), [(0, "writing"), (1, "writing"), (0, "joining"), (1, "having written")])
def test_the_same_goes_for_an_asynchronous_save(victim: int, place: str, tmp_path: Path) -> None:
    check(tmp_path, victim, place, is_async=True)


def test_the_process_that_keeps_the_store_may_die_as_well(tmp_path: Path) -> None:
    check(tmp_path, 0, "writing", is_async=False, keeps_store=False)
