"""Reads matched values into live objects: everything is checked first, then assigned.

collect   what goes where; shapes and dtypes that do not fit are all reported in one error
verify    structure, offsets and file lengths; and all checksums, where asked for or cheap
read      values that objects decode themselves; they are decoded before anything changes
assign    python states, then tensors in place: file bytes go straight into contiguous CPU memory, and through
          a bounded number of staging tensors to every other destination; what modules have computed comes last
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import torch
from torch.nn.parameter import is_lazy

from torch_trackckpt.adapters.late_children import SLOTS
from torch_trackckpt.bundle.dtypes import data_type_of_torch
from torch_trackckpt.bundle.memory import memory_obstacle, takes_file_bytes
from torch_trackckpt.bundle.reader import CheckpointReader, StoredTensor, torch_tensor_like_stored
from torch_trackckpt.errors import (
    DataLossError,
    MismatchError,
    RestoreError,
    TensorNotFoundError,
    UnsupportedFormatError,
    UnsupportedValueError,
)
from torch_trackckpt.options import CheckpointOptions, Progress
from torch_trackckpt.restore.match import BoundValues, Match
from torch_trackckpt.trackable import Prepared
from torch_trackckpt.update_uid import set_update_uid, set_update_uids

__all__ = ["assign_values"]

VERIFIED_BEFORE_BYTES = 64 << 20
"""A restore of at most this size checks every checksum before it assigns: reading twice costs little then."""

STAGING_BYTES = 32 << 20
"""How much is read at once for destinations that are not contiguous CPU memory (one tensor may be larger)."""

PROGRESS_BYTES = 64 << 20
"""How often the caller learns of the progress, if asked for."""


_COMPUTED = "none: its module has computed the value from what an older version saved"
"""Stands for the key of such a value in messages."""


@dataclasses.dataclass(frozen=True)
class _InPlace:
    stored: StoredTensor
    readable: str
    tensor: torch.Tensor
    waits_for_memory: bool = False
    """Whether it is only checked for now."""
    computed: torch.Tensor | None = None
    """The value, where it is not the stored one but what a module has computed."""


@dataclasses.dataclass(frozen=True)
class _HandedOver:
    bound: BoundValues
    readable: str
    stored: dict[str, StoredTensor]


def assign_values(match: Match, reader: CheckpointReader, options: CheckpointOptions) -> int:
    """Gives every matched live object its stored values.

    Returns:
        How many bytes of values were read.

    Raises:
        MismatchError: shapes, dtypes or parameter groups do not fit; nothing has changed.
        DataLossError: damage. Nothing has changed, unless the text names what had been overwritten.
        TensorNotFoundError: the object graph names a value that the checkpoint does not hold.
    """
    in_place, handed_over = _collect(match, reader)
    _check_fit([*in_place, *_unmade(match, reader)], reader)
    computed = [item for item in in_place if item.computed is not None]
    in_place = [item for item in in_place if item.computed is None]
    keys = [item.stored.key for item in in_place]
    keys += [stored.key for item in handed_over for stored in item.stored.values()]
    nbytes = sum(item.stored.nbytes for item in in_place)
    if options.verify == "before" or nbytes <= VERIFIED_BEFORE_BYTES:
        reader.verify(keys)
    else:
        reader.check(keys)
    prepared = _prepare(handed_over, match, reader)
    changed: list[str] = []
    for node_id, decoded in prepared:
        _assign_one(match.graph.readable(node_id), decoded, changed, reader)
        if decoded.unused:
            match.unused_attributes.setdefault(node_id, []).extend(decoded.unused)
        if decoded.missing:
            match.missing_attributes[node_id] = list(decoded.missing)
        if decoded.rest is not None:
            match.left_over[node_id] = decoded.rest
    for item in (*in_place, *computed):
        if is_lazy(item.tensor):
            item.tensor.materialize(item.stored.shape)
    num_decoded = sum(stored.nbytes for item in handed_over for stored in item.stored.values())
    progress = _Progress(options.progress, num_decoded, num_decoded + nbytes)
    _InPlaceReader(reader, changed, progress).read(in_place)
    for item in computed:
        assert item.computed is not None
        _copy(item.tensor, item.computed)
    for module, name, value in match.attributes:
        vars(module)[name] = value
    for slot_set in match.slots.values():
        slots = {name: tensor for name, (_, _, tensor) in slot_set.slots.items()}
        slot_set.optimizer._assign_slots(slot_set.variable, slots)
    _note(match)
    return num_decoded + nbytes


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


def _collect(match: Match, reader: CheckpointReader) -> tuple[list[_InPlace], list[_HandedOver]]:
    in_place: list[_InPlace] = []
    handed_over: list[_HandedOver] = []
    if match.tensors is not None:
        for node_id, key, tensor in zip(
            match.tensors.nodes(), match.tensors.keys(), match.tensors.tensors(), strict=True
        ):
            readable = match.graph.readable(node_id)
            in_place.append(_InPlace(_stored(reader, key, readable), readable, tensor))
    for bound in match.values.values():
        readable = match.graph.readable(bound.node_id)
        if bound.computed is not None:
            in_place += [
                _computed(bound.computed, readable, tensor)
                for tensor in bound.trackable._restore_destinations().values()
            ]
            continue
        stored = {name: _stored(reader, key, readable) for name, key in bound.keys.items()}
        destinations = bound.trackable._restore_destinations()
        in_place += [_InPlace(stored.pop(name), readable, tensor) for name, tensor in destinations.items()]
        if stored:
            handed_over.append(_HandedOver(bound, readable, stored))
    for slot_set in match.slots.values():
        for node_id, key, tensor in slot_set.slots.values():
            readable = match.graph.readable(node_id)
            in_place.append(_InPlace(_stored(reader, key, readable), readable, tensor))
    return in_place, handed_over


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
    if not item.waits_for_memory and (obstacle := _obstacle(live)):
        yield f"{item.readable}: {obstacle}"


def _obstacle(tensor: torch.Tensor) -> str | None:
    """Why a live tensor cannot take values, if it cannot."""
    if obstacle := memory_obstacle(tensor):
        return obstacle
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        return "the tensor is expanded: several of its elements share one place in memory; clone() it first."
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _prepare(items: list[_HandedOver], match: Match, reader: CheckpointReader) -> list[tuple[int, Prepared]]:
    """Reads and decodes what objects take themselves; the results, by node, assign it."""
    values = [{name: reader.get_tensor(stored.key) for name, stored in item.stored.items()} for item in items]
    prepared: list[tuple[int, Prepared]] = []
    # Backwards, because a state is decoded with the tensors of its children, which follow it.
    for item, values_of_item in reversed(list(zip(items, values, strict=True))):
        prepare = functools.partial(item.bound.trackable._prepare_restore, values_of_item, match.resolve)
        prepared.append((item.bound.node_id, _prepare_one(prepare, item.readable, reader)))
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
            self.add([])

    @property
    def is_wanted(self) -> bool:
        return self._tell is not None

    def add(self, items: list[_InPlace]) -> None:
        """These have been read."""
        self._num_done += sum(item.stored.nbytes for item in items)
        if self._tell is not None:
            self._tell(self._num_done, self._num_bytes)


class _InPlaceReader:
    """Reads values into live tensors, and knows which of them have changed when something fails.

    Args:
        reader: the checkpoint.
        changed: what to call the objects that have been changed already.
        progress: learns of each batch.
    """

    def __init__(self, reader: CheckpointReader, changed: list[str], progress: _Progress) -> None:
        self._reader = reader
        self._changed = changed
        self._progress = progress

    def read(self, items: list[_InPlace]) -> None:
        try:
            direct = [item for item in items if takes_file_bytes(item.tensor)]
            for batch in _batches(direct, PROGRESS_BYTES) if self._progress.is_wanted else [direct]:
                self._read_direct(batch)
                self._progress.add(batch)
            for batch in _batches([item for item in items if not takes_file_bytes(item.tensor)], STAGING_BYTES):
                self._read_staged(batch)
                self._progress.add(batch)
        except OSError as error:
            if not self._changed:
                raise
            loss = DataLossError(
                f"{error}\nThese had been overwritten before the damage was found; restore another checkpoint, or use "
                "CheckpointOptions(verify='before') to check everything first:\n  " + "\n  ".join(self._changed)
            )
            loss.overwritten = tuple(self._changed)
            raise loss from error

    def _read_direct(self, items: list[_InPlace]) -> None:
        num_changed = len(items)
        try:
            self._reader._read_into([(item.stored.key, item.tensor) for item in items])
        except OSError as error:
            num_changed = getattr(error, "completed", 0) + bool(getattr(error, "touched", False))
            raise
        finally:
            self._changed += [item.readable for item in items[:num_changed]]
            # Autograd learns of the change, as it would from copy_().
            tracked = [item.tensor for item in items[:num_changed] if not item.tensor.is_inference()]
            torch.autograd.graph.increment_version(tracked)

    def _read_staged(self, items: list[_InPlace]) -> None:
        staged = [torch_tensor_like_stored(item.stored) for item in items]
        self._reader._read_into([(item.stored.key, tensor) for item, tensor in zip(items, staged, strict=True)])
        for item, tensor in zip(items, staged, strict=True):
            _copy(item.tensor, tensor)
            self._changed.append(item.readable)


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
