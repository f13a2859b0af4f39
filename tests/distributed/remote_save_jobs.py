"""What the ranks do in ``test_remote_saves``."""

from __future__ import annotations

import contextlib
import errno
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from distributed.trainings import FAST, MODES, sharded_training, train, whole
from torch import nn

from torch_trackckpt import Checkpoint, CheckpointOptions, CheckpointReader, RNGState, latest_checkpoint
from torch_trackckpt.bundle.writer import BundleWriter


def save_remotely(rank: int, size: int, url: str, is_async: bool) -> Any:
    """Sharded saves to remote storage: new ones, and one in the place of another."""
    torch.manual_seed(0)
    model, optimizer = sharded_training()
    train(model, optimizer, range(2))
    checkpoint = Checkpoint(model=model, optimizer=optimizer, rng=RNGState())
    options = MODES["first" if is_async else "synchronous"]
    checkpoint.write(f"{url}/same", options)
    train(model, optimizer, range(2, 3))
    checkpoint.write(f"{url}/same", options)
    train(model, optimizer, range(3, 4))
    first = checkpoint.save(f"{url}/ckpt", options)
    checkpoint.sync()
    expected = whole(model, optimizer)
    again, its_optimizer = sharded_training()
    Checkpoint(model=again, optimizer=its_optimizer, rng=RNGState()).restore(first).assert_consumed()
    return {"expected": expected, "found": whole(again, its_optimizer), "path": first}


def fail_remotely(rank: int, size: int, url: str, failing: int) -> Any:
    """One rank cannot upload."""
    checkpoint = Checkpoint(model=nn.Linear(100, 100))
    first = checkpoint.save(f"{url}/ckpt", FAST)
    dist.barrier()
    error = ""
    broken = OSError(errno.EIO, "the network is down")
    patched: Any = mock.patch.object(BundleWriter, "finish", side_effect=broken)
    with patched if rank == failing else contextlib.nullcontext():
        try:
            checkpoint.save(f"{url}/ckpt", FAST)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
    dist.barrier()
    latest = latest_checkpoint(url)
    dist.barrier()
    third = checkpoint.save(f"{url}/ckpt", FAST)
    return {"first": first, "error": error, "latest": latest, "third": third}


def fail_in_callback(rank: int, size: int, url: str, failing: int) -> Any:
    """What is called when there is the checkpoint raises in one process."""

    def raise_there() -> None:
        if rank == failing:
            raise ZeroDivisionError("in a callback")

    model = nn.Linear(100, 100)
    nn.init.zeros_(model.weight)
    checkpoint = Checkpoint(model=model)
    checkpoint.write(f"{url}/ckpt", FAST)
    nn.init.ones_(model.weight)
    error = ""
    try:
        checkpoint.write(f"{url}/ckpt", CheckpointOptions(durable=False, experimental_write_callbacks=(raise_there,)))
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    dist.barrier()
    found = CheckpointReader(f"{url}/ckpt").get_tensor("model/weight/.ATTRIBUTES/VARIABLE_VALUE").tolist()[0][0]
    dist.barrier()
    again = checkpoint.write(f"{url}/again", FAST)
    return {"error": error, "found": found, "again": again}
