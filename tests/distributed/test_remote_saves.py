"""Several processes save one checkpoint to remote storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from distributed.test_resharding import alone
from ranks import results_of, run_ranks
from torch import nn

from torch_trackckpt import latest_checkpoint, load_checkpoint

pytest.importorskip("fsspec", reason="fsspec is not installed (pip install 'torch_trackckpt[test]')")


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir() if file.is_file())


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 1))


@pytest.mark.parametrize("is_async", [False, True])
def test_each_uploads_its_data_and_one_index_names_them(is_async: bool, tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    results: list[Any] = results_of(run_ranks(3, "distributed.remote_save_jobs:save_remotely", url, is_async))
    for result in results:
        assert result["path"] == f"{url}/ckpt-1"
        assert result["found"] == result["expected"] == results[0]["expected"]
    assert alone(network(), f"{url}/ckpt-1") == results[0]["expected"]
    assert latest_checkpoint(url) == f"{url}/ckpt-1"
    # Where a checkpoint takes the place of another, there is one data file more, which is empty.
    assert names(tmp_path) == [
        "checkpoint",
        *(f"ckpt-1.data-0000{rank}-of-00003" for rank in range(3)),
        "ckpt-1.index",
        *(f"same.data-0000{number}-of-00004" for number in range(4)),
        "same.index",
    ]
    # As files of this machine they are the same checkpoint.
    stored, local = load_checkpoint(f"{url}/same"), load_checkpoint(tmp_path / "same")
    stored.verify()
    assert list(stored) == list(local)


@pytest.mark.parametrize("failing", [0, 1])
def test_what_goes_wrong_in_one_process_leaves_no_checkpoint(failing: int, tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    results: list[Any] = results_of(run_ranks(2, "distributed.remote_save_jobs:fail_remotely", url, failing))
    for rank, result in enumerate(results):
        assert "the network is down" in result["error"]
        assert result["error"].startswith("RankError") == (rank != failing)
        assert result["latest"] == result["first"] == f"{url}/ckpt-1"
        assert result["third"] == f"{url}/ckpt-3"
    # What another process has uploaded may be there until the next save, and means nothing.
    left = {name.partition(".")[0] for name in names(tmp_path) if ".data" not in name}
    assert left == {"checkpoint", "ckpt-1", "ckpt-3"}
    load_checkpoint(f"{url}/ckpt-3").verify()


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("scheme", ["file://", ""])
def test_what_goes_wrong_when_there_is_the_checkpoint_does_not_take_it_away(
    scheme: str, failing: int, tmp_path: Path
) -> None:
    results: list[Any] = results_of(
        run_ranks(2, "distributed.remote_save_jobs:fail_in_callback", f"{scheme}{tmp_path}", failing)
    )
    for rank, result in enumerate(results):
        assert "ZeroDivisionError: in a callback" in result["error"]
        assert result["error"].startswith("RankError") == (rank != failing)
        assert result["found"] == 1.0
        assert result["again"] == f"{scheme}{tmp_path}/again"
    load_checkpoint(f"{scheme}{tmp_path}/ckpt").verify()
