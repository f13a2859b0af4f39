"""Modules on the meta device: this project's graph building. A restore binds their tensors, and memory comes later.

A tensor gets memory by being swapped for one that has it, so it stays the same object for everybody who holds it: tied
modules, optimizers. The file's bytes then go straight into that memory; there is never a second copy of the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_trackckpt.adapters.module import ModuleAdapter
from torch_trackckpt.distributed.dtensor import is_dtensor, with_memory
from torch_trackckpt.errors import RestoreError, UninitializedError
from torch_trackckpt.graph.walk import LiveGraph, discover

__all__ = ["Device", "device_with_memory", "gather_initializers", "give_memory", "initialize", "take_memory"]

Device = torch.device | str | int | None
"""Where to make tensors; None is torch's default device."""


def device_with_memory(device: Device) -> torch.device:
    """The device that a caller means.

    Raises:
        ValueError: it is the meta device.
    """
    found = torch.get_default_device() if device is None else torch.device(device)
    if found.type == "meta":
        raise ValueError(
            "Tensors on the meta device are to get memory, which they cannot get there. Pass device=, or call this "
            "where meta is not torch's default device."
        )
    return found


def give_memory(tensor: torch.Tensor, device: torch.device, name: str) -> torch.Tensor:
    """Gives a tensor on the meta device memory, with no values in it, in place.

    Args:
        tensor: the tensor; its class, attributes and hooks stay.
        device: where its memory is to be.
        name: what to call it in an error.

    Returns:
        What it was, for `take_memory`.

    Raises:
        RestoreError: something beside Python objects holds the tensor, and would not get the memory.
    """
    if tensor._use_count() > 1:  # type: ignore[attr-defined]
        raise RestoreError(
            f"{name} cannot get memory in place: an autograd graph or a scripted module holds it as well. Nothing has "
            "been restored. Delete what was computed with it, or make it by to_empty() before the restore."
        )
    if is_dtensor(tensor):
        other = with_memory(tensor, device)
        _swap(tensor, other)
        return other
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        # A lazy parameter has no shape that it could tell.
        memory = torch.empty_like(tensor.data if is_lazy(tensor) else tensor, device=device)
        # What parameters do; a constructor of their own may want more than a value.
        other = torch.Tensor._make_subclass(type(tensor), memory, tensor.requires_grad)
    _swap(tensor, other)
    return other


def take_memory(tensor: torch.Tensor, before: torch.Tensor) -> None:
    """Undoes `give_memory`."""
    _swap(tensor, before)


def _swap(tensor: torch.Tensor, other: torch.Tensor) -> None:
    # torch.utils.swap_tensors refuses a tensor with weak references, which recurrent layers keep of their parameters.
    # They go on referring to the Python object, which stays what it is.
    torch._C._swap_tensor_impl(tensor, other)
    if is_dtensor(tensor) and is_dtensor(other):
        # The local tensor belongs to the Python object.
        tensor._local_tensor, other._local_tensor = other._local_tensor, tensor._local_tensor
    # The core knows hooks by the tensor that it had: they are told again.
    for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        if (known := getattr(tensor, hooks)) is not None:
            setattr(tensor, hooks, known)


def gather_initializers(root_trackable: object) -> list[Callable[[], object]]:
    """What initialises the modules below a root. TensorFlow's ``gather_initializers``.

    Args:
        root_trackable: a module, a checkpoint, or any other trackable.

    Returns:
        The ``reset_parameters`` methods of all modules that have one, breadth first. Calling them all gives the
        parameters new values; the modules must not be on the meta device.

    Raises:
        UnsupportedValueError: the root is not trackable.

    Example:
        >>> import torch
        >>> from torch_trackckpt import gather_initializers
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> len(gather_initializers(net))
        2
    """
    resets = (_reset_of(module) for module in _modules(discover(root_trackable)))
    return [reset for reset in resets if reset is not None]


def initialize(
    live: LiveGraph, stored: Iterable[torch.Tensor], device: torch.device, undo: contextlib.ExitStack
) -> None:
    """Makes every module that has tensors on the meta device which no checkpoint supplies, and initialises it.

    Args:
        live: the program.
        stored: those tensors that get their values afterwards.
        device: where to make the tensors.
        undo: takes what puts the tensors back on the meta device.

    Raises:
        UninitializedError: a module has no ``reset_parameters``; nothing has changed.
    """
    supplied = {id(tensor) for tensor in stored}
    incomplete = [
        module
        for module in _modules(live)
        if any(tensor.is_meta and id(tensor) not in supplied for _, tensor in _own_tensors(module))
    ]
    if helpless := [module for module in incomplete if _reset_of(module) is None]:
        wanting = [name for name, tensor in _own_tensors(helpless[0]) if tensor.is_meta and id(tensor) not in supplied]
        raise UninitializedError(
            "Tensors on the meta device are not in the checkpoint, and their modules have no reset_parameters() to "
            f"initialise them. Such modules: {len(helpless)}; the first is a {type(helpless[0]).__name__} with "
            f"{', '.join(wanting)}. Define reset_parameters(), or make these tensors before you restore."
        )
    # A reset_parameters() knows nothing of tensors that have their values already, its own or those of modules below.
    kept = [(tensor, tensor.detach().clone()) for tensor in _tensors_below(incomplete) if not tensor.is_meta]
    for module in incomplete:
        for name, tensor in _own_tensors(module):
            if tensor.is_meta:
                undo.callback(take_memory, tensor, give_memory(tensor, device, f"{type(module).__name__}.{name}"))
    with torch.no_grad():
        try:
            # Parts come before the whole, as they do in constructors, so that the whole can correct them.
            for module in reversed(incomplete):
                reset = _reset_of(module)
                assert reset is not None
                reset()
        finally:
            for tensor, value in kept:
                tensor.copy_(value)


def _tensors_below(modules: Iterable[nn.Module]) -> Iterable[torch.Tensor]:
    """Every tensor of these modules and of those below them, once."""
    return {
        id(tensor): tensor for module in modules for part in module.modules() for _, tensor in _own_tensors(part)
    }.values()


def _modules(live: LiveGraph) -> Iterator[nn.Module]:
    for node in live.nodes.values():
        if isinstance(node.trackable, ModuleAdapter):
            yield node.trackable.adapted


def _own_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """A module's own parameters and buffers, those included that are not saved."""
    registered = (*module._parameters.items(), *module._buffers.items())
    return [(name, tensor) for name, tensor in registered if tensor is not None and not is_lazy(tensor)]


def _reset_of(module: nn.Module) -> Callable[[], object] | None:
    # Attention and transformers in torch.nn have it under the second name.
    resets = (getattr(module, name, None) for name in ("reset_parameters", "_reset_parameters"))
    return next(filter(callable, resets), None)
