"""Tensors of which this process has a part: each box of the part is a row of its own, behind those of whole tensors.

A row is a view of the local tensor. Where it lies in one piece in plain memory, the file's bytes go straight there,
like those of any other row; all others are read through staging tensors, a bounded number of bytes at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch

from torch_trackckpt.bundle.memory import memory_obstacle
from torch_trackckpt.bundle.reader import CheckpointReader
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.distributed.dtensor import is_dtensor, parts_of
from torch_trackckpt.errors import UnsupportedValueError

__all__ = ["BoxRequest", "RowsWithBoxes", "copy_whole", "obstacle_of_parts", "read_boxes"]


@dataclasses.dataclass(frozen=True)
class BoxRequest:
    """A box of a stored tensor, and where it goes."""

    key: str
    part: TensorSlice
    tensor: torch.Tensor


class RowsWithBoxes:
    """Keys and tensors in columns, with further rows for the boxes of those tensors that lie in several processes.

    Args:
        keys: what each value is stored under.
        tensors: where it goes.
    """

    def __init__(self, keys: Sequence[str], tensors: Sequence[torch.Tensor]) -> None:
        self.keys = list(keys)
        self.tensors = list(tensors)
        self.parts: dict[int, TensorSlice] = {}
        """By row, which part of the stored tensor it takes."""
        self.divided = [row for row, tensor in enumerate(tensors) if is_dtensor(tensor)]
        """The rows of tensors that have rows for their boxes, and take nothing themselves."""
        self._clear: set[int] = set()
        self._owners: dict[int, int] = {}
        for owner in self.divided:
            parts, obstacle = _parts_to_read(tensors[owner])
            if obstacle is None:
                self._clear.add(owner)
            for part, view in parts:
                row = len(self.keys)
                self.keys.append(keys[owner])
                self.tensors.append(view)
                self.parts[row] = part
                self._owners[row] = owner

    @property
    def boxes(self) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
        """What a native plan has to know of them."""
        return [(row, part.full_shape, part.offset) for row, part in self.parts.items()]

    def owner(self, row: int) -> int:
        """The row of the tensor that a row is a box of; any other row itself."""
        return self._owners.get(row, row)

    def is_clear(self, row: int) -> bool:
        """Whether it is known that a row can take values: the parts of its tensor were found."""
        return row in self._clear

    def moved(self) -> list[int]:
        """The rows of those tensors whose parts lie elsewhere than before, or are others."""
        before: dict[int, list[object]] = {owner: [] for owner in self.divided}
        for row, owner in self._owners.items():
            before[owner].append(_place(self.parts[row], self.tensors[row]))
        return [
            owner
            for owner, places in before.items()
            if places != [_place(*part) for part in _parts_to_read(self.tensors[owner])[0]]
        ]


def _parts_to_read(tensor: torch.Tensor) -> tuple[list[tuple[TensorSlice, torch.Tensor]], str | None]:
    """The parts that have elements; or none, and why the tensor cannot take values."""
    if not is_dtensor(tensor) or tensor.is_meta:
        return [], memory_obstacle(tensor)
    try:
        parts = [(part, view) for part, view in parts_of(tensor) if view.numel()]
    except UnsupportedValueError as error:
        return [], str(error)
    for _, view in parts:
        if obstacle := memory_obstacle(view):
            return [], obstacle
        if any(stride == 0 and size > 1 for stride, size in zip(view.stride(), view.shape, strict=True)):
            return [], (
                "the local tensor is expanded: several of its elements share one place in memory; clone() it first."
            )
    return parts, None


def _place(part: TensorSlice, view: torch.Tensor) -> object:
    return part, view.data_ptr(), view.dtype, view.device, view.stride()


def obstacle_of_parts(tensor: torch.Tensor) -> str | None:
    """Why the parts of a tensor cannot take values, if they cannot."""
    return _parts_to_read(tensor)[1]


def read_boxes(
    requests: Sequence[BoxRequest], reader: CheckpointReader, num_threads: int, limit: int
) -> Iterator[list[tuple[int, int]]]:
    """Reads boxes through staging tensors.

    Args:
        requests: the boxes.
        reader: the checkpoint.
        num_threads: how many read at once.
        limit: how many bytes are staged at once, at most.

    Yields:
        After each batch, which requests have got bytes, and how many.

    Raises:
        DataLossError: damage, where there are checksums that can tell.
    """
    pieces = [
        (index, request.key, part, view)
        for index, request in enumerate(requests)
        for part, view in _cut(request.part, request.tensor, limit)
    ]
    for batch in _batches([view.nbytes for *_, view in pieces], limit):
        here = [pieces[i] for i in batch]
        # The device is named because the caller may be inside `with torch.device(...)`.
        staged = [torch.empty(view.shape, dtype=view.dtype, device="cpu") for *_, view in here]
        reader._read_boxes(
            [(key, part, tensor) for (_, key, part, _), tensor in zip(here, staged, strict=True)], num_threads
        )
        for (*_, view), tensor in zip(here, staged, strict=True):
            with torch.inference_mode() if view.is_inference() else torch.no_grad():
                view.copy_(tensor)
        yield [(index, view.nbytes) for index, _, _, view in here]


def _cut(part: TensorSlice, view: torch.Tensor, limit: int) -> Iterator[tuple[TensorSlice, torch.Tensor]]:
    """Boxes of at most so many bytes that make up a part, in its order, each with its view."""
    if view.nbytes <= limit or view.numel() == 1:
        yield part, view
        return
    dim = next(dim for dim, size in enumerate(view.shape) if size > 1)
    step = max(view.shape[dim] * limit // view.nbytes, 1)
    for start in range(0, view.shape[dim], step):
        length = min(step, view.shape[dim] - start)
        offset, shape = list(part.offset), list(part.shape)
        offset[dim], shape[dim] = offset[dim] + start, length
        box = TensorSlice.box(part.full_shape, tuple(offset), tuple(shape))
        yield from _cut(box, view.narrow(dim, start, length), limit)


def _batches(sizes: list[int], limit: int) -> Iterator[list[int]]:
    """Neighbours of at most so many bytes together, or single ones that have more."""
    batch: list[int] = []
    nbytes = 0
    for index, size in enumerate(sizes):
        if batch and nbytes + size > limit:
            yield batch
            batch, nbytes = [], 0
        batch.append(index)
        nbytes += size
    if batch:
        yield batch


def copy_whole(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Gives a tensor a value that is here as a whole."""
    parts = parts_of(tensor) if is_dtensor(tensor) else [(TensorSlice.whole(tuple(tensor.shape)), tensor)]
    for part, view in parts:
        index = tuple(slice(start, start + size) for start, size in zip(part.offset, part.shape, strict=True))
        with torch.inference_mode() if view.is_inference() else torch.no_grad():
            view.copy_(value[index])
