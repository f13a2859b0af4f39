"""The saved object graph as plain values."""

from __future__ import annotations

import dataclasses
import operator
from collections import deque
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import overload

from torch_trackckpt import _native
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


class _SavedNodes(Sequence[Node]):
    """The nodes of a checkpoint, each made when it is first asked for."""

    def __init__(self, saved: _native.SavedGraph) -> None:
        self._saved = saved
        self._made: dict[int, Node] = {}

    def __len__(self) -> int:
        return len(self._saved)

    @overload
    def __getitem__(self, index: int) -> Node: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Node]: ...
    def __getitem__(self, index: int | slice) -> Node | Sequence[Node]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        node_id = range(len(self))[index]
        if node_id not in self._made:
            self._made[node_id] = self._make(node_id)
        return self._made[node_id]

    def _make(self, node_id: int) -> Node:
        saved = self._saved
        return Node(
            children=tuple(Child(*child) for child in saved.children(node_id)),
            attributes=tuple(Attribute(*attribute) for attribute in saved.attributes(node_id)),
            slot_variables=tuple(SlotVariable(*slot) for slot in saved.slots(node_id)),
            registered_saver=saved.registered_saver(node_id),
            has_checkpoint_values=saved.has_values(node_id),
            module_version=saved.module_version(node_id),
        )

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _SavedNodes) and self._saved.record == other._saved.record:
            return True
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True)
class ObjectGraph:
    """All objects reachable from the root, which is node 0. A node's id is its index."""

    nodes: Sequence[Node]
    as_saved: ObjectGraph | None = dataclasses.field(default=None, compare=False, repr=False)
    """What is in the file, where this is the graph with names that modules have given to what older ones saved."""
    saved: _native.SavedGraph | None = dataclasses.field(default=None, compare=False, repr=False)
    """The same without a Python object for each node, where this is what is in the file."""

    @classmethod
    def of(cls, saved: _native.SavedGraph) -> ObjectGraph:
        """The graph of a checkpoint."""
        return cls(_SavedNodes(saved), saved=saved)

    def child(self, node_id: int, local_name: str) -> int | None:
        """The child of a node under a name, the first of several."""
        if self.saved is not None:
            return self.saved.find_child(node_id, local_name)
        return next((c.node_id for c in self.nodes[node_id].children if c.local_name == local_name), None)

    def attributes(self, node_id: int) -> tuple[Attribute, ...]:
        """The values that a node owns."""
        if self.saved is not None:
            return tuple(Attribute(*attribute) for attribute in self.saved.attributes(node_id))
        return self.nodes[node_id].attributes

    def nodes_with_slots(self) -> Iterable[int]:
        """Every node that has slot variables."""
        if self.saved is not None:
            return self.saved.nodes_with_slots()
        return [node_id for node_id, node in enumerate(self.nodes) if node.slot_variables]

    def nodes_with_values(self) -> Iterable[int]:
        """Every node that owns values, or has a saver of its own."""
        if self.saved is not None:
            return self.saved.nodes_with_values()
        return [node_id for node_id, node in enumerate(self.nodes) if node.attributes or node.registered_saver]

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
        owner = self._slot_owner(node_id)
        if owner is None:
            return self._readable_object(node_id)
        optimizer_id, variable_id, slot_name = owner
        return f"{self._readable_object(optimizer_id)}'s state '{slot_name}' for {self._readable_object(variable_id)}"

    def _readable_object(self, node_id: int) -> str:
        names = self._names(node_id)
        if names is None:
            has_older_name = self.as_saved is not None and node_id < len(self.as_saved.nodes)
            return self.as_saved.readable(node_id) if self.as_saved and has_older_name else f"node {node_id}"
        return readable_path(names)

    def _names(self, node_id: int) -> tuple[str, ...] | None:
        """The names on the shortest way from the root; None where children do not lead to a node."""
        if self.saved is not None:
            return self.saved.names(node_id)
        names = []
        while node_id:
            if node_id not in self._parents:
                return None
            node_id, name = self._parents[node_id]
            names.append(name)
        return tuple(reversed(names))

    def _slot_owner(self, node_id: int) -> tuple[int, int, str] | None:
        return self._slot_owners.get(node_id) if self.saved is None else self.saved.slot_owner(node_id)

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
    def _slot_owners(self) -> dict[int, tuple[int, int, str]]:
        return {
            slot.slot_id: (node_id, slot.variable_id, slot.slot_name)
            for node_id, node in enumerate(self.nodes)
            for slot in node.slot_variables
        }

    def _children_by_part(self, node_id: int) -> dict[str, int]:
        if node_id not in self._lookups:
            if self.saved is not None:
                children = self.saved.children(node_id)
            else:
                children = tuple((child.node_id, child.local_name) for child in self.nodes[node_id].children)
            self._lookups[node_id] = {escape(name): child_id for child_id, name in reversed(children)}
        return self._lookups[node_id]

    @cached_property
    def _lookups(self) -> dict[int, dict[str, int]]:
        return {}
