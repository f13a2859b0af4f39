"""Which boxes of a tensor a process has, of tensors that are cut as torch cuts them."""

import itertools
import math
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from every_rank import as_rank, fill, mesh_of, sharded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.distributed.dtensor import LocalBox, boxes_at, copies_of, is_dtensor, local_of, parts_of
from torch_trackckpt.errors import UnsupportedValueError


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], list[Any]]:
    """Shapes, meshes and placements for each dimension of the mesh."""
    shape = tuple(draw(st.lists(st.integers(1, 9), max_size=3)))
    mesh_shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    placements: list[Any] = []
    for _ in mesh_shape:
        kinds: list[Any] = [Replicate()]
        if shape:
            dim = draw(st.integers(0, len(shape) - 1))
            kinds += [Shard(dim), Shard(dim), _StridedShard(dim, split_factor=draw(st.integers(1, 4)))]
        placements.append(draw(st.sampled_from(kinds)))
    return shape, mesh_shape, placements


def local_by_torch(whole: torch.Tensor, mesh_shape: Sequence[int], at: Sequence[int], placements: Any) -> torch.Tensor:
    """What torch's own placements leave of a tensor at one place of the mesh."""
    local = whole
    for placement, num_chunks, index in zip(placements, mesh_shape, at, strict=True):
        if not placement.is_replicate():
            local = placement._split_tensor(local, num_chunks, with_padding=False, contiguous=True)[0][index]
    return local


def places(mesh_shape: Sequence[int]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, mesh_shape)))


def index_of(box: TensorSlice) -> tuple[slice, ...]:
    return tuple(slice(start, start + length) for start, length in zip(box.offset, box.shape, strict=True))


@settings(max_examples=300, deadline=None)
@given(layout=layouts())
def test_boxes_have_what_torch_puts_into_the_local_tensors(layout: Any) -> None:
    """Strided shards with a rest are put elsewhere by FSDP2; then some process refuses them."""
    shape, mesh_shape, placements = layout
    whole = torch.arange(math.prod(shape)).reshape(shape)
    counts = torch.zeros(shape, dtype=torch.int64)
    copies = math.prod(n for n, placement in zip(mesh_shape, placements, strict=True) if placement.is_replicate())
    found = []
    for at in places(mesh_shape):
        local = local_by_torch(whole, mesh_shape, at, placements)
        try:
            found.append((boxes_at(shape, placements, mesh_shape, at, tuple(local.shape)), local))
        except UnsupportedValueError:
            assert any(isinstance(placement, _StridedShard) for placement in placements)
            return
    for boxes, local in found:
        assert sum(local_box.box.num_elements for local_box in boxes) == local.numel()
        for local_box in boxes:
            assert torch.equal(local_box.view(local), whole[index_of(local_box.box)])
            counts[index_of(local_box.box)] += 1
    assert torch.equal(counts, torch.full(shape, copies))


@settings(max_examples=300, deadline=None)
@given(layout=layouts())
def test_every_element_lies_in_as_many_places_as_there_are_copies(layout: Any) -> None:
    shape, mesh_shape, placements = layout
    counts = torch.zeros(shape, dtype=torch.int64)
    for at in places(mesh_shape):
        for local_box in boxes_at(shape, placements, mesh_shape, at):
            counts[index_of(local_box.box)] += 1
    copies = math.prod(n for n, placement in zip(mesh_shape, placements, strict=True) if placement.is_replicate())
    assert torch.equal(counts, torch.full(shape, copies))


@settings(max_examples=200, deadline=None)
@given(layout=layouts().filter(lambda layout: not any(isinstance(p, _StridedShard) for p in layout[2])))
def test_without_strided_shards_the_placements_alone_tell_what_lies_where(layout: Any) -> None:
    shape, mesh_shape, placements = layout
    for at in places(mesh_shape):
        local = local_by_torch(torch.zeros(shape), mesh_shape, at, placements)
        boxes = boxes_at(shape, placements, mesh_shape, at)
        assert boxes == boxes_at(shape, placements, mesh_shape, at, tuple(local.shape))
        assert len(boxes) == (1 if local.numel() else 0)


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 40), num_data=st.integers(1, 5), num_model=st.integers(1, 5), rest=st.lists(st.integers(1, 3))
)
def test_what_tensor_parallelism_cut_first_is_found_where_it_lies(
    size: int, num_data: int, num_model: int, rest: list[int]
) -> None:
    """FSDP2 cuts the pieces of tensor parallelism further, whether they are even or not."""
    shape = (size, *rest[:2])
    whole = torch.arange(math.prod(shape)).reshape(shape)
    placements = [_StridedShard(0, split_factor=num_model) if num_model > 1 else Shard(0), Shard(0)]
    counts = torch.zeros(shape, dtype=torch.int64)
    for data, model in places((num_data, num_model)):
        piece = chunk(chunk(whole, num_model)[model], num_data)[data]
        boxes = boxes_at(shape, placements, (num_data, num_model), (data, model), tuple(piece.shape))
        for local_box in boxes:
            assert torch.equal(local_box.view(piece), whole[index_of(local_box.box)])
            counts[index_of(local_box.box)] += 1
    assert torch.equal(counts, torch.ones_like(counts))


def chunk(tensor: torch.Tensor, num_chunks: int) -> list[torch.Tensor]:
    """As torch.chunk, with empty pieces."""
    chunks = list(torch.chunk(tensor, num_chunks)) if len(tensor) else []
    return chunks + [tensor[:0]] * (num_chunks - len(chunks))


@pytest.mark.parametrize(
    ("mesh_shape", "placements"),
    [
        ((4,), [Shard(0)]),
        ((4,), [Shard(1)]),
        ((4,), [Replicate()]),
        ((2, 2), [Shard(0), Shard(0)]),
        ((2, 2), [Shard(1), Shard(0)]),
        ((2, 2), [Replicate(), Shard(0)]),
        ((2, 2), [_StridedShard(0, split_factor=2), Shard(0)]),
        ((2, 2), [_StridedShard(0, split_factor=2), Replicate()]),
        ((2, 2), [_StridedShard(1, split_factor=3), Shard(0)]),
        ((2, 1, 2), [Shard(1), Shard(1), Shard(1)]),
    ],
    ids=str,
)
def test_the_parts_of_all_ranks_make_up_the_tensor(mesh_shape: tuple[int, ...], placements: list[Any]) -> None:
    whole = torch.randn(9, 7, 2)
    found = torch.full_like(whole, torch.nan)
    for rank in range(4):
        with as_rank(rank, 4):
            tensor = sharded(whole, mesh_of(*mesh_shape), placements)
            fill(found, tensor)
            assert sum(view.numel() for _, view in parts_of(tensor)) == local_of(tensor).numel()
    assert torch.equal(found, whole)


def test_a_part_is_a_view_of_the_local_tensor() -> None:
    with as_rank(1, 2):
        tensor = torch.nn.Parameter(sharded(torch.zeros(5, 2), mesh_of(2), [Shard(0)]))
        ((box, view),) = parts_of(tensor)
        view.fill_(3)
        assert str(box) == "5 2 3,2:0,2"
        assert not view.requires_grad
        assert torch.equal(local_of(tensor), torch.full((2, 2), 3.0))


def test_a_process_without_a_part_has_no_boxes() -> None:
    with as_rank(3, 4):
        assert parts_of(sharded(torch.zeros(3, 2), mesh_of(4), [Shard(0)])) == []


def test_an_empty_tensor_lies_whole_in_every_process() -> None:
    for rank in range(2):
        with as_rank(rank, 2):
            tensor = sharded(torch.zeros(3, 0), mesh_of(2), [Shard(0)])
            ((box, view),) = parts_of(tensor)
            assert (box, view.shape) == (TensorSlice.whole((3, 0)), (3, 0))
            assert copies_of(tensor) == (0, 1)


def test_a_process_outside_of_the_mesh_has_nothing() -> None:
    with as_rank(0, 4):
        mesh = DeviceMesh("cpu", [2, 3])
        tensor = DTensor.from_local(torch.zeros(2), mesh, [Shard(0)], run_check=False)
        assert parts_of(tensor) == []
        assert copies_of(tensor) == ()


def test_copies_are_found_along_the_dimensions_that_replicate() -> None:
    whole = torch.zeros(8, 8)
    expected = {0: (0, 4), 3: (3, 7), 6: (2, 6)}
    for rank, copies in expected.items():
        with as_rank(rank, 8):
            mesh = mesh_of(2, 2, 2)
            assert copies_of(sharded(whole, mesh, [Replicate(), Shard(0), Shard(1)])) == copies
            assert copies_of(sharded(whole, mesh, [Replicate()] * 3)) == tuple(range(8))
            assert copies_of(sharded(whole, mesh, [Shard(0), Shard(0), Shard(1)])) == (rank,)


def test_copies_are_named_by_their_global_ranks() -> None:
    with as_rank(5, 8):
        mesh = mesh_of(2, 4, names=("replicas", "shards"))
        assert copies_of(sharded(torch.zeros(8), mesh["replicas"], [Replicate()])) == (1, 5)
        assert copies_of(sharded(torch.zeros(8), mesh["shards"], [Replicate()])) == (4, 5, 6, 7)


def test_values_that_are_not_reduced_yet_are_refused() -> None:
    with as_rank(0, 2):
        tensor = DTensor.from_local(torch.zeros(2), mesh_of(2), [Partial()], run_check=False)
        with pytest.raises(UnsupportedValueError, match="redistribute"):
            parts_of(tensor)


def test_a_local_tensor_of_another_shape_than_the_placements_say_is_refused() -> None:
    with pytest.raises(UnsupportedValueError, match=r"shape \[2\] lies at \[0\] .* has the shape \[4\]"):
        boxes_at((8,), [Shard(0)], (4,), (0,), (4,))


def test_split_factors_tell_of_the_order_of_the_cuts() -> None:
    placements = [_StridedShard(0, split_factor=2), Shard(0)]

    assert boxes_at((9,), placements, (4, 2), (3, 0)) == []
    assert boxes_at((9,), placements, (4, 2), (3, 1)) == [LocalBox(TensorSlice.box((9,), (8,), (1,)), (0,))]
    # By any other factor, a process has its share of each of so many pieces.
    assert [local_box.box.offset for local_box in boxes_at((9,), [_StridedShard(0, split_factor=3)], (3,), (1,))] == [
        (1,),
        (4,),
        (7,),
    ]


@pytest.mark.parametrize("rows", [8, 9, 7])
def test_fsdp_and_tensor_parallelism_together_cover_every_parameter(rows: int) -> None:
    torch.manual_seed(0)
    state = torch.nn.Sequential(torch.nn.Linear(5, rows), torch.nn.Linear(rows, 3)).state_dict()
    found = {name: torch.full_like(value, torch.nan) for name, value in state.items()}
    for rank in range(4):
        with as_rank(rank, 4):
            mesh = mesh_of(2, 2, names=("data", "model"))
            model = torch.nn.Sequential(torch.nn.Linear(5, rows), torch.nn.Linear(rows, 3))
            model.load_state_dict(state)
            plan = {"0": ColwiseParallel(), "1": RowwiseParallel()}
            parallelize_module(model, mesh["model"], plan, src_data_rank=None)
            fully_shard(model, mesh=mesh["data"])
            for name, parameter in model.named_parameters():
                assert is_dtensor(parameter)
                fill(found[name], parameter)
    for name, value in state.items():
        assert torch.equal(found[name], value), name


def test_who_asks_whether_something_is_a_dtensor_loads_nothing() -> None:
    code = (
        "import sys, torch, torch_trackckpt\n"
        "from torch_trackckpt.distributed.dtensor import is_dtensor\n"
        "assert not is_dtensor(torch.zeros(1))\n"
        "assert 'torch.distributed.tensor' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
