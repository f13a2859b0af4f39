"""Values that wait for objects: what is attached after a restore gets its values when it is attached.

Attributes of `AutoTrackable` objects, `Checkpoint` among them, are noticed when they are set. What waits refers to live
objects weakly, so that it keeps none of them alive.
"""

from __future__ import annotations

import abc
import weakref
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from torch_trackckpt.adapters import is_trackable
from torch_trackckpt.autotrackable import AutoTrackable
from torch_trackckpt.bundle.reader import CheckpointReader
from torch_trackckpt.graph.walk import LiveGraph
from torch_trackckpt.options import CheckpointOptions
from torch_trackckpt.restore.assign import assign_values
from torch_trackckpt.restore.match import Match, match, match_late
from torch_trackckpt.restore.name_based import Restored, graph_by_names, names_of_variables
from torch_trackckpt.trackable import Trackable

__all__ = ["DeferredRestore", "DeferredRestoreByNames"]


class Holder(Protocol):
    """The checkpoint whose attributes count as children of the root."""

    def _graph_root(self) -> object: ...
    def _attached(self) -> Mapping[str, object]: ...
    def _discover(self) -> LiveGraph: ...


class _Deferred(abc.ABC):
    """Listens to attributes that are set, until another restore takes its place."""

    def __init__(self, reader: CheckpointReader, options: CheckpointOptions, holder: Any) -> None:
        self._reader, self._options = reader, options
        self._holder = weakref.ref(holder)
        self._listening_to: list[weakref.ref[AutoTrackable]] = []

    def listen(self, live: LiveGraph) -> None:
        """Listens to every object that tells of its attributes."""
        known = {id(reference()) for reference in self._listening_to}
        for trackable in (*(node.trackable for node in live.nodes.values()), self._holder()):
            if isinstance(trackable, AutoTrackable) and id(trackable) not in known:
                known.add(id(trackable))
                self._listening_to.append(weakref.ref(trackable))
                trackable._add_listener(self.attached)

    def cancel(self) -> None:
        """Stops listening."""
        for reference in self._listening_to:
            if (trackable := reference()) is not None:
                trackable._remove_listener(self.attached)
        self._listening_to.clear()

    @abc.abstractmethod
    def attached(self, parent: AutoTrackable, name: str, child: object) -> None:
        """Called when an attribute was set."""


def _object_of(trackable: Trackable) -> Any:
    return getattr(trackable, "adapted", trackable)


def _weak(value: Any) -> weakref.ref[Any] | None:
    """A weak reference; None for the lists and dicts that have none."""
    try:
        return weakref.ref(value)
    except TypeError:
        return None


class DeferredRestore(_Deferred):
    """What is left of a restore by object graph.

    Args:
        matched: what was matched so far, and assigned; it is the status's, and grows.
        reader: the checkpoint.
        options: those of the restore.
        holder: the object whose attributes count as children of node 0 without being the root, if there is one.
    """

    def __init__(self, matched: Match, reader: CheckpointReader, options: CheckpointOptions, holder: Holder) -> None:
        super().__init__(reader, options, holder)
        self._graph = matched.graph
        self._match = weakref.ref(matched)
        self._objects: dict[int, weakref.ref[Any] | None] = {}
        self._has_values: set[int] = set()
        self._remember(matched)
        self.listen(holder._discover())

    def _remember(self, matched: Match) -> None:
        for node_id, trackable in matched.bound.items():
            value = _object_of(trackable)
            # A part that an adapter made up is another object each time.
            is_made_up = trackable._identity() != id(value)
            self._objects.setdefault(node_id, None if is_made_up else _weak(value))
        self._has_values |= {bound.node_id for bound in matched.values.values()} | matched.bound_slot_ids
        # A state that speaks of objects which are not there yet is taken again, with its tensors, when more come.
        stack = list(matched.incomplete)
        while stack:
            node_id = stack.pop()
            self._has_values.discard(node_id)
            self._objects.pop(node_id, None)
            stack += [child.node_id for child in self._graph.nodes[node_id].children]

    def attached(self, parent: AutoTrackable, name: str, child: object) -> None:
        holder = self._holder()
        if holder is None or not is_trackable(child) or not self._waits(parent, name, holder):
            return
        with torch.inference_mode(False):
            late = match_late(
                self._graph,
                holder._graph_root(),
                holder._attached(),
                self._reader.stored,
                objects=self._objects,
                has_values=self._has_values,
                skip_slot_variables=self._options.experimental_skip_slot_variables,
            )
            assign_values(late, self._reader, self._options)
        self._remember(late)
        if (matched := self._match()) is not None:
            matched.add(late)
        self.listen(holder._discover())

    def _waits(self, parent: object, name: str, holder: object) -> bool:
        node_ids = [node_id for node_id, reference in self._objects.items() if reference and reference() is parent]
        if parent is holder:
            node_ids.append(0)
        return any(
            child.local_name == name and child.node_id not in self._objects
            for node_id in node_ids
            for child in self._graph.nodes[node_id].children
        )


class DeferredRestoreByNames(_Deferred):
    """A restore by names, of the objects that are there and of those that will be.

    Args:
        reader: the checkpoint, which has no object graph.
        options: those of the restore.
        holder: the object whose attributes are children of the root that are not known to it.
    """

    def __init__(self, reader: CheckpointReader, options: CheckpointOptions, holder: Holder) -> None:
        super().__init__(reader, options, holder)
        self.restored = Restored()

    def run(self) -> None:
        """Restores the objects that are there and have not got their values yet."""
        holder = self._holder()
        if holder is None:
            return
        live = holder._discover()
        graph = graph_by_names(live, self._options.name_in_file, self._reader.has_tensor, self.restored)
        skip_slots = self._options.experimental_skip_slot_variables
        with torch.inference_mode(False):
            matched = match(
                graph, holder._graph_root(), holder._attached(), self._reader.stored, skip_slot_variables=skip_slots
            )
            assign_values(matched, self._reader, self._options)
        for identity, bound in matched.values.items():
            self.restored.add(identity, _object_of(bound.trackable))
        for (owner, variable), slots in matched.slots.items():
            for name in slots.slots:
                self.restored.add((owner, variable, name), _object_of(slots.optimizer), slots.variable)
        self.listen(live)

    def attached(self, parent: AutoTrackable, name: str, child: object) -> None:
        if is_trackable(child):
            self.run()

    def missing(self, holder: Holder, optional: object = None) -> list[str]:
        """What the live objects want and the checkpoint does not have.

        Args:
            holder: the checkpoint; asking for it keeps it alive.
            optional: a live object that need not be there.
        """
        self.run()
        live = holder._discover()
        names = names_of_variables(live)
        missing = [
            node.readable
            for identity, node in live.nodes.items()
            if identity in names and identity not in self.restored and identity != id(optional)
        ]
        if not self._options.experimental_skip_slot_variables:
            missing += [
                f"{optimizer.readable}'s state '{slot_name}' for {variable.readable}"
                for optimizer, slot_name, variable, _ in live.slots()
                if (optimizer.trackable._identity(), variable.trackable._identity(), slot_name) not in self.restored
            ]
        return missing
