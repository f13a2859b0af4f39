"""What some processes have saved, others restore: as many or not, sharded in this way or in that."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.trainings import FAST, listed
from ranks import results_of, run_ranks
from torch import nn

from torch_trackckpt import Checkpoint, CheckpointReader, load_checkpoint

STATE = "optimizer/param_groups/.ATTRIBUTES/py_state"


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A training of two processes, and what it had when it saved, and three steps later."""
    path = tmp_path_factory.mktemp("two")
    first, second = results_of(run_ranks(2, "distributed.resharding_jobs:shard_and_save", str(path)))
    assert first == second
    return path / "ckpt-1", first


@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_training_goes_on_with_another_number_of_processes_and_back(
    size: int, on_two: tuple[Path, Any], tmp_path: Path
) -> None:
    source, expected = on_two
    there = results_of(run_ranks(size, "distributed.resharding_jobs:reshard", str(source), str(tmp_path / "there")))
    back = results_of(
        run_ranks(2, "distributed.resharding_jobs:reshard", str(tmp_path / "there/ckpt-2"), str(tmp_path / "back"))
    )
    for results in (there, back):
        for result in results:
            # Bit for bit, slots included.
            assert result["restored"] == expected["saved"]
        first, *others = results
        assert all(result["later"] == first["later"] for result in others)
    # As many processes add up gradients in the same order, so that they go on exactly as if nothing had happened.
    assert back[0]["later"] == expected["later"]


def test_each_process_reads_its_own_bytes_and_writes_what_nobody_else_does(
    on_two: tuple[Path, Any], tmp_path: Path
) -> None:
    source, _ = on_two
    results = results_of(run_ranks(3, "distributed.resharding_jobs:reshard", str(source), str(tmp_path)))
    stored = load_checkpoint(source)
    # Beside its parts every process reads what is not sharded: steps, groups, the counter of saves.
    common = sum(stored[key].nbytes for key in stored if "/step/" in key or key in (STATE, COUNTER))
    assert [result["read"] for result in results] == [result["own"] + common for result in results]
    parts = sum(stored[key].nbytes for key in stored) - common - stored[GRAPH].nbytes
    assert sum(result["own"] for result in results) == parts

    one = results_of(run_ranks(1, "distributed.resharding_jobs:reshard", str(source), str(tmp_path / "one")))
    assert one[0]["restored"] == results[0]["restored"]
    sizes = [file.stat().st_size for file in tmp_path.glob("ckpt-2.data-*")]
    whole = (tmp_path / "one/ckpt-2.data-00000-of-00001").stat().st_size
    assert len(sizes) == 3
    assert sum(sizes) == whole


GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
COUNTER = "save_counter/.ATTRIBUTES/VARIABLE_VALUE"


def test_a_mesh_that_also_replicates_writes_each_part_once_and_strided_shards_are_whole(tmp_path: Path) -> None:
    results = results_of(run_ranks(4, "distributed.resharding_jobs:meshes", str(tmp_path)))
    first = results[0]
    assert all(result["hybrid"] == first["hybrid"] for result in results)
    assert all(result["again"] == result["tensor"] == first["tensor"] for result in results)

    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 1))
    assert alone(model, tmp_path / "hybrid") == first["hybrid"]
    assert alone(nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4)), tmp_path / "tensor") == first["tensor"]
    stored = load_checkpoint(tmp_path / "hybrid")
    data = sum(file.stat().st_size for file in tmp_path.glob("hybrid.data-*"))
    assert data < sum(stored[key].nbytes for key in stored) + 200


def test_of_meshes_that_each_have_the_whole_one_writes_a_value(tmp_path: Path) -> None:
    first, *others = results_of(run_ranks(4, "distributed.resharding_jobs:meshes_side_by_side", str(tmp_path)))
    assert all(other == first for other in others)
    for name in ("same", "more"):
        model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 1))
        assert alone(model, tmp_path / name) == first
    sizes = [file.stat().st_size for file in tmp_path.glob("same.data-*")]
    assert len(sizes) == 4
    assert all(size > 100 for size in sizes)


@pytest.mark.parametrize("mode", ["first", "overlapped"])
def test_an_asynchronous_save_has_the_values_of_its_call(mode: str, tmp_path: Path) -> None:
    for result in results_of(run_ranks(2, "distributed.resharding_jobs:shard_and_save", str(tmp_path), mode)):
        model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 1))
        assert alone(model, tmp_path / "ckpt-1") == result["saved"] != result["later"]


def alone(model: nn.Module, path: Path | str) -> Any:
    """What one process reads of a checkpoint."""
    optimizer = torch.optim.AdamW(model.parameters())
    Checkpoint(model=model, optimizer=optimizer).read(path).assert_existing_objects_matched().expect_partial()
    found = {name: listed(value.detach()) for name, value in model.named_parameters()}
    for name, value in model.named_parameters():
        found[f"{name}'s state"] = listed(dict(sorted(optimizer.state[value].items())))
    return found


def test_distributed_data_parallel_resumes_as_if_nothing_had_happened(tmp_path: Path) -> None:
    for uninterrupted, resumed in results_of(
        run_ranks(2, "distributed.resharding_jobs:replicate_with_ddp", str(tmp_path))
    ):
        assert uninterrupted == resumed
    assert not [key for key in CheckpointReader(tmp_path / "ckpt-1") if "module/module" in key]


def test_one_process_saves_what_several_restore(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 5)).square().mean().backward()
    optimizer.step()
    path = Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "one/ckpt", FAST)
    expected = {name: listed(value.detach()) for name, value in model.named_parameters()}
    for name, value in model.named_parameters():
        expected[f"{name}'s state"] = listed(dict(sorted(optimizer.state[value].items())))
    for result in results_of(run_ranks(2, "distributed.resharding_jobs:reshard", path, str(tmp_path / "two"))):
        assert result["restored"] == expected


@pytest.mark.memory
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_process_needs_its_own_part_and_no_more(tmp_path: Path) -> None:
    for result in results_of(run_ranks(2, "distributed.resharding_jobs:measure_memory", str(tmp_path), 60)):
        assert result["own"] == 120
        assert result["save"] < 40
        assert result["restore"] < 40


def test_flattened_parameters_are_refused_with_what_to_do(tmp_path: Path) -> None:
    for error in results_of(run_ranks(1, "distributed.resharding_jobs:flat_parameters", str(tmp_path))):
        assert error.startswith("UnsupportedValueError: ")
        assert "fully_shard" in error
        assert "get_model_state_dict" in error
