"""Sonnet's modules: Keras's layers by other names, except for the averages of its batch normalization.

Sonnet lists variables by the names of their attributes, sorted, and so its optimizers do; so are they here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from torch_trackckpt.interop.keras.arrays import KerasArray, Piece
from torch_trackckpt.interop.keras.registry import LayerForm, Rule, StoredShapes
from torch_trackckpt.interop.keras.transforms import TRANSPOSED, reshaped

__all__ = ["sonnet_form"]

_KERNEL = {"b": "bias", "w": "kernel"}
_SCALED = {"offset": "beta", "scale": "gamma"}

# From a Keras class to Sonnet's, and from Sonnet's variables to Keras's.
_MODULES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "Dense": ("Linear", _KERNEL),
    "Conv1D": ("Conv1D", _KERNEL),
    "Conv2D": ("Conv2D", _KERNEL),
    "Conv3D": ("Conv3D", _KERNEL),
    "Conv1DTranspose": ("Conv1DTranspose", _KERNEL),
    "Conv2DTranspose": ("Conv2DTranspose", _KERNEL),
    "Conv3DTranspose": ("Conv3DTranspose", _KERNEL),
    "DepthwiseConv2D": ("DepthwiseConv2D", _KERNEL),
    "Embedding": ("Embed", {"embeddings": "embeddings"}),
    "LayerNormalization": ("LayerNorm", _SCALED),
    "GroupNormalization": ("GroupNorm", _SCALED),
    "BatchNormalization": (
        "BatchNorm",
        {**_SCALED, "moving_mean/average": "moving_mean", "moving_variance/average": "moving_variance"},
    ),
    "LSTM": ("LSTM", {"w_h": "cell/recurrent_kernel", "w_i": "cell/kernel", "b": "cell/bias"}),
    "LSTMCell": ("LSTM", {"w_h": "recurrent_kernel", "w_i": "kernel", "b": "bias"}),
    "SimpleRNN": (
        "VanillaRNN",
        {"b": "cell/bias", "hidden_to_hidden/w": "cell/recurrent_kernel", "input_to_hidden/w": "cell/kernel"},
    ),
    "SimpleRNNCell": (
        "VanillaRNN",
        {"b": "bias", "hidden_to_hidden/w": "recurrent_kernel", "input_to_hidden/w": "kernel"},
    ),
}

_GRU = (
    "Sonnet's GRU applies its reset gate before the matrix product, and torch's after it; write a cell that does as "
    "Sonnet does"
)

_FOREVER = 2**31
"""Updates after which no decay below 1 - 1e-7 leaves a trace of the beginning."""


def sonnet_form(module: nn.Module, rule: Rule, stored: StoredShapes | None) -> LayerForm | None:
    """A module as Sonnet's, if the names of what is stored are Sonnet's and not Keras's.

    Args:
        module: the module.
        rule: the one by which it is a Keras layer.
        stored: the variables of the saved module; None for what Sonnet would usually have.
    """
    if isinstance(module, nn.LSTM) and module.proj_size and (stored is None or "w_i" in stored):
        return _projected(module)
    form = rule(module, None)
    if form is None:
        return None
    if form.keras in ("GRU", "GRUCell"):
        return LayerForm("GRU", {}, refused=_GRU) if stored is None or "w_i" in stored else None
    if form.keras not in _MODULES:
        return None
    name, names = _MODULES[form.keras]
    if stored is not None and not (set(stored) & set(names)) - set(form.variables):
        return None
    variables = {sonnet: form.variables[keras] for sonnet, keras in names.items() if keras in form.variables}
    renamed = dataclasses.replace(form, keras=name, variables=variables)
    return _batch_norm(module, renamed, stored or {}) if name == "BatchNorm" else renamed


def _projected(module: nn.LSTM) -> LayerForm | None:
    """An LSTM with a projection, which Keras has not."""
    if module.num_layers > 1 or module.bidirectional:
        return None

    def transposed(name: str) -> KerasArray:
        return KerasArray((Piece(name),), tuple(reversed(getattr(module, name).shape)), TRANSPOSED)

    variables = {"w_h": transposed("weight_hh_l0"), "w_i": transposed("weight_ih_l0")}
    if module.bias:
        size = (4 * module.hidden_size,)
        variables["b"] = KerasArray((Piece("bias_ih_l0"),), size, merged=("bias_hh_l0",), absent=0.0)
    return LayerForm("LSTM", {**variables, "projection": transposed("weight_hr_l0")})


def _batch_norm(module: nn.Module, form: LayerForm, stored: StoredShapes) -> LayerForm:
    """Averages have all axes of the input, those besides the channels of size 1.

    Sonnet computes each average from a sum that begins at zero, and corrects for that by the number of updates. Torch
    has no such sum. What is written is that of an average which has forgotten its beginning, so that Sonnet trains on
    from the average that torch has.
    """
    rank = {nn.BatchNorm1d: 2, nn.BatchNorm3d: 5}
    usual = next((axes for kind, axes in rank.items() if isinstance(module, kind)), 4)
    variables = dict(form.variables)
    foreign: dict[str, Callable[[Any], torch.Tensor] | None] = {}
    for average, buffer in (("moving_mean", "running_mean"), ("moving_variance", "running_var")):
        array = form.variables[f"{average}/average"]
        shape = stored.get(f"{average}/average", (1,) * (usual - 1) + array.shape)
        if torch.Size(shape).numel() == array.shape[0]:
            array = KerasArray(array.pieces, tuple(shape), reshaped(shape, array.shape))
        variables[f"{average}/average"] = array
        foreign[f"{average}/counter"] = _many_updates
        foreign[f"{average}/hidden"] = _as_the_average(buffer, array.shape)
    return dataclasses.replace(form, variables=variables, foreign=foreign)


def _many_updates(module: nn.Module) -> torch.Tensor:
    return torch.tensor(_FOREVER, dtype=torch.int64)


def _as_the_average(buffer: str, shape: tuple[int, ...]) -> Callable[[nn.Module], torch.Tensor]:
    return lambda module: module.get_buffer(buffer).reshape(shape)
