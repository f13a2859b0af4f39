"""A Lightning training that is interrupted and started again ends like one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from integrations.lightning_training import (
    Module,
    plain_loader,
    resume_is_exact,
    stateful_loader,
)
from lightning.pytorch.callbacks import EarlyStopping

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.set_vital. is deprecated", "ignore:.*LeafSpec.*is deprecated", "ignore:.*treespec, LeafSpec"
)


@pytest.mark.parametrize("interrupt_after", [7, 10, 11])
@pytest.mark.parametrize("schedule", ["step", "plateau-epoch", "plateau-step"])
def test_a_resume_after_an_epoch_ends_bit_identical(tmp_path: Path, interrupt_after: int, schedule: str) -> None:
    resume_is_exact(
        tmp_path, interrupt_after=interrupt_after, saves={}, make_module=lambda: Module(schedule)
    )


@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 13}])
@pytest.mark.parametrize("interrupt_after", [2, 3, 5, 7, 10, 11])
@pytest.mark.parametrize("schedule", ["step", "plateau-epoch", "plateau-step"])
@pytest.mark.parametrize("is_validating", [True, False])
def test_a_resume_in_an_epoch_ends_bit_identical(
    tmp_path: Path, limits: dict[str, Any], interrupt_after: int, schedule: str, is_validating: bool
) -> None:
    if schedule == "plateau-epoch" and not is_validating:
        pytest.skip("waits for a validation")
    resume_is_exact(
        tmp_path,
        interrupt_after=interrupt_after,
        saves={"every_n_train_steps": 1},
        loader=stateful_loader,
        make_module=lambda: Module(schedule),
        is_validating=is_validating,
        **limits,
    )


@pytest.mark.parametrize("interrupt_after", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("schedule", ["step", "plateau-epoch", "plateau-step"])
def test_a_validation_in_an_epoch_is_neither_repeated_nor_left_out(tmp_path: Path, interrupt_after: int, schedule: str) -> None:
    resume_is_exact(
        tmp_path,
        interrupt_after=interrupt_after,
        saves={"every_n_train_steps": 1},
        loader=stateful_loader,
        make_module=lambda: Module(schedule),
        val_check_interval=2,
        callbacks=lambda: [EarlyStopping("val_loss", patience=50)],
    )
