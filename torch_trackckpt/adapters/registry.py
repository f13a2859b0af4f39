"""From a live object to the trackable that stands for it.

The adapter of the nearest class above an object's own stands for it, as in `functools.singledispatch`. A class of a
package that may not be installed is registered by its name, and takes its place when an object of it first appears.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch_trackckpt.trackable import Trackable

__all__ = ["Adapter", "Adapting", "adapt", "adapter_for", "is_trackable", "register_adapter"]

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
def _adapt(value: object) -> Trackable | None:
    return None


@_adapt.register
def _(value: Trackable) -> Trackable:
    return value


@_adapt.register
def _(value: weakref.ref) -> Trackable | None:  # type: ignore[type-arg]
    return adapt(value())


class _Registry:
    """Which adapter stands for which class; this process has one."""

    def __init__(self) -> None:
        self._by_name: dict[str, Callable[[Any], Trackable | None]] = {}
        self._known: weakref.WeakSet[type] = weakref.WeakSet()
        """Classes that were seen since the last registration by name, with all of their bases."""

    def add(self, kind: type | str, adapter: Callable[[Any], Trackable | None]) -> None:
        if isinstance(kind, str):
            self._by_name[kind] = adapter
            self._known.clear()
        else:
            _adapt.register(kind, adapter)

    def find(self, kind: type) -> Callable[[Any], Trackable | None]:
        if kind not in self._known:
            for base in kind.__mro__:
                adapter = self._by_name.get(f"{base.__module__}.{base.__qualname__}")
                if adapter is not None and base not in _adapt.registry:
                    _adapt.register(base, adapter)
            self._known.add(kind)
        return _adapt.dispatch(kind)


_registry = _Registry()


def adapt(value: object) -> Trackable | None:
    """The trackable that stands for a live object, or None where the object is not trackable."""
    return _registry.find(value.__class__)(value)


class Adapting:
    """`adapt` for many objects at once: looks a class up when it meets it first. Classes may not change meanwhile."""

    def __init__(self) -> None:
        self._adapters: dict[type, Callable[[Any], Trackable | None]] = {}

    def __call__(self, value: object) -> Trackable | None:
        kind = value.__class__
        adapter = self._adapters.get(kind)
        if adapter is None:
            adapter = self._adapters[kind] = _registry.find(kind)
        return adapter(value)


def adapter_for(kind: type) -> Callable[[Any], Trackable | None]:
    """What `adapt` calls for the objects of a class."""
    return _registry.find(kind)


def register_adapter(kind: type[T] | str, adapter: Callable[[T], Trackable | None]) -> None:
    """Makes instances of a class trackable, in this process.

    Args:
        kind: the class (or abstract base class); its subclasses are covered as well. A class that should not be
            imported for this is given by its full name, such as ``"torchmetrics.metric.Metric"``.
        adapter: called with an instance; returns the trackable that stands for it, usually an `Adapter`; for a wrapper
            that has no state of its own, what ``adapt`` returns for the object inside. None leaves the object out.

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
    _registry.add(kind, adapter)


def is_trackable(value: object) -> bool:
    """Whether an object can be a node of the graph."""
    return adapt(value) is not None
