"""How long `save` holds up a training, synchronous against asynchronous.

    python benchmarks/async_stall.py [--directory DIR] [--gib 1.0] [--rounds 7] [--small]

The state is that of save_restore.py: a transformer's parameters and their AdamW state, float32; with --small, 20,000
tensors of 1 KiB. The ways take turns in one process, round by round, and a save begins only when the one before is
complete and the disk idle, so what is measured is the call alone. Medians are shown, and the median of the ratio to the
synchronous durable save of the same round. The first asynchronous save also allocates its buffer and is shown apart.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from save_restore import Training

import torch_trackckpt as tt

WAYS = {
    "sync, durable": tt.CheckpointOptions(),
    "sync": tt.CheckpointOptions(durable=False),
    "async, durable": tt.CheckpointOptions(enable_async=True),
}


def training(gib: float) -> tuple[tt.Checkpoint, int]:
    """24 layers of 12 width^2 parameters, three float32 for each."""
    made = Training(width=int((gib * 2**30 / (24 * 12 * 12)) ** 0.5) // 8 * 8)
    return tt.Checkpoint(model=made.model, optimizer=made.optimizer), made.nbytes()


def many_small() -> tuple[tt.Checkpoint, int]:
    tensors = {f"t{number}": torch.rand(256) for number in range(20_000)}
    return tt.Checkpoint(tensors=tensors), sum(tensor.nbytes for tensor in tensors.values())


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def stall(checkpoint: tt.Checkpoint, prefix: Path, options: tt.CheckpointOptions) -> float:
    gc.collect()
    os.sync()
    held_up = seconds(lambda: checkpoint.write(prefix, options))
    checkpoint.sync()
    return held_up


def report(times: dict[str, list[float]], nbytes: int) -> None:
    reference = times["sync, durable"]
    print(f"{'':20}{'ms':>12}{'GB/s':>12}{'x shorter':>12}")
    for name, rounds in times.items():
        median = statistics.median(rounds)
        ratio = statistics.median(base / own for base, own in zip(reference, rounds, strict=True))
        print(f"{name:20}{median * 1e3:12.1f}{nbytes / median / 1e9:12.2f}{ratio:12.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, help="where to write; a temporary directory by default")
    parser.add_argument("--gib", type=float, default=1.0, help="size of the state")
    parser.add_argument("--small", action="store_true", help="20,000 small tensors instead")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    checkpoint, nbytes = many_small() if arguments.small else training(arguments.gib)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        print(
            f"{nbytes / 2**30:.2f} GiB to {directory}, {arguments.rounds} rounds, torch {torch.__version__}, "
            f"{os.cpu_count()} cores, {platform.machine()}"
        )
        prefix = Path(directory) / "ckpt"
        first = stall(checkpoint, prefix, WAYS["async, durable"])
        times: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(arguments.rounds):
            for name, options in WAYS.items():
                times[name].append(stall(checkpoint, prefix, options))
    report(times, nbytes)
    print(f"{'first async':20}{first * 1e3:12.1f}")


if __name__ == "__main__":
    main()
