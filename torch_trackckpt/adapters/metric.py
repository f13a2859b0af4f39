"""The metrics of torchmetrics: modules that keep their state in plain attributes.

A state is saved if it is persistent, which is torchmetrics' own choice of what a ``state_dict`` holds and false unless
``metric.persistent(True)`` was called. A tensor is a leaf, a list a JSON list that refers to its tensors. Beside its
states, a metric saves how often it was updated, and what some of torchmetrics' wrappers count or remember without
declaring it a state; so that it goes on where it was, which a ``state_dict`` does not achieve.

Each metric takes tensors of its own: those of a collection share theirs only from their next update on.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Any

import torch
from torch import nn

from torch_trackckpt.adapters import json_codec
from torch_trackckpt.adapters.module import ModuleAdapter
from torch_trackckpt.adapters.registry import register_adapter
from torch_trackckpt.adapters.state_node import StateNode, state_bytes
from torch_trackckpt.errors import DataLossError, MismatchError, UnsupportedValueError
from torch_trackckpt.trackable import PYTHON_STATE, VARIABLE_VALUE, Prepared, Resolve, Trackable, Value

__all__ = ["MetricAdapter"]

_TENSORS_BESIDE = ("min_val", "max_val")
"""Of ``MinMaxMetric``."""

_VALUES_BESIDE = ("_update_count", "_num_vals_seen", "orig_dtype")
"""Of every metric, ``Running``, ``FrechetInceptionDistance``."""

_NO_STATE = ("_defaults", "_computed", "_forward_cache", "_cache")
"""What a reset goes back to, and what is computed from the states again."""


class MetricAdapter(ModuleAdapter):
    """A metric: what it is as a module, its persistent states, and its counters."""

    def _trackable_children(self) -> Mapping[str, object]:
        names = [name for name in self._states() if self.adapted._persistent[name]]
        names += self._tensors_beside() if self._is_kept() else []
        return {**super()._trackable_children(), **{name: self._state(name) for name in names}}

    def _lookup_dependency(self, name: str) -> object | None:
        # As torchmetrics, which loads what there is, persistent or not.
        if name in self._states() or name in self._tensors_beside():
            return self._state(name)
        return super()._lookup_dependency(name)

    def _states(self) -> Collection[str]:
        """The names of its states; a wrapper that shows the states of the metric inside has none of its own."""
        metric = self.adapted
        is_shown = any(getattr(child, "_defaults", None) is metric._defaults for child in metric.children())
        return () if is_shown else metric._defaults

    def _tensors_beside(self) -> list[str]:
        return [name for name in _TENSORS_BESIDE if isinstance(vars(self.adapted).get(name), torch.Tensor)]

    def _state(self, name: str) -> Trackable:
        metric = self.adapted
        if not isinstance(metric._defaults.get(name), list):
            return _TensorState(metric, name)
        return StateNode(
            metric,
            name,
            capture=lambda path_of: getattr(metric, name),
            prepare=lambda state, resolve: _prepare_list(metric, name, state),
        )

    def _kept_attributes(self) -> Collection[str]:
        return {*self.adapted._defaults, *_TENSORS_BESIDE, *_VALUES_BESIDE, *_NO_STATE}

    @property
    def is_left_out(self) -> bool:
        """Whether it has states, none of which is saved."""
        states = self._states()
        return bool(states) and not any(self.adapted._persistent[name] for name in states)

    def _is_kept(self) -> bool:
        """Whether it, or a metric inside of it, has a state that is saved."""
        return any(
            any(persistent.values())
            for part in self.adapted.modules()
            if isinstance(persistent := vars(part).get("_persistent"), dict)
        )

    def _attribute_names(self) -> tuple[str, ...]:
        return (PYTHON_STATE,)

    def _asks_for_values(self, is_known: bool) -> bool:
        return self._is_kept()

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        if _has_state_dict_of_its_own(type(self.adapted)):
            super()._serialize_to_tensors()
        if not self._is_kept():
            return {}
        values = {name: vars(self.adapted)[name] for name in _VALUES_BESIDE if name in vars(self.adapted)}
        return {PYTHON_STATE: json_codec.encode(values)[0]}

    def _prepare_restore(self, values: Mapping[str, Value], resolve: Resolve) -> Prepared:
        metric = self.adapted
        stored = json_codec.decode(state_bytes(values), {})
        if type(stored) is not dict or type(stored.get("_update_count")) is not int:
            raise MismatchError(f"the stored value is no state of a {type(metric).__name__}.")
        known = {name: value for name, value in stored.items() if name in _VALUES_BESIDE and hasattr(metric, name)}

        def assign() -> None:
            for name, value in known.items():
                setattr(metric, name, value)
            _forget_results(metric)

        return Prepared(assign, tuple(name for name in stored if name not in known))


class _TensorState(Trackable):
    """A tensor in an attribute of a metric. Never shared with another node, even if the tensor is another metric's."""

    def __init__(self, metric: Any, name: str) -> None:
        self._metric = metric
        self._name = name

    def _identity(self) -> Hashable:
        return id(self._metric), self._name

    def _owner(self) -> tuple[Any, Hashable]:
        return self._metric, self._name

    def _attribute_names(self) -> tuple[str, ...]:
        return (VARIABLE_VALUE,)

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        value = getattr(self._metric, self._name)
        if not isinstance(value, torch.Tensor):
            raise UnsupportedValueError(f"the state is a {type(value).__name__}, and was declared as a tensor.")
        return {VARIABLE_VALUE: value}

    def _prepare_restore(self, values: Mapping[str, Value], resolve: Resolve) -> Prepared:
        metric, name = self._metric, self._name
        stored = values[VARIABLE_VALUE]
        if not isinstance(stored, torch.Tensor):
            raise DataLossError("The tensor is stored as text.")
        live, default = getattr(metric, name), metric._defaults.get(name)
        shapes = [tensor.shape for tensor in (live, default) if isinstance(tensor, torch.Tensor)]
        # A scalar may take any shape from what it is added to.
        if stored.shape not in shapes and torch.Size([]) not in shapes[-1:]:
            raise MismatchError(
                f"received incompatible tensor with shape {list(stored.shape)} when attempting to restore a metric's "
                f"state with shape {list(live.shape)}."
            )
        value = stored.to(live.device if isinstance(live, torch.Tensor) else metric.device)

        def assign() -> None:
            setattr(metric, name, value)
            _forget_results(metric)

        return Prepared(assign)


def _prepare_list(metric: Any, name: str, state: object) -> Prepared:
    """A list state may be one tensor for a while, as torchmetrics gathers it."""
    if not isinstance(state, (list, torch.Tensor)):
        raise MismatchError(f"the stored value is no list state of a {type(metric).__name__}.")
    device = torch.device("cpu") if metric.compute_on_cpu else metric.device

    def placed(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device)
        return type(value)(map(placed, value)) if isinstance(value, (list, tuple)) else value

    value = placed(state)

    def assign() -> None:
        setattr(metric, name, value)
        _forget_results(metric)

    return Prepared(assign)


def _forget_results(metric: Any) -> None:
    """What was computed from other states; `compute` computes it anew, and bit for bit."""
    metric._computed = None
    metric._cache = None
    metric._is_synced = False


def _has_state_dict_of_its_own(kind: type[nn.Module]) -> bool:
    definer = next(base for base in kind.__mro__ if "state_dict" in vars(base))
    return definer.__module__.partition(".")[0] != "torchmetrics"


register_adapter("torchmetrics.metric.Metric", MetricAdapter)
