"""Mixed precision with a GradScaler, and an exponential moving average of the weights, killed and resumed exactly.

    python examples/amp_ema.py [--directory run/amp] [--steps 300] [--die-after-step N]

The average is saved under the names of the model itself (``ema/0/weight``) with the number of its updates beside them,
so that ``Checkpoint(ema=plain_model).restore(path)`` gives the averaged weights to a plain model for inference.
"""

import argparse
import os
import random
import signal
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from torch_trackckpt import AutoTrackable, Checkpoint, RNGState, latest_checkpoint

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1)).to(DEVICE)


def train(directory: Path, steps: int, die_after_step: int | None) -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    model = make_model()
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95), use_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    warm_up, decay = LinearLR(optimizer, 0.1, total_iters=10), CosineAnnealingLR(optimizer, steps)
    schedule = SequentialLR(optimizer, [warm_up, decay], milestones=[10])
    # A short interval, so that this small training changes the scale.
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**10, growth_interval=7)
    progress = AutoTrackable()
    progress.step = 0

    checkpoint = Checkpoint(
        model=model, ema=ema, optimizer=optimizer, schedule=schedule, scaler=scaler, progress=progress, rng=RNGState()
    )
    if (latest := latest_checkpoint(directory)) is not None:
        checkpoint.restore(latest).assert_consumed()
        print(f"restored {latest}, step {progress.step}")

    while progress.step < steps:
        inputs = torch.randn(16, 8, device=DEVICE)
        with torch.autocast(DEVICE, dtype=torch.float16):
            loss = nn.functional.mse_loss(model(inputs).float(), inputs.sin().sum(1, keepdim=True))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        ema.update_parameters(model)
        progress.step += 1
        if progress.step % 10 == 0:
            checkpoint.save(directory / "ckpt")
        if progress.step == die_after_step:
            os.kill(os.getpid(), signal.SIGKILL)

    average = make_model()
    Checkpoint(ema=average).restore(latest_checkpoint(directory)).expect_partial()
    average.eval()
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    error = nn.functional.mse_loss(average(x), x.sin().sum(1, keepdim=True))
    print(f"{progress.step} steps, scale {scaler.get_scale():.0f}, error of the average {error.item():.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("run/amp"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--die-after-step", type=int, help="be killed there, to see what a new start makes of it")
    arguments = parser.parse_args()
    train(arguments.directory, arguments.steps, arguments.die_after_step)
