"""What TrackCheckpoint saves and under which names, when, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from integrations.lightning_training import (
    LIGHTNING_WARNINGS,
    InterruptAfter,
    Module,
    data,
    fit,
    make_trainer,
    plain_loader,
    stateful_loader,
    validation_loader,
)
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging
from lightning.pytorch.plugins.precision import Precision
from torch.utils.data import DataLoader, IterableDataset

from torch_trackckpt import Checkpoint, list_variables
from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.integrations.lightning import TrackCheckpoint

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_WARNINGS]


def steps(trainer: pl.Trainer) -> list[int | None]:
    return [record.step for record in trainer.checkpoint_callback.manager.records]


# What is saved.


class Scaling(Precision):
    """A precision plugin with a state."""

    scale = 8.0

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scale = state_dict["scale"]


class Data(pl.LightningDataModule):
    """A data module with a state."""

    version = "none"

    def train_dataloader(self) -> Any:
        return stateful_loader()

    def val_dataloader(self) -> Any:
        return validation_loader()

    def state_dict(self) -> dict[str, Any]:
        return {"version": self.version}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.version = state_dict["version"]


class Remembering(Module):
    """A module that adds to the checkpoint."""

    vocabulary: dict[str, Any] | None = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vocabulary"] = self.vocabulary

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.vocabulary = checkpoint["vocabulary"]


class Counting(pl.Callback):
    """A callback that uses all hooks that there are for its state."""

    epochs = 0
    note = None

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.epochs += 1

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"]

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["note"] = torch.tensor([self.epochs])

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.note = checkpoint["note"]


def test_each_object_has_its_place_and_its_state_comes_back(tmp_path: Path) -> None:
    def train(max_epochs: int) -> tuple[pl.Trainer, Remembering, Scaling, Data, Counting]:
        module, plugin, datamodule, counting = Remembering(), Scaling(), Data(), Counting()
        callbacks = [EarlyStopping("val_loss", patience=9), counting, TrackCheckpoint(tmp_path)]
        trainer = make_trainer(callbacks, plugins=[plugin], max_epochs=max_epochs)
        if max_epochs == 1:
            module.vocabulary, plugin.scale, datamodule.version = {"a": 1, "b": torch.ones(2)}, 16.0, "third"
        trainer.fit(module, datamodule=datamodule)
        return trainer, module, plugin, datamodule, counting

    trainer, *_ = train(max_epochs=1)
    saved = {name for name, _ in list_variables(trainer.checkpoint_callback.manager.latest_checkpoint)}
    _, module, plugin, datamodule, counting = train(max_epochs=2)

    assert module.vocabulary is not None
    assert torch.equal(module.vocabulary["b"], torch.ones(2))
    assert (plugin.scale, datamodule.version, counting.epochs, counting.note) == (16.0, "third", 2, torch.tensor([1]))
    assert {name.partition("/.")[0] for name in saved} >= {
        "model/first/weight",
        "model/norm/running_mean",
        "optimizers/0/param_groups",
        "schedulers/0",
        "loops",
        "callbacks/Counting",
        "callbacks/Counting/0",
        "callbacks/EarlyStopping{'monitor': 'val_loss', 'mode': 'min'}",
        "dataloaders/0",
        "datamodule",
        "precision",
        "module_state",
        "module_state/0",
        "rng",
        "save_counter",
    }
    assert "model/first/weight/.OPTIMIZER_SLOT/optimizers/0/exp_avg/.ATTRIBUTES/VARIABLE_VALUE" in saved


def test_a_program_without_lightning_restores_the_weights(tmp_path: Path) -> None:
    trainer, module = fit(TrackCheckpoint(tmp_path), max_epochs=1)

    plain = torch.nn.Module()
    plain.first, plain.last = torch.nn.Linear(3, 8), torch.nn.Linear(8, 1)
    path = trainer.checkpoint_callback.manager.latest_checkpoint
    Checkpoint(model=plain).restore(path).assert_existing_objects_matched().expect_partial()

    assert torch.equal(plain.first.weight, module.first.weight)


# When.


def test_an_epoch_is_saved_unless_something_else_is_asked_for(tmp_path: Path) -> None:
    keep = {"save_top_k": -1, "save_last": False}

    assert steps(fit(TrackCheckpoint(tmp_path / "a", **keep))[0]) == [5, 10, 15]
    assert steps(fit(TrackCheckpoint(tmp_path / "b", every_n_epochs=2, **keep))[0]) == [10]
    assert steps(fit(TrackCheckpoint(tmp_path / "c", every_n_train_steps=6, **keep), loader=stateful_loader)[0]) == [
        6,
        12,
    ]
    both = TrackCheckpoint(tmp_path / "d", every_n_train_steps=6, every_n_epochs=1, **keep)
    assert steps(fit(both, loader=stateful_loader)[0]) == [5, 6, 10, 12, 15]


def test_the_end_is_saved_even_where_no_checkpoint_is_due(tmp_path: Path) -> None:
    assert steps(fit(TrackCheckpoint(tmp_path, every_n_epochs=2))[0]) == [15]


def test_neither_a_sanity_check_nor_fast_dev_run_nor_an_exception_saves(tmp_path: Path) -> None:
    fit(TrackCheckpoint(tmp_path / "a"), interrupt_after=0)
    fit(TrackCheckpoint(tmp_path / "b"), fast_dev_run=True)
    fit(TrackCheckpoint(tmp_path / "c", every_n_train_steps=2), loader=stateful_loader, interrupt_after=3)

    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
    assert sorted(path.name for path in (tmp_path / "c").glob("*.index")) == ["ckpt-2.index"]


def test_validate_and_test_leave_the_checkpoints_alone(tmp_path: Path) -> None:
    checkpoints = TrackCheckpoint(tmp_path)
    trainer, module = fit(checkpoints, max_epochs=1)
    before = sorted(tmp_path.iterdir())
    trainer.validate(module, validation_loader(), verbose=False)

    assert sorted(tmp_path.iterdir()) == before


def test_the_best_and_the_newest_are_kept(tmp_path: Path) -> None:
    class Losses(Module):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", torch.tensor([0.5, 0.2, 0.4, 0.3, 0.9][self.trainer.current_epoch]))

    def train(directory: str, **arguments: Any) -> list[int | None]:
        checkpoints = TrackCheckpoint(tmp_path / directory, monitor="val_loss", **arguments)
        trainer, _ = fit(checkpoints, make_module=Losses, max_epochs=5, num_sanity_val_steps=0)
        return steps(trainer)

    assert train("min") == [10, 25]
    assert train("max", mode="max", save_top_k=2) == [5, 25]
    assert train("all", save_top_k=-1) == [5, 10, 15, 20, 25]


def test_a_checkpoint_has_no_metric_of_an_earlier_validation(tmp_path: Path) -> None:
    checkpoints = TrackCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1, every_n_train_steps=3, every_n_epochs=1)
    fit(checkpoints, loader=stateful_loader, max_epochs=2)
    by_training = TrackCheckpoint(tmp_path / "b", monitor="train_loss", save_top_k=-1, every_n_train_steps=4)
    fit(by_training, loader=stateful_loader, max_epochs=2)

    assert [(record.step, bool(record.metrics)) for record in checkpoints.manager.records] == [
        (3, False),
        (5, True),
        (6, False),
        (9, False),
        (10, True),
    ]
    assert [(record.step, bool(record.metrics)) for record in by_training.manager.records] == [
        (4, True),
        (8, True),
        (10, True),
    ]


def test_a_second_fit_goes_on_in_the_same_process(tmp_path: Path) -> None:
    checkpoints = TrackCheckpoint(tmp_path, resume=False, save_top_k=-1)
    trainer, module = fit(checkpoints, max_epochs=1)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, plain_loader(), validation_loader())

    assert steps(trainer) == [5, 10]


# What is refused.


def test_a_metric_that_nobody_logs_is_an_error_that_lists_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"monitor='val_los'\): no such metric was logged, there are train_loss, val_"):
        fit(TrackCheckpoint(tmp_path, monitor="val_los"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"filename": "{epoch}"}, "looks like a template"),
        ({"save_top_k": 0}, "save_top_k must be at least 1, or -1"),
        ({"every_n_epochs": 0}, "every_n_epochs must be at least 1, or None"),
        ({"every_n_train_steps": -1}, "every_n_train_steps must be at least 1"),
        ({"monitor": "loss", "mode": "least"}, "mode must be 'min' or 'max'"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TrackCheckpoint(tmp_path, **arguments)


def test_a_ckpt_path_beside_a_checkpoint_to_resume_from_is_refused(tmp_path: Path) -> None:
    trainer, _ = fit(TrackCheckpoint(tmp_path), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "lightning.ckpt")

    with pytest.raises(ValueError, match=r"would resume from '.*ckpt-5', but fit was given ckpt_path=.*lightning.ckpt"):
        make_trainer([TrackCheckpoint(tmp_path)], limit_val_batches=0).fit(
            Module(), plain_loader(), validation_loader(), ckpt_path=tmp_path / "lightning.ckpt"
        )


def test_a_directory_of_another_training_is_refused_where_nothing_is_to_be_resumed(tmp_path: Path) -> None:
    fit(TrackCheckpoint(tmp_path), max_epochs=1)

    with pytest.raises(ValueError, match=r"resume=False\) found '.*ckpt-5' of another training"):
        fit(TrackCheckpoint(tmp_path, resume=False), max_epochs=1)


def test_parts_that_differ_are_an_error_unless_strict_is_false(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stopping() -> list[pl.Callback]:
        return [EarlyStopping("val_loss", patience=9)]

    fit(TrackCheckpoint(tmp_path), max_epochs=1)
    with pytest.raises(AssertionError, match=r"(?s)do not have the same parts: .*EarlyStopping.*strict=False"):
        fit(TrackCheckpoint(tmp_path), callbacks=stopping)
    trainer, _ = fit(TrackCheckpoint(tmp_path, strict=False), callbacks=stopping)
    with pytest.raises(AssertionError, match=r"(?s)do not have the same parts: .*EarlyStopping.*strict=False"):
        fit(TrackCheckpoint(tmp_path), max_epochs=4)

    assert trainer.global_step == 15
    assert "Resumed in part, as strict=False allows: " in caplog.text


def test_several_processes_are_refused(tmp_path: Path) -> None:
    checkpoints = TrackCheckpoint(tmp_path)
    trainer = make_trainer([checkpoints], devices=2)

    with pytest.raises(NotImplementedError, match=r"this one has 2 and the strategy DDPStrategy"):
        checkpoints.setup(trainer, Module(), "fit")


def test_callbacks_that_cannot_be_resumed_are_refused_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="cannot resume a training with StochasticWeightAveraging"):
        fit(TrackCheckpoint(tmp_path), callbacks=lambda: [StochasticWeightAveraging(0.1)])
    with pytest.raises(ValueError, match="Two TrackCheckpoints would resume"):
        fit(TrackCheckpoint(tmp_path), callbacks=lambda: [TrackCheckpoint(tmp_path / "other")])
    fit(TrackCheckpoint(tmp_path), callbacks=lambda: [TrackCheckpoint(tmp_path / "other", resume=False)])


def test_hooks_that_change_lightnings_own_dict_are_refused_by_name(tmp_path: Path) -> None:
    class Averaging(pl.Callback):
        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            checkpoint["current_model_state"] = checkpoint["state_dict"]

    with pytest.raises(UnsupportedValueError, match="Averaging uses 'state_dict' of the checkpoint"):
        fit(TrackCheckpoint(tmp_path / "a"), callbacks=lambda: [Averaging()])

    class Replacing(Module):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["state_dict"] = {}

    with pytest.raises(UnsupportedValueError, match="Replacing uses 'state_dict' of the checkpoint"):
        fit(TrackCheckpoint(tmp_path / "b"), make_module=Replacing)


def test_loaders_of_which_a_batch_is_fetched_ahead_are_refused_in_an_epoch(tmp_path: Path) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(data())

    def stream() -> DataLoader[Any]:
        return DataLoader(Stream(), batch_size=4)

    with pytest.raises(ValueError, match="fetches one ahead from a loader without a length"):
        fit(TrackCheckpoint(tmp_path / "a", every_n_train_steps=2), loader=stream)
    trainer, _ = fit(TrackCheckpoint(tmp_path / "b"), loader=stream)
    assert steps(trainer) == [15]


def test_what_is_not_there_says_what_is(tmp_path: Path) -> None:
    checkpoints = TrackCheckpoint(tmp_path)

    with pytest.raises(RuntimeError, match=r"as soon as trainer\.fit has begun"):
        _ = checkpoints.manager
    with pytest.raises(AttributeError, match=r"the paths are in manager\.records"):
        _ = checkpoints.best_model_path
    assert not isinstance(checkpoints, InterruptAfter)


# The two packages of Lightning.


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)


def test_without_lightning_the_error_has_the_line_that_installs_it() -> None:
    result = run(
        "import sys; sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
        "import torch_trackckpt.integrations.lightning"
    )

    assert "ModuleNotFoundError: " in result.stderr
    assert "which is not installed: pip install 'torch_trackckpt[lightning]'" in result.stderr


def test_a_program_that_has_imported_pytorch_lightning_gets_a_callback_for_it(tmp_path: Path) -> None:
    result = run(
        "import sys, pytorch_lightning as pl\n"
        "from pytorch_lightning.demos.boring_classes import BoringModel\n"
        "from torch_trackckpt.integrations.lightning import TrackCheckpoint\n"
        "quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator='cpu')\n"
        "for epochs in (1, 2):\n"
        f"    trainer = pl.Trainer(callbacks=[TrackCheckpoint({str(tmp_path)!r})], max_epochs=epochs, **quiet,\n"
        "        limit_train_batches=3, limit_val_batches=1)\n"
        "    trainer.fit(BoringModel())\n"
        "print(trainer.global_step, trainer.checkpoint_callback.manager.latest_checkpoint.endswith('ckpt-6'))\n"
        "print('lightning.pytorch' in sys.modules)\n"
        "from lightning.pytorch import Trainer\n"
        "from lightning.pytorch.demos.boring_classes import BoringModel\n"
        "Trainer(logger=False, enable_checkpointing=False, callbacks=[TrackCheckpoint('x')]).fit(BoringModel())\n"
    )

    assert result.stdout.splitlines()[:2] == ["6 True", "False"], result.stderr
    assert "The trainer is one of lightning, but TrackCheckpoint was made for pytorch_lightning." in result.stderr
