"""Reads matched values into live objects: everything is checked first, then assigned.

collect   what goes where, in columns; shapes and dtypes that do not fit are all reported in one error
verify    structure, offsets and file lengths; and all checksums, where asked for or cheap
read      values that objects decode themselves; they are decoded before anything changes
assign    python states, then tensors in place: file bytes go straight into contiguous CPU memory, to devices by way
          of page-locked memory (`land`), and through a bounded number of staging tensors to every other destination;
          of a tensor that lies in several processes, only the boxes that this one has (`boxes`);
          what modules have computed comes last
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from torch_trackckpt import _native
from torch_trackckpt.adapters.by_rank import ByRank
from torch_trackckpt.adapters.late_children import SLOTS
from torch_trackckpt.bundle.dtypes import data_type_of_torch
from torch_trackckpt.bundle.memory import PLAIN_TYPES, memory_obstacle, takes_file_bytes
from torch_trackckpt.bundle.reader import CheckpointReader, StoredTensor, torch_tensor_like_stored
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.devices.access import Devices
from torch_trackckpt.devices.pieces import sharing_memory
from torch_trackckpt.distributed.dtensor import is_dtensor
from torch_trackckpt.errors import (
    DataLossError,
    MismatchError,
    RestoreError,
    TensorNotFoundError,
    TrackckptError,
    UnsupportedFormatError,
    UnsupportedValueError,
)
from torch_trackckpt.options import CheckpointOptions, Progress
from torch_trackckpt.restore.boxes import BoxRequest, RowsWithBoxes, copy_whole, obstacle_of_parts, read_boxes
from torch_trackckpt.restore.by_rank import read_value
from torch_trackckpt.restore.land import read_landing
from torch_trackckpt.restore.match import BoundValues, Match
from torch_trackckpt.trackable import Prepared
from torch_trackckpt.update_uid import set_update_uid, set_update_uids

__all__ = ["PlainValues", "assign_values"]

VERIFIED_BEFORE_BYTES = 64 << 20
"""A restore of at most this size checks every checksum before it assigns: reading twice costs little then."""

STAGING_BYTES = 32 << 20
"""How much is read at once for destinations that are not contiguous CPU memory (one tensor may be larger)."""

PROGRESS_BYTES = 64 << 20
"""How often the caller learns of the progress, if asked for."""

_COMPUTED = "none: its module has computed the value from what an older version saved"
"""Stands for the key of such a value in messages."""


@dataclasses.dataclass(frozen=True)
class PlainValues:
    """Stored values and the tensors that they go to, in columns, because there may be very many."""

    keys: list[str]
    tensors: list[torch.Tensor]
    readable: Callable[[int], str]
    """What messages call a row."""


@dataclasses.dataclass(frozen=True)
class _InPlace:
    """One stored value and the tensor that it goes to."""

    stored: StoredTensor
    readable: str
    tensor: torch.Tensor
    waits_for_memory: bool = False
    """Whether it is only checked for now."""
    computed: torch.Tensor | None = None
    """The value, where it is not the stored one but what a module has computed."""
    part: TensorSlice | None = None
    """Which part of the stored tensor it is, of a tensor that lies in several processes."""
    is_clear: bool = False
    """Whether nothing but its shape or type can be in the way, as was found before."""


@dataclasses.dataclass(frozen=True)
class _HandedOver:
    bound: BoundValues
    stored: dict[str, StoredTensor]


def assign_values(match: Match, reader: CheckpointReader, options: CheckpointOptions, devices: Devices) -> int:
    """Gives every matched live object its stored values.

    Args:
        match: which object takes what.
        reader: the checkpoint.
        options: those of the restore.
        devices: the links to devices.

    Returns:
        How many bytes of values were read.

    Raises:
        MismatchError: shapes, dtypes or parameter groups do not fit; nothing has changed.
        DataLossError: damage. Nothing has changed, unless the text names what had been overwritten.
        TensorNotFoundError: the object graph names a value that the checkpoint does not hold.
    """
    values, computed, handed_over = _collect(match, reader)
    destinations = _Destinations(values, reader, options.thread_count, devices)
    _check_fit([*destinations.to_compare(), *computed, *_unmade(match, reader)], reader)
    keys = [stored.key for item in handed_over for stored in item.stored.values()]
    if options.verify == "before" or destinations.nbytes <= VERIFIED_BEFORE_BYTES:
        # What other processes have is read for its checksum only where that was asked for.
        destinations.verify(keys, with_parts=options.verify == "before")
    else:
        destinations.check()
        reader.check(keys)
    prepared = _prepare(handed_over, match, reader, options)
    changed: list[str] = []
    for node_id, decoded in prepared:
        _assign_one(match.graph.readable(node_id), decoded, changed, reader)
        if decoded.unused:
            match.unused_attributes.setdefault(node_id, []).extend(decoded.unused)
        if decoded.missing:
            match.missing_attributes[node_id] = list(decoded.missing)
        if decoded.rest is not None:
            match.left_over[node_id] = decoded.rest
    if prepared:
        destinations.look_again()
    for item in (*destinations.single, *computed):
        if is_lazy(item.tensor):
            item.tensor.materialize(item.stored.shape)
    num_decoded = sum(stored.nbytes for item in handed_over for stored in item.stored.values())
    total = num_decoded + destinations.nbytes
    destinations.read(changed, _Progress(options.progress, num_decoded, total))
    for item in computed:
        assert item.computed is not None
        copy_whole(item.tensor, item.computed)
    for module, name, value in match.attributes:
        vars(module)[name] = value
    for slot_set in match.slots.values():
        slots = {name: tensor for name, (_, _, tensor) in slot_set.slots.items()}
        slot_set.optimizer._assign_slots(slot_set.variable, slots)
    _note(match)
    return total


def _note(match: Match) -> None:
    """Has the objects know by which restore they got their values."""
    if match.tensors is not None:
        set_update_uids(match.tensors, match.uid)
    for trackable in [bound.trackable for bound in match.values.values()] + [match.bound[kept] for kept in match.kept]:
        owner, part = trackable._owner()
        set_update_uid(owner, match.uid, part)
    for slot_set in match.slots.values():
        optimizer, _ = slot_set.optimizer._owner()
        set_update_uid(optimizer, match.uid, (SLOTS, id(slot_set.variable)))


def _collect(match: Match, reader: CheckpointReader) -> tuple[PlainValues, list[_InPlace], list[_HandedOver]]:
    """What goes into tensors as it is stored; what modules have computed; and what objects decode themselves."""
    tensors = match.tensors
    node_ids: list[int] = [] if tensors is None else tensors.nodes()
    values = PlainValues(
        [] if tensors is None else tensors.keys(),
        [] if tensors is None else tensors.tensors(),
        lambda row: match.graph.readable(node_ids[row]),
    )
    computed: list[_InPlace] = []
    handed_over: list[_HandedOver] = []

    def add(node_id: int, key: str, tensor: torch.Tensor) -> None:
        node_ids.append(node_id)
        values.keys.append(key)
        values.tensors.append(tensor)

    for bound in match.values.values():
        destinations = bound.trackable._restore_destinations()
        if bound.computed is not None:
            readable = match.graph.readable(bound.node_id)
            computed += [_computed(bound.computed, readable, tensor) for tensor in destinations.values()]
            continue
        for name, tensor in destinations.items():
            add(bound.node_id, bound.keys[name], tensor)
        rest = {name: key for name, key in bound.keys.items() if name not in destinations}
        if rest:
            readable = match.graph.readable(bound.node_id)
            handed_over.append(_HandedOver(bound, {name: _stored(reader, key, readable) for name, key in rest.items()}))
    for slot_set in match.slots.values():
        for node_id, key, tensor in slot_set.slots.values():
            add(node_id, key, tensor)
    return values, computed, handed_over


def _unmade(match: Match, reader: CheckpointReader) -> list[_InPlace]:
    """What waits for tensors that have no memory; that it will not fit can be known now."""
    found = []
    for unmade in match.unmade:
        readable, value = match.graph.readable(unmade.node_id), match.computed.get(unmade.node_id)
        if value is not None:
            item = _computed(value, readable, unmade.tensor)
        else:
            item = _InPlace(_stored(reader, unmade.key, readable), readable, unmade.tensor)
        found.append(dataclasses.replace(item, waits_for_memory=True))
    return found


def _computed(value: torch.Tensor, readable: str, tensor: torch.Tensor) -> _InPlace:
    """A value that a module has computed, described as if it were stored."""
    try:
        dtype = data_type_of_torch(value.dtype)
    except UnsupportedValueError as error:
        raise MismatchError(f"{readable}: its module has computed a value of {value.dtype} for it.") from error
    stored = StoredTensor(_COMPUTED, dtype, tuple(value.shape), 0)
    return _InPlace(stored, readable, tensor, computed=value)


def _stored(reader: CheckpointReader, key: str, readable: str) -> StoredTensor:
    try:
        return reader.stored(key)
    except TensorNotFoundError as error:
        raise TensorNotFoundError(
            f"The object graph of {reader.file_prefix!r} names a value for {readable} under the key {key}, "
            "but the checkpoint holds no such value."
        ) from error


def _check_fit(items: list[_InPlace], reader: CheckpointReader) -> None:
    conflicts = [conflict for item in items for conflict in _conflicts(item)]
    if conflicts:
        raise MismatchError(
            f"{len(conflicts)} value{'s' if len(conflicts) > 1 else ''} of {reader.file_prefix!r} cannot be restored; "
            "nothing has been assigned:\n  " + "\n  ".join(conflicts)
        )


def _conflicts(item: _InPlace) -> Iterator[str]:
    stored, live = item.stored, item.tensor
    if live.is_nested:
        # Its shape cannot be asked for.
        yield f"{item.readable}: {_obstacle(live)}"
        return
    if not stored.dtype.is_twin or stored.dtype.torch_dtype != live.dtype:
        yield (
            f"{item.readable}: tensor_name = {stored.key}; expected dtype {_name(live.dtype)} does not equal "
            f"original dtype {stored.dtype}"
        )
    if is_lazy(live):
        return
    if stored.shape != tuple(live.shape):
        yield (
            f"{item.readable}: received incompatible tensor with shape {list(stored.shape)} when attempting to "
            f"restore a tensor with shape {list(live.shape)} (key {stored.key})"
        )
    if not (item.waits_for_memory or item.is_clear) and (obstacle := _obstacle(live)):
        yield f"{item.readable}: {obstacle}"


def _obstacle(tensor: torch.Tensor) -> str | None:
    """Why a live tensor cannot take values, if it cannot."""
    if is_dtensor(tensor):
        return obstacle_of_parts(tensor)
    if obstacle := memory_obstacle(tensor):
        return obstacle
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        return "the tensor is expanded: several of its elements share one place in memory; clone() it first."
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _prepare(
    items: list[_HandedOver], match: Match, reader: CheckpointReader, options: CheckpointOptions
) -> list[tuple[int, Prepared]]:
    """Reads and decodes what objects take themselves; the results, by node, assign it."""
    values = [
        {
            name: read_value(reader, stored.key, options, of_each=item.bound.trackable._takes_each_rank())
            for name, stored in item.stored.items()
        }
        for item in items
    ]
    prepared: list[tuple[int, Prepared]] = []
    for item, values_of_item in zip(items, values, strict=True):
        ranked = [value for value in values_of_item.values() if isinstance(value, ByRank)]
        if ranked and not item.bound.trackable._takes_all_ranks:
            raise MismatchError(
                f"{match.graph.readable(item.bound.node_id)} cannot be restored from {reader.file_prefix!r}; nothing "
                f"has been assigned: {ranked[0].resplits.mismatch(len(ranked[0].values))}"
            )
    # Backwards, because a state is decoded with the tensors of its children, which follow it.
    for item, values_of_item in reversed(list(zip(items, values, strict=True))):
        values_for_it: Any = values_of_item
        prepare = functools.partial(item.bound.trackable._prepare_restore, values_for_it, match.resolve)
        readable = match.graph.readable(item.bound.node_id)
        prepared.append((item.bound.node_id, _prepare_one(prepare, readable, reader)))
    for rest in match.rest:
        prepare = functools.partial(rest.trackable._prepare_rest, rest.value, match.resolve)
        prepared.append((rest.node_id, _prepare_one(prepare, match.graph.readable(rest.node_id), reader)))
    return prepared[::-1]


def _prepare_one(prepare: Callable[[], Prepared], readable: str, reader: CheckpointReader) -> Prepared:
    try:
        return prepare()
    except (MismatchError, DataLossError, UnsupportedFormatError) as error:
        raise type(error)(
            f"{readable} cannot be restored from {reader.file_prefix!r}; nothing has been assigned: {error}"
        ) from error


def _assign_one(readable: str, decoded: Prepared, changed: list[str], reader: CheckpointReader) -> None:
    """Lets an object take its state; `changed` tells which have, and this one as soon as it may have begun."""
    before = list(changed)
    changed.append(readable)
    try:
        decoded.assign()
    except Exception as error:
        raise RestoreError(
            f"{readable} did not take its state from {reader.file_prefix!r}: {type(error).__name__}: {error}\n"
            "No tensor has been restored. These have: " + (", ".join(before) or "none")
        ) from error


class _Progress:
    """Tells the caller how far a restore is.

    Args:
        tell: what the caller wants called, if anything.
        num_done: how many bytes are done already.
        num_bytes: how many there are.
    """

    def __init__(self, tell: Progress | None, num_done: int, num_bytes: int) -> None:
        self._tell = tell
        self._num_done = num_done
        self._num_bytes = num_bytes
        if num_done == num_bytes:
            self.add(0)

    @property
    def is_wanted(self) -> bool:
        return self._tell is not None

    def add(self, num_bytes: int) -> None:
        """So many more have been read."""
        self._num_done += num_bytes
        if self._tell is not None:
            self._tell(self._num_done, self._num_bytes)


class _Destinations:
    """Live tensors and what is stored for them; it knows which of them have changed when something fails.

    Ordinary tensors in contiguous CPU memory and on devices, which are most, go through one native plan. All others,
    and all where the file is of the older format, are single items here.

    Args:
        values: what goes where.
        reader: the checkpoint.
        num_threads: how many read at once.
        devices: the links to devices.
    """

    def __init__(self, values: PlainValues, reader: CheckpointReader, num_threads: int, devices: Devices) -> None:
        self._values = values
        self._reader = reader
        self._num_threads = num_threads
        self._devices = devices
        self._look()

    def _look(self) -> None:
        self._rows = RowsWithBoxes(self._values.keys, self._values.tensors)
        self._table = _native.TensorTable(self._rows.tensors, PLAIN_TYPES, with_devices=True)
        self._on_devices = self._devices.rows(self._table)
        if shared := [row for of_device in self._on_devices for row in sharing_memory(of_device)]:
            self._on_devices = self._devices.rows(self._table, leave_out=shared)
        self._devices.check(self._on_devices)
        land = sorted(row for of_device in self._on_devices for row in of_device.rows.tolist())
        self._plan = self._reader._plan(self._rows.keys, self._table, land, self._rows.boxes)
        if self._plan is None:
            rows: Iterable[int] = range(len(self._table))
        else:
            without_link = set(self._table.on_devices()[0]).difference(land)
            rows = sorted({*self._table.others(), *without_link, *self._plan.left_out()})
        self._single = {row: self._item(row) for row in rows if row not in self._rows.divided}

    def _item(self, row: int) -> _InPlace:
        readable, tensor, part = self._readable(row), self._rows.tensors[row], self._rows.parts.get(row)
        stored = _stored(self._reader, self._rows.keys[row], readable)
        if part is not None:
            stored = dataclasses.replace(stored, shape=part.shape, nbytes=tensor.nbytes)
        return _InPlace(stored, readable, tensor, part=part, is_clear=self._rows.is_clear(row))

    def _readable(self, row: int) -> str:
        return self._values.readable(self._rows.owner(row))

    @property
    def single(self) -> list[_InPlace]:
        """What is not in the plan."""
        return list(self._single.values())

    @property
    def nbytes(self) -> int:
        """Of all values."""
        return sum(item.stored.nbytes for item in self.single) + (0 if self._plan is None else self._plan.nbytes)

    def to_compare(self) -> list[_InPlace]:
        """What may not fit: the plan says so, or does not know."""
        misfits = [] if self._plan is None else self._plan.misfits()
        rows = {self._rows.owner(row) for row in (*self._single, *misfits)}.union(self._rows.divided)
        return [self._single.get(row) or self._item(row) for row in sorted(rows)]

    def look_again(self) -> None:
        """Objects that took their state may have given tensors other memory, or another shape."""
        if not self._moved():
            return
        self._look()
        try:
            _check_fit(self.to_compare(), self._reader)
        except MismatchError as error:
            raise RestoreError(f"Objects have changed their tensors while they took their state: {error}") from error

    def _moved(self) -> list[int]:
        return [*self._table.moved(), *self._rows.moved()]

    def check(self) -> None:
        """Checks without reading that the values are there."""
        if self._plan is not None:
            with self._reader._telling_of_replacement():
                self._plan.check()
        self._reader.check([item.stored.key for item in self.single])

    def verify(self, more_keys: list[str], *, with_parts: bool) -> None:
        """Checks all checksums, and those of more values; of values of which only a part is needed, if asked for."""
        whole = [item for item in self.single if with_parts or item.part is None or item.part.is_whole]
        others = list(dict.fromkeys([*(item.stored.key for item in whole), *more_keys]))
        try:
            if self._plan is not None:
                with self._reader._telling_of_replacement():
                    self._plan.verify(num_threads=self._num_threads, with_parts=with_parts)
        except TrackckptError:
            # It knows the first fault only. Here all of them are found.
            self._reader.verify([*self._values.keys, *more_keys])
            raise
        self._reader.verify(others)

    def read(self, changed: list[str], progress: _Progress) -> None:
        """Reads everything.

        Args:
            changed: what to call the objects that have been changed already.
            progress: learns of each batch.
        """
        read_singly: list[str] = []
        try:
            if self._plan is not None:
                self._read_planned(self._plan, progress)
            whole = [item for item in self.single if item.part is None]
            direct = [item for item in whole if takes_file_bytes(item.tensor)]
            for batch in _batches(direct, PROGRESS_BYTES) if progress.is_wanted else [direct]:
                self._read_direct(batch, read_singly)
                progress.add(sum(item.stored.nbytes for item in batch))
            for batch in _batches([item for item in whole if not takes_file_bytes(item.tensor)], STAGING_BYTES):
                self._read_staged(batch, read_singly)
                progress.add(sum(item.stored.nbytes for item in batch))
            self._read_boxes(read_singly, progress)
            if self._rows.parts:
                self._reader._check_not_replaced()
        except OSError as error:
            planned = [] if self._plan is None else [self._readable(row) for row in self._plan.touched()]
            overwritten = (*changed, *dict.fromkeys([*planned, *read_singly]))
            if not overwritten:
                raise
            loss = DataLossError(
                f"{error}\nThese had been overwritten before the damage was found; restore another checkpoint, or use "
                "CheckpointOptions(verify='before') to check everything first:\n  " + "\n  ".join(overwritten)
            )
            loss.overwritten = overwritten
            raise loss from error

    def _read_planned(self, plan: _native.RowPlan, progress: _Progress) -> None:
        """Reads ordinary tensors. Torch learns of it before and after, so that who copies them meanwhile notices,
        whenever that began."""
        left_out = {*self._single, *self._table.unversioned()}
        rows = range(len(self._table))
        written = self._rows.tensors if not left_out else [self._rows.tensors[i] for i in rows if i not in left_out]
        torch.autograd.graph.increment_version(written)
        max_bytes = PROGRESS_BYTES if progress.is_wanted else None

        def tell(num_bytes: int) -> None:
            progress.add(num_bytes)
            self._check_not_moved(progress)

        try:
            if self._on_devices:
                read_landing(functools.partial(self._read_landing, plan), self._on_devices, self._devices, tell)
            while num_bytes := self._read_some(plan, max_bytes):
                tell(num_bytes)
        finally:
            torch.autograd.graph.increment_version(written)

    def _check_not_moved(self, progress: _Progress) -> None:
        """Who is told of the progress may have given tensors other memory, and the plan knows where it was."""
        if progress.is_wanted and (moved := self._moved()):
            raise RestoreError(
                f"{self._readable(moved[0])} was given other memory, or another shape, while it was being "
                "restored. What is told of the progress must not change the program."
            )

    def _read_some(self, plan: _native.RowPlan, max_bytes: int | None) -> int:
        with self._reader._telling_of_replacement():
            return plan.read(num_threads=self._num_threads, max_bytes=max_bytes)

    def _read_landing(
        self, plan: _native.RowPlan, address: int, size: int
    ) -> tuple[int, list[int], list[int], list[int], list[int]]:
        with self._reader._telling_of_replacement():
            return plan.read_landing(num_threads=self._num_threads, address=address, size=size)

    def _read_direct(self, items: list[_InPlace], changed: list[str]) -> None:
        # Autograd learns of the change, as it would from copy_().
        tracked = [item.tensor for item in items if not item.tensor.is_inference()]
        torch.autograd.graph.increment_version(tracked)
        touched: Sequence[int] = range(len(items))
        try:
            self._reader._read_into([(item.stored.key, item.tensor) for item in items], self._num_threads)
        except OSError as error:
            touched = getattr(error, "touched", ())
            raise
        finally:
            changed += [items[i].readable for i in touched]
            torch.autograd.graph.increment_version(tracked)

    def _read_boxes(self, changed: list[str], progress: _Progress) -> None:
        """Reads those boxes that are not in the plan."""
        rows = {row: item for row, item in self._single.items() if item.part is not None}
        if not rows:
            return
        requests = [BoxRequest(item.stored.key, item.part, item.tensor) for item in rows.values() if item.part]
        owners = [self._rows.tensors[owner] for owner in sorted({self._rows.owner(row) for row in rows})]
        tracked = [tensor for tensor in owners if not tensor.is_inference()]
        torch.autograd.graph.increment_version(tracked)
        try:
            items = list(rows.values())
            for read in read_boxes(requests, self._reader, self._num_threads, STAGING_BYTES):
                changed += [items[index].readable for index, _ in read]
                progress.add(sum(nbytes for _, nbytes in read))
        finally:
            torch.autograd.graph.increment_version(tracked)

    def _read_staged(self, items: list[_InPlace], changed: list[str]) -> None:
        staged = [torch_tensor_like_stored(item.stored) for item in items]
        requests = [(item.stored.key, tensor) for item, tensor in zip(items, staged, strict=True)]
        self._reader._read_into(requests, self._num_threads)
        for item, tensor in zip(items, staged, strict=True):
            _copy(item.tensor, tensor)
            changed.append(item.readable)


def _copy(tensor: torch.Tensor, value: torch.Tensor) -> None:
    with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
        tensor.copy_(value)


def _batches(items: list[_InPlace], limit: int) -> Iterator[list[_InPlace]]:
    batch: list[_InPlace] = []
    nbytes = 0
    for item in items:
        if batch and nbytes + item.stored.nbytes > limit:
            yield batch
            batch, nbytes = [], 0
        batch.append(item)
        nbytes += item.stored.nbytes
    if batch:
        yield batch
