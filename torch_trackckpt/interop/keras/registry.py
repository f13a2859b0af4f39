"""Which torch module is which Keras layer.

A rule looks at a module and says what Keras has in its place: a `LayerForm`. One module may be one of several Keras
layers, which the shapes of the stored variables tell apart: a ``Linear`` is a ``Dense`` or an ``EinsumDense``.

Names of variables are spelled without leading underscores: ``kernel``, ``cell/recurrent_kernel``,
``query_dense/bias``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from torch_trackckpt.interop.keras.arrays import KerasArray

__all__ = ["LayerForm", "Part", "Rule", "StoredShapes", "parts_of", "register_keras_layer", "rule_for"]

StoredShapes = Mapping[str, tuple[int, ...]]
"""The variables of a saved layer by name, with their shapes."""

M = TypeVar("M", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class LayerForm:
    """A module as a Keras layer."""

    keras: str
    """The Keras class."""
    variables: Mapping[str, KerasArray]
    """In the order in which Keras creates them."""
    left_alone: tuple[str, ...] = ()
    """Tensors of the module that Keras has nothing of, and that do not matter to it: ``num_batches_tracked``."""
    inexact: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What does not carry over exactly, by the name of a tensor of the module (or empty for all of it): the reason."""
    foreign: Mapping[str, Callable[[Any], torch.Tensor] | None] = dataclasses.field(default_factory=dict)
    """Variables of the Keras layer which torch has nothing like. They are not read. What is written for each: a tensor
    made from the module; or, where there is None, what the template has."""
    refused: str | None = None
    """Why the module cannot take over a layer that looks like its own: a reason that ends in what to do. Such a form
    has no variables."""


Rule = Callable[[Any, StoredShapes | None], LayerForm | None]
"""From a module, and the variables of the saved layer that it may be, to its form; without the latter, its usual form.
None where the module cannot be a layer with these variables. Shapes need not fit: a form is compared afterwards."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One of several Keras layers that a module stands for."""

    name: str
    """What a caller's map and messages add to the module's name: ``l0``."""
    rule: Rule
    """Its forms name tensors as they are called in the whole module."""


@functools.singledispatch
def _rule(module: nn.Module) -> Rule | None:
    return None


def rule_for(module: nn.Module) -> Rule | None:
    """The rule of the nearest class above a module's own; None where there is none."""
    return _rule(module)


@functools.singledispatch
def parts_of(module: nn.Module) -> Sequence[Part]:
    """The layers that a module is in Keras, where it is several, as ``nn.LSTM(num_layers=2)`` is; else none."""
    return ()


def register_keras_layer(kind: type[M], rule: Callable[[M, StoredShapes | None], LayerForm | None]) -> None:
    """Says how modules of a class, and of its subclasses, are stored by Keras; in this process.

    Args:
        kind: the class.
        rule: see `Rule`.

    Example:
        >>> import torch
        >>> from torch_trackckpt.interop.keras import KerasArray, LayerForm, Piece, register_keras_layer
        >>> class Scale(torch.nn.Module):
        ...     def __init__(self, size):
        ...         super().__init__()
        ...         self.factor = torch.nn.Parameter(torch.ones(size))
        >>> def scale(module, stored):
        ...     return LayerForm("Scale", {"gamma": KerasArray((Piece("factor"),), tuple(module.factor.shape))})
        >>> register_keras_layer(Scale, scale)
    """
    _rule.register(kind, lambda module: rule)
