"""The class of an enum whose name a file holds, among those that the live object uses.

A file may never say what is imported or looked up in a module. So a class is taken only if the object that is being
restored has it already: in its attributes, in its class's, or in the state that it would save now.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from torch_trackckpt.errors import MismatchError

__all__ = ["find_enum"]


def find_enum(name: str, owner: object, capture: Callable[[], object]) -> type[enum.Enum]:
    """The enum of a qualified name that a live object uses.

    Args:
        name: the class's ``__qualname__``.
        owner: the live object.
        capture: what it would save now; called only where the attributes have no such enum.

    Raises:
        MismatchError: there is none, or there are several of that name.
    """
    found = _named(name, _attributes(owner)) or _named(name, [_captured(name, owner, capture)])
    if len(found) == 1:
        return found[0]
    if found:
        places = " and ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in found)
        raise MismatchError(f"the checkpoint holds a member of the enum {name!r}, but the live object uses {places}.")
    raise MismatchError(
        f"the checkpoint holds a member of the enum {name!r}, and neither the attributes nor the present state of the "
        f"live {type(owner).__name__} have an enum of this name; a file cannot have classes imported. Give the object "
        "an attribute that is this enum, or one of its members, before the restore."
    )


def _captured(name: str, owner: object, capture: Callable[[], object]) -> object:
    try:
        return capture()
    except Exception as error:
        raise MismatchError(
            f"the checkpoint holds a member of the enum {name!r}, which the attributes of the live "
            f"{type(owner).__name__} do not have, and its present state cannot be asked for it: "
            f"{type(error).__name__}: {error}. Give the object an attribute that is this enum before the restore."
        ) from error


def _attributes(owner: object) -> Iterator[object]:
    yield from list(getattr(owner, "__dict__", {}).values())
    for kind in type(owner).__mro__:
        yield from list(vars(kind).values())


def _named(name: str, values: Iterable[object]) -> list[type[enum.Enum]]:
    kinds = dict.fromkeys(kind for value in values for kind in _enums_in(value, set()))
    return [kind for kind in kinds if kind.__qualname__ == name]


def _enums_in(value: object, seen: set[int]) -> Iterator[type[enum.Enum]]:
    """The enums that occur in nested containers, as classes or by their members."""
    if isinstance(value, enum.Enum):
        yield type(value)
    elif isinstance(value, type):
        if issubclass(value, enum.Enum):
            yield value
    elif isinstance(value, (dict, list, tuple, set, frozenset, deque)) and id(value) not in seen:
        seen.add(id(value))
        for item in [*value, *value.values()] if isinstance(value, dict) else list(value):
            yield from _enums_in(item, seen)
