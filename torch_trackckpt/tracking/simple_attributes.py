"""The plain values among an object's attributes: which of them are saved, and how they come back.

Plain is what the codec of python states knows (see `json_codec`), beside tensors: None, numbers, text, bytes, dtypes,
devices, NumPy scalars and arrays, members of enums; and lists, tuples, dicts and sets of these, in which nothing is
trackable.

A restored list, dict or set is the live one with the stored content, so that whoever holds it sees that.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from torch_trackckpt.adapters import json_codec
from torch_trackckpt.adapters.containers import PLAIN_TYPES
from torch_trackckpt.adapters.enums import find_enum
from torch_trackckpt.errors import DataLossError, MismatchError, UnsupportedValueError
from torch_trackckpt.trackable import PYTHON_STATE, Prepared, TrackedContainer
from torch_trackckpt.tracking.data_structures import TrackedDict, TrackedList

__all__ = ["encode", "is_empty_container", "is_simple", "may_be_stored", "prepare"]

_CONTAINERS = frozenset({list, tuple, dict, collections.OrderedDict, collections.Counter, set, frozenset})


def is_simple(value: object) -> bool:
    """Whether a value is plain.

    Example:
        >>> import torch
        >>> from torch_trackckpt.tracking.simple_attributes import is_simple
        >>> is_simple([1, {"a": None}]), is_simple([1, torch.ones(1)]), is_simple(len)
        (True, False, False)
    """
    return _is_simple(value, frozenset())


def _is_simple(value: Any, around: frozenset[int]) -> bool:
    """As `is_simple`; a container inside of itself (``around`` has the ids) is not."""
    if type(value) in PLAIN_TYPES:
        return True
    if _kind(value) in _CONTAINERS:
        # A long list of numbers costs next to nothing.
        if PLAIN_TYPES.issuperset(map(type, _parts(value))):
            return not _has_marks(value)
        inside = around | {id(value)}
        return id(value) not in around and not _has_marks(value) and all(_is_simple(p, inside) for p in _parts(value))
    # Of an array the kind counts, however long it is.
    sample = value.reshape(-1)[:0] if type(value) is np.ndarray else value
    try:
        _, tensors = json_codec.encode(sample)
    except UnsupportedValueError:
        return False
    return not tensors


def may_be_stored(value: object) -> bool:
    """Whether a value is plain, or a list or dict that was plain before something else was put in."""
    return _kind(value) in _CONTAINERS or is_simple(value)


def is_empty_container(value: object) -> bool:
    """Whether a value is a list, dict or the like that may still become one of trackables."""
    return _kind(value) in _CONTAINERS and not value


def _kind(value: object) -> type:
    return value.plain_type if isinstance(value, TrackedContainer) else type(value)


def _parts(container: Any) -> Iterable[Any]:
    return itertools.chain(container, container.values()) if isinstance(container, dict) else container


def _has_marks(container: object) -> bool:
    """Whether an element is marked as no part of checkpoints; the others are not saved without it, then."""
    return isinstance(container, (TrackedList, TrackedDict)) and container._record.has_marks(container)


def encode(attributes: Mapping[str, object]) -> bytes:
    """The stored form of plain attributes.

    Raises:
        UnsupportedValueError: a value cannot be JSON after all; the text names the attribute.
    """
    try:
        return json_codec.encode(dict(attributes))[0]
    except UnsupportedValueError:
        for name, value in attributes.items():
            try:
                json_codec.encode(value)
            except UnsupportedValueError as error:
                raise UnsupportedValueError(
                    f"its attribute {name!r}: {error} Mark it as NoDependency where it need not be saved."
                ) from error
        raise


def prepare(owner: object, attributes: Mapping[str, object], defaults: Mapping[str, object], state: bytes) -> Prepared:
    """Checks and decodes stored attributes; the result sets those that are not as stored already.

    What has no place is unused: a state that is no attributes; an attribute that the live object lacks, or one that is
    not plain there. What is not stored is missing. Neither is an empty list or dict, which may be there for modules
    that come, or have come since.

    Args:
        owner: the live object.
        attributes: all of its attributes that are part of checkpoints.
        defaults: plain values that its class has in place of attributes; where stored, these become its own.
        state: what `encode` gave.

    Raises:
        UnsupportedFormatError: the state holds a kind of value that this version does not know.
        MismatchError: it holds a member of an enum that the live object does not have; or the object is of a frozen
            dataclass and was made with other values.
    """
    try:
        stored = json_codec.decode(state, {}, lambda name: find_enum(name, owner, lambda: dict(attributes)))
    except DataLossError:
        stored = None
    if type(stored) is not dict or not all(isinstance(name, str) for name in stored):
        # The checksum was right: it is the state of an object of another kind, which had this name.
        return Prepared(lambda: None, (PYTHON_STATE,), missing=_missing(attributes, {}))
    simple = {name: value for name, value in attributes.items() if name in stored and is_simple(value)}
    simple |= {name: value for name, value in defaults.items() if name in stored}
    changed = {name: value for name, value in stored.items() if name in simple and not _is_equal(value, simple[name])}
    unused = [name for name, value in stored.items() if name not in simple and not is_empty_container(value)]

    if changed and (params := getattr(type(owner), "__dataclass_params__", None)) and params.frozen:
        raise MismatchError(
            f"the dataclass {type(owner).__name__} is frozen, and made with another value here than is stored for "
            f"{', '.join(changed)}. Make it with the stored values, or leave it out by NoDependency."
        )

    def assign() -> None:
        for name, value in changed.items():
            # A list of the class is every object's.
            setattr(owner, name, value if name in defaults else _filled(simple[name], value))

    return Prepared(assign, tuple(unused), missing=_missing(attributes, stored))


def _missing(attributes: Mapping[str, object], stored: Collection[str]) -> tuple[str, ...]:
    """The plain attributes that are not stored."""
    return tuple(
        name
        for name, value in attributes.items()
        if name not in stored and is_simple(value) and not is_empty_container(value)
    )


def _is_equal(stored: object, live: object) -> bool:
    """Bit for bit; -0.0 is not 0.0 here, and NaN is NaN."""
    try:
        return json_codec.encode(stored) == json_codec.encode(live)
    except UnsupportedValueError:
        return False


def _filled(live: Any, stored: Any) -> Any:
    """The live container with the stored content, where both are of one kind; else what is stored."""
    if _kind(live) is not type(stored) or not isinstance(stored, (list, dict, set)):
        return stored
    content: Any = stored
    if isinstance(stored, list):
        found = itertools.chain(live, itertools.repeat(None))
        content = [_filled(old, new) for old, new in zip(found, stored, strict=False)]
    elif isinstance(stored, dict):
        content = {key: _filled(live.get(key), value) for key, value in stored.items()}
    if isinstance(live, (TrackedList, TrackedDict)):
        live._replace_all(content)
    elif isinstance(live, list):
        live[:] = content
    else:
        live.clear()
        live.update(content)
    return live
