"""Tensors that several processes have between them (torch's ``DTensor``): which boxes of the whole lie in this one,
and which other processes hold the same.

Dimensions of a tensor are cut apart, each by itself: what a process has of one is a list of runs, and what it has of
the tensor is the product of these lists. A placement for a dimension of the mesh cuts what those before it have left:

    Shard            into pieces as ``torch.chunk`` makes them: all of one size, but the last ones shorter or empty
    _StridedShard    into ``split_factor`` such pieces first, and each of them as above; a process has a share of each

The second is how FSDP2 describes what tensor parallelism has cut before: from right to left. Where split factors tell
of such an order, the pieces are those of the cuts in that order, which FSDP2 has made. The other reading gives the same
unless a cut leaves a rest; then some process has a local tensor of another shape, and refuses it.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch

from torch_trackckpt.bundle.memory import is_dtensor as _is_dtensor
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.errors import UnsupportedValueError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = [
    "LocalBox",
    "boxes_at",
    "copies_of",
    "is_dtensor",
    "layouts_of",
    "local_boxes_of",
    "local_of",
    "memory_of",
    "parts_of",
    "ranks_of",
    "with_memory",
]

_MEMORY = operator.attrgetter("_local_tensor")
_LAYOUT = tuple(map(operator.attrgetter, ("_spec.mesh", "_spec.placements", "_spec.tensor_meta")))

Run = tuple[int, int]
"""Where it begins in a dimension, and how long it is."""


@dataclasses.dataclass(frozen=True)
class LocalBox:
    """A box of the whole tensor, and where it lies in the local one."""

    box: TensorSlice
    offset: tuple[int, ...]

    def view(self, local: torch.Tensor) -> torch.Tensor:
        """The part of the local tensor that has the values of the box."""
        for dim, (start, length) in enumerate(zip(self.offset, self.box.shape, strict=True)):
            if length != local.shape[dim]:
                local = local.narrow(dim, start, length)
        return local


@dataclasses.dataclass(frozen=True)
class _Cut:
    """How one dimension of a tensor is cut along one dimension of the mesh."""

    num_chunks: int
    index: int
    """Which of them this process has."""
    split_factor: int


def is_dtensor(value: object) -> TypeGuard[DTensor]:
    """Whether a value is a ``DTensor``. Loads nothing of torch: where nobody has, there are none."""
    return _is_dtensor(value)


def local_of(tensor: DTensor) -> torch.Tensor:
    """The tensor in which this process has its part, outside of autograd."""
    with torch.no_grad():
        return tensor.to_local().detach()


def memory_of(tensors: Iterable[DTensor]) -> list[torch.Tensor]:
    """For each tensor the one in which this process has its part: the same object, as long as it has that part.

    ``to_local`` says the same without gradients, but takes too long for very many.
    """
    return list(map(_MEMORY, tensors))


def layouts_of(tensors: Sequence[DTensor]) -> tuple[list[Any], ...]:
    """In columns, for each tensor its mesh, its placements, and the shape, strides and type of the whole."""
    return tuple(list(map(get, tensors)) for get in _LAYOUT)


def parts_of(tensor: DTensor) -> list[tuple[TensorSlice, torch.Tensor]]:
    """The boxes of a tensor that this process holds, each with the view of its local tensor that has the values.

    The boxes of all processes with different parts are the whole tensor, each element once. An empty tensor is an
    exception: every process of the mesh has all of it.

    Args:
        tensor: the tensor.

    Returns:
        One box, as a rule; none where the process has no part, several where its part has gaps.

    Raises:
        UnsupportedValueError: the values are not there yet (``Partial``), or the local tensor is not what the
            placements say.

    Example:
        >>> import torch
        >>> from torch.distributed.device_mesh import DeviceMesh
        >>> from torch.distributed.tensor import Replicate, distribute_tensor
        >>> from torch.testing._internal.distributed.fake_pg import FakeStore
        >>> torch.distributed.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
        >>> tensor = distribute_tensor(torch.ones(4), DeviceMesh("cpu", [0]), [Replicate()], src_data_rank=None)
        >>> [(str(box), view) for box, view in parts_of(tensor)]
        [('4 0,4', tensor([1., 1., 1., 1.]))]
        >>> torch.distributed.destroy_process_group()
    """
    shape, local = tuple(tensor.shape), local_of(tensor)
    if 0 in shape:
        return [(local_box.box, local.new_empty(shape)) for local_box in local_boxes_of(tensor)]
    return [(local_box.box, local_box.view(local)) for local_box in local_boxes_of(tensor)]


def local_boxes_of(tensor: DTensor) -> list[LocalBox]:
    """The boxes of a tensor that this process holds, and where they lie in its local tensor; see `parts_of`."""
    mesh = tensor.device_mesh
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return []
    (local,) = memory_of([tensor])
    return boxes_at(tuple(tensor.shape), tensor.placements, tuple(mesh.shape), coordinate, tuple(local.shape))


def ranks_of(tensor: DTensor) -> tuple[int, ...]:
    """All ranks of a tensor's mesh, ascending."""
    return tuple(sorted(tensor.device_mesh.mesh.flatten().tolist()))


def with_memory(tensor: DTensor, device: torch.device) -> torch.Tensor:
    """A tensor like one on the meta device, of the same mesh and placements, with memory for the part of this process.

    Args:
        tensor: the tensor, which may be a parameter.
        device: where the memory is to be.

    Raises:
        UnsupportedValueError: the mesh is of devices of another kind.
    """
    from torch.distributed.tensor import DTensor

    if device.type != tensor.device_mesh.device_type:
        raise UnsupportedValueError(
            f"a DTensor on a mesh of {tensor.device_mesh.device_type} devices cannot get memory on {device}; name a "
            "device of that kind, or call model.to_empty(device=...) before the restore."
        )
    with torch.no_grad():
        local = torch.empty_like(local_of(tensor), device=device)
        made = DTensor.from_local(
            local,
            tensor.device_mesh,
            tensor.placements,
            run_check=False,
            shape=tensor.shape,
            stride=tensor.stride(),
        )
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(made, tensor.requires_grad)
    return made.requires_grad_(tensor.requires_grad)


def copies_of(tensor: DTensor) -> tuple[int, ...]:
    """The processes that hold the same part of a tensor as this one, which is among them.

    Args:
        tensor: the tensor. Only its mesh is asked: of processes outside of it that have the same values, as other
            pipelines of a training may, nothing is known here.

    Returns:
        Global ranks, ascending; none where this process is not in the mesh.
    """
    mesh = tensor.device_mesh
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return ()
    is_empty = 0 in tensor.shape
    index = tuple(
        slice(None) if is_empty or placement.is_replicate() else at
        for placement, at in zip(tensor.placements, coordinate, strict=True)
    )
    return tuple(sorted(mesh.mesh[index].reshape(-1).tolist()))


def boxes_at(
    shape: tuple[int, ...],
    placements: Sequence[Any],
    mesh_shape: tuple[int, ...],
    coordinate: Sequence[int],
    local_shape: tuple[int, ...] | None = None,
) -> list[LocalBox]:
    """The boxes of a tensor that lie at one place of a mesh.

    Args:
        shape: the shape of the whole tensor.
        placements: those of the tensor.
        mesh_shape: the size of each dimension of the mesh.
        coordinate: the place in the mesh.
        local_shape: the shape of the local tensor there, where it is known.

    Returns:
        The boxes in the row-major order of the local tensor; none where nothing lies there.

    Raises:
        UnsupportedValueError: as `parts_of`.
    """
    cuts = _cuts(len(shape), placements, mesh_shape, coordinate)
    if 0 in shape:
        return [LocalBox(TensorSlice.whole(shape), (0,) * len(shape))]
    runs = [_runs(size, cuts_of_dim) for size, cuts_of_dim in zip(shape, cuts, strict=True)]
    expected = tuple(map(_length, runs))
    if local_shape is not None and not _is_same_shape(expected, local_shape):
        raise UnsupportedValueError(
            f"by {list(placements)}, of a tensor of shape {list(shape)} a part of shape {list(expected)} lies at "
            f"{list(coordinate)} of a mesh of shape {list(mesh_shape)}, but the local tensor there has the shape "
            f"{list(local_shape)}; redistribute() it to Shard or Replicate."
        )
    return _product(shape, runs)


def _cuts(
    num_dims: int, placements: Sequence[Any], mesh_shape: tuple[int, ...], coordinate: Sequence[int]
) -> list[list[_Cut]]:
    """For each dimension of the tensor how it is cut, in the order of the mesh."""
    from torch.distributed.tensor import placement_types

    cuts: list[list[_Cut]] = [[] for _ in range(num_dims)]
    # The second is no public name.
    kinds = (placement_types.Shard, getattr(placement_types, "_StridedShard", placement_types.Shard))
    for placement, num_chunks, index in zip(placements, mesh_shape, coordinate, strict=True):
        if placement.is_replicate():
            continue
        if not isinstance(placement, kinds):
            raise UnsupportedValueError(
                f"a DTensor with the placement {placement} has no values yet that could be stored or restored: they "
                "are spread over processes and have to be reduced first; redistribute() it to Shard or Replicate."
            )
        cuts[placement.dim].append(_Cut(num_chunks, index, int(getattr(placement, "split_factor", 1))))
    return cuts


def _runs(size: int, cuts: list[_Cut]) -> tuple[Run, ...]:
    """What a process has of a dimension."""
    runs: tuple[Run, ...] = ((0, size),)
    for cut in _in_order(cuts) if cuts else ():
        pieces = [runs] if cut.split_factor == 1 else _split(runs, cut.split_factor)
        runs = _joined(itertools.chain.from_iterable(_split(piece, cut.num_chunks)[cut.index] for piece in pieces))
    return runs


def _in_order(cuts: list[_Cut]) -> list[_Cut]:
    """The cuts in the order in which they were made, if split factors tell of one: each is the number of pieces that
    those behind it in the mesh had made before. Where they do not, the cuts as they are."""
    order: list[_Cut] = []
    for cut in reversed(cuts):
        pieces = list(itertools.accumulate((before.num_chunks for before in order), operator.mul, initial=1))
        if cut.split_factor not in pieces:
            return cuts
        order.insert(pieces.index(cut.split_factor), dataclasses.replace(cut, split_factor=1))
    return order


def _split(runs: tuple[Run, ...], num_chunks: int) -> list[tuple[Run, ...]]:
    """Cuts runs apart as ``torch.chunk`` does, with empty pieces for those that it leaves out."""
    total = _length(runs)
    size = -(-total // num_chunks)
    return [_between(runs, min(i * size, total), min((i + 1) * size, total)) for i in range(num_chunks)]


def _between(runs: tuple[Run, ...], begin: int, end: int) -> tuple[Run, ...]:
    found = []
    position = 0
    for start, length in runs:
        first, last = max(begin - position, 0), min(end - position, length)
        if first < last:
            found.append((start + first, last - first))
        position += length
    return tuple(found)


def _joined(runs: Iterable[Run]) -> tuple[Run, ...]:
    """The same with neighbours as one."""
    joined: list[Run] = []
    for start, length in runs:
        if joined and sum(joined[-1]) == start:
            start, length = joined[-1][0], joined.pop()[1] + length
        joined.append((start, length))
    return tuple(joined)


def _length(runs: tuple[Run, ...]) -> int:
    return sum(length for _, length in runs)


def _is_same_shape(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Torch has several shapes for nothing."""
    return shape == other or (0 in shape and 0 in other)


def _product(shape: tuple[int, ...], runs: Sequence[tuple[Run, ...]]) -> list[LocalBox]:
    """The boxes that runs in each dimension make up."""
    with_places = [
        list(zip(runs_of_dim, itertools.accumulate((length for _, length in runs_of_dim), initial=0), strict=False))
        for runs_of_dim in runs
    ]
    return [
        LocalBox(TensorSlice(shape, tuple(run for run, _ in box)), tuple(place for _, place in box))
        for box in itertools.product(*with_places)
    ]
