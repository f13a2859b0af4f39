"""Data sets, samplers and loaders of the tests, and a program that trains with one.

They are here so that worker processes, and programs that tests start, can import them.
"""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)
from torch.utils.data.distributed import DistributedSampler

from torch_trackckpt import Checkpoint, CheckpointOptions, RNGState
from torch_trackckpt.data import ResumableLoader

Make = Callable[[int], Iterable[Any]]
"""Makes a loader; its own generator, if it has one, gets the seed."""

FAST = CheckpointOptions(durable=False)
LENGTH = 10


class Numbers(Dataset[int]):
    """0, 1, 2, ...; notes which were loaded."""

    def __init__(self, length: int = LENGTH) -> None:
        self.length = length
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.length:
            raise IndexError(index)
        self.loaded.append(index)
        return index


class Augmented(Numbers):
    """Each number with random ones, of the generators of the process."""

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([index, float(torch.rand(())), random.random(), np.random.rand()], dtype=torch.float64)


class Stream(IterableDataset[int]):
    """Numbers in an order that a generator decides; each worker has every so-manieth."""

    def __init__(self, length: int = LENGTH, generator: torch.Generator | None = None) -> None:
        self.length = length
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        order = torch.randperm(self.length, generator=self.generator) if info is None else torch.arange(self.length)
        return iter(order[0 if info is None else info.id :: 1 if info is None else info.num_workers].tolist())


class Batches:
    """No DataLoader at all: batches of shuffled numbers."""

    def __init__(self, length: int = LENGTH) -> None:
        self.length = length

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.length))
        random.shuffle(order)
        for first in range(0, self.length, 3):
            yield order[first : first + 3]


class EagerSampler(Sampler[int]):
    """Draws its order when it is asked for an iterator, with NumPy."""

    def __init__(self, length: int = LENGTH) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.permutation(self.length).tolist() + torch.randperm(self.length).tolist())

    def __len__(self) -> int:
        return 2 * self.length


class CountingSampler(Sampler[int]):
    """Has a state of its own, which it hands out and takes as it is: how many epochs it has begun."""

    def __init__(self, num_begun: int) -> None:
        self.state = {"num_begun": num_begun}

    def __iter__(self) -> Iterator[int]:
        self.state["num_begun"] += 1
        return iter([(index * 7 + self.state["num_begun"]) % LENGTH for index in range(LENGTH)])

    def __len__(self) -> int:
        return LENGTH

    def state_dict(self) -> dict[str, int]:
        return self.state

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.state = state


class Paired(DataLoader[Any]):
    """Hands out something else than PyTorch's own loaders do."""

    def __iter__(self) -> Any:
        return zip(map(torch.Tensor.tolist, super().__iter__()), itertools.count(), strict=False)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sampled(sampler: Sampler[int], **options: Any) -> DataLoader[int]:
    return DataLoader(Numbers(), batch_size=3, sampler=sampler, **options)


WEIGHTS = [1.0, 2.0, 3.0, 4.0]

LOADERS: dict[str, Make] = {
    "sequential": lambda seed: DataLoader(Numbers(), batch_size=3),
    "shuffle": lambda seed: DataLoader(Numbers(), batch_size=3, shuffle=True),
    "shuffle, generator": lambda seed: DataLoader(Numbers(), batch_size=3, shuffle=True, generator=generator(seed)),
    "shuffle, drop_last": lambda seed: DataLoader(Numbers(), batch_size=3, shuffle=True, drop_last=True),
    "shuffle, one item at a time": lambda seed: DataLoader(Numbers(4), batch_size=None, shuffle=True),
    "generator for the loader only": lambda seed: sampled(RandomSampler(range(LENGTH)), generator=generator(seed)),
    "generator for the sampler only": lambda seed: sampled(RandomSampler(range(LENGTH), generator=generator(seed))),
    "random with replacement": lambda seed: sampled(
        RandomSampler(range(LENGTH), replacement=True, num_samples=70, generator=generator(seed))
    ),
    "random, more than there are": lambda seed: sampled(
        RandomSampler(range(LENGTH), num_samples=25, generator=generator(seed))
    ),
    "subset": lambda seed: sampled(SubsetRandomSampler(range(2, 9))),
    "subset, generator": lambda seed: sampled(SubsetRandomSampler(range(2, 9), generator=generator(seed))),
    "weighted": lambda seed: sampled(WeightedRandomSampler(WEIGHTS, 8)),
    "weighted, generator": lambda seed: sampled(WeightedRandomSampler(WEIGHTS, 8, generator=generator(seed))),
    "distributed": lambda seed: sampled(DistributedSampler(Numbers(), num_replicas=2, rank=1, seed=3)),
    "batch sampler": lambda seed: DataLoader(
        Numbers(), batch_sampler=BatchSampler(RandomSampler(range(LENGTH), generator=generator(seed)), 4, False)
    ),
    "list of batches": lambda seed: DataLoader(Numbers(), batch_sampler=[[1, 2], [3], [0, 4, 5]]),
    "collate_fn": lambda seed: DataLoader(Numbers(), batch_size=3, shuffle=True, collate_fn=tuple),
    "derived loader": lambda seed: Paired(Numbers(), batch_size=3, shuffle=True),
    "eager sampler": lambda seed: sampled(EagerSampler()),
    "sampler with a state": lambda seed: sampled(CountingSampler(seed)),
    "augmented": lambda seed: DataLoader(Augmented(), batch_size=3, shuffle=True),
    "augmented, in sequence": lambda seed: DataLoader(Augmented(), sampler=SequentialSampler(range(7)), batch_size=2),
    "iterable": lambda seed: DataLoader(Stream(), batch_size=3),
    "iterable, generator": lambda seed: DataLoader(Stream(generator=generator(seed)), batch_size=3, drop_last=True),
    "iterable, one item at a time": lambda seed: DataLoader(Stream(4), batch_size=None),
    "batches": lambda seed: Batches(),
}


def seed_process(seed: int) -> None:
    """Each program begins with other random numbers."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Program:
    """A training that notes each batch, and the random numbers that it draws with it.

    Args:
        make: makes what it iterates over, of the seed.
        seed: what it seeds the process with.
    """

    def __init__(self, make: Callable[[int], Any], seed: int) -> None:
        seed_process(seed)
        self.loader = loader = make(seed)
        self.num_epochs = torch.tensor(0)
        self.checkpoint = Checkpoint(loader=loader, rng=RNGState(), num_epochs=self.num_epochs)
        self.seen: list[Any] = []

    def train(self, num_batches: int, save_to: Callable[[int, str], str | None] = lambda num, where: None) -> list[Any]:
        """Goes on until so many batches were seen; returns them.

        Args:
            num_batches: how many.
            save_to: called with the number of batches seen and "in", "before" or "after" an epoch; where to save then.
        """
        self._save(save_to(len(self.seen), "before"))
        while len(self.seen) < num_batches:
            self._set_epoch()
            for batch in self.loader:
                values = batch.tolist() if isinstance(batch, torch.Tensor) else batch
                self.seen.append((values, float(torch.rand(())), random.random(), np.random.rand()))
                self._save(save_to(len(self.seen), "in"))
                if len(self.seen) == num_batches:
                    return self.seen
            self.num_epochs += 1
            self._save(save_to(len(self.seen), "after"))
        return self.seen

    def _set_epoch(self) -> None:
        sampler = getattr(self.loader, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            sampler.set_epoch(self.loader.epoch if isinstance(self.loader, ResumableLoader) else int(self.num_epochs))

    def _save(self, path: str | None) -> None:
        if path is not None:
            self.checkpoint.write(path, FAST)


def shuffled(seed: int, length: int = LENGTH, **options: Any) -> ResumableLoader[Any]:
    return ResumableLoader(
        DataLoader(Numbers(length), batch_size=3, shuffle=True, generator=generator(seed), **options)
    )


def taken(loader: Iterable[Any], num_batches: int | None = None) -> list[Any]:
    """The first batches of an iteration that is left then; or all."""
    return [batch.tolist() for _, batch in zip(range(num_batches or 99), loader, strict=False)]


def check_every_position(make: Make, directory: Path, num_batches: int, save_every: int = 1) -> None:
    """Saves after each batch and between epochs; resumes from each of these with new objects, seeded otherwise."""
    uninterrupted = Program(make, seed=1).train(num_batches)
    saved: dict[str, int] = {}

    def save_to(num_seen: int, where: str) -> str | None:
        if num_seen % save_every and where == "in":
            return None
        saved[path := str(directory / f"{num_seen}-{where}")] = num_seen
        return path

    assert Program(make, seed=1).train(num_batches, save_to) == uninterrupted, "saving changes it"

    for path, num_seen in saved.items():
        resumed = Program(make, seed=2)
        resumed.checkpoint.read(path).assert_consumed()
        assert resumed.train(num_batches - num_seen) == uninterrupted[num_seen:], path


# For loaders of torchdata.


class StatefulStream(IterableDataset[int]):
    """Its iterators know how far they are; that of each worker has every so-manieth number."""

    def __init__(self, length: int = LENGTH) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        return StatefulIterator(self.length, *((0, 1) if info is None else (info.id, info.num_workers)))


class StatefulIterator(Iterator[int]):
    """Every so-manieth number, and a state which JSON alone could not hold."""

    def __init__(self, length: int, first: int, step: int) -> None:
        self.length, self.next, self.step = length, first, step

    def __next__(self) -> int:
        if self.next >= self.length:
            raise StopIteration
        self.next += self.step
        return self.next - self.step

    def state_dict(self) -> dict[str, Any]:
        return {"next": torch.tensor(self.next), "kept": ({1: float("inf")}, np.int32(3), b"\x00")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["kept"] == ({1: float("inf")}, np.int32(3), b"\x00")
        self.next = int(state["next"])


def in_new_process(script: str, *arguments: str) -> str:
    """What a program prints that starts with nothing but files."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
