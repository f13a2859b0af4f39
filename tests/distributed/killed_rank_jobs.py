"""What the ranks do in ``test_killed_ranks``."""

from __future__ import annotations

import os
import pkgutil
import signal
import time
from typing import Any

from torch import nn

from torch_trackckpt import Checkpoint, CheckpointOptions
from torch_trackckpt.errors import RankError

_PLACES = {
    "as it begins": "torch_trackckpt.distributed.group.Group.session",
    "saying what it has": "torch_trackckpt.save.ranks.Offer.summary",
    "planning": "torch_trackckpt.checkpoint.plan_of",
    "writing": "torch_trackckpt.bundle.writer.BundleWriter.add_rows",
    "having written": "torch_trackckpt.distributed.group.Session._say",
    "joining": "torch_trackckpt.save.joint.JointSave._joined",
    "renaming data": "torch_trackckpt.storage.local.LocalStorage.rename",
    "renaming the index": "torch_trackckpt.storage.local.LocalStorage.rename",
    "naming it": "torch_trackckpt.checkpoint.write_checkpoint_state",
    "telling of it": "torch_trackckpt.distributed.group.Session._say",
}
# How often the function is called before, where that is not at once.
# A session for the number of the save comes first.
_CALLS_BEFORE = {"having written": {0: 4, 1: 2}, "renaming the index": {0: 2}, "telling of it": {0: 5}}
PLACES = list(_PLACES)


def die(rank: int, size: int, path: str, victim: int, place: str, is_async: bool) -> Any:
    """One process is killed in the middle of the second save."""
    model = nn.Linear(100, 100)
    nn.init.ones_(model.weight)
    checkpoint = Checkpoint(model=model)
    options = CheckpointOptions(durable=False, enable_async=is_async, rank_silence_seconds=4)
    checkpoint.save(f"{path}/ckpt", options)
    checkpoint.sync()
    nn.init.zeros_(model.weight)
    if rank == victim:
        module, _, name = _PLACES[place].rpartition(".")
        left = _CALLS_BEFORE.get(place, {}).get(rank, 0)
        owner = pkgutil.resolve_name(module)
        original = getattr(owner, name)

        def killed(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **named)

        setattr(owner, name, killed)
    began = time.monotonic()
    try:
        checkpoint.save(f"{path}/ckpt", options)
        checkpoint.sync()
    except RankError as error:
        return {"error": str(error), "seconds": time.monotonic() - began}
    return {"error": "", "seconds": time.monotonic() - began}
