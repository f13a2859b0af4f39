"""Objects that encode their own state: `PythonState`, anything with a ``state_dict``, ``torch.Generator``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from torch_trackckpt.adapters.data_order import has_own_state
from torch_trackckpt.adapters.registry import Adapter, register_adapter
from torch_trackckpt.adapters.state_node import StateNode, state_bytes
from torch_trackckpt.errors import MismatchError, UnsupportedValueError
from torch_trackckpt.trackable import PYTHON_STATE, VARIABLE_VALUE, Prepared, Resolve, Trackable, Value

__all__ = ["GeneratorAdapter", "PythonStateAdapter", "StateDictAdapter"]


class PythonStateAdapter(Adapter):
    """An object with ``serialize`` and ``deserialize``: one string scalar."""

    def _attribute_names(self) -> tuple[str, ...]:
        return (PYTHON_STATE,)

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        state = self.adapted.serialize()
        if isinstance(state, str):
            state = state.encode()
        if not isinstance(state, bytes):
            raise UnsupportedValueError(
                f"{type(self.adapted).__name__}.serialize() must return str or bytes, not {type(state).__name__}."
            )
        return {PYTHON_STATE: state}

    def _prepare_restore(self, values: Mapping[str, Value], resolve: Resolve) -> Prepared:
        state = state_bytes(values)
        return Prepared(lambda: self.adapted.deserialize(state))


class StateDictAdapter(StateNode):
    """An object with ``state_dict`` and ``load_state_dict``: schedulers, GradScaler, samplers, RNGState, ..."""

    def __init__(self, adapted: Any) -> None:
        super().__init__(
            adapted,
            None,
            capture=lambda path_of: adapted.state_dict(),
            prepare=lambda state, resolve: Prepared(lambda: adapted.load_state_dict(state)),
        )
        self.adapted = adapted


class GeneratorAdapter(Adapter):
    """A random generator: its state as a tensor of bytes."""

    def _attribute_names(self) -> tuple[str, ...]:
        return (VARIABLE_VALUE,)

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        return {VARIABLE_VALUE: self.adapted.get_state()}

    def _prepare_restore(self, values: Mapping[str, Value], resolve: Resolve) -> Prepared:
        state = values[VARIABLE_VALUE]
        expected = self.adapted.get_state()
        if not isinstance(state, torch.Tensor) or (state.dtype, state.shape) != (
            expected.dtype,
            expected.shape,
        ):
            raise MismatchError("the stored value is no state of this kind of torch.Generator.")
        return Prepared(lambda: self.adapted.set_state(state))


def _adapt_by_methods(value: object) -> Trackable | None:
    """The adapter for what an object's class can do; its attributes are not asked, they may do anything."""
    if isinstance(value, type):
        return None
    if all(callable(getattr(type(value), name, None)) for name in ("serialize", "deserialize")):
        return PythonStateAdapter(value)
    if has_own_state(value):
        return StateDictAdapter(value)
    return None


register_adapter(torch.Generator, GeneratorAdapter)
register_adapter(object, _adapt_by_methods)
