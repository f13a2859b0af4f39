"""What ranks agree on is kept for the next save, and whatever is different then is noticed at once."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from every_rank import as_rank, mesh_of, sharded
from torch import nn
from torch.distributed.tensor import Replicate, Shard

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.graph.walk import capture, collect
from torch_trackckpt.save import ranks
from torch_trackckpt.save.agreement import Agreement
from torch_trackckpt.save.ranks import Recipe, Rows, Shares

SIZE = 2


class Rank:
    """One rank of a job, with what it keeps between saves."""

    def __init__(self, number: int, **objects: Any) -> None:
        self.number = number
        self.objects = objects
        self.agreement = Agreement()
        self.graph: Any = None

    def snapshot(self) -> Any:
        snapshot = collect(capture(Checkpoint(**self.objects)), self.graph)
        self.graph = snapshot.graph
        return snapshot


class State:
    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def through_json(message: Any) -> Any:
    return json.loads(json.dumps(message))


def saved(job: Sequence[Rank], size: int = SIZE, name: str = "save") -> list[Rows]:
    """What the ranks write, by the messages that they send each other."""
    offers, said = [], []
    for rank in job:
        with as_rank(rank.number, size):
            offers.append(rank.agreement.offer(rank.snapshot(), rank.number, size))
            said.append(through_json(rank.agreement.summary(offers[-1])))
    first = job[0].agreement
    begun = through_json(first.begun(said))
    shares = [rank.agreement.heard(begun) for rank in job]
    details: list[Any] = []
    shapes: Any = {}
    if shares[0].need_details:
        details = [
            through_json(offer.details(of, rank.number)) for offer, of, rank in zip(offers, shares, job, strict=True)
        ]
        told = through_json(first.detailed(shares[0], details))
        shapes = told["shapes"]
        if told["shares"] is not None:
            shares = [rank.agreement.heard(told["shares"]) for rank in job]
    rows = []
    for rank, offer, of in zip(job, offers, shares, strict=True):
        if begun is not None:
            rank.agreement.keep(name, of)
        with as_rank(rank.number, size):
            rows.append(rank.agreement.rows(offer, of, shapes, rank.number))
    rows[0] = rows[0].followed_by(first.of_all(offers[0], shares[0], details, shapes))
    return rows


def written(job: Sequence[Rank], size: int = SIZE) -> list[dict[str, list[Any]]]:
    """For each rank, the parts and values that it writes."""
    found = []
    for rows in saved(job, size):
        of_rank: dict[str, list[Any]] = {}
        for row, (key, value) in enumerate(zip(rows.keys, rows.values, strict=True)):
            text = value.tolist() if hasattr(value, "tolist") else value
            of_rank.setdefault(key, []).append((str(rows.parts.get(row)), str(getattr(value, "dtype", "")), text))
        found.append(of_rank)
    return found


def offer_of(rank: Rank) -> Any:
    with as_rank(rank.number, SIZE):
        return rank.agreement.offer(rank.snapshot(), rank.number, SIZE)


def forgetful(job: Sequence[Rank]) -> list[Rank]:
    return [Rank(rank.number, **rank.objects) for rank in job]


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done for single values: the keys of those that are described, and `recipe` for each that is made."""
    calls: list[str] = []
    original, recipe = ranks.described, Shares.recipe

    def counted(key: str, value: Any) -> str:
        calls.append(key)
        return original(key, value)

    def made(self: Shares, *arguments: Any) -> Recipe:
        calls.append("recipe")
        return recipe(self, *arguments)

    monkeypatch.setattr(ranks, "described", counted)
    monkeypatch.setattr(Shares, "recipe", made)
    return calls


def training(rank: int, seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    with as_rank(rank, SIZE):
        w = nn.Parameter(sharded(torch.arange(12.0).reshape(4, 3), mesh_of(SIZE), [Shard(0)]))
    layer = nn.Linear(3, 3)
    return {"w": w, "layer": layer, "optimizer": torch.optim.SGD(layer.parameters()), "state": State([1, 2])}


def job_of(make: Callable[[int], dict[str, Any]] = training) -> list[Rank]:
    return [Rank(number, **make(number)) for number in range(SIZE)]


def test_a_save_like_the_one_before_looks_at_no_single_value_and_writes_the_values_of_now(described: list[str]) -> None:
    job = job_of()
    saved(job)
    assert described
    described.clear()
    for rank in job:
        with torch.no_grad():
            rank.objects["layer"].weight.add_(1)
            rank.objects["w"].add_(1)
            rank.objects["state"].value = [3]
    again = written(job)
    assert described == []
    assert again == written(forgetful(job))


def replace_type(objects: dict[str, Any], rank: int) -> None:
    objects["layer"].weight.data = objects["layer"].weight.data.double()


def replace_shape(objects: dict[str, Any], rank: int) -> None:
    objects["layer"].bias.data = torch.zeros(5)


def replace_class(objects: dict[str, Any], rank: int) -> None:
    bias = objects["layer"]._parameters.pop("bias")
    objects["layer"].register_buffer("bias", bias.detach())


def replace_placement(objects: dict[str, Any], rank: int) -> None:
    with as_rank(rank, SIZE):
        other = sharded(torch.arange(12.0).reshape(4, 3), mesh_of(SIZE), [Shard(1)])
        objects["w"]._local_tensor, objects["w"]._spec = other._local_tensor, other._spec


def replace_whole(objects: dict[str, Any], rank: int) -> None:
    with as_rank(rank, SIZE):
        # The local tensor is as large as before.
        objects["w"] = nn.Parameter(sharded(torch.zeros(2, 3), mesh_of(SIZE), [Replicate()]))


def replace_mesh(objects: dict[str, Any], rank: int) -> None:
    with as_rank(rank, SIZE):
        mesh = mesh_of(2, 1, names=("a", "b"))
        objects["w"] = nn.Parameter(sharded(torch.arange(12.0).reshape(4, 3), mesh, [Replicate(), Shard(0)]))


def replace_sharding(objects: dict[str, Any], rank: int) -> None:
    objects["w"] = nn.Parameter(torch.arange(12.0).reshape(4, 3))


def state_by_rank(objects: dict[str, Any], rank: int) -> None:
    objects["state"].value = [rank]


def tensor_by_rank(objects: dict[str, Any], rank: int) -> None:
    objects["state"].value = torch.full((2,), rank)


def more(objects: dict[str, Any], rank: int) -> None:
    objects["more"] = nn.Linear(2, 2)


def more_in_one(objects: dict[str, Any], rank: int) -> None:
    if rank == 1:
        objects["more"] = nn.Linear(2, 2)


def rename(objects: dict[str, Any], rank: int) -> None:
    objects["lattice"] = objects.pop("layer")


CHANGES = [
    rename,
    replace_type,
    replace_shape,
    replace_class,
    replace_placement,
    replace_whole,
    replace_mesh,
    replace_sharding,
    state_by_rank,
    tensor_by_rank,
    more,
    more_in_one,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whatever_is_different_is_noticed_at_the_next_save(change: Callable[[dict[str, Any], int], None]) -> None:
    job = job_of()
    before = written(job)
    for rank in job:
        change(rank.objects, rank.number)
    now = written(job)
    assert now != before
    assert now == written(forgetful(job))
    # And what is as it was before that.
    again = job_of()
    for rank, other in zip(job, again, strict=True):
        rank.objects = other.objects
    assert written(job) == written(again)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_different_in_one_rank_is_told_to_the_others(change: Callable[[dict[str, Any], int], None]) -> None:
    rank = Rank(1, **training(1))

    def said(agreement: Agreement) -> Any:
        with as_rank(1, SIZE):
            return agreement.summary(agreement.offer(rank.snapshot(), 1, SIZE))

    before = said(rank.agreement)
    change(rank.objects, 1)
    assert said(rank.agreement) == said(Agreement())
    # How a tensor lies in all ranks is known to each of them.
    assert change in (replace_placement, replace_mesh) or said(rank.agreement) != before


def test_processes_that_meet_again_in_another_order_begin_anew() -> None:
    job = job_of(lambda rank: {"layer": nn.Linear(3, 3), "other": nn.Linear(3, 3)})
    first, second = written(job)
    for rank in job:
        rank.number = 1 - rank.number
    again = written(job[::-1])
    assert [found.keys() for found in again] == [first.keys(), second.keys()]
    assert again == written(forgetful(job[::-1]))


def test_another_number_of_ranks_is_noticed() -> None:
    with as_rank(0, 4):
        mesh = mesh_of(2, 2, names=("a", "b"))["b"]
        w = nn.Parameter(sharded(torch.zeros(4, 3), mesh, [Shard(0)]))
    rank = Rank(0, w=w)

    def meshes(size: int) -> Any:
        with as_rank(0, size):
            return rank.agreement.summary(rank.agreement.offer(rank.snapshot(), 0, size))["meshes"]

    assert [meshes(4), meshes(2)] == [[(0, 1)], []]


def test_a_conflict_is_found_again_as_long_as_it_is_there() -> None:
    job = job_of(lambda rank: {"layer": nn.Linear(3, 3), f"own{rank}": nn.Linear(2, 2)})
    saved(job)
    job[1].objects["layer"] = nn.Linear(3, 4)
    for _ in range(2):
        with pytest.raises(UnsupportedValueError, match=r"layer/weight.* rank 1 has a parameter of float32"):
            saved(job)
    job[1].objects["layer"] = nn.Linear(3, 3)
    assert written(job) == written(forgetful(job))


def test_ranks_that_have_different_objects_say_once_which(described: list[str]) -> None:
    job = job_of(lambda rank: {**training(rank), f"own{rank}": nn.Linear(2, 2 + rank)})
    first = written(job)
    described.clear()
    assert written(job) == first
    assert described == []
    assert {key for key in first[1] if key.startswith("own1")}


def test_states_of_other_shapes_at_each_save_are_no_reason_to_look_at_anything_else(described: list[str]) -> None:
    job = job_of()
    for number in range(3):
        for rank in job:
            rank.objects["state"].value = torch.arange(1 + number + rank.number)
        rows = written(job)
        key = "state/0/.ATTRIBUTES/VARIABLE_VALUE/.BY_RANK"
        assert [found[key][0][2] for found in rows] == [list(range(1 + number)), list(range(2 + number))]
        assert rows[0][f"{key}/.SHAPES"][0][2] == json.dumps([[1 + number], [2 + number]]).encode()
        if number:
            assert described == []
        described.clear()
    # Who describes its values anew says the same of them.
    job[1].agreement = Agreement()
    written(job)
    assert "recipe" in described
    assert len({rank.agreement.summary(offer_of(rank))["digest"] for rank in (*job, *forgetful(job))}) == 1


def test_states_of_two_types_are_refused() -> None:
    job = job_of()
    for rank in job:
        rank.objects["state"].value = torch.zeros(3, dtype=[torch.int64, torch.float32][rank.number])
    with pytest.raises(
        UnsupportedValueError, match=r"state/0.* of rank 1 it is a tensor of float32, .* rank 0 a tensor"
    ):
        saved(job)


def test_a_rank_that_missed_what_was_agreed_on_is_told_again() -> None:
    job = job_of()
    expected = written(job)
    job[1].agreement = Agreement()
    assert written(job) == expected


def test_what_is_kept_holds_no_tensor() -> None:
    job = job_of()
    saved(job)
    gone = [weakref.ref(value) for rank in job for value in (rank.objects["w"], rank.objects["layer"].weight)]
    agreements = [rank.agreement for rank in job]
    job.clear()
    gc.collect()
    assert [found() for found in gone] == [None] * len(gone)
    assert agreements
