"""Bytes of tensors on their way to other memory, and the table of what is there then."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch

from torch_trackckpt import _native

TYPES = (torch.Tensor, torch.nn.Parameter)
GUARD = 77


def made_of(*tensors: object) -> _native.TensorTable:
    return _native.TensorTable(list(tensors), TYPES)


def column(numbers: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(numbers, dtype=np.int64)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("num_callers", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_every_byte_arrives_and_none_beside(seed: int, num_callers: int, num_threads: int) -> None:
    """Whatever the sizes, where rows begin, and how many threads copy at once."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    sizes = [rng.choice([0, 1, 63, 4097, 65_536, 100_003, 5_000_011]) for _ in range(rng.randrange(1, 40))]
    live = [bits(torch.randint(0, 255, (size,), dtype=torch.uint8))[rng.randrange(2) :] for size in sizes]
    offsets, end = [], rng.randrange(100)
    for tensor in live:
        offsets.append(end)
        end += tensor.nbytes + rng.choice([0, 1, 64])
    memory = torch.full((end + 10,), GUARD, dtype=torch.uint8)
    expected = memory.clone()
    for tensor, offset in zip(live, offsets, strict=True):
        expected[offset : offset + tensor.nbytes] = tensor

    copy = _native.TensorCopy(made_of(*live), np.arange(len(live)), memory.data_ptr(), column(offsets), memory)
    callers = [threading.Thread(target=copy.run, args=(num_threads,)) for _ in range(num_callers)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert torch.equal(memory, expected)


def test_whoever_calls_again_finds_everything_there() -> None:
    live, memory = torch.ones(8), torch.zeros(8)
    copy = _native.TensorCopy(made_of(live), column([0]), memory.data_ptr(), column([0]), memory)
    copy.run(1)
    live.zero_()
    copy.run(2)
    assert memory.tolist() == [1] * 8


def test_only_the_given_rows_are_copied() -> None:
    live, memory = [torch.full((4,), float(i)) for i in range(3)], torch.full((8,), -1.0)
    table = made_of(*live)
    _native.TensorCopy(table, column([2, 1]), memory.data_ptr(), column([16, 0]), memory).run(1)
    assert memory.tolist() == [1] * 4 + [2] * 4


def test_both_sides_stay_alive_as_long_as_the_copy() -> None:
    live, memory = torch.full((1000,), 3.0), torch.zeros(1000)
    copy = _native.TensorCopy(made_of(live), column([0]), memory.data_ptr(), column([0]), memory)
    view = memory.view(1000)
    del live, memory
    copy.run(1)
    assert view.tolist() == [3] * 1000


@pytest.mark.parametrize("rows", [[1], [7], [-1]])
def test_a_row_that_is_not_plain_or_not_there_is_refused(rows: list[int]) -> None:
    with pytest.raises(IndexError):
        _native.TensorCopy(made_of(torch.ones(1), b"text"), column(rows), 0, column([0] * len(rows)), object())


def test_offsets_are_as_many_as_rows() -> None:
    table = made_of(torch.ones(1))
    with pytest.raises(ValueError, match="not an offset for each row"):
        _native.TensorCopy(table, column([0]), 0, column([]), object())
    with pytest.raises(ValueError, match="not an address for each row"):
        table.relocated(column([0, 1]), [], [], object())


def test_there_is_a_tensor_for_each_of_the_others() -> None:
    table = made_of(torch.ones(4)[::2])
    with pytest.raises(ValueError, match="a tensor for each of the others"):
        table.relocated(column([0]), [0], [], object())


def test_no_thread_is_one() -> None:
    live, memory = torch.ones(4), torch.zeros(4)
    _native.TensorCopy(made_of(live), column([0]), memory.data_ptr(), column([0]), memory).run(0)
    assert torch.equal(live, memory)


def test_a_relocated_table_has_the_same_rows_elsewhere_and_keeps_no_object() -> None:
    live = [
        torch.ones(2, 3),
        torch.ones(4, 4).t()[1:],
        b"text",
        torch.nn.Parameter(torch.ones(5, dtype=torch.bfloat16)),
    ]
    memory = torch.zeros(256, dtype=torch.uint8)
    slot = memory[64:112].view(torch.float32).view(3, 4)
    table = made_of(*live)
    assert table.others() == [1, 2]
    begin = memory.data_ptr()
    copied = table.relocated(column([begin, 0, 0, begin + 128]), [1], [slot], memory)
    assert len(copied) == 4
    assert copied.others() == [2]
    assert copied.sizes() == [24, 48, 0, 10]
    assert copied.addresses() == [memory.data_ptr(), memory.data_ptr() + 64, 0, memory.data_ptr() + 128]
    live[0].add_(1)
    assert table.changed() == [0]
    assert copied.changed() == []
    with pytest.raises(IndexError):
        copied.value(0)
    assert table.value(0) is live[0]
