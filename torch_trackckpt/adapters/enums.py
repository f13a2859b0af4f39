"""Members of enums by their names, and the class of an enum by its name, among those that the live object uses.

A file may never say what is imported or looked up in a module. So a class is taken only if the object that is being
restored has it already: in its attributes, in its class's, or in the state that it would save now.
"""

from __future__ import annotations

import enum
import functools
import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from torch_trackckpt.errors import MismatchError

__all__ = ["find_enum", "member_of", "names_of"]


def names_of(value: enum.Enum) -> str | list[str] | None:
    """The name of a member, or those of the flags in a combination; None where bits of it have no name."""
    members = type(value).__members__
    if value._name_ in members:
        return value._name_
    # Python 3.10 has no names for combinations, and later ones join those of their parts.
    parts = [name for name, flag in members.items() if _is_part(flag, name, value)]
    return parts if isinstance(value, enum.Flag) and _combined(type(value), parts) == value else None


def member_of(kind: type[enum.Enum], names: str | list[str]) -> enum.Enum:
    """The member, or combination of flags, of these names.

    Raises:
        MismatchError: the enum has no member of a name.
        TypeError: several names, and no enum of flags.
    """
    for name in [names] if isinstance(names, str) else names:
        if name not in kind.__members__:
            raise MismatchError(
                f"the checkpoint holds {kind.__qualname__}.{name}, but the live enum {kind.__module__}."
                f"{kind.__qualname__} has no such member; it has {', '.join(kind.__members__)}."
            )
    return kind.__members__[names] if isinstance(names, str) else _combined(kind, names)


def _is_part(flag: enum.Enum, name: str, whole: enum.Enum) -> bool:
    """Whether a member of one bit, under its own name, is in a combination."""
    return (
        isinstance(flag, enum.Flag)
        and flag._name_ == name
        and flag.value.bit_count() == 1
        and bool(flag.value & whole.value)
    )


def _combined(kind: type[enum.Enum], names: list[str]) -> enum.Enum:
    if not issubclass(kind, enum.Flag):
        raise TypeError(f"{kind.__qualname__} is no enum of flags")
    return functools.reduce(operator.or_, (kind[name] for name in names), kind(0))


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
