"""From live tensors to memory that can be written: as it is where possible, else by bounded copies."""

import itertools

import pytest
import torch

from torch_trackckpt.graph.walk import NamedValue
from torch_trackckpt.save import staging
from torch_trackckpt.save.plan import make_plan
from torch_trackckpt.save.staging import stage


def batches_of(*tensors: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    values = [NamedValue(str(index), tensor) for index, tensor in enumerate(tensors)]
    (shard,) = stage(make_plan(values))
    return [tuple(torch.as_tensor(item.value) for item in batch) for batch in shard]


def test_a_contiguous_tensor_is_staged_as_its_own_memory() -> None:
    """C026"""
    tensor = torch.ones(3, requires_grad=True)
    ((staged,),) = batches_of(tensor)
    assert staged.data_ptr() == tensor.data_ptr()


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
    ((staged,),) = batches_of(tensor)
    assert staged.is_contiguous()
    assert not staged.is_conj()
    assert not staged.is_neg()
    assert torch.equal(staged, tensor)


def test_copies_are_made_a_bounded_number_of_bytes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "STAGING_BYTES", 64)
    strided = [torch.full((16,), float(number))[::2] for number in range(5)]
    contiguous = [torch.ones(1000) for _ in range(5)]

    batches = batches_of(*itertools.chain.from_iterable(zip(strided, contiguous, strict=True)))

    copied = [sum(tensor.nbytes for tensor in batch if tensor.numel() == 8) for batch in batches]
    assert copied == [64, 64, 32]
    assert [tensor.numel() for batch in batches for tensor in batch] == [8, 1000] * 5
