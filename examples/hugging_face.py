"""A small GPT-2 of Hugging Face's transformers, trained on the text of this file, killed and resumed exactly.

    python examples/hugging_face.py [--directory run/gpt2] [--steps 40] [--die-after-step N]

The embedding and the output layer share their weight: it is saved once, and is shared again after the restore. Nothing
is downloaded; the model starts from random weights.
"""

import argparse
import os
import random
import signal
from pathlib import Path

import numpy as np
import torch

from torch_trackckpt import AutoTrackable, Checkpoint, CheckpointOptions, RNGState, latest_checkpoint

LENGTH = 64


def make_model() -> torch.nn.Module:
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError as error:
        raise SystemExit("This example needs transformers: pip install 'torch_trackckpt[transformers]'") from error
    config = GPT2Config(
        vocab_size=256, n_positions=LENGTH, n_embd=48, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)


def train(directory: Path, steps: int, die_after_step: int | None) -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    text = torch.tensor(list(Path(__file__).read_bytes()))
    model = make_model()
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}], lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    progress = AutoTrackable()
    progress.step = 0
    progress.losses = []

    checkpoint = Checkpoint(model=model, optimizer=optimizer, schedule=schedule, progress=progress, rng=RNGState())
    if (latest := latest_checkpoint(directory)) is not None:
        checkpoint.restore(latest).assert_consumed()
        print(f"restored {latest}, step {progress.step}")

    # The copy of the values takes a moment; the files are written while the training goes on.
    options = CheckpointOptions(enable_async=True)
    while progress.step < steps:
        starts = torch.randint(len(text) - LENGTH, (4,))
        batch = torch.stack([text[start : start + LENGTH] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.step += 1
        progress.losses.append(loss.item())
        if progress.step % 8 == 0:
            checkpoint.save(directory / "ckpt", options)
        if progress.step == die_after_step:
            checkpoint.sync()
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.sync()
    assert model.lm_head.weight is model.transformer.wte.weight
    print(f"{progress.step} steps, loss {progress.losses[0]:.3f} -> {progress.losses[-1]:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("run/gpt2"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--die-after-step", type=int, help="be killed there, to see what a new start makes of it")
    arguments = parser.parse_args()
    train(arguments.directory, arguments.steps, arguments.die_after_step)
