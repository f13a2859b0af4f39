"""Which restore gave a live object its values last: TensorFlow's ``_update_uid``.

Every restore has a number, and a later one a larger number. An object takes values only from a later restore than the
one that it has values of, in whatever order the objects appear that several restores wait for.

The number stays with the object, as long as that lives; a copy has none. A tensor carries it as an attribute: a weak
reference would make torch refuse to swap the tensor for another (``torch.utils.swap_tensors``, which ``Module.to`` uses
for some kinds of parameters; the number is lost then). Other objects may write all their attributes into a
``state_dict``, so theirs is kept by a finalizer.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Hashable
from typing import Any, Protocol

import torch

__all__ = ["new_uid", "set_update_uid", "set_update_uids", "update_uid"]

_NEVER = -1
_ATTRIBUTE = "_trackckpt_update_uid"


def new_uid() -> int:
    """A number for a restore that begins now; larger than those of all before."""
    return time.monotonic_ns()


def update_uid(owner: Any, part: Hashable = None) -> int:
    """The number of the restore that an object, or a part of it, has its values of; -1 if of none."""
    if isinstance(owner, torch.Tensor):
        uid = vars(owner).get(_ATTRIBUTE)
        return uid if isinstance(uid, _TensorUid) else _NEVER
    numbers = _numbers_of(owner)
    return _NEVER if numbers is None else numbers.by_part.get(part, _NEVER)


def set_update_uid(owner: Any, uid: int, part: Hashable = None) -> None:
    """Notes which restore an object, or a part of it, has its values of. An object of which there can be no weak
    references is restored by whoever comes last."""
    if isinstance(owner, torch.Tensor):
        vars(owner)[_ATTRIBUTE] = _TensorUid(uid)
        return
    numbers = _numbers_of(owner)
    if numbers is None:
        try:
            numbers = _Numbers(owner)
        except TypeError:
            return
    numbers.by_part[part] = uid


class ManyTensors(Protocol):
    """Tensors of which each gets an attribute by one call."""

    def set_attribute(self, name: str, value: object) -> None: ...


def set_update_uids(tensors: ManyTensors, uid: int) -> None:
    """As `set_update_uid`, for each of many tensors."""
    tensors.set_attribute(_ATTRIBUTE, _TensorUid(uid))


class _TensorUid(int):
    """The number as a tensor carries it. A copy of the tensor, and one that another process reads, is another object,
    and the number would mean nothing there; what it gets instead, ``torch.load(weights_only=True)`` accepts."""

    def __reduce__(self) -> tuple[type[set[Any]], tuple[()]]:
        return set, ()


class _Numbers(weakref.finalize):  # type: ignore[type-arg]
    """Lives as long as its object; `weakref.finalize` sees to that, and finds it through the object's references."""

    __slots__ = ("by_part",)

    def __init__(self, owner: Any) -> None:
        super().__init__(owner, int)
        self.atexit = False
        self.by_part: dict[Hashable, int] = {}


def _numbers_of(owner: Any) -> _Numbers | None:
    try:
        references = weakref.getweakrefs(owner)
    except TypeError:
        return None
    return next((ref.__callback__ for ref in references if isinstance(ref.__callback__, _Numbers)), None)
