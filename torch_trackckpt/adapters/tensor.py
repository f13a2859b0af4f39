"""Tensors as nodes.

An ordinary tensor is a leaf, and so is one that several processes have between them (``DTensor``). Any other subclass
that keeps its values in other tensors (quantised weights, say) is a node with these as children:

    <tensor>                 {"kind": class name, "context": {name: text}}: what the inner tensors mean
    <tensor>/<inner name>    one inner tensor
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torch_trackckpt.adapters import json_codec
from torch_trackckpt.adapters.registry import Adapter, adapter_for, register_adapter
from torch_trackckpt.adapters.state_node import state_bytes
from torch_trackckpt.distributed.dtensor import is_dtensor
from torch_trackckpt.errors import DataLossError, MismatchError, UnsupportedValueError
from torch_trackckpt.trackable import PYTHON_STATE, VARIABLE_VALUE, Prepared, Resolve, Value

__all__ = ["SubclassTensorAdapter", "TensorAdapter", "is_made_of_tensors", "leaf_types"]


class TensorAdapter(Adapter):
    """A parameter, buffer or tensor: a leaf that is restored in place."""

    def _attribute_names(self) -> tuple[str, ...]:
        return (VARIABLE_VALUE,)

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        if is_lazy(self.adapted):
            raise UnsupportedValueError(
                "the parameter is not initialised yet and has no value to save; run one forward pass first."
            )
        return {VARIABLE_VALUE: self.adapted}

    def _restore_destinations(self) -> Mapping[str, torch.Tensor]:
        return {VARIABLE_VALUE: self.adapted}


class ExpandedTensorAdapter(TensorAdapter):
    """A tensor several of whose elements share one place in memory: stored values have to agree wherever they do."""

    def _restore_destinations(self) -> Mapping[str, torch.Tensor]:
        return {}

    def _prepare_restore(self, values: Mapping[str, Value], resolve: Resolve) -> Prepared:
        stored, live = values[VARIABLE_VALUE], self.adapted
        if not isinstance(stored, torch.Tensor) or (stored.dtype, stored.shape) != (live.dtype, live.shape):
            found = f"{stored.dtype} of shape {list(stored.shape)}" if isinstance(stored, torch.Tensor) else "text"
            raise MismatchError(f"the tensor here is {live.dtype} of shape {list(live.shape)}, but {found} is stored.")
        places = _places(live)
        once = stored[tuple(slice(size) for size in places.shape)]
        # What would be left of the values in memory of this layout.
        left = torch.empty_strided(places.shape, places.stride(), dtype=stored.dtype).copy_(once)
        if not _is_same(stored, left.expand_as(stored)):
            raise MismatchError(
                "the tensor here is expanded or overlaps itself, so that several of its elements share one place in "
                "memory, but the stored values differ from each other there; clone() it first."
            )

        def assign() -> None:
            with torch.inference_mode() if live.is_inference() else torch.no_grad():
                places.copy_(once)

        return Prepared(assign)


def _places(tensor: torch.Tensor) -> torch.Tensor:
    """Each place in memory of an expanded tensor once; of windows that overlap, all elements."""
    places = tensor.detach()
    for dim, (stride, size) in enumerate(zip(tensor.stride(), tensor.shape, strict=True)):
        if stride == 0 and size > 1:
            places = places.narrow(dim, 0, 1)
    return places


def _is_same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal bit for bit, so that NaN equals itself."""
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right)))


class SubclassTensorAdapter(TensorAdapter):
    """A tensor that keeps its values in other tensors, which are restored in place."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(tensor)
        names, self._context = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        self._names: tuple[str, ...] = tuple(names)

    def _trackable_children(self) -> Mapping[str, object]:
        return {name: getattr(self.adapted, name) for name in self._names}

    def _attribute_names(self) -> tuple[str, ...]:
        return (PYTHON_STATE,)

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        text, _ = json_codec.encode(self._meaning())
        return {PYTHON_STATE: text}

    def _meaning(self) -> dict[str, Any]:
        """What has to be equal for the inner tensors to mean the same. It is only ever compared, so text will do."""
        context = self._context if isinstance(self._context, Mapping) else {"context": self._context}
        meaning = {str(name): repr(value) for name, value in context.items()}
        for name, text in meaning.items():
            # The default representation of an object holds its address.
            if " at 0x" in text:
                raise UnsupportedValueError(
                    f"the {type(self.adapted).__name__} depends on {name} = {text}, which cannot be compared with that "
                    "of another process; register an adapter for it (torch_trackckpt.register_adapter)."
                )
        return {"kind": type(self.adapted).__name__, "shape": list(self.adapted.shape), "context": meaning}

    def _restore_destinations(self) -> Mapping[str, torch.Tensor]:
        return {}

    def _prepare_restore(self, values: Mapping[str, Value], resolve: Resolve) -> Prepared:
        stored, live = json_codec.decode(state_bytes(values), {}), self._meaning()
        if not isinstance(stored, dict) or stored.keys() != live.keys() or not isinstance(stored["context"], dict):
            raise DataLossError("What is stored of a tensor's subclass does not have the expected form.")
        mine, theirs = _flat(live), _flat(stored)
        for name in {**mine, **theirs}:
            if mine.get(name) != theirs.get(name):
                raise MismatchError(
                    f"the {name} of the {type(self.adapted).__name__} is {mine.get(name)} here, but {theirs.get(name)} "
                    "in the checkpoint; quantise the live model as the saved one was."
                )
        return Prepared(lambda: None)


def _flat(meaning: dict[str, Any]) -> dict[str, Any]:
    return {"kind": meaning["kind"], "shape": meaning["shape"], **meaning["context"]}


def _adapt_tensor(tensor: torch.Tensor) -> TensorAdapter:
    if is_dtensor(tensor):
        return TensorAdapter(tensor)
    if is_made_of_tensors(tensor):
        return SubclassTensorAdapter(tensor)
    return ExpandedTensorAdapter(tensor) if _may_overlap(tensor) else TensorAdapter(tensor)


def is_made_of_tensors(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of a subclass that keeps its values in other tensors, all of which are here."""
    if type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__:
        return False
    is_strided = not tensor.is_nested and tensor.layout is torch.strided
    # The parts of a distributed tensor lie in several processes.
    return is_strided and not is_dtensor(tensor) and is_traceable_wrapper_subclass(tensor)


def _may_overlap(tensor: torch.Tensor) -> bool:
    """Whether several elements may share one place in memory: some step is not beyond all smaller ones together."""
    if is_lazy(tensor) or tensor.layout is not torch.strided or tensor.is_nested or tensor.is_contiguous():
        return False
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def leaf_types() -> tuple[type, ...]:
    """The classes whose objects are ordinary tensors for certain, unless somebody has adapters of his own for them."""
    return tuple(kind for kind in (torch.nn.Parameter, torch.Tensor) if adapter_for(kind) is _adapt_tensor)


register_adapter(torch.Tensor, _adapt_tensor)
