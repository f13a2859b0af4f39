"""Checkpoints without an object graph: each variable is looked up under its own full name.

Such a file gets the object graph that it would have had if the program had written it, with those values that it
holds under the variables' names. From there on it is restored like any other.

    variable        its dotted name in the `state_dict` of its outermost module; outside of modules, and where
                    several variables share a name, the dotted path from the root
    slot variable   <variable's name>/<slot name>
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from torch_trackckpt.adapters.late_children import SLOTS
from torch_trackckpt.bundle.reader import CheckpointReader, StoredTensor
from torch_trackckpt.devices.access import Devices
from torch_trackckpt.graph.object_graph import Attribute, Child, Node, ObjectGraph, SlotVariable
from torch_trackckpt.graph.walk import LiveGraph, LiveNode, discover, live_object
from torch_trackckpt.options import CheckpointOptions
from torch_trackckpt.restore.assign import assign_values
from torch_trackckpt.restore.holder import Holder
from torch_trackckpt.restore.match import Matcher, slots_of
from torch_trackckpt.restore.materialize import give_memory, initialize, take_memory
from torch_trackckpt.trackable import VARIABLE_VALUE, SlotOwner, TrackedContainer
from torch_trackckpt.tracking.autotrackable import AutoTrackable
from torch_trackckpt.update_uid import new_uid, set_update_uid, update_uid

__all__ = ["NameBasedRestoration", "WantedValue"]


@dataclasses.dataclass(frozen=True)
class WantedValue:
    """A live tensor, and what became of its value."""

    key: str
    """What the checkpoint calls it, if it has it."""
    variable: LiveNode
    slot: tuple[LiveNode, str] | None
    """For a slot of the variable: the optimizer, and the name of the slot."""
    tensor: torch.Tensor
    is_stored: bool
    is_restored: bool
    is_superseded: bool
    """Whether the tensor has values of a later restore."""


class NameBasedRestoration:
    """A restore by names, of the objects that are there and of those that will be.

    Attributes of `AutoTrackable` objects and elements of their lists and dicts are noticed when they are set;
    everything else by the status's assertions.

    Args:
        reader: the checkpoint, which has no object graph.
        options: those of the restore.
        holder: the object whose attributes are children of the root that are not known to it.
        devices: the links to devices.
    """

    def __init__(self, reader: CheckpointReader, options: CheckpointOptions, holder: Holder, devices: Devices) -> None:
        self._uid = new_uid()
        self._reader, self._options = reader, options
        self._devices = devices
        self._holder = weakref.ref(holder)
        self._given: set[tuple[str, int]] = set()
        """The names that have been restored, and the places in memory of the objects that were."""

    def run(self) -> int:
        """Restores the objects that are there and have not got their values yet; returns how many bytes that took.

        Raises:
            ReferenceError: the root was given as a weak reference, and is gone.
            What `assign_values` raises.
        """
        holder = self._holder()
        if holder is None:
            return 0
        root = holder._graph_root()
        live = discover(root, holder._attached())
        self._number_swapped(live)
        graph = graph_by_names(live, self._options.name_in_file, self._reader.has_tensor)
        skip_slots = self._options.experimental_skip_slot_variables
        matcher = Matcher(graph, self._reader.stored, self._uid, skip_slot_variables=skip_slots)
        matcher.start(root, holder._attached())
        with torch.inference_mode(False):
            matcher.pair_slots(slots_of(graph))
            num_bytes = assign_values(matcher.match, self._reader, self._options, self._devices)
        self._given = {(name, id(value)) for value, name in _variables_of(live) if update_uid(value) >= self._uid}
        told = [node.trackable for node in live.nodes.values()]
        if isinstance(holder, AutoTrackable):
            told.append(holder)
        for trackable in told:
            is_telling = isinstance(live_object(trackable), (AutoTrackable, TrackedContainer))
            if is_telling and (waiting := trackable._waiting()) is not None:
                waiting.watch(self._look)
        return num_bytes

    def _number_swapped(self, live: LiveGraph) -> None:
        """A tensor that was converted by swapping has lost its number; it is the same, and not restored again."""
        if torch.__future__.get_swap_module_params_on_conversion():
            for value, name in _variables_of(live):
                if (name, id(value)) in self._given and update_uid(value) < self._uid:
                    set_update_uid(value, self._uid)

    def _look(self) -> None:
        """An object got another child; the root may be gone by now."""
        with contextlib.suppress(ReferenceError):
            self.run()

    def materialize(self, device: torch.device) -> None:
        """Gives tensors on the meta device that the checkpoint has values for their memory and values.

        Raises:
            What `assign_values` raises; the tensors are on the meta device then.
        """
        with contextlib.ExitStack() as undo:
            for tensor, name in self._unmade():
                undo.callback(take_memory, tensor, give_memory(tensor, device, name))
            self.run()
            undo.pop_all()

    def initialize(self, device: torch.device) -> None:
        """As `materialize`, and initialises modules that the checkpoint has not all values for."""
        holder = self._holder()
        with contextlib.ExitStack() as undo:
            if holder is not None:
                live = discover(holder._graph_root(), holder._attached())
                initialize(live, [tensor for tensor, _ in self._unmade()], device, undo)
            self.materialize(device)
            undo.pop_all()

    def _unmade(self) -> list[tuple[torch.Tensor, str]]:
        return [(value, name) for value, name in self._variables() if value.is_meta and self._is_stored(name)]

    def _variables(self) -> list[tuple[Any, str]]:
        """Live variables and their names."""
        holder = self._holder()
        if holder is None:
            return []
        return _variables_of(discover(holder._graph_root(), holder._attached()))

    def _is_stored(self, name: str) -> bool:
        return self._reader.has_tensor(self._options.name_in_file(name))

    def stored_values(self) -> list[StoredTensor]:
        """What the checkpoint holds."""
        return [self._reader.stored(name) for name in self._reader]

    def wanted(self, holder: Holder) -> list[WantedValue]:
        """What the live objects want of the checkpoint, whether it has it or not.

        Args:
            holder: the checkpoint object; asking for it keeps it alive.
        """
        live = discover(holder._graph_root(), holder._attached())
        names = names_of_variables(live)
        wanted = [
            self._wanted(name, live.nodes[identity], live_object(live.nodes[identity].trackable))
            for identity, name in names.items()
        ]
        if not self._options.experimental_skip_slot_variables:
            for optimizer, slot_name, variable, tensor in live.slots():
                name = _slot_name(names[variable.trackable._identity()], slot_name)
                wanted.append(self._wanted(name, variable, tensor, (optimizer, slot_name)))
        return wanted

    def _wanted(
        self, name: str, variable: LiveNode, tensor: torch.Tensor, slot: tuple[LiveNode, str] | None = None
    ) -> WantedValue:
        value = live_object(variable.trackable)
        uid = update_uid(value) if slot is None else update_uid(slot[0].trackable._owner()[0], (SLOTS, id(value)))
        is_stored = self._is_stored(name)
        # A slot that the checkpoint lacks is not restored, although others of its variable may be.
        uid = uid if slot is None or is_stored else -1
        return WantedValue(
            self._options.name_in_file(name),
            variable,
            slot,
            tensor,
            is_stored=is_stored,
            is_restored=uid == self._uid,
            is_superseded=uid > self._uid,
        )


def _slot_name(variable_name: str, slot_name: str) -> str:
    return f"{variable_name}/{slot_name}"


def _variables_of(live: LiveGraph) -> list[tuple[Any, str]]:
    """Live variables and their names."""
    return [(live_object(live.nodes[identity].trackable), name) for identity, name in names_of_variables(live).items()]


def names_of_variables(live: LiveGraph) -> dict[Hashable, str]:
    """Every variable's identity with its name."""
    variables = {
        identity: node for identity, node in live.nodes.items() if VARIABLE_VALUE in node.trackable._attribute_names()
    }
    names = {identity: node.full_name for identity, node in variables.items()}
    # A path may be the name of yet another variable, which then goes by its path as well.
    while shared := {name for name, count in collections.Counter(names.values()).items() if count > 1}:
        paths = {identity: ".".join(variables[identity].names) for identity in names if names[identity] in shared}
        if paths.items() <= names.items():
            break
        names |= paths
    return names


def graph_by_names(
    live: LiveGraph,
    name_in_file: Callable[[str], str],
    is_stored: Callable[[str], bool],
) -> ObjectGraph:
    """The live graph as a saved one.

    Args:
        live: the objects.
        name_in_file: from a variable's name to what the file calls it.
        is_stored: whether the file has a value of a name.
    """
    names = names_of_variables(live)
    ids = {identity: node_id for node_id, identity in enumerate(live.nodes)}

    def attributes(name: str) -> tuple[Attribute, ...]:
        key = name_in_file(name)
        return (Attribute(VARIABLE_VALUE, name, key),) if is_stored(key) else ()

    # A lazy module that does not find all of its parameters waits, as it does where they are not in a graph.
    left_lazy = {
        identity
        for identity, name in names.items()
        if is_lazy(live_object(live.nodes[identity].trackable)) and not is_stored(name_in_file(name))
    }
    ids_of_children = {identity: node_id for identity, node_id in ids.items() if identity not in left_lazy}
    slots_of: dict[int, list[SlotVariable]] = {}
    slot_nodes: list[Node] = []
    for optimizer, slot_name, variable, _ in live.slots():
        variable_identity = variable.trackable._identity()
        found = attributes(_slot_name(names[variable_identity], slot_name))
        if found:
            slot = SlotVariable(ids[variable_identity], slot_name, len(ids) + len(slot_nodes))
            slots_of.setdefault(ids[optimizer.trackable._identity()], []).append(slot)
            slot_nodes.append(Node(attributes=found, has_checkpoint_values=True))
    nodes = [
        Node(
            children=_children(node, ids_of_children),
            attributes=attributes(names[identity]) if identity in names else (),
            slot_variables=tuple(slots_of.get(ids[identity], ())),
        )
        for identity, node in live.nodes.items()
    ]
    return ObjectGraph((*nodes, *slot_nodes))


def _children(node: LiveNode, ids: dict[Hashable, int]) -> tuple[Child, ...]:
    # What completes an optimizer's slots is not in the file, and must not be taken for a part of it.
    left_out = node.trackable._children_with_slots if isinstance(node.trackable, SlotOwner) else ()
    children = [(name, identity) for name, identity in node.children if name not in left_out and identity in ids]
    return tuple(Child(ids[identity], name) for name, identity in children)
