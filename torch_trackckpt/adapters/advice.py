"""What to do about an object that is not trackable, by its class."""

from __future__ import annotations

import dataclasses
import functools
import numbers

from torch.utils.data import DataLoader

__all__ = ["advice_for"]


@functools.singledispatch
def advice_for(value: object) -> str:
    """A sentence for the error that refuses the object."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value).__name__
        return f"Let the dataclass {kind} derive from torch_trackckpt.AutoTrackable; its fields are saved then."
    return (
        "Pass a module, optimizer, tensor, a container of these, an object with state_dict and load_state_dict, or "
        "register an adapter."
    )


@advice_for.register(numbers.Number)
@advice_for.register(str)
def _(value: object) -> str:
    return "Keep it as an attribute of a torch_trackckpt.AutoTrackable, or a number in a tensor."


@advice_for.register(DataLoader)
def _(value: DataLoader[object]) -> str:
    return (
        "It does not know how far it is in an epoch: wrap it in torch_trackckpt.data.ResumableLoader and iterate over "
        "that, or use torchdata's StatefulDataLoader."
    )
