"""torch.optim optimizers as nodes.

    <variable>/.OPTIMIZER_SLOT/<optimizer>/<slot>   one tensor of the state of one parameter: a slot variable
    <optimizer>/param_groups                        {"kind": class name, "groups": [{"params": [object path or null,
                                                    ...], "lr": ..., every other hyper-parameter}, ...]}
    <optimizer>/extra_state                         {object path of a parameter: {name: value}}: state that is not
                                                    one tensor per parameter, such as LBFGS's histories

Everything is matched to parameters through the object graph, never by position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.optim import LBFGS, Optimizer

from torch_trackckpt.adapters.kinds import accepted_kinds
from torch_trackckpt.adapters.late_children import OptimizerWaiting
from torch_trackckpt.adapters.registry import Adapter, register_adapter
from torch_trackckpt.adapters.state_node import PathOf, StateNode
from torch_trackckpt.errors import DataLossError, MismatchError, UnsupportedValueError
from torch_trackckpt.trackable import Prepared, Resolve, SlotOwner, Waiting

__all__ = ["OptimizerAdapter"]

_NOT_HYPER_PARAMETERS = frozenset({"params", "param_names"})


@dataclasses.dataclass(frozen=True)
class _RestOfGroups:
    """Stored groups, some of which have been placed; the others wait for their parameters."""

    stored: Any
    placed: frozenset[int]


class OptimizerAdapter(Adapter, SlotOwner):
    """An optimizer: hyper-parameters and irregular state as children, regular state as slot variables."""

    _children_with_slots = ("extra_state",)

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        self._is_stored_by_torch = False

    # Children.

    def _trackable_children(self) -> Mapping[str, object]:
        # Parameters may have been added since a restore; what waited for them has to be seen, and saved.
        if (waiting := OptimizerWaiting.find(self.adapted)) is not None:
            waiting.look(self.adapted)
        children = {"param_groups": self._param_groups()}
        if self._extra_state_by_parameter():
            children["extra_state"] = self._extra_state()
        return children

    def _lookup_dependency(self, name: str) -> object | None:
        if name == "param_groups":
            self._is_stored_by_torch = True
            return self._param_groups()
        return self._extra_state() if name == "extra_state" else None

    def _param_groups(self) -> StateNode:
        return StateNode(self.adapted, "param_groups", self._capture_groups, self._prepare_groups)

    def _extra_state(self) -> StateNode:
        return StateNode(self.adapted, "extra_state", self._capture_extra, self._prepare_extra)

    # Slot variables.

    def _slot_variables(self) -> Mapping[str, list[tuple[torch.Tensor, torch.Tensor]]]:
        slots: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for parameter, state in self._states():
            for name, value in state.items():
                if self._is_slot(value):
                    slots.setdefault(name, []).append((parameter, value))
        return dict(sorted(slots.items()))

    def _waiting(self) -> Waiting:
        waiting = OptimizerWaiting.find(self.adapted)
        return OptimizerWaiting(self.adapted) if waiting is None else waiting

    def _variables_with_state(self) -> list[tuple[torch.Tensor, str]]:
        with_state = {id(parameter) for parameter, state in self._states() if state}
        return [
            (parameter, _called(group_index, index, group))
            for group_index, group in enumerate(self.adapted.param_groups)
            for index, parameter in enumerate(group["params"])
            if id(parameter) in with_state
        ]

    def _keeps_slots_of(self, variable: torch.Tensor) -> bool:
        return self._group_of(variable) is not None

    def _slot_destinations(
        self, variable: torch.Tensor, stored: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    ) -> Mapping[str, torch.Tensor] | None:
        live = {name: value for name, value in self.adapted.state.get(variable, {}).items() if self._is_slot(value)}
        # Another program's slots may not be all that this optimizer needs; an incomplete state would break its
        # next step. They are taken only in place of slots that are here already.
        if not self._is_stored_by_torch and not stored.keys() <= live.keys():
            return None
        # A slot may have been made while the variable was on the meta device.
        return {
            name: live[name] if name in live and not live[name].is_meta else _new_slot(variable, name, dtype, shape)
            for name, (dtype, shape) in stored.items()
        }

    def _assign_slots(self, variable: torch.Tensor, slots: Mapping[str, torch.Tensor]) -> None:
        group = self._group_of(variable) or {}
        if "step" in slots and (group.get("capturable") or group.get("fused")):
            slots = {**slots, "step": slots["step"].to(variable.device)}
        self.adapted.state[variable].update(slots)

    def _group_of(self, variable: torch.Tensor) -> dict[str, Any] | None:
        return self._groups_by_member.get(id(variable))

    @cached_property
    def _groups_by_member(self) -> dict[int, dict[str, Any]]:
        return {id(member): group for group in self.adapted.param_groups for member in group["params"]}

    def _is_slot(self, value: object) -> bool:
        return isinstance(value, torch.Tensor) and not self._is_flat()

    def _is_flat(self) -> bool:
        """Whether the state runs over all parameters in their order, instead of belonging to each one."""
        return isinstance(self.adapted, LBFGS)

    def _states(self) -> list[tuple[torch.Tensor, dict[str, Any]]]:
        for key in self.adapted.state:
            if not isinstance(key, torch.Tensor):
                raise UnsupportedValueError(
                    f"{type(self.adapted).__name__}.state has the key {key!r}; only state of parameters can be saved. "
                    "Register an adapter for this optimizer (torch_trackckpt.register_adapter)."
                )
        return list(self.adapted.state.items())

    # Extra state.

    def _extra_state_by_parameter(self) -> list[tuple[torch.Tensor, dict[str, Any]]]:
        extra = [
            (parameter, {name: value for name, value in state.items() if not self._is_slot(value)})
            for parameter, state in self._states()
        ]
        return [(parameter, values) for parameter, values in extra if values]

    def _capture_extra(self, path_of: PathOf) -> object:
        by_path = {path_of(parameter): values for parameter, values in self._extra_state_by_parameter()}
        return {path: values for path, values in by_path.items() if path is not None}

    def _prepare_extra(self, stored: Any, resolve: Resolve) -> Prepared:
        if not isinstance(stored, dict) or not all(isinstance(values, dict) for values in stored.values()):
            raise DataLossError("The stored extra_state of an optimizer is not a dict of dicts.")
        found = [(path, resolve(path), values) for path, values in stored.items()]
        mine = [
            (parameter, values)
            for _, parameter, values in found
            if isinstance(parameter, torch.Tensor) and self._group_of(parameter) is not None
        ]
        known = {id(parameter) for parameter, _ in mine}
        rest = {path: values for path, parameter, values in found if id(parameter) not in known}

        def assign() -> None:
            for parameter, values in mine:
                self.adapted.state[parameter].update(_on_device(values, parameter.device))

        return Prepared(assign, tuple(rest), rest or None)

    # Hyper-parameters.

    def _capture_groups(self, path_of: PathOf) -> object:
        self._check_nothing_is_left_out()
        return {
            "kind": type(self.adapted).__name__,
            "groups": [
                {
                    "params": [path_of(parameter) for parameter in group["params"]],
                    **{name: value for name, value in group.items() if name not in _NOT_HYPER_PARAMETERS},
                }
                for group in self.adapted.param_groups
            ],
        }

    def _check_nothing_is_left_out(self) -> None:
        """A subclass may keep more than PyTorch's optimizers do; what its own state_dict has on top would be lost."""
        if type(self.adapted).state_dict is Optimizer.state_dict:
            return
        surplus = sorted(self.adapted.state_dict().keys() - {"state", "param_groups"})
        if surplus:
            raise UnsupportedValueError(
                f"{type(self.adapted).__name__}.state_dict() has {surplus} beside state and param_groups; register an "
                "adapter for this optimizer (torch_trackckpt.register_adapter)."
            )

    def _prepare_groups(self, stored: Any, resolve: Resolve) -> Prepared:
        earlier = stored if isinstance(stored, _RestOfGroups) else _RestOfGroups(stored, frozenset())
        stored = earlier.stored
        _check_stored_groups(stored)
        self._check_kind(stored)
        groups: list[dict[str, Any]] = stored["groups"]
        members = [[None if path is None else resolve(path) for path in group["params"]] for group in groups]
        targets = self._match_groups(groups, members, earlier.placed)
        for index, target in targets.items():
            _check_tensors(self.adapted.param_groups[target], groups[index])

        def assign() -> None:
            for index, target in targets.items():
                _assign_group(self.adapted.param_groups[target], groups[index], members[index])

        placed = earlier.placed | targets.keys()
        left = [group for index, group in enumerate(groups) if index not in placed]
        unused = tuple(f"a group of {len(group['params'])} parameters, none of which is known here" for group in left)
        return Prepared(assign, unused, _RestOfGroups(stored, placed) if left else None)

    def _check_kind(self, stored: dict[str, Any]) -> None:
        if stored["kind"] not in accepted_kinds(type(self.adapted), Optimizer):
            raise MismatchError(
                f"the checkpoint holds the state of a {stored['kind']}, but the live optimizer is a "
                f"{type(self.adapted).__name__}, which keeps its state in another way; restore into the kind of "
                "optimizer that was saved, or leave the optimizer out."
            )

    def _match_groups(
        self, groups: list[dict[str, Any]], members: list[list[object]], placed: frozenset[int]
    ) -> dict[int, int]:
        """Stored group -> live group, by the parameters they have in common; without those that were placed before."""
        live_groups = self.adapted.param_groups
        group_of = {id(parameter): index for index, group in enumerate(live_groups) for parameter in group["params"]}
        found = [sorted({group_of[id(member)] for member in group if id(member) in group_of}) for group in members]
        targets: dict[int, int] = {}
        sources = {live: stored for stored in placed for live in found[stored]}
        for stored, live_indices in enumerate(found):
            for live in () if stored in placed else live_indices:
                if targets.setdefault(stored, live) != live or sources.setdefault(live, stored) != stored:
                    raise MismatchError(
                        f"the parameter groups differ: stored group {stored} ({_some(groups[stored]['params'])}) has "
                        f"parameters in live group {live}, which "
                        + (
                            f"also has parameters of stored group {sources[live]}"
                            if sources.get(live, stored) != stored
                            else f"differs from live group {targets[stored]} that holds others of them"
                        )
                        + "; make the groups as they were when the checkpoint was saved."
                    )
        if self._is_flat():
            for stored, live in targets.items():
                if not _are_same(members[stored], live_groups[live]["params"]):
                    raise MismatchError(
                        f"the state of {type(self.adapted).__name__} runs over all of its parameters, but the "
                        f"checkpoint has others: {_some(groups[stored]['params'])}."
                    )
        return targets


def _check_stored_groups(stored: Any) -> None:
    groups = stored.get("groups") if isinstance(stored, dict) and isinstance(stored.get("kind"), str) else None
    if not isinstance(groups, list) or not all(_is_group(group) for group in groups):
        raise DataLossError("The stored param_groups of an optimizer do not have the expected form.")


def _is_group(group: Any) -> bool:
    return (
        isinstance(group, dict)
        and all(isinstance(name, str) for name in group)
        and isinstance(group.get("params"), list)
        and all(path is None or isinstance(path, str) for path in group["params"])
    )


def _check_tensors(group: dict[str, Any], stored: dict[str, Any]) -> None:
    """Hyper-parameters that live in tensors take numbers and tensors of their shape."""
    for name, value in stored.items():
        current = group.get(name)
        if not isinstance(current, torch.Tensor):
            continue
        is_number = type(value) in (int, float, bool)
        if not is_number and not (isinstance(value, torch.Tensor) and value.shape == current.shape):
            raise MismatchError(
                f"the hyper-parameter {name!r} is a tensor of shape {list(current.shape)} here, but the checkpoint "
                f"has {value!r} for it."
            )


def _assign_group(group: dict[str, Any], stored: dict[str, Any], members: list[object]) -> None:
    for name, value in stored.items():
        if name in _NOT_HYPER_PARAMETERS:
            continue
        current = group.get(name)
        if isinstance(current, torch.Tensor):
            # A learning rate in a tensor may be part of a captured graph: it keeps its identity.
            with torch.no_grad():
                current.copy_(torch.as_tensor(value, dtype=current.dtype, device=current.device))
        else:
            group[name] = value
    if _are_same(members, group["params"]):
        _reorder(group, members)


def _reorder(group: dict[str, Any], members: list[Any]) -> None:
    """Puts a group's parameters into the stored order, which flat states depend on."""
    order = {id(parameter): index for index, parameter in enumerate(group["params"])}
    if "param_names" in group:
        group["param_names"][:] = [group["param_names"][order[id(member)]] for member in members]
    group["params"][:] = members


def _are_same(members: list[object], parameters: list[torch.Tensor]) -> bool:
    return len(members) == len(parameters) and {id(m) for m in members} == {id(p) for p in parameters}


def _new_slot(variable: torch.Tensor, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Memory for a slot where torch.optim itself would have made it."""
    if name == "step":
        return torch.empty(shape, dtype=dtype, device="cpu")
    if not is_lazy(variable) and shape == tuple(variable.shape):
        return torch.empty_like(variable, dtype=dtype, requires_grad=False)
    return torch.empty(shape, dtype=dtype, device=variable.device)


def _on_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _on_device(item, device) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_on_device(item, device) for item in value)
    return value


def _called(group_index: int, index: int, group: dict[str, Any]) -> str:
    name = f" {group['param_names'][index]!r}" if "param_names" in group else ""
    return f"param_groups[{group_index}]['params'][{index}]{name} {tuple(group['params'][index].shape)}"


def _some(paths: list[str | None]) -> str:
    shown = ", ".join(str(path) for path in paths[:3])
    return shown + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


register_adapter(Optimizer, OptimizerAdapter)
