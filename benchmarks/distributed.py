"""Sharded saves and restores by two processes, beside torch.distributed.checkpoint in the same run.

    python -m benchmarks.distributed [--ranks 2] [--mib 384] [--place /dev/shm] [--rounds 5]

A model of FSDP2 with AdamW's state, of so many MiB for all processes together, and a model of many small tensors, where
bytes hardly count. Both ways begin with what a program has, modules and optimizers, and end with it: what torch has to
do to make a state dict of it, or to put one back, counts. Contenders take turns; printed are medians. Files are written
to memory, so that it does not matter who waits for a disk.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from torch_trackckpt import Checkpoint, CheckpointOptions

dcp: Any = importlib.import_module("torch.distributed.checkpoint")
_OPTIONS = CheckpointOptions(durable=False)


class Training:
    """A sharded model and its optimizer, after a step.

    Args:
        side: that of the square weights.
        count: how many layers.
    """

    def __init__(self, side: int, count: int) -> None:
        self.model = nn.Sequential(*(nn.Linear(side, side) for _ in range(count)))
        for layer in self.model:
            fully_shard(layer)
        fully_shard(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.optimizer.step()
        self.checkpoint = Checkpoint(model=self.model, optimizer=self.optimizer)

    def save_ours(self, place: Path) -> None:
        self.checkpoint.write(place / "ckpt", _OPTIONS)

    def restore_ours(self, place: Path) -> None:
        self.checkpoint.read(place / "ckpt").assert_consumed()

    def save_dcp(self, place: Path) -> None:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=place / "dcp")

    def restore_dcp(self, place: Path) -> None:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        state = {"model": model, "optimizer": optimizer}
        dcp.load(state, checkpoint_id=place / "dcp")
        set_state_dict(self.model, self.optimizer, model_state_dict=model, optim_state_dict=optimizer)


def seconds(act: Callable[[Path], None], place: Path) -> float:
    dist.barrier()
    start = time.perf_counter()
    act(place)
    dist.barrier()
    return time.perf_counter() - start


def work(mib: int, place: Path, rounds: int) -> None:
    """One of the processes."""
    dist.init_process_group("gloo")
    side = 1024
    shapes = {"large": (side, max(1, round(mib * 2**20 / 3 / 4 / side / (side + 1)))), "many small": (16, 300)}
    found: dict[str, dict[str, list[float]]] = {}
    for name, (width, count) in shapes.items():
        training = Training(width, count)
        times: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            for what in ("save_ours", "save_dcp", "restore_ours", "restore_dcp"):
                taken = seconds(getattr(training, what), place)
                if number:
                    times.setdefault(what, []).append(taken)
            dist.barrier()
            if dist.get_rank() == 0:
                for path in place.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            dist.barrier()
        found[name] = times
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributed")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--mib", type=int, default=384, help="parameters and optimizer state of all processes")
    parser.add_argument("--place", type=Path, default=Path("/dev/shm"), help="a directory in memory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work-in", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.work_in is not None:
        work(chosen.mib, chosen.work_in, chosen.rounds)
        return
    with socket.socket() as found, tempfile.TemporaryDirectory(dir=chosen.place) as place:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
        found.close()
        command = [sys.executable, "-m", "benchmarks.distributed", *sys.argv[1:], "--work-in", place]
        processes = []
        for rank in range(chosen.ranks):
            own = {"RANK": str(rank), "WORLD_SIZE": str(chosen.ranks), "OMP_NUM_THREADS": "1"}
            environment = {**os.environ, **own, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        answers = [process.communicate()[0] for process in processes]
        if any(process.returncode for process in processes):
            raise SystemExit("A process failed.")
    for name, times in json.loads(answers[0].splitlines()[-1]).items():
        median = {what: statistics.median(taken) for what, taken in times.items()}
        for way in ("save", "restore"):
            ours, theirs = median[f"{way}_ours"], median[f"{way}_dcp"]
            print(
                f"{name:12}{way:10} ours {ours * 1e3:8.1f} ms   DCP {theirs * 1e3:8.1f} ms   ours / DCP "
                f"{ours / theirs:.2f}"
            )


if __name__ == "__main__":
    main()
