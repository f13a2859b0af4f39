"""A Lightning training that survives SIGKILL, bit for bit, on the handwritten digits that come with scikit-learn.

    python examples/lightning.py --directory run/lightning                       kill it, start it again
    python examples/lightning.py --directory run/lightning --die-after-step 60   it kills itself
    python examples/lightning.py --directory run/lightning                       it goes on and finishes

`TrackCheckpoint` in the list of callbacks is all that it takes; `ResumableLoader` gives the loader a state, so that a
training that dies in the middle of an epoch goes on with the very next batch. The last line is a checksum of everything
that was trained, the same however often the training was killed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BATCH_SIZE = 64
NUM_EPOCHS = 4
SAVE_EVERY = 10

# Python would look for lightning in the folder of this file first, and find this file.
sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

try:
    import lightning.pytorch as pl
    from sklearn.datasets import load_digits

    from torch_trackckpt import load_checkpoint
    from torch_trackckpt.data import ResumableLoader
    from torch_trackckpt.integrations.lightning import TrackCheckpoint
except ModuleNotFoundError as error:
    sys.exit(f"This example also needs {error.name}: pip install lightning scikit-learn")


class Digits(pl.LightningModule):
    """Two layers, with everything that a resume could get wrong between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.4), nn.Linear(128, 10)
        )

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.layers(images), labels)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("accuracy", (self.layers(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Die(pl.Callback):
    """Kills this process after a number of steps, as a machine that fails would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def make_loaders() -> tuple[Any, Any]:
    digits = load_digits()
    images, labels = torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target).long()
    training, validation = TensorDataset(images[:1500], labels[:1500]), TensorDataset(images[1500:], labels[1500:])
    return ResumableLoader(DataLoader(training, BATCH_SIZE, shuffle=True)), DataLoader(validation, BATCH_SIZE)


def train(directory: str, die_after_step: int | None) -> TrackCheckpoint:
    pl.seed_everything(0)
    checkpoints = TrackCheckpoint(directory, monitor="accuracy", mode="max", every_n_train_steps=SAVE_EVERY)
    trainer = pl.Trainer(
        callbacks=[checkpoints, *([] if die_after_step is None else [Die(die_after_step)])],
        max_epochs=NUM_EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(), *make_loaders())
    return checkpoints


def checksum(path: str) -> str:
    """Of all values of a checkpoint: weights, optimizer, schedule, counters, random states."""
    reader = load_checkpoint(path)
    total = hashlib.sha256()
    for key in sorted(reader.get_variable_to_shape_map()):
        value = reader.get_tensor(key)
        total.update(key.encode())
        total.update(value if isinstance(value, bytes) else value.numpy().tobytes())
    return total.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", default="run/lightning", help="where checkpoints go (default: run/lightning)")
    parser.add_argument("--die-after-step", type=int, help="kill this process after so many steps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # One thread adds in one order, so that equal runs have equal bits.

    manager = train(arguments.directory, arguments.die_after_step).manager
    assert manager.latest_checkpoint is not None
    for record in manager.records:
        print(f"{os.path.basename(record.path)} {dict(record.metrics)}")
    print(checksum(manager.latest_checkpoint))


if __name__ == "__main__":
    main()
