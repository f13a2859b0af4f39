"""Tensors and modules as nodes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_trackckpt.adapters.late_children import ModuleWaiting
from torch_trackckpt.adapters.registry import Adapter, register_adapter
from torch_trackckpt.adapters.state_node import StateNode
from torch_trackckpt.errors import MismatchError, UnsupportedValueError
from torch_trackckpt.trackable import VARIABLE_VALUE, Prepared, Value, Waiting

__all__ = ["ModuleAdapter", "TensorAdapter", "unwrapped"]


class TensorAdapter(Adapter):
    """A parameter, buffer or tensor: a leaf that is restored in place."""

    def _attribute_names(self) -> tuple[str, ...]:
        return (VARIABLE_VALUE,)

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        if is_lazy(self.adapted):
            raise UnsupportedValueError(
                "the parameter is not initialised yet and has no value to save; run one forward pass first."
            )
        return {VARIABLE_VALUE: self.adapted}

    def _restore_destinations(self) -> Mapping[str, torch.Tensor]:
        return {VARIABLE_VALUE: self.adapted}


class ModuleAdapter(Adapter):
    """A module: parameters, persistent buffers, submodules, each in the order of registration.

    Wrappers (``torch.compile``, DataParallel, DistributedDataParallel) have no node of their own, so wrapping or
    unwrapping between save and restore changes nothing.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(unwrapped(module))

    def _trackable_children(self) -> Mapping[str, object]:
        module: nn.Module = self.adapted
        children: dict[str, object] = {}
        children.update((name, tensor) for name, tensor in module._parameters.items() if tensor is not None)
        children.update(
            (name, tensor)
            for name, tensor in module._buffers.items()
            if tensor is not None and name not in module._non_persistent_buffers_set
        )
        children.update((name, child) for name, child in module._modules.items() if child is not None)
        if _has_extra_state(module):
            children["_extra_state"] = _extra_state(module)
        return children

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        """A module owns nothing but its children; one that does has to be refused."""
        surplus = _state_without_a_node(self.adapted)
        if surplus:
            raise UnsupportedValueError(
                f"{type(self.adapted).__name__}.state_dict() has values that are no parameters or buffers: "
                f"{', '.join(surplus[:5])}. Register an adapter for it (torch_trackckpt.register_adapter)."
            )
        return {}

    def _attribute_names(self) -> tuple[str, ...]:
        return ()

    def _lookup_dependency(self, name: str) -> object | None:
        module: nn.Module = self.adapted
        if name == "_extra_state":
            return _extra_state(module) if _has_extra_state(module) else None
        if name in module._non_persistent_buffers_set:
            return None
        for registered in (module._parameters, module._buffers, module._modules):
            # Not `get`, which the look-alikes of dicts in scripted modules lack.
            if name in registered:
                child: object = registered[name]
                return child
        return None

    def _postponed(self, stored_names: Collection[str]) -> Collection[str]:
        # A lazy module makes all of its parameters in its first forward pass, or none.
        lazy = {name for name, child in self._trackable_children().items() if _is_lazy_tensor(child)}
        return () if lazy <= set(stored_names) else lazy

    def _module_version(self) -> int | None:
        # Whatever else somebody may call by this name means nothing to torch either.
        version = getattr(self.adapted, "_version", None)
        is_number = type(version) is int and -(1 << 63) <= version < 1 << 63
        return version if is_number and version != nn.Module._version else None

    def _waiting(self) -> Waiting | None:
        if isinstance(self.adapted, torch.jit.ScriptModule):
            return None
        waiting = ModuleWaiting.find(self.adapted)
        return ModuleWaiting(self.adapted) if waiting is None else waiting


def _is_lazy_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor) and is_lazy(value)


def _state_without_a_node(module: nn.Module) -> list[str]:
    """Keys of a module's own ``state_dict`` for values that are no parameters or buffers of it.

    Only modules that interfere with ``state_dict`` can have any: quantised ones and some metrics do.
    """
    is_plain = (
        type(module).state_dict is nn.Module.state_dict
        and type(module)._save_to_state_dict is nn.Module._save_to_state_dict
        and not module._state_dict_hooks
    )
    if is_plain or isinstance(module, torch.jit.ScriptModule):
        return []
    known = {
        id(tensor)
        for part in module.modules()
        for name, tensor in (*part._parameters.items(), *part._buffers.items())
        if name not in part._non_persistent_buffers_set
    }
    return [
        key
        for key, value in module.state_dict(keep_vars=True).items()
        if id(value) not in known and key.rpartition(".")[2] != "_extra_state"
    ]


def _has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state


def _extra_state(module: nn.Module) -> StateNode:
    return StateNode(
        module,
        "_extra_state",
        capture=lambda path_of: module.get_extra_state(),
        prepare=lambda state, resolve: _prepare_extra_state(module, state),
    )


def _prepare_extra_state(module: nn.Module, state: object) -> Prepared:
    if type(module).set_extra_state is nn.Module.set_extra_state:
        raise MismatchError(f"{type(module).__name__} has get_extra_state() but no set_extra_state(); define it.")
    return Prepared(lambda: module.set_extra_state(state))


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of wrappers that have no node of their own."""
    while True:
        is_parallel = isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        if is_parallel and not (module._parameters or module._buffers):
            module = cast(nn.Module, module.module)
        elif type(module).__module__ == "torch._dynamo.eval_frame" and "_orig_mod" in module._modules:
            # The class is not imported for this: torch._dynamo takes seconds to load.
            module = module._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return module


register_adapter(torch.Tensor, TensorAdapter)
register_adapter(nn.Module, ModuleAdapter)
