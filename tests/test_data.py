"""ResumableLoader: a training that is resumed anywhere in an epoch sees the batches that it would have seen."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loaders import (
    FAST,
    LENGTH,
    LOADERS,
    Augmented,
    Make,
    Numbers,
    Program,
    Stream,
    check_every_position,
    generator,
    in_new_process,
    seed_process,
    shuffled,
    taken,
)
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data.distributed import DistributedSampler

from torch_trackckpt import Checkpoint, RNGState, frozen_saver
from torch_trackckpt.data import ResumableLoader


@pytest.fixture(autouse=True)
def _kept_random_state() -> Iterator[None]:
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(legacy)


def resumable(make: Make) -> Make:
    return lambda seed: ResumableLoader(make(seed))


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_the_next_batch_is_the_right_one_wherever_it_was_saved(make: Make, tmp_path: Path) -> None:
    """And so are all batches and random numbers of two epochs that follow."""
    num_batches_of_epoch = sum(1 for _ in make(1))

    check_every_position(resumable(make), tmp_path, num_batches_of_epoch * 5 // 2)


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_a_wrapped_loader_hands_out_and_draws_what_it_does_unwrapped(make: Make) -> None:
    class Unwrapped:
        """What `Program` needs of a loader."""

        def __init__(self, loader: Any) -> None:
            self.loader = loader
            self.sampler = getattr(loader, "sampler", None)

        def __iter__(self) -> Iterator[Any]:
            return iter(self.loader)

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    wrapped = Program(resumable(make), seed=1)

    assert wrapped.train(20) == Program(lambda seed: Unwrapped(make(seed)), seed=1).train(20)


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 9),
    batch_size=st.one_of(st.none(), st.integers(1, 4)),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    has_generator=st.booleans(),
    position=st.integers(0, 30),
)
def test_any_loader_resumes_at_any_position(
    length: int, batch_size: int | None, drop_last: bool, shuffle: bool, has_generator: bool, position: int
) -> None:
    def make(seed: int) -> ResumableLoader[Any]:
        return ResumableLoader(
            DataLoader(
                Augmented(length),
                batch_size=batch_size,
                drop_last=drop_last and batch_size is not None,
                shuffle=shuffle,
                generator=generator(seed) if has_generator else None,
            )
        )

    loader = make(1)
    if not len(loader):
        return
    position = position % (2 * len(loader)) + 1
    num_batches = position + 2 * len(loader)
    uninterrupted = Program(make, seed=1).train(num_batches)
    first = Program(make, seed=1)
    first.train(position)
    loader_state, process_state = first.loader.state_dict(), RNGState().state_dict()

    resumed = Program(make, seed=2)
    resumed.loader.load_state_dict(loader_state)
    RNGState().load_state_dict(process_state)

    assert resumed.train(num_batches - position) == uninterrupted[position:]


# Workers.

WORKERS: dict[str, dict[str, Any]] = {
    "shuffle": {"shuffle": True},
    "generator": {"shuffle": True, "generator": True},
    "lazy sampler": {"replacement": True},
    "persistent": {"shuffle": True, "persistent_workers": True},
    "persistent, generator": {"shuffle": True, "generator": True, "persistent_workers": True},
    "iterable": {"is_iterable": True},
    "iterable, persistent": {"is_iterable": True, "persistent_workers": True},
}


# Where the process has threads, Python 3.12 and later warn of forks, which is what PyTorch's loaders do by default.
FORKS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def loader_with_workers(
    seed: int,
    *,
    generator: bool = False,
    replacement: bool = False,
    is_iterable: bool = False,
    num_workers: int = 2,
    **options: Any,
) -> DataLoader[int]:
    own = torch.Generator().manual_seed(seed)
    if replacement:
        options["sampler"] = RandomSampler(range(LENGTH), replacement=True, num_samples=70, generator=own)
    return DataLoader(
        Stream() if is_iterable else Numbers(),
        batch_size=10 if replacement else 3,
        num_workers=num_workers,
        multiprocessing_context="fork",
        generator=own if generator else None,
        **options,
    )


@FORKS
@pytest.mark.parametrize("options", WORKERS.values(), ids=WORKERS)
def test_what_workers_have_prepared_but_not_handed_out_comes_after_a_restore(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """With every position in turn, in the first epoch and in the second."""
    make = resumable(lambda seed: loader_with_workers(seed, **options))

    check_every_position(make, tmp_path, 13, save_every=2)


@FORKS
def test_the_number_of_workers_may_change_for_data_that_are_asked_by_index(tmp_path: Path) -> None:
    path = str(tmp_path / "ckpt")
    with_two = Program(resumable(lambda seed: loader_with_workers(seed, generator=True, shuffle=True)), seed=1)
    seen = with_two.train(9, lambda num_seen, where: path if num_seen == 2 else None)

    resumed = Program(shuffled, seed=2)
    resumed.checkpoint.read(path)

    assert resumed.train(7) == seen[2:]


# What is saved when.


def resumed(state: dict[str, Any]) -> ResumableLoader[Any]:
    loader = shuffled(2)
    loader.load_state_dict(state)
    return loader


def test_what_was_handed_out_is_not_loaded_again() -> None:
    loader = shuffled(1)
    for num_batches, _ in enumerate(loader, 1):
        if num_batches == 3:
            break

    other = resumed(loader.state_dict())
    (last,) = taken(other)

    assert other.dataset.loaded == last


def test_a_new_iteration_after_a_break_is_a_new_epoch() -> None:
    loader, plain = shuffled(1), shuffled(1).loader
    taken(loader, 2)
    taken(plain, 2)

    assert taken(loader) == taken(plain)
    assert loader.epoch == 2


def test_what_is_saved_after_a_break_resumes_the_epoch_that_was_left() -> None:
    """As torchdata's StatefulDataLoader: a program that is asked to stop breaks, saves and ends."""
    loader, whole = shuffled(1), shuffled(1)
    for num_batches, _ in enumerate(loader, 1):
        if num_batches == 2:
            break

    assert taken(resumed(loader.state_dict())) == taken(whole)[2:]


def test_an_epoch_whose_rest_is_not_wanted_is_ended() -> None:
    loader = shuffled(1)
    for _ in loader:
        break
    assert (loader.epoch, loader.position) == (0, 1)
    loader.end_epoch()
    state = loader.state_dict()

    assert (loader.epoch, loader.position) == (1, 0)
    assert taken(resumed(state)) == taken(loader)


def test_the_end_of_an_epoch_that_was_restored_and_is_not_wanted() -> None:
    loader = shuffled(1)
    for _ in loader:
        break
    other = resumed(loader.state_dict())
    other.end_epoch()
    assert (other.epoch, other.position) == (1, 0)

    other.end_epoch()

    assert other.epoch == 1
    assert taken(other) == taken(loader)


def test_a_sampler_with_a_state_goes_on_when_the_rest_of_a_restored_epoch_is_not_wanted() -> None:
    loader, other = (ResumableLoader(LOADERS["sampler with a state"](seed)) for seed in (1, 5))
    for _ in loader:
        break
    other.load_state_dict(loader.state_dict())

    other.end_epoch()

    assert taken(other) == taken(loader)


def test_after_the_last_batch_the_next_epoch_follows_not_an_empty_one() -> None:
    loader = shuffled(1)
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    state = loader.state_dict()
    assert next(batches, None) is None

    other = resumed(state)

    assert (loader.epoch, other.epoch) == (1, 1)
    assert taken(other) == taken(loader)
    assert other.epoch == loader.epoch == 2


@pytest.mark.parametrize("num_batches", [1, 3])
def test_a_state_that_was_loaded_is_saved_again_before_it_is_used(num_batches: int) -> None:
    loader = shuffled(1)
    batches = iter(loader)
    for _ in range(num_batches):
        next(batches)
    again = resumed(resumed(loader.state_dict()).state_dict())
    rest = [batch.tolist() for batch in batches]

    assert again.position == num_batches
    assert taken(again) == rest
    assert taken(again) == taken(loader)


@pytest.mark.parametrize("num_before", range(1, 9))
def test_epochs_of_unknown_length_are_counted_through_a_restore(num_before: int) -> None:
    """After the last batch of one, nobody knows that it is over: its rest is empty, and the next one follows."""

    def batches(loader: ResumableLoader[Any]) -> Iterator[tuple[int, Any]]:
        for epoch in range(loader.epoch, 3):
            yield from ((epoch, batch.tolist()) for batch in loader)

    torch.manual_seed(1)
    loader = ResumableLoader(DataLoader(Stream(7), batch_size=3))
    stream = batches(loader)
    for _ in range(num_before):
        next(stream)
    other = ResumableLoader(DataLoader(Stream(7), batch_size=3))
    other.load_state_dict(loader.state_dict())
    state = torch.get_rng_state()
    rest = list(stream)

    torch.set_rng_state(state)
    assert list(batches(other)) == rest
    assert len(rest) == 9 - num_before


def test_a_copy_has_generators_and_epochs_of_its_own() -> None:
    sampler: Any = DistributedSampler(Numbers(), num_replicas=2, rank=0)
    loader = ResumableLoader(DataLoader(Numbers(), sampler=sampler, generator=torch.Generator()))
    taken(loader, 2)
    copied = copy.deepcopy(loader)
    state = copied.state_dict()

    loader.loader.generator.manual_seed(5)
    sampler.set_epoch(3)

    assert torch.equal(copied.state_dict()["order"]["loader.generator"], state["order"]["loader.generator"])
    assert copied.state_dict()["order"]["sampler.epoch"] == {"epoch": 0, "seed": 0}


def test_a_loader_can_be_pickled() -> None:
    sampler: Any = DistributedSampler(Numbers(), num_replicas=2, rank=0)
    loader = pickle.loads(pickle.dumps(ResumableLoader(DataLoader(Numbers(), batch_size=2, sampler=sampler))))
    assert len(taken(loader)) == len(loader)


def test_an_iteration_that_runs_while_a_state_is_loaded_goes_on_and_the_next_one_resumes() -> None:
    loader, other = shuffled(1), shuffled(2)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    rest_of_other = taken(shuffled(2))[1:]
    running = iter(other)
    next(running)

    other.load_state_dict(state)

    assert [batch.tolist() for batch in running] == rest_of_other
    assert other.position == 1
    assert taken(other) == [batch.tolist() for batch in batches]


def test_an_iteration_that_resumed_and_runs_while_a_state_is_loaded_ends_with_its_epoch() -> None:
    loader = shuffled(1)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    other = resumed(loader.state_dict())
    running = iter(other)
    next(running)

    other.load_state_dict(shuffled(3).state_dict())

    assert list(running) == []
    assert taken(other) == taken(shuffled(3))


def test_epochs_are_counted_through_a_restore() -> None:
    loader = shuffled(1)
    epochs = [loader.epoch]
    for _ in range(2):
        epochs += [loader.epoch for _ in loader]
    state = loader.state_dict()

    assert epochs == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert resumed(state).epoch == 2


def test_the_rest_of_an_epoch_keeps_its_permutation_whatever_epoch_is_set_after_the_restore() -> None:
    """And the epoch that was set counts from the next one on."""

    def make() -> ResumableLoader[Any]:
        sampler = DistributedSampler(Numbers(), num_replicas=2, rank=0)
        return ResumableLoader(DataLoader(Numbers(), batch_size=2, sampler=sampler))

    loader, other = make(), make()
    loader.sampler.set_epoch(5)
    batches = iter(loader)
    next(batches)
    other.load_state_dict(loader.state_dict())
    assert other.sampler.epoch == 5
    rest = [batch.tolist() for batch in batches]
    other.sampler.set_epoch(7)
    loader.sampler.set_epoch(7)

    assert taken(other) == rest
    assert other.sampler.epoch == 7
    assert taken(other) == taken(loader)


def test_a_generator_that_the_program_shares_with_the_loader_continues(tmp_path: Path) -> None:
    """The program draws from it between the batches, and tracks it as well."""

    def train(num_batches: int, seed: int, restore: str | None, save_at: int | None = None) -> list[Any]:
        shared, seen = generator(seed), []
        loader = ResumableLoader(DataLoader(Augmented(), batch_size=3, shuffle=True, generator=shared))
        checkpoint = Checkpoint(loader=loader, generator=shared, rng=RNGState())
        seed_process(seed)
        if restore is not None:
            checkpoint.read(restore).assert_consumed()
        while True:
            for batch in loader:
                seen.append((batch.tolist(), torch.rand(2, generator=shared).tolist()))
                if len(seen) == save_at:
                    checkpoint.write(str(tmp_path / "ckpt"), FAST)
                if len(seen) == num_batches:
                    return seen

    uninterrupted = train(12, seed=1, restore=None, save_at=6)

    assert train(6, seed=2, restore=str(tmp_path / "ckpt")) == uninterrupted[6:]


def test_the_order_of_the_restores_does_not_matter(tmp_path: Path) -> None:
    """The random state of the process is a node before the loader's, or after it."""
    for first, second in (("a", "b"), ("b", "a")):
        loader = ResumableLoader(LOADERS["augmented"](1))
        checkpoint = Checkpoint(**{first: loader, second: RNGState()})
        batches = iter(loader)
        next(batches)
        checkpoint.write(path := str(tmp_path / first), FAST)
        rest = [batch.tolist() for batch in batches]
        seed_process(9)
        other = ResumableLoader(LOADERS["augmented"](2))

        Checkpoint(**{first: other, second: RNGState()}).read(path).assert_consumed()

        assert taken(other) == rest


def test_a_frozen_saver_saves_it_before_in_and_after_an_epoch(tmp_path: Path) -> None:
    loader, plain = shuffled(1), shuffled(1)
    saver = frozen_saver(Checkpoint(loader=loader))
    paths = [saver.save(str(tmp_path / "0"))]
    paths += [saver.save(str(tmp_path / str(number))) for number, _ in enumerate(loader, 1)]
    paths.append(saver.save(str(tmp_path / "after")))
    whole = taken(plain)

    for path, expected in zip(
        paths, [whole, whole[1:], whole[2:], whole[3:], taken(plain), taken(loader)], strict=True
    ):
        other = shuffled(2)
        Checkpoint(loader=other).read(path).assert_consumed()
        assert taken(other) == expected


def test_the_state_is_for_torch_save_too(tmp_path: Path) -> None:
    """Without the pickles that torch.load refuses."""
    loader = shuffled(1)
    batches = iter(loader)
    next(batches)
    torch.save(loader.state_dict(), tmp_path / "state.pt")

    other = resumed(torch.load(tmp_path / "state.pt", weights_only=True))

    assert taken(other) == [batch.tolist() for batch in batches]


SCRIPT = """
import sys
from loaders import LOADERS, Program
from torch_trackckpt.data import ResumableLoader

program = Program(lambda seed: ResumableLoader(LOADERS[sys.argv[2]](seed)), seed=2)
program.checkpoint.read(sys.argv[1]).assert_consumed()
print(program.train(int(sys.argv[3])))
"""


def test_a_new_process_goes_on(tmp_path: Path) -> None:
    path = str(tmp_path / "ckpt")
    program = Program(resumable(LOADERS["augmented"]), seed=1)
    seen = program.train(10, lambda num_seen, where: path if num_seen == 2 else None)

    assert in_new_process(SCRIPT, path, "augmented", "8") == str(seen[2:])
