"""torch.optim optimizers as nodes.

    <variable>/.OPTIMIZER_SLOT/<optimizer>/<slot>   one tensor of the state of one parameter: a slot variable
    <optimizer>/param_groups                        {"kind": class name, "groups": [{"params": [object path or null,
                                                    ...], "lr": ..., every other hyper-parameter}, ...]}
    <optimizer>/extra_state                         {object path of a parameter: {name: value}}: state that is not
                                                    one tensor per parameter, such as LBFGS's histories
    <optimizer>/global_state                        {key: value}: state under keys that are no parameters, where an
                                                    optimizer has any

Everything is matched to parameters through the object graph, never by position.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.optim import LBFGS, Optimizer

from torch_trackckpt.adapters.kinds import accepted_kinds
from torch_trackckpt.adapters.late_children import OptimizerWaiting
from torch_trackckpt.adapters.param_groups import (
    GroupMatch,
    are_same,
    assign_groups,
    check_stored,
    check_tensors,
    hyper_parameters,
    is_equal,
    some,
)
from torch_trackckpt.adapters.registry import Adapter, register_adapter
from torch_trackckpt.adapters.state_node import PathOf, StateNode
from torch_trackckpt.adapters.step_hook import StepHook, running_steps
from torch_trackckpt.distributed.dtensor import is_dtensor
from torch_trackckpt.errors import DataLossError, MismatchError, UnsupportedValueError
from torch_trackckpt.trackable import Prepared, Resolve, SlotOwner, Waiting

__all__ = ["OptimizerAdapter"]


_logger = logging.getLogger("torch_trackckpt")


@dataclasses.dataclass(frozen=True)
class _RestOfGroups:
    """Stored groups, some of which have been placed; the others wait for their parameters."""

    stored: Any
    placed: frozenset[int]


class OptimizerAdapter(Adapter, SlotOwner):
    """An optimizer: hyper-parameters and irregular state as children, regular state as slot variables."""

    _children_with_slots = ("extra_state", "global_state")

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
        if self._global_values():
            children["global_state"] = self._global_state()
        return children

    def _lookup_dependency(self, name: str) -> object | None:
        if name == "param_groups":
            self._is_stored_by_torch = True
            return self._param_groups()
        if name == "extra_state":
            return self._extra_state()
        return self._global_state() if name == "global_state" else None

    def _param_groups(self) -> StateNode:
        return StateNode(self.adapted, "param_groups", self._capture_groups, self._prepare_groups, _join_groups)

    def _extra_state(self) -> StateNode:
        return StateNode(self.adapted, "extra_state", self._capture_extra, self._prepare_extra, _join_extra)

    def _global_state(self) -> StateNode:
        return StateNode(self.adapted, "global_state", lambda path_of: self._global_values(), self._prepare_global)

    # Slot variables.

    def _slot_variables(self) -> Mapping[str, list[tuple[torch.Tensor, torch.Tensor]]]:
        slots: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for parameter, state in self._states():
            for name, value in state.items():
                if self._is_slot(name, value):
                    slots.setdefault(name, []).append((parameter, value))
        return dict(sorted(slots.items()))

    def _waiting(self) -> Waiting | None:
        if not _has_hooks(self.adapted):
            return None
        waiting = OptimizerWaiting.find(self.adapted)
        return OptimizerWaiting(self.adapted) if waiting is None else waiting

    def _variables_with_state(self) -> list[torch.Tensor]:
        with_state = {id(parameter) for parameter, state in self._states() if state}
        members = itertools.chain.from_iterable(group["params"] for group in self.adapted.param_groups)
        return [parameter for parameter in members if id(parameter) in with_state]

    def _readable_variable(self, variable: torch.Tensor) -> str:
        for group_index, group in enumerate(self.adapted.param_groups):
            for index, parameter in enumerate(group["params"]):
                if parameter is variable:
                    name = f" {group['param_names'][index]!r}" if "param_names" in group else ""
                    return f"param_groups[{group_index}]['params'][{index}]{name} {tuple(variable.shape)}"
        return super()._readable_variable(variable)

    def _keeps_slots_of(self, variable: torch.Tensor) -> bool:
        return self._group_of(variable) is not None

    def _slot_destinations(
        self, variable: torch.Tensor, stored: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    ) -> Mapping[str, torch.Tensor] | None:
        live = {
            name: value for name, value in self.adapted.state.get(variable, {}).items() if self._is_slot(name, value)
        }
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

    def _stepped_tensors(self) -> list[torch.Tensor]:
        members = self._members()
        # A step that is running, and has called this in its closure, tells nobody before it changes them.
        changing = {id(member) for optimizer in running_steps() for member in _members_of(optimizer)}
        if not _has_hooks(self.adapted) or any(id(member) in changing for member in members):
            return []
        slots = itertools.chain.from_iterable(self._slot_variables().values())
        return [*members, *(slot for _, slot in slots)]

    def _before_next_step(self, callback: Callable[[], None]) -> Callable[[], None]:
        return StepHook.shared().add(self._members(), callback)

    def _members(self) -> list[torch.Tensor]:
        return _members_of(self.adapted)

    def _group_of(self, variable: torch.Tensor) -> dict[str, Any] | None:
        return self._groups_by_member.get(id(variable))

    @cached_property
    def _groups_by_member(self) -> dict[int, dict[str, Any]]:
        return {id(member): group for group in self.adapted.param_groups for member in group["params"]}

    def _is_slot(self, name: object, value: object) -> bool:
        return isinstance(name, str) and isinstance(value, torch.Tensor) and not self._is_flat()

    def _is_flat(self) -> bool:
        """Whether the state runs over all parameters in their order, instead of belonging to each one."""
        return isinstance(self.adapted, LBFGS)

    def _states(self) -> list[tuple[torch.Tensor, dict[str, Any]]]:
        states = [(key, state) for key, state in self.adapted.state.items() if isinstance(key, torch.Tensor)]
        for _, state in states:
            if not isinstance(state, dict):
                raise UnsupportedValueError(
                    f"{type(self.adapted).__name__}.state has a {type(state).__name__} for a parameter, where a dict "
                    "is usual. Register an adapter for this optimizer (torch_trackckpt.register_adapter)."
                )
        return states

    def _global_values(self) -> dict[Any, Any]:
        return {key: value for key, value in self.adapted.state.items() if not isinstance(key, torch.Tensor)}

    # Extra state.

    def _extra_state_by_parameter(self) -> list[tuple[torch.Tensor, dict[str, Any]]]:
        extra = [
            (parameter, {name: value for name, value in state.items() if not self._is_slot(name, value)})
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

    def _prepare_global(self, stored: Any, resolve: Resolve) -> Prepared:
        if not isinstance(stored, dict) or any(isinstance(key, torch.Tensor) for key in stored):
            raise DataLossError("The stored global_state of an optimizer is not a dict.")
        state: dict[Any, Any] = self.adapted.state
        return Prepared(lambda: state.update({key: _on_device_of(state.get(key), stored[key]) for key in stored}))

    # Hyper-parameters.

    def _capture_groups(self, path_of: PathOf) -> object:
        self._check_nothing_is_left_out()
        return {
            "kind": type(self.adapted).__name__,
            "groups": [
                {
                    "params": [path_of(parameter) for parameter in group["params"]],
                    **hyper_parameters(group),
                }
                for group in self.adapted.param_groups
            ],
        }

    def _check_nothing_is_left_out(self) -> None:
        """A subclass may keep more than PyTorch's optimizers do; what its own state_dict has on top would be lost."""
        kind = type(self.adapted)
        if not _has_hooks(self.adapted):
            raise UnsupportedValueError(
                f"{kind.__name__} derives from torch.optim.Optimizer but never called Optimizer.__init__, as wrappers "
                "of others do; what it keeps beside state and param_groups is not known. Register an adapter for "
                "it (torch_trackckpt.register_adapter)."
            )
        if kind.state_dict is Optimizer.state_dict:
            return
        surplus = sorted(self.adapted.state_dict().keys() - {"state", "param_groups"})
        if surplus:
            raise UnsupportedValueError(
                f"{kind.__name__}.state_dict() has {surplus} beside state and param_groups; register an adapter for "
                "this optimizer (torch_trackckpt.register_adapter)."
            )

    def _prepare_groups(self, stored: Any, resolve: Resolve) -> Prepared:
        earlier = stored if isinstance(stored, _RestOfGroups) else _RestOfGroups(stored, frozenset())
        stored = earlier.stored
        if not isinstance(stored, dict) or not isinstance(stored.get("kind"), str):
            raise DataLossError("The stored param_groups of an optimizer do not have the expected form.")
        check_stored(stored.get("groups"))
        self._check_kind(stored)
        groups: list[dict[str, Any]] = stored["groups"]
        members = [[None if path is None else resolve(path) for path in group["params"]] for group in groups]
        live = self.adapted.param_groups
        match = GroupMatch.find(groups, members, live, earlier.placed)
        if self._is_flat():
            self._check_flat_members(groups, members, match)
        for target, (source, *_) in match.sources.items():
            check_tensors(live[target], groups[source])

        left = [group for index, group in enumerate(groups) if index not in match.placed]
        unused = tuple(f"a group of {len(group['params'])} parameters, none of which is known here" for group in left)
        rest = _RestOfGroups(stored, match.placed) if left else None
        return Prepared(lambda: assign_groups(live, groups, members, match), unused, rest)

    def _check_kind(self, stored: dict[str, Any]) -> None:
        if stored["kind"] not in accepted_kinds(type(self.adapted), Optimizer):
            raise MismatchError(
                f"the checkpoint holds the state of a {stored['kind']}, but the live optimizer is a "
                f"{type(self.adapted).__name__}, which keeps its state in another way; restore into the kind of "
                "optimizer that was saved, or leave the optimizer out."
            )

    def _check_flat_members(self, groups: list[dict[str, Any]], members: list[list[object]], match: GroupMatch) -> None:
        for live, stored in match.sources.items():
            if len(stored) != 1 or not are_same(members[stored[0]], self.adapted.param_groups[live]["params"]):
                raise MismatchError(
                    f"the state of {type(self.adapted).__name__} runs over all of its parameters, but the "
                    f"checkpoint has others: {some(groups[stored[0]]['params'])}."
                )


def _join_groups(stored: Sequence[Any]) -> Any:
    """The groups of optimizers of several processes, each of which may have some of the parameters."""
    groups: list[Any] = []
    for state in stored:
        if not isinstance(state, dict) or not isinstance(state.get("groups"), list):
            raise DataLossError("The stored param_groups of an optimizer do not have the expected form.")
        if state.get("kind") != stored[0].get("kind"):
            raise MismatchError(
                f"the processes that saved it had optimizers of several kinds: {stored[0].get('kind')} and "
                f"{state.get('kind')}; give them different names."
            )
        for group in state["groups"]:
            same = next((other for other in groups if other["params"] == group["params"]), None)
            if same is None:
                groups.append(group)
            elif not is_equal(hyper_parameters(same), hyper_parameters(group)):
                _logger.warning(
                    "Processes have saved other hyper-parameters for the same parameters (%s); those of the first are "
                    "taken.",
                    some(group["params"]),
                )
    return {**stored[0], "groups": groups}


def _join_extra(stored: Sequence[Any]) -> Any:
    """What optimizers of several processes keep for their parameters; of what several have, the first process's."""
    joined: dict[Any, Any] = {}
    for state in stored:
        if not isinstance(state, dict):
            raise DataLossError("The stored extra_state of an optimizer is not a dict of dicts.")
        joined = {**state, **joined}
    return joined


def _new_slot(variable: torch.Tensor, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Memory for a slot where torch.optim itself would have made it."""
    if name == "step":
        return torch.empty(shape, dtype=dtype, device="cpu")
    if not is_lazy(variable) and shape == tuple(variable.shape):
        return torch.empty_like(variable, dtype=dtype, requires_grad=False)
    if is_dtensor(variable):
        # Where one has been made of a gradient in several processes, it is in all of these.
        return variable.detach().new_empty(shape, dtype=dtype)
    return torch.empty(shape, dtype=dtype, device=variable.device)


def _on_device(value: Any, device: torch.device) -> Any:
    """A decoded value with its tensors on a device; dicts and lists are changed in place, and so keep their kind."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if type(value) is tuple:
        return tuple(_on_device(item, device) for item in value)
    if isinstance(value, (dict, list, deque)):
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            value[key] = _on_device(item, device)
    return value


def _on_device_of(live: Any, value: Any) -> Any:
    """A stored value, its tensors where those are that it replaces."""
    if isinstance(live, torch.Tensor):
        return _on_device(value, live.device)
    if isinstance(live, dict) and isinstance(value, dict):
        for key, item in value.items():
            value[key] = _on_device_of(live.get(key), item)
    return value


def _members_of(optimizer: Optimizer) -> list[torch.Tensor]:
    return [member for group in optimizer.param_groups for member in group["params"]]


def _has_hooks(optimizer: Optimizer) -> bool:
    return hasattr(optimizer, "_optimizer_load_state_dict_pre_hooks")


register_adapter(Optimizer, OptimizerAdapter)
