"""How modules and optimizers tell of what comes to them after a restore: by torch's own hooks.

A module that something waits for carries its `Waiting` as a ``load_state_dict`` pre-hook, an optimizer as a step
pre-hook and as hooks around ``load_state_dict``. Where nothing waits any more, the hooks are removed. That happens
while torch goes through its hooks, and there only the last one can be removed; a hook that others follow stays, does
nothing, and is used again by the next wait.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from torch_trackckpt.trackable import DeferredChild, Waiting
from torch_trackckpt.update_uid import new_uid, set_update_uid

__all__ = ["PARTS_OF_OPTIMIZER", "SLOTS", "ModuleWaiting", "OptimizerWaiting", "RegistrationHooks", "is_unmade"]

SLOTS = "slots"
"""Names, with the variable's place in memory, the part of an optimizer that holds one variable's slots."""


PARTS_OF_OPTIMIZER = ("param_groups", "extra_state", "global_state")
"""The other parts of an optimizer that are restored."""


def is_unmade(value: object) -> bool:
    """Whether a tensor has no memory yet: a lazy module's before its first forward pass, or one on the meta device."""
    return isinstance(value, torch.Tensor) and (is_lazy(value) or value.is_meta)


class RegistrationHooks:
    """Has modules tell of parameters, buffers and submodules that are registered, for as long as this object lives."""

    @staticmethod
    def shared() -> RegistrationHooks:
        """Those that are there already, or new ones."""
        present = torch_module._global_module_registration_hooks.values()
        hook = next((hook for hook in present if isinstance(hook, _Register)), None) or _Register()
        hooks = None if hook.owner is None else hook.owner()
        return hooks or RegistrationHooks(hook)

    def __init__(self, hook: _Register) -> None:
        self._handles = hook.handles
        hook.owner = weakref.ref(self)

    def __del__(self) -> None:
        _remove(self._handles)


class _Register:
    """torch's hook; it does nothing where nothing waits."""

    def __init__(self) -> None:
        self.owner: weakref.ref[RegistrationHooks] | None = None
        self.handles = [
            torch_module.register_module_parameter_registration_hook(self),
            torch_module.register_module_buffer_registration_hook(self),
            torch_module.register_module_module_registration_hook(self),
        ]

    def __call__(self, module: nn.Module, name: str, child: object) -> None:
        waiting = ModuleWaiting.find(module)
        if waiting is not None:
            waiting.attach(name, child)


def _remove(handles: Sequence[RemovableHandle]) -> None:
    """Removes hooks, if each of them is the last of its kind; see above."""
    hooks_of = [handle.hooks_dict_ref() for handle in handles]
    if all(hooks and next(reversed(hooks)) == handle.id for hooks, handle in zip(hooks_of, handles, strict=True)):
        for handle in handles:
            handle.remove()


class ModuleWaiting(Waiting):
    """What waits for children of a module, those among them that are there but have no memory yet."""

    def __init__(self, module: nn.Module | None = None) -> None:
        super().__init__()
        self._module = None if module is None else weakref.ref(module)
        self._load_hook: RemovableHandle | None = None
        self._forward_hook: RemovableHandle | None = None
        if module is not None:
            self._load_hook = module.register_load_state_dict_pre_hook(self)  # type: ignore[no-untyped-call]

    @staticmethod
    def find(module: nn.Module) -> ModuleWaiting | None:
        """What waits for children of a module, if anything does."""
        # Scripted modules have no such hooks. A copied module has a copy of them, which is of no use.
        for wrapped in module.__dict__.get("_load_state_dict_pre_hooks", {}).values():
            hook = getattr(wrapped, "hook", None)
            if isinstance(hook, ModuleWaiting) and hook._module is not None and hook._module() is module:
                return hook
        return None

    def add(self, name: str, child: DeferredChild) -> None:
        super().add(name, child)
        module = None if self._module is None else self._module()
        if module is not None and self._forward_hook is None and is_unmade(_registered(module, name)):
            # A lazy module has a hook of its own, which comes before this one.
            self._forward_hook = module.register_forward_pre_hook(self._before_forward)

    def _before_forward(self, module: nn.Module, arguments: object) -> None:
        """What got its memory by now gets its values before they are used."""
        for name in self.names:
            child = _registered(module, name)
            if child is not None and not is_unmade(child):
                self.attach(name, child)

    def _rest_if_empty(self) -> None:
        if self:
            return
        if self._forward_hook is not None:
            # torch goes through a copy of these.
            self._forward_hook.remove()
            self._forward_hook = None
        if self._load_hook is not None:
            _remove([self._load_hook])

    def __call__(
        self, module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Mapping[str, Any], *_: object
    ) -> None:
        """Offers what waits to a ``load_state_dict``; what the caller passes wins, and its place waits no longer."""
        is_assigning = local_metadata.get("assign_to_params_buffers", False)
        tensors = {**module._parameters, **module._buffers}
        lazy = {name for name, tensor in tensors.items() if tensor is not None and is_lazy(tensor)}
        for name in self.names:
            child = tensors.get(name)
            # Nothing is loaded into a tensor without memory, unless it is lazy or replaced.
            if child is None or (child.is_meta and not is_assigning):
                continue
            if prefix + name in state_dict:
                self.supersede(name)
            elif name in lazy and not lazy <= set(self.names):
                # The first forward pass makes all of a module's lazy tensors, or none.
                continue
            elif is_assigning:
                # The assignment registers the new tensor, which is bound then.
                state_dict[prefix + name] = self.read(name)
            else:
                self.attach(name, child)
                state_dict[prefix + name] = child.detach()

    def __deepcopy__(self, memo: object) -> ModuleWaiting:
        return ModuleWaiting()

    __copy__ = Waiting.__copy__

    def __reduce__(self) -> tuple[type[Waiting], tuple[()]]:
        return ModuleWaiting, ()


def _registered(module: nn.Module, name: str) -> torch.Tensor | None:
    """The parameter or buffer of a name."""
    return module._parameters.get(name, module._buffers.get(name))


class OptimizerWaiting(Waiting):
    """What waits for parameters of an optimizer. They are noticed by the next step, or when the optimizer is saved."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__()
        self._parameters = _parameters(optimizer)
        self._handles = [
            # A compiled step goes through its hooks as well, and would compile this one.
            optimizer.register_step_pre_hook(torch.compiler.disable(self._before_step)),  # type: ignore[no-untyped-call]
            optimizer.register_load_state_dict_pre_hook(self),
            optimizer.register_load_state_dict_post_hook(self._after_load),
        ]

    @staticmethod
    def find(optimizer: Optimizer) -> OptimizerWaiting | None:
        """What waits for parameters of an optimizer, if anything does."""
        # Some foreign optimizers around another one never call Optimizer.__init__, and have no hooks.
        hooks = getattr(optimizer, "_optimizer_load_state_dict_pre_hooks", {}).values()
        return next((hook for hook in hooks if isinstance(hook, OptimizerWaiting)), None)

    def look(self, optimizer: Optimizer) -> None:
        """Gives parameters that were added meanwhile what waits for them."""
        if (now := _parameters(optimizer)) != self._parameters:
            self.attached()
            self._parameters = now

    def _before_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        self.look(optimizer)

    def __call__(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Offers a ``load_state_dict`` what waits for parameters that were added meanwhile; the caller's state wins."""
        known = {id(variable) for variable in optimizer.state}
        self.look(optimizer)
        stored_as = [key for group in state_dict["param_groups"] for key in group["params"]]
        variables = [variable for group in optimizer.param_groups for variable in group["params"]]
        offered = {
            key: optimizer.state[variable]
            for key, variable in zip(stored_as, variables, strict=False)
            if variable in optimizer.state and id(variable) not in known
        }
        return {**state_dict, "state": {**offered, **state_dict["state"]}}

    def _after_load(self, optimizer: Optimizer) -> None:
        """What the caller has loaded is newer than what waits."""
        uid = new_uid()
        for part in (*PARTS_OF_OPTIMIZER, *((SLOTS, id(variable)) for variable in optimizer.state)):
            set_update_uid(optimizer, uid, part)

    def _rest_if_empty(self) -> None:
        if not self:
            _remove(self._handles)


def _parameters(optimizer: Optimizer) -> list[int]:
    return [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
