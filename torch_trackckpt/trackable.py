"""What the object graph knows of an object: named children, and values of its own.

A class takes part by deriving from `Trackable` (or from `autotrackable.AutoTrackable`, whose attributes are its
children); an object of a foreign class is shown to the graph by an adapter, which is a `Trackable` that stands for it.
The underscored methods are TensorFlow's names where TensorFlow has the method: they leave every plain name
to the user's own attributes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch

__all__ = [
    "OBJECT_GRAPH_KEY",
    "PYTHON_STATE",
    "VARIABLE_VALUE",
    "DeferredChild",
    "NoDependency",
    "Prepared",
    "PythonState",
    "Resolve",
    "SlotOwner",
    "Trackable",
    "TrackedContainer",
    "Value",
    "Waiting",
    "leaf_sources",
]

OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
"""The key of the record that describes the object graph."""

VARIABLE_VALUE = "VARIABLE_VALUE"
"""The attribute that holds a variable's value."""

PYTHON_STATE = "py_state"
"""The attribute that holds bytes which the object itself encoded."""

Value = torch.Tensor | bytes | np.ndarray[Any, np.dtype[np.object_]]
"""What an attribute may hold: a tensor, a string scalar, or an array of byte strings."""

Resolve = Callable[[str], object | None]
"""Finds the live object that was matched with an object path of the checkpoint."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Stored values that were checked and decoded."""

    assign: Callable[[], None]
    """Gives them to the live object."""
    unused: tuple[str, ...] = ()
    """What among them has no place in the live object; the status tells of it."""
    rest: object = None
    """The part of the value to which this applies, if it may have a place later: see `_prepare_rest`."""
    missing: tuple[str, ...] = ()
    """What the live object has beside them, and keeps as it is; the status tells of it as well."""


class Trackable:
    """An object with named children and named values: one node of the object graph.

    Example:
        >>> import torch
        >>> from torch_trackckpt import Trackable
        >>> class Pair(Trackable):
        ...     def __init__(self):
        ...         self.low, self.high = 1.0, 2.0
        ...     def _serialize_to_tensors(self):
        ...         return {"low": torch.tensor(self.low), "high": torch.tensor(self.high)}
        ...     def _restore_from_tensors(self, values):
        ...         self.low, self.high = float(values["low"]), float(values["high"])
        >>> Pair()._attribute_names()
        ('low', 'high')
    """

    def _trackable_children(self) -> Mapping[str, object]:
        """Local names and live objects, in order. What is not trackable among them is left out."""
        return {}

    def _lookup_dependency(self, name: str) -> object | None:
        """The child under a local name of the checkpoint. May create it; None where there is none."""
        return self._trackable_children().get(name)

    _takes_all_ranks: ClassVar[bool] = False
    """Whether `_prepare_restore` takes values of all ranks (`adapters.by_rank.ByRank`) where this process is one of
    another number of processes than those that saved."""

    def _paired_with(self, graph: Any, node_id: int, stored: Callable[[str], Any]) -> None:
        """Told with which node of a checkpoint it was paired, before any child of it is looked up: for objects whose
        children depend on what is stored.

        Args:
            graph: the saved graph, a `graph.object_graph.ObjectGraph`.
            node_id: the node.
            stored: from a checkpoint key to what the file has under it, a `bundle.reader.StoredTensor`.

        Raises:
            RestoreError: the object can make nothing of what is stored; nothing has changed then.
        """

    def _takes_each_rank(self) -> bool:
        """Whether it does so in any case, because the values of all ranks are parts of one."""
        return False

    def _leaf_sources(self) -> tuple[object, ...]:
        """Where `_lookup_dependency` finds children that are ordinary tensors, for many to be found at once: dicts in
        which it looks names up, or a list or tuple whose elements have their numbers as names. A class that overrides
        one of the two methods overrides both, or is asked for each child by itself."""
        return ()

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        """The object's own values by attribute name, as they are now."""
        return {}

    def _attribute_names(self) -> tuple[str, ...]:
        """The names that `_serialize_to_tensors` would return, or for which there is a place in any case."""
        return tuple(self._serialize_to_tensors())

    def _full_name(self) -> str | None:
        """What the object's value is called in the checkpoint beside its path; None for what the path tells."""
        return None

    def _asks_for_values(self, is_known: bool) -> bool:
        """Whether something is left out where a restore has no values for the object.

        Args:
            is_known: the checkpoint has the object, but no values of it that this one could take.
        """
        return bool(self._attribute_names())

    def _restore_destinations(self) -> Mapping[str, torch.Tensor]:
        """The live tensors into which stored values of these names are copied directly.

        Stored values of other names are handed to `_prepare_restore`.
        """
        return {}

    def _prepare_restore(self, values: Mapping[str, Value], resolve: Resolve) -> Prepared:
        """Checks and decodes stored values without a change to the object; the result assigns them."""
        if type(self)._restore_from_tensors is Trackable._restore_from_tensors:
            raise NotImplementedError(
                f"{type(self).__name__} saves values but does not say how to restore them: "
                "define _restore_from_tensors(values)."
            )
        return Prepared(lambda: self._restore_from_tensors(values))

    def _prepare_rest(self, rest: Any, resolve: Resolve) -> Prepared:
        """Tries again with what an earlier `_prepare_restore` left over, now that there are more objects."""
        raise NotImplementedError

    def _restore_from_tensors(self, values: Mapping[str, Value]) -> None:
        """Takes the stored values over."""
        raise NotImplementedError

    def _identity(self) -> Hashable:
        """Equal for two views of one object: a node exists once for each identity."""
        return id(self)

    def _owner(self) -> tuple[Any, Hashable]:
        """The live object behind the view; and which part of it this is, where it is only a part."""
        return self, None

    def _postponed(self, stored_names: Collection[str]) -> Collection[str]:
        """Those of the stored children that are here but cannot take values before the others can."""
        return ()

    def _waiting(self) -> Waiting | None:
        """What waits for children that are attached later; None where nobody would tell it of them."""
        return None

    def _module_version(self) -> int | None:
        """The version of what is stored, for an object that can take over what older versions of it stored; None where
        the object has no versions, or this is the first."""
        return None


class DeferredChild(Protocol):
    """A stored object that waits for the live one to appear."""

    @property
    def restore_uid(self) -> int:
        """Which restore it belongs to; a later one has a larger number."""
        ...

    def restore(self, child: object) -> bool:
        """Gives the live object, and everything below it, the stored values; false where it cannot take them."""
        ...

    def read(self) -> torch.Tensor:
        """The stored value, of an object that is a tensor."""
        ...

    def supersede(self) -> None:
        """Says that the live object has got another value, which is newer."""
        ...

    def covers(self, earlier: DeferredChild) -> bool:
        """Whether another one that waits here is of an earlier restore that has nothing which this one lacks, and that
        nobody looks at."""
        ...

    def give_way(self) -> None:
        """Says that it waits no longer, because a later one waits here that covers it."""
        ...


class Waiting:
    """What waits for children of one object that do not exist yet, by their local names. TensorFlow's
    ``_deferred_dependencies``.

    It belongs to the object and dies with it. A copy of the object is another object, and nothing waits for its
    children.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, list[DeferredChild]] = {}
        self._watchers: list[Callable[[], None]] = []

    def __bool__(self) -> bool:
        return bool(self._by_name or self._watchers)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @property
    def names(self) -> tuple[str, ...]:
        """The children that are waited for."""
        return tuple(self._by_name)

    def add(self, name: str, child: DeferredChild) -> None:
        """Has a stored object wait for the child of this name, in place of those that it covers.

        A program that restores one checkpoint after another, and never makes what waits, keeps the last of them only.
        """
        positions = self._by_name.setdefault(name, [])
        covered = [position for position in positions if child.covers(position)]
        positions[:] = [*(position for position in positions if position not in covered), child]
        for position in covered:
            position.give_way()

    def discard(self, name: str, child: DeferredChild) -> None:
        """Has it wait no longer."""
        if child in self._by_name.get(name, ()):
            self._by_name[name].remove(child)
            if not self._by_name[name]:
                del self._by_name[name]
            self._rest_if_empty()

    def read(self, name: str) -> torch.Tensor:
        """The value that the child of this name, a tensor, waits for."""
        return max(self._by_name[name], key=lambda position: position.restore_uid).read()

    def supersede(self, name: str) -> None:
        """Has the child of this name wait no longer, because it gets another value."""
        for position in tuple(self._by_name[name]):
            position.supersede()
            self.discard(name, position)

    def watch(self, watcher: Callable[[], None]) -> None:
        """Has a function called after each child that is attached, whatever its name."""
        if watcher not in self._watchers:
            self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """Has it called no longer."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)
            self._rest_if_empty()

    def _rest_if_empty(self) -> None:
        """Called when something waits no longer; a place for undoing what the wait needed."""

    def attach(self, name: str, child: object) -> None:
        """To be called before an object becomes a child; its values come from the latest restore that has any.

        Raises:
            What restoring raises; the child should not be attached then, and all that waited goes on waiting.
        """
        tried: list[DeferredChild] = []
        done: list[DeferredChild] = []
        # A child that leads back to this object may have it wait under the same name once more.
        while positions := [position for position in self._by_name.get(name, ()) if position not in tried]:
            positions.sort(key=lambda position: position.restore_uid, reverse=True)
            tried += positions
            done += [position for position in positions if position.restore(child)]
        for position in done:
            self.discard(name, position)

    def attached(self) -> None:
        """To be called after an object became a child."""
        for watcher in tuple(self._watchers):
            watcher()

    def __copy__(self) -> Waiting:
        return Waiting()

    def __deepcopy__(self, memo: object) -> Waiting:
        return Waiting()

    def __reduce__(self) -> tuple[type[Waiting], tuple[()]]:
        return Waiting, ()


@runtime_checkable
class PythonState(Protocol):
    """An object that encodes its own state. TensorFlow's ``tf.train.experimental.PythonState``.

    Any object with these two methods is one; deriving from this class says so.
    """

    def serialize(self) -> str | bytes:
        """The state as text or bytes."""
        ...

    def deserialize(self, string_value: bytes) -> None:
        """Takes the state from the bytes that `serialize` gave (text arrives as UTF-8)."""
        ...


class SlotOwner(Trackable):
    """A trackable that keeps named tensors for each of some other objects' tensors: an optimizer."""

    _children_with_slots: tuple[str, ...] = ()
    """Local names of children that complete the slots, and are left out of a restore that skips those."""

    def _slot_variables(self) -> Mapping[str, list[tuple[torch.Tensor, torch.Tensor]]]:
        """By slot name, in order: pairs of a variable and its slot tensor."""
        raise NotImplementedError

    def _variables_with_state(self) -> list[torch.Tensor]:
        """Every variable that it keeps any state for."""
        raise NotImplementedError

    def _readable_variable(self, variable: torch.Tensor) -> str:
        """What to call one of its variables in a message."""
        return f"a variable of shape {list(variable.shape)}"

    def _keeps_slots_of(self, variable: torch.Tensor) -> bool:
        """Whether a variable is among those that it keeps tensors for; if not, its stored slots go on waiting."""
        return True

    def _slot_destinations(
        self, variable: torch.Tensor, stored: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    ) -> Mapping[str, torch.Tensor] | None:
        """Tensors to read a variable's stored slots into: live ones, or new ones of the stored dtype and shape.

        None where the owner cannot use this set of slots, although it keeps tensors for the variable. Nothing changes
        before `_assign_slots`.
        """
        raise NotImplementedError

    def _assign_slots(self, variable: torch.Tensor, slots: Mapping[str, torch.Tensor]) -> None:
        """Makes the filled tensors the variable's slots."""
        raise NotImplementedError

    def _stepped_tensors(self) -> list[torch.Tensor]:
        """Those of its variables and slots that change in its step alone, of which `_before_next_step` tells.

        An asynchronous save may copy them until then. To name none is always right.
        """
        return []

    def _before_next_step(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Has a bound method called before its next step changes anything, in the thread that steps; once.

        The step waits for it. Neither the owner nor the method's object lives longer because of that. Only an owner
        that names stepped tensors is asked for it.

        Returns:
            What has it not be called any more.
        """
        raise NotImplementedError


def leaf_sources(trackable: Trackable) -> tuple[object, ...]:
    """A trackable's `_leaf_sources`, where they go with the `_lookup_dependency` that it has."""
    for kind in type(trackable).__mro__:
        if "_leaf_sources" in vars(kind):
            return trackable._leaf_sources()
        if "_lookup_dependency" in vars(kind):
            break
    return ()


class TrackedContainer:
    """A list or dict that took the place of a plain one when it was assigned; see `data_structures`."""

    plain_type: ClassVar[type]
    """What it stands for: where it is encoded or pickled, it is this."""


class NoDependency:
    """Marks a value that is assigned to an `AutoTrackable` but is no part of its checkpoints.

    An element of a list, or an entry of a dict, of such an attribute may be marked as well.

    Example:
        >>> from torch_trackckpt import AutoTrackable, NoDependency
        >>> thing = AutoTrackable()
        >>> thing.cache = NoDependency([1, 2])
        >>> thing.cache
        [1, 2]
        >>> list(thing._trackable_children())
        []
    """

    def __init__(self, value: Any) -> None:
        self.value = value
