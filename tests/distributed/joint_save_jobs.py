"""What the ranks do in ``test_joint_saves``."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
from typing import Any, NoReturn
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from distributed.trainings import FAST, MODES, listed
from torch import nn

from torch_trackckpt import Checkpoint, CheckpointManager, CheckpointOptions, RNGState, frozen_saver
from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.errors import DataLossError


def model_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def trained(model: nn.Module, steps: int = 2) -> torch.optim.Optimizer:
    """With the same gradients on all ranks."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.rand(4, 8, generator=generator)).square().sum().backward()
        optimizer.step()
    return optimizer


def save_replicated(rank: int, size: int, path: str) -> Any:
    """The same model on all ranks, and random states that are not."""
    model = model_of(0)
    optimizer = trained(model)
    model[1].running_mean.fill_(rank)
    torch.manual_seed(100 + rank)
    random.seed(rank)
    np.random.seed(rank)
    checkpoint = Checkpoint(model=model, optimizer=optimizer, rng=RNGState())
    saved = checkpoint.save(f"{path}/ckpt", FAST)
    files = sorted(os.listdir(path))
    live = listed({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    draws = [torch.rand(3).tolist(), random.random(), np.random.rand()]
    dist.barrier()

    other = model_of(1)
    resumed = Checkpoint(model=other, optimizer=torch.optim.AdamW(other.parameters()), rng=RNGState())
    resumed.restore(saved).assert_consumed()
    again = [torch.rand(3).tolist(), random.random(), np.random.rand()]
    return {
        "path": saved,
        "files": files,
        "live": live,
        "written": checkpoint.io_metrics.writes.last_bytes,
        "state": listed({"model": other.state_dict(), "optimizer": resumed.optimizer.state_dict()}),
        "draws": draws,
        "again": again,
    }


def save_in_turn(rank: int, size: int, path: str, mode: str) -> Any:
    """Several saves, of each of which the values are those of the call."""
    options = MODES[mode]
    model = nn.Linear(300, 300)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    checkpoint = Checkpoint(model=model, optimizer=optimizer)
    paths = []
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, -1.0)
        optimizer.step()
        paths.append(checkpoint.save(f"{path}/ckpt", options))
    checkpoint.sync()
    return paths


def manage(rank: int, size: int, path: str) -> Any:
    """Saves by a manager, and goes back from a checkpoint that one rank finds damaged."""
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.bias)
    manager = CheckpointManager(Checkpoint(model=model), path, max_to_keep=2)
    for number in range(4):
        nn.init.constant_(model.weight, number)
        manager.save(options=FAST)
    listed = list(manager.checkpoints)
    on_disk = sorted(os.listdir(path))
    again = CheckpointManager(Checkpoint(model=model), path, max_to_keep=2)
    dist.barrier()

    # Damage that only one rank sees.
    def damaged(*_: Any) -> NoReturn:
        raise DataLossError("a bad page")

    restore = Checkpoint.restore
    if rank == 1:
        Checkpoint.restore = lambda self, save_path, options=None: (  # type: ignore[method-assign]
            damaged() if save_path.endswith("-4") else restore(self, save_path, options)
        )
    restored = again.restore_or_initialize()
    weight = model.weight[0, 0].item()
    return {"listed": listed, "files": on_disk, "again": again.checkpoints, "restored": restored, "weight": weight}


class _Odd:
    """Cannot say what its state is."""

    def state_dict(self) -> dict[str, Any]:
        raise ValueError("odd")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def fail_and_go_on(rank: int, size: int, path: str, failing: int, how: str) -> Any:
    """One rank fails, and the next save works."""
    parts: dict[str, Any] = {"model": nn.Linear(100, 100)}
    nn.init.ones_(parts["model"].weight)
    checkpoint = Checkpoint(**parts)
    first = checkpoint.save(f"{path}/ckpt", FAST)
    before = sorted(os.listdir(path))
    if how == "adapter" and rank == failing:
        checkpoint.odd = _Odd()
    patched: Any = contextlib.nullcontext()
    if how == "full disk" and rank == failing:
        full = OSError(errno.ENOSPC, "No space left on device")
        patched = mock.patch.object(BundleWriter, "add_rows", side_effect=full)
    if how == "commit" and rank == failing:
        broken = OSError(errno.EIO, "Input/output error")
        patched = mock.patch("torch_trackckpt.save.commit._publish", side_effect=broken)
    error = ""
    with patched:
        try:
            checkpoint.save(f"{path}/ckpt", FAST)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
    dist.barrier()
    after = sorted(os.listdir(path))
    dist.barrier()
    if "odd" in vars(checkpoint):
        del checkpoint.odd
    second = checkpoint.save(f"{path}/ckpt", FAST)
    return {"first": first, "before": before, "error": error, "after": after, "second": second}


def fail_in_background(rank: int, size: int, path: str) -> Any:
    """A callback of an asynchronous save raises in one process, which learns of it at its next save."""

    def raise_there() -> None:
        if rank == 1:
            raise ZeroDivisionError("in a callback")

    step = torch.zeros(3)
    checkpoint = Checkpoint(step=step, other=nn.Parameter(torch.zeros(5)))
    outcomes = []
    for number in range(4):
        step.fill_(number)
        checkpoint.other.data.fill_(number)
        callbacks = (raise_there,) if number == 1 else ()
        options = CheckpointOptions(durable=False, enable_async=True, experimental_write_callbacks=callbacks)
        try:
            outcomes.append(checkpoint.write(f"{path}/ckpt-{number}", options)[-1])
        except Exception as raised:
            outcomes.append(type(raised).__name__)
    checkpoint.sync()
    return outcomes


def save_alone_before(rank: int, size: int, path: str) -> Any:
    """One process has saved by itself, so that its counter is ahead."""
    checkpoint = Checkpoint(x=torch.zeros(2))
    if rank == 1:
        checkpoint.save(f"{path}/mine", CheckpointOptions(durable=False, all_ranks=False))
    return [checkpoint.save(f"{path}/ckpt", FAST), int(checkpoint.save_counter)]


def last_save_at_exit(rank: int, size: int, path: str) -> Any:
    """The last asynchronous save takes long after the main thread is over."""
    checkpoint = Checkpoint(x=torch.zeros(100))
    write = BundleWriter.add_rows

    def slowly(self: BundleWriter, *arguments: Any, **named: Any) -> None:
        time.sleep(6)
        write(self, *arguments, **named)

    BundleWriter.add_rows = slowly  # type: ignore[method-assign]
    options = CheckpointOptions(durable=False, enable_async=True, rank_silence_seconds=3)
    checkpoint.save(f"{path}/ckpt", options)
    return "ends"


def large_states(rank: int, size: int, path: str) -> Any:
    """States that are larger than what a store takes at once."""

    class State:
        def __init__(self) -> None:
            self.numbers = [rank] * 5_000_000

        def state_dict(self) -> dict[str, Any]:
            return {"numbers": self.numbers}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.numbers = state["numbers"]

    state = State()
    checkpoint = Checkpoint(state=state)
    saved = checkpoint.save(f"{path}/ckpt", FAST)
    state.numbers = []
    checkpoint.restore(saved).assert_consumed()
    return state.numbers == [rank] * 5_000_000


def of_two_kinds(rank: int, size: int, path: str) -> Any:
    """A parameter in one process, and a tensor in the other."""
    w = torch.zeros(3)
    try:
        Checkpoint(w=nn.Parameter(w) if rank == 0 else w, a=nn.Linear(2, 2)).save(f"{path}/ckpt", FAST)
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return ""


def frozen(rank: int, size: int, path: str) -> Any:
    """A saver of the same objects, one of which has a state by rank."""
    torch.manual_seed(rank)
    saver = frozen_saver(Checkpoint(rng=RNGState()))
    saved = saver.save(f"{path}/ckpt", FAST)
    expected = torch.rand(3)
    saver.restore(saved).assert_consumed()
    return torch.equal(expected, torch.rand(3))


def group_anew(rank: int, size: int, path: str) -> Any:
    """The processes part, and each saves for itself."""
    checkpoint = Checkpoint(x=torch.zeros(2))
    checkpoint.save(f"{path}/ckpt", FAST)
    dist.barrier()
    store = dist.distributed_c10d._get_default_store()
    dist.destroy_process_group()
    mine = checkpoint.write(f"{path}/mine-{rank}", FAST)
    dist.init_process_group("gloo", store=dist.PrefixStore("again", store), rank=size - 1 - rank, world_size=size)
    together = checkpoint.write(f"{path}/again", FAST)
    return [mine, together, sorted(name for name in os.listdir(path) if name.startswith("again"))]
