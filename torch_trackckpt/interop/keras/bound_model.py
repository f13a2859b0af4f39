"""A module whose tensors were bound to the variables of a Keras model: what goes with what, and what is left over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from torch_trackckpt.errors import MismatchError
from torch_trackckpt.graph.object_graph import ObjectGraph
from torch_trackckpt.interop.keras.arrays import Piece
from torch_trackckpt.interop.keras.bound import BoundVariable
from torch_trackckpt.interop.keras.inexact import Inexact
from torch_trackckpt.interop.keras.registry import LayerForm
from torch_trackckpt.interop.keras.saved import Flavor, SavedModel, SavedVariable
from torch_trackckpt.interop.keras.units import AfterFlatten, Net

__all__ = ["Absent", "BoundLayer", "BoundModel", "Foreign", "Structure"]


@dataclasses.dataclass(frozen=True)
class BoundLayer:
    """One line of the table of what goes with what."""

    torch_name: str
    torch_kind: str
    keras: str
    """Name and path of the layer; empty where there is none."""
    keras_kind: str
    how: str
    """``map``, ``name``, ``order`` or ``shape``; ``left out`` by the map."""

    def __str__(self) -> str:
        keras = f"{self.keras_kind} {self.keras}".strip() or "-"
        return f"{self.torch_name or '(the net itself)'}  {self.torch_kind}  <-  {keras}  by {self.how}"


@dataclasses.dataclass(frozen=True)
class Absent:
    """A tensor that the Keras layer has no variable for, because it always has one value: gamma of scale=False."""

    variable: BoundVariable
    value: float

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors."""
        return tuple(self.variable.torch_name(piece) for piece in self.variable.array.pieces)

    @property
    def is_lost(self) -> bool:
        """Whether the tensors have another value by now, which Keras has no place for."""
        return not bool((self.variable.value() == self.value).all())


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A stored variable that torch has nothing like; what a form says of it."""

    saved: SavedVariable
    layer: str
    module: nn.Module
    make: Callable[[Any], torch.Tensor] | None
    """What is written for it, made from the module; None where it keeps its value."""


@dataclasses.dataclass(frozen=True)
class BoundModel:
    """A module's tensors as the variables of a Keras model."""

    variables: tuple[BoundVariable, ...]
    """In the order of Keras's layers, and within a layer in that in which Keras makes them."""
    flavor: Flavor
    graph: ObjectGraph | None = None
    """The saved graph that the module was bound to, if there was one."""
    by_node: Mapping[int, BoundVariable] = dataclasses.field(default_factory=dict)
    """By the nodes of that graph."""
    saved: SavedModel | None = None
    table: tuple[BoundLayer, ...] = ()
    """What goes with what, and why."""
    unmatched_torch: tuple[str, ...] = ()
    """Tensors of the module that the checkpoint has nothing for."""
    unused: tuple[SavedVariable, ...] = ()
    """Stored variables of the model that the module has nothing for."""
    foreign: tuple[Foreign, ...] = ()
    absent: tuple[Absent, ...] = ()
    inexact: tuple[Inexact, ...] = ()
    """What does not carry over exactly."""
    pairs: tuple[tuple[str, LayerForm, tuple[BoundVariable, ...]], ...] = ()
    """Name of the module, form and variables, of each layer."""

    def remember_frozen(self, frozen: dict[int, nn.Parameter]) -> None:
        """Has all variables note in one place what they freeze; see `BoundVariable.frozen`."""
        for variable in (*self.variables, *(absent.variable for absent in self.absent)):
            variable.frozen = frozen

    @property
    def unused_keys(self) -> tuple[str, ...]:
        """The checkpoint's keys of `unused`."""
        return tuple(variable.key for variable in self.unused)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Tensors that Keras has no variable for: they get the value that makes no difference, and are not trained."""
        merged = [variable.torch_name(Piece(name)) for variable in self.variables for name in variable.array.merged]
        return (*merged, *(name for absent in self.absent for name in absent.names))

    def trainable(self) -> tuple[BoundVariable, ...]:
        """Those that are made of parameters that are trained, in the order of Keras's ``trainable_variables``."""
        found = [
            variable
            for variable in self.variables
            if (parameters := variable.parameters()) and any(parameter.requires_grad for _, parameter in parameters)
        ]
        if self.flavor is Flavor.SONNET:
            found.sort(key=_sonnet_order)
        elif self.flavor is not Flavor.KERAS3:
            # The Model of tf_keras has the weights of its layers before its own.
            found.sort(key=lambda variable: not variable.layer or variable.keras_path.startswith("/"))
        return tuple(found)

    def __str__(self) -> str:
        return "\n".join(map(str, self.table))


class Structure:
    """The modules that a binding is of: it is about those that were there, which need not be those that are there now.

    Args:
        module: the model.
        after_flatten: see `units.AfterFlatten`.
    """

    def __init__(self, module: nn.Module, after_flatten: AfterFlatten | None = None) -> None:
        self._module = module
        self._after_flatten = after_flatten
        # Keeps the modules, so that no other gets the identity of one of them.
        self._registered = _registered(module)
        self._units = self._find_units()

    def is_kept(self) -> bool:
        """Whether the layers are the same objects at the same places; wrappers around them make no difference."""
        now = _registered(self._module)
        if now == self._registered:
            return True
        for identity, former in self._registered.items():
            # What has become None, or is no longer, is a variable less or more; what a parametrization moves is not.
            later = now[identity].has if identity in now else {}
            if any(later.get(name, is_there) != is_there for name, is_there in former.has.items()):
                return False
        try:
            return self._find_units() == self._units
        except MismatchError:
            return False

    def _find_units(self) -> list[tuple[tuple[str, ...], int]]:
        net = Net(self._module, self._after_flatten)
        raw = [((each.name,), id(each.module)) for each in net.raw if each.is_parameter]
        return [*((unit.names, id(unit.module)) for unit in net.units), *raw]


@dataclasses.dataclass(frozen=True)
class _Registered:
    """What a module has of its own."""

    module: nn.Module = dataclasses.field(compare=False)
    below: tuple[tuple[str, int], ...]
    has: Mapping[str, bool]
    """By the names of its parameters: whether it has them, or None."""


def _registered(module: nn.Module) -> dict[int, _Registered]:
    """By identity, each module once; of very deep nets as well."""
    found: dict[int, _Registered] = {}
    todo = [module]
    while todo:
        each = todo.pop()
        if id(each) in found:
            continue
        below = [(name, child) for name, child in each._modules.items() if child is not None]
        has = {name: parameter is not None for name, parameter in each._parameters.items()}
        found[id(each)] = _Registered(each, tuple((name, id(child)) for name, child in below), has)
        todo += [child for _, child in below]
    return found


def _sonnet_order(variable: BoundVariable) -> tuple[tuple[int, int, str], ...]:
    """Sonnet goes by the names of attributes, first those that are variables, then those that are modules."""
    parts = [part for part in variable.keras_path.split("/") if part]
    return tuple((int(i < len(parts) - 1), int(part) if part.isdigit() else 0, part) for i, part in enumerate(parts))
