"""Rows that take a box of a stored tensor: what arrives, what is read for it, and what is checked."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trackckpt._native import BundleReader, BundleWriter, RowPlan, TensorTable
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.errors import DataLossError

TYPES = (torch.Tensor, torch.nn.Parameter)
FLOAT = 1
PAGE = 4096


def tiles_of(shape: tuple[int, ...], tile: tuple[int, ...]) -> list[TensorSlice]:
    """Tiles of a shape, and what is left at the edges."""
    cuts = [
        [(start, min(step, size - start)) for start in range(0, size, step)]
        for size, step in zip(shape, tile, strict=True)
    ]
    return [TensorSlice(shape, extents) for extents in itertools.product(*cuts)]


def index_of(box: TensorSlice) -> tuple[slice, ...]:
    return tuple(slice(start, start + length) for start, length in zip(box.offset, box.shape, strict=True))


def write(prefix: Path, values: dict[str, tuple[torch.Tensor, list[TensorSlice]]]) -> BundleReader:
    """Float tensors, whole or in the given slices."""
    writer = BundleWriter([f"{prefix}.data-00000-of-00001"], f"{prefix}.index", durable=False)
    for key, (tensor, slices) in values.items():
        shape = tuple(tensor.shape)
        for part in slices or [TensorSlice.whole(shape)]:
            piece = tensor[index_of(part)].contiguous()
            writer.add_slice(0, key.encode(), FLOAT, shape, part.extents, piece.data_ptr(), piece.nbytes)
    writer.finish()
    return BundleReader(f"{prefix}.index", str(prefix))


def plan_for(reader: BundleReader, key: str, boxes: list[TensorSlice], into: list[torch.Tensor]) -> RowPlan:
    described = [(row, box.full_shape, box.offset) for row, box in enumerate(boxes)]
    return RowPlan(reader, [key] * len(boxes), TensorTable(into, TYPES), (), described)


def empty(boxes: list[TensorSlice]) -> list[torch.Tensor]:
    return [torch.full(box.shape, torch.nan) for box in boxes]


def damage(prefix: Path, offset: int) -> None:
    with open(f"{prefix}.data-00000-of-00001", "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), num_threads=st.integers(1, 3), max_bytes=st.sampled_from([None, 1, 40]))
def test_any_boxes_arrive_from_any_slices(
    data: st.DataObject, num_threads: int, max_bytes: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    tiles = st.tuples(*(st.integers(1, size) for size in shape))
    whole = torch.rand(shape)
    reader = write(tmp_path_factory.mktemp("boxes") / "x", {"x": (whole, tiles_of(shape, data.draw(tiles)))})
    boxes = tiles_of(shape, data.draw(tiles))
    into = empty(boxes)
    plan = plan_for(reader, "x", boxes, into)
    assert plan.misfits() == []
    assert plan.nbytes == whole.nbytes
    plan.verify(num_threads=num_threads)
    num_bytes = 0
    while n := plan.read(num_threads=num_threads, max_bytes=max_bytes):
        num_bytes += n
    assert num_bytes == plan.nbytes
    assert all(torch.equal(tensor, whole[index_of(box)]) for box, tensor in zip(boxes, into, strict=True))


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("tile", [(1500, 2000), (375, 2000), (1500, 500), (700, 900)])
@pytest.mark.parametrize("stored", [(1500, 2000), (100, 2000), (1500, 128), (512, 512)])
def test_large_boxes_arrive(tmp_path: Path, stored: tuple[int, int], tile: tuple[int, int], num_threads: int) -> None:
    whole = torch.arange(3_000_000.0).reshape(1500, 2000)
    reader = write(tmp_path / "x", {"x": (whole, tiles_of((1500, 2000), stored))})
    boxes = tiles_of((1500, 2000), tile)
    into = empty(boxes)
    plan = plan_for(reader, "x", boxes, into)
    assert plan.read(num_threads=num_threads) == whole.nbytes
    assert all(torch.equal(tensor, whole[index_of(box)]) for box, tensor in zip(boxes, into, strict=True))


def test_no_more_is_read_than_the_box_has_where_it_lies_together(tmp_path: Path) -> None:
    whole = torch.rand(64, 2000)
    for stored in ((64, 2000), (16, 2000), (7, 2000)):
        reader = write(tmp_path / str(stored[0]), {"x": (whole, tiles_of((64, 2000), stored))})
        boxes = [TensorSlice.box((64, 2000), (20, 0), (9, 2000))]
        plan = plan_for(reader, "x", boxes, empty(boxes))
        plan.read(num_threads=2)
        assert plan.num_read() == 9 * 2000 * 4


def test_of_rows_that_are_needed_in_part_gaps_of_less_than_a_page_are_read_too(tmp_path: Path) -> None:
    narrow, wide = torch.rand(16, 100), torch.rand(16, 4000)
    reader = write(tmp_path / "x", {"narrow": (narrow, []), "wide": (wide, [])})
    boxes = [TensorSlice.box((16, 100), (0, 30), (16, 40))]
    plan = plan_for(reader, "narrow", boxes, empty(boxes))
    plan.read(num_threads=1)
    assert plan.num_read() == narrow.nbytes - 60 * 4
    boxes = [TensorSlice.box((16, 4000), (0, 30), (16, 40))]
    plan = plan_for(reader, "wide", boxes, empty(boxes))
    plan.read(num_threads=1)
    assert plan.num_read() == 16 * 40 * 4


def test_slices_that_the_box_does_not_touch_are_not_read(tmp_path: Path) -> None:
    whole = torch.rand(8, 5)
    reader = write(tmp_path / "x", {"x": (whole, tiles_of((8, 5), (2, 5)))})
    boxes = [TensorSlice.box((8, 5), (2, 0), (2, 5))]
    into = empty(boxes)
    for offset in (0, 2 * 2 * 5 * 4):
        damage(tmp_path / "x", offset)
    plan = plan_for(reader, "x", boxes, into)
    plan.verify(num_threads=1)
    plan.read(num_threads=1)
    assert plan.num_read() == 2 * 5 * 4
    assert torch.equal(into[0], whole[2:4])


@pytest.mark.parametrize("columns", [3, 400_000])
def test_a_slice_that_is_needed_whole_is_checked(tmp_path: Path, columns: int) -> None:
    whole = torch.rand(4, columns)
    reader = write(tmp_path / "x", {"x": (whole, tiles_of((4, columns), (2, columns)))})
    damage(tmp_path / "x", 1)
    boxes = [TensorSlice.box((4, columns), (0, 0), (3, columns))]
    for check in (
        lambda plan: plan.read(num_threads=2),
        lambda plan: plan.verify(num_threads=2, with_parts=False),
        lambda plan: plan.verify(num_threads=2),
    ):
        with pytest.raises(DataLossError, match="slice 0,2:"):
            check(plan_for(reader, "x", boxes, empty(boxes)))


@pytest.mark.parametrize("stored", [(4, 6), (4, 3)])
def test_a_stored_value_that_is_needed_in_part_is_checked_only_by_reading_it_whole(
    tmp_path: Path, stored: tuple[int, int]
) -> None:
    whole = torch.rand(4, 6)
    reader = write(tmp_path / "x", {"x": (whole, tiles_of((4, 6), stored))})
    damage(tmp_path / "x", 1)
    boxes = [TensorSlice.box((4, 6), (3, 0), (1, 6))]
    into = empty(boxes)
    plan = plan_for(reader, "x", boxes, into)
    plan.verify(num_threads=1, with_parts=False)
    plan.read(num_threads=1)
    assert torch.equal(into[0], whole[3:])
    with pytest.raises(DataLossError, match="Checksum"):
        plan_for(reader, "x", boxes, into).verify(num_threads=1)


def test_what_is_missing_of_a_box_is_noticed_before_anything_is_read(tmp_path: Path) -> None:
    whole = torch.rand(8, 2)
    reader = write(tmp_path / "x", {"x": (whole, tiles_of((8, 2), (2, 2))[:3])})
    boxes = [TensorSlice.box((8, 2), (4, 0), (4, 2))]
    into = empty(boxes)
    plan = plan_for(reader, "x", boxes, into)
    with pytest.raises(DataLossError, match="sufficient slices"):
        plan.check()
    assert into[0].isnan().all()


def test_rows_that_were_touched_are_told(tmp_path: Path) -> None:
    whole = torch.rand(4, 400_000)
    reader = write(tmp_path / "x", {"x": (whole, tiles_of((4, 400_000), (2, 400_000)))})
    damage(tmp_path / "x", 1)
    boxes = tiles_of((4, 400_000), (2, 400_000))
    plan = plan_for(reader, "x", boxes, empty(boxes))
    with pytest.raises(DataLossError):
        plan.read(num_threads=1)
    assert 0 in plan.touched()


def test_a_row_of_another_shape_than_the_stored_tensor_does_not_fit(tmp_path: Path) -> None:
    reader = write(tmp_path / "x", {"x": (torch.rand(4, 6), [])})
    boxes = [TensorSlice.box((4, 5), (0, 0), (2, 5)), TensorSlice.box((4, 6), (0, 0), (2, 5))]
    assert plan_for(reader, "x", boxes, empty(boxes)).misfits() == [0]
    doubles = [torch.zeros(2, 5, dtype=torch.float64)]
    assert plan_for(reader, "x", boxes[1:], doubles).misfits() == [0]


@pytest.mark.parametrize(
    "box", [(0, (4, 6), (3, 0)), (0, (4, 6), (-1, 0)), (0, (4,), (0,)), (0, (4, 6), (0,)), (1, (4, 6), (0, 0))]
)
def test_a_box_that_is_none_is_refused(tmp_path: Path, box: tuple[int, tuple[int, ...], tuple[int, ...]]) -> None:
    reader = write(tmp_path / "x", {"x": (torch.rand(4, 6), [])})
    with pytest.raises(ValueError, match="box"):
        RowPlan(reader, ["x"], TensorTable([torch.zeros(2, 6)], TYPES), (), [box])


def test_boxes_that_share_memory_get_what_was_asked_for_last(tmp_path: Path) -> None:
    whole = torch.rand(8, 300_000)
    reader = write(tmp_path / "x", {"x": (whole, [])})
    boxes = tiles_of((8, 300_000), (2, 300_000))
    memory = torch.zeros(2, 300_000)
    plan_for(reader, "x", boxes, [memory] * 4).read(num_threads=3)
    assert torch.equal(memory, whole[6:])


def test_only_boxes_that_are_a_whole_stored_value_land(tmp_path: Path) -> None:
    whole = torch.rand(8, 5)
    reader = write(tmp_path / "x", {"x": (whole, []), "y": (whole, tiles_of((8, 5), (4, 5)))})
    boxes = [(0, (8, 5), (0, 0)), (1, (8, 5), (0, 0)), (2, (8, 5), (0, 0)), (3, (8, 5), (4, 0))]
    into = [torch.zeros(8, 5), torch.zeros(4, 5), torch.zeros(8, 5), torch.zeros(4, 5)]
    plan = RowPlan(reader, ["x", "x", "y", "y"], TensorTable(into, TYPES), [0, 1, 2, 3], boxes)
    assert plan.left_out() == [1, 2, 3]
    memory = torch.zeros(8 << 20, dtype=torch.uint8)
    landed = plan.read_landing(num_threads=1, address=memory.data_ptr(), size=memory.nbytes)
    assert landed == (whole.nbytes, [0], [0], [whole.nbytes], [0])
    assert torch.equal(memory[: whole.nbytes].view(torch.float32).reshape(8, 5), whole)
