"""What is kept with a torch optimizer because its own state cannot say it.

    momenta      Keras's have the learning rate in them, torch's do not, and the way there and back changes a bit of
                 some elements: what was read is kept beside the buffer that came of it, until a step changes that
    iterations   SGD does not count its steps, Keras's does

It is an attribute of the optimizer, which neither ``state_dict`` nor a copy takes along. So steps of SGD are counted
from when its first view was made, and who gives the optimizer the state of another time makes the count unknown.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.optim import SGD, Optimizer

from torch_trackckpt.interop.keras.optimizers import Moment, Scale

__all__ = ["Kept", "to_keras", "to_torch"]

_ATTRIBUTE = "_trackckpt_keras"


class Kept:
    """What belongs to one optimizer; `of` finds it.

    Args:
        optimizer: the optimizer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._raw: dict[torch.Tensor, dict[Moment, torch.Tensor]] = {}
        self.iterations = 0
        if isinstance(optimizer, SGD):
            optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)
        optimizer.register_load_state_dict_post_hook(self._after_load)
        vars(optimizer)[_ATTRIBUTE] = self

    @staticmethod
    def of(optimizer: Optimizer) -> Kept:
        """That of an optimizer; made when it is asked for first."""
        found = vars(optimizer).get(_ATTRIBUTE)
        return found if isinstance(found, Kept) else Kept(optimizer)

    # The steps of SGD.

    @property
    def iterations(self) -> int | None:
        """How many steps there were; None where that is unknown, because others than the steps and Keras's views have
        changed the state since. Without momentum, SGD has no state: there, only ``load_state_dict`` is noticed."""
        return None if self._is_changed() else self._iterations

    @iterations.setter
    def iterations(self, count: int | None) -> None:
        self._iterations = count
        self.accept()

    def accept(self) -> None:
        """Takes the momenta of now for those that belong to the count."""
        self._momentum = self._momentum_of_now()

    def _is_changed(self) -> bool:
        # Momenta that were dropped do not tell of other steps.
        now = self._momentum_of_now()
        return now is not None and (
            self._momentum is None or now[0] is not self._momentum[0] or now[1] != self._momentum[1]
        )

    def _momentum_of_now(self) -> tuple[torch.Tensor, int] | None:
        """One momentum for all, and how many times its memory was written."""
        optimizer = self._optimizer()
        states = () if optimizer is None else optimizer.state.values()
        buffers = (state.get("momentum_buffer") for state in states)
        found = next((buffer for buffer in buffers if isinstance(buffer, torch.Tensor)), None)
        return None if found is None else (found, 0 if found.is_inference() else found._version)

    # Momenta as they were read.

    def keep(self, parameter: torch.Tensor, moment: Moment, like: torch.Tensor) -> torch.Tensor:
        """Where to put a parameter's momentum as Keras has it, in torch's layout: memory like that of a tensor."""
        raw = self.raw(parameter, moment)
        if raw is None or not _are_alike(raw, like):
            raw = torch.zeros_like(like.detach())
            self._raw.setdefault(parameter, {})[moment] = raw
        return raw

    def forget(self, parameter: torch.Tensor, moment: Moment) -> None:
        """Drops it."""
        self._raw.get(parameter, {}).pop(moment, None)

    def raw(self, parameter: torch.Tensor, moment: Moment) -> torch.Tensor | None:
        """A parameter's momentum as it was read."""
        return self._raw.get(parameter, {}).get(moment)

    # What the optimizer tells.

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._iterations = self.iterations

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if isinstance(optimizer, SGD):
            self.iterations = None if self._iterations is None else self._iterations + 1
        for group in optimizer.param_groups if self._raw else ():
            for parameter in group["params"]:
                raws = self._raw.get(parameter)
                if raws is None or parameter.grad is None:
                    continue
                # What torch does not keep with these settings, a step does not change in Keras either.
                left = {moment: raw for moment, raw in raws.items() if not moment.is_kept_by(group)}
                if left:
                    self._raw[parameter] = left
                else:
                    del self._raw[parameter]

    def _after_load(self, optimizer: Optimizer) -> None:
        self._raw.clear()
        self.iterations = None


def to_torch(raw: torch.Tensor, scale: Scale, rate: float) -> torch.Tensor:
    """torch's momentum of Keras's."""
    if scale is Scale.AS_IS:
        return raw
    # Without a rate nothing moves, whatever the momentum is.
    return raw / (scale.value * rate) if rate else torch.zeros_like(raw)


def to_keras(buffer: torch.Tensor, scale: Scale, rate: float) -> torch.Tensor:
    """Keras's momentum of torch's."""
    return buffer if scale is Scale.AS_IS else buffer * (scale.value * rate)


def _are_alike(left: torch.Tensor, right: torch.Tensor) -> bool:
    return (left.shape, left.dtype, left.device) == (right.shape, right.dtype, right.device)
