"""TensorFlow reads what several processes have saved, and they read slices that TensorFlow has written."""

from __future__ import annotations

from pathlib import Path

import torch
from ranks import results_of, run_ranks

from torch_trackckpt import list_variables, load_checkpoint

from .conftest import TensorFlow, Value


def test_a_checkpoint_of_several_processes_is_whole(tensorflow: TensorFlow, tmp_path: Path) -> None:
    results_of(run_ranks(2, "distributed.resharding_jobs:shard_and_save", str(tmp_path)))
    path = tmp_path / "ckpt-1"
    stored = load_checkpoint(path)
    assert any(stored.stored_slices(key) for key in stored)
    theirs = tensorflow.read_all(path)
    assert theirs == {key: Value.of(stored.get_tensor(key)) for key in stored}
    assert tensorflow.list_variables(path) == list_variables(path)
    assert tensorflow.latest_checkpoint(tmp_path) == str(path)


def test_states_that_are_kept_by_rank_are_a_tensor_of_strings(tensorflow: TensorFlow, tmp_path: Path) -> None:
    results_of(run_ranks(2, "distributed.joint_save_jobs:save_replicated", str(tmp_path)))
    path = tmp_path / "ckpt-1"
    stored = load_checkpoint(path)
    by_rank = [key for key in stored if key.endswith("/.BY_RANK")]
    assert by_rank
    for key in by_rank:
        assert stored[key].shape[0] == 2
        assert tensorflow.read_one(path, key) == Value.of(stored.get_tensor(key))


def test_states_of_other_shapes_by_rank_are_tensors_too(tensorflow: TensorFlow, tmp_path: Path) -> None:
    results_of(run_ranks(3, "distributed.by_rank_jobs:keep_states", str(tmp_path)))
    path = tmp_path / "ckpt-1"
    stored = load_checkpoint(path)
    assert any(key.endswith("/.SHAPES") for key in stored)
    assert any(
        key.endswith("/.BY_RANK") and stored.stored_slices(key) and len(stored[key].shape) == 1 for key in stored
    )
    assert tensorflow.read_all(path) == {key: Value.of(stored.get_tensor(key)) for key in stored}


def test_slices_of_tensorflow_go_into_parameters_that_are_sharded(tensorflow: TensorFlow, tmp_path: Path) -> None:
    weight, bias = torch.arange(35.0).reshape(7, 5), torch.arange(7.0)
    slices = {"7 5 0,2:-": weight[:2], "7 5 2,5:0,3": weight[2:, :3], "7 5 2,5:3,2": weight[2:, 3:]}
    values = [*(("weight", Value.of(part)) for part in slices.values()), ("bias", Value.of(bias))]
    tensorflow.save_tensors(tmp_path / "ckpt", values, [*slices, ""])
    for result in results_of(run_ranks(3, "distributed.resharding_jobs:restore_by_name", str(tmp_path / "ckpt"))):
        assert result == {"weight": weight.tolist(), "bias": bias.tolist()}
