"""PyTorch's samplers are as their generators, their epochs and the samplers inside of them are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import witness
from loaders import FAST, LENGTH, CountingSampler, Numbers, generator
from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from torch_trackckpt import Checkpoint, RNGState
from torch_trackckpt.adapters import is_trackable
from torch_trackckpt.errors import DataLossError

SAMPLERS: dict[str, Callable[[torch.Generator | None], Sampler[Any]]] = {
    "random": lambda own: RandomSampler(range(LENGTH), generator=own),
    "random with replacement": lambda own: RandomSampler(range(LENGTH), replacement=True, generator=own),
    "subset": lambda own: SubsetRandomSampler(range(3, 9), generator=own),
    "weighted": lambda own: WeightedRandomSampler([1.0, 2.0, 3.0], 9, generator=own),
    "batches": lambda own: BatchSampler(RandomSampler(range(LENGTH), generator=own), 3, False),
}


@pytest.fixture(autouse=True)
def _kept_random_state() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_a_sampler_with_a_generator_goes_on_with_the_next_order(make: Any, prefix: str) -> None:
    sampler, other = make(generator(1)), make(generator(2))
    list(sampler)
    path = Checkpoint(sampler=sampler).write(prefix, FAST)

    Checkpoint(sampler=other).read(path).assert_consumed()

    for _ in range(2):
        assert list(other) == list(sampler)


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_the_order_of_a_sampler_without_a_generator_is_that_of_the_process(make: Any, prefix: str) -> None:
    sampler = make(None)
    path = Checkpoint(sampler=sampler, rng=RNGState()).write(prefix, FAST)
    orders = [list(sampler), list(sampler)]
    torch.manual_seed(9)
    other = make(None)

    Checkpoint(sampler=other, rng=RNGState()).read(path).assert_consumed()

    assert [list(other), list(other)] == orders


def test_a_sampler_of_torchdata_goes_on_with_the_next_order(prefix: str) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader.sampler")
    sampler, other = (stateful.RandomSampler(range(LENGTH)) for _ in range(2))
    list(sampler)
    path = Checkpoint(sampler=sampler).write(prefix, FAST)

    Checkpoint(sampler=other).read(path).assert_consumed()

    assert list(other) == list(sampler)


def test_a_generator_that_is_shared_is_one_node(prefix: str) -> None:
    shared = generator(1)
    samplers = [RandomSampler(range(LENGTH), generator=shared), SubsetRandomSampler([1, 2], generator=shared)]

    Checkpoint(a=samplers, b=BatchSampler(samplers[0], 2, False), own=shared).write(prefix, FAST)

    keys = [key for key in witness.read_bundle(prefix) if key != witness.GRAPH_KEY]
    assert keys == ["own/.ATTRIBUTES/VARIABLE_VALUE"]


def test_the_epoch_of_a_distributed_sampler_decides_its_permutation_and_is_restored(prefix: str) -> None:
    sampler, other = (DistributedSampler(Numbers(), 2, 1, seed=seed) for seed in (5, 6))
    sampler.set_epoch(3)
    path = Checkpoint(sampler=sampler).write(prefix, FAST)

    Checkpoint(sampler=other).read(path).assert_consumed()

    assert (other.epoch, other.seed) == (3, 5)
    assert list(other) == list(sampler)


def test_how_a_distributed_sampler_is_set_up_is_the_programs_business(prefix: str) -> None:
    """Every process may restore what one of them saved, and there may be more or fewer of them."""
    sampler = DistributedSampler(Numbers(), num_replicas=2, rank=0)
    sampler.set_epoch(3)
    path = Checkpoint(sampler=sampler).write(prefix, FAST)
    whole = DistributedSampler(Numbers(), num_replicas=1, rank=0)
    whole.set_epoch(3)
    others = [DistributedSampler(Numbers(), num_replicas=5, rank=rank) for rank in range(5)]

    for other in others:
        Checkpoint(sampler=other).read(path).assert_consumed()

    assert [index for indices in zip(*others, strict=True) for index in indices] == list(whole)


class Stored:
    """Has the state of something else."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@pytest.mark.parametrize("state", [{}, {"epoch": 1}, {"epoch": 1, "seed": "x"}, {"epoch": True, "seed": 1}])
def test_a_state_that_is_no_epoch_is_damage_and_changes_nothing(state: dict[str, Any], prefix: str) -> None:
    path = Checkpoint(sampler=Stored(state)).write(prefix, FAST)
    sampler = DistributedSampler(Numbers(), 2, 0)

    with pytest.raises(DataLossError, match="not an epoch and a seed"):
        Checkpoint(sampler=sampler).read(path)

    assert (sampler.epoch, sampler.seed) == (0, 0)


class RandomWithState(RandomSampler):
    """A user's own, which knows more than its generator."""

    num_loads = 0

    def state_dict(self) -> dict[str, int]:
        return {"mine": 7}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert state == {"mine": 7}
        self.num_loads += 1


class DistributedWithState(DistributedSampler[int]):
    """The same."""

    num_loads = 0
    state_dict = RandomWithState.state_dict
    load_state_dict = RandomWithState.load_state_dict


@pytest.mark.parametrize(
    "make",
    [lambda: RandomWithState(range(3)), lambda: DistributedWithState(Numbers(), 2, 0)],
    ids=["random", "distributed"],
)
def test_a_sampler_that_has_a_state_is_saved_by_that(make: Callable[[], Any], prefix: str) -> None:
    sampler = make()
    path = Checkpoint(sampler=sampler).write(prefix, FAST)

    Checkpoint(sampler=sampler).read(path).assert_consumed()

    assert sampler.num_loads == 1


def test_a_users_own_sampler_is_inside_of_a_batch_sampler(prefix: str) -> None:
    first, second = (BatchSampler(CountingSampler(number), 2, False) for number in (4, 0))
    path = Checkpoint(sampler=first).write(prefix, FAST)

    Checkpoint(sampler=second).read(path).assert_consumed()

    assert list(second) == list(first)


def test_a_batch_sampler_of_anything_else_has_no_children(prefix: str) -> None:
    path = Checkpoint(sampler=BatchSampler([3, 1, 2], 2, False)).write(prefix, FAST)

    Checkpoint(sampler=BatchSampler([3, 1, 2], 2, False)).read(path).assert_consumed()

    assert not is_trackable(SequentialSampler([1]))
