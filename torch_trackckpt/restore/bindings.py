"""Which live objects the nodes of a checkpoint were paired with, without keeping any of them alive.

An object is remembered by a weak reference. Where there can be none (lists, parts of an optimizer), or where one would
do harm (tensors, see `update_uid`), it is looked up again, under the name by which it was found.
"""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch

from torch_trackckpt import _native
from torch_trackckpt.adapters import adapt
from torch_trackckpt.trackable import Trackable
from torch_trackckpt.update_uid import update_uid

__all__ = ["Bindings", "Place"]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an object is found: a child of the object that a node was paired with.

    The root itself has no parent and no name; what is attached to it has no parent.
    """

    parent_id: int | None
    name: str | None


@dataclasses.dataclass(frozen=True)
class _Binding:
    identity: Hashable
    reference: weakref.ref[Any] | None
    place: Place
    has_values: bool


class Bindings:
    """Node ids and their live objects.

    Args:
        uid: the number of the restore.
        at_root: the live object at a place that has no parent; None where it is gone.
    """

    def __init__(self, uid: int, at_root: Callable[[str | None], object | None]) -> None:
        self._uid = uid
        self._at_root = at_root
        self._bindings: dict[int, _Binding] = {}
        self._tensors: _native.PairedTensors | None = None
        """Those of the first step that were paired natively; it knows the order of all of that step."""

    def add_tensors(self, tensors: _native.PairedTensors) -> None:
        """Pairs variables with tensors, which have values of this restore. To be called before `add`, and once; whoever
        calls it releases the tensors."""
        self._tensors = tensors

    def add(self, node_id: int, trackable: Trackable, place: Place, *, has_values: bool) -> None:
        """Pairs a node with an object, which may have values of this restore or a later one."""
        value, part = trackable._owner()
        reference = None if part is not None or isinstance(value, torch.Tensor) else _weak(value)
        self._bindings[node_id] = _Binding(trackable._identity(), reference, place, has_values)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._bindings or (self._tensors is not None and node_id in self._tensors)

    def __iter__(self) -> Iterator[int]:
        """The nodes, in the order in which they were paired."""
        if self._tensors is None:
            return iter(self._bindings)
        order = self._tensors.order
        first = [node_id for node_id in self._bindings if order(node_id) >= 0]
        later = [node_id for node_id in self._bindings if order(node_id) < 0]
        return itertools.chain(sorted([*self._tensors.nodes(), *first], key=order), later)

    def __len__(self) -> int:
        return len(self._bindings) + (0 if self._tensors is None else len(self._tensors))

    def identity(self, node_id: int) -> Hashable:
        """The identity of the object that a node was paired with, which means something while the object lives."""
        return self._binding(node_id).identity

    def place(self, node_id: int) -> Place:
        """Where the object was found that a node was paired with."""
        return self._binding(node_id).place

    def _binding(self, node_id: int) -> _Binding:
        if self._tensors is not None and node_id in self._tensors:
            return _Binding(self._tensors.address(node_id), None, Place(*self._tensors.place(node_id)), has_values=True)
        return self._bindings[node_id]

    def trackable(self, node_id: int) -> Trackable | None:
        """The object that a node was paired with; None if it was paired with none, or the object is gone."""
        if node_id not in self:
            return None
        binding = self._binding(node_id)
        value = binding.reference() if binding.reference is not None else self.at(binding.place)
        trackable = adapt(value)
        if trackable is None or trackable._identity() != binding.identity:
            return None
        # Another tensor may be where the first one was in memory, but it has not its number. A tensor that was
        # converted by swapping has none either, and is the same.
        may_be_swapped = torch.__future__.get_swap_module_params_on_conversion()
        is_numbered = not binding.has_values or may_be_swapped or update_uid(value) >= self._uid
        return trackable if is_numbered or not isinstance(value, torch.Tensor) else None

    def find_all(self, tensors: list[torch.Tensor]) -> list[int]:
        """For live tensors that are leaves, the nodes that `add_tensors` paired with them; -1 for all others."""
        if self._tensors is None:
            return [-1] * len(tensors)
        may_be_swapped = torch.__future__.get_swap_module_params_on_conversion()
        found = self._tensors.find_all(tensors)
        if may_be_swapped:
            return found
        uid = self._uid
        # Another tensor may be where the first one was in memory.
        return [
            node_id if node_id >= 0 and update_uid(tensor) >= uid else -1
            for node_id, tensor in zip(found, tensors, strict=True)
        ]

    def live_objects(self) -> dict[int, Trackable]:
        """As `live`, without what `add_tensors` has paired."""
        found = {node_id: self.trackable(node_id) for node_id in self._bindings}
        return {node_id: trackable for node_id, trackable in found.items() if trackable is not None}

    def live(self) -> dict[int, Trackable]:
        """Every node whose object lives."""
        found = {node_id: self.trackable(node_id) for node_id in self}
        return {node_id: trackable for node_id, trackable in found.items() if trackable is not None}

    def at(self, place: Place) -> object | None:
        """Whatever is at a place now."""
        if place.parent_id is None:
            return self._at_root(place.name)
        parent = self.trackable(place.parent_id)
        return None if parent is None or place.name is None else parent._lookup_dependency(place.name)


def _weak(value: Any) -> weakref.ref[Any] | None:
    try:
        return weakref.ref(value)
    except TypeError:
        return None
