"""One Keras variable, made of tensors of one torch module.

    torch tensors, or some of their rows  --to_keras-->  the array as Keras stores it
                                          <--to_torch--

Every transform is a bijection, bit for bit, and knows nothing of what the numbers mean: it moves an optimizer's moments
as it moves the weight that they belong to. Most of them are views of the same memory, so that nothing is copied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

__all__ = ["AS_IS", "KerasArray", "Piece", "Transform"]


@dataclasses.dataclass(frozen=True)
class Piece:
    """A parameter or buffer of a module, or some of its rows."""

    name: str
    """As in ``module.get_parameter``: ``weight_ih_l0``, or dotted for what is in a module below."""
    begin: int | None = None
    """The first row, where several Keras variables have a tensor between them."""
    end: int | None = None

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The rows of a whole tensor of this name: its value, or what an optimizer keeps for it."""
        return tensor if self.begin is None else tensor[self.begin : self.end]


@dataclasses.dataclass(frozen=True)
class Transform:
    """Between the pieces of torch and the array of Keras."""

    name: str
    """What the documentation calls it."""
    to_keras: Callable[[Sequence[torch.Tensor]], torch.Tensor]
    to_torch: Callable[[torch.Tensor], Sequence[torch.Tensor]]
    """The other way; as many tensors as there are pieces, each of the shape of its piece."""


AS_IS = Transform("as is", lambda pieces: pieces[0], lambda array: (array,))


@dataclasses.dataclass(frozen=True)
class KerasArray:
    """A Keras variable of a layer, in terms of one module's tensors."""

    pieces: tuple[Piece, ...]
    shape: tuple[int, ...]
    """As Keras has it."""
    transform: Transform = AS_IS
    merged: tuple[str, ...] = ()
    """Tensors that are added to the first piece, because Keras has one variable where torch has two: a second bias.
    What is read goes to the first piece; these become zero, and must not be trained."""
    absent: float | None = None
    """What every element is where the Keras layer has no such variable, as ``scale=False`` has no gamma: 1. None where
    there has to be one."""
