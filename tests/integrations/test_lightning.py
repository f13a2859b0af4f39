"""A Lightning training that is interrupted and started again ends like one that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from integrations.lightning_training import (
    LIGHTNING_WARNINGS,
    Module,
    assert_same_bits,
    equal,
    fit,
    plain_loader,
    resumable_loader,
    resume_is_exact,
    stateful_loader,
)
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from torch import nn

from torch_trackckpt import CheckpointOptions, RNGState
from torch_trackckpt.integrations.lightning import TrackCheckpoint

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_WARNINGS]

SCHEDULES = ["step", "plateau-epoch", "plateau-step"]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("interrupt_after", [7, 10])
def test_a_resume_after_an_epoch_ends_bit_identical(tmp_path: Path, interrupt_after: int, schedule: str) -> None:
    resume_is_exact(tmp_path, interrupt_after=interrupt_after, make_module=lambda: Module(schedule))


@pytest.mark.parametrize(
    ("schedule", "loader"),
    [("step", stateful_loader), ("plateau-epoch", resumable_loader), ("plateau-step", resumable_loader)],
)
@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 13}])
@pytest.mark.parametrize("interrupt_after", [2, 5, 8])
def test_a_resume_in_an_epoch_ends_bit_identical(
    tmp_path: Path, limits: dict[str, Any], interrupt_after: int, schedule: str, loader: Callable[[], Any]
) -> None:
    resume_is_exact(
        tmp_path,
        interrupt_after=interrupt_after,
        saves={"every_n_train_steps": 1},
        loader=loader,
        make_module=lambda: Module(schedule),
        **limits,
    )


@pytest.mark.parametrize("interrupt_after", [2, 5, 10])
@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 13}])
def test_a_training_without_validation_resumes_bit_identical(
    tmp_path: Path, limits: dict[str, Any], interrupt_after: int
) -> None:
    resume_is_exact(
        tmp_path,
        interrupt_after=interrupt_after,
        saves={"every_n_train_steps": 1},
        loader=stateful_loader,
        is_validating=False,
        **limits,
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("interrupt_after", [2, 3, 6])
def test_a_validation_in_an_epoch_is_neither_repeated_nor_left_out(
    tmp_path: Path, interrupt_after: int, schedule: str
) -> None:
    resume_is_exact(
        tmp_path,
        interrupt_after=interrupt_after,
        saves={"every_n_train_steps": 1},
        loader=stateful_loader,
        make_module=lambda: Module(schedule),
        callbacks=lambda: [EarlyStopping("val_loss", patience=50)],
        val_check_interval=2,
    )


@pytest.mark.parametrize("interrupt_after", [1, 3, 4, 6])
def test_no_checkpoint_falls_between_the_batches_of_one_accumulated_step(tmp_path: Path, interrupt_after: int) -> None:
    resumed = resume_is_exact(
        tmp_path,
        interrupt_after=interrupt_after,
        is_resumed=interrupt_after > 1,
        saves={"every_n_train_steps": 1},
        loader=stateful_loader,
        accumulate_grad_batches=2,
    )

    assert resumed[0].global_step == 9


@pytest.mark.parametrize("loader", [stateful_loader, resumable_loader, lambda: resumable_loader(num_workers=1)])
@pytest.mark.parametrize("interrupt_after", [2, 3])
def test_epochs_that_a_limit_cuts_short_begin_anew_with_all_of_the_data(
    tmp_path: Path, interrupt_after: int, loader: Callable[[], Any]
) -> None:
    resume_is_exact(
        tmp_path,
        interrupt_after=interrupt_after,
        saves={"every_n_train_steps": 1},
        loader=loader,
        max_epochs=2,
        limit_train_batches=3,
    )


@pytest.mark.parametrize("interrupt_after", [6, 7])
def test_several_loaders_and_their_workers_resume(tmp_path: Path, interrupt_after: int) -> None:
    class Several(Module):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step([torch.cat(parts) for parts in zip(*batch.values(), strict=True)], batch_idx)

    resume_is_exact(
        tmp_path,
        interrupt_after=interrupt_after,
        saves={"every_n_train_steps": 3},
        loader=lambda: {"a": resumable_loader(), "b": stateful_loader(num_workers=1)},
        make_module=Several,
        max_epochs=2,
    )


class Adversaries(pl.LightningModule):
    """Two optimizers that take turns, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.one, self.other = nn.Linear(3, 1), nn.Linear(3, 1)
        self.dropout = nn.Dropout(0.5)
        self.losses: list[float] = []

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        inputs, targets = batch
        for optimizer, layer in zip(self.optimizers(), (self.one, self.other), strict=True):
            loss = nn.functional.mse_loss(layer(self.dropout(inputs)), targets)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        for schedule in self.lr_schedulers():
            schedule.step()
        self.losses.append(loss.item())

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        optimizers = [torch.optim.Adam(self.one.parameters()), torch.optim.SGD(self.other.parameters(), 0.1, 0.9)]
        return optimizers, [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) for optimizer in optimizers]


def test_several_optimizers_and_schedulers_of_manual_optimization_resume(tmp_path: Path) -> None:
    resumed, _ = resume_is_exact(
        tmp_path,
        interrupt_after=8,
        # Each batch makes two steps, so that multiples of three are passed by.
        saves={"every_n_train_steps": 3, "save_top_k": -1},
        loader=stateful_loader,
        make_module=Adversaries,
        is_validating=False,
    )

    manager = resumed.checkpoint_callback.manager
    assert [record.step for record in manager.records] == [4, 6, 10, 12, 16, 18, 22, 24, 28, 30]


def test_a_training_that_was_stopped_early_is_over_when_it_is_started_again(tmp_path: Path) -> None:
    training: dict[str, Any] = {
        "callbacks": lambda: [EarlyStopping("val_loss", patience=1, min_delta=100.0)],
        "max_epochs": 10,
    }
    stopped = fit(TrackCheckpoint(tmp_path), **training)
    again = fit(TrackCheckpoint(tmp_path), seed=99, **training)

    assert stopped[0].current_epoch < 10
    assert again[1].losses == []
    equal(stopped[1].state_dict(), again[1].state_dict(), "module")


@pytest.mark.parametrize("limits", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 7}])
def test_a_training_that_was_finished_has_nothing_to_do_and_says_nothing(
    tmp_path: Path, limits: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    finished = fit(TrackCheckpoint(tmp_path), loader=stateful_loader, **limits)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    again = fit(TrackCheckpoint(tmp_path), loader=stateful_loader, seed=99, **limits)

    assert again[1].losses == []
    equal(finished[1].state_dict(), again[1].state_dict(), "module")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert not [record for record in caplog.records if record.name == "torch_trackckpt" and record.levelname != "INFO"]


def test_more_steps_go_on_in_the_epoch_in_which_fewer_ended(tmp_path: Path) -> None:
    training: dict[str, Any] = {"loader": stateful_loader, "max_epochs": -1}
    whole = fit(TrackCheckpoint(tmp_path / "whole", every_n_train_steps=100), max_steps=12, **training)
    state = RNGState().state_dict()
    fit(TrackCheckpoint(tmp_path / "parts", every_n_train_steps=100), max_steps=8, **training)
    rest = fit(TrackCheckpoint(tmp_path / "parts", every_n_train_steps=100), max_steps=12, seed=99, **training)

    assert rest[1].losses == whole[1].losses[8:]
    equal(whole[1].state_dict(), rest[1].state_dict(), "module")
    equal(state, RNGState().state_dict(), "random state")


def test_lightnings_own_callbacks_keep_their_state(tmp_path: Path) -> None:
    def callbacks() -> list[pl.Callback]:
        best = ModelCheckpoint(tmp_path / "lightning", monitor="val_loss", enable_version_counter=False)
        return [EarlyStopping("val_loss", patience=7), Timer({"hours": 1}), best]

    resumed, _ = resume_is_exact(tmp_path, interrupt_after=12, callbacks=callbacks)

    stopping, best = resumed.early_stopping_callback, resumed.checkpoint_callback
    assert stopping is not None
    assert float(stopping.best_score) == float(best.best_model_score)


def test_an_asynchronous_training_resumes_bit_identical(tmp_path: Path) -> None:
    options = CheckpointOptions(enable_async=True, durable=False)
    resumed, _ = resume_is_exact(
        tmp_path,
        interrupt_after=7,
        saves={"every_n_train_steps": 2, "save_top_k": 2, "options": options},
        loader=stateful_loader,
    )

    assert [record.step for record in resumed.checkpoint_callback.manager.records] == [14, 15]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    whole = fit(None)
    state = RNGState().state_dict()
    fit(TrackCheckpoint(tmp_path, save_top_k=2), interrupt_after=13)
    newest = tmp_path / "ckpt-10.data-00000-of-00001"
    newest.write_bytes(newest.read_bytes()[:-8])
    resumed = fit(TrackCheckpoint(tmp_path, save_top_k=2), seed=99)

    assert len(resumed[1].losses) == 10
    assert_same_bits(whole, resumed, state)


def test_a_plain_loader_that_is_resumed_in_an_epoch_is_an_error_with_a_way_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(TrackCheckpoint(tmp_path, every_n_train_steps=2), loader=plain_loader, interrupt_after=9)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [text for text in warnings if "the DataLoader has no state" in text] == [warnings[0]]

    with pytest.raises(RuntimeError, match=r"in the middle of an epoch, but the DataLoader .*\n?.*strict=False"):
        fit(TrackCheckpoint(tmp_path, every_n_train_steps=2), loader=plain_loader)

    trainer, module = fit(TrackCheckpoint(tmp_path, every_n_train_steps=2, strict=False), loader=plain_loader)
    assert trainer.global_step == 15
    assert len(module.losses) == 7
