"""A nested Python value as one node: its JSON as python state, its tensors as children."""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch

from torch_trackckpt.adapters import json_codec
from torch_trackckpt.adapters.by_rank import ByRank
from torch_trackckpt.adapters.enums import find_enum
from torch_trackckpt.errors import DataLossError
from torch_trackckpt.trackable import PYTHON_STATE, VARIABLE_VALUE, Prepared, Resolve, Trackable, Value

__all__ = ["PathOf", "StateNode", "state_bytes"]

PathOf = Callable[[object], str | None]
"""The object path of a live object in the graph that is being saved; None where it is not part of it."""


class StateNode(Trackable):
    """Stands for a value that is captured when a checkpoint is saved, and applied when one is restored.

    The children exist in two situations only: after `encode`, the tensors of the captured value; and while a
    restore asks for them by name, places for the stored tensors.

    Args:
        owner: the live object that the value belongs to.
        part: which part of the object the value is; None where it is the object's whole state.
        capture: returns the value; may refer to other saved objects by their paths.
        prepare: checks a stored value against the live object, which it does not change.
        join: makes one stored value of those of several processes, where they are parts of one.
    """

    _takes_all_ranks = True

    def __init__(
        self,
        owner: object,
        part: str | None,
        capture: Callable[[PathOf], object],
        prepare: Callable[[Any, Resolve], Prepared],
        join: Callable[[Sequence[Any]], Any] | None = None,
    ) -> None:
        self._owner_and_part = owner, part
        self._capture = capture
        self._prepare = prepare
        self._join = join
        self._json = b""
        self._tensors: dict[str, _StateTensor] = {}

    def encode(self, path_of: PathOf) -> None:
        """Captures the value as it is now."""
        self._json, tensors = json_codec.encode(self._capture(path_of))
        self._tensors = {name: self._place(name, tensor) for name, tensor in tensors.items()}

    def _place(self, name: str, tensor: torch.Tensor | None) -> _StateTensor:
        owner, part = self._owner_and_part
        return _StateTensor(owner, (part, name), tensor, takes_each_rank=self._takes_each_rank())

    def _identity(self) -> Hashable:
        owner, part = self._owner_and_part
        return id(owner) if part is None else (id(owner), part)

    def _owner(self) -> tuple[Any, Hashable]:
        return self._owner_and_part

    def _takes_each_rank(self) -> bool:
        return self._join is not None

    def _trackable_children(self) -> Mapping[str, object]:
        return self._tensors

    def _lookup_dependency(self, name: str) -> object:
        return self._tensors.setdefault(name, self._place(name, None))

    def _attribute_names(self) -> tuple[str, ...]:
        return (PYTHON_STATE,)

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        return {PYTHON_STATE: self._json}

    def _prepare_restore(self, values: Mapping[str, Value], resolve: Resolve) -> Prepared:
        tensors: dict[str, Any] = {
            name: place.tensor for name, place in self._tensors.items() if place.tensor is not None
        }
        return self._prepare(self._decoded(values, tensors), resolve)

    def _decoded(self, values: Mapping[str, Any], tensors: Mapping[str, Any]) -> Any:
        """The stored value; or what becomes of those of several processes."""
        ranked = [value for value in (*values.values(), *tensors.values()) if isinstance(value, ByRank)]
        if not ranked:
            return json_codec.decode(state_bytes(values), tensors, self._find_enum)
        owner, _ = self._owner_and_part
        states = [self._decoded(_of_rank(values, rank), _of_rank(tensors, rank)) for rank in ranked[0].values]
        return self._join(states) if self._join is not None else ranked[0].resplits.state_for(owner, states)

    def _find_enum(self, name: str) -> type[enum.Enum]:
        owner, _ = self._owner_and_part
        return find_enum(name, owner, lambda: self._capture(lambda value: None))

    def _prepare_rest(self, rest: Any, resolve: Resolve) -> Prepared:
        return self._prepare(rest, resolve)


class _StateTensor(Trackable):
    """A tensor inside a state. Never shared with another node, even if the live tensor is another's too."""

    _takes_all_ranks = True

    def __init__(self, owner: object, part: Hashable, tensor: torch.Tensor | None, *, takes_each_rank: bool) -> None:
        self._owner_and_part = owner, part
        self._each_rank = takes_each_rank
        self.tensor: torch.Tensor | ByRank | None = tensor

    def _identity(self) -> Hashable:
        owner, part = self._owner_and_part
        return id(owner), part

    def _owner(self) -> tuple[Any, Hashable]:
        return self._owner_and_part

    def _takes_each_rank(self) -> bool:
        return self._each_rank

    def _attribute_names(self) -> tuple[str, ...]:
        return (VARIABLE_VALUE,)

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        return {VARIABLE_VALUE: self.tensor} if isinstance(self.tensor, torch.Tensor) else {}

    def _prepare_restore(self, values: Mapping[str, Value], resolve: Resolve) -> Prepared:
        value: object = values[VARIABLE_VALUE]
        if not isinstance(value, torch.Tensor | ByRank):
            raise DataLossError("A tensor of a python state is stored as text.")
        self.tensor = value
        return Prepared(lambda: None)


def _of_rank(values: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """What a rank has: there may be tensors that only the states of others have."""
    return {
        name: value.values[rank] if isinstance(value, ByRank) else value
        for name, value in values.items()
        if not isinstance(value, ByRank) or rank in value.values
    }


def state_bytes(values: Mapping[str, Value]) -> bytes:
    """The stored python state among an object's values."""
    state = values[PYTHON_STATE]
    if not isinstance(state, bytes):
        raise DataLossError("A python state is stored as a tensor, not as a string scalar.")
    return state
