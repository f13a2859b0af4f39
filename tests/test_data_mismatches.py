"""ResumableLoader: what is no rest of the epoch that was saved is refused, and so is what cannot be resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loaders import FAST, LENGTH, Batches, Numbers, Stream, generator, shuffled, taken
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from torch_trackckpt import Checkpoint, RNGState
from torch_trackckpt.data import ResumableLoader
from torch_trackckpt.errors import DataLossError, MismatchError


@pytest.fixture(autouse=True)
def _kept_random_state() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize(
    ("live", "found"),
    [
        (
            lambda: shuffled(2, length=12),
            r"length of the data set 10 \(stored\) and 12 \(live\)",
        ),
        (
            lambda: ResumableLoader(DataLoader(Numbers(), batch_size=2, shuffle=True, generator=generator(2))),
            r"batch size 3 \(stored\) and 2 \(live\); number of batches 4 \(stored\) and 5 \(live\)",
        ),
        (lambda: shuffled(2, drop_last=True), r"number of batches 4 \(stored\) and 3 \(live\)"),
        (
            lambda: ResumableLoader(DataLoader(Numbers(), batch_size=3, shuffle=True)),
            r"decided by loader.generator, that of the live one by nothing random",
        ),
    ],
    ids=["length", "batch size", "number of batches", "generator"],
)
def test_in_the_middle_of_an_epoch_other_data_are_refused_and_nothing_changes(
    live: Callable[[], ResumableLoader[Any]], found: str, tmp_path: Path
) -> None:
    loader = shuffled(1)
    batches = iter(loader)
    next(batches)
    path = Checkpoint(loader=loader, z=RNGState()).write(str(tmp_path / "ckpt"), FAST)
    other = live()
    expected = torch.get_rng_state()

    with pytest.raises(MismatchError, match=rf"\(root\)\.loader cannot be restored .* nothing has been .*{found}"):
        Checkpoint(loader=other, z=RNGState()).read(path)

    assert other.position == other.epoch == 0
    assert torch.equal(torch.get_rng_state(), expected)


def distributed(num_replicas: int, rank: int) -> ResumableLoader[Any]:
    return ResumableLoader(
        DataLoader(Numbers(12), batch_size=2, sampler=DistributedSampler(Numbers(12), num_replicas, rank))
    )


def test_every_process_goes_on_with_what_one_of_them_saved() -> None:
    first, second = (distributed(2, rank) for rank in range(2))
    batches = [iter(loader) for loader in (first, second)]
    for own in batches:
        next(own)
    others = [distributed(2, rank) for rank in range(2)]
    for other in others:
        other.load_state_dict(first.state_dict())

    assert [taken(other) for other in others] == [[batch.tolist() for batch in own] for own in batches]


def test_in_the_middle_of_an_epoch_another_number_of_processes_is_refused() -> None:
    loader = distributed(2, 0)
    next(iter(loader))

    with pytest.raises(MismatchError, match=r"number of replicas 2 \(stored\) and 3 \(live\)"):
        distributed(3, 0).load_state_dict(loader.state_dict())


def test_in_the_middle_of_an_iterable_another_number_of_workers_is_refused() -> None:
    loader = ResumableLoader(DataLoader(Stream(), batch_size=3))
    next(iter(loader))

    with pytest.raises(MismatchError, match=r"number of workers 0 \(stored\) and 2 \(live\)"):
        ResumableLoader(DataLoader(Stream(), batch_size=3, num_workers=2)).load_state_dict(loader.state_dict())


def test_another_kind_of_sampler_is_a_mismatch_in_the_middle_of_an_epoch() -> None:
    loader = ResumableLoader(DataLoader(Numbers(), batch_size=3, shuffle=True))
    taken(loader, 2)
    other = ResumableLoader(DataLoader(Numbers(), batch_size=3))

    with pytest.raises(MismatchError, match=r"sampler RandomSampler \(stored\) and SequentialSampler \(live\)"):
        other.load_state_dict(loader.state_dict())

    assert other.position == 0


def test_between_two_epochs_the_data_may_have_become_more() -> None:
    loader, other = shuffled(1), shuffled(2, length=12)
    taken(loader)

    other.load_state_dict(loader.state_dict())

    assert other.epoch == 1
    assert len(taken(other)) == 4


def test_an_epoch_that_cannot_be_begun_again_is_an_error_and_the_generators_stay() -> None:
    """A data set without a length, which became shorter."""
    loader = ResumableLoader(DataLoader(Stream(), batch_size=3))
    taken(loader, 3)
    other = ResumableLoader(DataLoader(Stream(5), batch_size=3))
    other.load_state_dict(loader.state_dict())
    before = torch.get_rng_state()

    with pytest.raises(MismatchError, match="made in epoch 0 after 3 batches, but the epoch has only 2"):
        next(iter(other))

    assert torch.equal(torch.get_rng_state(), before)


def test_indices_that_became_fewer_are_an_error_and_the_generators_stay() -> None:
    """A sampler without a length, which became shorter."""

    def make(length: int) -> ResumableLoader[Any]:
        return ResumableLoader(DataLoader(Numbers(), batch_size=3, sampler=(Unsized(length))))

    loader, other = make(10), make(4)
    taken(loader, 3)
    other.load_state_dict(loader.state_dict())
    before = torch.get_rng_state()

    with pytest.raises(MismatchError, match="made in epoch 0 after 3 batches, but the epoch has only 2"):
        next(iter(other))

    assert torch.equal(torch.get_rng_state(), before)


class Unsized:
    """A sampler that does not tell how long it is."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.length).tolist())


@pytest.mark.parametrize("state", [None, {}, {"position": 0}, {"position": 3, "epoch": 1}, [1]])
def test_a_state_of_another_form_is_damage(state: Any) -> None:
    with pytest.raises(DataLossError, match="does not have the expected form"):
        shuffled(1).load_state_dict(state)


def test_a_loader_with_a_state_of_its_own_is_not_wrapped() -> None:
    with pytest.raises(TypeError, match="a ResumableLoader has state_dict and load_state_dict of its own"):
        ResumableLoader(shuffled(1))


def test_what_can_be_iterated_over_once_is_not_wrapped() -> None:
    with pytest.raises(TypeError, match="a list_iterator can be iterated over only once"):
        ResumableLoader(iter([1, 2]))


def test_batches_that_come_in_any_order_are_not_wrapped() -> None:
    with pytest.raises(ValueError, match="in_order=False"):
        ResumableLoader(DataLoader(Numbers(), num_workers=1, in_order=False))


def test_a_plain_loader_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"loader is a DataLoader, which is not trackable. .*\.ResumableLoader"):
        Checkpoint(loader=DataLoader(Numbers()))
    with pytest.raises(ValueError, match=r"root is a DataLoader, which is not trackable. .* or use torchdata"):
        Checkpoint(DataLoader(Numbers()))
    with pytest.raises(ValueError, match=r"x is a object, which is not trackable. Pass a module"):
        Checkpoint(x=object())


def test_the_rest_is_the_loaders_own() -> None:
    loader = shuffled(1)

    assert (loader.batch_size, len(loader), len(loader.dataset)) == (3, 4, LENGTH)
    with pytest.raises(AttributeError, match="no_such"):
        _ = loader.no_such
    with pytest.raises(AttributeError, match="_private"):
        _ = loader._private
    with pytest.raises(TypeError, match="has no len"):
        len(ResumableLoader(Batches()))
