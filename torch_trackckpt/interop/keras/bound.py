"""A Keras variable that was bound to the tensors of a live module: a leaf of the graph that is a view of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from torch_trackckpt.errors import MismatchError
from torch_trackckpt.interop.keras.arrays import KerasArray, Piece
from torch_trackckpt.interop.pairing import obstacle
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
        self.constants: list[tuple[BoundVariable, float]] = []
        """What the module has and its layer in Keras lacks, with the value that makes no difference: it gets that when
        this variable gets one."""
        self.frozen: dict[int, nn.Parameter] = {}
        """Parameters that Keras had no variable for, by identity, which were trained before; the view has one for all
        of its variables."""

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
            tensor = self.tensor(piece.name)
            piece.of(tensor).copy_(value)
            # An earlier checkpoint had nothing for it.
            if self.frozen.pop(id(tensor), None) is not None:
                tensor.requires_grad_()
        for name in self.array.merged:
            # Trained beside the first, it would move their sum twice as far as Keras's one variable moves.
            self._freeze(self.tensor(name).zero_())
        for variable, constant in self.constants:
            variable.fill(constant)
        self.is_given = True

    @torch.no_grad()
    def fill(self, value: float) -> None:
        """Gives the tensors one value, which they keep in training."""
        self.assign(torch.full_like(self.value(), value))
        for _, parameter in self.parameters():
            self._freeze(parameter)

    def _freeze(self, tensor: torch.Tensor) -> None:
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
            self.frozen[id(tensor)] = tensor
            tensor.requires_grad_(False)

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
        stored = values[VARIABLE_VALUE]
        for variable in (self, *(variable for variable, _ in self.constants)):
            variable._check_takes_values()
        live, name = self.value(), self.torch_name(self.array.pieces[0])
        if not isinstance(stored, torch.Tensor):
            raise MismatchError(f"{name} is {live.dtype}, but Keras's {self.readable} is text.")
        if stored.shape != live.shape:
            raise MismatchError(
                f"{name} is {live.dtype} of shape {list(live.shape)} in Keras's layout, but Keras's "
                f"{self.readable} is {stored.dtype} of shape {list(stored.shape)}: the shapes differ. Make the module "
                "of the same sizes, or map it to another layer."
            )
        dtypes = {self.torch_name(piece): self.tensor(piece.name).dtype for piece in self.array.pieces}
        for own_name, dtype in dtypes.items():
            if dtype != stored.dtype:
                raise MismatchError(
                    f"{own_name} is {dtype} of shape {list(live.shape)} in Keras's layout, but Keras's {self.readable} "
                    f"is {stored.dtype} of shape {list(stored.shape)}; convert the module first, to({stored.dtype})."
                )
        return Prepared(lambda: self.assign(stored))

    def _check_takes_values(self) -> None:
        for name in (*(piece.name for piece in self.array.pieces), *self.array.merged):
            tensor = self.tensor(name)
            reason = obstacle(tensor, False)
            if tensor.is_inference() and not torch.is_inference_mode_enabled():
                reason = "it was made in inference mode, outside of which it cannot be changed; make the module anew"
            if reason is not None:
                raise MismatchError(f"{self.torch_name(Piece(name))} takes no values: {reason}.")
