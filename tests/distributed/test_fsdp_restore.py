"""FSDP2 in real processes: what one process has trained goes on in several."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed.fsdp_restore import BATCH, model_on, step
from every_rank import as_rank, mesh_of
from torch import nn
from torch.distributed.fsdp import fully_shard

from torch_trackckpt import Checkpoint, CheckpointOptions
from torch_trackckpt.distributed.dtensor import is_dtensor, local_of
from torch_trackckpt.graph.walk import list_objects

SCRIPT = Path(__file__).parent / "fsdp_restore.py"


@pytest.mark.parametrize("world_size", [2])
def test_a_training_goes_on_in_several_processes(tmp_path: Path, world_size: int) -> None:
    torch.manual_seed(0)
    model = model_on("cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer)
    prefix = Checkpoint(model=model, optimizer=optimizer).write(tmp_path / "ckpt", CheckpointOptions(durable=False))
    with torch.no_grad():
        outcomes = [model(BATCH)]
    outcomes += [step(model, optimizer), step(model, optimizer)]
    expected = tmp_path / "expected.pt"
    torch.save(outcomes, expected)
    arguments = [str(world_size), prefix, str(tmp_path / "rendezvous"), str(expected)]
    processes = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(rank), *arguments], stderr=subprocess.PIPE, text=True)
        for rank in range(world_size)
    ]
    try:
        told = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * world_size, "\n".join(told)


def test_after_an_evaluation_the_parts_are_found_and_not_the_whole_parameters() -> None:
    with as_rank(0, 2):
        model = nn.Linear(3, 4)
        fully_shard(model, mesh=mesh_of(2))
        parameters = list(model.parameters())
        with torch.no_grad():
            model(torch.zeros(1, 3))
        assert not is_dtensor(model.weight)
        _, *found = list_objects(model)
        assert list(map(id, found)) == list(map(id, parameters))


def test_parts_on_the_meta_device_are_those_that_fsdp_trains(tmp_path: Path) -> None:
    whole = nn.Linear(3, 5)
    prefix = Checkpoint(model=whole).write(tmp_path / "ckpt", CheckpointOptions(durable=False))
    with as_rank(1, 2):
        with torch.device("meta"):
            model = nn.Linear(3, 5)
        fully_shard(model, mesh=mesh_of(2))
        parameters = list(model.parameters())
        status = Checkpoint(model=model).read(prefix)
        status.run_restore_ops("cpu")
        status.assert_consumed()
        assert list(map(id, model.parameters())) == list(map(id, parameters))
        assert torch.equal(local_of(model.weight), whole.weight[3:])  # type: ignore[arg-type]
        assert torch.equal(local_of(model.bias), whole.bias[3:])  # type: ignore[arg-type]
