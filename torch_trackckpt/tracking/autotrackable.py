"""Objects whose attributes are their children in the object graph, or their values where they are plain."""

from __future__ import annotations

import copy
import types
from collections.abc import Mapping
from typing import Any, TypeVar

from torch_trackckpt.adapters.state_node import state_bytes
from torch_trackckpt.trackable import PYTHON_STATE, NoDependency, Prepared, Resolve, Trackable, Value, Waiting
from torch_trackckpt.tracking import simple_attributes
from torch_trackckpt.tracking.data_structures import wrap

__all__ = ["AutoTrackable"]

T = TypeVar("T")


class _Bookkeeping:
    """What an `AutoTrackable` knows of its attributes; made when first needed, so that a subclass may
    leave out the call of its base's ``__init__``."""

    def __init__(self) -> None:
        self.untracked: set[str] = set()
        self.explicit: dict[str, object] = {}
        self.waiting = Waiting()

    def __copy__(self) -> _Bookkeeping:
        twin = _Bookkeeping()
        twin.untracked, twin.explicit = set(self.untracked), dict(self.explicit)
        return twin


class AutoTrackable(Trackable):
    """An object whose attributes are its children, in the order of their first assignment.

    Plain attributes (numbers, text, and what is made of them, see `simple_attributes`) are saved and restored as the
    object's own state, in a dataclass and in slots as well; TensorFlow ignores them. `NoDependency` keeps an attribute
    out, and so does a class that says itself what is saved (``_serialize_to_tensors``). Functions, classes and other
    objects that are not trackable are ignored.

    A plain list or dict is replaced by a
    tracked one of equal content when it is assigned, also inside of a tuple; from then on, change the attribute, not
    the object that was assigned (see `data_structures`). TensorFlow's ``tf.__internal__.tracking.AutoTrackable``.

    Example:
        >>> import torch
        >>> from torch_trackckpt import AutoTrackable
        >>> thing = AutoTrackable()
        >>> thing.layer = torch.nn.Linear(2, 1)
        >>> list(thing._trackable_children())
        ['layer']
        >>> thing.layers = [thing.layer]
        >>> thing.layers.append(torch.nn.Linear(1, 1))
        >>> len(thing.layers), isinstance(thing.layers, list)
        (2, True)
        >>> thing.step = 3
        >>> thing._serialize_to_tensors()
        {'py_state': b'{"step":3}'}
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("__") and hasattr(AutoTrackable, name):
            raise AttributeError(
                f"{type(self).__name__}: {name!r} is a method of AutoTrackable, which checkpoints call; give the "
                "attribute another name."
            )
        if isinstance(value, NoDependency):
            self._bookkeeping().untracked.add(name)
            value = value.value
        else:
            value = wrap(value)
            self._bookkeeping().untracked.discard(name)
            self._bookkeeping().waiting.attach(name, value)
        self._forget_explicit(name)
        super().__setattr__(name, value)
        self._bookkeeping().waiting.attached()

    def __setstate__(self, state: dict[str, Any]) -> None:
        getattr(super(), "__setstate__", self._set_plain_state)(state)
        # A shallow copy gets the original's bookkeeping; it needs its own.
        if isinstance(bookkeeping := self.__dict__.get("_tracking"), _Bookkeeping):
            self.__dict__["_tracking"] = copy.copy(bookkeeping)
        # Tracked containers are pickled as plain ones.
        wrapped: dict[int, Any] = {}
        for name, value in self._attributes().items():
            if name in self.__dict__:
                self.__dict__[name] = wrap(value, wrapped)
            else:
                object.__setattr__(self, name, wrap(value, wrapped))

    def _set_plain_state(self, state: Any) -> None:
        """As `pickle` does: the state of a class with slots has two parts, of which the first may be None."""
        attributes, slots = state if isinstance(state, tuple) else (state, {})
        self.__dict__.update(attributes or {})
        for name, value in slots.items():
            object.__setattr__(self, name, value)

    def _waiting(self) -> Waiting:
        return self._bookkeeping().waiting

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self._forget_explicit(name)

    def _forget_explicit(self, name: str) -> None:
        if "_tracking" in self.__dict__:
            self._bookkeeping().explicit.pop(name, None)

    def _bookkeeping(self) -> _Bookkeeping:
        bookkeeping: _Bookkeeping = self.__dict__.setdefault("_tracking", _Bookkeeping())
        return bookkeeping

    def _track_trackable(self, trackable: T, name: str, overwrite: bool = False) -> T:
        """Makes an object a child under a name of the caller's choice; returns the object.

        Raises:
            ValueError: another child has the name, and ``overwrite`` is false.
        """
        present = self._trackable_children().get(name)
        if present is not None and present is not trackable and not overwrite:
            raise ValueError(
                f"{type(self).__name__} already has a child called {name!r} ({present!r}); "
                "choose another name or pass overwrite=True."
            )
        self._bookkeeping().waiting.attach(name, trackable)
        self._bookkeeping().explicit[name] = trackable
        self._bookkeeping().waiting.attached()
        return trackable

    def _lookup_dependency(self, name: str) -> object | None:
        bookkeeping = self._bookkeeping()
        if name in bookkeeping.explicit:
            return bookkeeping.explicit[name]
        if name in bookkeeping.untracked:
            return None
        is_in_slot = name not in vars(self) and name in _slots_of(type(self))
        value = getattr(self, name, None) if is_in_slot else vars(self).get(name)
        return None if value is bookkeeping else value

    def _trackable_children(self) -> Mapping[str, object]:
        return self._attributes() | self._bookkeeping().explicit

    def _attributes(self) -> dict[str, object]:
        """The attributes that may be children: first those in slots, then the others in the order of assignment."""
        bookkeeping = self._bookkeeping()
        slots = {name: getattr(self, name) for name in _slots_of(type(self)) if hasattr(self, name)}
        return {
            name: value
            for name, value in (slots | vars(self)).items()
            if value is not bookkeeping and name not in bookkeeping.untracked
        }

    # Plain attributes.

    def _saves_attributes(self) -> bool:
        """Whether plain attributes are saved: where the class does not say itself what is."""
        return type(self)._serialize_to_tensors is AutoTrackable._serialize_to_tensors

    def _loses_attributes(self) -> bool:
        """Whether plain attributes get lost: where nobody says what is saved. That is so of `Checkpoint`."""
        return False

    def _attribute_names(self) -> tuple[str, ...]:
        if not self._saves_attributes():
            return super()._attribute_names()
        values = (*self._attributes().values(), *self._defaults().values())
        return (PYTHON_STATE,) if any(map(simple_attributes.may_be_stored, values)) else ()

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        if not self._saves_attributes():
            return {}
        attributes = self._attributes().items()
        simple = {name: value for name, value in attributes if simple_attributes.is_simple(value)}
        return {PYTHON_STATE: simple_attributes.encode(simple)} if simple else {}

    def _prepare_restore(self, values: Mapping[str, Value], resolve: Resolve) -> Prepared:
        if not self._saves_attributes():
            return super()._prepare_restore(values, resolve)
        return simple_attributes.prepare(self, self._attributes(), self._defaults(), state_bytes(values))

    def _defaults(self) -> dict[str, object]:
        """What attributes are that only the classes have so far: a count may begin there."""
        own = type(self).__mro__[: type(self).__mro__.index(AutoTrackable)]
        found = {name: value for base in reversed(own) for name, value in vars(base).items()}
        present = self._attributes().keys() | self._bookkeeping().untracked
        return {
            name: value
            for name, value in found.items()
            if name not in present and not name.startswith("__") and simple_attributes.is_simple(value)
        }

    def _asks_for_values(self, is_known: bool) -> bool:
        """TensorFlow's checkpoints know the object and none of its numbers, which is nothing to complain about."""
        if not self._saves_attributes():
            return super()._asks_for_values(is_known)
        return not is_known and any(
            simple_attributes.is_simple(value) and not simple_attributes.is_empty_container(value)
            for value in self._attributes().values()
        )


def _slots_of(kind: type) -> list[str]:
    return [
        name
        for base in reversed(kind.__mro__)
        if "__slots__" in vars(base)
        for name, member in vars(base).items()
        if isinstance(member, types.MemberDescriptorType)
    ]
