"""A training loop that can be killed at any moment and started again: it goes on as if nothing had happened.

    python examples/plain_loop.py [--directory run/plain] [--steps 60] [--die-after-step N]

Everything that the next step depends on is an argument of `Checkpoint`: model, optimizer, schedule, the position in the
shuffled data, the program's own numbers, and the random generators. What is not named there is not saved.
"""

import argparse
import dataclasses
import math
import os
import random
import signal

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torch_trackckpt import AutoTrackable, Checkpoint, CheckpointManager, RNGState
from torch_trackckpt.data import ResumableLoader


@dataclasses.dataclass
class Progress(AutoTrackable):
    """The program's own numbers."""

    step: int = 0
    best_loss: float = math.inf


def train(directory: str, steps: int, die_after_step: int | None) -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    x = torch.randn(200, 8)
    dataset = TensorDataset(x, x.sin().sum(1, keepdim=True))
    loader = ResumableLoader(DataLoader(dataset, batch_size=16, shuffle=True))
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    progress = Progress()

    checkpoint = Checkpoint(
        model=model, optimizer=optimizer, schedule=schedule, loader=loader, progress=progress, rng=RNGState()
    )
    manager = CheckpointManager(checkpoint, directory, max_to_keep=3)
    restored = manager.restore_or_initialize()
    print(f"restored {restored}, step {progress.step}" if restored else "a new training")

    while progress.step < steps:
        for inputs, targets in loader:
            loss = nn.functional.mse_loss(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.step += 1
            progress.best_loss = min(progress.best_loss, loss.item())
            if progress.step % 10 == 0:
                manager.save()
            if progress.step == die_after_step:
                os.kill(os.getpid(), signal.SIGKILL)
            if progress.step == steps:
                break

    print(f"{progress.step} steps, best loss {progress.best_loss:.4f}, saved as {manager.latest_checkpoint}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", default="run/plain", help="a path, or a URL such as s3://bucket/run")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--die-after-step", type=int, help="be killed there, to see what a new start makes of it")
    arguments = parser.parse_args()
    train(arguments.directory, arguments.steps, arguments.die_after_step)
