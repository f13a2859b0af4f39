"""The saved object graph as plain values."""

from __future__ import annotations

import dataclasses
from collections import deque
from functools import cached_property

from torch_trackckpt.graph.keys import object_path, readable_path

__all__ = ["Attribute", "Child", "Node", "ObjectGraph", "SlotVariable"]


@dataclasses.dataclass(frozen=True)
class Child:
    """An edge: a reference from one node to another."""

    node_id: int
    local_name: str


@dataclasses.dataclass(frozen=True)
class Attribute:
    """A value that a node owns."""

    name: str
    full_name: str
    checkpoint_key: str


@dataclasses.dataclass(frozen=True)
class SlotVariable:
    """Optimizer state for one variable, recorded in the optimizer's node."""

    variable_id: int
    slot_name: str
    slot_id: int


@dataclasses.dataclass(frozen=True)
class Node:
    """One object."""

    children: tuple[Child, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    slot_variables: tuple[SlotVariable, ...] = ()
    registered_saver: tuple[str, str] | None = None
    """Name and object name, where an object is saved by a function of its own."""
    has_checkpoint_values: bool | None = None
    """Whether it or anything below it owns a value; None in files from before this was recorded."""


@dataclasses.dataclass(frozen=True)
class ObjectGraph:
    """All objects reachable from the root, which is node 0. A node's id is its index."""

    nodes: tuple[Node, ...]

    @cached_property
    def local_names(self) -> dict[int, tuple[str, ...]]:
        """The shortest way from the root to each node that children lead to."""
        names: dict[int, tuple[str, ...]] = {0: ()}
        queue = deque([0])
        while queue:
            parent = queue.popleft()
            for child in self.nodes[parent].children:
                if child.node_id not in names:
                    names[child.node_id] = (*names[parent], child.local_name)
                    queue.append(child.node_id)
        return names

    @cached_property
    def node_ids(self) -> dict[str, int]:
        """Node ids by object path, for the paths of `local_names`."""
        # The root's path is empty, and so is that of a child without a name: the earlier node has it.
        return {object_path(names): node_id for node_id, names in reversed(self.local_names.items())}

    @cached_property
    def readable_paths(self) -> tuple[str, ...]:
        """For each node, what messages call it; a slot's name tells its optimizer and its variable."""
        paths = {node_id: readable_path(names) for node_id, names in self.local_names.items()}
        for node_id, node in enumerate(self.nodes):
            for slot in node.slot_variables:
                optimizer = paths.get(node_id, f"node {node_id}")
                variable = paths.get(slot.variable_id, f"node {slot.variable_id}")
                paths.setdefault(slot.slot_id, f"{optimizer}'s state '{slot.slot_name}' for {variable}")
        return tuple(paths.get(node_id, f"node {node_id}") for node_id in range(len(self.nodes)))
