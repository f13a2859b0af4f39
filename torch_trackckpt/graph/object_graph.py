"""The saved object graph as plain values."""

from __future__ import annotations

import dataclasses
from collections import deque
from functools import cached_property

from torch_trackckpt.graph.keys import escape, readable_path

__all__ = ["Attribute", "Child", "Node", "ObjectGraph", "SlotVariable"]


@dataclasses.dataclass(frozen=True, slots=True)
class Child:
    """An edge: a reference from one node to another."""

    node_id: int
    local_name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Attribute:
    """A value that a node owns."""

    name: str
    full_name: str
    checkpoint_key: str


@dataclasses.dataclass(frozen=True, slots=True)
class SlotVariable:
    """Optimizer state for one variable, recorded in the optimizer's node."""

    variable_id: int
    slot_name: str
    slot_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """One object."""

    children: tuple[Child, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    slot_variables: tuple[SlotVariable, ...] = ()
    registered_saver: tuple[str, str] | None = None
    """Name and object name, where an object is saved by a function of its own."""
    has_checkpoint_values: bool | None = None
    """Whether it or anything below it owns a value; None in files from before this was recorded."""
    module_version: int | None = None
    """The ``_version`` of the module that it was saved from; None where that was 1, or the node is no module's."""


@dataclasses.dataclass(frozen=True)
class ObjectGraph:
    """All objects reachable from the root, which is node 0. A node's id is its index."""

    nodes: tuple[Node, ...]
    as_saved: ObjectGraph | None = dataclasses.field(default=None, compare=False, repr=False)
    """What is in the file, where this is the graph with names that modules have given to what older ones saved."""

    def find(self, path: str) -> int | None:
        """The node that an object path of the file leads to."""
        if self.as_saved is not None:
            return self.as_saved.find(path)
        node_id: int | None = 0
        for part in path.split("/") if path else ():
            node_id = None if node_id is None else self._children_by_part(node_id).get(part)
        return node_id

    def descendants(self) -> list[int]:
        """The nodes that children lead to from the root, breadth first, with the root; slot variables are not among
        them."""
        return [0, *self._parents]

    def readable(self, node_id: int) -> str:
        """What messages call a node; for a slot variable it tells the optimizer and the variable."""
        if node_id not in self._slot_owners:
            return self._readable_object(node_id)
        optimizer_id, slot = self._slot_owners[node_id]
        return (
            f"{self._readable_object(optimizer_id)}'s state '{slot.slot_name}' "
            f"for {self._readable_object(slot.variable_id)}"
        )

    def _readable_object(self, node_id: int) -> str:
        if node_id and node_id not in self._parents:
            has_older_name = self.as_saved is not None and node_id < len(self.as_saved.nodes)
            return self.as_saved.readable(node_id) if self.as_saved and has_older_name else f"node {node_id}"
        names = []
        while node_id:
            node_id, name = self._parents[node_id]
            names.append(name)
        return readable_path(tuple(reversed(names)))

    @cached_property
    def _parents(self) -> dict[int, tuple[int, str]]:
        """For each node that children lead to, the node before it on the shortest way from the root."""
        parents: dict[int, tuple[int, str]] = {}
        queue = deque([0])
        while queue:
            parent = queue.popleft()
            for child in self.nodes[parent].children:
                if child.node_id and child.node_id not in parents:
                    parents[child.node_id] = (parent, child.local_name)
                    queue.append(child.node_id)
        return parents

    @cached_property
    def _slot_owners(self) -> dict[int, tuple[int, SlotVariable]]:
        return {
            slot.slot_id: (node_id, slot) for node_id, node in enumerate(self.nodes) for slot in node.slot_variables
        }

    def _children_by_part(self, node_id: int) -> dict[str, int]:
        if node_id not in self._lookups:
            children = reversed(self.nodes[node_id].children)
            self._lookups[node_id] = {escape(child.local_name): child.node_id for child in children}
        return self._lookups[node_id]

    @cached_property
    def _lookups(self) -> dict[int, dict[str, int]]:
        return {}
