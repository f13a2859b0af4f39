"""Plain numbers and tensors on tracked objects that no checkpoint holds: what a program may believe to be saved.

Looked at are modules, `AutoTrackable` objects and the checkpoint itself; every other object says what its state is.
PyTorch's modules keep their configuration in attributes too, which is made anew with the module and is no loss.
So a number of a module is named only where it looks like state. It is configuration if

*   an ``__init__`` of its classes has a parameter of its name (leading underscores do not count), or it is among their
    ``__constants__``, and no code that runs later counts with it (``self.step += 1``);
*   its class is an installed package's, or a base of its class is and has code that assigns the attribute;
*   no code of its classes but ``__init__``, and the methods that this calls, assigns it. Where that is nothing but
    literals, it is state all the same once it is another number, or if it is zero, as counters are at first; and
    infinity is where best values begin.

A tensor is named unless a module of torch itself has it, it is part of the checkpoint under another name, or it is a
result of autograd, which has a history. Buffers that are not persistent were decided on. In a list, tuple or dict the
first such element is named, without a look at what is inside of it.
"""

from __future__ import annotations

import enum
import math
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from torch_trackckpt.adapters.metric import MetricAdapter
from torch_trackckpt.adapters.module import ModuleAdapter
from torch_trackckpt.graph.assignments import Assignments, assignments_of, code_of
from torch_trackckpt.graph.keys import readable_path
from torch_trackckpt.graph.walk import LiveGraph, live_object
from torch_trackckpt.trackable import Trackable
from torch_trackckpt.tracking.autotrackable import AutoTrackable
from torch_trackckpt.tracking.simple_attributes import is_simple

__all__ = ["lost_values", "unsaved_metrics"]

_PACKAGE_FOLDERS = frozenset({"site-packages", "dist-packages"})

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) | frozenset(dir(nn.Module))


def lost_values(live: LiveGraph, holder: AutoTrackable) -> list[str]:
    """What a checkpoint leaves out of the plain numbers and tensors, as text with their object paths.

    Args:
        live: the graph that is saved.
        holder: the checkpoint, which need not be part of the graph.
    """
    finder = _Finder(live)
    trackables = live.objects.trackables()
    # The holder comes first, in the graph or not.
    found: list[tuple[int | None, Trackable]] = [item for item in trackables if item[1] is holder]
    found = found or [(None, holder)]
    found += [item for item in trackables if item[1] is not holder]
    return [
        f"{readable_path(()) if number is None else live.readable(number)}{text}"
        for number, trackable in found
        for text in finder.of_trackable(trackable)
    ]


def unsaved_metrics(live: LiveGraph) -> list[str]:
    """What to call the metrics of torchmetrics that have states, none of which is persistent."""
    return [
        live.readable(number)
        for number, trackable in live.objects.trackables()
        if isinstance(trackable, MetricAdapter) and trackable.is_left_out
    ]


class _Finder:
    """Looks at each class of modules once."""

    def __init__(self, live: LiveGraph) -> None:
        self._live = live
        self._classes: dict[type, _ModuleClass] = {}

    def of_trackable(self, trackable: Trackable) -> Iterator[str]:
        """Names and values of what is lost of an object."""
        value = live_object(trackable)
        if isinstance(trackable, ModuleAdapter):
            found = self._of_module(trackable, value)
        elif isinstance(value, AutoTrackable):
            found = self._of_auto_trackable(value)
        else:
            return
        for name, lost in found:
            yield f"{name} = {_shown(lost)}"

    def _of_module(self, adapter: ModuleAdapter, module: nn.Module) -> Iterator[tuple[str, object]]:
        known = self._classes.get(type(module)) or self._classes.setdefault(type(module), _ModuleClass(type(module)))
        if known.is_torchs:
            return
        for name, value in vars(module).items():
            if name in _OF_EVERY_MODULE or type(value) in (bool, str):
                continue
            if _is_number(value):
                if known.is_state(name, value):
                    yield f".{name}", value
            elif name not in adapter._kept_attributes():
                yield from _first(name, value, self._is_lost_tensor, (torch.Tensor,))

    def _of_auto_trackable(self, owner: AutoTrackable) -> Iterator[tuple[str, object]]:
        saves = owner._saves_attributes()
        if not saves and not owner._loses_attributes():
            return
        for name, value in owner._attributes().items():
            # Numbers of a class of their own are not plain.
            if not (saves and is_simple(value)):
                # Tensors are children here.
                yield from _first(name, value, _is_number, _NUMBERS)

    def _is_lost_tensor(self, value: object) -> bool:
        return isinstance(value, torch.Tensor) and value.grad_fn is None and self._live.objects.find(id(value)) is None


class _ModuleClass:
    """What the code of a class of modules tells of its attributes."""

    def __init__(self, kind: type) -> None:
        # torch derives classes from a module's own to shard it or to parametrise its weights; these say nothing.
        self._bases = [base for base in kind.__mro__ if base is not object and not _is_torchs(base)]
        self.is_torchs = not self._bases
        self._is_installed = not self._bases or _is_installed(self._bases[0])
        self._all_bases = kind.__mro__
        self._known: dict[str, Assignments] | None = None
        self._foreign: Collection[str] = ()
        self._configuration: set[str] = set()

    def is_state(self, name: str, value: Any) -> bool:
        """Whether a number under this name looks like one that changes."""
        if self._is_installed:
            return False
        assigned = self._look().get(name)
        if name in self._foreign:
            return False
        if assigned is not None and assigned.is_counted:
            return True
        if name.lstrip("_") in self._configuration:
            return False
        if assigned is None or assigned.is_changed:
            return True
        if assigned.literals and not assigned.is_computed:
            return bool(value == 0) or value not in assigned.literals
        return not isinstance(value, complex) and math.isinf(value)

    def _look(self) -> Mapping[str, Assignments]:
        if self._known is None:
            installed = [base for base in self._all_bases if base is not nn.Module and _is_installed(base)]
            self._known = assignments_of([base for base in self._bases if base not in installed])
            self._foreign = assignments_of(installed).keys()
            for base in self._all_bases:
                self._configuration |= {name.lstrip("_") for name in _parameters_of(base)}
                self._configuration |= {name.lstrip("_") for name in getattr(base, "__constants__", ())}
        return self._known


def _parameters_of(kind: type) -> tuple[str, ...]:
    code = code_of(vars(kind).get("__init__"))
    return () if code is None else code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _is_torchs(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "torch"


def _is_installed(kind: type) -> bool:
    """Whether a class comes from an installed package, or from Python itself, and not from the program."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if file is None:
        return kind.__module__ == "builtins"
    # By the names of folders, because packages may come from another environment than the interpreter's own.
    path = Path(file)
    return not _PACKAGE_FOLDERS.isdisjoint(path.parts) or Path(sysconfig.get_path("stdlib")) in path.parents


def _first(
    name: str, value: object, is_lost: Callable[[object], bool], kinds: tuple[type, ...]
) -> Iterator[tuple[str, object]]:
    """The value itself, or the first of its elements; only such of these kinds can be lost."""
    if is_lost(value):
        yield f".{name}", value
    elif isinstance(value, (list, tuple, dict)):
        # There may be very many elements of few classes.
        classes = set(map(type, value.values() if isinstance(value, dict) else value))
        if not any(issubclass(kind, kinds) for kind in classes):
            return
        items = value.items() if isinstance(value, dict) else enumerate(value)
        first = next(((key, element) for key, element in items if is_lost(element)), None)
        if first is not None:
            yield f".{name}[{first[0]!r}]", first[1]


_NUMBERS = (int, float, complex, np.number)


def _is_number(value: object) -> bool:
    if isinstance(value, (bool, np.bool_, enum.Enum)):
        return False
    return isinstance(value, _NUMBERS)


def _shown(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{value} ({type(value).__name__})"
