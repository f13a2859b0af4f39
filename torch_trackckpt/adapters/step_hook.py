"""A hook of an optimizer that is called before one step, and is gone then.

torch goes through the hooks themselves, not through a copy, and raises where one but the last goes away meanwhile. A
hook that is not the last goes after the step, by a hook for that which is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

__all__ = ["BeforeNextStep"]


class BeforeNextStep:
    """Calls a function before the next step of an optimizer, which it does not keep alive.

    Args:
        optimizer: has called ``Optimizer.__init__``.
        callback: called in the thread that steps. When it raises, the step does too, and the next one calls it again.
    """

    def __init__(self, optimizer: Optimizer, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._is_over = False
        self._running: list[None] = []
        """As many as there are steps that have called the hook just now. No lock: a fork might take it along."""
        # A compiled step goes through its hooks as well, and would compile this one.
        self._before = optimizer.register_step_pre_hook(torch.compiler.disable(self._before_step))  # type: ignore[no-untyped-call]
        self._after: RemovableHandle | None = None

    def _before_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        self._running.append(None)
        try:
            if not self._is_over:
                self._callback()
                self._is_over = True
        finally:
            self._running.pop()
        if not self._running:
            self._leave(optimizer)

    def _leave(self, optimizer: Optimizer) -> None:
        hooks = self._before.hooks_dict_ref()
        if hooks and next(reversed(hooks)) == self._before.id:
            self._before.remove()
        elif self._after is None:
            self._after = optimizer.register_step_post_hook(torch.compiler.disable(self._after_step))  # type: ignore[no-untyped-call]

    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Calls the function no more, and removes the hooks; a step that is just calling it removes them itself."""
        self._is_over = True
        if not self._running:
            self._before.remove()
            if self._after is not None:
                self._after.remove()
