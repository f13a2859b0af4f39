"""A small training with everything that a resume could get wrong, and a way to interrupt it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from torch_trackckpt import CheckpointOptions, RNGState
from torch_trackckpt.data import ResumableLoader
from torch_trackckpt.integrations.lightning import TrackCheckpoint

LIGHTNING_WARNINGS = [
    "ignore:.*does not have many workers",
    "ignore:'set_vital' is deprecated",
    "ignore:.*LeafSpec.*deprecated",
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
]
"""What Lightning and torchdata say of themselves, and Lightning of what is done on purpose."""

NUM_BATCHES = 5
BATCH_SIZE = 4


class Interrupted(Exception):
    """What ends a training too early."""


class InterruptAfter(pl.Callback):
    """Ends the training after a batch, when every checkpoint that was due has been made."""

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready > self.num_batches:
            raise Interrupted


class Module(pl.LightningModule):
    """Batch norm, dropout, and a log of the losses."""

    def __init__(self, schedule: str = "step") -> None:
        super().__init__()
        self.schedule = schedule
        self.first = nn.Linear(3, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.4)
        self.last = nn.Linear(8, 1)
        self.losses: list[float] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.dropout(torch.relu(self.norm(self.first(inputs)))))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        inputs, targets = batch
        loss = nn.functional.mse_loss(self(inputs), targets)
        self.losses.append(loss.item())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        inputs, targets = batch
        # Noise, as of a metric that samples: a validation that is left out or repeated is noticed.
        self.log("val_loss", nn.functional.mse_loss(self(inputs), targets) + torch.rand(()))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02, weight_decay=0.1)
        if self.schedule == "step":
            return [optimizer], [{"scheduler": OneCycleLR(optimizer, 0.05, total_steps=100), "interval": "step"}]
        monitor = "train_loss" if self.schedule == "plateau-step" else "val_loss"
        interval = "step" if self.schedule == "plateau-step" else "epoch"
        scheduler = ReduceLROnPlateau(optimizer, factor=0.9, patience=0, threshold=0.5)
        return [optimizer], [{"scheduler": scheduler, "interval": interval, "monitor": monitor}]


def data(seed: int = 1, num_batches: int = NUM_BATCHES) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    size = BATCH_SIZE * num_batches
    return TensorDataset(torch.rand(size, 3, generator=generator), torch.rand(size, 1, generator=generator))


def plain_loader(**arguments: Any) -> DataLoader[Any]:
    return DataLoader(data(), batch_size=BATCH_SIZE, shuffle=True, **arguments)


def stateful_loader(**arguments: Any) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(data(), batch_size=BATCH_SIZE, shuffle=True, **arguments)


def resumable_loader(**arguments: Any) -> ResumableLoader[Any]:
    return ResumableLoader(plain_loader(**arguments))


def validation_loader() -> DataLoader[Any]:
    return DataLoader(data(seed=2, num_batches=2), batch_size=BATCH_SIZE)


def make_trainer(callbacks: list[pl.Callback], **arguments: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(callbacks=callbacks, **{**quiet, "devices": 1, "max_epochs": 3, **arguments})


def fit(
    checkpoints: TrackCheckpoint | None,
    *,
    interrupt_after: int | None = None,
    loader: Callable[[], Any] = plain_loader,
    make_module: Callable[[], pl.LightningModule] = Module,
    callbacks: Callable[[], list[pl.Callback]] = list,
    is_validating: bool = True,
    seed: int = 0,
    **arguments: Any,
) -> tuple[pl.Trainer, Any]:
    """Trains with new objects, as a new process would."""
    torch.manual_seed(seed)
    module = make_module()
    chosen = [*callbacks(), *([] if checkpoints is None else [checkpoints])]
    if interrupt_after is not None:
        chosen.append(InterruptAfter(interrupt_after))
    if not is_validating:
        arguments["limit_val_batches"] = 0
    trainer = make_trainer(chosen, **arguments, enable_checkpointing=checkpoints is not None)
    try:
        trainer.fit(module, loader(), validation_loader())
    except Interrupted:
        assert interrupt_after is not None
    return trainer, module


def assert_same_bits(one: tuple[pl.Trainer, Any], other: tuple[pl.Trainer, Any], state: dict[str, Any]) -> None:
    """Weights, optimizers, schedules, counters; and the random state of the first, which the second has left."""
    # First, because some loaders draw random numbers when they are asked for their state.
    equal(state, RNGState().state_dict(), "random state")
    (trainer, module), (its_trainer, its_module) = one, other
    equal(module.state_dict(), its_module.state_dict(), "module")
    for optimizer, its_optimizer in zip(trainer.optimizers, its_trainer.optimizers, strict=True):
        equal(optimizer.state_dict(), its_optimizer.state_dict(), "optimizer")
    for config, its_config in zip(trainer.lr_scheduler_configs, its_trainer.lr_scheduler_configs, strict=True):
        equal(config.scheduler.state_dict(), its_config.scheduler.state_dict(), "scheduler")
    assert (trainer.global_step, trainer.current_epoch) == (its_trainer.global_step, its_trainer.current_epoch)
    loops = [t.fit_loop.state_dict() for t in (trainer, its_trainer)]
    equal(*({k: v for k, v in loop.items() if "val_loop" not in k and k != "state_dict"} for loop in loops), "loops")


def equal(one: Any, other: Any, where: str) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            equal(value, other[key], f"{where}[{key!r}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, value in enumerate(one):
            equal(value, other[index], f"{where}[{index}]")
    else:
        assert (one == other) if not hasattr(one, "all") else (one == other).all(), f"{where}: {one!r}, {other!r}"


def resume_is_exact(
    directory: Path,
    *,
    interrupt_after: int,
    saves: dict[str, Any] | None = None,
    is_resumed: bool = True,
    **training: Any,
) -> tuple[pl.Trainer, Any]:
    """Trains once as a whole, and once interrupted; compares all bits and returns the resumed training."""
    saves = {"options": CheckpointOptions(durable=False), **(saves or {})}
    whole = fit(TrackCheckpoint(directory / "whole", **saves), **training)
    state = RNGState().state_dict()
    fit(TrackCheckpoint(directory / "broken", **saves), interrupt_after=interrupt_after, **training)
    resumed = fit(TrackCheckpoint(directory / "broken", **saves), seed=99 if is_resumed else 0, **training)
    assert (0 < len(resumed[1].losses) < len(whole[1].losses)) == is_resumed
    assert resumed[1].losses == whole[1].losses[-len(resumed[1].losses) :]
    assert_same_bits(whole, resumed, state)
    return resumed
