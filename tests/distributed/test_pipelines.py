"""Processes that have different objects save one checkpoint of all of them."""

from __future__ import annotations

from pathlib import Path

import torch
from distributed.pipeline_jobs import Stage
from distributed.trainings import listed
from ranks import results_of, run_ranks
from torch import nn

from torch_trackckpt import Checkpoint, load_checkpoint


class Whole(nn.Module):
    """The network of all stages, for one process."""

    def __init__(self) -> None:
        super().__init__()
        for rank in range(2):
            for name, module in Stage(rank).named_children():
                self.add_module(name, module)


def test_stages_of_a_pipeline_are_one_checkpoint_for_as_many_processes_or_for_one(tmp_path: Path) -> None:
    results = results_of(run_ranks(2, "distributed.pipeline_jobs:pipeline", str(tmp_path)))
    for result in results:
        assert result["found"] == result["expected"]

    whole, shared = Whole(), nn.Embedding(7, 2)
    optimizer = torch.optim.AdamW([*whole.parameters(), *shared.parameters()], lr=1.0)
    status = Checkpoint(net=whole, shared=shared, optimizer=optimizer).restore(tmp_path / "ckpt-1")
    status.assert_existing_objects_matched()
    parameters = listed(whole.state_dict())
    for result in results:
        for name, value in result["expected"]["net"].items():
            assert parameters[name] == value
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert all(set(optimizer.state[parameter]) == {"step", "exp_avg", "exp_avg_sq"} for parameter in whole.parameters())
    # What both have is there once.
    stored = load_checkpoint(tmp_path / "ckpt-1")
    assert [key for key in stored if key.startswith("shared") and "SLOT" not in key] == [
        "shared/weight/.ATTRIBUTES/VARIABLE_VALUE"
    ]


def test_one_name_for_two_things_is_refused_by_all(tmp_path: Path) -> None:
    first, second = results_of(run_ranks(2, "distributed.pipeline_jobs:conflict", str(tmp_path)))
    assert first.startswith(
        "UnsupportedValueError: net/weight/.ATTRIBUTES/VARIABLE_VALUE: rank 1 has a parameter of float32 [2, 3], and"
    )
    assert second.startswith("RankError: ")
    assert first.removeprefix("UnsupportedValueError: ") in second
    assert list(tmp_path.iterdir()) == []


def test_tensors_of_states_may_have_another_shape_in_each_process(tmp_path: Path) -> None:
    assert results_of(run_ranks(2, "distributed.pipeline_jobs:ragged", str(tmp_path))) == ["", ""]
    stored = load_checkpoint(tmp_path / "ckpt-1")
    (key,) = (key for key in stored if key.endswith("/.SHAPES"))
    assert stored.get_tensor(key) == b"[[3], [4]]"
    assert torch.as_tensor(stored.get_tensor(key.removesuffix("/.SHAPES"))).tolist() == [0, 1, 2, 0, 1, 2, 3]


def test_a_process_may_save_for_itself(tmp_path: Path) -> None:
    first, second = results_of(run_ranks(2, "distributed.pipeline_jobs:alone", str(tmp_path)))
    assert first is None
    assert second == str(tmp_path / "mine-1")
    assert (tmp_path / "mine-1.data-00000-of-00001").exists()
