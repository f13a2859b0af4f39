"""Pairs saved nodes with live objects, by local names. No value is read here, and nothing changes.

The rules are TensorFlow's. Breadth first: a child of a bound node is bound to the live child of the same local name,
unless the saved child is bound already; so a saved object that two paths lead to goes to the live object of the first
path. A live object may be bound to several saved nodes; the first one with values supplies them. It takes none if it
has values of a later restore. A saved child that has no live one, or one that cannot take values yet, is left waiting.
Then the slot variables of bound optimizers are paired, for those variables that are bound as well.

Before the children of a node are looked at, the module that it was paired with may say that they have other names, or
other values, than the file tells (`migrate`). The step goes on with the graph that results.

A restore is matched in steps: from the root at first, and from each object that appears later. `Earlier` is what the
steps before have bound.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, TypeGuard

import torch
from torch import nn

from torch_trackckpt import _native
from torch_trackckpt.adapters import adapt
from torch_trackckpt.adapters.late_children import SLOTS
from torch_trackckpt.adapters.tensor import TensorAdapter, leaf_types
from torch_trackckpt.bundle.reader import StoredTensor
from torch_trackckpt.errors import UnsupportedFormatError
from torch_trackckpt.graph.keys import escape
from torch_trackckpt.graph.object_graph import Child, ObjectGraph
from torch_trackckpt.graph.walk import live_object
from torch_trackckpt.restore.bindings import Place
from torch_trackckpt.restore.migrate import Migration
from torch_trackckpt.trackable import VARIABLE_VALUE, SlotOwner, Trackable, leaf_sources
from torch_trackckpt.update_uid import new_uid, update_uid

__all__ = [
    "BoundValues",
    "Earlier",
    "Match",
    "Matcher",
    "Migrate",
    "PendingSlots",
    "Rest",
    "SlotSet",
    "Unmade",
    "match",
    "slots_of",
]

_logger = logging.getLogger("torch_trackckpt")


@dataclasses.dataclass(frozen=True)
class BoundValues:
    """The stored values that one live object takes."""

    node_id: int
    trackable: Trackable
    keys: Mapping[str, str]
    """Checkpoint keys by the names that the live object knows; none where the value is a computed one."""
    computed: torch.Tensor | None = None
    """The value that a module has computed for a tensor."""


@dataclasses.dataclass(frozen=True)
class SlotSet:
    """The stored slots of one variable, and the tensors they go to."""

    optimizer: SlotOwner
    variable: torch.Tensor
    slots: Mapping[str, tuple[int, str, torch.Tensor]]
    """By slot name: node id, checkpoint key, destination."""


@dataclasses.dataclass(frozen=True)
class Rest:
    """What a state that was restored before could not place then."""

    node_id: int
    trackable: Trackable
    value: object


@dataclasses.dataclass(frozen=True)
class Unmade:
    """A live tensor that has no memory yet, and the place where it waits for its value."""

    node_id: int
    key: str
    """Empty where the value is a computed one."""
    tensor: torch.Tensor
    place: Place


PendingSlots = Mapping[tuple[int, int], Mapping[str, tuple[int, str]]]
"""By the node ids of optimizer and variable: slot name -> node id and checkpoint key of the slot."""


class Earlier(Protocol):
    """What earlier steps of the same restore have bound."""

    def __contains__(self, node_id: object) -> bool: ...
    def __iter__(self) -> Iterator[int]: ...
    def trackable(self, node_id: int) -> Trackable | None: ...
    def identity(self, node_id: int) -> Hashable: ...


@dataclasses.dataclass
class Match:
    """One step of a restore: which live objects are paired with which nodes, and what they take."""

    graph: ObjectGraph
    """With the names that modules have given to what older ones saved, as far as they were asked."""
    uid: int
    """The number of the restore."""
    earlier: Earlier | None = None
    bound: dict[int, Trackable] = dataclasses.field(default_factory=dict)
    """Node id -> live object; without slot variables, and without `tensors`."""
    tensors: _native.PairedTensors | None = None
    """Variables that were bound to ordinary tensors, whose values these take: the most, as a rule."""
    places: dict[int, Place] = dataclasses.field(default_factory=dict)
    """Where those objects were found."""
    values: dict[Hashable, BoundValues] = dataclasses.field(default_factory=dict)
    """Live object's identity -> what it takes."""
    slots: dict[tuple[int, int], SlotSet] = dataclasses.field(default_factory=dict)
    """Node ids of optimizer and variable -> what goes to the variable's slots."""
    settled_slots: set[tuple[int, int]] = dataclasses.field(default_factory=set)
    """Those pairs whose slots need not wait any longer: they are assigned now, or the live objects do not want them."""
    overruled: set[int] = dataclasses.field(default_factory=set)
    """Nodes whose objects have values of a later restore."""
    unused_attributes: dict[int, list[str]] = dataclasses.field(default_factory=dict)
    """Node id -> stored attributes, or parts of them, that the live object does not know."""
    missing_attributes: dict[int, list[str]] = dataclasses.field(default_factory=dict)
    """Node id -> parts of the live object's value that the stored one lacks."""
    skipped: set[int] = dataclasses.field(default_factory=set)
    """Nodes that were left out because the caller skips slot variables."""
    absent: list[tuple[Place, int]] = dataclasses.field(default_factory=list)
    """Saved children that have no live counterpart which could take values, and where it would be."""
    unmade: list[Unmade] = dataclasses.field(default_factory=list)
    """Those among them that are there but have no memory."""
    rest: list[Rest] = dataclasses.field(default_factory=list)
    """States to be tried again."""
    left_over: dict[int, object] = dataclasses.field(default_factory=dict)
    """Node id -> what a state has not placed this time either; known after the values were prepared."""
    computed: dict[int, torch.Tensor | None] = dataclasses.field(default_factory=dict)
    """Node id -> value that a module has computed, in place of a stored one; None where the tensor keeps its own."""
    used_up: set[int] = dataclasses.field(default_factory=set)
    """Nodes whose values modules have made others from, or have dropped."""
    kept: set[int] = dataclasses.field(default_factory=set)
    """Nodes that are bound to tensors whose modules say that these have the right value."""
    attributes: list[tuple[nn.Module, str, object]] = dataclasses.field(default_factory=list)
    """What modules are to keep otherwise than as parameters and buffers."""

    def trackable(self, node_id: int) -> Trackable | None:
        """The live object that a node is paired with, by this step or an earlier one."""
        if self.tensors is not None and node_id in self.tensors:
            return adapt(self.tensors.tensor(node_id))
        if node_id in self.bound or self.earlier is None:
            return self.bound.get(node_id)
        return self.earlier.trackable(node_id)

    def resolve(self, path: str) -> object | None:
        """The live object that was paired with an object path of the checkpoint."""
        node_id = self.graph.find(path)
        trackable = None if node_id is None else self.trackable(node_id)
        return None if trackable is None else live_object(trackable)


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
    matcher = Matcher(graph, stored, new_uid(), skip_slot_variables=skip_slot_variables)
    matcher.start(root, attached)
    matcher.pair_slots(slots_of(graph))
    return matcher.match


def slots_of(graph: ObjectGraph) -> dict[tuple[int, int], dict[str, tuple[int, str]]]:
    """Every stored slot variable that has a value."""
    found: dict[tuple[int, int], dict[str, tuple[int, str]]] = {}
    for optimizer_id in graph.nodes_with_slots():
        for slot in graph.nodes[optimizer_id].slot_variables:
            for attribute in graph.attributes(slot.slot_id):
                if attribute.name == VARIABLE_VALUE:
                    slots = found.setdefault((optimizer_id, slot.variable_id), {})
                    slots[slot.slot_name] = (slot.slot_id, attribute.checkpoint_key)
    return found


Migrate = Callable[[ObjectGraph, int, Trackable], Migration | None]
"""Asks a live object what becomes of the graph below the node that it was paired with."""


class _Renamed(Exception):
    """A module has renamed children of an object that had been followed under their old names."""


class Matcher:
    """Makes one step.

    Args:
        graph: the saved graph.
        stored: what the checkpoint holds under a key.
        uid: the number of the restore.
        earlier: what the steps before have bound.
        skip_slot_variables: leaves optimizer slots alone.
        migrate: asks modules for the names that they have for what older versions of them saved.
        computed: the values of nodes for which modules have computed one in earlier steps.
    """

    def __init__(
        self,
        graph: ObjectGraph,
        stored: Callable[[str], StoredTensor],
        uid: int,
        *,
        earlier: Earlier | None = None,
        skip_slot_variables: bool = False,
        migrate: Migrate | None = None,
        computed: Mapping[int, torch.Tensor | None] = MappingProxyType({}),
    ) -> None:
        self.match = Match(graph, uid, earlier, computed=dict(computed))
        if graph.saved is not None and not earlier and not computed:
            # Whatever comes later comes in small numbers.
            self.match.tensors = _native.PairedTensors(graph.saved, leaf_types())
        self._migrate = migrate
        self._asked: set[int] = set()
        """Nodes whose modules have said what they have to say."""
        self._followed: set[int] = set()
        self._stored = stored
        self._uid = uid
        self._earlier = earlier
        self._skip_slot_variables = skip_slot_variables
        self._queue: deque[int] = deque()
        self._is_inconsistency_reported = False

    def start(self, root: object, attached: Mapping[str, object]) -> None:
        """Binds the root, what is attached to it, and everything below."""
        self._until_named(lambda: self._start(root, attached))

    def follow(self, node_id: int, value: object, place: Place) -> None:
        """Binds an object and everything below it."""
        self._until_named(lambda: self._follow(node_id, value, place))

    def _until_named(self, step: Callable[[], None]) -> None:
        """Begins anew where names change that were used already: one object below two modules is followed by the
        first, and the second may rename."""
        while True:
            try:
                return step()
            except _Renamed:
                now = self.match
                self.match = Match(
                    now.graph,
                    self._uid,
                    self._earlier,
                    settled_slots=now.settled_slots,
                    computed=now.computed,
                    used_up=now.used_up,
                    attributes=now.attributes,
                )
                self._queue.clear()
                self._followed.clear()
                self._is_inconsistency_reported = False

    @property
    def _graph(self) -> ObjectGraph:
        return self.match.graph

    def _start(self, root: object, attached: Mapping[str, object]) -> None:
        self._follow(0, root, Place(None, None))
        for name, child in attached.items():
            node_id = self._graph.child(0, name)
            if node_id is not None and not self._is_bound(node_id):
                self._follow(node_id, child, Place(None, name))

    def _follow(self, node_id: int, value: object, place: Place) -> None:
        self._bind(node_id, value, place)
        while self._queue:
            parent_id = self._queue.popleft()
            parent = self.match.trackable(parent_id)
            if parent is not None:
                self._ask(parent_id, parent)
                self._followed.add(parent_id)
                self._follow_children(parent_id, parent)

    def _ask(self, node_id: int, trackable: Trackable) -> None:
        """Lets a module rename what is stored below its node; that settles it for the modules below as well."""
        if self._migrate is None or node_id in self._asked:
            return
        self._asked.add(node_id)
        migration = self._migrate(self._graph, node_id, trackable)
        if migration is None:
            return
        match = self.match
        match.graph = migration.graph
        match.computed |= migration.computed
        match.used_up |= migration.used_up
        match.attributes += migration.attributes
        self._asked |= migration.done
        if migration.reshaped:
            match.settled_slots |= {pair for pair in slots_of(migration.graph) if pair[1] in migration.reshaped}
        if migration.changed & self._followed:
            raise _Renamed
        # What earlier steps have bound can have its other children now.
        self._queue += [changed for changed in migration.changed if self._earlier and changed in self._earlier]

    def _is_bound(self, node_id: int) -> bool:
        match = self.match
        return (
            node_id in match.bound
            or (match.tensors is not None and node_id in match.tensors)
            or (self._earlier is not None and node_id in self._earlier)
        )

    def _bind(self, node_id: int, value: object, place: Place) -> None:
        trackable = adapt(value)
        if trackable is None:
            self._leave(node_id, place)
            return
        if isinstance(value, torch.Tensor) and value.is_meta:
            self._leave(node_id, place)
            self._note_unmade(node_id, value, place)
            return
        trackable._paired_with(self._graph, node_id, self._stored)
        self.match.bound[node_id] = trackable
        self.match.places[node_id] = place
        if self.match.tensors is not None:
            self.match.tensors.mark(node_id)
        self._queue.append(node_id)
        self._take_values(node_id, trackable)

    def _leave(self, node_id: int, place: Place) -> None:
        """Leaves a node waiting, if there is anything to wait for."""
        node = self._graph.nodes[node_id]
        has_values = node.has_checkpoint_values
        if has_values is None:
            has_values = bool(node.children or node.attributes or node.slot_variables or node.registered_saver)
        if has_values and place.name is not None:
            self.match.absent.append((place, node_id))

    def _note_unmade(self, node_id: int, tensor: torch.Tensor, place: Place) -> None:
        if node_id in self.match.computed:
            if self.match.computed[node_id] is not None:
                self.match.unmade.append(Unmade(node_id, "", tensor, place))
            return
        for attribute in self._graph.attributes(node_id):
            if attribute.name == VARIABLE_VALUE:
                self.match.unmade.append(Unmade(node_id, attribute.checkpoint_key, tensor, place))

    def _take_values(self, node_id: int, trackable: Trackable) -> None:
        if node_id in self.match.computed and isinstance(trackable, TensorAdapter):
            self._take_computed(node_id, trackable, self.match.computed[node_id])
            return
        attributes = self._graph.attributes(node_id)
        if not attributes or self._has_taken(trackable):
            return
        live_names = {escape(name): name for name in trackable._attribute_names()}
        keys = {live_names[a.name]: a.checkpoint_key for a in attributes if a.name in live_names}
        unused = [a.name for a in attributes if a.name not in live_names]
        if unused:
            self.match.unused_attributes[node_id] = unused
        # An object takes its values all together or not at all.
        if not len(keys) == len(live_names) > 0:
            return
        if update_uid(*trackable._owner()) >= self._uid:
            self.match.overruled.add(node_id)
        else:
            self.match.values[trackable._identity()] = BoundValues(node_id, trackable, keys)
            if self.match.tensors is not None and isinstance(trackable, TensorAdapter):
                self.match.tensors.claim(id(trackable.adapted))

    def _has_taken(self, trackable: Trackable) -> bool:
        """Whether a live object takes the values of another node."""
        if trackable._identity() in self.match.values:
            return True
        tensors = self.match.tensors
        return tensors is not None and isinstance(trackable, TensorAdapter) and tensors.has_taken(id(trackable.adapted))

    def _take_computed(self, node_id: int, trackable: Trackable, value: torch.Tensor | None) -> None:
        if update_uid(*trackable._owner()) >= self._uid:
            self.match.overruled.add(node_id)
        elif value is None:
            self.match.kept.add(node_id)
        else:
            self.match.values.setdefault(trackable._identity(), BoundValues(node_id, trackable, {}, value))

    def _follow_children(self, node_id: int, trackable: Trackable) -> None:
        children = self._children_left(node_id, trackable)
        if not children:
            return
        postponed = trackable._postponed([child.local_name for child in self._graph.nodes[node_id].children])
        for child in children:
            if self._is_skipped(trackable, child.local_name):
                self._skip(child.node_id)
            elif self._is_bound(child.node_id):
                self._check_consistency(child, trackable)
            else:
                place = Place(node_id, child.local_name)
                live = trackable._lookup_dependency(child.local_name)
                if live is None or child.local_name in postponed:
                    self._leave(child.node_id, place)
                else:
                    self._bind(child.node_id, live, place)

    def _children_left(self, node_id: int, trackable: Trackable) -> Sequence[Child]:
        """The saved children of a node, less those that were paired with ordinary tensors, all in one native call."""
        tensors, saved = self.match.tensors, self._graph.saved
        sources = leaf_sources(trackable) if tensors is not None and saved is not None else ()
        if tensors is None or saved is None or not sources:
            return self._graph.nodes[node_id].children
        return [Child(*saved.child(node_id, position)) for position in tensors.pair(node_id, sources)]

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

    def _check_consistency(self, child: Child, parent: Trackable) -> None:
        """One saved object that two paths lead to should be one live object as well; if it is not, the log says so."""
        live = adapt(parent._lookup_dependency(child.local_name))
        if self._is_inconsistency_reported or live is None or live._identity() == self._identity(child.node_id):
            return
        self._is_inconsistency_reported = True
        _logger.warning(
            "Inconsistent references when loading the checkpoint into this object graph: %s is one object in the "
            "checkpoint but several in the program; only the first of them gets its values.",
            self._graph.readable(child.node_id),
        )

    def _identity(self, node_id: int) -> Hashable:
        if node_id in self.match.bound:
            return self.match.bound[node_id]._identity()
        if self.match.tensors is not None and node_id in self.match.tensors:
            return self.match.tensors.address(node_id)
        assert self._earlier is not None
        return self._earlier.identity(node_id)

    def pair_slots(self, pending: PendingSlots) -> None:
        """Finds a place for those stored slots whose optimizer and variable are both bound."""
        if self._skip_slot_variables:
            self.match.skipped |= {slot_id for slots in pending.values() for slot_id, _ in slots.values()}
            self.match.settled_slots |= pending.keys()
            return
        optimizers: dict[int, Trackable | None] = {}
        paired: set[tuple[Hashable, Hashable]] = set()
        ready = [pair for pair in pending if all(map(self._is_bound, pair)) and pair not in self.match.settled_slots]
        for optimizer_id, variable_id in self._as_bound(ready):
            slots = pending[optimizer_id, variable_id]
            if optimizer_id not in optimizers:
                optimizers[optimizer_id] = self._with_stored_children(optimizer_id)
            optimizer, variable = optimizers[optimizer_id], self.match.trackable(variable_id)
            if not isinstance(optimizer, SlotOwner) or not _is_variable(variable):
                self.match.settled_slots.add((optimizer_id, variable_id))
            elif optimizer._keeps_slots_of(live := live_object(variable)):
                self.match.settled_slots.add((optimizer_id, variable_id))
                # A live variable that is bound to several nodes gets the slots of the first, as it has got its value.
                if (identities := (optimizer._identity(), variable._identity())) not in paired:
                    paired.add(identities)
                    self._pair_slots_of_variable((optimizer_id, variable_id), optimizer, live, slots)

    def _as_bound(self, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Pairs of nodes in the order in which the nodes were bound."""
        if not pairs:
            return []
        if self.match.tensors is not None:
            order_of = self.match.tensors.order
            return sorted(pairs, key=lambda pair: (order_of(pair[0]), order_of(pair[1])))
        order = {node_id: index for index, node_id in enumerate((*(self._earlier or ()), *self.match.bound))}
        return sorted(pairs, key=lambda pair: (order[pair[0]], order[pair[1]]))

    def _with_stored_children(self, optimizer_id: int) -> Trackable | None:
        """A bound optimizer, whose adapter has been asked for its stored children: they tell it who saved them."""
        optimizer = self.match.trackable(optimizer_id)
        if optimizer is not None:
            for child in self._graph.nodes[optimizer_id].children:
                optimizer._lookup_dependency(child.local_name)
        return optimizer

    def _pair_slots_of_variable(
        self,
        pair: tuple[int, int],
        optimizer: SlotOwner,
        variable: torch.Tensor,
        slots: Mapping[str, tuple[int, str]],
    ) -> None:
        owner, _ = optimizer._owner()
        if update_uid(owner, (SLOTS, id(variable))) >= self._uid:
            self.match.overruled |= {slot_id for slot_id, _ in slots.values()}
            return
        kinds = {name: _kind(self._stored(key)) for name, (_, key) in slots.items()}
        destinations = optimizer._slot_destinations(variable, kinds)
        if destinations is not None:
            places = {name: (slot_id, key, destinations[name]) for name, (slot_id, key) in slots.items()}
            self.match.slots[pair] = SlotSet(optimizer, variable, places)

    def try_again(self, left_over: Mapping[int, object]) -> None:
        """Has states try once more to place what they could not place before."""
        for node_id, value in left_over.items():
            trackable = self.match.trackable(node_id)
            if trackable is not None and update_uid(*trackable._owner()) > self._uid:
                self.match.overruled.add(node_id)
            elif trackable is not None:
                self.match.rest.append(Rest(node_id, trackable, value))


def _is_variable(trackable: Trackable | None) -> TypeGuard[Trackable]:
    """Whether an object is one that slots may belong to: a tensor, or one that stands for a variable by itself."""
    return isinstance(trackable, TensorAdapter) or (
        trackable is not None and trackable._attribute_names() == (VARIABLE_VALUE,)
    )


def _kind(stored: StoredTensor) -> tuple[torch.dtype, tuple[int, ...]]:
    if stored.dtype.torch_dtype is None:
        raise UnsupportedFormatError(f"{stored.key}: a slot variable of type {stored.dtype} cannot be restored.")
    return stored.dtype.torch_dtype, stored.shape
