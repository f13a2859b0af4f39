"""Saves and restores trackable objects. The file to read first: `_write` and `_read` show the stages in order."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from torch_trackckpt.adapters import adapt, is_trackable
from torch_trackckpt.bundle.file_names import saved_model_prefix
from torch_trackckpt.bundle.reader import CheckpointReader
from torch_trackckpt.errors import CheckpointNotFoundError
from torch_trackckpt.graph.messages import read_object_graph
from torch_trackckpt.graph.object_graph import ObjectGraph
from torch_trackckpt.graph.walk import LiveGraph, Snapshot, discover, walk
from torch_trackckpt.options import CheckpointOptions
from torch_trackckpt.restore.assign import assign_values
from torch_trackckpt.restore.deferred import DeferredRestore, DeferredRestoreByNames
from torch_trackckpt.restore.match import match
from torch_trackckpt.restore.status import (
    CheckpointLoadStatus,
    InitializationOnlyStatus,
    LoadStatus,
    NameBasedLoadStatus,
)
from torch_trackckpt.save.commit import commit, recover
from torch_trackckpt.save.plan import make_plan
from torch_trackckpt.save.staging import stage
from torch_trackckpt.save.write import write_shards
from torch_trackckpt.state_file import CheckpointState, write_checkpoint_state
from torch_trackckpt.storage.local import LocalStorage
from torch_trackckpt.trackable import AutoTrackable, Trackable

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
        self._own = _Own(root)
        if root is not None:
            if not is_trackable(root):
                raise ValueError(f"Checkpoint: root is a {type(root).__name__}, which is not trackable.")
            kwargs["root"] = root
        for name, value in sorted(kwargs.items()):
            self._check_argument(name, value)
            setattr(self, name, value)

    def _check_argument(self, name: str, value: object) -> None:
        own = getattr(type(self), name, None)
        if callable(own) or isinstance(own, property) or name in vars(self):
            raise ValueError(f"Checkpoint: the name {name} is taken by the checkpoint itself; choose another.")
        trackable = adapt(value)
        if trackable is None:
            raise ValueError(
                f"Checkpoint: {name} is a {type(value).__name__}, which is not trackable. Pass a module, optimizer, "
                "tensor, a container of these, an object with state_dict and load_state_dict, or register an adapter."
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

        Args:
            file_prefix: the path that the files begin with; the number follows, as in ``run/ckpt-1``.
            options: see `CheckpointOptions`.

        Returns:
            The path to pass to `restore`.

        Raises:
            UnsupportedValueError: something cannot be saved; the text names it. Nothing was written.
            ValueChangedError: another thread changed a value. Nothing is left of what was written.
            OSError: the system refuses. The previous checkpoints and the state file are as before.
        """
        options = options or CheckpointOptions()
        with self._own.turn():
            path = f"{os.fsdecode(file_prefix)}-{self._spend_number()}"
            self._write(path, options)
            options.run_write_callbacks(path)
            write_checkpoint_state(
                os.path.dirname(path), CheckpointState(path, (path,)), LocalStorage(durable=options.durable)
            )
        return path

    def _spend_number(self) -> int:
        """The number of the next save, which begins in the same `_Own.turn`."""
        counter = self.save_counter
        with torch.no_grad():
            counter += 1
        return int(counter)

    def sync(self) -> None:
        """Waits until every save is complete; at once, because each is when its call returns."""

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
            UnsupportedValueError, ValueChangedError, OSError: as `save`.
        """
        options = options or CheckpointOptions()
        path = os.fsdecode(file_prefix)
        with self._own.turn():
            self._write(path, options)
            options.run_write_callbacks(path)
        return path

    def _write(self, prefix: str, options: CheckpointOptions) -> None:
        storage = LocalStorage(durable=options.durable)
        snapshot = walk(self._graph_root(), self._attached())
        self._warn_of_unreachable(snapshot)
        plan = make_plan(snapshot.values, options.experimental_sharding_callback)
        recover(prefix, storage)
        files = write_shards(stage(plan), prefix, storage, durable=options.durable, live=plan.items)
        commit(files, prefix, storage)

    # Restoring.

    def restore(self, save_path: str | os.PathLike[str] | None, options: CheckpointOptions | None = None) -> LoadStatus:
        """Restores what `save` wrote, the save counter included. Live tensors change in place.

        What is set as an attribute of this checkpoint, or of an `AutoTrackable` below it, later than this gets its
        values when it is set, until the next `restore` or `read`.

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
            RestoreError: an object raised when it took its state; the text names what had changed before.
            DataLossError: the files are damaged; see `CheckpointOptions.verify` for when live values may have changed.
            UnsupportedFormatError: the files are of a version that is not read.
        """
        if save_path is None:
            self.save_counter  # noqa: B018  creates it
            return InitializationOnlyStatus()
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
        return self._read(CheckpointReader(save_path), options or CheckpointOptions())

    def _read(
        self, reader: CheckpointReader, options: CheckpointOptions, optional: torch.Tensor | None = None
    ) -> LoadStatus:
        graph = read_object_graph(reader)
        # Tensors that are made on the way, such as new slots, have to be of use outside the caller's inference mode.
        with torch.inference_mode(False):
            if graph is None:
                return self._read_by_names(reader, options, optional)
            return self._read_by_graph(graph, reader, options)

    def _read_by_graph(
        self, graph: ObjectGraph, reader: CheckpointReader, options: CheckpointOptions
    ) -> CheckpointLoadStatus:
        skip_slots = options.experimental_skip_slot_variables
        matched = match(graph, self._graph_root(), self._attached(), reader.stored, skip_slot_variables=skip_slots)
        assign_values(matched, reader, options)
        self._own.wait_by(DeferredRestore(matched, reader, options, self))
        return CheckpointLoadStatus(matched, self._discover, reader.file_prefix, skips_slot_variables=skip_slots)

    def _read_by_names(
        self, reader: CheckpointReader, options: CheckpointOptions, optional: torch.Tensor | None
    ) -> NameBasedLoadStatus:
        _logger.warning(
            "%r has no object graph, so values are matched by name alone, which breaks when something is renamed. Save "
            "once with Checkpoint to have them matched by object.",
            reader.file_prefix,
        )
        deferred = DeferredRestoreByNames(reader, options, self)
        deferred.run()
        self._own.wait_by(deferred)
        return NameBasedLoadStatus(functools.partial(deferred.missing, self, optional), reader.file_prefix)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__["_own"] = copy.copy(self._own)

    # The graph.

    @property
    def save_counter(self) -> torch.Tensor:
        """How many times `save` was called: an int64 scalar, made on first use, itself saved and restored."""
        counter = self._counter_of_root()
        if counter is not None:
            return counter
        if _SAVE_COUNTER not in self.__dict__:
            with torch.inference_mode(False):
                self.__dict__[_SAVE_COUNTER] = torch.zeros((), dtype=torch.int64, device="cpu")
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


class _Own:
    """What a checkpoint keeps for itself, out of sight of its children."""

    def __init__(self, root: object) -> None:
        self.root = root
        self.deferred: DeferredRestore | DeferredRestoreByNames | None = None
        self.has_warned_of_unreachable = False
        self.lock = threading.RLock()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """A time in which no other save of the checkpoint runs."""
        with self.lock:
            yield

    def wait_by(self, deferred: DeferredRestore | DeferredRestoreByNames) -> None:
        """Has a restore wait for objects in place of an earlier one, which the later overrules."""
        if self.deferred is not None:
            self.deferred.cancel()
        self.deferred = deferred

    # A copy has a lock of its own, and nothing waits for its objects.

    def __getstate__(self) -> tuple[object]:
        return (self.root,)

    def __setstate__(self, state: tuple[object]) -> None:
        _Own.__init__(self, *state)
