"""Tensors that are views of a file: no copy, and nothing is read before it is used."""

from __future__ import annotations

import math
import mmap

import torch

__all__ = ["map_tensor"]


def map_tensor(path: str, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A CPU tensor whose memory is a part of a file. The part lies inside the file and is aligned to the dtype.

    Writing to the tensor changes this process's own copy of the touched pages, never the file.
    """
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype, device="cpu")
    begin = offset - offset % mmap.ALLOCATIONGRANULARITY
    length = offset - begin + count * dtype.itemsize
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=begin)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset - begin).reshape(shape)
