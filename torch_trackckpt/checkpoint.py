"""Saves and restores trackable objects. The file to read first: `_write` and `_read` show the stages in order."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch

from torch_trackckpt.adapters import adapt, advice_for, is_trackable
from torch_trackckpt.bundle.file_names import saved_model_prefix
from torch_trackckpt.bundle.reader import CheckpointReader
from torch_trackckpt.devices.access import Devices
from torch_trackckpt.errors import CheckpointNotFoundError
from torch_trackckpt.graph.lost import lost_values, unsaved_metrics
from torch_trackckpt.graph.messages import read_object_graph
from torch_trackckpt.graph.walk import LiveGraph, Snapshot, capture, collect, discover
from torch_trackckpt.metrics import CheckpointMetrics, Transfer
from torch_trackckpt.options import CheckpointOptions
from torch_trackckpt.restore.deferred import Restoration
from torch_trackckpt.restore.name_based import NameBasedRestoration
from torch_trackckpt.restore.status import (
    CheckpointLoadStatus,
    InitializationOnlyStatus,
    LoadStatus,
    NameBasedLoadStatus,
)
from torch_trackckpt.save.background import Pace
from torch_trackckpt.save.late import rows_for_later
from torch_trackckpt.save.pending import PendingSave
from torch_trackckpt.save.plan import SavePlan, Wholes, make_plan, plan_of
from torch_trackckpt.save.publish import UploadedFiles
from torch_trackckpt.save.ranks import Rows
from torch_trackckpt.save.solo import Publish, Save
from torch_trackckpt.save.turns import Turns, saving
from torch_trackckpt.save.write import WrittenFiles, write_shards
from torch_trackckpt.state_file import CheckpointState, write_checkpoint_state
from torch_trackckpt.storage.paths import anchored, directory
from torch_trackckpt.trackable import Trackable, Value
from torch_trackckpt.tracking.autotrackable import AutoTrackable

__all__ = ["Checkpoint"]

_SAVE_COUNTER = "save_counter"

_logger = logging.getLogger("torch_trackckpt")


class Checkpoint(AutoTrackable):
    """A group of trackable objects that are saved and restored together. TensorFlow's ``tf.train.Checkpoint``.

    Trackable are modules, tensors, optimizers, lists, tuples and dicts of trackables, `RNGState`, every object with
    ``state_dict`` and ``load_state_dict`` or with ``serialize`` and ``deserialize``, and whatever an adapter was
    registered for. Values are matched by the names that lead to them from the checkpoint, never by position.

    Args:
        root: its children become the children of the checkpoint itself (a module, say), or a weak reference to it.
        **kwargs: further children by name. Attributes that are set later are children as well.

    Raises:
        ValueError: an argument is not trackable, or a keyword names a child that the root has already.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import Checkpoint
        >>> model = torch.nn.Linear(2, 1)
        >>> checkpoint = Checkpoint(model=model, optimizer=torch.optim.Adam(model.parameters()))
        >>> path = checkpoint.save(tempfile.mkdtemp() + "/ckpt")
        >>> other = torch.nn.Linear(2, 1)
        >>> status = Checkpoint(model=other).restore(path)
        >>> torch.equal(model.weight, other.weight)
        True
    """

    def __init__(self, root: Any = None, **kwargs: Any) -> None:
        self._own = Turns(root)
        if root is not None:
            if not is_trackable(root):
                raise ValueError(
                    f"Checkpoint: root is a {type(root).__name__}, which is not trackable. {advice_for(root)}"
                )
            kwargs["root"] = root
        for name, value in sorted(kwargs.items()):
            self._check_argument(name, value)
            setattr(self, name, value)
        self._keep_root()

    def _keep_root(self) -> None:
        """The root is the caller's own object, even if it is a plain list or dict, and is its own attribute."""
        if self._own.root is not None:
            self.__dict__["root"] = self._own.root

    def _check_argument(self, name: str, value: object) -> None:
        own = getattr(type(self), name, None)
        if callable(own) or isinstance(own, property) or name in vars(self):
            raise ValueError(f"Checkpoint: the name {name} is taken by the checkpoint itself; choose another.")
        trackable = adapt(value)
        if trackable is None:
            raise ValueError(
                f"Checkpoint: {name} is a {type(value).__name__}, which is not trackable. {advice_for(value)}"
            )
        self._check_free(name, trackable)

    def _check_free(self, name: str, trackable: Trackable | None) -> None:
        """Refuses a name under which the root has another child."""
        root = adapt(self._own.root)
        present = None if root is None else adapt(root._lookup_dependency(name))
        if present is not None and trackable is not None and present._identity() != trackable._identity():
            raise ValueError(
                f"Checkpoint: {name} cannot be attached, because root.{name} already exists and is another object."
            )

    # Saving.

    def save(self, file_prefix: str | os.PathLike[str], options: CheckpointOptions | None = None) -> str:
        """Saves under the next number, and names the new checkpoint in the directory's state file.

        The number is spent even if the save fails. Missing directories are made. No other thread may change the
        values before the call returns, because bytes go to the file from the tensors' own memory; a change through
        torch is noticed, and no checkpoint is made then. One process at a time may save to a directory.

        With ``enable_async`` the call returns as soon as it has copied all values. A thread makes the files, calls the
        write callbacks and updates the state file; the interpreter waits for it at its exit. A save waits for the one
        before it. TensorFlow counts such saves apart, in a counter that the caller does not see; here all saves take
        their numbers from `save_counter`.

        Args:
            file_prefix: the path that the files begin with; the number follows, as in ``run/ckpt-1``.
            options: see `CheckpointOptions`.

        Returns:
            The path to pass to `restore`.

        Raises:
            UnsupportedValueError: something cannot be saved; the text names it. Nothing was written.
            ValueChangedError: another thread changed a value. Nothing is left of what was written.
            OSError: the system refuses. The previous checkpoints and the state file are as before.
            Exception: whatever the asynchronous save before failed with; this one has not begun, the next will.
        """
        options = options or CheckpointOptions()
        prefix = os.fsdecode(file_prefix)
        purpose = numbering(prefix)
        with self._own.turn(options, purpose):
            path = f"{prefix}-{self._spend_number(purpose, options)}"
            self._write(path, options, updates_state=True)
        return path

    def _spend_number(self, purpose: str, options: CheckpointOptions) -> int:
        """The number of the next save, which begins in the same `Turns.turn`. All ranks take that of rank 0: some may
        have saved by themselves before."""
        counter = self.save_counter
        number, *_ = self._own.agree_on(purpose, lambda: int(counter) + 1, options)
        with torch.no_grad():
            counter.fill_(number)
        return int(number)

    def write(self, file_prefix: str | os.PathLike[str], options: CheckpointOptions | None = None) -> str:
        """Saves under exactly this path: no number, no state file. `read` is its counterpart.

        A checkpoint that is there already is replaced: who opens it later finds the old one or the new one, whole, even
        if this process is killed on the way. (Until the next save completes what such a death left, that is true of
        this package alone: TensorFlow may find the new data with the old index, and report a checksum.) A reader that
        was opened before the replacement gets an error from then on, never other values. Where others read while you
        write, use `save`, which gives each checkpoint a name of its own.

        Returns:
            The path.

        Raises:
            UnsupportedValueError, ValueChangedError, OSError, Exception: as `save`.
        """
        path = os.fsdecode(file_prefix)
        options = options or CheckpointOptions()
        with self._own.turn(options, saving(path)):
            self._write(path, options, updates_state=False)
        return path

    def prewarm(self, options: CheckpointOptions | None = None) -> None:
        """Makes ready for asynchronous saves, so that the first is as short as the others.

        Takes the memory for the copies of all values, and makes the record of the graph. To be called when optimizers
        have their state, after the first step: what comes later needs more memory, which the save then takes. Nothing
        is written. Not in TensorFlow.

        Args:
            options: those of the saves; see `CheckpointOptions`.

        Raises:
            UnsupportedValueError: something cannot be saved; the text names it.
            Exception: whatever a pending save failed with.

        Example:
            >>> import tempfile, torch
            >>> from torch_trackckpt import Checkpoint, CheckpointOptions
            >>> checkpoint = Checkpoint(model=torch.nn.Linear(2, 1))
            >>> options = CheckpointOptions(enable_async=True)
            >>> checkpoint.prewarm(options)
            >>> path = checkpoint.save(tempfile.mkdtemp() + "/ckpt", options)
            >>> checkpoint.sync()
        """
        options = options or CheckpointOptions()
        with self._own.turn(options, saving(""), is_save=False):
            save = self._own.begin_save("", options)
            with save.telling():
                plan = self._plan(save.share(self._walk(options)), options, save)
            save.close()
            self._own.staging.prewarm(plan, options.thread_count, options.device_snapshot_bytes)

    def release_memory(self) -> None:
        """Gives back the memory that is kept from save to save, ordinary and page-locked; the counterpart of `prewarm`.

        Waits for a pending save. The next save that needs such memory takes it again. Not in TensorFlow.

        Raises:
            Exception: whatever a pending save failed with.

        Example:
            >>> import tempfile, torch
            >>> from torch_trackckpt import Checkpoint, CheckpointOptions
            >>> checkpoint = Checkpoint(model=torch.nn.Linear(2, 1))
            >>> path = checkpoint.save(tempfile.mkdtemp() + "/ckpt", CheckpointOptions(enable_async=True))
            >>> checkpoint.release_memory()
        """
        with self._own.turn(is_save=False):
            self._own.staging.release()
            self._own.devices.release()

    def _plan(self, rows: Rows, options: CheckpointOptions, save: Save) -> SavePlan:
        self._own.devices.pool.bound(options.page_locked_bytes)
        sharding, num_threads = options.experimental_sharding_callback, options.thread_count
        if rows.parts or save.has_one_file:
            plan = plan_of(rows.keys, rows.values, rows.parts, devices=self._own.devices)
        else:
            plan = make_plan(rows.keys, rows.values, sharding, num_threads, self._own.devices)
        return dataclasses.replace(plan, wholes=Wholes(rows.wholes)) if rows.wholes else plan

    def sync(self) -> None:
        """Waits until an asynchronous save is complete. TensorFlow's ``Checkpoint.sync``.

        The next `save`, `write`, `restore` or `read` of this checkpoint waits by itself; another `Checkpoint`, or
        another process, needs this first. Without a pending save it returns at once.

        Raises:
            Exception: whatever the save failed with; once.
        """
        self._own.wait_for_pending()

    @property
    def io_metrics(self) -> CheckpointMetrics:
        """How often, how long and how much this checkpoint has saved and restored."""
        return self._own.metrics

    def _write(
        self,
        path: str,
        options: CheckpointOptions,
        *,
        updates_state: bool,
        walk: Callable[[CheckpointOptions], Snapshot] | None = None,
    ) -> None:
        metrics = self._own.metrics
        write = metrics.begin(path)
        save = self._own.begin_save(path, options)
        with save.telling():
            snapshot = (walk or self._walk)(options)
            plan = self._plan(save.share(snapshot), options, save)
            complete = functools.partial(
                _complete,
                save=save,
                write=write,
                options=options,
                publish=_Publish(write.path, options, save, updates_state=updates_state),
                devices=self._own.devices,
            )
            if not save.is_async:
                self._own.devices.follow(plan.devices)
                metrics.wrote(complete(plan), in_background=False)
                return
            owners = snapshot.slot_owners if options.async_copy == "overlapped" else ()
            later = rows_for_later(plan, owners)
            plan = self._own.staging.snapshot(plan, options.thread_count, later, options.device_snapshot_bytes)
            pace = Pace()
            pending = PendingSave(
                path,
                lambda: metrics.wrote(complete(plan, pace=pace), in_background=True),
                pace,
                plan.late,
                needs_executors=save.storage.is_remote,
            )
            try:
                if plan.late is not None:
                    plan.late.precede_steps_of(owners)
                self._own.pending = pending
                pending.start()
            except BaseException:
                # An interrupt may come at any place. What has begun by then goes on, and is waited for.
                if pending.abandon():
                    self._own.pending = None
                raise

    def _walk(self, options: CheckpointOptions) -> Snapshot:
        live = capture(self._graph_root(), self._attached())
        snapshot = collect(live, self._own.graph_record)
        # Of a graph that stays as it is, keys and record are made once.
        self._own.graph_record = snapshot.graph
        self._warn_of_unreachable(snapshot)
        self._warn_of_lost(live, options)
        return snapshot

    # Restoring.

    def restore(self, save_path: str | os.PathLike[str] | None, options: CheckpointOptions | None = None) -> LoadStatus:
        """Restores what `save` wrote, the save counter included. Live tensors change in place.

        What the checkpoint has values for and the program does not have yet is restored when it appears: attributes of
        this checkpoint and of every `AutoTrackable` below it, elements of their lists and dicts, parameters, buffers
        and submodules of modules, parameters of optimizers. Of several restores that wait for one object, the latest
        that has values for it counts. Tensors on the meta device wait for ``status.run_restore_ops()``.

        A checkpoint without an object graph, such as every one of TensorFlow 1, is restored by names: a variable takes
        the value under its own name, which is the one in its module's ``state_dict`` unless
        ``CheckpointOptions.name_map`` says otherwise. Names are all that tells whether a value belongs there.

        Args:
            save_path: what `save` or `latest_checkpoint` returned, or a SavedModel directory; None does nothing and
                says so in the status.
            options: see `CheckpointOptions`.

        Returns:
            The status, whose assertions tell whether everything was restored.

        Raises:
            CheckpointNotFoundError: there is no checkpoint at the path.
            MismatchError: shapes, dtypes or parameter groups do not fit; nothing has changed.
            RestoreError: an object raised when it took its state, and the text names what had changed before; or a
                module does not take what an older version of it has saved, and nothing has changed.
            DataLossError: the files are damaged; see `CheckpointOptions.verify` for when live values may have changed.
            UnsupportedFormatError: the files are of a version that is not read.
        """
        self.sync()
        if save_path is None:
            self.save_counter  # noqa: B018  creates it
            return InitializationOnlyStatus(self._discover)
        path = os.fsdecode(save_path)
        try:
            reader = CheckpointReader(saved_model_prefix(path) or path)
        except CheckpointNotFoundError as error:
            raise CheckpointNotFoundError(
                f"Error when restoring from checkpoint or SavedModel at {path}: {error}"
            ) from error
        # Creates the counter, so that it is restored; a checkpoint of another program need not have one.
        return self._read(reader, options or CheckpointOptions(), optional=self.save_counter)

    def read(self, save_path: str | os.PathLike[str], options: CheckpointOptions | None = None) -> LoadStatus:
        """Restores what `write` wrote; as `restore`, but without a save counter.

        Raises:
            As `restore`.
        """
        self.sync()
        return self._read(CheckpointReader(save_path), options or CheckpointOptions())

    def _read(
        self, reader: CheckpointReader, options: CheckpointOptions, optional: torch.Tensor | None = None
    ) -> LoadStatus:
        self._own.devices.pool.bound(options.page_locked_bytes)
        graph = read_object_graph(reader)
        if graph is not None:
            restoration = Restoration(graph, reader, options, self, self._own.devices)
            with self._own.metrics.reading(reader.file_prefix) as transfer:
                transfer.num_bytes = restoration.begin(self)
            return CheckpointLoadStatus(restoration, self._discover)
        _logger.warning(
            "%r has no object graph, so values are matched by name alone, which breaks when something is renamed. Save "
            "once with Checkpoint to have them matched by object.",
            reader.file_prefix,
        )
        by_names = NameBasedRestoration(reader, options, self, self._own.devices)
        with self._own.metrics.reading(reader.file_prefix) as transfer:
            transfer.num_bytes = by_names.run()
        return NameBasedLoadStatus(by_names, self, reader.file_prefix, optional)

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        """Its children are all that it holds, as TensorFlow's; numbers go to an `AutoTrackable`."""
        return {}

    def _loses_attributes(self) -> bool:
        return type(self)._serialize_to_tensors is Checkpoint._serialize_to_tensors

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__["_own"] = copy.copy(self._own)
        self._keep_root()

    # The graph.

    @property
    def save_counter(self) -> torch.Tensor:
        """How many times `save` was called: an int64 scalar, made on first use, itself saved and restored."""
        counter = self._counter_of_root()
        if counter is not None:
            return counter
        if _SAVE_COUNTER not in self.__dict__:
            with torch.inference_mode(False):
                counter = torch.zeros((), dtype=torch.int64, device="cpu")
            self._waiting().attach(_SAVE_COUNTER, counter)
            self.__dict__[_SAVE_COUNTER] = counter
        own: torch.Tensor = self.__dict__[_SAVE_COUNTER]
        return own

    def _counter_of_root(self) -> torch.Tensor | None:
        root = adapt(self._own.root)
        counter = None if root is None else root._lookup_dependency(_SAVE_COUNTER)
        return counter if isinstance(counter, torch.Tensor) else None

    def _graph_root(self) -> object:
        root = self._own.root
        if isinstance(root, weakref.ref) and root() is None:
            raise ReferenceError("The root of this checkpoint was given as a weak reference, and is gone.")
        return self if root is None else root

    def _attached(self) -> Mapping[str, object]:
        """With a root of its own, the checkpoint's children are attached to the root's."""
        if self._own.root is None:
            return {}
        children = self._trackable_children()
        for name, child in children.items():
            self._check_free(name, adapt(child))
        return children

    def _discover(self) -> LiveGraph:
        return discover(self._graph_root(), self._attached())

    def _warn_of_unreachable(self, snapshot: Snapshot) -> None:
        if snapshot.unreachable and not self._own.has_warned_of_unreachable:
            self._own.has_warned_of_unreachable = True
            _logger.warning(
                "The state of %d optimizer parameters is not saved, because the checkpoint does not reach the "
                "parameters themselves; track their module as well. The first: %s",
                len(snapshot.unreachable),
                "; ".join(snapshot.unreachable[:5]),
            )

    def _warn_of_lost(self, live: LiveGraph, options: CheckpointOptions) -> None:
        """At the first save that is asked for it."""
        if self._own.has_looked_for_lost or not options.warn_of_lost_values:
            return
        self._own.has_looked_for_lost = True
        if lost := lost_values(live, self):
            _logger.warning(
                "%d plain numbers or tensors of tracked objects are not saved, and lost if they are state: %s%s. "
                "Have a module register a tensor by register_buffer and return numbers from get_extra_state, and keep "
                "what belongs to the training in an AutoTrackable. If nothing is missing, "
                "CheckpointOptions(warn_of_lost_values=False) says so.",
                len(lost),
                "; ".join(lost[:5]),
                "; ..." if len(lost) > 5 else "",
            )
        if metrics := unsaved_metrics(live):
            _logger.warning(
                "The states of %d metrics are not saved, because none of them is persistent: call "
                "metric.persistent(True) on %s%s. CheckpointOptions(warn_of_lost_values=False) silences this.",
                len(metrics),
                ", ".join(metrics[:5]),
                ", ..." if len(metrics) > 5 else "",
            )


class _Publish:
    """What a checkpoint does when there is a new one.

    Args:
        path: as the caller has given it.
        options: whose callbacks to call.
        save: what has made it.
        updates_state: whether it becomes the only one that the state file names.
    """

    def __init__(self, path: str, options: CheckpointOptions, save: Save, *, updates_state: bool) -> None:
        self._path = path
        self._options = options
        self._place, self._storage = save.place, save.storage
        self._updates_state = updates_state

    def first(self) -> Any:
        known = self._options.run_write_callbacks(self._path)
        if self._updates_state:
            state = CheckpointState(self._place, (self._place,))
            write_checkpoint_state(directory(self._place), state, self._storage)
        return known

    def after(self, known: Any) -> None:
        self._options.run_write_callbacks(self._path, known)


def numbering(prefix: str, step: int | None = None) -> str:
    """What ranks do together when they number a save; where they know of steps, it has to be the same one."""
    return f"Numbering a save to {anchored(prefix)!r}" + ("" if step is None else f" at step {step}")


def _complete(
    plan: SavePlan,
    *,
    save: Save,
    write: Transfer,
    options: CheckpointOptions,
    publish: Publish,
    devices: Devices,
    pace: Pace | None = None,
) -> Transfer:
    """Makes the files of a save, and then what names them; returns the write, with its size."""

    def write_files(names: WrittenFiles | None) -> WrittenFiles | UploadedFiles:
        files = write_shards(
            plan,
            save.place,
            save.storage,
            durable=options.durable,
            num_threads=options.thread_count,
            progress=save.watched(options.progress),
            pace=pace,
            devices=devices,
            files=names,
        )
        write.num_bytes = files.num_bytes
        return files

    with save.telling():
        if plan.late is not None:
            plan.late.run()
        save.complete(write_files, publish)
    return write
