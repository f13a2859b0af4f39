"""From a root object to its object graph and its named tensors.

discover     breadth first over children: every reachable object once, with the path of its first discovery
capture      python states are encoded, which may refer to paths; their tensors become children
collect      the record of the graph, and keys and values in the order in which a bundle takes them

Ordinary tensors, of which there may be very many, are leaves that native code numbers, names and collects; what is done
here is done for each other object (`csrc/graph/live_graph.h`).
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from typing import Any

import torch

from torch_trackckpt import _native
from torch_trackckpt.adapters import adapt
from torch_trackckpt.adapters.module import ModuleAdapter
from torch_trackckpt.adapters.registry import Adapting
from torch_trackckpt.adapters.state_node import StateNode
from torch_trackckpt.adapters.tensor import leaf_types
from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.graph.keys import attribute_key, readable_path
from torch_trackckpt.trackable import SlotOwner, Trackable, Value

__all__ = [
    "LiveGraph",
    "LiveNode",
    "Snapshot",
    "capture",
    "collect",
    "discover",
    "list_objects",
    "live_object",
]


_Adapted = Callable[[Any], tuple[Trackable, Hashable, bool] | None]
"""The trackable for an object, its identity, and whether it stands for a module."""


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


class LiveGraph:
    """Every trackable that can be reached from a root, by identity, in breadth-first order.

    Args:
        objects: the same, without a Python object for each tensor.
        leaf_types: the classes of tensors that are leaves of it.
    """

    def __init__(self, objects: _native.LiveObjects, leaf_types: tuple[type, ...]) -> None:
        self.objects = objects
        self._leaf_types = leaf_types

    @cached_property
    def nodes(self) -> dict[Hashable, LiveNode]:
        """All nodes. Many tensors make this expensive: saving has to do without."""
        return {self.objects.identity(number): self.node(number) for number in range(len(self.objects))}

    def inner_nodes(self) -> list[LiveNode]:
        """Those that are no ordinary tensors."""
        return [self.node(number) for number, _ in self.objects.trackables()]

    def node(self, number: int) -> LiveNode:
        """The node of a number."""
        objects = self.objects
        children: list[tuple[str, Hashable]] = [
            (name, objects.identity(child)) for name, child in objects.children(number)
        ]
        return LiveNode(
            self.trackable(number),
            objects.names(number),
            objects.path(number),
            objects.module_depth(number),
            children,
        )

    def trackable(self, number: int) -> Trackable:
        """What stands for the object of a number."""
        value = self.objects.object(number)
        trackable = adapt(value) if self.objects.is_tensor(number) else value
        assert trackable is not None
        return trackable

    def number_of(self, value: object) -> int | None:
        """The number of a live object's node, or None where the graph does not have it."""
        if type(value) in self._leaf_types:
            return self.objects.find(id(value))
        trackable = adapt(value)
        return None if trackable is None else self.objects.find(trackable._identity())

    def path_of(self, value: object) -> str | None:
        """The object path of a live object, or None where the graph does not have it."""
        number = self.number_of(value)
        return None if number is None else self.objects.path(number)

    def node_of(self, value: object) -> LiveNode | None:
        """The node of a live object."""
        number = self.number_of(value)
        return None if number is None else self.node(number)

    def readable(self, number: int) -> str:
        """What messages call a node."""
        return readable_path(self.objects.names(number))

    def slots(self) -> list[tuple[LiveNode, str, LiveNode, torch.Tensor]]:
        """Optimizer, slot name, variable and slot tensor, in the order in which slot nodes are numbered."""
        return [
            (self.node(optimizer), slot_name, self.node(variable), slot)
            for optimizer, slot_name, variables, slots in self.slot_columns
            for variable, slot in zip(variables, slots, strict=True)
        ]

    @cached_property
    def slot_columns(self) -> list[tuple[int, str, list[int], list[torch.Tensor]]]:
        """The same, by the numbers of optimizers and variables, those of one slot name together; as they were when this
        was asked for first."""
        columns = []
        for number, trackable in self.objects.trackables():
            if not isinstance(trackable, SlotOwner):
                continue
            for slot_name, pairs in trackable._slot_variables().items():
                variables = self.objects.find_all([variable for variable, _ in pairs])
                found = [
                    (variable, slot) for variable, (_, slot) in zip(variables, pairs, strict=True) if variable >= 0
                ]
                found.sort(key=operator.itemgetter(0))
                columns.append((number, slot_name, [n for n, _ in found], [slot for _, slot in found]))
        return columns


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What a checkpoint will hold."""

    graph: _native.GraphRecord
    """What is saved of the object graph, and the keys of all values."""
    values: list[Value]
    """In the order of the keys; the object graph's own record is the last."""
    unreachable: tuple[str, ...]
    """Parameters with optimizer state that the root does not reach, so that their state is not saved."""
    slot_owners: tuple[SlotOwner, ...]
    """The optimizers."""
    state_keys: Callable[[], list[str]]
    """The keys of values that objects take back themselves: python states and what is in them."""

    @property
    def keys(self) -> list[str]:
        """What each value is stored under, in the order of the data file."""
        return self.graph.keys


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


def collect(live: LiveGraph, known: _native.GraphRecord | None = None) -> Snapshot:
    """The saved form of a graph whose states were captured.

    Args:
        live: the graph.
        known: the record of a graph that may be equal, which is a matter of a comparison then.

    Raises:
        UnsupportedValueError: as `capture`.
    """
    attributes: list[tuple[int, str, Value] | tuple[int, str, Value, str]] = []
    versions: list[tuple[int, int]] = []
    states: list[tuple[int, str]] = []
    for number, trackable in live.objects.trackables():
        values_of = _values_of(live, number, trackable)
        full_name = trackable._full_name()
        attributes += [
            (number, name, value) if full_name is None else (number, name, value, full_name)
            for name, value in values_of.items()
        ]
        if values_of:
            in_place = trackable._restore_destinations()
            states += [(number, name) for name in values_of if name not in in_place]
        version = trackable._module_version()
        if version is not None:
            versions.append((number, version))
    slots = live.slot_columns
    for slot_column in slots:
        _check_slots(live, *slot_column)
    try:
        graph, values = live.objects.collect(attributes, versions, slots, known)
    except (UnicodeEncodeError, TypeError):
        for number, name, *_ in attributes:
            _check_name(live, number, name, "attributes")
        raise
    owners = tuple(trackable for _, trackable in live.objects.trackables() if isinstance(trackable, SlotOwner))
    paths = {number: live.objects.path(number) for number, _ in states}

    def state_keys() -> list[str]:
        return [attribute_key(paths[number], name) for number, name in states]

    return Snapshot(graph, values, _unreachable(live), owners, state_keys)


def discover(root: object, attached: Mapping[str, object] | None = None) -> LiveGraph:
    """Every trackable below a root, breadth first."""
    adapting = Adapting()

    def adapted(value: object) -> tuple[Trackable, Hashable, bool] | None:
        trackable = adapting(value)
        return None if trackable is None else (trackable, trackable._identity(), isinstance(trackable, ModuleAdapter))

    adapted_root = adapted(root)
    if adapted_root is None:
        raise UnsupportedValueError(f"The root, a {type(root).__name__}, is not trackable.")
    types = leaf_types()
    objects = _native.LiveObjects(types)
    live = LiveGraph(objects, types)
    objects.add_root(*adapted_root)
    number = objects.next_trackable(0)
    while number is not None:
        children = _children_of(live, number, objects.object(number))
        if number == 0 and attached:
            children = {**children, **{name: attached[name] for name in attached if name not in children}}
        _add_children(live, number, children, adapted)
        number = objects.next_trackable(number + 1)
    return live


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
    values = [live.objects.object(number) for number in range(len(live.objects))]
    objects = [live_object(value) for value in values if type(value) is not StateNode]
    return [*objects, *(slot for _, _, _, slots in live.slot_columns for slot in slots)]


def live_object(trackable: Trackable) -> Any:
    """What a trackable stands for: the object behind an adapter, else the trackable itself."""
    return getattr(trackable, "adapted", trackable)


def _children_of(live: LiveGraph, number: int, trackable: Trackable) -> Mapping[str, object]:
    try:
        return trackable._trackable_children()
    except UnsupportedValueError as error:
        raise _cannot_be_saved(live, number, error) from error


def _add_children(live: LiveGraph, number: int, children: Mapping[str, object], adapted: _Adapted) -> None:
    try:
        live.objects.add_children(number, children, adapted)
    except (UnicodeEncodeError, TypeError):
        for name in children:
            _check_name(live, number, name, "children")
        raise


def _check_name(live: LiveGraph, number: int, name: object, what: str) -> None:
    """Refuses what cannot be stored as a name."""
    try:
        encoded = name.encode() if isinstance(name, str) else None
    except UnicodeEncodeError as error:
        raise UnsupportedValueError(
            f"{live.readable(number)} cannot be saved: one of its {what} has the name {name!r}, which cannot be stored "
            f"as text ({error.reason}); choose another name."
        ) from error
    if encoded is None:
        raise UnsupportedValueError(
            f"{live.readable(number)} cannot be saved: one of its {what} has the name {name!r}, of the type "
            f"{type(name).__name__}; names are texts."
        )


def _values_of(live: LiveGraph, number: int, trackable: Trackable) -> Mapping[str, Value]:
    try:
        return trackable._serialize_to_tensors()
    except UnsupportedValueError as error:
        raise _cannot_be_saved(live, number, error) from error


def _cannot_be_saved(live: LiveGraph, number: int, error: UnsupportedValueError) -> UnsupportedValueError:
    return type(error)(f"{live.readable(number)} cannot be saved: {error}")


def _capture_states(live: LiveGraph) -> None:
    """Encodes every python state. Their tensors are new leaves, so they change no other object's path."""
    has_tensors = False
    for number, trackable in live.objects.trackables():
        if not isinstance(trackable, StateNode):
            continue
        try:
            trackable.encode(live.path_of)
        except UnsupportedValueError as error:
            raise _cannot_be_saved(live, number, error) from error
        if tensors := trackable._trackable_children():
            has_tensors = True
            _add_children(live, number, tensors, lambda tensor: (tensor, tensor._identity(), False))
    if has_tensors:
        live.objects.renumber()


def _check_slots(
    live: LiveGraph, optimizer: int, slot_name: str, variables: list[int], slots: list[torch.Tensor]
) -> None:
    """Refuses what a slot cannot be."""
    numbers = live.objects.find_all(slots)
    for variable, slot, number in zip(variables, slots, numbers, strict=True):
        if number < 0 and isinstance(slot, torch.Tensor):
            continue
        kept = f"The slot {slot_name!r} that {live.readable(optimizer)} keeps for {live.readable(variable)} is "
        if not isinstance(slot, torch.Tensor):
            raise UnsupportedValueError(
                f"{kept}a {type(slot).__name__}; a slot is a tensor, and has no children of its own."
            )
        raise UnsupportedValueError(
            f"{kept}itself part of the graph, as {live.readable(number)}; it can be only one of the two."
        )


def _unreachable(live: LiveGraph) -> tuple[str, ...]:
    found = []
    for number, trackable in live.objects.trackables():
        if isinstance(trackable, SlotOwner):
            variables = trackable._variables_with_state()
            found += [
                f"{live.readable(number)} {trackable._readable_variable(variable)}"
                for variable, known in zip(variables, live.objects.find_all(variables), strict=True)
                if known < 0
            ]
    return tuple(found)
