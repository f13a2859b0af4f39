"""Recurrent layers. Activations are not stored: torch's are tanh and sigmoid, and Keras 2 once had hard_sigmoid.

Torch adds two biases where Keras has one, except for the GRU, whose candidate needs them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.modules.rnn import RNNCellBase

from torch_trackckpt.interop.keras.arrays import KerasArray, Piece
from torch_trackckpt.interop.keras.registry import LayerForm, Part, Rule, StoredShapes
from torch_trackckpt.interop.keras.transforms import TRANSPOSED, gate_biases, gates_transposed

__all__ = ["recurrent", "recurrent_cell", "recurrent_parts"]

_RESET_BEFORE = (
    "bias of shape [{size}] is that of reset_after=False: that GRU applies its reset gate before the matrix product, "
    "and torch's after it. Train the layer with reset_after=True, or write a cell that does as Keras does"
)
_NO_BIAS_TO_TELL = (
    "exact if the layer has reset_after=True, which is the default; without a bias the checkpoint does not tell"
)
_PROJECTED = "Keras has no projection, and the module has proj_size={size}"
_CELLS_BOTH_WAYS = (
    "Keras runs a stack of cells in one direction from its first to its last; torch joins both directions after each "
    "layer. Make one Bidirectional layer for each"
)


def _cell_arrays(module: nn.RNNBase | RNNCellBase, suffix: str) -> dict[str, KerasArray]:
    """The variables of one Keras cell, of the tensors whose names end so."""
    weights = [getattr(module, f"{name}{suffix}") for name in ("weight_ih", "weight_hh")]
    gru = isinstance(module, nn.GRU | nn.GRUCell)
    transform = gates_transposed() if gru else TRANSPOSED
    arrays = {
        keras: KerasArray((Piece(f"{name}{suffix}"),), (weight.shape[1], weight.shape[0]), transform)
        for keras, name, weight in zip(("kernel", "recurrent_kernel"), ("weight_ih", "weight_hh"), weights, strict=True)
    }
    if not module.bias:
        return arrays
    size = weights[0].shape[0]
    biases = (Piece(f"bias_ih{suffix}"), Piece(f"bias_hh{suffix}"))
    if gru:
        arrays["bias"] = KerasArray(biases, (2, size), gate_biases(), absent=0.0)
    else:
        arrays["bias"] = KerasArray(biases[:1], (size,), merged=(biases[1].name,), absent=0.0)
    return arrays


def _kind(module: nn.RNNBase | RNNCellBase) -> str:
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        return "LSTM"
    return "GRU" if isinstance(module, nn.GRU | nn.GRUCell) else "SimpleRNN"


def _form(
    layer: str, module: nn.RNNBase | RNNCellBase, arrays: Mapping[str, KerasArray], stored: StoredShapes | None
) -> LayerForm:
    """With what the stored shapes say about the kind of GRU."""
    if stored is None or _kind(module) != "GRU":
        return LayerForm(layer, arrays)
    biases = [shape for name, shape in stored.items() if name.rpartition("/")[2] == "bias"]
    if any(len(shape) == 1 for shape in biases):
        return LayerForm(layer, {}, refused=_RESET_BEFORE.format(size=3 * module.hidden_size))
    return LayerForm(layer, arrays, inexact={} if biases else {"": _NO_BIAS_TO_TELL})


def _below(prefix: str, arrays: Mapping[str, KerasArray]) -> dict[str, KerasArray]:
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


def recurrent_cell(module: RNNCellBase, stored: StoredShapes | None) -> LayerForm | None:
    """A cell, or a layer that has one, where the module is called step by step."""
    arrays = _cell_arrays(module, "")
    if stored is not None and "cell/kernel" in stored:
        return _form(_kind(module), module, _below("cell", arrays), stored)
    return _form(f"{_kind(module)}Cell", module, arrays, stored)


def recurrent(module: nn.RNNBase, stored: StoredShapes | None) -> LayerForm | None:
    """An LSTM, GRU or SimpleRNN, or a Bidirectional one. A module of several layers is one RNN of as many cells, if
    there is such a one; usually it is as many layers, see `recurrent_parts`."""
    if module.proj_size:
        return LayerForm(_kind(module), {}, refused=_PROJECTED.format(size=module.proj_size))
    if stored is not None and any("cell/cells/" in name for name in stored):
        return _cells(module, stored)
    return _layer(module, 0, stored) if module.num_layers == 1 else None


def _layer(module: nn.RNNBase, index: int, stored: StoredShapes | None) -> LayerForm:
    """One of a module's layers."""
    forward = _cell_arrays(module, f"_l{index}")
    if not module.bidirectional:
        return _form(_kind(module), module, _below("cell", forward), stored)
    backward = _cell_arrays(module, f"_l{index}_reverse")
    arrays = _below("forward_layer/cell", forward) | _below("backward_layer/cell", backward)
    return _form(f"Bidirectional({_kind(module)})", module, arrays, stored)


def _cells(module: nn.RNNBase, stored: StoredShapes) -> LayerForm:
    """All layers of a module as an RNN of several cells; Keras 3 does not store one."""
    name = f"RNN of {_kind(module)}Cells"
    if module.bidirectional:
        return LayerForm(name, {}, refused=_CELLS_BOTH_WAYS)
    arrays: dict[str, KerasArray] = {}
    for index in range(module.num_layers):
        arrays |= _below(f"cell/cells/{index}", _cell_arrays(module, f"_l{index}"))
    return _form(name, module, arrays, stored)


def recurrent_parts(module: nn.RNNBase) -> Sequence[Part]:
    """A Keras layer for each layer of a module that has several: ``l0``, ``l1``."""
    if module.num_layers == 1 or module.proj_size:
        return ()

    def rule_of(index: int) -> Rule:
        return lambda module, stored: _layer(module, index, stored)

    return [Part(f"l{index}", rule_of(index)) for index in range(module.num_layers)]
