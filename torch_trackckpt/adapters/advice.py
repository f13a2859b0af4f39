"""What to do about an object that is not trackable, by its class."""

from __future__ import annotations

import functools

from torch.utils.data import DataLoader

__all__ = ["advice_for"]


@functools.singledispatch
def advice_for(value: object) -> str:
    """A sentence for the error that refuses the object."""
    return (
        "Pass a module, optimizer, tensor, a container of these, an object with state_dict and load_state_dict, or "
        "register an adapter."
    )


@advice_for.register(DataLoader)
def _(value: DataLoader[object]) -> str:
    return (
        "It does not know how far it is in an epoch: wrap it in torch_trackckpt.data.ResumableLoader and iterate over "
        "that, or use torchdata's StatefulDataLoader."
    )
