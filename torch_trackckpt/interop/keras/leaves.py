"""Variables of a Keras layer that torch has nothing like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.trackable import VARIABLE_VALUE, Prepared, Resolve, Trackable, Value

__all__ = ["Kept", "Made"]


class Kept(Trackable):
    """A variable of the Keras model that torch has nothing for: it keeps the stored value."""

    def __init__(self, readable: str, value: Callable[[], torch.Tensor | None], full_name: str = "") -> None:
        self._readable = readable
        self._name = full_name
        self._value: torch.Tensor | None = None
        self._read = value

    def _attribute_names(self) -> tuple[str, ...]:
        return (VARIABLE_VALUE,)

    def _full_name(self) -> str | None:
        return self._name or None

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        if self._value is None:
            # Once: the checkpoint need not be there at the next save.
            self._value = self._read()
        if self._value is None:
            raise UnsupportedValueError(
                f"{self._readable} has no value: torch has nothing like it, and nothing was restored. Say like=, a "
                "checkpoint that has it."
            )
        return {VARIABLE_VALUE: self._value}

    def _prepare_restore(self, values: Mapping[str, Value], resolve: Resolve) -> Prepared:
        stored = values[VARIABLE_VALUE]
        assert isinstance(stored, torch.Tensor)
        return Prepared(lambda: setattr(self, "_value", stored))


class Made(Trackable):
    """A variable of the Keras model that is made from a module, and never read."""

    def __init__(self, module: nn.Module, make: Callable[[Any], torch.Tensor], full_name: str = "") -> None:
        self._module = module
        self._name = full_name
        self._make = make

    def _attribute_names(self) -> tuple[str, ...]:
        return (VARIABLE_VALUE,)

    def _full_name(self) -> str | None:
        return self._name or None

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        return {VARIABLE_VALUE: self._make(self._module)}

    def _prepare_restore(self, values: Mapping[str, Value], resolve: Resolve) -> Prepared:
        return Prepared(lambda: None)
