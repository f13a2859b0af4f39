"""From live tensors to memory that can be written: as it is where possible, else by copies."""

from typing import Any

import numpy as np
import planned
import pytest
import torch
from stored_dtypes import DTYPES

from torch_trackckpt.errors import ValueChangedError
from torch_trackckpt.save import staging
from torch_trackckpt.save.staging import SLACK_BYTES, StagingBuffer, StagingMemory, stage
from torch_trackckpt.sharding import MaxShardSizePolicy
from torch_trackckpt.trackable import Value


def numbered(*tensors: torch.Tensor) -> dict[str, Value]:
    return {str(number): tensor for number, tensor in enumerate(tensors)}


def copies_of(*tensors: torch.Tensor, num_threads: int = 1) -> list[list[torch.Tensor | int]]:
    """What is handed over at once: copies, and the rows of tensors that are written from where they lie."""
    return [
        [torch.as_tensor(item.value) for item in batch.items] if batch.rows is None else batch.rows.tolist()
        for batch in stage(planned.plan(numbered(*tensors)), 0, StagingMemory(num_threads))
    ]


def test_a_contiguous_tensor_is_not_copied() -> None:
    """C026"""
    assert copies_of(torch.ones(3, requires_grad=True), torch.nn.Parameter(torch.ones(3))) == [[0, 1]]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3).t(),
        torch.arange(8.0)[::2],
        torch.ones(1).expand(4),
        torch.tensor([1 + 2j]).conj(),
        torch.tensor([1 + 2j]).conj().imag,
    ],
    ids=["transposed", "strided", "expanded", "conjugate", "negative"],
)
def test_any_other_layout_is_copied_to_its_row_major_values(tensor: torch.Tensor) -> None:
    """C026"""
    ((staged,),) = copies_of(tensor)
    assert isinstance(staged, torch.Tensor)
    assert staged.is_contiguous()
    assert not staged.is_conj()
    assert not staged.is_neg()
    assert torch.equal(staged, tensor)


def test_values_are_handed_over_and_copied_a_bounded_number_of_bytes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "BATCH_BYTES", 64)
    strided = [torch.full((16,), float(number))[::2] for number in range(5)]
    large = [torch.ones(17), torch.ones(16)]

    batches = copies_of(strided[0], *large, *strided[1:], torch.ones(1), torch.ones(2), torch.ones(14))
    shapes = [[value if isinstance(value, int) else len(value) for value in batch] for batch in batches]
    assert shapes == [[8], [1], [2], [8, 8], [8, 8], [7, 8], [9]]

    of_two_threads = copies_of(*strided, num_threads=2)
    assert [len(batch) for batch in of_two_threads] == [1] * 5


# ------------------------------------------------------------------------------------------ the buffer of a snapshot


def snapshot_of(buffer: StagingBuffer, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """What is written of a snapshot."""
    return [torch.as_tensor(value) for value in planned.values_of(buffer.snapshot(planned.plan(numbered(*tensors))))]


def addresses_of(buffer: StagingBuffer, *tensors: torch.Tensor) -> list[int]:
    return buffer.snapshot(planned.plan(numbered(*tensors))).table.addresses()


def bits(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return bytes(plain.reshape(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_value_of_every_dtype_is_copied_bit_for_bit(dtype: torch.dtype, device: torch.device) -> None:
    """C314"""
    raw = torch.arange(48, dtype=torch.uint8)
    live = (raw % 2 == 0 if dtype is torch.bool else raw.view(dtype)).to(device)
    (copy,) = snapshot_of(StagingBuffer(), live)
    assert (copy.dtype, copy.shape, copy.device.type) == (live.dtype, live.shape, "cpu")
    assert bits(copy) == bits(live)


LAYOUTS = {
    "transposed": lambda: torch.arange(6.0).reshape(2, 3).t(),
    "strided": lambda: torch.arange(8, dtype=torch.int16)[1::3],
    "expanded": lambda: torch.ones(1).expand(3, 4),
    "channels last": lambda: torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "conjugate": lambda: torch.tensor([1 + 2j, 3 - 4j]).conj(),
    "negative": lambda: torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
    "empty": lambda: torch.empty(0, 3),
    "scalar": lambda: torch.tensor(7, dtype=torch.int64),
    "parameter": lambda: torch.nn.Parameter(torch.ones(2)),
    "with a history": lambda: torch.nn.Parameter(torch.ones(2)) * 2,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_value_of_every_layout_is_copied_to_row_major_memory_of_the_buffer(layout: str, device: torch.device) -> None:
    """C026, C314"""
    live = LAYOUTS[layout]().to(device)
    first, copy, last = snapshot_of(StagingBuffer(), torch.ones(3, dtype=torch.bool), live, torch.ones(1))
    assert torch.equal(copy, live.detach().cpu())
    assert first.tolist() == [True] * 3
    assert last.tolist() == [1.0]


def test_values_made_in_inference_mode_are_copied_in_and_outside_of_it() -> None:
    buffer = StagingBuffer()
    with torch.inference_mode():
        live = torch.arange(3)
        (inside,) = snapshot_of(buffer, live)
        assert inside.tolist() == [0, 1, 2]
    (outside,) = snapshot_of(buffer, live)
    assert outside.tolist() == [0, 1, 2]
    assert not outside.is_inference()


def test_a_default_device_of_the_caller_is_not_that_of_the_buffer() -> None:
    plan = planned.plan({"x": torch.ones(2)})
    with torch.device("meta"):
        copied_plan = StagingBuffer().snapshot(plan)
    (copied,) = planned.values_of(copied_plan)
    assert torch.equal(torch.as_tensor(copied), torch.ones(2))


def test_a_snapshot_does_not_follow_its_values() -> None:
    """C314: strings neither, whose arrays the program may change in place."""
    tensor, strings = torch.zeros(3), np.array([b"old", b"old"], dtype=object)
    plan = StagingBuffer().snapshot(planned.plan({"t": tensor, "s": strings}))
    tensor.fill_(1)
    strings[0] = b"new"
    copied_tensor, copied_strings = planned.values_of(plan)
    assert torch.equal(torch.as_tensor(copied_tensor), torch.zeros(3))
    assert list(copied_strings) == [b"old", b"old"]  # type: ignore[call-overload]


def test_each_value_begins_at_a_cache_line_and_the_buffer_is_no_larger_than_that_takes() -> None:
    buffer = StagingBuffer()
    first, *rest = addresses_of(buffer, torch.ones(3), torch.ones(1, dtype=torch.bool), torch.ones(20), torch.ones(2))
    assert [address - first for address in rest] == [64, 128, 256]
    assert first % 64 == 0
    assert buffer.num_bytes == 64 + 64 + 128 + 64 + SLACK_BYTES


def test_the_buffer_is_used_again_and_replaced_when_it_is_too_small_or_far_too_large() -> None:
    buffer = StagingBuffer()
    assert buffer.num_bytes == 0
    count = SLACK_BYTES // 4
    first = addresses_of(buffer, torch.ones(count))
    assert addresses_of(buffer, torch.ones(2 * count)) == first
    assert addresses_of(buffer, torch.ones(3 * count // 2)) == first
    addresses_of(buffer, torch.ones(8 * count))
    assert buffer.num_bytes == 9 * SLACK_BYTES
    addresses_of(buffer, torch.ones(16))
    assert buffer.num_bytes == 64 + SLACK_BYTES


def test_parts_of_a_sharded_plan_stay_in_their_shards() -> None:
    live = torch.arange(12.0).reshape(6, 2)
    plan = planned.plan({"x": live, "s": b"text"}, MaxShardSizePolicy(24))
    copied = StagingBuffer().snapshot(plan)
    assert copied.keys == plan.keys
    assert [rows.tolist() for rows in copied.shards] == [rows.tolist() for rows in plan.shards]
    assert {row: (item.dtype, item.part) for row, item in copied.others.items()} == {
        row: (item.dtype, item.part) for row, item in plan.others.items()
    }
    for value, copy in zip(planned.values_of(plan), planned.values_of(copied), strict=True):
        assert torch.equal(copy, value) if isinstance(value, torch.Tensor) else copy == value  # type: ignore[arg-type]


def test_a_value_that_another_thread_changes_while_it_is_copied_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """C058"""
    live = torch.ones(3)
    copy = StagingBuffer._copy

    def changed_by_another_thread(*args: Any) -> None:
        copy(*args)
        live.add_(1)

    monkeypatch.setattr(StagingBuffer, "_copy", changed_by_another_thread)
    with pytest.raises(ValueChangedError, match=r"1 values changed .* the first is 0"):
        snapshot_of(StagingBuffer(), live)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_buffer_is_pinned_where_a_value_comes_from_a_device() -> None:
    buffer = StagingBuffer()
    snapshot_of(buffer, torch.ones(4))
    assert not buffer._memory.is_pinned()
    on_device, on_cpu = snapshot_of(buffer, torch.full((4,), 2.0, device="cuda"), torch.ones(4))
    assert buffer._memory.is_pinned()
    assert (on_device.tolist(), on_cpu.tolist()) == ([2.0] * 4, [1.0] * 4)
