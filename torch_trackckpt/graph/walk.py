"""From a root object to its object graph and its named tensors.

discover     breadth first over children: every reachable object once, with the path of its first discovery
capture      python states are encoded, which may refer to paths; their tensors become children
number       node ids in breadth-first order, slot variables after all ordinary nodes
collect      attributes and values, in the order in which a bundle takes them
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Hashable, Mapping
from typing import Any

import torch

from torch_trackckpt.adapters import adapt
from torch_trackckpt.adapters.module import ModuleAdapter
from torch_trackckpt.adapters.state_node import StateNode
from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.graph.keys import (
    attribute_key,
    escape,
    object_path,
    readable_path,
    slot_path,
)
from torch_trackckpt.graph.messages import encode_object_graph
from torch_trackckpt.graph.object_graph import Attribute, Child, Node, ObjectGraph, SlotVariable
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY, PYTHON_STATE, VARIABLE_VALUE, SlotOwner, Trackable, Value

__all__ = [
    "LiveGraph",
    "LiveNode",
    "NamedValue",
    "Snapshot",
    "capture",
    "children_of",
    "collect",
    "discover",
    "encode_state",
    "list_objects",
    "live_object",
    "values_of",
]


@dataclasses.dataclass
class LiveNode:
    """An object as the walk found it."""

    trackable: Trackable
    names: tuple[str, ...]
    """Local names from the root, on the way of its first discovery."""
    path: str
    module_depth: int | None
    """How many of the names lead to the outermost module above it; None where there is no module."""
    children: list[tuple[str, Hashable]] = dataclasses.field(default_factory=list)

    @property
    def full_name(self) -> str:
        """The name in the outermost module's ``state_dict``; outside modules, the dotted path."""
        return ".".join(self.names[self.module_depth or 0 :])

    @property
    def readable(self) -> str:
        """What messages call it."""
        return readable_path(self.names)


@dataclasses.dataclass
class LiveGraph:
    """Every trackable that can be reached from a root, by identity, in breadth-first order."""

    nodes: dict[Hashable, LiveNode]

    def path_of(self, value: object) -> str | None:
        """The object path of a live object, or None where the graph does not have it."""
        node = self.node_of(value)
        return None if node is None else node.path

    def node_of(self, value: object) -> LiveNode | None:
        """The node of a live object."""
        trackable = adapt(value)
        return None if trackable is None else self.nodes.get(trackable._identity())

    def slots(self) -> list[tuple[LiveNode, str, LiveNode, torch.Tensor]]:
        """Optimizer, slot name, variable and slot tensor, in the order in which slot nodes are numbered."""
        rank = {id(node): index for index, node in enumerate(self.nodes.values())}
        found = []
        for optimizer in self.nodes.values():
            if not isinstance(optimizer.trackable, SlotOwner):
                continue
            for slot_name, pairs in optimizer.trackable._slot_variables().items():
                reachable = [(self.node_of(variable), slot) for variable, slot in pairs]
                ordered = sorted(
                    ((node, slot) for node, slot in reachable if node is not None),
                    key=lambda pair: rank[id(pair[0])],
                )
                found += [(optimizer, slot_name, variable, slot) for variable, slot in ordered]
        return found


@dataclasses.dataclass(frozen=True)
class NamedValue:
    """A value and the key it is stored under."""

    key: str
    value: Value


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What a checkpoint will hold."""

    graph: ObjectGraph
    values: tuple[NamedValue, ...]
    """In the order of the data file; the object graph's own record is the last."""
    unreachable: tuple[str, ...]
    """Parameters with optimizer state that the root does not reach, so that their state is not saved."""


def capture(root: object, attached: Mapping[str, object] | None = None) -> LiveGraph:
    """Every trackable below a root with its python state encoded as it is now, in the order of the saved nodes.

    Args:
        root: becomes node 0.
        attached: further children of the root that are not known to the root object itself.

    Raises:
        UnsupportedValueError: a value cannot be saved; the text names its object path.
    """
    live = discover(root, attached)
    _capture_states(live)
    return live


def collect(live: LiveGraph) -> Snapshot:
    """The saved form of a graph whose states were captured.

    Raises:
        UnsupportedValueError: as `capture`.
    """
    return _Collector(live).collect()


def discover(root: object, attached: Mapping[str, object] | None = None) -> LiveGraph:
    """Every trackable below a root, breadth first."""
    trackable = adapt(root)
    if trackable is None:
        raise UnsupportedValueError(f"The root, a {type(root).__name__}, is not trackable.")
    root_id = trackable._identity()
    nodes = {root_id: LiveNode(trackable, (), "", _module_depth(trackable, (), None))}
    queue = deque([root_id])
    while queue:
        parent_id = queue.popleft()
        parent = nodes[parent_id]
        for name, child in children_of(parent, attached if parent_id == root_id else None).items():
            trackable = adapt(child)
            if trackable is None:
                continue
            child_id = trackable._identity()
            parent.children.append((name, child_id))
            if child_id not in nodes:
                names = (*parent.names, name)
                depth = _module_depth(trackable, names, parent.module_depth)
                nodes[child_id] = LiveNode(trackable, names, object_path(names), depth)
                queue.append(child_id)
    return LiveGraph(nodes)


def list_objects(root: object) -> list[object]:
    """Every object that a checkpoint of ``root`` would hold. TensorFlow's ``list_objects``.

    Returns:
        The live objects, breadth first from the root, then the slot tensors of optimizers whose parameters are among
        them. What an optimizer or module keeps beside its tensors is a part of it and no object of its own.

    Raises:
        UnsupportedValueError: the root is not trackable.

    Example:
        >>> import torch
        >>> from torch_trackckpt import list_objects
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> [type(item).__name__ for item in list_objects({"layer": layer})]
        ['dict', 'Linear', 'Parameter']
    """
    live = discover(root)
    trackables = [node.trackable for node in live.nodes.values()]
    objects = [live_object(item) for item in trackables if type(item) is not StateNode]
    return [*objects, *(slot for _, _, _, slot in live.slots())]


def live_object(trackable: Trackable) -> Any:
    """What a trackable stands for: the object behind an adapter, else the trackable itself."""
    return getattr(trackable, "adapted", trackable)


def children_of(node: LiveNode, attached: Mapping[str, object] | None = None) -> Mapping[str, object]:
    """The children of a node as they are now, and those that are attached to it; not all need be trackable.

    Raises:
        UnsupportedValueError: they cannot be saved; the text names the node.
    """
    try:
        children = node.trackable._trackable_children()
    except UnsupportedValueError as error:
        raise _cannot_be_saved(node, error) from error
    return {**children, **{name: attached[name] for name in attached if name not in children}} if attached else children


def values_of(node: LiveNode) -> Mapping[str, Value]:
    """The values of a node as they are now, by attribute name.

    Raises:
        UnsupportedValueError: as `children_of`.
    """
    try:
        return node.trackable._serialize_to_tensors()
    except UnsupportedValueError as error:
        raise _cannot_be_saved(node, error) from error


def encode_state(node: LiveNode, state: StateNode, live: LiveGraph) -> None:
    """Captures a node's python state as it is now.

    Raises:
        UnsupportedValueError: as `children_of`.
    """
    try:
        state.encode(live.path_of)
    except UnsupportedValueError as error:
        raise _cannot_be_saved(node, error) from error


def _cannot_be_saved(node: LiveNode, error: UnsupportedValueError) -> UnsupportedValueError:
    return type(error)(f"{node.readable} cannot be saved: {error}")


def _module_depth(trackable: Trackable, names: tuple[str, ...], inherited: int | None) -> int | None:
    if inherited is None and isinstance(trackable, ModuleAdapter):
        return len(names)
    return inherited


def _capture_states(live: LiveGraph) -> None:
    """Encodes every python state. Their tensors are new leaves, so they change no other object's path."""
    for node in list(live.nodes.values()):
        if not isinstance(node.trackable, StateNode):
            continue
        encode_state(node, node.trackable, live)
        for name, tensor in node.trackable._trackable_children().items():
            assert isinstance(tensor, Trackable)
            node.children.append((name, tensor._identity()))
            names = (*node.names, name)
            live.nodes[tensor._identity()] = LiveNode(tensor, names, object_path(names), node.module_depth)
    live.nodes = _renumbered(live.nodes)


def _renumbered(nodes: dict[Hashable, LiveNode]) -> dict[Hashable, LiveNode]:
    """The same nodes in breadth-first order."""
    root_id = next(iter(nodes))
    ordered = {root_id: nodes[root_id]}
    queue = deque([root_id])
    while queue:
        for _, child_id in ordered[queue.popleft()].children:
            if child_id not in ordered:
                ordered[child_id] = nodes[child_id]
                queue.append(child_id)
    return ordered


class _Collector:
    """Turns a live graph into its saved form."""

    def __init__(self, live: LiveGraph) -> None:
        self._live = live
        self._ids = {identity: index for index, identity in enumerate(live.nodes)}
        self._ids_of_nodes = {id(node): index for index, node in enumerate(live.nodes.values())}
        self._values: list[NamedValue] = []
        self._states: list[NamedValue] = []

    def collect(self) -> Snapshot:
        attributes = [self._attributes(node) for node in self._live.nodes.values()]
        slots_of, slot_nodes = self._slot_nodes()
        own_values = [bool(attributes[index]) or index in slots_of for index in range(len(attributes))]
        has_values = _with_ancestors(own_values, self._parents())
        nodes = [
            Node(
                children=tuple(Child(self._ids[child_id], name) for name, child_id in node.children),
                attributes=attributes[index],
                slot_variables=tuple(slots_of.get(index, ())),
                has_checkpoint_values=has_values[index],
                module_version=node.trackable._module_version(),
            )
            for index, node in enumerate(self._live.nodes.values())
        ]
        graph = ObjectGraph((*nodes, *slot_nodes))
        record = NamedValue(OBJECT_GRAPH_KEY, encode_object_graph(graph))
        return Snapshot(graph, (*self._values, *self._states, record), self._unreachable())

    def _attributes(self, node: LiveNode) -> tuple[Attribute, ...]:
        return tuple(self._attribute(node, name, value) for name, value in values_of(node).items())

    def _attribute(self, node: LiveNode, name: str, value: Value) -> Attribute:
        key = attribute_key(node.path, name)
        # As in TensorFlow's files, the recorded name is the escaped one.
        (self._states if name == PYTHON_STATE else self._values).append(NamedValue(key, value))
        return Attribute(escape(name), node.full_name if name == VARIABLE_VALUE else "", key)

    def _slot_nodes(self) -> tuple[dict[int, list[SlotVariable]], list[Node]]:
        slots_of: dict[int, list[SlotVariable]] = {}
        nodes: list[Node] = []
        for optimizer, slot_name, variable, slot in self._live.slots():
            if not isinstance(slot, torch.Tensor):
                raise UnsupportedValueError(
                    f"The slot {slot_name!r} that {optimizer.readable} keeps for {variable.readable} is a "
                    f"{type(slot).__name__}; a slot is a tensor, and has no children of its own."
                )
            if id(slot) in self._ids:
                raise UnsupportedValueError(
                    f"The slot {slot_name!r} that {optimizer.readable} keeps for {variable.readable} is itself part "
                    f"of the graph, as {self._live.nodes[id(slot)].readable}; it can be only one of the two."
                )
            key = attribute_key(slot_path(variable.path, optimizer.path, slot_name), VARIABLE_VALUE)
            self._values.append(NamedValue(key, slot))
            slots_of.setdefault(self._ids_of_nodes[id(optimizer)], []).append(
                SlotVariable(self._ids_of_nodes[id(variable)], slot_name, len(self._ids) + len(nodes))
            )
            attribute = Attribute(VARIABLE_VALUE, f"{variable.full_name}/{slot_name}", key)
            nodes.append(Node(attributes=(attribute,), has_checkpoint_values=True))
        return slots_of, nodes

    def _parents(self) -> list[list[int]]:
        parents: list[list[int]] = [[] for _ in self._ids]
        for index, node in enumerate(self._live.nodes.values()):
            for _, child_id in node.children:
                parents[self._ids[child_id]].append(index)
        return parents

    def _unreachable(self) -> tuple[str, ...]:
        return tuple(
            f"{node.readable} {name}"
            for node in self._live.nodes.values()
            if isinstance(node.trackable, SlotOwner)
            for variable, name in node.trackable._variables_with_state()
            if self._live.node_of(variable) is None
        )


def _with_ancestors(marked: list[bool], parents: list[list[int]]) -> list[bool]:
    """Marks everything above a marked node as well; the graph may have cycles."""
    result = list(marked)
    stack = [index for index, is_marked in enumerate(marked) if is_marked]
    while stack:
        for parent in parents[stack.pop()]:
            if not result[parent]:
                result[parent] = True
                stack.append(parent)
    return result
