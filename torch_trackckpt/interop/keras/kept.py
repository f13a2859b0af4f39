"""What is kept with a torch optimizer because its own state cannot say it.

    momenta      Keras's have the learning rate in them, torch's do not, and the way there and back changes a bit of
                 some elements: what was read is kept beside the buffer that came of it, and written while that is so
    iterations   SGD does not count its steps, Keras's does

It is an attribute of the optimizer, which neither ``state_dict`` nor a copy takes along.
"""

from __future__ import annotations

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
        self.iterations = 0
        self._raw: dict[tuple[torch.Tensor, str], torch.Tensor] = {}
        if isinstance(optimizer, SGD):
            optimizer.register_step_post_hook(_count)
        vars(optimizer)[_ATTRIBUTE] = self

    @staticmethod
    def of(optimizer: Optimizer) -> Kept:
        """That of an optimizer; made when it is asked for first."""
        found = vars(optimizer).get(_ATTRIBUTE)
        return found if isinstance(found, Kept) else Kept(optimizer)

    def __deepcopy__(self, memo: object) -> None:
        return None

    def keep(self, parameter: torch.Tensor, moment: Moment) -> torch.Tensor:
        """Where to put a parameter's momentum as Keras has it, in torch's layout."""
        raw = self._raw.get((parameter, moment.state))
        if raw is None or raw.shape != parameter.shape:
            raw = torch.zeros_like(parameter.detach())
            self._raw[parameter, moment.state] = raw
        return raw

    def forget(self, parameter: torch.Tensor, moment: Moment) -> None:
        """Drops it."""
        self._raw.pop((parameter, moment.state), None)

    def raw(self, parameter: torch.Tensor, moment: Moment) -> torch.Tensor | None:
        """A parameter's momentum as it was read."""
        return self._raw.get((parameter, moment.state))


def to_torch(raw: torch.Tensor, scale: Scale, rate: float) -> torch.Tensor:
    """torch's momentum of Keras's."""
    if scale is Scale.AS_IS:
        return raw
    # Without a rate nothing moves, whatever the momentum is.
    return raw / (scale.value * rate) if rate else torch.zeros_like(raw)


def to_keras(buffer: torch.Tensor, scale: Scale, rate: float) -> torch.Tensor:
    """Keras's momentum of torch's."""
    return buffer if scale is Scale.AS_IS else buffer * (scale.value * rate)


def _count(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    Kept.of(optimizer).iterations += 1
