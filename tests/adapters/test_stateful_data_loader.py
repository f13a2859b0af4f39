"""torchdata's StatefulDataLoader: the next batch is the right one, and so is every random number after it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loaders import (
    FAST,
    LENGTH,
    Augmented,
    Make,
    Numbers,
    Program,
    StatefulStream,
    check_every_position,
    generator,
    in_new_process,
)
from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler as StatefulRandomSampler

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import DataLossError, MismatchError, UnsupportedValueError

pytestmark = [
    # torchdata calls a function of torch that is going away.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
    # Where the process has threads, Python 3.12 and later warn of forks.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _kept_random_state() -> Iterator[None]:
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(legacy)


def loader(data: Any = None, seed: int = 0, **options: Any) -> StatefulDataLoader[Any]:
    options = {"batch_size": 3, **options}
    if options.pop("has_generator", False):
        options["generator"] = generator(seed)
    if options.get("num_workers"):
        options["multiprocessing_context"] = "fork"
    return StatefulDataLoader(Numbers() if data is None else data, **options)


def stateful_sampler(seed: int, **options: Any) -> StatefulRandomSampler:
    return StatefulRandomSampler(range(LENGTH), generator=generator(seed), **options)


LOADERS: dict[str, Make] = {
    "sequential": lambda seed: loader(),
    "shuffle": lambda seed: loader(shuffle=True),
    "shuffle, generator": lambda seed: loader(seed=seed, shuffle=True, has_generator=True),
    "shuffle, drop_last": lambda seed: loader(shuffle=True, drop_last=True),
    "augmented": lambda seed: loader(Augmented(), shuffle=True),
    "distributed": lambda seed: loader(sampler=DistributedSampler(Numbers(), num_replicas=2, rank=1, seed=3)),
    "sampler of torchdata": lambda seed: loader(sampler=stateful_sampler(seed)),
    "with replacement": lambda seed: loader(sampler=stateful_sampler(seed, replacement=True, num_samples=40)),
    "stateful iterable": lambda seed: loader(StatefulStream()),
}
WORKERS: dict[str, Make] = {
    "shuffle": lambda seed: loader(shuffle=True, num_workers=2),
    "shuffle, generator": lambda seed: loader(seed=seed, shuffle=True, has_generator=True, num_workers=2),
    "persistent": lambda seed: loader(
        seed=seed, shuffle=True, has_generator=True, num_workers=2, persistent_workers=True
    ),
    "persistent, random state of the process": lambda seed: loader(
        shuffle=True, num_workers=2, persistent_workers=True
    ),
    "seldom snapshots": lambda seed: loader(shuffle=True, num_workers=2, snapshot_every_n_steps=3),
    "stateful iterable": lambda seed: loader(StatefulStream(), num_workers=2),
}


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_the_next_batch_is_the_right_one_wherever_it_was_saved(make: Make, tmp_path: Path) -> None:
    """And so are all batches and random numbers of two epochs that follow."""
    check_every_position(make, tmp_path, 20)


@pytest.mark.parametrize("make", WORKERS.values(), ids=WORKERS)
def test_what_workers_have_prepared_but_not_handed_out_comes_after_a_restore(make: Make, tmp_path: Path) -> None:
    check_every_position(make, tmp_path, 10, save_every=3)


SCRIPT = """
import sys
import warnings
warnings.filterwarnings("ignore", "'set_vital' is deprecated")
from loaders import Augmented, Program
from torchdata.stateful_dataloader import StatefulDataLoader

program = Program(lambda seed: StatefulDataLoader(Augmented(), batch_size=3, shuffle=True), seed=2)
program.checkpoint.read(sys.argv[1]).assert_consumed()
print(program.train(8))
"""


def test_a_new_process_goes_on(tmp_path: Path) -> None:
    path = str(tmp_path / "ckpt")
    program = Program(LOADERS["augmented"], seed=1)
    seen = program.train(10, lambda num_seen, where: path if num_seen == 2 else None)

    assert in_new_process(SCRIPT, path) == str(seen[2:])


def in_epoch(made: StatefulDataLoader[Any], path: Path) -> str:
    """Where a checkpoint lies that was made after the first batch."""
    next(iter(made))
    return Checkpoint(loader=made).write(str(path / "ckpt"), FAST)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_before_the_first_batch_a_save_begins_no_epoch(num_workers: int, tmp_path: Path) -> None:
    """torchdata's own state_dict would draw random numbers, and start the workers."""
    fresh = loader(shuffle=True, num_workers=num_workers)
    order, process = fresh.sampler.generator.get_state(), torch.get_rng_state()

    Checkpoint(loader=fresh).write(str(tmp_path / "ckpt"), FAST)

    assert fresh._iterator is None
    assert torch.equal(fresh.sampler.generator.get_state(), order)
    assert torch.equal(torch.get_rng_state(), process)


def test_a_state_that_was_loaded_by_hand_is_saved_before_it_is_used(tmp_path: Path) -> None:
    first, second, third = (loader(seed=seed, shuffle=True, has_generator=True) for seed in range(3))
    batches = iter(first)
    next(batches)
    second.load_state_dict(first.state_dict())

    path = Checkpoint(loader=second).write(str(tmp_path / "ckpt"), FAST)
    Checkpoint(loader=third).read(path).assert_consumed()

    assert [batch.tolist() for batch in third] == [batch.tolist() for batch in batches]


def test_a_loader_that_is_being_iterated_over_resumes_with_the_next_iteration(tmp_path: Path) -> None:
    first, second = loader(), loader()
    path = in_epoch(first, tmp_path)
    running = iter(second)
    next(running)
    next(running)

    Checkpoint(loader=second).read(path).assert_consumed()

    assert next(running).tolist() == [6, 7, 8]
    assert [batch.tolist() for batch in second] == [[3, 4, 5], [6, 7, 8], [9]]


def test_a_loader_that_had_not_begun_makes_another_begin_anew(tmp_path: Path) -> None:
    path = Checkpoint(loader=loader()).write(str(tmp_path / "ckpt"), FAST)
    begun = loader()
    in_epoch(begun, tmp_path / "other")
    begun.load_state_dict(begun.state_dict())

    Checkpoint(loader=begun).read(path).assert_consumed()

    assert next(iter(begun)).tolist() == [0, 1, 2]


def test_the_generator_of_the_process_is_left_alone_by_a_restore(tmp_path: Path) -> None:
    """Whichever node comes first; RNGState alone sets it."""
    path = in_epoch(loader(shuffle=True), tmp_path)
    other = loader(shuffle=True)
    before = torch.get_rng_state()

    Checkpoint(loader=other).read(path)

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("saved", "live"), [(0, 2), (2, 0), (2, 1)])
def test_another_number_of_workers_is_refused_in_the_middle_of_an_epoch(saved: int, live: int, tmp_path: Path) -> None:
    path = in_epoch(loader(num_workers=saved), tmp_path)

    with pytest.raises(
        MismatchError,
        match=rf"\(root\)\.loader cannot be restored .* num_workers={saved}, but .* num_workers={live}",
    ):
        Checkpoint(loader=loader(num_workers=live)).read(path)


def test_before_the_first_batch_the_number_of_workers_may_change(tmp_path: Path) -> None:
    path = Checkpoint(loader=loader(num_workers=2)).write(str(tmp_path / "ckpt"), FAST)
    other = loader()

    Checkpoint(loader=other).read(path).assert_consumed()

    assert next(iter(other)).tolist() == [0, 1, 2]


def test_another_sampler_is_refused(tmp_path: Path) -> None:
    path = in_epoch(loader(shuffle=True), tmp_path)

    with pytest.raises(MismatchError, match=r"decided by sampler.generator, that of the live one by nothing random"):
        Checkpoint(loader=loader()).read(path)


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": RandomSampler(range(LENGTH))},
        {"sampler": RandomSampler(range(LENGTH), generator=torch.Generator())},
        {"sampler": SubsetRandomSampler(range(LENGTH))},
        {"sampler": WeightedRandomSampler([1.0, 2.0], 5)},
        {"batch_sampler": BatchSampler(RandomSampler(range(LENGTH)), 3, False), "batch_size": 1},
    ],
    ids=["random", "random, generator", "subset", "weighted", "batch sampler"],
)
def test_an_order_that_is_lost_in_the_middle_of_an_epoch_is_not_saved(options: dict[str, Any], tmp_path: Path) -> None:
    """torchdata itself would go on with other batches, without a word."""
    made = loader(**options)
    checkpoint = Checkpoint(loader=made)
    checkpoint.write(str(tmp_path / "before"), FAST)
    batches = iter(made)
    next(batches)

    with pytest.raises(
        UnsupportedValueError, match=r"\(root\)\.loader .*in the middle of an epoch .*\.ResumableLoader"
    ):
        checkpoint.write(str(tmp_path / "ckpt"), FAST)

    assert not list(tmp_path.glob("ckpt*"))
    for _ in batches:
        pass
    checkpoint.write(str(tmp_path / "after"), FAST)


class Stored:
    """Has the state of something else."""

    def state_dict(self) -> dict[str, int]:
        return {"position": 3}

    def load_state_dict(self, state: dict[str, int]) -> None: ...


def test_a_state_of_another_form_is_damage(tmp_path: Path) -> None:
    path = Checkpoint(loader=Stored()).write(str(tmp_path / "ckpt"), FAST)

    with pytest.raises(DataLossError, match="does not have the expected form"):
        Checkpoint(loader=loader()).read(path)
