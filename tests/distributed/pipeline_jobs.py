"""What the ranks do in ``test_pipelines``."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from distributed.trainings import FAST, listed
from torch import nn

from torch_trackckpt import Checkpoint, CheckpointOptions, RNGState


class Stage(nn.Module):
    """The part of a network that one process of a pipeline has."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.add_module(f"layer{rank}", nn.Linear(4 + rank, 5 + rank))
        self.add_module("norm" if rank == 0 else "head", nn.Linear(3, 3))


def pipeline(rank: int, size: int, path: str) -> Any:
    """Each process has other modules, and an optimizer of the same name for its own."""
    torch.manual_seed(rank)
    stage = Stage(rank)
    shared = nn.Embedding(7, 2)
    nn.init.ones_(shared.weight)
    optimizer = torch.optim.AdamW([*stage.parameters(), *shared.parameters()], lr=0.25)
    for parameter in [*stage.parameters(), *shared.parameters()]:
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    checkpoint = Checkpoint(net=stage, shared=shared, optimizer=optimizer, rng=RNGState())
    saved = checkpoint.save(f"{path}/ckpt", FAST)
    expected = listed({"net": stage.state_dict(), "optimizer": optimizer.state_dict()})
    dist.barrier()
    torch.manual_seed(9)
    other, table = Stage(rank), nn.Embedding(7, 2)
    again = torch.optim.AdamW([*other.parameters(), *table.parameters()], lr=1.0)
    status = Checkpoint(net=other, shared=table, optimizer=again, rng=RNGState()).restore(saved)
    status.assert_existing_objects_matched()
    return {"expected": expected, "found": listed({"net": other.state_dict(), "optimizer": again.state_dict()})}


def conflict(rank: int, size: int, path: str) -> Any:
    """One name for two things."""
    try:
        Checkpoint(net=nn.Linear(2 + rank, 2)).save(f"{path}/ckpt", FAST)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def alone(rank: int, size: int, path: str) -> Any:
    """A process saves for itself."""
    if rank == 1:
        options = CheckpointOptions(durable=False, all_ranks=False)
        return Checkpoint(net=nn.Linear(2, 2)).save(f"{path}/mine", options)
    return None


class _Ragged:
    """A state whose tensor has another shape in each process."""

    def __init__(self, count: int) -> None:
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        return {"seen": torch.arange(self.count)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = len(state["seen"])


def ragged(rank: int, size: int, path: str) -> Any:
    """States that cannot be parts of one tensor."""
    try:
        Checkpoint(seen=_Ragged(3 + rank)).save(f"{path}/ckpt", FAST)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
