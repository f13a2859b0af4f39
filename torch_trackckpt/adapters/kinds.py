"""Whose saved state an object of a class may take."""

from __future__ import annotations

__all__ = ["accepted_kinds"]


def accepted_kinds(kind: type, family: type) -> set[str]:
    """The names of the classes whose state fits: the class's own, and, for a user's class, what it was derived from.

    PyTorch's own classes that derive from each other (AdamW from Adam) mean different things by equal state.

    Args:
        kind: the class of the live object.
        family: where to stop, such as ``torch.optim.Optimizer``.
    """
    names = {kind.__name__}
    while not kind.__module__.startswith("torch.optim") and kind.__base__ not in (None, family, object):
        kind = kind.__base__
        names.add(kind.__name__)
    return names
