"""Rows of a table and the stored values that belong into them: found, compared, checked, read."""

from pathlib import Path

import numpy as np
import pytest
import torch
import witness
from native import crafted

from torch_trackckpt._native import RowPlan, TensorTable, crc32c
from torch_trackckpt.errors import CheckpointNotFoundError, DataLossError

TYPES = (torch.Tensor, torch.nn.Parameter)


def write(prefix: Path, tensors: dict[str, torch.Tensor]) -> None:
    crafted.write_bundle(
        prefix,
        [
            (key.encode(errors="surrogateescape"), crafted.FLOAT, tuple(tensor.shape), tensor.numpy().tobytes())
            for key, tensor in tensors.items()
        ],
    )


def plan_for(prefix: Path, live: dict[str, torch.Tensor]) -> RowPlan:
    return RowPlan(crafted.open_reader(prefix), list(live), TensorTable(list(live.values()), TYPES))


def random_tensors(count: int, size: int = 10) -> dict[str, torch.Tensor]:
    return {f"layer/{i // 8}/part/{i % 8}/weight": torch.rand(size + i % 5) for i in range(count)}


def zeros_like(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}


def are_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 5000])
def test_every_row_gets_the_value_of_its_key(prefix: Path, count: int, num_threads: int) -> None:
    stored = random_tensors(5000)
    write(prefix, stored)
    live = zeros_like(dict(list(stored.items())[:count][::-1]))
    plan = plan_for(prefix, live)
    assert plan.misfits() == []
    assert plan.nbytes == sum(tensor.nbytes for tensor in live.values())
    plan.check()
    plan.verify(num_threads=num_threads)
    assert not any(tensor.any() for tensor in live.values())
    assert plan.read(num_threads=num_threads) == plan.nbytes
    assert plan.read(num_threads=num_threads) == 0
    assert are_equal(live, stored)
    assert plan.touched() == list(range(count))


def test_one_value_can_go_to_several_rows(prefix: Path) -> None:
    stored = {"a": torch.rand(3), "b": torch.rand(3)}
    write(prefix, stored)
    live = [torch.zeros(3) for _ in range(4)]
    RowPlan(crafted.open_reader(prefix), ["b", "a", "b", "b"], TensorTable(live, TYPES)).read(num_threads=2)
    assert [torch.equal(tensor, stored[key]) for tensor, key in zip(live, "babb", strict=True)] == [True] * 4


def test_rows_without_a_value_of_their_type_and_shape_are_told_and_nothing_is_read(prefix: Path) -> None:
    """C065, C066, C067"""
    write(prefix, {"a": torch.rand(2, 3), "b": torch.rand(2, 3), "c": torch.rand(2, 3), "scalar": torch.rand(())})
    live = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros(3, 2),
        "c": torch.zeros(2, 3, dtype=torch.int32),
        "missing": torch.zeros(2, 3),
        "scalar": torch.zeros(1),
        "": torch.zeros(1),
        "\ud800": torch.zeros(1),
    }
    plan = plan_for(prefix, live)
    assert plan.misfits() == [1, 2, 3, 4, 5, 6]
    for use in (plan.check, lambda: plan.verify(num_threads=1), lambda: plan.read(num_threads=1)):
        with pytest.raises(ValueError, match="rows that do not fit"):
            use()
    assert not live["a"].any()


def test_rows_that_are_not_plain_are_left_alone(prefix: Path) -> None:
    stored = {"a": torch.rand(3), "b": torch.rand(3), "c": torch.rand(3)}
    write(prefix, stored)
    live = {"a": torch.zeros(3), "b": torch.zeros(6)[::2], "c": torch.zeros(3, device="meta")}
    plan = plan_for(prefix, live)
    assert plan.misfits() == []
    assert plan.read(num_threads=1) == stored["a"].nbytes
    assert torch.equal(live["a"], stored["a"])
    assert not live["b"].any()
    assert plan.touched() == [0]


def test_keys_may_be_any_text_that_the_bytes_of_a_key_stand_for(prefix: Path) -> None:
    stored = {"é/ü": torch.rand(2), "bytes \udcff\udc80": torch.rand(2), "plain": torch.rand(2)}
    write(prefix, stored)
    live = zeros_like(stored)
    plan_for(prefix, live).read(num_threads=1)
    assert are_equal(live, stored)


def test_values_are_read_in_steps(prefix: Path) -> None:
    stored = {f"x{i}": torch.rand(100) for i in range(20)} | {"large": torch.rand(1 << 20)}
    write(prefix, stored)
    live = zeros_like(stored)
    plan = plan_for(prefix, live)
    steps = []
    while step := plan.read(num_threads=2, max_bytes=1000):
        steps.append(step)
    assert sum(steps) == plan.nbytes
    assert len(steps) > 5
    assert are_equal(live, stored)


@pytest.mark.parametrize("num_threads", [1, 4])
def test_after_damage_the_touched_rows_are_known_and_nothing_more_is_read(prefix: Path, num_threads: int) -> None:
    """C382, C392"""
    stored = random_tensors(200, 1000)
    write(prefix, stored)
    reader = crafted.open_reader(prefix)
    damaged = list(stored)[77]
    entry = reader.find(damaged.encode())
    assert entry is not None
    crafted.flip(crafted.data_file(prefix), entry.offset + 8)
    live = zeros_like(stored)
    plan = plan_for(prefix, live)
    for use in (plan.verify, plan.read):
        with pytest.raises(DataLossError, match=f"Checksum does not match: key {damaged},"):
            use(num_threads=num_threads)
    changed = [i for i, tensor in enumerate(live.values()) if tensor.any()]
    assert plan.touched() == changed
    assert 77 not in changed
    assert plan.read(num_threads=num_threads) == 0
    assert plan.touched() == changed


def test_a_value_outside_of_its_file_is_found_before_anything_is_read(prefix: Path) -> None:
    """C384"""
    stored = {"a": torch.rand(3), "b": torch.rand(3)}
    write(prefix, stored)
    crafted.cut(crafted.data_file(prefix), 23)
    live = zeros_like(stored)
    plan = plan_for(prefix, live)
    for use in (plan.check, lambda: plan.verify(num_threads=1), lambda: plan.read(num_threads=1)):
        with pytest.raises(DataLossError, match="key b lies at offset 12, size 12, but the file has 23 bytes"):
            use()
    assert not live["a"].any()


def test_a_size_that_contradicts_the_shape_is_found(prefix: Path) -> None:
    entries = {b"x": crafted.entry(crafted.FLOAT, (2,), size=4)}
    crafted.write_crafted(prefix, entries, bytes(8))
    with pytest.raises(DataLossError, match="Invalid size in bundle entry: key x; stored size 4; expected size 8"):
        plan_for(prefix, {"x": torch.zeros(2)}).check()


def test_a_missing_data_file_is_named(prefix: Path) -> None:
    write(prefix, {"x": torch.rand(2)})
    crafted.data_file(prefix).unlink()
    with pytest.raises(CheckpointNotFoundError):
        plan_for(prefix, {"x": torch.zeros(2)}).check()


def test_slices_make_up_a_row(prefix: Path) -> None:
    """C372"""
    array = np.random.default_rng(0).random((6, 4), np.float32)
    bundle = crafted.Bundle()
    bundle.add_array(b"a", crafted.FLOAT, array)
    bundle.add_slices(b"b", crafted.FLOAT, array, [((0, 3), (0, 4)), ((3, 3), (0, 1)), ((3, 3), (1, 3))])
    bundle.write(prefix)
    live = {"b": torch.zeros(6, 4), "a": torch.zeros(6, 4)}
    plan = plan_for(prefix, live)
    plan.verify(num_threads=2)
    plan.read(num_threads=2)
    assert plan.touched() == [0, 1]
    assert all(np.array_equal(tensor.numpy(), array) for tensor in live.values())


def test_damage_in_a_block_of_the_index_costs_only_the_keys_in_it(prefix: Path) -> None:
    stored = {f"layer/{i:05}": torch.rand(1) for i in range(3000)}
    crafted.write_bundle(
        prefix,
        [(key.encode(), crafted.FLOAT, (1,), tensor.numpy().tobytes()) for key, tensor in stored.items()],
        block_size=4096,
    )
    crafted.flip(crafted.index_file(prefix), 6000)
    late = zeros_like(dict(list(stored.items())[1000:]))
    plan_for(prefix, late).read(num_threads=1)
    assert are_equal(late, stored)
    with pytest.raises(DataLossError):
        plan_for(prefix, zeros_like(stored))


def test_there_is_a_key_for_each_row(prefix: Path) -> None:
    write(prefix, {"x": torch.rand(2)})
    with pytest.raises(ValueError, match="2 keys for 1 rows"):
        RowPlan(crafted.open_reader(prefix), ["x", "y"], TensorTable([torch.zeros(2)], TYPES))


def lying_block(shown: list[tuple[bytes, bytes]], hidden: list[tuple[bytes, bytes]]) -> bytes:
    """A block whose only restart point is within a value: who goes through it finds other records than who looks up."""
    varint = crafted.varint

    def record(key: bytes, value: bytes) -> bytes:
        return varint(0) + varint(len(key)) + varint(len(value)) + key + value

    inner = b"".join(record(*item) for item in hidden)
    last = crafted.entry(crafted.FLOAT, [1], size=4) + crafted.message_field(15, inner)
    content = b"".join(record(*item) for item in shown) + record(b"zzz", last)
    return content + content.index(inner).to_bytes(4, "little") + (1).to_bytes(4, "little")


def masked(content: bytes) -> int:
    return int(witness.mask(crc32c(content)))


@pytest.mark.parametrize("in_slices", [False, True], ids=["in one piece", "in slices"])
def test_an_index_that_says_different_things_of_a_key_cannot_write_behind_a_tensor(
    prefix: Path, in_slices: bool
) -> None:
    good, evil = np.zeros(2, np.float32).tobytes(), np.full(512, 666, np.float32).tobytes()
    head = [(b"", crafted.ONE_SHARD)]
    if in_slices:
        halves = [((0, 256),), ((256, 256),)]
        shown = [*head, (b"a", crafted.entry(crafted.FLOAT, [2], slices=[((0, 1),), ((1, 1),)]))]
        stored = [
            (
                witness.slice_key(b"a", part),
                crafted.entry(crafted.FLOAT, [256], 0, 8 + 1024 * i, 1024, masked(evil[:1024])),
            )
            for i, part in enumerate(halves)
        ]
        hidden = [*head, *sorted(stored), (b"a", crafted.entry(crafted.FLOAT, [512], slices=halves))]
    else:
        shown = [*head, (b"a", crafted.entry(crafted.FLOAT, [2], 0, 8, len(evil), masked(evil)))]
        hidden = [*head, (b"a", crafted.entry(crafted.FLOAT, [2], 0, 0, 8, masked(good)))]
    crafted.index_file(prefix).write_bytes(crafted.assemble([(b"zzz", lying_block(shown, hidden))]))
    Path(f"{prefix}.data-00000-of-00001").write_bytes(good + evil)
    memory = torch.zeros(1024)
    plan = RowPlan(crafted.open_reader(prefix), ["a"], TensorTable([memory[:2]], TYPES))
    assert plan.misfits() == []
    with pytest.raises(DataLossError, match=r"Invalid size|several entries"):
        plan.read(num_threads=1)
    assert not memory.any()
