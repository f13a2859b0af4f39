"""Saving many small tensors again and again: `frozen_saver` beside `Checkpoint.write`.

    python benchmarks/frozen_saver.py [--directory /dev/shm] [--tensors 2000] [--rounds 15]

Each parameter has Adam's three tensors, so that four times as many are saved. Both ways write the same bytes, without
waiting for a disk. They take turns, each in the order of the round; medians are shown, and the median of the ratios
within a round. The second line has what the frozen saver saves itself: walking the graph, beside comparing it and
encoding the python states. The last two lines are the same without Python's garbage collector, to which the many small
objects of a walk give work that depends on what else the process holds.
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
from torch import nn

from torch_trackckpt import Checkpoint, CheckpointOptions, frozen_saver
from torch_trackckpt.graph.frozen import FrozenGraph
from torch_trackckpt.graph.walk import walk


def training(num_tensors: int) -> Checkpoint:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(num_tensors // 2)))
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return Checkpoint(model=model, optimizer=optimizer)


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def compare(title: str, whole: Callable[[], object], frozen: Callable[[], object], rounds: int) -> None:
    """Prints a line: the medians of both, and of their ratio."""
    times: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        first = seconds(whole if number % 2 else frozen)
        second = seconds(frozen if number % 2 else whole)
        if number:  # the first warms up
            times.append((first, second) if number % 2 else (second, first))
    medians = [statistics.median(column) * 1000 for column in zip(*times, strict=True)]
    ratio = statistics.median(of_whole / of_frozen for of_whole, of_frozen in times)
    print(f"{title:32}{medians[0]:10.1f} ms{medians[1]:10.1f} ms{ratio:8.1f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm") if os.path.isdir("/dev/shm") else None)
    parser.add_argument("--tensors", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    checkpoint = training(arguments.tensors)
    saver, graph = frozen_saver(checkpoint), FrozenGraph(checkpoint, dict)
    options = CheckpointOptions(durable=False)
    print(f"{arguments.tensors} parameters, {os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}")
    print(f"{'':32}{'write':>13}{'frozen':>13}{'gain':>10}")
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:

        def measure(note: str) -> None:
            compare(
                "save" + note,
                lambda: checkpoint.write(f"{directory}/whole", options),
                lambda: saver.save(f"{directory}/frozen", options),
                arguments.rounds,
            )
            compare("graph alone" + note, lambda: walk(checkpoint), graph.values, arguments.rounds)

        measure("")
        gc.disable()
        measure(", no garbage collector")
        for suffix in (".index", ".data-00000-of-00001"):
            assert Path(f"{directory}/whole{suffix}").read_bytes() == Path(f"{directory}/frozen{suffix}").read_bytes()


if __name__ == "__main__":
    main()
