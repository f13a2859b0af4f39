"""Layers that multiply by a matrix, or look up its rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import nn

from torch_trackckpt.interop.keras.arrays import KerasArray, Piece
from torch_trackckpt.interop.keras.registry import LayerForm, Rule, StoredShapes
from torch_trackckpt.interop.keras.transforms import flattened_kernel, kernel_after_flatten, reshaped

__all__ = ["dense_after_flatten", "embedding", "linear", "linear_arrays"]

_LORA = (
    "the layer computes with kernel + (alpha / rank) * lora_kernel_a @ lora_kernel_b, and alpha is not stored. Merge "
    "them in Keras before saving, or register a rule for a module that has the two factors as parameters"
)


def linear_arrays(
    module: nn.Linear, kernel: Sequence[int] | None = None, bias: Sequence[int] | None = None, prefix: str = ""
) -> dict[str, KerasArray]:
    """Kernel and bias of a `torch.nn.Linear`, in shapes that Keras may have them in.

    Args:
        module: the layer.
        kernel: with any number of axes, as long as some of the first make up the inputs and the rest the outputs.
        bias: with any number of axes.
        prefix: of the names of the module's tensors.
    """
    outputs, inputs = module.weight.shape
    if kernel is None or (inputs, outputs) not in _readings(kernel):
        kernel = (inputs, outputs)
    if bias is None or math.prod(bias) != outputs:
        bias = (outputs,)
    arrays = {
        "kernel": KerasArray((Piece(f"{prefix}weight"),), tuple(kernel), flattened_kernel(kernel, inputs, outputs))
    }
    if module.bias is not None:
        arrays["bias"] = KerasArray((Piece(f"{prefix}bias"),), tuple(bias), reshaped(bias, (outputs,)), absent=0.0)
    return arrays


def _readings(kernel: Sequence[int]) -> set[tuple[int, int]]:
    """How a kernel can be a matrix: its first axes are inputs, and those behind them outputs."""
    before = itertools.accumulate(kernel, lambda size, axis: size * axis, initial=1)
    return {(inputs, math.prod(kernel[axes:])) for axes, inputs in enumerate(before)}


def linear(module: nn.Linear, stored: StoredShapes | None) -> LayerForm | None:
    """A Dense; an EinsumDense where the stored kernel has more axes; a 1x1 convolution is the same again."""
    if stored is None:
        return LayerForm("Dense", linear_arrays(module))
    if "lora_kernel_a" in stored:
        return LayerForm("Dense", {}, refused=_LORA)
    arrays = linear_arrays(module, stored.get("kernel"), stored.get("bias"))
    return LayerForm("Dense" if len(arrays["kernel"].shape) == 2 else "EinsumDense", arrays)


def dense_after_flatten(feature_map: Sequence[int]) -> Rule:
    """A rule for the `torch.nn.Linear` that follows a flattened feature map.

    Keras flattens height, width, channels, and torch channels, height, width, which no shape can tell.

    Args:
        feature_map: what is flattened, as Keras has it: ``(height, width, channels)``; ``(length, channels)`` for
            one dimension.

    Raises:
        ValueError: by the rule; the module does not have that many inputs.
    """

    def rule(module: nn.Linear, stored: StoredShapes | None) -> LayerForm | None:
        outputs, inputs = module.weight.shape
        if math.prod(feature_map) != inputs:
            raise ValueError(
                f"A feature map of shape {list(feature_map)} has {math.prod(feature_map)} elements, but the Linear "
                f"behind it has {inputs} inputs. Give the shape that Keras flattens, channels last."
            )
        form = linear(module, stored)
        if form is None or form.refused:
            return form
        kernel = KerasArray((Piece("weight"),), (inputs, outputs), kernel_after_flatten(feature_map, outputs))
        return LayerForm(form.keras, {**form.variables, "kernel": kernel})

    return rule


def embedding(module: nn.Embedding | nn.EmbeddingBag, stored: StoredShapes | None) -> LayerForm | None:
    """An Embedding."""
    return LayerForm("Embedding", {"embeddings": KerasArray((Piece("weight"),), tuple(module.weight.shape))})
