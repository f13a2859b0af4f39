"""What is saved of a Lightning training, and how a trainer goes on from it.

    model         the LightningModule            module_state   what its on_save_checkpoint puts into a checkpoint
    optimizers/0  ...                            datamodule     its state_dict, where it has one of its own
    schedulers/0  ...                            precision      the precision plugin's, such as a GradScaler's
    callbacks/<state key>                        dataloaders/0  those of the training that have a state
    loops         Lightning's own fit_loop.state_dict() and what belongs to it
    rng           the random generators of the process

A checkpoint is made in one of three places, and Lightning leaves something undone in each that would have followed
had the training not been interrupted. A resume makes up for it:

    in an epoch, after a batch        schedulers that wait for a metric (ReduceLROnPlateau) are still to be stepped
    in an epoch, after a validation   nothing
    after an epoch                    the same for those that are stepped once an epoch; metrics of the module that were
                                      logged are still to be reset. Lightning then treats the
                                      next epoch as one that was interrupted. Here it begins like every other:
                                      loaders are iterated over anew, after their state is restored

Loaders exist when the training starts, and only then their state is restored: it waits for them. The random state is
set once more after that, because loaders draw random numbers when an iteration begins.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torchmetrics import Metric

from torch_trackckpt import Checkpoint, CheckpointManager, CheckpointOptions, RNGState
from torch_trackckpt.data import ResumableLoader
from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.integrations.lightning.logged import LoggedInEpoch, Sums, logged_in_epoch, logged_metrics
from torch_trackckpt.integrations.lightning.package import (
    Callback,
    GradientAccumulationScheduler,
    LightningDataModule,
    LightningModule,
)

if TYPE_CHECKING:
    import os

    from torch_trackckpt.restore.status import LoadStatus

__all__ = ["Training", "overrides"]

_LIGHTNINGS_OWN_KEYS = frozenset(
    {
        "callbacks",
        "datamodule_hyper_parameters",
        "epoch",
        "global_step",
        "hyper_parameters",
        "loops",
        "lr_schedulers",
        "optimizer_states",
        "pytorch-lightning_version",
        "state_dict",
    }
)

_logger = logging.getLogger("torch_trackckpt")


class Training:
    """One call of ``trainer.fit``, as a checkpoint.

    Args:
        trainer: has its optimizers already.
        module: what it trains.
        is_strict: whether a checkpoint that does not fit in every part is an error, or a warning in the log.
        make_manager: makes the manager of the checkpoint.
    """

    def __init__(
        self,
        trainer: Any,
        module: Any,
        *,
        is_strict: bool,
        make_manager: Callable[[Checkpoint], CheckpointManager],
    ) -> None:
        self._trainer = trainer
        self._module = module
        self._is_strict = is_strict
        self._checkpoint = _RememberingCheckpoint()
        self.manager = make_manager(self._checkpoint)
        self._rng_state: dict[str, Any] | None = None
        """What the random generators are to be set to when the training starts; None where nothing was restored."""
        self._num_sanity_val_steps = trainer.num_sanity_val_steps
        self._warned_of: set[int] = set()
        self._attach()
        # Made now, so that it has the same place in every checkpoint.
        self._checkpoint.save_counter  # noqa: B018

    @property
    def num_batches(self) -> int:
        """How many batches have been trained on, in all epochs."""
        return int(self._trainer.fit_loop.epoch_loop.batch_progress.total.processed)

    def _attach(self) -> None:
        """Makes what the trainer has now the children of the checkpoint; callbacks may have replaced some of it."""
        trainer, module, checkpoint = self._trainer, self._module, self._checkpoint
        checkpoint.model = module
        checkpoint.optimizers = list(trainer.optimizers)
        checkpoint.schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        checkpoint.loops = self._loops = _Loops(trainer)
        checkpoint.callbacks = {
            callback.state_key: _CallbackState(trainer, module, callback)
            for callback in trainer.callbacks
            if overrides(callback, Callback, "state_dict", "on_save_checkpoint")
        }
        checkpoint.rng = RNGState()
        if trainer.precision_plugin.state_dict():
            checkpoint.precision = trainer.precision_plugin
        if trainer.datamodule is not None and overrides(trainer.datamodule, LightningDataModule, "state_dict"):
            checkpoint.datamodule = trainer.datamodule
        if overrides(module, LightningModule, "on_save_checkpoint"):
            checkpoint.module_state = _ModuleState(module)

    def _attach_loaders(self) -> None:
        self._checkpoint.dataloaders = {
            str(index): loader for index, loader in enumerate(self._loaders) if _has_state(loader)
        }

    @property
    def _loaders(self) -> list[Any]:
        loader = self._trainer.fit_loop._combined_loader
        return [] if loader is None else list(loader.flattened)

    # Saving.

    def save(
        self, options: CheckpointOptions, metrics: Mapping[str, float] | None, *, is_after_epoch: bool
    ) -> str | None:
        """Saves, under the number of optimizer steps."""
        for loader in self._loaders:
            if is_after_epoch and isinstance(loader, ResumableLoader):
                # A limit on the number of batches may have left some; they are not wanted any more.
                loader.end_epoch()
            elif not is_after_epoch and not _has_state(loader) and id(loader) not in self._warned_of:
                self._warned_of.add(id(loader))
                _logger.warning("A checkpoint is made in the middle of an epoch, but %s", _cannot_resume(loader))
        self._attach()
        self._attach_loaders()
        return self.manager.save(checkpoint_number=self._trainer.global_step, options=options, metrics=metrics)

    def check_can_save_in_epoch(self) -> None:
        """Refuses loaders of which a batch is fetched before the one before it has been trained on."""
        fetcher = self._trainer.fit_loop._data_fetcher
        if getattr(fetcher, "batches", None) == []:
            return
        raise ValueError(
            "TrackCheckpoint(every_n_train_steps=...) cannot tell which batches have been trained on: Lightning "
            "fetches one ahead from a loader without a length, and as many as the program asks for with a "
            "dataloader_iter. Give the loader a length (Trainer(limit_train_batches=...) does as well), or use "
            "every_n_epochs."
        )

    # Restoring: first everything but the loaders, then these.

    def restore(self, options: CheckpointOptions) -> str | None:
        """Restores the newest sound checkpoint; to be called before Lightning sets up its loops."""
        path = self.manager.restore_or_initialize(options=options)
        if path is None:
            return None
        if self._is_strict:
            self._assert(self._checkpoint.last_status.assert_existing_objects_matched)
        self._step_schedulers_that_wait_for_metrics()
        self._reset_logged_metrics()
        self._rng_state = RNGState().state_dict()
        # As Lightning does in the middle of an epoch: the check would change what has just been restored, such as the
        # metrics that a schedule waits for.
        self._trainer.num_sanity_val_steps = 0
        _logger.info("Resuming after step %d from %r.", self._trainer.global_step, path)
        return path

    def _assert(self, assertion: Callable[[], object]) -> None:
        try:
            assertion()
        except AssertionError as error:
            text = f"the checkpoint and the training do not have the same parts: {error}"
            if self._is_strict:
                raise AssertionError(f"{text}\nTrackCheckpoint(strict=False) resumes with what both have.") from error
            _logger.warning("Resumed in part, as strict=False allows: %s", text)

    @property
    def _is_in_epoch(self) -> bool:
        epoch = self._trainer.fit_loop.epoch_progress.current
        return bool(epoch.processed < epoch.started)

    def _step_schedulers_that_wait_for_metrics(self) -> None:
        fit_loop = self._trainer.fit_loop
        epoch_loop, epoch = fit_loop.epoch_loop, fit_loop.epoch_progress
        batches = epoch_loop.batch_progress.total
        if self._is_in_epoch:
            if batches.completed < batches.processed:
                epoch_loop.update_lr_schedulers("step", update_plateau_schedulers=True)
        elif epoch.current.completed < epoch.current.processed:
            if epoch_loop._num_ready_batches_reached():
                epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
            epoch.increment_completed()

    def _reset_logged_metrics(self) -> None:
        """Metrics that were saved after an epoch begin the next one anew."""
        metrics = dict(self._module.named_modules())
        for name in [] if self._is_in_epoch else self._loops.logged_metrics:
            if isinstance(metric := metrics.get(name), Metric):
                metric.reset()

    def start(self) -> None:
        """To be called when Lightning has its loaders, and no batch has been fetched."""
        self._attach_loaders()
        if self._rng_state is None:
            return
        fit_loop = self._trainer.fit_loop
        without_state = [loader for loader in self._loaders if not _has_state(loader)]
        if self._is_in_epoch and without_state:
            text = f"The checkpoint was made in the middle of an epoch, but {_cannot_resume(without_state[0])}"
            if self._is_strict:
                raise RuntimeError(
                    f"{text} TrackCheckpoint(strict=False) begins the epoch's data anew, for the rest of its batches."
                )
            _logger.warning("%s", text)
        self._assert(self._checkpoint.last_status.assert_consumed)
        self._checkpoint.last_status.expect_partial()
        if self._is_in_epoch:
            # Only the epoch loop is restarting. Of the fit loop Lightning would believe it at the end of the epoch.
            fit_loop._restarting = False
            fit_loop.epoch_loop._results = LoggedInEpoch(self._loops.logged_before)
            # In the first batch of an epoch, Lightning begins all sums anew; this is a later one.
            self._trainer._logger_connector._first_loop_iter = True
            for callback in self._trainer.callbacks:
                # Lightning tells nobody that the epoch begins; this one sets the trainer to what the epoch wants.
                if isinstance(callback, GradientAccumulationScheduler):
                    callback.on_train_epoch_start(self._trainer, self._module)
        else:
            fit_loop.on_iteration_done()
            fit_loop.epoch_loop.restarting = False
        if len(without_state) < len(self._loaders):
            # The iteration that Lightning has begun knows nothing of the state.
            iter(fit_loop._data_fetcher)
        RNGState().load_state_dict(self._rng_state)
        self._rng_state = None

    def close(self) -> None:
        """To be called at the end; where there was nothing to train any more, the loaders' state was of no use."""
        self._trainer.num_sanity_val_steps = self._num_sanity_val_steps
        if self._rng_state is not None:
            self._checkpoint.last_status.expect_partial()


class _RememberingCheckpoint(Checkpoint):
    """Keeps the status of the last restore, which a manager does not hand out."""

    last_status: LoadStatus

    def restore(self, save_path: str | os.PathLike[str] | None, options: CheckpointOptions | None = None) -> LoadStatus:
        self.last_status = super().restore(save_path, options)
        return self.last_status


def overrides(value: object, base: type, *names: str) -> bool:
    """Whether an object's class has a method of its own in place of one of its base."""
    return any(getattr(type(value), name) is not getattr(base, name) for name in names)


def _has_state(loader: object) -> bool:
    return all(callable(getattr(type(loader), name, None)) for name in ("state_dict", "load_state_dict"))


def _cannot_resume(loader: object) -> str:
    return (
        f"the {type(loader).__name__} has no state, so that a resume would not go on with the next batch. Wrap it in "
        "torch_trackckpt.data.ResumableLoader, use torchdata's StatefulDataLoader, or save with every_n_epochs."
    )


class _Loops:
    """Lightning's counters, and what of the trainer belongs to them."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.logged_before: Sums = {}
        """What the restored training had logged in its epoch."""
        self.logged_metrics: list[str] = []
        """The names of the metrics in the module that it had logged."""

    def state_dict(self) -> dict[str, Any]:
        fit_loop = self._trainer.fit_loop.state_dict()
        # Loaders are nodes of their own.
        fit_loop["state_dict"].pop("combined_loader", None)
        return {
            "fit_loop": fit_loop,
            "should_stop": self._trainer.should_stop,
            "callback_metrics": dict(self._trainer.callback_metrics),
            "logged_in_epoch": logged_in_epoch(self._trainer.fit_loop.epoch_loop._results),
            "logged_metrics": logged_metrics(self._trainer.fit_loop.epoch_loop._results),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._trainer.fit_loop.load_state_dict(state["fit_loop"])
        self._trainer.should_stop = state["should_stop"]
        self._trainer.callback_metrics.update(state["callback_metrics"])
        self.logged_before = state["logged_in_epoch"]
        self.logged_metrics = state["logged_metrics"]


class _CallbackState:
    """A callback's ``state_dict``, and what its ``on_save_checkpoint`` adds."""

    def __init__(self, trainer: Any, module: Any, callback: Any) -> None:
        self._trainer = trainer
        self._module = module
        self._callback = callback

    def state_dict(self) -> dict[str, Any]:
        added = _HookDict(self._callback)
        self._callback.on_save_checkpoint(self._trainer, self._module, added)
        return {"state_dict": self._callback.state_dict(), "on_save_checkpoint": added.checked()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["on_save_checkpoint"]:
            stored = _HookDict(self._callback, state["on_save_checkpoint"])
            self._callback.on_load_checkpoint(self._trainer, self._module, stored)
        # As Lightning does: what has no state is not asked to load it.
        if state["state_dict"]:
            self._callback.load_state_dict(state["state_dict"])


class _ModuleState:
    """What a module's ``on_save_checkpoint`` adds."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def state_dict(self) -> dict[str, Any]:
        added = _HookDict(self._module)
        self._module.on_save_checkpoint(added)
        return added.checked()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._module.on_load_checkpoint(_HookDict(self._module, state))


class _HookDict(dict[str, Any]):
    """What a hook gets in place of Lightning's dict with the whole checkpoint, which does not exist here."""

    def __init__(self, owner: object, values: Mapping[str, Any] | None = None) -> None:
        super().__init__(values or {})
        self._owner = owner

    def __missing__(self, key: str) -> Any:
        if key in _LIGHTNINGS_OWN_KEYS:
            raise self._refused(key)
        raise KeyError(key)

    def checked(self) -> dict[str, Any]:
        for key in _LIGHTNINGS_OWN_KEYS & self.keys():
            raise self._refused(key)
        return dict(self)

    def _refused(self, key: str) -> UnsupportedValueError:
        return UnsupportedValueError(
            f"{type(self._owner).__name__} uses {key!r} of the checkpoint in on_save_checkpoint or "
            "on_load_checkpoint. TrackCheckpoint saves objects, not Lightning's dict: these hooks may add values of "
            "their own and read them back, but not change or read the rest of it."
        )
