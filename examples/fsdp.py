"""A sharded training (FSDP2) that can be killed at any moment and started again, with as many processes or with others.

    torchrun --nproc-per-node 2 examples/fsdp.py [--directory run/fsdp] [--steps 20] [--die-after-step N]
    python examples/fsdp.py                       the same training in one process, from the same checkpoints

The directory may be remote (s3://...). Every process calls the same two lines; each writes and reads its own part.
"""

import argparse
import os
import signal
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from torch_trackckpt import AutoTrackable, Checkpoint, CheckpointManager


@dataclass
class Progress(AutoTrackable):
    """The program's own numbers."""

    step: int = 0


def batch(step: int, rank: int, size: int, count: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """What a process has to do in a step. All processes together do the same, however many they are."""
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(step))
    mine = x[rank * count // size : (rank + 1) * count // size]
    return mine, mine.sin().sum(1, keepdim=True)


def train(directory: str, steps: int, die_after_step: int | None) -> None:
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 65), nn.ReLU(), nn.Linear(65, 33), nn.ReLU(), nn.Linear(33, 1))
    if dist.is_initialized():
        for layer in model:
            fully_shard(layer)
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    progress = Progress()

    checkpoint = Checkpoint(model=model, optimizer=optimizer, progress=progress)
    manager = CheckpointManager(checkpoint, directory, max_to_keep=2)
    restored = manager.restore_or_initialize()
    if rank == 0:
        print(f"restored {restored}, step {progress.step}" if restored else "a new training", flush=True)

    loss = torch.tensor(torch.nan)
    while progress.step < steps:
        inputs, targets = batch(progress.step, rank, size)
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress.step += 1
        if progress.step % 5 == 0:
            manager.save()
        if progress.step == die_after_step and rank == size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
    if rank == 0:
        print(f"{size} processes, {progress.step} steps, saved as {manager.latest_checkpoint}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", default="run/fsdp")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--die-after-step", type=int, help="the last process is killed there")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    train(arguments.directory, arguments.steps, arguments.die_after_step)
    if dist.is_initialized():
        dist.destroy_process_group()
