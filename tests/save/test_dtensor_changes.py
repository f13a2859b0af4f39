"""Tensors that lie in several processes change while they are being saved: whichever version torch counts is seen.

torch counts versions of a ``DTensor`` and of its local tensor apart: each operation moves one of them, if any.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from every_rank import as_rank, mesh_of, sharded
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

from torch_trackckpt import Checkpoint, CheckpointOptions, load_checkpoint
from torch_trackckpt.errors import ValueChangedError
from torch_trackckpt.save import late, staging
from torch_trackckpt.save.late import LateCopy

KEY = "x/.ATTRIBUTES/VARIABLE_VALUE"


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with as_rank(0, 1):
        yield


def replace_local(x: DTensor) -> None:
    x._local_tensor = x._local_tensor.clone()


CHANGES: dict[str, Callable[[DTensor], Any]] = {
    "through the whole": lambda x: x.add_(1),
    "by a copy": lambda x: x.copy_(x + 1),
    "through the local tensor": lambda x: x.to_local().add_(1),
    "through a view of the local tensor": lambda x: x.to_local()[:2].add_(1),
    "through an alias": lambda x: x.detach().add_(1),
    "of its part for another": replace_local,
}


def during_a_save(x: DTensor, change: Callable[[], object], path: Path) -> None:
    """Saves `x`, which changes when everything has been written or copied."""

    def progress(done: int, total: int) -> None:
        if done == total:
            with torch.no_grad():
                change()

    Checkpoint(x=x).write(path, CheckpointOptions(durable=False, progress=progress))


@pytest.mark.parametrize("placement", [Shard(0), Replicate()], ids=str)
@pytest.mark.parametrize("how", CHANGES)
def test_a_change_during_a_save_is_noticed_whoever_counts_it(how: str, placement: Any, tmp_path: Path) -> None:
    x = sharded(torch.zeros(4, 3), mesh_of(1), [placement])
    with pytest.raises(ValueChangedError, match=f"1 values changed .* the first is {KEY}; no checkpoint"):
        during_a_save(x, lambda: CHANGES[how](x), tmp_path / "ckpt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", CHANGES)
def test_a_change_while_an_asynchronous_save_copies_is_noticed(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = sharded(torch.zeros(4, 3), mesh_of(1), [Shard(0)])
    copy = staging.StagingBuffer._copy

    def copied(*arguments: Any) -> None:
        copy(*arguments)
        CHANGES[how](x)

    monkeypatch.setattr(staging.StagingBuffer, "_copy", copied)
    with pytest.raises(ValueChangedError, match="1 values changed"):
        Checkpoint(x=x).write(tmp_path / "ckpt", CheckpointOptions(durable=False, enable_async=True))


def test_a_change_after_an_asynchronous_save_has_copied_is_none_of_the_checkpoint(tmp_path: Path) -> None:
    x = sharded(torch.zeros(4, 3), mesh_of(1), [Shard(0)])
    checkpoint = Checkpoint(x=x)
    checkpoint.write(tmp_path / "ckpt", CheckpointOptions(durable=False, enable_async=True))
    x.add_(1)
    checkpoint.sync()
    assert torch.equal(torch.as_tensor(load_checkpoint(tmp_path / "ckpt").get_tensor(KEY)), torch.zeros(4, 3))


def test_the_step_of_an_optimizer_of_fsdp_is_noticed(tmp_path: Path) -> None:
    """One whose operations are of single tensors: torch counts nothing for lists of DTensors."""
    model = nn.Linear(5, 7)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    checkpoint = Checkpoint(model=model, optimizer=optimizer)

    def progress(done: int, total: int) -> None:
        if done == total:
            optimizer.step()

    with pytest.raises(ValueChangedError, match=r"values changed .* the first is model/"):
        checkpoint.write(tmp_path / "ckpt", CheckpointOptions(durable=False, progress=progress))


def test_overlapped_saves_copy_them_at_the_call_since_torch_counts_no_operations_on_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late, "_LEAST_BYTES", 1)
    changed = threading.Event()
    run = LateCopy.run

    def run_later(copies: LateCopy) -> None:
        assert changed.wait(60)
        run(copies)

    monkeypatch.setattr(LateCopy, "run", run_later)
    x = nn.Parameter(sharded(torch.ones(4, 3), mesh_of(1), [Shard(0)]))
    plain = nn.Parameter(torch.ones(3))
    checkpoint = Checkpoint(x=x, plain=plain, optimizer=torch.optim.SGD([x, plain]))
    options = CheckpointOptions(durable=False, enable_async=True, async_copy="overlapped")
    checkpoint.write(tmp_path / "ckpt", options)
    with torch.no_grad():
        torch._foreach_add_([x], 1)
    changed.set()
    checkpoint.sync()
    assert x.to_local().sum() == 24
    assert torch.equal(torch.as_tensor(load_checkpoint(tmp_path / "ckpt").get_tensor(KEY)), torch.ones(4, 3))


def test_a_tensor_that_stays_as_it_is_has_not_changed(tmp_path: Path) -> None:
    x = sharded(torch.ones(4, 3), mesh_of(1), [Shard(0)])
    during_a_save(x, lambda: x + 1, tmp_path / "ckpt")
    assert torch.equal(torch.as_tensor(load_checkpoint(tmp_path / "ckpt").get_tensor(KEY)), torch.ones(4, 3))
