"""How the arrays of Keras's layers lie in those of torch's modules.

Keras multiplies from the right, with the channels last: a kernel has its inputs before its outputs, and what is slid
over the input before both. Torch has outputs first. All here only moves numbers, so that each way is the exact inverse
of the other; what can be a view of the same memory is one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from torch_trackckpt.interop.keras.arrays import AS_IS, Transform

__all__ = [
    "TRANSPOSED",
    "channels_last",
    "depthwise_kernel",
    "flattened_kernel",
    "gate_biases",
    "gates_transposed",
    "kernel_after_flatten",
    "permuted",
    "reshaped",
]

TRANSPOSED = Transform("transposed", lambda pieces: pieces[0].T, lambda array: (array.T,))


def reshaped(keras: Sequence[int], torch_shape: Sequence[int]) -> Transform:
    """The same elements in the same order."""
    if tuple(keras) == tuple(torch_shape):
        return AS_IS
    return Transform("reshaped", lambda pieces: pieces[0].reshape(*keras), lambda array: (array.reshape(*torch_shape),))


def permuted(order: Sequence[int]) -> Transform:
    """Axes in another order: axis i of torch's tensor is axis ``order[i]`` of Keras's."""
    back = [list(order).index(axis) for axis in range(len(order))]
    return Transform(
        f"permuted {tuple(order)}", lambda pieces: pieces[0].permute(back), lambda array: (array.permute(*order),)
    )


def channels_last(dimensions: int) -> Transform:
    """Of a kernel that slides over so many dimensions, in and out channels behind them; torch has out and in first."""
    return permuted((dimensions + 1, dimensions, *range(dimensions)))


def flattened_kernel(shape: Sequence[int], inputs: int, outputs: int) -> Transform:
    """Of a kernel with several axes for its inputs or its outputs, such as heads, which torch has as one each."""
    if len(shape) == 2:
        return TRANSPOSED
    return Transform(
        "reshaped, transposed",
        lambda pieces: pieces[0].T.reshape(*shape),
        lambda array: (array.reshape(inputs, outputs).T,),
    )


def kernel_after_flatten(feature_map: Sequence[int], outputs: int) -> Transform:
    """Of a dense layer behind a flattened feature map: its inputs in the order of Keras, where channels vary fastest,
    or of torch, where they vary slowest.

    Args:
        feature_map: the shape as Keras has it, channels last.
        outputs: units of the layer.
    """
    *space, channels = feature_map
    last = len(feature_map)

    def to_keras(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        # (out, C, H, W) -> (H, W, C, out)
        weight = pieces[0].reshape(outputs, channels, *space)
        return weight.permute(*range(2, last + 1), 1, 0).reshape(math.prod(feature_map), outputs)

    def to_torch(array: torch.Tensor) -> Sequence[torch.Tensor]:
        kernel = array.reshape(*feature_map, outputs)
        return (kernel.permute(last, last - 1, *range(last - 1)).reshape(outputs, math.prod(feature_map)),)

    return Transform("inputs from HWC to CHW, transposed", to_keras, to_torch)


def depthwise_kernel(dimensions: int, channels: int, multiplier: int) -> Transform:
    """Of a depthwise convolution: Keras has the channels and their multiples as two axes, torch as one with groups."""
    space = range(dimensions)

    def to_keras(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        weight = pieces[0].reshape(channels, multiplier, *pieces[0].shape[2:])
        return weight.permute(*(axis + 2 for axis in space), 0, 1)

    def to_torch(array: torch.Tensor) -> Sequence[torch.Tensor]:
        moved = array.permute(dimensions, dimensions + 1, *space)
        return (moved.reshape(channels * multiplier, 1, *moved.shape[2:]),)

    return Transform(f"permuted {(dimensions, dimensions + 1, *space)}, channels joined", to_keras, to_torch)


def _first_two_swapped(tensor: torch.Tensor) -> torch.Tensor:
    """Three blocks of rows; the first two change places."""
    first, second, third = tensor.chunk(3)
    return torch.cat([second, first, third])


def gates_transposed() -> Transform:
    """Of a GRU: Keras has the gates z, r, h beside one another, torch r, z, n below one another."""
    return Transform(
        "transposed, gates zrh to rzn",
        lambda pieces: _first_two_swapped(pieces[0]).T,
        lambda array: (_first_two_swapped(array.T),),
    )


def gate_biases() -> Transform:
    """Of a GRU: Keras has both biases as two rows."""
    return Transform(
        "rows apart, gates zrh to rzn",
        lambda pieces: torch.stack([_first_two_swapped(piece) for piece in pieces]),
        lambda array: (_first_two_swapped(array[0]), _first_two_swapped(array[1])),
    )
