"""Saving and restoring the state of a training, beside torch.save, safetensors and torch.distributed.checkpoint.

    python benchmarks/save_restore.py [--directory DIR] [--gib 1.0] [--rounds 5]

The state is a transformer's parameters and their AdamW state, float32. Each way of saving ends with files on the
given file system and each way of restoring with the values inside the live model and optimizer. The ways take turns,
round by round, so that a change of the machine's speed meets them all; medians are shown, and beside each the median
of its ratio to torch in the same round. Only this package checks the bytes; only its durable row waits for the disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import platform
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

import torch_trackckpt as tt


class Block(nn.Module):
    """The parameters of one transformer layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)


class Training:
    """A model and an AdamW that has state for each parameter."""

    def __init__(self, width: int, num_layers: int = 24) -> None:
        self.model = nn.Sequential(*(Block(width) for _ in range(num_layers)))
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        for parameter in self.model.parameters():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(1.0),
                "exp_avg": torch.rand_like(parameter),
                "exp_avg_sq": torch.rand_like(parameter),
            }

    def state_dict(self) -> dict[str, object]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by a flat name."""
        named = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            named |= {f"{name}/{slot}": value for slot, value in self.optimizer.state[parameter].items()}
        return named

    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to save and to restore."""

    name: str
    save: Callable[[Training, Path], object]
    restore: Callable[[Training, Path], object]


def save_tracked(durable: bool) -> Callable[[Training, Path], object]:
    options = tt.CheckpointOptions(durable=durable)
    return lambda training, path: checkpoint_of(training).write(path / "ckpt", options)


def restore_tracked(training: Training, path: Path) -> None:
    checkpoint_of(training).read(path / "ckpt").assert_consumed()


def checkpoint_of(training: Training) -> tt.Checkpoint:
    return tt.Checkpoint(model=training.model, optimizer=training.optimizer)


def restore_torch(training: Training, path: Path) -> None:
    state = torch.load(path / "state.pt", weights_only=True)
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])


def restore_safetensors(training: Training, path: Path) -> None:
    stored = safetensors.torch.load_file(path / "state.safetensors")
    with torch.no_grad():
        for name, tensor in training.tensors().items():
            tensor.copy_(stored[name])


def restore_dcp(training: Training, path: Path) -> None:
    dcp.load(training.tensors(), checkpoint_id=path)


WAYS = (
    Way(
        "torch.save / torch.load",
        lambda training, path: torch.save(training.state_dict(), path / "state.pt"),
        restore_torch,
    ),
    Way(
        "safetensors",
        lambda training, path: safetensors.torch.save_file(training.tensors(), path / "state.safetensors"),
        restore_safetensors,
    ),
    Way("DCP", lambda training, path: dcp.save(training.tensors(), checkpoint_id=path), restore_dcp),
    Way("torch_trackckpt", save_tracked(durable=False), restore_tracked),
    Way("torch_trackckpt, durable", save_tracked(durable=True), restore_tracked),
)


def seconds(action: Callable[[], object]) -> float:
    gc.collect()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(training: Training, directory: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds to save and to restore, for each way, round by round; one round to warm up is not counted."""
    times: dict[str, list[tuple[float, float]]] = {way.name: [] for way in WAYS}
    for round_index in range(rounds + 1):
        for way in WAYS:
            path = directory / "run"
            path.mkdir()
            os.sync()
            saved = seconds(lambda way=way, path=path: way.save(training, path))  # type: ignore[misc]
            restored = seconds(lambda way=way, path=path: way.restore(training, path))  # type: ignore[misc]
            shutil.rmtree(path)
            if round_index:
                times[way.name].append((saved, restored))
    return times


def report(times: dict[str, list[tuple[float, float]]], nbytes: int) -> None:
    reference = times[WAYS[0].name]
    print(f"{'':28}{'save':>24}{'restore':>24}")
    print(f"{'':28}{'GB/s':>12}{'x torch':>12}{'GB/s':>12}{'x torch':>12}")
    for name, rounds in times.items():
        cells = ""
        for column in (0, 1):
            median = statistics.median(row[column] for row in rounds)
            ratio = statistics.median(base[column] / row[column] for base, row in zip(reference, rounds, strict=True))
            cells += f"{nbytes / median / 1e9:12.2f}{ratio:12.2f}"
        print(f"{name:28}{cells}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, help="where to write; a temporary directory by default")
    parser.add_argument("--gib", type=float, default=1.0, help="size of the state")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    # 24 layers of 12 width^2 parameters, three float32 for each.
    training = Training(width=int((arguments.gib * 2**30 / (24 * 12 * 12)) ** 0.5) // 8 * 8)
    nbytes = training.nbytes()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        print(
            f"{nbytes / 2**30:.2f} GiB in {len(training.tensors())} tensors to {directory}, {arguments.rounds} rounds, "
            f"torch {torch.__version__}, {os.cpu_count()} cores, {platform.machine()}"
        )
        report(measure(training, Path(directory), arguments.rounds), nbytes)


if __name__ == "__main__":
    main()
