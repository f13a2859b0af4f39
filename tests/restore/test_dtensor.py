"""Restoring into tensors that lie in several processes: each reads its own boxes, from files of any cut."""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from every_rank import as_rank, fill, mesh_of, sharded
from hypothesis import given, settings
from hypothesis import strategies as st
from native import crafted_v1
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from torch_trackckpt import Checkpoint, CheckpointOptions, CheckpointReader
from torch_trackckpt.adapters.optimizer import OptimizerAdapter
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.distributed.dtensor import is_dtensor, local_of, parts_of
from torch_trackckpt.errors import DataLossError, MismatchError, RestoreError, UnsupportedValueError
from torch_trackckpt.graph.walk import capture, collect
from torch_trackckpt.restore import assign
from torch_trackckpt.restore.boxes import BoxRequest, RowsWithBoxes, read_boxes
from torch_trackckpt.save.plan import make_plan
from torch_trackckpt.sharding import MaxShardSizePolicy, ShardableTensor, ShardingCallback, Shards

Damage = Callable[[str, str], None]
GOLDEN = Path(__file__).parents[1] / "golden"
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())
FAST = CheckpointOptions(durable=False)
WORLD = 4
LAYOUTS: list[tuple[tuple[int, ...], list[Any]]] = [
    ((4,), [Shard(0)]),
    ((4,), [Shard(1)]),
    ((4,), [Replicate()]),
    ((2, 2), [Shard(0), Shard(1)]),
    ((2, 2), [Shard(1), Shard(1)]),
    ((2, 2), [Replicate(), Shard(0)]),
    ((2, 2), [_StridedShard(0, split_factor=2), Shard(0)]),
    ((2, 2), [_StridedShard(1, split_factor=3), Replicate()]),
    ((2, 2), [_StridedShard(1, split_factor=2), _StridedShard(0, split_factor=3)]),
]


class Tiles(ShardingCallback):
    """Cuts tensors of two dimensions into tiles of a shape, in two data files."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    @property
    def description(self) -> str:
        return "tiles"

    def __call__(self, shardable_tensors: Sequence[ShardableTensor]) -> Shards:
        shards: list[dict[str, dict[str, Any]]] = [{}, {}]
        for item in shardable_tensors:
            tiles = self.tiles_of(item) if len(item.shape) == 2 else [(item.slice_spec, item.tensor)]
            for number, (spec, value) in enumerate(tiles):
                shards[number % 2].setdefault(item.checkpoint_key, {})[spec] = value
        return [shard for shard in shards if shard]

    def tiles_of(self, item: ShardableTensor) -> list[tuple[str, Any]]:
        assert isinstance(item.tensor, torch.Tensor)
        starts = itertools.product(*(range(0, n, step) for n, step in zip(item.shape, self.shape, strict=True)))
        found = []
        for start in starts:
            shape = [min(step, n - at) for at, step, n in zip(start, self.shape, item.shape, strict=True)]
            index = tuple(slice(at, at + n) for at, n in zip(start, shape, strict=True))
            box = TensorSlice.box(tuple(item.shape), start, tuple(shape))
            found.append((str(box), item.tensor[index].contiguous()))
        return found


STORED: dict[str, ShardingCallback | None] = {
    "whole": None,
    "in slices": MaxShardSizePolicy(100),
    "in tiles": Tiles(2, 4),
    "as it lies on two": Tiles(5, 7),
}


def write(prefix: str, sharding: ShardingCallback | None = None, **values: Any) -> str:
    options = CheckpointOptions(durable=False, all_ranks=False, experimental_sharding_callback=sharding)
    return Checkpoint(**values).write(prefix, options)


def restored_by_all(
    prefix: str,
    like: torch.Tensor,
    mesh_shape: tuple[int, ...],
    placements: Sequence[Any],
    options: CheckpointOptions = FAST,
) -> torch.Tensor:
    """What all ranks together have after each has restored its part of ``x``."""
    found = torch.full_like(like, torch.nan)
    for rank in range(WORLD):
        with as_rank(rank, WORLD):
            tensor = sharded(torch.zeros_like(like), mesh_of(*mesh_shape), placements)
            checkpoint = Checkpoint(x=tensor)
            checkpoint.read(prefix, options).assert_consumed()
            assert checkpoint.io_metrics.reads.last_bytes == local_of(tensor).nbytes
            fill(found, tensor)
    return found


@pytest.mark.parametrize(("mesh_shape", "placements"), LAYOUTS, ids=str)
@pytest.mark.parametrize("stored", STORED)
def test_every_layout_is_restored_from_a_tensor_that_is_stored_in_any_way(
    prefix: str, stored: str, mesh_shape: tuple[int, ...], placements: list[Any]
) -> None:
    whole = torch.randn(9, 14)
    write(prefix, STORED[stored], x=whole)
    assert torch.equal(restored_by_all(prefix, whole, mesh_shape, placements), whole)


@pytest.mark.parametrize("options", [CheckpointOptions(verify="before"), CheckpointOptions(num_threads=3)], ids=str)
@pytest.mark.parametrize("stored", STORED)
def test_it_does_not_matter_how_much_is_checked_or_by_how_many_threads(
    prefix: str, stored: str, options: CheckpointOptions
) -> None:
    whole = torch.randn(9, 14)
    write(prefix, STORED[stored], x=whole)
    assert torch.equal(restored_by_all(prefix, whole, (2, 2), [Shard(1), Shard(0)], options), whole)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    tile=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    placements=st.lists(
        st.one_of(
            st.just(Replicate()),
            st.builds(Shard, st.integers(0, 1)),
            st.builds(lambda dim, factor: _StridedShard(dim, split_factor=factor), st.integers(0, 1), st.just(3)),
        ),
        min_size=2,
        max_size=2,
    ),
)
def test_any_cut_is_restored_from_any_tiles(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int], tile: tuple[int, int], placements: list[Any]
) -> None:
    prefix = str(tmp_path_factory.mktemp("tiles") / "ckpt")
    whole = torch.randn(shape)
    write(prefix, Tiles(*tile), x=whole)
    assert torch.equal(restored_by_all(prefix, whole, (2, 2), placements), whole)


@pytest.mark.parametrize("placements", [[Shard(0)], [Shard(1)]], ids=str)
def test_values_larger_than_what_is_read_at_once_arrive(prefix: str, placements: list[Any]) -> None:
    whole = torch.arange(3_000_000.0).reshape(1500, 2000)
    write(prefix, x=whole)
    assert torch.equal(restored_by_all(prefix, whole, (4,), placements), whole)


def test_a_scalar_and_an_empty_tensor_are_restored(prefix: str) -> None:
    write(prefix, x=torch.tensor(3.0), y=torch.zeros(3, 0))
    with as_rank(1, 2):
        x = sharded(torch.tensor(0.0), mesh_of(2), [Replicate()])
        y = sharded(torch.zeros(3, 0), mesh_of(2), [Shard(0)])
        Checkpoint(x=x, y=y).read(prefix).assert_consumed()
        assert local_of(x) == 3


def test_a_rank_without_a_part_reads_nothing_and_has_been_restored(prefix: str) -> None:
    write(prefix, x=torch.ones(3, 2))
    with as_rank(3, 4):
        checkpoint = Checkpoint(x=sharded(torch.zeros(3, 2), mesh_of(4), [Shard(0)]))
        checkpoint.read(prefix).assert_consumed()
        assert checkpoint.io_metrics.reads.last_bytes == 0


@pytest.mark.parametrize("stored", STORED)
def test_parts_with_gaps_in_memory_are_staged_a_bounded_number_of_bytes_at_a_time(
    prefix: str, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    monkeypatch.setattr(assign, "STAGING_BYTES", 24)
    most = 0
    read_boxes = CheckpointReader._read_boxes

    def observed(reader: CheckpointReader, requests: Any, num_threads: int) -> None:
        nonlocal most
        most = max(most, sum(tensor.nbytes for *_, tensor in requests))
        read_boxes(reader, requests, num_threads)

    monkeypatch.setattr(CheckpointReader, "_read_boxes", observed)
    whole = torch.randn(9, 14)
    write(prefix, STORED[stored], x=whole)
    done: list[int] = []
    with as_rank(1, 2):
        local = torch.zeros(7, 9).t()
        x = DTensor.from_local(local, mesh_of(2), [Shard(1)], run_check=False)
        options = CheckpointOptions(progress=lambda num_done, num_bytes: done.append(num_done))
        Checkpoint(x=x).read(prefix, options).assert_consumed()
    assert torch.equal(local, whole[:, 7:])
    assert 0 < most <= 24
    assert done[-1] == local.nbytes


def test_files_of_the_older_format_are_restored_too(tmp_path: Path) -> None:
    whole = torch.arange(24, dtype=torch.int32).reshape(6, 4)
    path = crafted_v1.write_tensor(tmp_path / "model.ckpt", 3, (6, 4), crafted_v1.numbers((6, 4)))
    for rank in range(WORLD):
        with as_rank(rank, WORLD):
            x = sharded(torch.zeros_like(whole), mesh_of(2, 2), [Shard(1), Shard(0)])
            status = Checkpoint(x=x).restore(path)
            status.assert_existing_objects_matched()
            assert torch.equal(local_of(x), local_of(sharded(whole, mesh_of(2, 2), [Shard(1), Shard(0)])))


@pytest.mark.parametrize("vector", ["v2_slices", "v2_slices_merged", "v1_slices", "obj_sharded"])
def test_slices_that_tensorflow_wrote_are_restored(vector: str) -> None:
    (prefix,) = (str(GOLDEN / item["prefix"]) for item in MANIFEST["vectors"] if item["name"] == vector)
    reader = CheckpointReader(prefix)
    keys = [key for key in reader if is_whole(reader, key)]
    assert keys
    for key, rank in itertools.product(keys, range(WORLD)):
        whole = reader.get_tensor(key)
        assert isinstance(whole, torch.Tensor)
        with as_rank(rank, WORLD):
            x = sharded(torch.zeros_like(whole), mesh_of(2, 2), [Shard(whole.dim() - 1), Shard(0)])
            rows = RowsWithBoxes([key], [x])
            requests = [BoxRequest(key, part, rows.tensors[row]) for row, part in rows.parts.items()]
            list(read_boxes(requests, reader, 2, 64))
            assert torch.equal(local_of(x), local_of(sharded(whole, mesh_of(2, 2), x.placements)))


def is_whole(reader: CheckpointReader, key: str) -> bool:
    """Whether a key holds numbers that were cut apart, nothing of which is missing."""
    stored = reader.stored(key)
    if stored.dtype.torch_dtype is None or stored.dtype.low_bits or not stored.shape or 0 in stored.shape:
        return False
    try:
        reader.check([key])
    except DataLossError:
        return False
    return True


# What does not fit.


def test_a_mismatch_names_the_key_and_both_global_shapes(prefix: str) -> None:
    write(prefix, x=torch.ones(8, 2))
    with as_rank(0, 2):
        x = sharded(torch.zeros(6, 2), mesh_of(2), [Shard(0)])
        with pytest.raises(MismatchError, match=r"x.*\[8, 2\].*\[6, 2\] \(key x/\.ATTRIBUTES/VARIABLE_VALUE\)"):
            Checkpoint(x=x).read(prefix)
        y = sharded(torch.zeros(8, 2, dtype=torch.float64), mesh_of(2), [Shard(0)])
        with pytest.raises(MismatchError, match="expected dtype float64"):
            Checkpoint(x=y).read(prefix)


def test_a_rank_without_a_part_refuses_what_the_others_refuse(prefix: str) -> None:
    write(prefix, x=torch.ones(4, 2))
    with as_rank(3, 4):
        x = sharded(torch.zeros(3, 2), mesh_of(4), [Shard(0)])
        with pytest.raises(MismatchError, match=r"\[4, 2\].*\[3, 2\]"):
            Checkpoint(x=x).read(prefix)


def test_values_that_are_not_reduced_take_none(prefix: str) -> None:
    write(prefix, x=torch.ones(2), y=torch.ones(2))
    with as_rank(0, 2):
        y = torch.zeros(2)
        x = DTensor.from_local(torch.zeros(2), mesh_of(2), [Partial()], run_check=False)
        with pytest.raises(MismatchError, match=r"x: a DTensor with the placement .*redistribute"):
            Checkpoint(x=x, y=y).read(prefix)
        assert not y.any()


def test_a_local_tensor_that_is_expanded_takes_none(prefix: str) -> None:
    write(prefix, x=torch.ones(4, 2))
    with as_rank(0, 2):
        x = DTensor.from_local(torch.zeros(1, 2).expand(2, 2), mesh_of(2), [Shard(0)], run_check=False)
        with pytest.raises(MismatchError, match="expanded"):
            Checkpoint(x=x).read(prefix)


# Damage.


def test_what_others_have_is_checked_only_where_that_is_asked_for(prefix: str, damage: Damage) -> None:
    write(prefix, x=torch.ones(8, 2))
    damage(prefix, "x/.ATTRIBUTES/VARIABLE_VALUE")
    with as_rank(0, 4):
        x = sharded(torch.zeros(8, 2), mesh_of(4), [Shard(0)])
        Checkpoint(x=x).read(prefix).assert_consumed()
        assert torch.equal(local_of(x), torch.ones(2, 2))
        with pytest.raises(DataLossError, match="Checksum"):
            Checkpoint(x=x).read(prefix, CheckpointOptions(verify="before"))


@pytest.mark.parametrize("is_small", [True, False])
def test_a_damaged_slice_that_is_needed_whole_is_noticed(
    prefix: str, monkeypatch: pytest.MonkeyPatch, is_small: bool
) -> None:
    if not is_small:
        monkeypatch.setattr(assign, "VERIFIED_BEFORE_BYTES", -1)
    write(prefix, Tiles(2, 2), x=torch.ones(8, 2))
    with open(f"{prefix}.data-00000-of-00002", "r+b") as file:
        file.write(b"\1")
    for rank in range(2):
        with as_rank(rank, 2):
            x = sharded(torch.zeros(8, 2), mesh_of(2), [Shard(0)])
            if rank == 0:
                with pytest.raises(DataLossError, match=r"slice 0,2:(0,2|-)"):
                    Checkpoint(x=x).read(prefix)
            else:
                Checkpoint(x=x).read(prefix)


def test_what_was_overwritten_is_named_once_however_many_boxes_it_has(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assign, "VERIFIED_BEFORE_BYTES", -1)
    write(prefix, Tiles(2, 1), x=torch.ones(8, 2))
    with open(f"{prefix}.data-00001-of-00002", "r+b") as file:
        file.write(b"\1")
    with as_rank(0, 2):
        x = sharded(torch.zeros(8, 2), mesh_of(2), [_StridedShard(0, split_factor=2)])
        assert len(parts_of(x)) == 2
        with pytest.raises(DataLossError) as caught:
            Checkpoint(x=x).read(prefix)
    assert caught.value.overwritten == ("(root).x",)


def test_a_checkpoint_that_is_replaced_while_parts_are_read_is_noticed(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(prefix, x=torch.ones(8, 2))
    check = CheckpointReader._check_not_replaced

    def replaced_before(reader: CheckpointReader) -> None:
        write(prefix, x=torch.zeros(8, 2))
        check(reader)

    monkeypatch.setattr(CheckpointReader, "_check_not_replaced", replaced_before)
    with as_rank(0, 2):
        x = sharded(torch.zeros(8, 2), mesh_of(2), [Shard(0)])
        with pytest.raises(DataLossError, match="replaced"):
            Checkpoint(x=x).read(prefix)


# Torch.


def test_autograd_learns_of_the_change(prefix: str) -> None:
    write(prefix, x=torch.ones(8, 2))
    with as_rank(0, 2):
        x = nn.Parameter(sharded(torch.zeros(8, 2), mesh_of(2), [Shard(0)]))
        before = x._version
        Checkpoint(x=x).read(prefix)
        assert x._version > before
        assert torch.equal(local_of(x), torch.ones(4, 2))


def test_who_gives_a_tensor_another_local_one_while_told_of_the_progress_is_stopped(prefix: str) -> None:
    write(prefix, x=torch.ones(8, 2))
    with as_rank(0, 2):
        x = sharded(torch.zeros(8, 2), mesh_of(2), [Shard(0)])

        def interfere(num_done: int, num_bytes: int) -> None:
            x._local_tensor = torch.zeros(4, 2)

        with pytest.raises(RestoreError, match=r"\(root\)\.x was given other memory"):
            Checkpoint(x=x).read(prefix, CheckpointOptions(progress=interfere))


# In the graph.


def test_a_tensor_of_several_processes_is_one_value_and_cannot_be_written_as_if_it_were_here() -> None:
    with as_rank(0, 2):
        x = sharded(torch.zeros(8, 2), mesh_of(2), [Shard(0)])
        snapshot = collect(capture({"x": x}))
        assert snapshot.keys == ["x/.ATTRIBUTES/VARIABLE_VALUE", "_CHECKPOINTABLE_OBJECT_GRAPH"]
        assert snapshot.values[0] is x
        with pytest.raises(UnsupportedValueError, match=r"x/\.ATTRIBUTES/VARIABLE_VALUE: only a part of the DTensor"):
            make_plan(snapshot.keys, snapshot.values)


def test_one_that_is_attached_later_gets_its_value_then(prefix: str) -> None:
    write(prefix, x=torch.ones(8, 2))
    checkpoint = Checkpoint()
    status = checkpoint.read(prefix)
    with as_rank(1, 2):
        x = sharded(torch.zeros(8, 2), mesh_of(2), [Shard(0)])
        checkpoint.x = x
        status.assert_consumed()
        assert torch.equal(local_of(x), torch.ones(4, 2))
        (restored,) = status.report().restored
        assert restored.shape == (8, 2)


@pytest.mark.parametrize("is_parameter", [True, False])
def test_tensors_on_the_meta_device_get_memory_for_their_part(prefix: str, is_parameter: bool) -> None:
    write(prefix, x=torch.arange(16.0).reshape(8, 2))
    with as_rank(1, 2):
        placements = [Shard(1)]
        x: torch.Tensor = sharded(torch.zeros(8, 2, device="meta"), mesh_of(2), placements)
        x = nn.Parameter(x) if is_parameter else x
        status = Checkpoint(x=x).read(prefix)
        status.run_restore_ops("cpu")
        status.assert_consumed()
        assert is_dtensor(x)
        assert (tuple(x.placements), x.requires_grad) == (tuple(placements), is_parameter)
        assert torch.equal(local_of(x), torch.arange(1.0, 16.0, 2).reshape(8, 1))


# Optimizers.


def trained(model: nn.Module, num_steps: int) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for step in range(num_steps):
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, step + number + 1.0)
        optimizer.step()
    return optimizer


def test_slots_of_adamw_are_made_like_their_parameters(prefix: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 5)
    optimizer = trained(model, 2)
    write(prefix, model=model, optimizer=optimizer)
    expected: Mapping[Any, Mapping[str, torch.Tensor]] = optimizer.state
    for rank, num_steps in itertools.product(range(2), (0, 1)):
        with as_rank(rank, 2):
            live = nn.Linear(3, 5)
            for name, parameter in list(live.named_parameters()):
                setattr(live, name, nn.Parameter(sharded(torch.zeros_like(parameter), mesh_of(2), [Shard(0)])))
            other = trained(live, num_steps)
            Checkpoint(model=live, optimizer=other).read(prefix, FAST).assert_consumed()
            for mine, theirs in zip(live.parameters(), model.parameters(), strict=True):
                for name in ("exp_avg", "exp_avg_sq"):
                    slot = other.state[mine][name]
                    assert slot.placements == mine.placements
                    assert not slot.requires_grad
                    assert torch.equal(
                        local_of(slot), local_of(sharded(expected[theirs][name], mesh_of(2), [Shard(0)]))
                    )
                assert other.state[mine]["step"] == 2
                assert not is_dtensor(other.state[mine]["step"])


def test_a_slot_of_another_shape_is_made_as_torch_makes_it(prefix: str) -> None:
    with as_rank(0, 2):
        parameter = nn.Parameter(sharded(torch.zeros(4, 6), mesh_of(2), [Shard(0)]))
        optimizer = torch.optim.Adafactor([parameter])
        adapter = OptimizerAdapter(optimizer)
        adapter._lookup_dependency("param_groups")
        slots = adapter._slot_destinations(parameter, {"row_var": (torch.float32, (4, 1))})
        assert slots is not None
        assert is_dtensor(slots["row_var"])
        assert math.prod(slots["row_var"].shape) == 4
