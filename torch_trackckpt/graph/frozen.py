"""A graph that is walked once; after that its structure is compared, and only values are asked for anew.

Structure is what the keys, the order of the values and the record of the graph are made of: which objects there are,
under which names, in which order, and what their values are called. Parameter groups are counted in, although only a
python state tells of them. The contents of tensors and python states are values.

To compare, each object is asked for its children, which must be the very objects of before, and each optimizer for its
slots and groups. No path is made, no record encoded, and hardly an object adapted. A frozen graph keeps its objects
alive, so that no other one can be mistaken for an object that is gone.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Hashable, Iterator, Mapping

import torch

from torch_trackckpt.adapters import adapt
from torch_trackckpt.adapters.optimizer import OptimizerAdapter
from torch_trackckpt.adapters.state_node import StateNode
from torch_trackckpt.adapters.tensor import TensorAdapter
from torch_trackckpt.graph.keys import attribute_key, readable_path
from torch_trackckpt.graph.walk import (
    LiveGraph,
    LiveNode,
    NamedValue,
    capture,
    children_of,
    collect,
    encode_state,
    live_object,
    values_of,
)
from torch_trackckpt.trackable import SlotOwner, Trackable, Value

__all__ = ["FrozenGraph"]

Attached = Callable[[], Mapping[str, object]]
"""Returns the children of the root that are not known to the root object itself."""

_Slot = tuple[LiveNode, str, LiveNode, torch.Tensor]
"""As `LiveGraph.slots` has them."""

_Kept = tuple[list[tuple[str, list[int]]], list[frozenset[int]]]
"""See `_kept_by`."""

_Owner = tuple[LiveNode, _Kept]


class FrozenGraph:
    """The objects below a root as they are when this is made.

    Args:
        root: becomes node 0.
        attached: asked again at each comparison.

    Raises:
        UnsupportedValueError: a value cannot be saved; the text names its object path.
    """

    def __init__(self, root: object, attached: Attached) -> None:
        self.live = capture(root, attached())
        """The objects."""
        self.snapshot = collect(self.live)
        """What a checkpoint of this moment holds."""
        self._slots = self.live.slots()
        nodes = list(self.live.nodes.values())
        self._owners = [(node, _kept_by(node.trackable)) for node in nodes if isinstance(node.trackable, SlotOwner)]
        # A tensor has no children, and its value is itself. Slot variables are the last nodes of the saved graph.
        self._asked = [
            _Asked(node, [attribute.checkpoint_key for attribute in saved.attributes], attached if not index else None)
            for index, (node, saved) in enumerate(zip(nodes, self.snapshot.graph.nodes, strict=False))
            if type(node.trackable) is not TensorAdapter
        ]
        self._ids = {identity: index for index, identity in enumerate(self.live.nodes)}
        self._positions = {named.key: index for index, named in enumerate(self.snapshot.values)}

    def values(self) -> tuple[NamedValue, ...] | None:
        """What a checkpoint of now holds, as `Snapshot.values`; None where the structure is not the same.

        A None may be too much: slots of variables that the root does not reach count as well. `changes` is exact.

        Raises:
            UnsupportedValueError: a value can no longer be saved; the text names its object path.
        """
        values = list(self.snapshot.values)
        for asked in self._asked:
            now = asked.values(self.live)
            if now is None:
                return None
            for key, value in now.items():
                values[self._positions[key]] = NamedValue(key, value)
        if any(_kept_by(node.trackable) != kept for node, kept in self._owners):
            return None
        return tuple(values)

    def changes(self, now: FrozenGraph) -> list[str]:
        """What is different in the structure of a later graph of the same root, as text; nothing where it is equal."""
        found: list[str] = []
        for identity, node in self.live.nodes.items():
            if identity in now.live.nodes:
                found += self._changed_children(node, now.live.nodes[identity], now)
                found += _changed_names(node, self._attribute_names(identity), now._attribute_names(identity))
        return [*found, *_changed_slots(self._slots, now._slots), *_changed_groups(self._owners, now._owners)]

    def _changed_children(self, before: LiveNode, after: LiveNode, now: FrozenGraph) -> Iterator[str]:
        old, new = dict(before.children), dict(after.children)
        for name, child_id in old.items():
            path = readable_path((*before.names, name))
            if name not in new:
                yield f"{path} was removed"
            elif new[name] != child_id:
                yield f"{path} was replaced by another {now._kind(new[name])}"
        for name in new:
            if name not in old:
                yield f"{readable_path((*before.names, name))}, a {now._kind(new[name])}, was added"
        if old == new and list(old) != list(new):
            yield f"the children of {before.readable} are in another order"

    def _kind(self, identity: Hashable) -> str:
        return type(live_object(self.live.nodes[identity].trackable)).__name__.strip("_")

    def _attribute_names(self, identity: Hashable) -> list[str]:
        return [attribute.name for attribute in self.snapshot.graph.nodes[self._ids[identity]].attributes]


class _Asked:
    """A node that is asked for its children and values at each save.

    Args:
        node: as the walk found it.
        keys: those of its values.
        attached: for the root, its further children.
    """

    def __init__(self, node: LiveNode, keys: list[str], attached: Attached | None) -> None:
        self._node, self._keys, self._attached = node, keys, attached
        self._version = node.trackable._module_version()
        children = self._children()
        self._names = tuple(children)
        # What is not trackable is not kept: it may be large and is of no concern.
        self._objects = tuple(children.values()) if len(children) == len(node.children) else ()

    def values(self, live: LiveGraph) -> Mapping[str, Value] | None:
        """The values by key as they are now; None where their names, or the children, are not those of before."""
        # A view of an object may look at it when it is made: each save has new ones, as each walk.
        self._node.trackable = adapt(live_object(self._node.trackable)) or self._node.trackable
        if isinstance(self._node.trackable, StateNode):
            encode_state(self._node, self._node.trackable, live)
        if not self._has_same_children(live) or self._node.trackable._module_version() != self._version:
            return None
        values = {attribute_key(self._node.path, name): value for name, value in values_of(self._node).items()}
        return values if list(values) == self._keys else None

    def _has_same_children(self, live: LiveGraph) -> bool:
        children = self._children()
        has_objects = tuple(children) == self._names and len(children) == len(self._objects)
        if has_objects and all(map(operator.is_, children.values(), self._objects)):
            return True
        # Parts that a view makes up are other objects each time, and a wrapper stands for the object in it.
        adapted = [(name, adapt(child)) for name, child in children.items()]
        trackables = [(name, child) for name, child in adapted if child is not None]
        if [(name, child._identity()) for name, child in trackables] != self._node.children:
            return False
        for _, child in trackables:
            live.nodes[child._identity()].trackable = child
        return True

    def _children(self) -> Mapping[str, object]:
        return children_of(self._node, None if self._attached is None else self._attached())


def _kept_by(owner: Trackable) -> _Kept:
    """By identity, what an optimizer keeps for parameters, and the parameters of each of its groups."""
    slots = owner._slot_variables().items() if isinstance(owner, SlotOwner) else ()
    groups = owner.adapted.param_groups if isinstance(owner, OptimizerAdapter) else ()
    return (
        [(name, list(map(id, itertools.chain.from_iterable(pairs)))) for name, pairs in slots],
        [frozenset(map(id, group["params"])) for group in groups],
    )


def _changed_names(node: LiveNode, old: list[str], new: list[str]) -> Iterator[str]:
    if old != new:
        yield f"the values of {node.readable} are called {new}, no longer {old}"


def _changed_slots(before: list[_Slot], now: list[_Slot]) -> Iterator[str]:
    old, new = _slots_by_place(before), _slots_by_place(now)
    for place, (text, slot) in old.items():
        if place not in new:
            yield f"{text} was removed"
        elif new[place][1] is not slot:
            yield f"{text} was replaced by another tensor"
    for place, (text, _) in new.items():
        if place not in old:
            yield f"{text} was added"


def _slots_by_place(slots: list[_Slot]) -> dict[Hashable, tuple[str, torch.Tensor]]:
    """By identities of optimizer and variable and by name: how to call the slot, and its tensor."""
    return {
        (optimizer.trackable._identity(), variable.trackable._identity(), name): (
            f"{optimizer.readable}'s state {name!r} for {variable.readable}",
            slot,
        )
        for optimizer, name, variable, slot in slots
    }


def _changed_groups(before: list[_Owner], now: list[_Owner]) -> Iterator[str]:
    groups_now = {node.trackable._identity(): groups for node, (_, groups) in now}
    for node, (_, old) in before:
        new = groups_now.get(node.trackable._identity(), old)
        if len(new) != len(old):
            yield f"{node.readable} has {len(new)} parameter groups, no longer {len(old)}"
        else:
            for index in range(len(old)):
                if old[index] != new[index]:
                    yield f"the parameters of group {index} of {node.readable} are others"
