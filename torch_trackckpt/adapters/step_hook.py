"""A hook that is called before a step of any optimizer, and tells who waits for one that changes certain tensors.

There is one for the process, in torch's own registry. It stays there when nobody waits, and does nothing: torch goes
through its hooks without a copy of them, and raises where one goes away meanwhile, as it may in another thread.
"""

from __future__ import annotations

import dataclasses
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

__all__ = ["StepHook", "running_steps"]


@dataclasses.dataclass(frozen=True, eq=False)
class _Waiting:
    tensors: frozenset[int]
    callback: weakref.WeakMethod[Callable[[], None]]


class StepHook:
    """Who waits for steps."""

    @staticmethod
    def shared() -> StepHook:
        """The one that is there already, or a new one."""
        present = torch_optimizer._global_optimizer_pre_hooks.values()
        found = (getattr(hook, "torch_trackckpt", None) for hook in present)
        return next((hook for hook in found if isinstance(hook, StepHook)), None) or StepHook()

    def __init__(self) -> None:
        # Replaced, never changed: threads that step go through it.
        self._waiting: tuple[_Waiting, ...] = ()
        # A compiled step goes through its hooks as well, and would compile this one.
        hook: Any = torch.compiler.disable(self._before_step)  # type: ignore[no-untyped-call]
        hook.torch_trackckpt = self
        torch_optimizer.register_optimizer_step_pre_hook(hook)

    def add(self, tensors: Iterable[torch.Tensor], callback: Callable[[], None]) -> Callable[[], None]:
        """Has a method called before the next step of any optimizer that has one of these tensors among its parameters,
        in the thread that steps; once.

        Args:
            tensors: the parameters.
            callback: a bound method, whose object does not live longer because of that. When it raises, the step does
                too, and the next one calls it again.

        Returns:
            What has it not be called any more.
        """
        waiting = _Waiting(frozenset(map(id, tensors)), weakref.WeakMethod(callback))
        self._waiting = (*(other for other in self._waiting if other.callback() is not None), waiting)
        return lambda: self._remove(waiting)

    def _remove(self, waiting: _Waiting) -> None:
        self._waiting = tuple(other for other in self._waiting if other is not waiting)

    def _before_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if not self._waiting:
            return
        members = _members(optimizer)
        for waiting in self._waiting:
            callback = waiting.callback()
            if callback is not None and not waiting.tensors.isdisjoint(members):
                callback()
                self._remove(waiting)


def running_steps() -> Iterator[Optimizer]:
    """The optimizers whose step has called this thread, in a closure or a hook: their hooks have been called before."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == torch_optimizer.__file__ and frame.f_code.co_name == "wrapper":
            optimizer = frame.f_locals.get("self")
            if isinstance(optimizer, Optimizer):
                yield optimizer
        frame = frame.f_back


def _members(optimizer: Optimizer) -> set[int]:
    return {id(member) for group in optimizer.param_groups for member in group["params"]}
