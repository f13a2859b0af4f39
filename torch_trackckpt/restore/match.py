"""Pairs saved nodes with live objects, by local names from the root. No value is read here.

The rules are TensorFlow's. Breadth first from the root: a child of a bound node is bound to the live child of the
same local name, unless the saved child is bound already; so a saved object that two paths lead to goes to the live
object of the first path. A live object may be bound to several saved nodes; the first one with values supplies them.
Then the slot variables of bound optimizers are paired, for those variables that are bound as well.
"""

from __future__ import annotations

import dataclasses
import logging
import weakref
from collections import deque
from collections.abc import Callable, Container, Hashable, Mapping
from typing import Any

import torch

from torch_trackckpt.adapters import adapt
from torch_trackckpt.adapters.module import TensorAdapter
from torch_trackckpt.bundle.reader import StoredTensor
from torch_trackckpt.errors import UnsupportedFormatError
from torch_trackckpt.graph.keys import escape
from torch_trackckpt.graph.object_graph import ObjectGraph
from torch_trackckpt.trackable import VARIABLE_VALUE, SlotOwner, Trackable

__all__ = ["BoundValues", "Match", "SlotSet", "match", "match_late"]

_logger = logging.getLogger("torch_trackckpt")


@dataclasses.dataclass(frozen=True)
class BoundValues:
    """The stored values that one live object takes."""

    node_id: int
    trackable: Trackable
    keys: Mapping[str, str]
    """Checkpoint keys by the names that the live object knows."""


@dataclasses.dataclass(frozen=True)
class SlotSet:
    """The stored slots of one variable, and the tensors they go to."""

    optimizer: SlotOwner
    variable: torch.Tensor
    slots: Mapping[str, tuple[int, str, torch.Tensor]]
    """By slot name: node id, checkpoint key, destination."""


@dataclasses.dataclass
class Match:
    """Which live object each saved node was paired with."""

    graph: ObjectGraph
    bound: dict[int, Trackable] = dataclasses.field(default_factory=dict)
    """Node id -> live object; without slot variables."""
    values: dict[Hashable, BoundValues] = dataclasses.field(default_factory=dict)
    """Live object's identity -> what it takes."""
    slots: dict[tuple[Hashable, Hashable], SlotSet] = dataclasses.field(default_factory=dict)
    """Identities of optimizer and variable -> what goes to the variable's slots."""
    unused_attributes: dict[int, list[str]] = dataclasses.field(default_factory=dict)
    """Node id -> stored attributes, or parts of them, that the live object does not know."""
    skipped: set[int] = dataclasses.field(default_factory=set)
    """Nodes that were left out because the caller skips slot variables."""
    incomplete: set[int] = dataclasses.field(default_factory=set)
    """Nodes whose objects did not find all that their values speak of."""

    def add(self, late: Match) -> None:
        """Takes over what a later match found."""
        for node_id, trackable in late.bound.items():
            self.bound.setdefault(node_id, trackable)
        for node_id in {bound.node_id for bound in late.values.values()}:
            self.unused_attributes.pop(node_id, None)
        self.unused_attributes.update(late.unused_attributes)
        self.values.update(late.values)
        for identities, slot_set in late.slots.items():
            earlier = self.slots.get(identities)
            slots = slot_set.slots if earlier is None else {**earlier.slots, **slot_set.slots}
            self.slots[identities] = dataclasses.replace(slot_set, slots=slots)
        self.skipped |= late.skipped

    @property
    def bound_slot_ids(self) -> set[int]:
        """The nodes of all slot variables that were paired."""
        return {node_id for slot_set in self.slots.values() for node_id, _, _ in slot_set.slots.values()}

    def resolve(self, path: str) -> object | None:
        """The live object that was paired with an object path of the checkpoint."""
        node_id = self.graph.find(path)
        trackable = None if node_id is None else self.bound.get(node_id)
        return getattr(trackable, "adapted", trackable)


def match(
    graph: ObjectGraph,
    root: object,
    attached: Mapping[str, object],
    stored: Callable[[str], StoredTensor],
    *,
    skip_slot_variables: bool = False,
) -> Match:
    """Pairs a saved graph with the live objects below a root.

    Args:
        graph: the saved graph.
        root: the live object for node 0.
        attached: live objects that count as children of the root without being known to it.
        stored: what the checkpoint holds under a key.
        skip_slot_variables: leaves optimizer slots alone.
    """
    return _Matcher(graph, skip_slot_variables=skip_slot_variables).run(root, attached, stored)


def match_late(
    graph: ObjectGraph,
    root: object,
    attached: Mapping[str, object],
    stored: Callable[[str], StoredTensor],
    *,
    objects: Mapping[int, weakref.ref[Any] | None],
    has_values: Container[int],
    skip_slot_variables: bool = False,
) -> Match:
    """Pairs what an earlier match left.

    Args:
        graph, root, attached, stored, skip_slot_variables: as for `match`.
        objects: by node, the live object that it was paired with, if that can be known. No other takes its place.
        has_values: nodes whose values were assigned.

    Returns:
        Everything that is bound now, with the values and slots that were not assigned yet. Slots are those of
        optimizers and variables of which at least one is new.
    """
    matcher = _Matcher(graph, skip_slot_variables=skip_slot_variables, objects=objects)
    matched = matcher.run(root, attached, stored)
    matched.values = {key: bound for key, bound in matched.values.items() if bound.node_id not in has_values}
    matched.unused_attributes = {
        node_id: names for node_id, names in matched.unused_attributes.items() if node_id not in has_values
    }
    return matched


class _Matcher:
    def __init__(
        self,
        graph: ObjectGraph,
        *,
        skip_slot_variables: bool,
        objects: Mapping[int, weakref.ref[Any] | None] | None = None,
    ) -> None:
        self.match = Match(graph)
        self._objects = objects or {}
        self._graph = graph
        self._skip_slot_variables = skip_slot_variables
        self._queue: deque[int] = deque()
        self._is_inconsistency_reported = False

    def run(self, root: object, attached: Mapping[str, object], stored: Callable[[str], StoredTensor]) -> Match:
        self.bind(0, root)
        self.follow_children()
        children_of_root = {child.local_name: child.node_id for child in reversed(self._graph.nodes[0].children)}
        for name, child in attached.items():
            node_id = children_of_root.get(name)
            if node_id is not None and node_id not in self.match.bound:
                self.bind(node_id, child)
                self.follow_children()
        self.pair_slots(stored)
        return self.match

    def bind(self, node_id: int, value: object) -> None:
        trackable = adapt(value)
        if trackable is None:
            return
        earlier = self._objects.get(node_id)
        if earlier is not None and earlier() is not getattr(trackable, "adapted", trackable):
            return
        self.match.bound[node_id] = trackable
        self._queue.append(node_id)
        self._take_values(node_id, trackable)

    def _take_values(self, node_id: int, trackable: Trackable) -> None:
        attributes = self._graph.nodes[node_id].attributes
        if not attributes or trackable._identity() in self.match.values:
            return
        live_names = {escape(name): name for name in trackable._attribute_names()}
        keys = {live_names[a.name]: a.checkpoint_key for a in attributes if a.name in live_names}
        unused = [a.name for a in attributes if a.name not in live_names]
        if unused:
            self.match.unused_attributes[node_id] = unused
        # An object takes its values all together or not at all.
        if len(keys) == len(live_names) > 0:
            self.match.values[trackable._identity()] = BoundValues(node_id, trackable, keys)

    def follow_children(self) -> None:
        while self._queue:
            node_id = self._queue.popleft()
            trackable = self.match.bound[node_id]
            for child in self._graph.nodes[node_id].children:
                if self._is_skipped(trackable, child.local_name):
                    self._skip(child.node_id)
                    continue
                live = trackable._lookup_dependency(child.local_name)
                if live is None:
                    continue
                if child.node_id not in self.match.bound:
                    self.bind(child.node_id, live)
                else:
                    self._report_inconsistency(child.node_id, live)

    def _is_skipped(self, trackable: Trackable, name: str) -> bool:
        return self._skip_slot_variables and isinstance(trackable, SlotOwner) and name in trackable._children_with_slots

    def _skip(self, node_id: int) -> None:
        """Leaves out a node and everything below it."""
        stack = [node_id]
        while stack:
            skipped = stack.pop()
            if skipped not in self.match.skipped:
                self.match.skipped.add(skipped)
                stack += [child.node_id for child in self._graph.nodes[skipped].children]

    def _report_inconsistency(self, node_id: int, live: object) -> None:
        trackable = adapt(live)
        if (
            self._is_inconsistency_reported
            or trackable is None
            or trackable._identity() == self.match.bound[node_id]._identity()
        ):
            return
        self._is_inconsistency_reported = True
        _logger.warning(
            "Inconsistent references when loading the checkpoint into this object graph: %s is one object in the "
            "checkpoint but several in the program; only the first of them gets its values.",
            self._graph.readable(node_id),
        )

    def pair_slots(self, stored: Callable[[str], StoredTensor]) -> None:
        for node_id, node in enumerate(self._graph.nodes):
            optimizer = self.match.bound.get(node_id)
            if self._skip_slot_variables:
                self.match.skipped |= {slot.slot_id for slot in node.slot_variables}
                continue
            if not node.slot_variables or not isinstance(optimizer, SlotOwner):
                continue
            by_variable: dict[int, dict[str, tuple[int, str]]] = {}
            for slot in node.slot_variables:
                for attribute in self._graph.nodes[slot.slot_id].attributes:
                    if attribute.name == VARIABLE_VALUE:
                        slots = by_variable.setdefault(slot.variable_id, {})
                        slots[slot.slot_name] = (slot.slot_id, attribute.checkpoint_key)
            for variable_id, slots in by_variable.items():
                self._pair_slots_of_variable(node_id, optimizer, variable_id, slots, stored)

    def _pair_slots_of_variable(
        self,
        node_id: int,
        optimizer: SlotOwner,
        variable_id: int,
        slots: Mapping[str, tuple[int, str]],
        stored: Callable[[str], StoredTensor],
    ) -> None:
        variable = self.match.bound.get(variable_id)
        if not isinstance(variable, TensorAdapter) or (node_id in self._objects and variable_id in self._objects):
            return
        identities = (optimizer._identity(), variable._identity())
        if identities in self.match.slots:
            return
        kinds = {name: _kind(stored(key)) for name, (_, key) in slots.items()}
        destinations = optimizer._slot_destinations(variable.adapted, kinds)
        if destinations is not None:
            paired = {name: (slot_id, key, destinations[name]) for name, (slot_id, key) in slots.items()}
            self.match.slots[identities] = SlotSet(optimizer, variable.adapted, paired)


def _kind(stored: StoredTensor) -> tuple[torch.dtype, tuple[int, ...]]:
    if stored.dtype.torch_dtype is None:
        raise UnsupportedFormatError(f"{stored.key}: a slot variable of type {stored.dtype} cannot be restored.")
    return stored.dtype.torch_dtype, stored.shape
