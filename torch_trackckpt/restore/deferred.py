"""One restore, from the objects that are there when it begins to the last that appears later.

Each step binds live objects to saved nodes (`match`), gives them their values (`assign`), and leaves what found no
live object waiting with the parent, by name (`Waiting`). An object that appears takes the next step. What waits refers
to live objects weakly, so that it keeps none of them alive; the objects that something waits for, and the status, keep
the restore alive. When the last of them is gone, the log tells what has not been restored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import weakref
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch

from torch_trackckpt.adapters import adapt, is_trackable
from torch_trackckpt.adapters.late_children import RegistrationHooks, is_unmade
from torch_trackckpt.adapters.module import ModuleAdapter
from torch_trackckpt.bundle.reader import CheckpointReader
from torch_trackckpt.devices.access import Devices
from torch_trackckpt.graph.object_graph import ObjectGraph
from torch_trackckpt.graph.walk import live_object
from torch_trackckpt.options import CheckpointOptions
from torch_trackckpt.restore.assign import assign_values
from torch_trackckpt.restore.bindings import Bindings, Place
from torch_trackckpt.restore.holder import Holder
from torch_trackckpt.restore.match import Match, Matcher, PendingSlots, Unmade, slots_of
from torch_trackckpt.restore.materialize import give_memory, take_memory
from torch_trackckpt.restore.migrate import Migrator
from torch_trackckpt.trackable import VARIABLE_VALUE, DeferredChild, SlotOwner, Trackable, Waiting
from torch_trackckpt.update_uid import new_uid

__all__ = ["Restoration"]

_MOST_NAMED = 20

_logger = logging.getLogger("torch_trackckpt")


@dataclasses.dataclass(frozen=True)
class _DeferredNode:
    """A node that waits for its live object at a place."""

    restoration: Restoration
    node_id: int
    place: Place
    registration_hooks: RegistrationHooks | None = dataclasses.field(default=None, compare=False)
    """What makes the parent tell of the object; kept for as long as this waits."""

    @property
    def restore_uid(self) -> int:
        return self.restoration.uid

    def restore(self, child: object) -> bool:
        return self.restoration.restore(self.node_id, child, self.place)

    def read(self) -> torch.Tensor:
        return self.restoration.read(self.node_id)

    def supersede(self) -> None:
        self.restoration.supersede(self.node_id)

    def covers(self, earlier: DeferredChild) -> bool:
        return (
            isinstance(earlier, _DeferredNode)
            and self.node_id == earlier.node_id
            and self.restoration.covers(earlier.restoration)
        )

    def give_way(self) -> None:
        self.restoration.give_way(self.node_id, self.place)


class Restoration:
    """One restore of a checkpoint with an object graph.

    Args:
        graph: the saved graph.
        reader: the checkpoint.
        options: those of the restore.
        holder: the object whose attributes count as children of node 0 without being the root, if there is one.
        devices: the links to devices.
    """

    def __init__(
        self,
        graph: ObjectGraph,
        reader: CheckpointReader,
        options: CheckpointOptions,
        holder: Holder,
        devices: Devices,
    ) -> None:
        self.uid = new_uid()
        self.graph = graph
        self.reader = reader
        self.options = options
        self._devices = devices
        self._holder: weakref.ref[Any] = weakref.ref(holder)
        # Not a method, so that this object is no part of a cycle, and goes as soon as nobody needs it.
        self.bindings = Bindings(self.uid, functools.partial(_at_root, self._holder))
        self.restored: set[int] = set()
        """Nodes whose values live objects have taken."""
        self.superseded: set[int] = set()
        """Nodes whose objects have newer values."""
        self.skipped: set[int] = set()
        """Nodes that the caller left out."""
        self.used_up: set[int] = set()
        """Nodes whose values modules have made others from, or have dropped."""
        self.unused_attributes: dict[int, list[str]] = {}
        """Stored attributes, or parts of them, that the live objects do not know."""
        self.missing_attributes: dict[int, list[str]] = {}
        """Parts of the live objects' values that the stored ones lack."""
        self.waits_at: dict[int, list[Place]] = {}
        """Nodes that wait, and where."""
        self.expects_partial = True
        self._computed: dict[int, torch.Tensor | None] = {}
        """What modules have computed for tensors that have not appeared yet."""
        self._unmade: dict[int, Unmade] = {}
        self._left_over: dict[int, object] = {}
        self._slots = slots_of(graph)
        self._pending_slots = dict(self._slots)
        self._pairs_of: dict[int, list[tuple[int, int]]] = {}
        for pair in self._slots:
            for node_id in pair:
                self._pairs_of.setdefault(node_id, []).append(pair)
        self._watched: set[int] = set()
        self._has_all_of: dict[int, bool] = {}
        """By the numbers of earlier restores, whether this one has all that they have."""
        self._status: weakref.ref[object] | None = None
        self._streams_to: torch.device | None = None

    # Steps.

    def begin(self, holder: Holder) -> int:
        """Restores everything that is there, and returns how many bytes of values that took.

        Raises:
            What `assign_values` raises; nothing waits then.
        """
        matcher = self._matcher()
        matcher.start(holder._graph_root(), holder._attached())
        num_bytes = self._take_step(matcher)
        self.expects_partial = False
        return num_bytes

    def restore(self, node_id: int, value: object, place: Place) -> bool:
        """Restores an object that has appeared, and everything below it.

        Returns:
            False where the object cannot take values, and the node goes on waiting.
        """
        if node_id in self.bindings or node_id in self.superseded:
            return True
        matcher = self._matcher()
        matcher.follow(node_id, value, place)
        # It waits already.
        matcher.match.absent = [absent for absent in matcher.match.absent if absent[1] != node_id]
        self._take_step(matcher, self._streams_to)
        return node_id in self.bindings

    def look(self) -> None:
        """Restores what has appeared where nobody told of it."""
        for node_id, value, place in self.unnoticed():
            self.restore(node_id, value, place)

    def unnoticed(self) -> Iterator[tuple[int, object, Place]]:
        """Nodes, objects and places, of those that have appeared where nobody told of it."""
        for node_id, parent in self.bindings.live().items():
            for child in self.graph.nodes[node_id].children:
                value = None if child.node_id in self.bindings else parent._lookup_dependency(child.local_name)
                if is_trackable(value) and not is_unmade(value):
                    yield child.node_id, value, Place(node_id, child.local_name)

    def materialize(self, device: torch.device) -> None:
        """Gives bound tensors on the meta device their memory, in place, and their values.

        Raises:
            What `assign_values` raises; the tensors are on the meta device then.
        """
        matcher = self._matcher()
        matcher.match.unmade = self.unmade()
        self._take_step(matcher, device)

    def stream(self, device: torch.device) -> None:
        """Gives tensors on the meta device their memory and values as soon as they are bound, from now on."""
        self.materialize(device)
        self._streams_to = device

    def unmade(self) -> list[Unmade]:
        """Live tensors that had no memory when they were found, and have not got their values since."""
        now = [(unmade, self.bindings.at(unmade.place)) for unmade in self._unmade.values()]
        return [
            dataclasses.replace(unmade, tensor=tensor) for unmade, tensor in now if isinstance(tensor, torch.Tensor)
        ]

    def supersede(self, node_id: int) -> None:
        """Says that a live tensor that waits for its value has got another one, which is newer."""
        self.superseded.add(node_id)
        self._unmade.pop(node_id, None)

    def observe(self, status: object) -> None:
        """Says who shows the caller what becomes of the values."""
        self._status = weakref.ref(status)

    def covers(self, other: Restoration) -> bool:
        """Whether another restore is an earlier one, which has nothing that this one lacks, and no status any more.

        Graphs of one form tell that: a program that saves again and again writes such.
        """
        if other._status is not None and other._status() is not None:
            return False
        if other.uid not in self._has_all_of:
            skips, other_skips = (each.options.experimental_skip_slot_variables for each in (self, other))
            self._has_all_of[other.uid] = other.uid < self.uid and skips <= other_skips and self.graph == other.graph
        return self._has_all_of[other.uid]

    def give_way(self, node_id: int, place: Place) -> None:
        """Has a node wait no longer at a place where a later restore waits that has all that this one has.

        What then becomes of the values is for the later one to tell.
        """
        self.expects_partial = True
        self.waits_at[node_id].remove(place)

    def settle(self) -> None:
        """Looks for a place for what optimizers could not take so far."""
        self._take_step(self._matcher())

    def _slots_to_pair(self, bound: Collection[int]) -> PendingSlots:
        """The slots that concern a step: those of the objects that it binds, or all where it binds none."""
        if not bound or len(bound) > len(self._pending_slots):
            return self._pending_slots
        pairs = dict.fromkeys(pair for node_id in bound for pair in self._pairs_of.get(node_id, ()))
        return {pair: self._pending_slots[pair] for pair in pairs if pair in self._pending_slots}

    def _matcher(self) -> Matcher:
        return Matcher(
            self.graph,
            self.reader.stored,
            self.uid,
            earlier=self.bindings,
            skip_slot_variables=self.options.experimental_skip_slot_variables,
            migrate=Migrator(self.reader),
            computed=self._computed,
        )

    def _take_step(self, matcher: Matcher, device: torch.device | None = None) -> int:
        """Assigns what was matched; tensors on the meta device as well, if there is a device to make them on.

        Returns:
            How many bytes of values that took.
        """
        match = matcher.match
        with contextlib.ExitStack() as undo, torch.inference_mode(False):
            # What is made on the way, such as new slots, has to be of use outside of the caller's inference mode.
            if device is not None:
                self._make(matcher, device, undo)
            matcher.pair_slots(self._slots_to_pair(match.bound.keys()))
            matcher.try_again(self._left_over)
            num_bytes = assign_values(match, self.reader, self.options, self._devices)
            undo.pop_all()
        for waiting, name, value in self._accept(match):
            # Where another restore waits for the same object, it is offered that as well; the latest wins.
            waiting.attach(name, value)
        return num_bytes

    def _make(self, matcher: Matcher, device: torch.device, undo: contextlib.ExitStack) -> None:
        """Gives tensors that a step has found on the meta device their memory, and binds them."""
        match = matcher.match
        unmade, match.unmade = match.unmade, []
        made_ids = {item.node_id for item in unmade}
        match.absent = [(place, node_id) for place, node_id in match.absent if node_id not in made_ids]
        for item in unmade:
            # Of several tensors for one node, the first gets its value.
            if item.node_id not in match.bound:
                if item.tensor.is_meta:
                    before = give_memory(item.tensor, device, self.graph.readable(item.node_id))
                    undo.callback(take_memory, item.tensor, before)
                matcher.follow(item.node_id, item.tensor, item.place)

    def _accept(self, match: Match) -> list[tuple[Waiting, str, object]]:
        """Remembers what a step has done, and has the rest wait.

        Returns:
            Objects that others wait for as well: where, under which name, and the object.
        """
        self.graph = match.graph
        self.used_up |= match.used_up
        self._computed = {node_id: value for node_id, value in match.computed.items() if node_id not in match.bound}
        restored = {bound.node_id for bound in match.values.values()} | match.kept
        for slot_set in match.slots.values():
            restored |= {slot_id for slot_id, _, _ in slot_set.slots.values()}
        if match.tensors is not None:
            restored.update(match.tensors.nodes())
            self.bindings.add_tensors(match.tensors)
        for node_id, trackable in match.bound.items():
            has_values = node_id in restored or node_id in match.overruled
            self.bindings.add(node_id, trackable, match.places[node_id], has_values=has_values)
            self._unmade.pop(node_id, None)
        self.restored |= restored
        self.superseded |= match.overruled
        self.skipped |= match.skipped
        for node_id in {rest.node_id for rest in match.rest} | match.overruled:
            self.unused_attributes.pop(node_id, None)
            self.missing_attributes.pop(node_id, None)
            self._left_over.pop(node_id, None)
        self.unused_attributes |= match.unused_attributes
        self.missing_attributes |= match.missing_attributes
        self._left_over |= match.left_over
        for pair in match.settled_slots:
            self._pending_slots.pop(pair, None)
        for unmade in match.unmade:
            # Of several tensors for one node, the first gets its value, of those with memory if there are any.
            known = self._unmade.get(unmade.node_id)
            is_free = known is None or self.bindings.at(known.place) is not known.tensor
            if is_free and unmade.node_id not in self.bindings:
                self._unmade[unmade.node_id] = unmade
        self._wait_for_children(match)
        objects: list[tuple[int, object]] = [(node_id, live_object(item)) for node_id, item in match.bound.items()]
        if match.tensors is not None:
            tensors = match.tensors
            objects += [(node_id, tensors.tensor(node_id)) for node_id in self.waits_at if node_id in tensors]
            tensors.release()
        has_optimizers = any(isinstance(trackable, SlotOwner) for trackable in match.bound.values())
        if has_optimizers or match.settled_slots or match.rest or match.overruled:
            self._watch_optimizers()
        return [
            (waiting, name, value) for node_id, value in objects for waiting, name in self._stop_waiting(node_id, value)
        ]

    # Waiting.

    def _wait_for_children(self, match: Match) -> None:
        for place, node_id in match.absent:
            for here, parent in self._parents(place):
                waiting = parent._waiting()
                if waiting is not None and here.name is not None:
                    self.waits_at.setdefault(node_id, []).append(here)
                    hooks = RegistrationHooks.shared() if isinstance(parent, ModuleAdapter) else None
                    waiting.add(here.name, _DeferredNode(self, node_id, here, hooks))

    def _stop_waiting(self, node_id: int, value: object) -> list[tuple[Waiting, str]]:
        """Ends the wait for an object, also where it was found without being told of, or was given its memory.

        Returns:
            Where others wait for the same object, and have not been told of it either.
        """
        others = []
        for place in self.waits_at.pop(node_id, ()):
            for here, parent in self._parents(place):
                waiting = parent._waiting()
                if waiting is not None and here.name is not None:
                    waiting.discard(here.name, _DeferredNode(self, node_id, here))
                    if here.name in waiting and parent._lookup_dependency(here.name) is value:
                        others.append((waiting, here.name))
        return others

    def _parents(self, place: Place) -> Iterator[tuple[Place, Trackable]]:
        """The objects that a node may become a child of: what is attached to the root counts as its child."""
        parent = None if place.parent_id is None else self.bindings.trackable(place.parent_id)
        if parent is not None:
            yield place, parent
        holder = self._holder() if place.parent_id in (None, 0) else None
        if holder is not None and holder is not parent:
            yield Place(None, place.name), holder

    def _watch_optimizers(self) -> None:
        """Has optimizers tell of parameters that are added, as long as there is anything stored for such."""
        optimizer_ids = {optimizer_id for optimizer_id, _ in self._pending_slots if optimizer_id in self.bindings}
        optimizer_ids |= {self.bindings.place(node_id).parent_id or 0 for node_id in self._left_over}
        for optimizer_id in self._watched | optimizer_ids:
            optimizer = self.bindings.trackable(optimizer_id)
            waiting = None if optimizer is None else optimizer._waiting()
            if waiting is not None and optimizer_id in optimizer_ids:
                waiting.watch(self.settle)
            elif waiting is not None:
                waiting.unwatch(self.settle)
        self._watched = optimizer_ids

    # What became of the values.

    def read(self, node_id: int) -> torch.Tensor:
        """The value of a variable: the stored one, or what a module has computed in its place."""
        computed = self._computed.get(node_id)
        if computed is not None:
            return computed.clone()
        (key,) = (a.checkpoint_key for a in self.graph.nodes[node_id].attributes if a.name == VARIABLE_VALUE)
        value = self.reader.get_tensor(key)
        assert isinstance(value, torch.Tensor)
        return value

    def others_instead(self) -> list[tuple[int, Trackable]]:
        """For nodes that a live object did not wait for in the end, because it got newer values: that object."""
        there = [
            (node_id, adapt(self.bindings.at(place)))
            for node_id in self.superseded
            if node_id not in self.bindings
            for place in self.waits_at.get(node_id, ())
        ]
        return [(node_id, trackable) for node_id, trackable in there if trackable is not None]

    def unresolved(self) -> list[int]:
        """Nodes with values that no live object has taken, nor refused, so far."""
        settled = (self.restored, self.superseded, self.skipped, self.used_up)
        left = set(self.graph.nodes_with_values()).difference(*settled)
        return sorted(node_id for node_id in left if node_id not in self.bindings)

    def waiting(self, node_ids: Iterable[int]) -> set[int]:
        """Those nodes that would be restored if live objects of their names appeared, or if one looked for them."""
        waiting: set[int] = set()
        waits_at = {node_id: places for node_id, places in self.waits_at.items() if node_id not in self.superseded}
        stack = [node_id for node_id, places in waits_at.items() if any(map(self._is_waited_at, places))]
        stack += [node_id for node_id, _, _ in self.unnoticed()]
        while stack:
            node_id = stack.pop()
            if node_id not in waiting:
                waiting.add(node_id)
                stack += [child.node_id for child in self.graph.nodes[node_id].children]
        for pair, slots in self._pending_slots.items():
            if all(node_id in waiting or self.bindings.trackable(node_id) is not None for node_id in pair):
                waiting |= {slot_id for slot_id, _ in slots.values()}
        return waiting & set(node_ids)

    def _is_waited_at(self, place: Place) -> bool:
        return next(self._parents(place), None) is not None

    def has_slot(self, optimizer_id: int, variable_id: int, slot_name: str) -> bool:
        """Whether a slot was restored, or has newer values."""
        slot_id, _ = self._slots.get((optimizer_id, variable_id), {}).get(slot_name, (None, None))
        return slot_id in self.restored or slot_id in self.superseded

    def __del__(self) -> None:
        try:
            if not self.expects_partial:
                self._warn_of_unrestored()
        except Exception:
            # While Python shuts down, parts of this very module may be gone already.
            pass

    def _warn_of_unrestored(self) -> None:
        """TensorFlow's warning at deletion, as one line."""
        values = [self.graph.readable(node_id) for node_id in self.unresolved()]
        attributes = [
            f"{self.graph.readable(node_id)}: {', '.join(names)}" for node_id, names in self.unused_attributes.items()
        ]
        if not values and not attributes:
            return
        told = []
        if values:
            told.append(f"values that could not be found in the restored objects: {_listed(values)}")
        if attributes:
            told.append(f"attributes that the restored objects do not know: {_listed(attributes)}")
        _logger.warning(
            "Objects are being deleted with unrestored values of %r; %s. If that is what you expect, say so with "
            "status.expect_partial(); to see it as an error, use status.assert_consumed().",
            self.reader.file_prefix,
            "; ".join(told),
        )


def _at_root(holder_reference: weakref.ref[Any], name: str | None) -> object | None:
    holder = holder_reference()
    if holder is None:
        return None
    with contextlib.suppress(ReferenceError):
        root: object = holder._graph_root() if name is None else holder._attached().get(name)
        return root
    return None


def _listed(names: list[str]) -> str:
    left = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f", and {left} more" if left > 0 else "")
