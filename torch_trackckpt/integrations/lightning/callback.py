"""The Lightning callback: when a training is saved, and when it is restored.

A checkpoint that is due after a batch is made there, unless that batch ends the epoch or a validation follows it: then
after these, so that a resume has neither to repeat nor to leave out any of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import torch

from torch_trackckpt import Checkpoint, CheckpointManager, CheckpointOptions
from torch_trackckpt.integrations.lightning.package import (
    BaseFinetuning,
    LightningModule,
    StochasticWeightAveraging,
    Trainer,
)
from torch_trackckpt.integrations.lightning.package import Checkpoint as LightningCheckpoint
from torch_trackckpt.integrations.lightning.training import Training, overrides
from torch_trackckpt.retention import KeepBest, KeepLatest, Retention

__all__ = ["TrackCheckpoint"]


class TrackCheckpoint(LightningCheckpoint):
    """Saves and restores a Lightning training as objects: module, optimizers, schedulers, loops, callbacks, and so on.

    Started again, the same program goes on from its newest sound checkpoint, bit for bit as if it had not been
    interrupted; in the middle of an epoch where its loaders have a state. It takes the place of ``ModelCheckpoint`` and
    of ``fit(ckpt_path=...)``. Weights are saved as ``Checkpoint(model=module)`` would, so that a program without
    Lightning can restore them.

    Args:
        dirpath: where the checkpoints are.
        filename: what their names begin with; the number of optimizer steps follows, as in ``ckpt-800``.
        monitor: a logged metric that tells which checkpoints are the best; None keeps the newest.
        mode: whether the lowest (``"min"``) or the highest (``"max"``) value is best.
        save_top_k: how many checkpoints are kept, in addition to the newest if there is a ``monitor``; -1 keeps all.
        save_last: save once more when the training ends, unless its last batch is saved already.
        every_n_train_steps: save after so many optimizer steps. A batch that makes several counts once.
        every_n_epochs: save after so many epochs; by default after each, or none if ``every_n_train_steps`` is given.
        resume: restore the newest checkpoint when a training starts, if there is any. With False, a directory that
            holds checkpoints of another training is an error.
        strict: whether it is an error if the checkpoint and the training do not have the same parts (a callback was
            added, say), or if it was made in the middle of an epoch and a loader has no state. With False, what both
            have is restored, and the log tells of the rest.
        options: for all saves and the restore, such as ``CheckpointOptions(enable_async=True)``.

    Raises:
        ValueError, TypeError: an argument is out of range or of another type.

    Example:
        >>> import tempfile
        >>> from torch_trackckpt.integrations.lightning import TrackCheckpoint
        >>> checkpoints = TrackCheckpoint(tempfile.mkdtemp(), monitor="val_loss", save_top_k=2, every_n_epochs=5)

        Given to ``Trainer(callbacks=[checkpoints])``, it resumes and saves in ``trainer.fit(module)``.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str],
        filename: str = "ckpt",
        *,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        save_last: bool = True,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        resume: bool = True,
        strict: bool = True,
        options: CheckpointOptions | None = None,
    ) -> None:
        super().__init__()
        if "{" in filename:
            raise ValueError(
                f"TrackCheckpoint: filename={filename!r} looks like a template, but only the number of steps is put "
                "behind it; metrics are in manager.records."
            )
        for name, number in (("every_n_train_steps", every_n_train_steps), ("every_n_epochs", every_n_epochs)):
            if number is not None and number < 1:
                raise ValueError(f"TrackCheckpoint: {name} must be at least 1, or None for never, but is {number}.")
        if every_n_train_steps is None and every_n_epochs is None:
            every_n_epochs = 1
        self.dirpath = os.fsdecode(dirpath)
        self._filename = filename
        self._monitor = monitor
        self._retention = _retention(monitor, mode, save_top_k)
        self._save_last = save_last
        self._every_n_train_steps = every_n_train_steps
        self._every_n_epochs = every_n_epochs
        self._resume = resume
        self._is_strict = strict
        self._options = options or CheckpointOptions()
        self._manager: CheckpointManager | None = None
        self._training: Training | None = None
        """None where nothing is to be saved."""
        self._unhook: Callable[[], None] | None = None
        """Takes back what has the module save after a hook of its own."""
        self._forget_training()

    def _forget_training(self) -> None:
        if self._training is not None:
            self._training.close()
        if self._unhook is not None:
            self._unhook()
        self._training = None
        self._is_due = False
        self._counted_steps = 0
        self._saved_batches: int | None = None
        self._metric_before_validation: object = None
        self._validation_logged_at: int | None = None
        """The step at which a validation logged the monitored metric; None where training logs it."""

    @property
    def manager(self) -> CheckpointManager:
        """The manager of the directory: its checkpoints, their steps and metrics, ``sync()``.

        Raises:
            RuntimeError: no training has begun.
        """
        if self._manager is None:
            raise RuntimeError("TrackCheckpoint has a manager as soon as trainer.fit has begun.")
        return self._manager

    @property
    def best_model_path(self) -> str:
        """Not there: a ``ckpt_path`` of Lightning names another kind of file."""
        raise AttributeError(
            "TrackCheckpoint makes no files that Lightning could load as a ckpt_path. Pass the module itself to "
            "trainer.test, after torch_trackckpt.Checkpoint(model=module).restore(path).expect_partial(); "
            "the paths are in manager.records."
        )

    # Starting.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuses what cannot be saved, before anything has begun."""
        _check_package(trainer)
        if trainer.world_size > 1 or trainer.strategy.restore_checkpoint_after_setup:
            raise NotImplementedError(
                f"TrackCheckpoint saves trainings in one process, and not in parts; this one has {trainer.world_size} "
                f"and the strategy {type(trainer.strategy).__name__}. That comes with sharded saving."
            )
        for callback in trainer.callbacks:
            if isinstance(callback, (BaseFinetuning, StochasticWeightAveraging)):
                raise NotImplementedError(
                    f"TrackCheckpoint cannot resume a training with {type(callback).__name__}, which changes "
                    "optimizers or schedulers before there is a place for their state."
                )
            if self._resume and isinstance(callback, TrackCheckpoint) and callback is not self and callback._resume:
                raise ValueError(
                    f"Two TrackCheckpoints would resume, from {self.dirpath!r} and from {callback.dirpath!r}; pass "
                    "resume=False to one of them."
                )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Restores: optimizers and schedulers are there, and the loops have not begun."""
        self._forget_training()
        if trainer.fast_dev_run:
            return
        own = None
        if self._manager is not None:
            self._manager.sync()
            own = self._manager.latest_checkpoint
        training = Training(
            trainer,
            pl_module,
            is_strict=self._is_strict,
            make_manager=lambda checkpoint: self._make_manager(checkpoint, trainer),
        )
        self._manager = training.manager
        latest = self._manager.latest_checkpoint
        if self._resume and latest is not None:
            if trainer.ckpt_path is not None:
                raise ValueError(
                    f"The training would resume from {latest!r}, but fit was given ckpt_path={trainer.ckpt_path!r}. "
                    "Leave out ckpt_path, or pass resume=False and another directory to TrackCheckpoint."
                )
            training.restore(self._options)
            self._saved_batches = training.num_batches
        elif latest is not None and latest != own:
            raise ValueError(
                f"TrackCheckpoint(resume=False) found {latest!r} of another training, whose checkpoints it would "
                "replace and delete; pass another directory, or resume=True."
            )
        self._training = training

    def _make_manager(self, checkpoint: Checkpoint, trainer: Any) -> CheckpointManager:
        return CheckpointManager(
            checkpoint,
            self.dirpath,
            checkpoint_name=self._filename,
            step_counter=lambda: trainer.global_step,
            retention=self._retention,
        )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Restores the rest: Lightning has its loaders now."""
        if self._training is not None:
            if self._every_n_train_steps is not None:
                self._training.check_can_save_in_epoch()
            self._training.start()
            self._counted_steps = trainer.global_step

    # Saving.

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Saves in the middle of an epoch."""
        if self._training is None or self._every_n_train_steps is None:
            return
        before, now = self._counted_steps, trainer.global_step
        self._counted_steps = now
        is_last = self._save_last and now >= trainer.max_steps >= 0
        self._is_due |= is_last or now // self._every_n_train_steps > before // self._every_n_train_steps
        loop = trainer.fit_loop.epoch_loop
        if self._is_due and not loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
            self._save_after(trainer, pl_module, "on_train_batch_end")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Looks at the metric, to know afterwards whether this validation logged it."""
        if self._training is not None:
            self._metric_before_validation = self._metric(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Saves what was due before the validation."""
        if self._training is None or trainer.sanity_checking:
            return
        if self._metric(trainer) is not self._metric_before_validation:
            self._validation_logged_at = trainer.global_step
        if self._is_due:
            self._save_after(trainer, pl_module, "on_validation_end")

    def _save_after(self, trainer: Any, pl_module: Any, hook: str) -> None:
        """Saves when the module's own hook has run, such as one that updates an average of weights.

        Lightning calls it after those of all callbacks, and calls nobody after it.
        """
        if hook not in vars(pl_module) and not overrides(pl_module, LightningModule, hook):
            self._save_in_epoch(trainer)
            return
        run = getattr(pl_module, hook)
        before = {hook: vars(pl_module)[hook]} if hook in vars(pl_module) else {}

        def run_and_save(*args: Any, **kwargs: Any) -> Any:
            unhook()
            result = run(*args, **kwargs)
            self._save_in_epoch(trainer)
            return result

        def unhook() -> None:
            self._unhook = None
            del vars(pl_module)[hook]
            vars(pl_module).update(before)

        vars(pl_module)[hook] = run_and_save
        self._unhook = unhook

    def _save_in_epoch(self, trainer: Any) -> None:
        fit_loop = trainer.fit_loop
        is_stopping = trainer.should_stop and fit_loop._can_stop_early
        if not is_stopping and not fit_loop.epoch_loop._num_ready_batches_reached():
            self._save(trainer, is_after_epoch=False)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Saves after an epoch."""
        if self._training is None:
            return
        is_epoch_due = self._every_n_epochs is not None and (trainer.current_epoch + 1) % self._every_n_epochs == 0
        if is_epoch_due:
            self._check_monitor(trainer)
        if is_epoch_due or self._is_due:
            self._save(trainer, is_after_epoch=True)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Saves the end of the training, and waits until every checkpoint is complete."""
        if self._training is None:
            return
        if self._save_last and self._training.num_batches != self._saved_batches:
            self._save(trainer, is_after_epoch=True)
        self.manager.sync()

    def _save(self, trainer: Any, *, is_after_epoch: bool) -> None:
        assert self._training is not None
        self._training.save(self._options, self._metrics(trainer), is_after_epoch=is_after_epoch)
        self._saved_batches = self._training.num_batches
        self._is_due = False

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Saves nothing: the exception may have come in the middle of a step. What is pending becomes complete."""
        self._forget_training()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Lets go of the training."""
        self._forget_training()

    # The metric.

    def _metric(self, trainer: Any) -> Any:
        return None if self._monitor is None else trainer.callback_metrics.get(self._monitor)

    def _metrics(self, trainer: Any) -> dict[str, float] | None:
        """The metric if it is one of these weights; that of an earlier validation is not."""
        metric = self._metric(trainer)
        if metric is None or self._validation_logged_at not in (None, trainer.global_step):
            return None
        assert self._monitor is not None
        return {self._monitor: float(torch.as_tensor(metric))}

    def _check_monitor(self, trainer: Any) -> None:
        is_expected = not trainer.enable_validation or trainer.fit_loop.epoch_loop.val_loop._has_run
        if self._monitor is not None and self._metric(trainer) is None and is_expected:
            raise ValueError(
                f"TrackCheckpoint(monitor={self._monitor!r}): no such metric was logged, there are "
                f"{', '.join(sorted(trainer.callback_metrics)) or 'none'}. Log it by self.log."
            )


def _retention(monitor: str | None, mode: Literal["min", "max"], save_top_k: int) -> Retention | None:
    if save_top_k == 0 or save_top_k < -1:
        raise ValueError(f"TrackCheckpoint: save_top_k must be at least 1, or -1 to keep all, but is {save_top_k}.")
    number = max(1, save_top_k)
    kept = KeepLatest(number) if monitor is None else KeepBest(number, monitor, mode)
    return None if save_top_k == -1 else kept


def _check_package(trainer: object) -> None:
    if not isinstance(trainer, Trainer):
        raise TypeError(
            f"The trainer is one of {type(trainer).__module__.split('.')[0]}, but TrackCheckpoint was made for "
            f"{Trainer.__module__.split('.')[0]}. Import the package of your trainer, and not the other one, before "
            "torch_trackckpt.integrations.lightning."
        )
