"""A graph whose structure stays as it is, while its values change.

Structure is what the keys, the order of the values and the record of the graph are made of: which objects there are,
under which names, in which order, and what their values are called. Parameter groups are counted in, although only a
python state tells of them. The contents of tensors and python states are values.

A frozen graph keeps its objects alive, so that no other one can be mistaken for an object that is gone.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Mapping

import torch

from torch_trackckpt import _native
from torch_trackckpt.adapters.optimizer import OptimizerAdapter
from torch_trackckpt.graph.keys import readable_path
from torch_trackckpt.graph.messages import decode_object_graph
from torch_trackckpt.graph.walk import LiveNode, capture, collect, live_object
from torch_trackckpt.trackable import SlotOwner, Trackable

__all__ = ["FrozenGraph"]

_Slot = tuple[LiveNode, str, LiveNode, torch.Tensor]
"""As `LiveGraph.slots` has them."""

_Kept = tuple[list[tuple[str, list[int]]], list[frozenset[int]]]
"""See `_kept_by`."""


class FrozenGraph:
    """The objects below a root as they are when this is made.

    Args:
        root: becomes node 0.
        attached: further children of the root that are not known to the root object itself.
        known: the record of a graph that may be equal.

    Raises:
        UnsupportedValueError: a value cannot be saved; the text names its object path.
    """

    def __init__(self, root: object, attached: Mapping[str, object], known: _native.GraphRecord | None = None) -> None:
        self.live = capture(root, attached)
        """The objects."""
        self.snapshot = collect(self.live, known)
        """What a checkpoint of this moment holds."""
        self._kept = [
            _kept_by(trackable) for _, trackable in self.live.objects.trackables() if isinstance(trackable, SlotOwner)
        ]

    def has_structure_of(self, other: FrozenGraph) -> bool:
        """Whether nothing but values is different.

        A False may be too much: slots of variables that the root does not reach count as well. `changes` is exact.
        """
        return (
            self.snapshot.graph is other.snapshot.graph
            and self.live.objects.has_same_objects(other.live.objects)
            and self._kept == other._kept
        )

    def changes(self, now: FrozenGraph) -> list[str]:
        """What is different in the structure of a later graph of the same root, as text; nothing where it is equal."""
        found: list[str] = []
        names, names_now = self._attribute_names(), now._attribute_names()
        for identity, node in self.live.nodes.items():
            if identity in now.live.nodes:
                found += self._changed_children(node, now.live.nodes[identity], now)
                found += _changed_names(node, names[identity], names_now[identity])
        return [*found, *_changed_slots(self.live.slots(), now.live.slots()), *_changed_groups(self, now)]

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

    def _attribute_names(self) -> dict[Hashable, list[str]]:
        saved = decode_object_graph(self.snapshot.graph.record, "this moment")
        return {
            identity: [attribute.name for attribute in node.attributes]
            for identity, node in zip(self.live.nodes, saved.nodes, strict=False)
        }

    def _owners(self) -> list[tuple[LiveNode, _Kept]]:
        owners = [node for node in self.live.inner_nodes() if isinstance(node.trackable, SlotOwner)]
        return list(zip(owners, self._kept, strict=True))

    def _kind(self, identity: Hashable) -> str:
        return type(live_object(self.live.nodes[identity].trackable)).__name__.strip("_")


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


def _changed_groups(before: FrozenGraph, now: FrozenGraph) -> Iterator[str]:
    groups_now = {node.trackable._identity(): groups for node, (_, groups) in now._owners()}
    for node, (_, old) in before._owners():
        new = groups_now.get(node.trackable._identity(), old)
        if len(new) != len(old):
            yield f"{node.readable} has {len(new)} parameter groups, no longer {len(old)}"
        else:
            for index in range(len(old)):
                if old[index] != new[index]:
                    yield f"the parameters of group {index} of {node.readable} are others"
