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
from torch_trackckpt.errors import UninitializedError
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


def give_memory(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Gives a tensor on the meta device memory, with no values in it, in place.

    Returns:
        What it was, for `take_memory`.
    """
    with torch.no_grad():
        other = torch.empty_like(tensor, device=device)
    if isinstance(tensor, nn.Parameter):
        other = type(tensor)(other, requires_grad=tensor.requires_grad)
    else:
        other.requires_grad_(tensor.requires_grad)
    vars(other).update(vars(tensor))
    torch.utils.swap_tensors(tensor, other)  # type: ignore[no-untyped-call]
    return other


def take_memory(tensor: torch.Tensor, before: torch.Tensor) -> None:
    """Undoes `give_memory`."""
    torch.utils.swap_tensors(tensor, before)  # type: ignore[no-untyped-call]


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
            f"{len(helpless)} modules have tensors on the meta device that the checkpoint does not supply, and no "
            f"reset_parameters() to initialise them; the first is a {type(helpless[0]).__name__} with "
            f"{', '.join(wanting)}. Define reset_parameters(), or make these tensors before you restore."
        )
    # A reset_parameters() knows nothing of tensors that have their values already, its own or those of modules below.
    kept = [(tensor, tensor.detach().clone()) for tensor in _tensors_below(incomplete) if not tensor.is_meta]
    for module in incomplete:
        for _, tensor in _own_tensors(module):
            if tensor.is_meta:
                undo.callback(take_memory, tensor, give_memory(tensor, device))
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
    reset = getattr(module, "reset_parameters", None)
    return reset if callable(reset) else None
