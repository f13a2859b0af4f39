"""What a module keeps and logs in its epoch goes on after a resume in the middle of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from integrations.lightning_training import LIGHTNING_WARNINGS, Module, fit, resumable_loader, resume_is_exact
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchmetrics import MeanMetric

from torch_trackckpt.integrations.lightning import TrackCheckpoint

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_WARNINGS]


class Averaging(Module):
    """Its average of weights is updated where programs often do that: in the module's own hook."""

    def __init__(self) -> None:
        super().__init__()
        self.average = AveragedModel(self.first, multi_avg_fn=get_ema_multi_avg_fn(0.9))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.average.update_parameters(self.first)

    def on_validation_end(self) -> None:
        self.average.n_averaged += 1


@pytest.mark.parametrize("val_check_interval", [1.0, 2])
@pytest.mark.parametrize("interrupt_after", [2, 3, 5])
def test_what_the_module_does_after_a_batch_or_validation_is_in_the_checkpoint(
    interrupt_after: int, val_check_interval: float, tmp_path: Path
) -> None:
    _, module = resume_is_exact(
        tmp_path,
        interrupt_after=interrupt_after,
        saves={"every_n_train_steps": 1},
        loader=resumable_loader,
        make_module=Averaging,
        val_check_interval=val_check_interval,
    )
    assert "on_train_batch_end" not in vars(module)
    assert "on_validation_end" not in vars(module)


class Summarising(Module):
    """Logs values that belong to the epoch, and keeps what became of them."""

    def __init__(self) -> None:
        super().__init__()
        self.of_epochs: list[dict[str, float]] = []

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("mean", loss, on_step=True, on_epoch=True)
        self.log("highest", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.log("sum", loss, on_step=False, on_epoch=True, reduce_fx="sum")
        if batch_idx % 2 == 0:
            self.log("of_some", loss, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        names = ("mean_epoch", "highest", "sum", "of_some")
        self.of_epochs.append({name: self.trainer.callback_metrics[name].item() for name in names})


@pytest.mark.parametrize("interrupt_after", [1, 3, 4, 5, 7])
def test_what_is_logged_for_an_epoch_is_of_the_whole_epoch(interrupt_after: int, tmp_path: Path) -> None:
    training: dict[str, Any] = {"make_module": Summarising, "loader": resumable_loader}
    _, whole = fit(TrackCheckpoint(tmp_path / "whole", every_n_train_steps=1), **training)
    _, resumed = resume_is_exact(
        tmp_path / "again", interrupt_after=interrupt_after, saves={"every_n_train_steps": 1}, **training
    )
    assert resumed.of_epochs == whole.of_epochs[-len(resumed.of_epochs) :]


def test_a_training_that_is_interrupted_twice_in_an_epoch_keeps_what_was_logged_before(tmp_path: Path) -> None:
    training: dict[str, Any] = {"make_module": Summarising, "loader": resumable_loader}
    _, whole = fit(TrackCheckpoint(tmp_path / "whole", every_n_train_steps=1), **training)
    for interrupt_after in (1, 2, 3):
        fit(TrackCheckpoint(tmp_path / "broken", every_n_train_steps=1), interrupt_after=interrupt_after, **training)
    _, resumed = fit(TrackCheckpoint(tmp_path / "broken", every_n_train_steps=1), **training)
    assert resumed.of_epochs == whole.of_epochs


class LoggingOnce(Module):
    """Logs a value in the first batch of an epoch only."""

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        if batch_idx == 0:
            self.log("once", torch.tensor(1.0), on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


def test_a_value_that_is_not_logged_again_in_its_epoch_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training: dict[str, Any] = {"make_module": LoggingOnce, "loader": resumable_loader}
    fit(TrackCheckpoint(tmp_path, every_n_train_steps=1), interrupt_after=2, **training)
    fit(TrackCheckpoint(tmp_path, every_n_train_steps=1), **training)
    assert "not after it in the same epoch" in caplog.text
    assert "training_step.once" in caplog.text


class WaitingForValidation(Module):
    """Steps its schedule in an epoch, by what the validation of the epoch before has logged."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        schedule = ReduceLROnPlateau(optimizer, factor=0.9, patience=0, threshold=0.5)
        config = {"scheduler": schedule, "interval": "step", "frequency": 3, "monitor": "val_loss", "strict": False}
        return [optimizer], [config]


@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric val_loss which is not available")
def test_a_resume_after_an_epoch_keeps_the_metrics_that_its_validation_has_logged(tmp_path: Path) -> None:
    trainer, _ = resume_is_exact(tmp_path, interrupt_after=5, make_module=WaitingForValidation)
    assert trainer.num_sanity_val_steps == 2


@pytest.mark.parametrize("interrupt_after", [6, 7, 8])
def test_the_number_of_accumulated_batches_is_that_of_the_epoch(interrupt_after: int, tmp_path: Path) -> None:
    resume_is_exact(
        tmp_path,
        interrupt_after=interrupt_after,
        saves={"every_n_train_steps": 1},
        loader=resumable_loader,
        callbacks=lambda: [GradientAccumulationScheduler({0: 1, 1: 2})],
    )


class Metered(Module):
    """Logs a metric that is saved with the module; Lightning resets it after each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.meter = MeanMetric()
        self.meter.persistent(True)
        self.of_epochs: list[float] = []

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.meter(loss.detach())
        self.log("meter", self.meter, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.of_epochs.append(self.meter.compute().item())


@pytest.mark.parametrize("interrupt_after", [3, 5, 8])
def test_a_metric_that_is_logged_is_of_its_whole_epoch_and_of_no_other(interrupt_after: int, tmp_path: Path) -> None:
    training: dict[str, Any] = {"make_module": Metered, "loader": resumable_loader}
    _, whole = fit(TrackCheckpoint(tmp_path / "whole", every_n_train_steps=1), **training)
    _, resumed = resume_is_exact(
        tmp_path / "again", interrupt_after=interrupt_after, saves={"every_n_train_steps": 1}, **training
    )
    assert resumed.of_epochs == whole.of_epochs[-len(resumed.of_epochs) :]
