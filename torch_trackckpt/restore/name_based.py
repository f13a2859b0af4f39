"""Checkpoints without an object graph: each variable is looked up under its own full name.

Such a file gets the object graph that it would have had if the program had written it, with those values that it
holds under the variables' names. From there on it is restored like any other.

    variable        its dotted name in the `state_dict` of its outermost module; outside of modules, and where
                    several variables share a name, the dotted path from the root
    slot variable   <variable's name>/<slot name>
"""

from __future__ import annotations

import collections
import weakref
from collections.abc import Callable, Container, Hashable
from typing import Any

from torch_trackckpt.graph.object_graph import Attribute, Child, Node, ObjectGraph, SlotVariable
from torch_trackckpt.graph.walk import LiveGraph, LiveNode
from torch_trackckpt.trackable import VARIABLE_VALUE, SlotOwner

__all__ = ["Restored", "graph_by_names", "names_of_variables"]


class Restored:
    """Identities of objects that have their values; of slots, those of optimizer and variable with the slot's name.

    An identity is a place in memory, so one counts only as long as its objects live.
    """

    def __init__(self) -> None:
        self._objects: dict[Hashable, tuple[weakref.ref[Any], ...]] = {}

    def add(self, identity: Hashable, *objects: Any) -> None:
        """Adds an identity, and whose it is."""
        self._objects[identity] = tuple(weakref.ref(value) for value in objects)

    def __contains__(self, identity: object) -> bool:
        references = self._objects.get(identity)
        return references is not None and all(reference() is not None for reference in references)


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
    done: Container[Hashable] = (),
) -> ObjectGraph:
    """The live graph as a saved one.

    Args:
        live: the objects.
        name_in_file: from a variable's name to what the file calls it.
        is_stored: whether the file has a value of a name.
        done: identities of objects that have their values already.
    """
    names = names_of_variables(live)
    ids = {identity: node_id for node_id, identity in enumerate(live.nodes)}

    def attributes(identity: Hashable, name: str) -> tuple[Attribute, ...]:
        key = name_in_file(name)
        return (Attribute(VARIABLE_VALUE, name, key),) if identity not in done and is_stored(key) else ()

    slots_of: dict[int, list[SlotVariable]] = {}
    slot_nodes: list[Node] = []
    for optimizer, slot_name, variable, _ in live.slots():
        variable_identity = variable.trackable._identity()
        identity = (optimizer.trackable._identity(), variable_identity, slot_name)
        found = attributes(identity, f"{names[variable_identity]}/{slot_name}")
        if found:
            slot = SlotVariable(ids[variable_identity], slot_name, len(ids) + len(slot_nodes))
            slots_of.setdefault(ids[optimizer.trackable._identity()], []).append(slot)
            slot_nodes.append(Node(attributes=found, has_checkpoint_values=True))
    nodes = [
        Node(
            children=_children(node, ids),
            attributes=attributes(identity, names[identity]) if identity in names else (),
            slot_variables=tuple(slots_of.get(ids[identity], ())),
        )
        for identity, node in live.nodes.items()
    ]
    return ObjectGraph((*nodes, *slot_nodes))


def _children(node: LiveNode, ids: dict[Hashable, int]) -> tuple[Child, ...]:
    # What completes an optimizer's slots is not in the file, and must not be taken for a part of it.
    left_out = node.trackable._children_with_slots if isinstance(node.trackable, SlotOwner) else ()
    return tuple(Child(ids[identity], name) for name, identity in node.children if name not in left_out)
