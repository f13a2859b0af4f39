"""Convolutions. Padding, strides and dilation are not stored: the module has to have Keras's."""

from __future__ import annotations

from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from torch_trackckpt.interop.keras.arrays import KerasArray, Piece
from torch_trackckpt.interop.keras.registry import LayerForm, StoredShapes
from torch_trackckpt.interop.keras.transforms import channels_last, depthwise_kernel

__all__ = ["convolution", "transposed_convolution"]


def convolution(module: _ConvNd, stored: StoredShapes | None) -> LayerForm | None:
    """A Conv, or a DepthwiseConv where each channel is a group of its own and Keras has no such Conv stored."""
    outputs, inputs, *window = module.weight.shape
    dimensions = len(window)
    # Keras 2 has a name of its own for the kernel of a DepthwiseConv.
    name = "depthwise_kernel" if stored is not None and "depthwise_kernel" in stored else "kernel"
    plain = KerasArray((Piece("weight"),), (*window, inputs, outputs), channels_last(dimensions))
    if module.groups == 1 or module.groups != module.in_channels or dimensions == 3:
        return LayerForm(f"Conv{dimensions}D", {name: plain, **_bias(module)})
    if stored is not None and stored.get("kernel") == plain.shape:
        return LayerForm(f"Conv{dimensions}D", {"kernel": plain, **_bias(module)})
    multiplier = outputs // module.groups
    kernel = KerasArray(
        (Piece("weight"),),
        (*window, module.groups, multiplier),
        depthwise_kernel(dimensions, module.groups, multiplier),
    )
    return LayerForm(f"DepthwiseConv{dimensions}D", {name: kernel, **_bias(module)})


def transposed_convolution(module: _ConvTransposeNd, stored: StoredShapes | None) -> LayerForm | None:
    """A ConvTranspose; Keras's kernel has the outputs before the inputs there, and nothing is flipped."""
    inputs, outputs, *window = module.weight.shape
    name = f"Conv{len(window)}DTranspose"
    if module.groups != 1:
        return LayerForm(
            name, {}, refused=f"{name} has no groups, and the module has {module.groups}; make one for each group"
        )
    kernel = KerasArray((Piece("weight"),), (*window, outputs, inputs), channels_last(len(window)))
    return LayerForm(name, {"kernel": kernel, **_bias(module)})


def _bias(module: _ConvNd) -> dict[str, KerasArray]:
    if module.bias is None:
        return {}
    return {"bias": KerasArray((Piece("bias"),), tuple(module.bias.shape), absent=0.0)}
