"""A Keras variable that was bound to the tensors of a live module: a leaf of the graph that is a view of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from torch_trackckpt.errors import MismatchError
from torch_trackckpt.interop.keras.arrays import KerasArray, Piece
from torch_trackckpt.trackable import VARIABLE_VALUE, Prepared, Resolve, Trackable, Value

__all__ = ["BoundVariable"]


class BoundVariable(Trackable):
    """One variable of the Keras model, as a view of the torch module's tensors as they are whenever it is asked.

    It is itself the node of the graph, and what an optimizer's slots name as their variable, so whoever binds keeps it.

    Args:
        module: what the names of pieces are relative to.
        module_name: its dotted name in the model; empty for the model itself.
        array: how the variable is made of the module's tensors.
        layer: what messages call the Keras layer: ``dense``, or ``_operations/1``.
        name: the variable within the layer: ``kernel``.
    """

    def __init__(self, module: nn.Module, module_name: str, array: KerasArray, layer: str, name: str) -> None:
        self.module = module
        self.module_name = module_name
        self.array = array
        self.layer = layer
        self.name = name
        self.keras_path = ""
        """Where it is in the model, by edges; empty where no checkpoint tells."""
        self.full_name = ""
        """As Keras calls it; empty where nothing tells."""
        self.is_given = False
        """Whether it has got a value of a checkpoint."""
        self.also: list[Callable[[], None]] = []
        """What else happens when the variable gets a value: its layer in Keras lacks what the module has."""

    @property
    def readable(self) -> str:
        """What messages call the variable."""
        return f"{self.layer}/{self.name}"

    def torch_name(self, piece: Piece) -> str:
        """The dotted name of a piece in the model."""
        return f"{self.module_name}.{piece.name}" if self.module_name else piece.name

    def tensor(self, name: str) -> torch.Tensor:
        """The live parameter or buffer of a name."""
        path, _, attribute = name.rpartition(".")
        found = getattr(self.module.get_submodule(path), attribute)
        assert isinstance(found, torch.Tensor)
        return found

    def parameters(self) -> list[tuple[Piece, nn.Parameter]]:
        """Those of the pieces that an optimizer may have state for; none for a variable made of buffers."""
        found = [(piece, self.tensor(piece.name)) for piece in self.array.pieces]
        return [(piece, tensor) for piece, tensor in found if isinstance(tensor, nn.Parameter)]

    def value(self) -> torch.Tensor:
        """The array as Keras would store it now; where possible, a view of the module's own memory."""
        pieces = [piece.of(self.tensor(piece.name).detach()) for piece in self.array.pieces]
        if self.array.merged:
            pieces[0] = self._with_merged(pieces[0])
        return self.array.transform.to_keras(pieces)

    def _with_merged(self, first: torch.Tensor) -> torch.Tensor:
        for name in self.array.merged:
            other = self.tensor(name).detach()
            # Not a sum where there is nothing to add: that would make +0 of -0.
            first = torch.where(other == 0, first, first + other)
        return first

    @torch.no_grad()
    def assign(self, array: torch.Tensor) -> None:
        """Gives the module's tensors the values of an array of Keras's shape."""
        for piece, value in zip(self.array.pieces, self.array.transform.to_torch(array), strict=True):
            piece.of(self.tensor(piece.name)).copy_(value)
        for name in self.array.merged:
            # Trained beside the first, it would move their sum twice as far as Keras's one variable moves.
            self.tensor(name).zero_().requires_grad_(False)
        for change in self.also:
            change()
        self.is_given = True

    def state_value(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """What an optimizer keeps for the variable, in Keras's layout, from what it keeps for the tensors of all pieces
        (whole tensors, one for each piece)."""
        pieces = [piece.of(state) for piece, state in zip(self.array.pieces, states, strict=True)]
        return self.array.transform.to_keras(pieces)

    @torch.no_grad()
    def assign_state(self, states: Sequence[torch.Tensor], array: torch.Tensor) -> None:
        """The other way: fills this variable's rows of what the optimizer keeps."""
        values = self.array.transform.to_torch(array)
        for piece, state, value in zip(self.array.pieces, states, values, strict=True):
            piece.of(state).copy_(value)

    # As a node.

    def _attribute_names(self) -> tuple[str, ...]:
        return (VARIABLE_VALUE,)

    def _full_name(self) -> str | None:
        # A checkpoint of ours is bound by the names of Keras as well.
        return self.full_name or None

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        return {VARIABLE_VALUE: self.value()}

    def _prepare_restore(self, values: Mapping[str, Value], resolve: Resolve) -> Prepared:
        stored, live = values[VARIABLE_VALUE], self.value()
        if not isinstance(stored, torch.Tensor) or (stored.dtype, stored.shape) != (live.dtype, live.shape):
            found = f"{stored.dtype} of shape {list(stored.shape)}" if isinstance(stored, torch.Tensor) else "text"
            way = f"; convert the module first, to({stored.dtype})" if isinstance(stored, torch.Tensor) else ""
            raise MismatchError(
                f"{self.torch_name(self.array.pieces[0])} is {live.dtype} of shape {list(live.shape)} in Keras's "
                f"layout, but Keras's {self.readable} is {found}{way}."
            )
        if live.is_meta:
            raise MismatchError(
                f"{self.torch_name(self.array.pieces[0])} is on the meta device, where it takes no values: give the "
                "module memory first, to_empty(device='cpu')."
            )
        return Prepared(lambda: self.assign(stored))
