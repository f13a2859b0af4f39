"""Values that are copied after the call has returned, while the program goes forward and backward.

They are what only the step of an optimizer changes. Whoever is about to change them, the step, first has the rest of
them copied (`before_step`, called by a hook of the optimizer). What changes them in another way is noticed by the
versions of the tensors. torch counts a version when it has written, so a copy that was torn by an operation under way
is only known to be whole when that operation is over: in the thread that steps, where what came before the step is
over; or, if no step comes, when all files are written.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from torch_trackckpt import _native
from torch_trackckpt.devices.link import Ticket
from torch_trackckpt.errors import ValueChangedError
from torch_trackckpt.trackable import SlotOwner

if TYPE_CHECKING:
    from torch_trackckpt.save.plan import SavePlan

__all__ = ["LateCopy", "rows_for_later"]

_LEAST_BYTES = 256 << 10
"""Smaller tensors cost less to copy than to watch."""


def rows_for_later(plan: SavePlan, owners: Iterable[SlotOwner]) -> list[int]:
    """The rows of a plan that change only in steps of some optimizers, and that are large enough to matter.

    Not among them is what shares memory with a value that may change before: a buffer, say.
    """
    stepped = {id(tensor) for owner in owners for tensor in owner._stepped_tensors()}
    unversioned = set(plan.table.unversioned()) if stepped else set()
    is_known = _is_known(plan)
    large = np.flatnonzero(is_known & (plan.sizes >= _LEAST_BYTES)) if stepped else np.array([], dtype=np.int64)
    rows = [row for row in large.tolist() if id(plan.table.value(row)) in stepped and row not in unversioned]
    return _without_neighbours(plan, rows) if rows else []


def _without_neighbours(plan: SavePlan, rows: list[int]) -> list[int]:
    """Those of the rows whose memory is not that of any other row as well."""
    begins = np.array(plan.table.addresses(), dtype=np.int64)
    ends = begins + np.where(_is_known(plan), plan.sizes, 0)
    with_gaps = {row: item.value for row, item in plan.others.items()}
    with_gaps |= {row: plan.table.value(row) for of_device in plan.devices for row in of_device.strides}
    for row, value in with_gaps.items():
        if isinstance(value, torch.Tensor):
            # It may be anywhere in what it is a view of.
            storage = value.untyped_storage()
            begins[row], ends[row] = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    others = np.setdiff1d(np.flatnonzero(ends > begins), rows, assume_unique=True)
    others = others[np.argsort(begins[others], kind="stable")]
    # The furthest end of all others that begin before a place.
    reached = np.concatenate([[0], np.maximum.accumulate(ends[others])])
    number_before = np.searchsorted(begins[others], ends[rows], side="left")
    is_alone = reached[number_before] <= begins[rows]
    return [row for row, alone in zip(rows, is_alone.tolist(), strict=True) if alone]


def _is_known(plan: SavePlan) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """For each row whether it is known where its bytes are: in plain memory, or on a device, without gaps."""
    is_known = plan.is_plain.copy()
    for of_device in plan.devices:
        is_known[of_device.rows] = True
        is_known[list(of_device.strides)] = False
    return is_known


class LateCopy:
    """Copies of live tensors that are still to be made.

    It keeps the memory of the tensors alive until it is over. After a fork it is the parent's.

    Args:
        keys: what the tensors are stored under.
        table: aliases of them.
        copy: what copies them.
        num_threads: how many threads copy when somebody waits for it.
        tickets: copies from devices, which have begun.
        held: what these copies need, for as long as they go on: a step may give its tensors other memory.
    """

    def __init__(
        self,
        keys: list[str],
        table: _native.TensorTable,
        copy: _native.TensorCopy,
        num_threads: int,
        tickets: Sequence[Ticket] = (),
        held: Sequence[object] = (),
    ) -> None:
        self._keys = keys
        self._table: _native.TensorTable | None = table
        self._copy: _native.TensorCopy | None = copy
        self._num_threads = num_threads
        self._tickets = tickets
        self._held = held
        self._changed: list[int] = []
        self._is_given_up = False
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._unhook: list[Callable[[], None]] = []

    def precede_steps_of(self, owners: Iterable[SlotOwner]) -> None:
        """Has the next step of each of them wait until there are copies of all values; `unhook` undoes it."""
        for owner in owners:
            if owner._stepped_tensors():
                self._unhook.append(owner._before_next_step(self.before_step))

    def unhook(self) -> None:
        """Has no step wait any more."""
        unhook, self._unhook = self._unhook, []
        for undo in unhook:
            undo()

    def run(self) -> None:
        """Makes the copies, by all threads: a training on the processors loses least when they take it at once.

        Raises:
            ValueChangedError: a value has changed already.
            RuntimeError: a device has failed.
        """
        self.hasten()
        for ticket in self._tickets:
            ticket.wait()
        self._held = ()
        self.check(is_last=False)

    def hasten(self) -> None:
        """Makes what is left of the copies, because somebody waits for them."""
        if os.getpid() == self._process and (copy := self._copy_of_what_is_there()) is not None:
            copy.run(self._num_threads)

    def before_step(self) -> None:
        """Returns when the values may change; those on devices by what their devices are asked from now on."""
        # A forked child has no thread that copies.
        if os.getpid() == self._process:
            for ticket in self._tickets:
                ticket.hold_back()
            self.hasten()
            self._look(is_last=True)

    def check(self, *, is_last: bool) -> None:
        """Checks that no value changed before it may.

        Args:
            is_last: all operations that may have been under way while copies were made are over. From then on, values
                may change.

        Raises:
            ValueChangedError: one has.
        """
        if self._is_given_up:
            raise RuntimeError("The save was given up before its values were copied. No checkpoint has been made.")
        self._look(is_last)
        if self._changed:
            raise ValueChangedError(
                f"{len(self._changed)} values changed while they were being saved, not by the step of a tracked "
                f"optimizer: {', '.join(self._keys[row] for row in self._changed[:5])}"
                f"{', ...' if len(self._changed) > 5 else ''}. No checkpoint has been made. Change nothing but buffers "
                'between a save with async_copy="overlapped" and the next step, or use async_copy="first".'
            )

    def give_up(self) -> None:
        """Lets go of the values; a step waits for nothing."""
        # A forked child may have the lock, but nobody who gives it back.
        with self._lock if os.getpid() == self._process else contextlib.nullcontext():
            # What is settled has been copied, and is not given up any more.
            self._is_given_up |= self._table is not None
            self._table = self._copy = None

    def _copy_of_what_is_there(self) -> _native.TensorCopy | None:
        """The copy, unless a tensor has got other memory: an alias keeps a storage alive, but `share_memory_()` and
        `resize_()` put other memory into it, and what it had is free."""
        with self._lock:
            if self._table is not None and (moved := self._table.moved()):
                self._changed = moved
                self._table = self._copy = None
            return self._copy

    def _look(self, is_last: bool) -> None:
        with self._lock:
            if self._table is None:
                return
            self._changed = self._table.changed()
            if is_last or self._changed:
                self._table = self._copy = None
