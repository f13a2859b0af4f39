"""From a live object to the trackable that stands for it."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch_trackckpt.trackable import Trackable

__all__ = ["Adapter", "adapt", "is_trackable", "register_adapter"]

T = TypeVar("T")


class Adapter(Trackable):
    """A trackable that stands for an object of a foreign class."""

    def __init__(self, adapted: Any) -> None:
        self.adapted = adapted

    def _identity(self) -> Hashable:
        return id(self.adapted)

    def _owner(self) -> tuple[Any, Hashable]:
        return self.adapted, None


@functools.singledispatch
def adapt(value: object) -> Trackable | None:
    """The trackable that stands for a live object, or None where the object is not trackable."""
    return None


@adapt.register
def _(value: Trackable) -> Trackable:
    return value


@adapt.register
def _(value: weakref.ref) -> Trackable | None:  # type: ignore[type-arg]
    return adapt(value())


def register_adapter(kind: type[T], adapter: Callable[[T], Trackable | None]) -> None:
    """Makes instances of a class trackable, in this process.

    Args:
        kind: the class (or abstract base class); its subclasses are covered as well.
        adapter: called with an instance; returns the trackable that stands for it, usually an `Adapter`.

    Example:
        >>> import torch
        >>> from torch_trackckpt.adapters import Adapter, is_trackable
        >>> from torch_trackckpt import register_adapter
        >>> class Meter:
        ...     total = 0.0
        >>> class MeterAdapter(Adapter):
        ...     def _serialize_to_tensors(self):
        ...         return {"total": torch.tensor(self.adapted.total)}
        ...     def _restore_from_tensors(self, values):
        ...         self.adapted.total = float(values["total"])
        >>> register_adapter(Meter, MeterAdapter)
        >>> is_trackable(Meter())
        True
    """
    adapt.register(kind, adapter)


def is_trackable(value: object) -> bool:
    """Whether an object can be a node of the graph."""
    return adapt(value) is not None
