"""Tensors that are views of a file: no copy, and nothing is read before it is used."""

from __future__ import annotations

import math

import torch

from torch_trackckpt import _native

__all__ = ["map_tensor"]


def map_tensor(path: str, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A CPU tensor whose memory is a part of a file. The part has elements, and is aligned to the dtype.

    Writing to the tensor changes this process's own copy of the touched pages, never the file.
    """
    memory = _native.map_file(path, offset, math.prod(shape) * dtype.itemsize)
    return torch.from_numpy(memory).view(dtype).reshape(shape)
