"""Lists, tuples and dicts as nodes: children by index or by key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch_trackckpt.adapters.registry import Adapter, is_trackable, register_adapter
from torch_trackckpt.errors import UnsavableContainerError
from torch_trackckpt.trackable import Trackable, Value

__all__ = [
    "PLAIN_TYPES",
    "DictAdapter",
    "NamedTupleAdapter",
    "SequenceAdapter",
    "TupleAdapter",
    "is_tracked",
    "rebuilt",
]

PLAIN_TYPES = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Elements of exactly these types are never nodes: a long list of numbers costs next to nothing."""


class SequenceAdapter(Adapter):
    """Children ``"0"``, ``"1"``, ...; an element that is not trackable keeps its number but has no node."""

    def _trackable_children(self) -> Mapping[str, object]:
        return {str(index): element for index, element in enumerate(self.adapted) if type(element) not in PLAIN_TYPES}

    def _lookup_dependency(self, name: str) -> object | None:
        # The spelling is checked first: a name from a file may be a number of a million digits.
        if len(name) > 19 or not re.fullmatch("0|[1-9][0-9]*", name) or int(name) >= len(self.adapted):
            return None
        child: object = self.adapted[int(name)]
        return child

    def _leaf_sources(self) -> tuple[object, ...]:
        # A class of its own may have its own idea of its elements.
        return (self.adapted,) if type(self.adapted) in (list, tuple) else ()

    def _attribute_names(self) -> tuple[str, ...]:
        return ()


class TupleAdapter(SequenceAdapter):
    """As a list."""

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        """A tuple that is an attribute holds tracked lists and dicts, unless its class left no way to put them in."""
        untracked = [
            element
            for element in self.adapted
            if type(element) in (list, dict) and any(map(is_tracked, _elements(element)))
        ]
        if untracked and type(self.adapted) is not tuple and rebuilt(self.adapted, list(self.adapted)) is None:
            raise UnsavableContainerError(
                f"it is a {type(self.adapted).__name__}, which is not constructable from its elements, so that changes "
                f"of the {type(untracked[0]).__name__} in it cannot be tracked. Let its class take its elements, or "
                "mark it as NoDependency where it need not be saved."
            )
        return {}


class NamedTupleAdapter(TupleAdapter):
    """Children by field, and by index as well: the names under which values are stored are the fields."""

    def _trackable_children(self) -> Mapping[str, object]:
        fields = dict(zip(type(self.adapted)._fields, self.adapted, strict=True))
        return {**fields, **super()._trackable_children()}

    def _lookup_dependency(self, name: str) -> object | None:
        fields = type(self.adapted)._fields
        child: object = self.adapted[fields.index(name)] if name in fields else super()._lookup_dependency(name)
        return child


class DictAdapter(Adapter):
    """Children by key."""

    def _trackable_children(self) -> Mapping[str, object]:
        content = self.adapted
        if _has_text_keys(content) and PLAIN_TYPES.isdisjoint(map(type, content.values())):
            return dict(content)
        return {key: value for key, value in content.items() if isinstance(key, str) and type(value) not in PLAIN_TYPES}

    def _lookup_dependency(self, name: str) -> object | None:
        # Not by indexing: a defaultdict would make an entry.
        child: object | None = self.adapted.get(name)
        return child

    def _leaf_sources(self) -> tuple[object, ...]:
        return (self.adapted,) if type(self.adapted) is dict else ()

    def _attribute_names(self) -> tuple[str, ...]:
        return ()

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        for key, value in () if _has_text_keys(self.adapted) else self.adapted.items():
            if not isinstance(key, str) and self._is_child(value):
                raise UnsavableContainerError(
                    f"A dict has the non-string key {key!r} for a trackable {type(value).__name__}: "
                    "local names are text, use a string key."
                )
        return {}

    def _is_child(self, value: object) -> bool:
        return is_tracked(value)


def _has_text_keys(content: dict[Any, Any]) -> bool:
    """Whether it is certain, at no cost for each key, that all keys are text."""
    return set(map(type, content)) <= {str}


def is_tracked(value: object) -> bool:
    """Whether an element of a container is tracked under its name, as TensorFlow understands it.

    Lists and dicts are, even empty ones, because something may be put into them later. A tuple is for what it holds.
    """
    if isinstance(value, tuple):
        return any(map(is_tracked, value))
    return type(value) not in PLAIN_TYPES and is_trackable(value)


def rebuilt(value: tuple[Any, ...], elements: Sequence[Any]) -> tuple[Any, ...] | None:
    """A tuple of the class of another one, with these elements.

    Returns:
        None where the class's constructor does not make such a tuple of its elements: it is not gone around.
    """
    kind: Any = type(value)
    try:
        made = kind(**dict(zip(kind._fields, elements, strict=True))) if _is_named(value) else kind(elements)
    except Exception:  # whatever a user's constructor may raise
        return None
    if (
        type(made) is not kind
        or len(made) != len(elements)
        or any(a is not b for a, b in zip(made, elements, strict=True))
    ):
        return None
    if hasattr(value, "__dict__"):
        vars(made).update(vars(value))
    result: tuple[Any, ...] = made
    return result


def _is_named(value: tuple[Any, ...]) -> bool:
    fields = getattr(type(value), "_fields", None)
    return isinstance(fields, tuple) and len(fields) == len(value)


def _elements(container: list[Any] | dict[Any, Any]) -> Any:
    return container.values() if isinstance(container, dict) else container


def _adapt_tuple(value: tuple[Any, ...]) -> Trackable:
    return NamedTupleAdapter(value) if _is_named(value) else TupleAdapter(value)


register_adapter(list, SequenceAdapter)
register_adapter(tuple, _adapt_tuple)
register_adapter(dict, DictAdapter)
