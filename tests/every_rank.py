"""One process as every rank of a program in turn, with torch's process group that does not communicate."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, debug, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from torch_trackckpt.distributed.dtensor import parts_of


@contextlib.contextmanager
def as_rank(rank: int, world_size: int) -> Iterator[None]:
    """This process is the given rank, as far as torch knows."""
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
        # What torch knows of operators has the mesh in it, and with that the rank.
        for name in ("_clear_sharding_prop_cache", "_clear_fast_path_sharding_prop_cache"):
            getattr(debug, name, _nothing)()


def _nothing() -> None:
    pass


def mesh_of(*shape: int, names: tuple[str, ...] | None = None) -> DeviceMesh:
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def sharded(whole: torch.Tensor, mesh: DeviceMesh, placements: Sequence[Any]) -> DTensor:
    """What torch itself gives this rank of a tensor that all ranks have."""
    with warnings.catch_warnings():
        # Sharding unevenly, and the strided kind, are said to be experimental.
        warnings.simplefilter("ignore")
        return distribute_tensor(whole, mesh, placements, src_data_rank=None)


def fill(whole: torch.Tensor, tensor: DTensor) -> None:
    """Puts the part of this rank into its places in the whole."""
    for box, view in parts_of(tensor):
        whole[tuple(slice(start, start + length) for start, length in zip(box.offset, box.shape, strict=True))] = view
