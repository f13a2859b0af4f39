"""What the ranks do in the tests of saves that do not come together at once, and of their end."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from torch_trackckpt import Checkpoint, CheckpointManager, CheckpointOptions
from torch_trackckpt.distributed.group import Session
from torch_trackckpt.errors import RankError
from torch_trackckpt.management import manager as manager_module
from torch_trackckpt.management.ledger import Ledger

FAST = CheckpointOptions(durable=False)


class _Odd:
    """Cannot say what its state is."""

    def state_dict(self) -> dict[str, Any]:
        raise ValueError("odd")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def save_alone_and_go_on(rank: int, size: int, path: str, alone: int) -> Any:
    """One process saves by mistake, is interrupted, and has made one checkpoint more than the others."""
    x = torch.zeros(2)
    if rank == alone:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        try:
            Checkpoint(x=x).save(f"{path}/ckpt", FAST)
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError
    dist.barrier()
    first, second = Checkpoint(x=x), Checkpoint(x=x)
    if rank == alone:
        first, second = second, first
    return [first.save(f"{path}/ckpt", FAST), second.save(f"{path}/other", FAST), first.save(f"{path}/ckpt", FAST)]


def leave_one_out(rank: int, size: int, path: str, is_async: bool) -> Any:
    """One process does not come to one of the saves, as after an error in a step."""
    x = torch.zeros(3)
    checkpoint = Checkpoint(x=x, mine=torch.nn.Parameter(torch.zeros(5)))
    step = torch.tensor(0)
    manager = CheckpointManager(checkpoint, path, step_counter=step)
    options = CheckpointOptions(durable=False, enable_async=is_async)
    done = []
    for number in range(7):
        step.fill_(number)
        x.fill_(number)
        checkpoint.mine.data.fill_(number)
        if rank == 1 and number == 2:
            continue
        try:
            manager.save(number, options=options)
        except RankError:
            continue
        done.append(number)
    manager.sync()
    return done


def leave_at_once(rank: int, size: int, path: str) -> Any:
    """The process that keeps the store ends right after its last save, of whose end the other hears late."""
    checkpoint = Checkpoint(x=torch.zeros(2))
    checkpoint.write(f"{path}/ckpt", FAST)
    dist.barrier()
    if rank == 1:
        hear = Session._hear_decision

        def hear_late(self: Session, stage: int) -> Any:
            time.sleep(1)
            return hear(self, stage)

        Session._hear_decision = hear_late  # type: ignore[method-assign]
    checkpoint.write(f"{path}/ckpt", FAST)
    if rank == 0:
        sys.stdout.flush()
        os._exit(0)
    # Nothing more is asked of the store, which is gone.
    return os._exit(7)


def fail_and_exit(rank: int, size: int, path: str) -> Any:
    """The last save fails before anything is written, and the program keeps the checkpoint to its end."""
    checkpoint = Checkpoint(x=torch.zeros(2))
    if rank == 1:
        checkpoint.odd = _Odd()
    try:
        checkpoint.write(f"{path}/ckpt", FAST)
    except (ValueError, RankError) as error:
        sys.modules[__name__].__dict__["kept"] = checkpoint
        return type(error).__name__
    return ""


def look_at_another_state(rank: int, size: int, path: str, newest: int) -> Any:
    """The processes see different states of the directory, as by the caches of a shared file system."""
    x = torch.zeros(2)
    checkpoint = Checkpoint(x=x)
    manager = CheckpointManager(checkpoint, path)
    for number in range(1, newest + 1):
        x.fill_(number)
        manager.save(options=FAST)
    dist.barrier()
    read = manager_module.read_ledger

    def read_old(directory: str, now: float) -> Ledger:
        ledger = read(directory, now)
        if rank == 0:
            return ledger
        if newest == 0:
            return Ledger(f"{directory}/gone-1", (), now, (f"{directory}/gone-1",))
        # Nothing, or one checkpoint less.
        listed = ledger.listed[1:] if rank == 1 else ()
        return Ledger(listed[0] if listed else None, (), now, listed)

    begun: list[int] = []
    with mock.patch.object(manager_module, "read_ledger", read_old):
        again = CheckpointManager(checkpoint, path, init_fn=lambda: begun.append(rank))
        x.fill_(-1)
        restored = again.restore_or_initialize()
        found = {"restored": restored, "x": x.tolist(), "begun": len(begun), "latest": again.latest_checkpoint}
        again.save(options=FAST)
        return {**found, "after": again.checkpoints, "newest": again.latest_checkpoint}
