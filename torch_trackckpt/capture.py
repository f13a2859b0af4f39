"""Parameters that code makes without a thought of checkpoints, as dependencies of an object that has one.

torch tells of every parameter, buffer and submodule that a module registers, in every thread, through hooks that are
the process's; each block listens for what its own thread registers while it is the innermost one. Torch does not allow
that hooks are added or removed while another thread makes modules: that thread may get a RuntimeError.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import re
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from torch_trackckpt.adapters import adapt
from torch_trackckpt.graph.walk import discover, live_object
from torch_trackckpt.tracking.autotrackable import AutoTrackable

__all__ = ["capture_dependencies"]


@contextlib.contextmanager
def capture_dependencies(template: AutoTrackable, *, scope: str | None = None) -> Iterator[None]:
    """Makes what modules register inside a ``with`` block dependencies of a template. TensorFlow's
    ``capture_dependencies``.

    At the end of the block, every parameter and persistent buffer that a module registered in it, or that lies below a
    module which was put into another one in it, becomes a child of the template. Its name is the way to it from the
    outermost module: the class of this module as TensorFlow 1 named its layers, numbered in the order in which they
    were made, then the names of torch, as in ``linear/weight``, ``linear_1/weight``, ``sequential/0/weight``. The
    numbers go on from one block to the next of the same template. Values of a checkpoint that was restored before are
    taken at this moment.

    Of blocks inside each other, the innermost captures; the outer template gets the inner one as a child, under its
    class's name, if the inner one captured anything. What other threads register is not captured. What the template
    leads to already is not captured twice. After an exception nothing is captured.

    Args:
        template: gets the children.
        scope: names that begin with it and a ``/`` lose that part.

    Raises:
        ValueError: the template is no `AutoTrackable`; or, at the end of the block, it has other children of these
            names.
        Exception: what taking values of an earlier restore raises, at the end of the block.

    Example:
        >>> import torch
        >>> from torch_trackckpt import AutoTrackable, capture_dependencies
        >>> def build():
        ...     return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1, bias=False))
        >>> template = AutoTrackable()
        >>> with capture_dependencies(template):
        ...     first, second = build(), build()
        >>> list(template._trackable_children())[2:5]
        ['sequential/1/weight', 'sequential_1/0/weight', 'sequential_1/0/bias']
    """
    if not isinstance(template, AutoTrackable):
        raise ValueError(
            f"capture_dependencies: the template is a {type(template).__name__}; only an AutoTrackable, such as a "
            "Checkpoint, can get dependencies."
        )
    inner = _Scope()
    outer = _innermost.get()
    token = _innermost.set(inner)
    handles = [
        torch_module.register_module_parameter_registration_hook(inner.notice),
        torch_module.register_module_buffer_registration_hook(inner.notice),
        torch_module.register_module_module_registration_hook(inner.notice),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        _innermost.reset(token)
    dependencies = inner.dependencies(template)
    for name, dependency in dependencies:
        template._track_trackable(dependency, name if scope is None else name.removeprefix(f"{scope}/"))
    if dependencies and outer is not None:
        outer.notice_template(template)


class _Scope:
    """What was registered in one block, in the order in which it was noticed."""

    def __init__(self) -> None:
        self._templates: dict[int, AutoTrackable] = {}
        self._modules: dict[int, nn.Module] = {}
        self._names: dict[int, set[str]] = {}

    def notice(self, module: nn.Module, name: str, value: object) -> None:
        """To be called when a module registered something, in whatever thread."""
        if _innermost.get() is not self:
            return
        self._modules[id(module)] = module
        self._names.setdefault(id(module), set()).add(name)

    def notice_template(self, template: AutoTrackable) -> None:
        """To be called when a block inside this one has captured something."""
        self._templates[id(template)] = template

    def dependencies(self, template: AutoTrackable) -> list[tuple[str, Any]]:
        """What was registered and is not below the template or an inner one, by name; before it the inner templates."""
        known = set(discover(template).nodes)
        templates = [inner for inner in self._templates.values() if inner._identity() not in known]
        known.update(itertools.chain.from_iterable(discover(inner).nodes for inner in templates))
        scopes = _ScopeNames(template)
        found: list[tuple[str, Any]] = [(scopes.name(inner), inner) for inner in templates]
        for module in self._outermost():
            tensors = list(self._tensors(module, "", set(known), is_whole=False))
            if tensors:
                scope = scopes.name(module)
                found += [(scope + path, tensor) for path, tensor in tensors]
        return found

    def _outermost(self) -> list[nn.Module]:
        below = {id(part) for module in self._modules.values() for part in module.modules() if part is not module}
        return [module for identity, module in self._modules.items() if identity not in below]

    def _tensors(
        self, module: nn.Module, path: str, known: set[Hashable], *, is_whole: bool
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors below a module that were registered, by path.

        Below a submodule that registered nothing itself but was put into a module in this block, all count: torch does
        not tell of the parameters of a module that was made by copying another.
        """
        trackable = adapt(module)
        if trackable is None or trackable._identity() in known:
            return
        known.add(trackable._identity())
        names = self._names.get(id(live_object(trackable)), ())
        for name, child in trackable._trackable_children().items():
            is_new = is_whole or name in names
            if isinstance(child, nn.Module):
                child_is_whole = is_new and id(child) not in self._names
                yield from self._tensors(child, f"{path}/{name}", known, is_whole=child_is_whole)
            elif isinstance(child, torch.Tensor) and is_new and id(child) not in known:
                yield f"{path}/{name}", child


class _ScopeNames:
    """Names as TensorFlow 1 gave to its layers: that of the class, with a number from the second on."""

    def __init__(self, template: AutoTrackable) -> None:
        children = template._trackable_children().items()
        # What earlier blocks have added to the template.
        self._taken = {name.partition("/")[0] for name, child in children if "/" in name or _is_template(child)}

    def name(self, value: object) -> str:
        """A new name for an object."""
        base = _snake_case(type(value).__name__)
        numbered = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(1)))
        found = next(name for name in numbered if name not in self._taken)
        self._taken.add(found)
        return found


def _is_template(value: object) -> bool:
    return isinstance(value, AutoTrackable)


def _snake_case(name: str) -> str:
    """The name of a class as that of a variable: ``BatchNorm1d`` is ``batch_norm1d``, ``GRUCell`` is ``gru_cell``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


_innermost: contextvars.ContextVar[_Scope | None] = contextvars.ContextVar("_innermost", default=None)
"""The innermost block that the running code is in; every thread has its own."""
