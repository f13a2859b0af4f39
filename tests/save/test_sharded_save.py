"""Checkpoints in several data files: what is there, what is refused, and what is left when something fails."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import planned
import pytest
import torch
import witness
from checkpoints import X, names_in, thing
from sharded import Words, contents, files
from stored_dtypes import DTYPES

from torch_trackckpt import (
    Checkpoint,
    CheckpointOptions,
    CheckpointReader,
    latest_checkpoint,
    list_variables,
    load_variable,
)
from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.errors import CheckpointNotFoundError, ValueChangedError
from torch_trackckpt.save import turns
from torch_trackckpt.save.staging import StagingMemory, stage
from torch_trackckpt.sharding import (
    MaxShardSizePolicy,
    ShardByTaskPolicy,
    ShardingCallback,
)
from torch_trackckpt.storage.local import LocalStorage
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY

GOLDEN = Path(__file__).parents[1] / "golden"
COUNTER = "save_counter/.ATTRIBUTES/VARIABLE_VALUE"


def sharded(limit: int, *, durable: bool = False) -> CheckpointOptions:
    return CheckpointOptions(durable=durable, experimental_sharding_callback=MaxShardSizePolicy(limit))


# ------------------------------------------------------------------------------------------- what is there


@pytest.mark.parametrize("durable", [False, True])
def test_a_sharded_save_leaves_its_data_files_one_index_and_nothing_else(tmp_path: Path, durable: bool) -> None:
    """C294, C295"""
    group = Checkpoint(x=torch.arange(100))
    path = group.save(tmp_path / "new" / "ckpt", sharded(160, durable=durable))
    assert path == latest_checkpoint(tmp_path / "new")
    assert names_in(tmp_path / "new") == ["checkpoint", *files("ckpt-1", 6)]


@pytest.mark.parametrize("limit", [40, 100, 256, 1000, 1 << 40])
def test_no_data_file_holds_more_than_the_limit_beside_the_object_graph(prefix: str, limit: int) -> None:
    """C282, C283, C287"""
    tree = {"a": torch.randn(7, 11), "b": torch.randn(3, 4, 5), "c": torch.arange(9), "d": torch.tensor(2.0)}
    Checkpoint(**tree).write(prefix, sharded(limit))
    names = names_in(os.path.dirname(prefix))
    graph = witness.read_bundle(prefix)[OBJECT_GRAPH_KEY]
    sizes = [os.path.getsize(f"{prefix}.data-{n:05d}-of-{len(names) - 1:05d}") for n in range(len(names) - 1)]
    sizes[graph.shard_id] -= graph.size
    total = sum(t.nbytes for t in tree.values())
    assert names == files("ckpt", len(sizes))
    assert max(sizes) <= limit
    assert sum(sizes) == total
    assert len(sizes) >= -(-total // limit)


@pytest.mark.parametrize("policy", [None, ShardByTaskPolicy(), MaxShardSizePolicy(1 << 40)], ids=["", "task", "size"])
def test_what_fits_into_one_data_file_is_the_file_of_an_unsharded_save(
    tmp_path: Path, policy: ShardingCallback | None
) -> None:
    """C281"""
    tree = {"a": torch.randn(3), "e": torch.zeros(0, 2), "s": thing(w=torch.tensor(True)), "words": Words(b"a", b"b")}
    (tmp_path / "plain").mkdir()
    Checkpoint(**tree).write(tmp_path / "plain" / "ckpt")
    Checkpoint(**tree).write(tmp_path / "task" / "ckpt", CheckpointOptions(experimental_sharding_callback=policy))
    assert contents(tmp_path / "plain") == contents(tmp_path / "task")
    assert names_in(tmp_path / "task") == files("ckpt", 1)


def test_a_file_of_tensorflow_is_written_again_from_its_values(tmp_path: Path) -> None:
    """C028, C282, C286, C361"""
    reader = CheckpointReader(GOLDEN / "obj_sharded" / "ckpt-1")
    root = thing(
        big=reader.get_tensor("big/.ATTRIBUTES/VARIABLE_VALUE"),
        small=reader.get_tensor("small/.ATTRIBUTES/VARIABLE_VALUE"),
        words=Words(*reader.get_tensor("words/.ATTRIBUTES/VARIABLE_VALUE")),
    )
    Checkpoint(root).save(tmp_path / "ckpt", sharded(1500))
    ours, theirs = contents(tmp_path), contents(GOLDEN / "obj_sharded")
    assert {name: ours[name] for name in files("ckpt-1", 3)} == {name: theirs[name] for name in files("ckpt-1", 3)}
    assert ours.keys() == theirs.keys()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_of_any_dtype_keeps_its_shape_and_bits_in_pieces(prefix: str, dtype: torch.dtype) -> None:
    """C293"""
    bits = torch.randint(0, 2 if dtype is torch.bool else 256, (6, 10 * dtype.itemsize), dtype=torch.uint8)
    tensor = bits.view(dtype)
    Checkpoint(x=tensor).write(prefix, sharded(13 * dtype.itemsize))
    assert (X, [6, 10]) in list_variables(prefix)
    found = load_variable(prefix, X)
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(found.view(torch.uint8), bits)
    assert len(CheckpointReader(prefix).stored_slices(X)) >= 5


@pytest.mark.parametrize(
    "layout",
    [
        torch.arange(60.0).reshape(6, 10).T,
        torch.arange(10.0).expand(6, 10),
        torch.arange(120.0).reshape(6, 20)[:, ::2],
        torch.randn(6, 10, dtype=torch.complex64).conj(),
        torch.randn(6, 10, dtype=torch.complex64).conj().imag,
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.nn.Parameter(torch.randn(6, 10)),
        torch.randn(6, 10, requires_grad=True) * 2,
    ],
    ids=["transposed", "expanded", "strided", "conjugate", "negative", "channels_last", "parameter", "not a leaf"],
)
def test_a_tensor_of_any_layout_is_stored_in_pieces(prefix: str, layout: torch.Tensor) -> None:
    """C026, C293"""
    Checkpoint(x=layout).write(prefix, sharded(56))
    assert torch.equal(load_variable(prefix, X), layout)


def test_a_tensor_of_inference_mode_is_stored_in_pieces(prefix: str) -> None:
    """C026"""
    with torch.inference_mode():
        tensor = torch.arange(60.0).reshape(6, 10)
        Checkpoint(x=tensor).write(prefix, sharded(56))
    assert torch.equal(load_variable(prefix, X), tensor)


def test_pieces_of_a_device_are_stored(prefix: str, device: torch.device) -> None:
    """C026"""
    tensor = torch.arange(60.0, device=device).reshape(6, 10)
    Checkpoint(x=tensor).write(prefix, sharded(56))
    assert torch.equal(load_variable(prefix, X), tensor.cpu())


def test_rows_are_staged_as_the_memory_of_their_tensor() -> None:
    """C026"""
    tensor = torch.arange(12.0).reshape(4, 3)
    plan = planned.plan({"x": tensor}, MaxShardSizePolicy(24))
    memory = StagingMemory(1)
    staged = [item.value for shard in (0, 1) for batch in stage(plan, shard, memory) for item in batch.items]
    assert [value.data_ptr() - tensor.data_ptr() for value in staged if isinstance(value, torch.Tensor)] == [0, 24]


# ------------------------------------------------------------------------------------------------ restoring


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7), torch.nn.Linear(7, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.randn(4, 5)).sum().backward()
    optimizer.step()
    return model, optimizer


def numbers_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[object]:
    state = optimizer.state_dict()["state"]
    return [tensor.tolist() for part in (model.state_dict(), *state.values()) for tensor in part.values()]


@pytest.mark.parametrize("limit", [1, 50, 333, 10_000])
def test_a_model_and_its_optimizer_are_restored_from_many_files_as_from_one(prefix: str, limit: int) -> None:
    """C292"""
    model, optimizer = trained()
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix, sharded(limit))
    other, its_optimizer = trained()
    Checkpoint(model=other, optimizer=its_optimizer).restore(path).assert_consumed()
    assert numbers_of(other, its_optimizer) == numbers_of(model, optimizer)


def test_a_part_of_the_objects_is_restored_from_many_files(prefix: str) -> None:
    """C292"""
    model, optimizer = trained()
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix, sharded(50))
    other, _ = trained()
    Checkpoint(model=other).restore(path).assert_existing_objects_matched()
    assert [t.tolist() for t in other.state_dict().values()] == [t.tolist() for t in model.state_dict().values()]


def test_strings_scalars_and_empty_tensors_are_restored_from_many_files(prefix: str) -> None:
    """C285, C286, C291, C292"""
    words = Words(b"", b"a" * 300, b"\x00\xff", b"words")
    values = {"empty": torch.zeros(0, 3), "large": torch.tensor(1 + 2j, dtype=torch.complex128)}
    path = Checkpoint(words=words, **values).write(prefix, sharded(9))
    other = Words()
    restored = {"empty": torch.ones(0, 3), "large": torch.tensor(0j, dtype=torch.complex128)}
    Checkpoint(words=other, **restored).read(path).assert_consumed()
    assert other.words.tolist() == words.words.tolist()
    assert torch.equal(restored["large"], values["large"])


def test_values_in_other_files_are_read_where_one_is_missing(prefix: str) -> None:
    """C292"""
    group = Checkpoint(a=torch.ones(4), b=torch.full((4,), 2.0))
    group.write(prefix, sharded(16))
    os.unlink(f"{prefix}.data-00000-of-00002")
    assert load_variable(prefix, "b/.ATTRIBUTES/VARIABLE_VALUE").tolist() == [2.0] * 4
    with pytest.raises(CheckpointNotFoundError, match="data-00000-of-00002"):
        load_variable(prefix, "a/.ATTRIBUTES/VARIABLE_VALUE")


# ------------------------------------------------------------------------------------------------ replacing


@pytest.mark.parametrize("counts", list(itertools.product([1, 2, 5], repeat=3)), ids=str)
def test_a_checkpoint_is_replaced_by_one_of_another_number_of_files(tmp_path: Path, counts: tuple[int, ...]) -> None:
    """C294, C295"""
    for number, count in enumerate(counts):
        tensor = torch.full((10,), number, dtype=torch.uint8)
        Checkpoint(x=tensor).write(tmp_path / "ckpt", sharded(-(-10 // count)))
        assert names_in(tmp_path) == files("ckpt", count)
        assert torch.equal(load_variable(tmp_path / "ckpt", X), tensor)


def test_the_files_of_similar_prefixes_are_left_alone(tmp_path: Path) -> None:
    """C295"""
    others = ["ckpt-1", "ckpt.data-00000-of-00002x", "ckpt.old", "ckpt.data"]
    for name in others:
        Checkpoint(x=torch.ones(4)).write(tmp_path / name, sharded(8))
    before = contents(tmp_path)
    Checkpoint(x=torch.ones(6)).write(tmp_path / "ckpt", sharded(8))
    Checkpoint(x=torch.ones(4)).write(tmp_path / "ckpt")
    assert {name: data for name, data in contents(tmp_path).items() if name not in files("ckpt", 1)} == before


# -------------------------------------------------------------------------------------- failures in the middle


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("failing", range(5))
def test_a_file_that_cannot_be_finished_leaves_nothing_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, existing: bool
) -> None:
    """C295"""
    group = Checkpoint(x=torch.arange(10))
    if existing:
        group.write(tmp_path / "ckpt", sharded(32))
    before = contents(tmp_path)
    finish_shard = BundleWriter.finish_shard

    def finish(writer: BundleWriter, shard: int) -> None:
        if shard == failing:
            raise OSError(errno.ENOSPC, "the disk is full")
        finish_shard(writer, shard)

    monkeypatch.setattr(BundleWriter, "finish_shard", finish)
    with pytest.raises(OSError, match="the disk is full"):
        group.write(tmp_path / "ckpt", sharded(16))
    assert contents(tmp_path) == before


def test_an_interrupt_before_the_index_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C295"""

    def finish(writer: BundleWriter) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BundleWriter, "finish", finish)
    with pytest.raises(KeyboardInterrupt):
        Checkpoint(x=torch.arange(10)).write(tmp_path / "ckpt", sharded(16))
    assert names_in(tmp_path) == []


class FailingStorage(LocalStorage):
    """Raises at one of its operations."""

    def __init__(self, failing: int) -> None:
        super().__init__(durable=False)
        self.failing, self.num_operations = failing, 0

    def __getattribute__(self, name: str) -> Any:
        if name in ("exists", "list", "make_directory", "rename", "remove", "sync_directory"):
            self.num_operations += 1
            if self.num_operations == self.failing:
                raise OSError(errno.EIO, f"{name} fails")
        return super().__getattribute__(name)


def test_whatever_operation_fails_the_checkpoint_is_whole_or_nothing_of_it_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C295"""
    left: dict[int, list[str]] = {}
    for failing in itertools.count(1):
        storage = FailingStorage(failing)
        monkeypatch.setattr(turns, "storage_for", lambda path, durable, storage=storage: storage)
        folder = tmp_path / str(failing)
        folder.mkdir()
        group = Checkpoint(x=torch.arange(10))
        try:
            group.write(folder / "ckpt", sharded(32))
        except OSError:
            pass
        else:
            assert failing > 8
            break
        if names_in(folder) != files("ckpt", 3):
            left[failing] = names_in(folder)
    assert {failing: names for failing, names in left.items() if names} == {}
    assert len(left) > 5


# Between which shards a tensor changes: rows are its own memory, columns are copies of it.
TORN = {
    "rows": (torch.zeros(6, 4), 32),
    "columns": (torch.zeros(4, 8)[:, ::2], 32),
    "after its own file": (torch.zeros(4), 16),
}


@pytest.mark.parametrize("case", list(TORN))
def test_a_value_that_changes_between_two_files_is_noticed_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """C058: its pieces would be of different moments."""
    x, limit = TORN[case][0].clone(memory_format=torch.preserve_format), TORN[case][1]
    finish_shard = BundleWriter.finish_shard

    def finish_and_train(writer: BundleWriter, shard: int) -> None:
        finish_shard(writer, shard)
        if shard == 0:
            x.add_(1)

    monkeypatch.setattr(BundleWriter, "finish_shard", finish_and_train)
    with pytest.raises(ValueChangedError, match=r"values changed .* no checkpoint"):
        Checkpoint(x=x, y=torch.zeros(8)).write(tmp_path / "ckpt", sharded(limit))
    assert names_in(tmp_path) == []


def test_no_file_stays_open(prefix: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    Checkpoint(x=torch.arange(1000)).write(prefix, sharded(40))
    assert len(os.listdir("/proc/self/fd")) == before
