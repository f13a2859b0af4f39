"""Which tensors have memory that files can be written from and read into, and how others get there."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch

__all__ = ["PLAIN_TYPES", "dtensor_types", "is_dtensor", "memory_obstacle", "row_major", "takes_file_bytes"]

PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)
"""Tensors of other classes may have memory that is not what they mean."""


def is_dtensor(value: object) -> bool:
    """Whether a value is torch's ``DTensor``, whose values lie in several processes."""
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and isinstance(value, kind)


def dtensor_types(types: Iterable[type]) -> set[type]:
    """Those of very many classes that are ``DTensor`` or derived from it."""
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return set() if kind is None else {cls for cls in set(types) if issubclass(cls, kind)}


def memory_obstacle(tensor: torch.Tensor) -> str | None:
    """Why a tensor has no memory of its own that holds its values, if that is so."""
    if tensor.is_meta:
        return "the tensor is on the meta device and has no values; materialise it first (Module.to_empty)."
    if tensor.is_nested or tensor.layout is not torch.strided:
        kind = "nested" if tensor.is_nested else f"{tensor.layout}"
        return f"a {kind} tensor cannot be stored; convert it with to_dense() first."
    if tensor.is_quantized:
        return "a quantized tensor cannot be stored; save its int_repr(), scale and zero point."
    if is_dtensor(tensor):
        return "only a part of the DTensor lies in this process; its local tensors are what can be stored."
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return (
            f"a tensor of the subclass {type(tensor).__name__} does not hold its values itself; register an adapter "
            "for it (torch_trackckpt.register_adapter)."
        )
    if tensor._is_zerotensor() or (tensor.numel() and not _is_inside_storage(tensor)):
        return "the tensor's memory has been released; give it values first."
    return None


def _is_inside_storage(tensor: torch.Tensor) -> bool:
    """Whether the memory is there. The address of a view is not 0 when its storage was released, but the offset."""
    if tensor.data_ptr() == 0:
        return False
    reach = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    end = (tensor.storage_offset() + reach + 1) * tensor.element_size()
    return end <= tensor.untyped_storage().nbytes()


def row_major(tensor: torch.Tensor) -> torch.Tensor:
    """The values in contiguous CPU memory: the tensor itself, where they lie so already."""
    if takes_file_bytes(tensor):
        return tensor
    # A conjugate or negative view has its sign in a flag, not in its memory.
    return tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()


def takes_file_bytes(tensor: torch.Tensor) -> bool:
    """Whether the tensor's memory is, byte for byte, what a file holds of it."""
    return tensor.is_cpu and tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())
