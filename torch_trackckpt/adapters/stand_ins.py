"""Stand-ins for modules: objects of the same classes and with the same attributes, but tensors on the meta device.

Torch's own code may be run on them without a change to the live modules; `Watch` sees what it does with tensors.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import types
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from torch_trackckpt.adapters.late_children import ModuleWaiting
from torch_trackckpt.adapters.module import ModuleAdapter
from torch_trackckpt.adapters.registry import adapt
from torch_trackckpt.adapters.tensor import is_made_of_tensors
from torch_trackckpt.distributed.dtensor import is_dtensor
from torch_trackckpt.errors import UnsupportedValueError

__all__ = [
    "Cast",
    "Watch",
    "children_of_module",
    "live_parts",
    "live_tensors",
    "own_hooks",
    "own_tensors",
    "storage_of",
]

_COPIED = (dict, list, set, OrderedDict)
"""Attributes of these types are copied one level deep, so that a stand-in may change its own."""


def live_parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A module and all below it, each with its dotted name and a dot behind it: the prefix of what it has.

    They come as ``load_state_dict`` reaches them, a module with two names twice; without wrappers, scripted
    modules, and those that have an adapter of their own.
    """
    stack: list[tuple[str, nn.Module, frozenset[int]]] = [("", _unwrapped(module), frozenset())]
    while stack:
        prefix, part, above = stack.pop()
        yield prefix, part
        above = above | {id(part)}
        children = [(f"{prefix}{name}.", child) for name, child in children_of_module(part) if id(child) not in above]
        stack += [(name, child, above) for name, child in reversed(children)]


def live_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Everything that ``load_state_dict`` loads into, by name."""
    return {prefix + name: tensor for prefix, part in live_parts(module) for name, tensor in own_tensors(part).items()}


class Cast:
    """The stand-ins for a module and all below it.

    Args:
        module: the live module.
        real: identities of live tensors that are copied with their values.
    """

    def __init__(self, module: nn.Module, real: set[int]) -> None:
        self._real = real
        self._of_module: dict[int, nn.Module] = {}
        self._of_tensor: dict[int, torch.Tensor] = {}
        self._live_tensors: dict[int, torch.Tensor] = {}
        self.live: dict[int, nn.Module] = {}
        """Identity of a stand-in -> live module."""
        parts = list(live_parts(module))
        for _, part in parts:
            self._stand_in(part)
        for _, part in parts:
            self._connect(part)
        self.root = self._of_module[id(_unwrapped(module))]
        self.tensors = live_tensors(self.root)
        """By name."""
        self.storages = {storage_of(tensor) for tensor in self._of_tensor.values()} - {None}

    def originals_in(self, storages: set[int | None]) -> set[int]:
        """Identities of the live tensors whose stand-ins are in these storages."""
        return {identity for identity, made in self._of_tensor.items() if storage_of(made) in storages - {None}}

    def original(self, value: object) -> object:
        """The live tensor or module that a stand-in stands for; any other value itself."""
        if isinstance(value, nn.Module):
            return self.live.get(id(value), value)
        return self._live_tensors.get(id(value), value)

    def _stand_in(self, module: nn.Module) -> None:
        if id(module) in self._of_module:
            return
        made = object.__new__(type(module))
        attributes = vars(made)
        for name, value in vars(module).items():
            attributes[name] = copy.copy(value) if type(value) in _COPIED else value
        for name in ("_parameters", "_buffers"):
            attributes[name] = {
                own_name: None if tensor is None else self._tensor(tensor)
                for own_name, tensor in vars(module)[name].items()
            }
        # What is stored of it is no value of a state_dict.
        attributes["set_extra_state"] = _ignore
        self._of_module[id(module)] = made
        self.live[id(made)] = module

    def _connect(self, module: nn.Module) -> None:
        """Gives a stand-in its children and hooks."""
        attributes = vars(self._of_module[id(module)])
        attributes["_modules"] = {
            name: child if child is None else self._of_module.get(id(_unwrapped(child)), child)
            for name, child in module._modules.items()
        }
        attributes["_load_state_dict_pre_hooks"] = OrderedDict()
        for wrapped in own_hooks(module):
            hook = self._rebound(getattr(wrapped, "hook", wrapped))
            with_module = getattr(wrapped, "with_module", False)
            self._of_module[id(module)]._register_load_state_dict_pre_hook(hook, with_module)  # type: ignore[no-untyped-call]

    def _rebound(self, hook: Any) -> Any:
        """The hook as one of stand-ins, where it is a method, or has a module among arguments that it was given."""
        if isinstance(hook, types.MethodType):
            return types.MethodType(hook.__func__, self._of_module.get(id(hook.__self__), hook.__self__))
        if isinstance(hook, functools.partial):
            given = [self._of_module.get(id(value), value) for value in hook.args]
            named = {name: self._of_module.get(id(value), value) for name, value in hook.keywords.items()}
            return functools.partial(self._rebound(hook.func), *given, **named)
        return hook

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in self._of_tensor:
            made = _copy_of(tensor, is_real=id(tensor) in self._real)
            vars(made).update(vars(tensor))
            self._of_tensor[id(tensor)] = made
            self._live_tensors[id(made)] = tensor
        return self._of_tensor[id(tensor)]


def _copy_of(tensor: torch.Tensor, *, is_real: bool) -> torch.Tensor:
    if is_lazy(tensor):
        kind: Any = UninitializedParameter if isinstance(tensor, nn.Parameter) else UninitializedBuffer
        lazy: torch.Tensor = kind(device="meta", dtype=tensor.data.dtype)
        return lazy
    if is_made_of_tensors(tensor):
        # Nothing is loaded into it here: what is stored of it is no entry of a state_dict.
        return tensor
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        if is_dtensor(tensor):
            if is_real:
                raise UnsupportedValueError(
                    f"its module computes with a DTensor of shape {list(tensor.shape)}, the whole of which is in no "
                    "process; restore into a module in one process, and save that."
                )
            memory = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            return nn.Parameter(memory, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else memory
        memory = tensor.detach().clone() if is_real else torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            return torch.Tensor._make_subclass(type(tensor), memory, tensor.requires_grad)
        return memory


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees which tensors operators write to, and which they read beside torch's copy of an entry into a parameter.

    Args:
        parameters: storages of the tensors of stand-ins.
    """

    def __init__(self, parameters: set[int | None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parameters = parameters
        self.touched: set[int | None] = set()
        self.written: Counter[int | None] = Counter()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # To skip it, torch would load torch._dynamo, which takes seconds; nothing here is ever compiled.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        named = [(argument, kwargs.get(argument.name)) for argument in func._schema.arguments[len(args) :]]
        for argument, value in (*zip(func._schema.arguments, args, strict=False), *named):
            storages = {storage_of(item) for item in (value if isinstance(value, (list, tuple)) else [value])} - {None}
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.written.update(storages)
            elif not self._is_only_passed_on(func, args):
                self.touched |= storages
        return func(*args, **kwargs)

    def _is_only_passed_on(self, func: Any, args: Any) -> bool:
        if func is torch.ops.aten.copy_.default:
            return storage_of(args[0]) in self._parameters
        return func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default)


def own_hooks(module: nn.Module) -> list[Any]:
    """The ``load_state_dict`` pre-hooks of a module that are neither this package's nor torch's for lazy modules."""
    return [
        wrapped
        for wrapped in module.__dict__.get("_load_state_dict_pre_hooks", {}).values()
        if not isinstance(hook := getattr(wrapped, "hook", wrapped), ModuleWaiting)
        and getattr(hook, "__func__", None) is not LazyModuleMixin._lazy_load_hook
    ]


def children_of_module(module: nn.Module) -> list[tuple[str, nn.Module]]:
    found = [(name, _unwrapped(child)) for name, child in module._modules.items() if child is not None]
    return [
        (name, child)
        for name, child in found
        if isinstance(adapt(child), ModuleAdapter) and not isinstance(child, torch.jit.ScriptModule)
    ]


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of wrappers that have no node of their own."""
    adapter = adapt(module)
    return adapter.adapted if isinstance(adapter, ModuleAdapter) else module


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """What ``load_state_dict`` loads into, of a module without those below it."""
    return {
        name: tensor
        for name, tensor in _registered(module)
        if name not in module._non_persistent_buffers_set and not is_made_of_tensors(tensor)
    }


def _registered(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    registered = (*module._parameters.items(), *module._buffers.items())
    return [(name, tensor) for name, tensor in registered if tensor is not None]


def storage_of(value: object) -> int | None:
    """Tells memory from other memory, also where there is none, as on the meta device."""
    if not isinstance(value, torch.Tensor) or is_lazy(value):
        return None
    with contextlib.suppress(NotImplementedError, RuntimeError):
        return int(value.untyped_storage()._cdata)
    return None


def _ignore(state: object) -> None:
    pass
