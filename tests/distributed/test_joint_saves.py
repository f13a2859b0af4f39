"""Several processes save one checkpoint: each writes its part, and anybody reads the whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.joint_save_jobs import model_of, trained
from distributed.trainings import FAST, listed
from ranks import results_of, run_ranks

from torch_trackckpt import Checkpoint, CheckpointOptions, RNGState, latest_checkpoint, load_checkpoint
from torch_trackckpt.errors import MismatchError

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def in_folders(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A checkpoint of two processes that have the same model, and random states of their own."""
    path = tmp_path_factory.mktemp("replicated")
    return path, results_of(run_ranks(2, "distributed.joint_save_jobs:save_replicated", str(path)))


def test_each_process_writes_one_data_file_and_one_index_names_both(replicated: tuple[Path, list[Any]]) -> None:
    path, results = replicated
    expected = ["checkpoint", "ckpt-1.data-00000-of-00002", "ckpt-1.data-00001-of-00002", "ckpt-1.index"]
    assert [result["files"] for result in results] == [expected] * 2
    assert [result["path"] for result in results] == [str(path / "ckpt-1")] * 2
    assert latest_checkpoint(path) == str(path / "ckpt-1")


def test_what_is_the_same_in_all_processes_is_written_once_and_by_all(replicated: tuple[Path, list[Any]]) -> None:
    path, _ = replicated
    model = model_of(0)
    alone = Checkpoint(model=model, optimizer=trained(model)).write(path / "alone" / "ckpt", FAST)
    num_bytes = (path / "alone" / "ckpt.data-00000-of-00001").stat().st_size
    sizes = [(path / f"ckpt-1.data-0000{rank}-of-00002").stat().st_size for rank in range(2)]
    stored = load_checkpoint(path / "ckpt-1")
    states = sum(stored[key].nbytes for key in stored if "/rng" in key or key.startswith("rng"))
    graph = 2 * len(load_checkpoint(alone).get_tensor(GRAPH))
    assert sum(sizes) < num_bytes + states + graph + 30_000
    assert min(sizes) > 0.2 * max(sizes)


def test_a_process_alone_reads_the_whole(replicated: tuple[Path, list[Any]]) -> None:
    path, results = replicated
    model = model_of(1)
    checkpoint = Checkpoint(model=model, optimizer=torch.optim.AdamW(model.parameters()))
    checkpoint.restore(path / "ckpt-1").assert_existing_objects_matched()
    found = listed({"model": model.state_dict(), "optimizer": checkpoint.optimizer.state_dict()})
    # What a forward pass changes is that of the first process.
    assert found == results[0]["live"]
    assert found != results[1]["live"]
    assert [result["state"] for result in results] == [found] * 2


def test_each_process_goes_on_with_its_own_random_numbers(replicated: tuple[Path, list[Any]]) -> None:
    _, (first, second) = replicated
    assert first["again"] == first["draws"]
    assert second["again"] == second["draws"]
    assert first["draws"] != second["draws"]


def test_a_state_of_each_process_is_not_given_to_another_number_of_processes(
    replicated: tuple[Path, list[Any]],
) -> None:
    path, (first, second) = replicated
    before = torch.get_rng_state()
    with pytest.raises(MismatchError, match=r"\(root\)\.rng.*each of the 2 processes.*this job has 1.*resplit"):
        Checkpoint(rng=RNGState()).restore(path / "ckpt-1")
    assert torch.equal(torch.get_rng_state(), before)

    asked: list[Any] = []

    def take_the_last(states: Any, rank: int, size: int) -> Any:
        asked.append((len(states), rank, size))
        return states[-1]

    options = CheckpointOptions(resplit={RNGState: take_the_last})
    Checkpoint(rng=RNGState()).restore(path / "ckpt-1", options).assert_existing_objects_matched()
    assert asked == [(2, 0, 1)]
    assert torch.rand(3).tolist() == second["draws"][0] != first["draws"][0]


@pytest.mark.parametrize("mode", ["synchronous", "first", "overlapped"])
def test_values_are_those_of_the_call_in_every_process(mode: str, tmp_path: Path) -> None:
    for paths in results_of(run_ranks(2, "distributed.joint_save_jobs:save_in_turn", str(tmp_path), mode)):
        assert paths == [str(tmp_path / f"ckpt-{number}") for number in (1, 2, 3)]
    for number in (1, 2, 3):
        stored = load_checkpoint(tmp_path / f"ckpt-{number}")
        for name in ("weight", "bias"):
            assert (stored.get_tensor(f"model/{name}/.ATTRIBUTES/VARIABLE_VALUE") == number).all()
    assert not [name for name in in_folders(tmp_path) if "temp" in name]


def test_one_process_keeps_the_books_and_what_one_finds_damaged_no_process_takes(tmp_path: Path) -> None:
    first, second = results_of(run_ranks(2, "distributed.joint_save_jobs:manage", str(tmp_path)))
    assert first == second
    kept = [str(tmp_path / f"ckpt-{number}") for number in (3, 4)]
    assert first["listed"] == first["again"] == kept
    numbers = {name.split(".")[0] for name in first["files"]} - {"checkpoint"}
    assert numbers == {"ckpt-3", "ckpt-4"}
    assert first["restored"] == kept[0]
    assert first["weight"] == 2.0


@pytest.mark.parametrize(
    ("how", "failing", "text"),
    [
        ("adapter", 1, "ValueError: odd"),
        ("full disk", 0, "[Errno 28] No space left on device"),
        ("full disk", 1, "[Errno 28] No space left on device"),
        ("commit", 0, "[Errno 5] Input/output error"),
    ],
)
def test_what_goes_wrong_in_one_process_is_raised_in_all_and_the_next_save_works(
    how: str, failing: int, text: str, tmp_path: Path
) -> None:
    results = results_of(run_ranks(2, "distributed.joint_save_jobs:fail_and_go_on", str(tmp_path), failing, how))
    for rank, result in enumerate(results):
        assert text in result["error"]
        assert result["error"].startswith("RankError: The save to") == (rank != failing)
        assert rank == failing or f"rank {failing} failed" in result["error"]
        assert result["before"] == result["after"]
        assert result["second"] == str(tmp_path / "ckpt-3")
    assert latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-3")
    names = {re.sub(r"\..*", "", name) for name in in_folders(tmp_path)}
    assert names == {"checkpoint", "ckpt-1", "ckpt-3"}
    for number in (1, 3):
        weight = load_checkpoint(tmp_path / f"ckpt-{number}").get_tensor("model/weight/.ATTRIBUTES/VARIABLE_VALUE")
        assert torch.equal(weight, torch.ones(100, 100))


def test_what_one_process_learns_at_its_next_save_the_others_learn_there(tmp_path: Path) -> None:
    """Each save is that of the same step in all processes, whatever went wrong before."""
    first, second = results_of(run_ranks(2, "distributed.joint_save_jobs:fail_in_background", str(tmp_path)))
    assert first == ["0", "1", "RankError", "3"]
    assert second == ["0", "1", "ZeroDivisionError", "3"]
    for number in (0, 1, 3):
        stored = load_checkpoint(tmp_path / f"ckpt-{number}")
        for name in ("step", "other"):
            assert (stored.get_tensor(f"{name}/.ATTRIBUTES/VARIABLE_VALUE") == number).all()


def test_the_number_is_that_of_the_first_process(tmp_path: Path) -> None:
    results = results_of(run_ranks(2, "distributed.joint_save_jobs:save_alone_before", str(tmp_path)))
    assert results == [[str(tmp_path / "ckpt-1"), 1]] * 2


def test_the_last_asynchronous_save_is_complete_however_long_it_takes_after_the_program(tmp_path: Path) -> None:
    outcomes = run_ranks(2, "distributed.joint_save_jobs:last_save_at_exit", str(tmp_path), exits=True)
    assert [outcome.result for outcome in outcomes] == ["ends"] * 2
    assert latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-1"), outcomes
    load_checkpoint(tmp_path / "ckpt-1").verify()


def test_states_may_be_larger_than_what_can_be_said_at_once(tmp_path: Path) -> None:
    assert results_of(run_ranks(2, "distributed.joint_save_jobs:large_states", str(tmp_path))) == [True, True]


def test_a_parameter_and_a_tensor_of_one_name_are_refused(tmp_path: Path) -> None:
    first, second = results_of(run_ranks(2, "distributed.joint_save_jobs:of_two_kinds", str(tmp_path)))
    assert "rank 1 has float32 [3], and rank 0 has a parameter of float32 [3]" in first
    assert second.startswith("RankError")


def test_a_frozen_saver_restores_what_is_kept_by_rank(tmp_path: Path) -> None:
    assert results_of(run_ranks(2, "distributed.joint_save_jobs:frozen", str(tmp_path))) == [True, True]


def test_processes_that_part_save_for_themselves_and_may_meet_again(tmp_path: Path) -> None:
    expected = ["again.data-00000-of-00002", "again.data-00001-of-00002", "again.index"]
    for rank, (mine, together, files) in enumerate(
        results_of(run_ranks(2, "distributed.joint_save_jobs:group_anew", str(tmp_path)))
    ):
        assert mine == str(tmp_path / f"mine-{rank}")
        assert (tmp_path / f"mine-{rank}.data-00000-of-00001").exists()
        assert together == str(tmp_path / "again")
        assert files == expected
