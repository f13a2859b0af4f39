"""Modules as nodes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_trackckpt.adapters.late_children import ModuleWaiting, is_unmade
from torch_trackckpt.adapters.registry import Adapter, adapt, register_adapter
from torch_trackckpt.adapters.state_node import StateNode
from torch_trackckpt.distributed.fsdp import put_back_parts
from torch_trackckpt.errors import MismatchError, UnsupportedValueError
from torch_trackckpt.trackable import Prepared, Value, Waiting

__all__ = ["ModuleAdapter"]


class ModuleAdapter(Adapter):
    """A module: parameters, persistent buffers, submodules, each in the order of registration."""

    def _trackable_children(self) -> Mapping[str, object]:
        module: nn.Module = self.adapted
        put_back_parts(module)
        # What is registered as None is no child, as everything that is not trackable.
        children: dict[str, object] = dict(module._parameters.items())
        if module._buffers:
            omitted = module._non_persistent_buffers_set
            children.update((name, buffer) for name, buffer in module._buffers.items() if name not in omitted)
        children.update(module._modules.items())
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

    def _kept_attributes(self) -> Collection[str]:
        """Plain attributes that are state of the module, saved or not; its ``state_dict`` may have them."""
        return ()

    def _lookup_dependency(self, name: str) -> object | None:
        module: nn.Module = self.adapted
        put_back_parts(module)
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

    def _leaf_sources(self) -> tuple[object, ...]:
        module: nn.Module = self.adapted
        put_back_parts(module)
        if isinstance(module, torch.jit.ScriptModule):
            return ()
        return (module._parameters,) if module._non_persistent_buffers_set else (module._parameters, module._buffers)

    def _postponed(self, stored_names: Collection[str]) -> Collection[str]:
        # A lazy module makes all of its parameters in its first forward pass, or none.
        lazy = {name for name, parameter in self.adapted._parameters.items() if _is_lazy_tensor(parameter)}
        lazy |= {name for name, buffer in self.adapted._buffers.items() if _is_lazy_tensor(buffer)}
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

    Only modules that interfere with ``state_dict`` can have any: quantised ones and some metrics do. A value may have
    another name there, or be a copy or a detached view of what is known.
    """
    is_plain = (
        type(module).state_dict is nn.Module.state_dict
        and type(module)._save_to_state_dict is nn.Module._save_to_state_dict
        and not module._state_dict_hooks
    )
    if is_plain or isinstance(module, torch.jit.ScriptModule):
        return []
    known: set[object] = set()
    for path, part in module.named_modules():
        before = f"{path}." if path else ""
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None and name not in part._non_persistent_buffers_set:
                known |= {id(tensor), _memory(tensor), before + name}
        if isinstance(adapter := adapt(part), ModuleAdapter):
            known |= {before + name for name in adapter._kept_attributes()}
    return [
        key
        for key, value in module.state_dict(keep_vars=True).items()
        if not ({id(value), _memory(value), key} & known) and key.rpartition(".")[2] != "_extra_state"
    ]


def _memory(value: object) -> object:
    """Equal for tensors that are views of the same values."""
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or is_unmade(value):
        return id(value)
    is_made_of_tensors = type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    return id(value) if is_made_of_tensors else (value.data_ptr(), value.dtype, value.shape, value.stride())


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


register_adapter(nn.Module, ModuleAdapter)
