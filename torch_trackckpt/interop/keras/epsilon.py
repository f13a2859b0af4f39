"""Steps of torch's optimizers that are those of Keras, where epsilon stands elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch.optim import Adam, AdamW, Optimizer, RMSprop

from torch_trackckpt.errors import UnsupportedValueError

__all__ = ["KerasEpsilon", "KerasRMSprop"]

_ATTRIBUTE = "_trackckpt_keras_epsilon"


class KerasEpsilon:
    """Makes the steps of an `Adam` or `AdamW` those of Keras, in all of its generations, and of TensorFlow 1.

    Keras adds epsilon to the root of the second moment before the correction of its bias, torch after it. For each
    step, this sets the epsilon of each group to ``eps / sqrt(1 - beta_2 ** step)``, and sets it back afterwards, so
    that a checkpoint never has another than the one that was asked for. After a step that ended in an error,
    ``param_groups`` have that of the step until the next step or `remove`, since torch calls nothing before;
    ``state_dict`` has the one that was asked for even then. Where the count of steps is on a device, each step waits
    for it. The formula is TensorFlow's.

    Args:
        optimizer: whose steps. It keeps this object alive; a second one for it takes the place of the first. No
            checkpoint has it: make it again after a restart.

    Raises:
        UnsupportedValueError: it is no Adam.

    Example:
        >>> import torch
        >>> from torch_trackckpt.interop.keras import KerasEpsilon
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.Adam(layer.parameters(), lr=0.01, eps=1e-7)
        >>> epsilon = KerasEpsilon(optimizer)
        >>> layer(torch.ones(2)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.param_groups[0]["eps"]
        1e-07
        >>> epsilon.remove()
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.check(optimizer)
        former = vars(optimizer).get(_ATTRIBUTE)
        if isinstance(former, KerasEpsilon):
            former.remove()
        self._changed: list[tuple[dict[str, Any], Any, Any]] = []
        self._hooks = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
            optimizer.register_state_dict_post_hook(self._in_state_dict),
        ]
        vars(optimizer)[_ATTRIBUTE] = self

    @staticmethod
    def check(optimizer: Optimizer) -> None:
        """Refuses optimizers that have no such epsilon.

        Raises:
            UnsupportedValueError: it is no Adam.
        """
        if not isinstance(optimizer, Adam | AdamW):
            raise UnsupportedValueError(
                f"{type(optimizer).__name__} is no Adam; this moves the epsilon of no other optimizer."
            )

    @staticmethod
    def is_on(optimizer: Optimizer) -> bool:
        """Whether the steps of an optimizer are those of Keras by this."""
        found = vars(optimizer).get(_ATTRIBUTE)
        return isinstance(found, KerasEpsilon) and bool(found._hooks)

    def remove(self) -> None:
        """Makes the steps torch's own again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._set_back()

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # The step before may have ended in an error.
        self._set_back()
        # All of them first: nothing has changed if there is no answer for one.
        scaled = [_scaled(optimizer, group) for group in optimizer.param_groups]
        for group, eps in zip(optimizer.param_groups, scaled, strict=True):
            self._changed.append((group, group["eps"], eps))
            group["eps"] = eps

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._set_back()

    def _in_state_dict(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        plain = {id(group): eps for group, eps, scaled in self._changed if group["eps"] is scaled}
        for live, group in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
            group["eps"] = plain.get(id(live), group["eps"])

    def _set_back(self) -> None:
        for group, eps, scaled in self._changed:
            # What somebody else has set since is theirs.
            if group["eps"] is scaled:
                group["eps"] = eps
        self._changed = []


def _scaled(optimizer: Optimizer, group: dict[str, Any]) -> Any:
    """The epsilon of a group for the next step."""
    beta_2 = float(group["betas"][1])
    return group["eps"] / (1 - beta_2 ** (1 + _steps_taken(optimizer, group))) ** 0.5


def _steps_taken(optimizer: Optimizer, group: dict[str, Any]) -> int:
    """How many steps the parameters of a group have taken that take the next one."""
    steps = {
        int(optimizer.state[parameter]["step"]) if "step" in optimizer.state.get(parameter, {}) else 0
        for parameter in group["params"]
        if parameter.grad is not None
    }
    if len(steps) > 1:
        raise UnsupportedValueError(
            f"the parameters of one group have taken {sorted(steps)} steps; Keras's epsilon is one for all of them. "
            "Give those that join later a group of their own."
        )
    return steps.pop() if steps else 0


class KerasRMSprop(RMSprop):
    """RMSprop as Keras computes it: epsilon inside of the root, and weight decay apart from the gradients. State and
    settings are those of `torch.optim.RMSprop`. The formula is TensorFlow's.

    Args:
        params, lr, alpha, eps, weight_decay, momentum, centered: as for `torch.optim.RMSprop`, with Keras's defaults;
            ``alpha`` is Keras's ``rho``.

    Example:
        >>> import torch
        >>> from torch_trackckpt.interop.keras import KerasRMSprop
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = KerasRMSprop(layer.parameters(), lr=0.01, centered=True)
        >>> layer(torch.ones(2)).sum().backward()
        >>> optimizer.step()
        >>> sorted(optimizer.state[layer.bias])
        ['grad_avg', 'square_avg', 'step']
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.001,
        alpha: float = 0.9,
        eps: float = 1e-7,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(params, lr, alpha, eps, weight_decay, momentum, centered)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step.

        Args:
            closure: computes the loss anew.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["square_avg"] = torch.zeros_like(parameter)
            if group["momentum"]:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            if group["centered"]:
                state["grad_avg"] = torch.zeros_like(parameter)
        state["step"] += 1
        rate = float(group["lr"])
        if group["weight_decay"]:
            parameter.mul_(1 - rate * group["weight_decay"])
        average = state["square_avg"].mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
        if group["centered"]:
            mean = state["grad_avg"].lerp_(gradient, 1 - group["alpha"])
            average = average.addcmul(mean, mean, value=-1)
        update = gradient / (average + group["eps"]).sqrt_()
        if group["momentum"]:
            update = state["momentum_buffer"].mul_(group["momentum"]).add_(update)
        parameter.add_(update, alpha=-rate)
