"""Normalization. Epsilon and momentum are not stored: Keras's are 1e-3 and 0.99 where nothing is said, and its momentum
is 1 minus torch's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from torch_trackckpt.interop.keras.arrays import AS_IS, KerasArray, Piece
from torch_trackckpt.interop.keras.registry import LayerForm, StoredShapes
from torch_trackckpt.interop.keras.transforms import permuted, reshaped

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "prelu", "rms_norm"]

_BIASED = (
    "the same in inference; trained on, torch counts the batch's variance as that of a sample (n / (n - 1)), and "
    "Keras 3 does not (Keras 2 does for images). KerasBatchNorm1d and KerasBatchNorm2d are trained as in Keras 3"
)


def batch_norm(module: _BatchNorm, stored: StoredShapes | None) -> LayerForm | None:
    """A BatchNormalization, whatever the rank."""
    if module.running_mean is None or module.running_var is None:
        return LayerForm(
            "BatchNormalization",
            {},
            refused="BatchNormalization keeps moving statistics, and the module has track_running_stats=False",
        )
    size = (module.num_features,)
    variables = {
        **_scale_and_offset(module, size),
        "moving_mean": KerasArray((Piece("running_mean"),), size),
        "moving_variance": KerasArray((Piece("running_var"),), size),
    }
    return LayerForm(
        "BatchNormalization",
        variables,
        left_alone=("num_batches_tracked",),
        inexact={} if getattr(module, "biased_running_var", False) else {"running_var": _BIASED},
    )


def layer_norm(module: nn.LayerNorm, stored: StoredShapes | None) -> LayerForm | None:
    """A LayerNormalization over the last axis, or over several: with the module's order of axes or channels last."""
    shape = tuple(module.normalized_shape)
    inexact: dict[str, str] = {}
    order = tuple(range(len(shape)))
    if len(shape) > 1 and stored is not None:
        channels_last = (*shape[1:], shape[0])
        if stored.get("gamma", stored.get("beta")) == channels_last:
            if shape == channels_last:
                inexact["weight"] = (
                    f"its axes {list(shape)} are all of one size: they were taken to be in Keras's order, not channels "
                    f"first"
                )
            else:
                order = (len(shape) - 1, *range(len(shape) - 1))
    if stored is not None and set(stored) == {"gamma"}:
        inexact["weight"] = (
            "if the layer has rms_scaling=True, its outputs are others: x * rsqrt(variance + epsilon) * gamma, without "
            "subtracting the mean; the checkpoint does not tell. With center=False all is exact"
        )
    return LayerForm("LayerNormalization", _scale_and_offset(module, shape, order), inexact=inexact)


def group_norm(module: nn.GroupNorm, stored: StoredShapes | None) -> LayerForm | None:
    """A GroupNormalization with as many groups."""
    return LayerForm("GroupNormalization", _scale_and_offset(module, (module.num_channels,)))


def instance_norm(module: _InstanceNorm, stored: StoredShapes | None) -> LayerForm | None:
    """A GroupNormalization with groups=-1, each channel a group."""
    if module.track_running_stats:
        return LayerForm(
            "GroupNormalization",
            {},
            refused="GroupNormalization keeps no statistics; make the module with track_running_stats=False",
        )
    return LayerForm("GroupNormalization", _scale_and_offset(module, (module.num_features,)))


def rms_norm(module: nn.RMSNorm, stored: StoredShapes | None) -> LayerForm | None:
    """An RMSNormalization; Keras's epsilon is 1e-6."""
    if stored is not None and set(stored) == {"gamma"}:
        return LayerForm(
            "LayerNormalization",
            {},
            refused="LayerNormalization(rms_scaling=True) divides by the deviation around the mean, RMSNorm around "
            "zero; write a module that computes x * rsqrt(x.var(-1, correction=0) + epsilon) * gamma",
        )
    if not module.elementwise_affine:
        return LayerForm("RMSNormalization", {})
    scale = KerasArray((Piece("weight"),), tuple(module.weight.shape), absent=1.0)
    return LayerForm("RMSNormalization", {"scale": scale})


def prelu(module: nn.PReLU, stored: StoredShapes | None) -> LayerForm | None:
    """A PReLU with one slope for each channel: Keras's shared_axes become axes of size 1."""
    size = module.num_parameters
    shape = (size,) if stored is None else tuple(stored.get("alpha", (size,)))
    if math.prod(shape) != size:
        if shape[-1] == size:
            return LayerForm(
                "PReLU",
                {},
                refused=f"alpha of shape {list(shape)} has a slope for each position, and torch's PReLU one for each "
                f"channel; make the layer with shared_axes, or register a rule for a module that has them all",
            )
        shape = (size,)
    return LayerForm("PReLU", {"alpha": KerasArray((Piece("weight"),), shape, reshaped(shape, (size,)))})


def _scale_and_offset(
    module: nn.Module, shape: Sequence[int], order: Sequence[int] | None = None
) -> Mapping[str, KerasArray]:
    """Gamma and beta, those that the module has; torch's axis i is Keras's ``order[i]``."""
    transform = AS_IS
    if order is not None and list(order) != sorted(order):
        transform = permuted(order)
        shape = [shape[list(order).index(axis)] for axis in range(len(shape))]
    named = (("gamma", "weight", 1.0), ("beta", "bias", 0.0))
    return {
        keras: KerasArray((Piece(name),), tuple(shape), transform, absent=absent)
        for keras, name, absent in named
        if getattr(module, name, None) is not None
    }
