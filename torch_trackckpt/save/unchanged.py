"""Notices values that change while they are being saved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from torch_trackckpt.errors import ValueChangedError
from torch_trackckpt.save.plan import WriteItem

__all__ = ["unchanged"]


@contextlib.contextmanager
def unchanged(items: Sequence[WriteItem]) -> Iterator[None]:
    """Checks that no tensor changes during the block, as far as torch knows of it.

    Raises:
        ValueChangedError: one did.
    """
    before = _versions(items)
    yield
    after = _versions(items)
    changed = [item.key for item, old, new in zip(items, before, after, strict=True) if old != new]
    if changed:
        raise ValueChangedError(
            f"{len(changed)} values changed while they were being saved, the first is {changed[0]}; no checkpoint has "
            "been made. Let no other thread train while a save is running."
        )


def _versions(items: Sequence[WriteItem]) -> list[int | None]:
    """The counters by which torch notices changes in place; a part of a tensor shares the tensor's."""
    return [
        item.value._version if isinstance(item.value, torch.Tensor) and not item.value.is_inference() else None
        for item in items
    ]
