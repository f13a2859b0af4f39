"""Values that wait for objects: what is attached after a restore gets its values when it is attached.

Attributes of `AutoTrackable` objects, `Checkpoint` among them, are noticed when they are set.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import torch

from torch_trackckpt.adapters import is_trackable
from torch_trackckpt.bundle.reader import CheckpointReader
from torch_trackckpt.graph.walk import LiveGraph
from torch_trackckpt.options import CheckpointOptions
from torch_trackckpt.restore.assign import assign_values
from torch_trackckpt.restore.match import Match, match, match_late
from torch_trackckpt.restore.name_based import graph_by_names, names_of_variables
from torch_trackckpt.trackable import AutoTrackable

__all__ = ["DeferredRestore", "DeferredRestoreByNames"]


class _Deferred:
    """Listens to attributes that are set, until another restore takes its place."""

    def __init__(self) -> None:
        self._listening_to: dict[int, AutoTrackable] = {}

    def listen(self, live: LiveGraph, *others: AutoTrackable) -> None:
        """Listens to every object that tells of its attributes."""
        for trackable in (*(node.trackable for node in live.nodes.values()), *others):
            if isinstance(trackable, AutoTrackable) and id(trackable) not in self._listening_to:
                self._listening_to[id(trackable)] = trackable
                trackable._add_listener(self.attached)

    def cancel(self) -> None:
        """Stops listening."""
        for trackable in self._listening_to.values():
            trackable._remove_listener(self.attached)
        self._listening_to.clear()

    def attached(self, parent: AutoTrackable, name: str, child: object) -> None:
        """Called when an attribute was set."""
        raise NotImplementedError


class DeferredRestore(_Deferred):
    """What is left of a restore by object graph.

    Args:
        matched: what was matched so far; grows.
        reader: the checkpoint.
        options: those of the restore.
        holder: the object whose attributes count as children of node 0 without being the root, if there is one.
        discover: walks the live objects as they are now.
    """

    def __init__(
        self,
        matched: Match,
        reader: CheckpointReader,
        options: CheckpointOptions,
        holder: AutoTrackable,
        discover: Callable[[], LiveGraph],
    ) -> None:
        super().__init__()
        self._match, self._reader, self._options = matched, reader, options
        self._holder, self._discover = holder, discover
        self.listen(discover(), holder)

    def attached(self, parent: AutoTrackable, name: str, child: object) -> None:
        node_ids = [node_id for node_id, bound in self._match.bound.items() if bound is parent]
        if parent is self._holder and 0 not in node_ids:
            node_ids.append(0)
        skip_slots = self._options.experimental_skip_slot_variables
        late = match_late(self._match, node_ids, name, child, self._reader.stored, skip_slot_variables=skip_slots)
        if late.values or late.slots:
            with torch.inference_mode(False):
                assign_values(late, self._reader, self._options)
            self.listen(self._discover())


class DeferredRestoreByNames(_Deferred):
    """A restore by names, of the objects that are there and of those that will be.

    Args:
        reader: the checkpoint, which has no object graph.
        options: those of the restore.
        root: the root of the live objects.
        attached: children of the root that are not known to it.
        holder: the object whose attributes they are.
        discover: walks the live objects as they are now.
    """

    def __init__(
        self,
        reader: CheckpointReader,
        options: CheckpointOptions,
        root: object,
        attached: Callable[[], Mapping[str, object]],
        holder: AutoTrackable,
        discover: Callable[[], LiveGraph],
    ) -> None:
        super().__init__()
        self._reader, self._options = reader, options
        self._root, self._attached_children = root, attached
        self._holder, self._discover = holder, discover
        self.restored: set[Hashable] = set()
        """Identities of objects that have their values; of slots, those of optimizer and variable together."""

    def run(self) -> None:
        """Restores the objects that are there and have not got their values yet."""
        live = self._discover()
        graph = graph_by_names(live, self._options.name_in_file, self._reader.has_tensor, self.restored)
        skip_slots = self._options.experimental_skip_slot_variables
        matched = match(
            graph, self._root, self._attached_children(), self._reader.stored, skip_slot_variables=skip_slots
        )
        with torch.inference_mode(False):
            assign_values(matched, self._reader, self._options)
        self.restored |= matched.values.keys() | matched.slots.keys()
        self.listen(live, self._holder)

    def attached(self, parent: AutoTrackable, name: str, child: object) -> None:
        if is_trackable(child):
            self.run()

    def missing(self, optional: object = None) -> list[str]:
        """What the live objects want and the checkpoint does not have.

        Args:
            optional: a live object that need not be there.
        """
        self.run()
        live = self._discover()
        names = names_of_variables(live)
        unrestored = names.keys() - self.restored - {id(optional)}
        missing = [node.readable for identity, node in live.nodes.items() if identity in unrestored]
        if not self._options.experimental_skip_slot_variables:
            missing += [
                f"{optimizer.readable}'s state '{slot_name}' for {variable.readable}"
                for optimizer, slot_name, variable, _ in live.slots()
                if (optimizer.trackable._identity(), variable.trackable._identity()) not in self.restored
            ]
        return missing
