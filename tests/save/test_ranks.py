"""Which rank writes what: all decide for themselves, and together they write everything once."""

from __future__ import annotations

import collections
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from every_rank import as_rank, mesh_of, sharded
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import Replicate, Shard

from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.save.ranks import Offer, Shares
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY

SIZE = 4


def value_of(kind: str, number: int) -> Any:
    """A value of this rank, on a mesh of two by two."""
    mesh = mesh_of(2, 2, names=("a", "b"))
    whole = torch.arange(float(5 + 3 * number))
    if kind in ("parameter", "slot", "tensor"):
        return torch.nn.Parameter(whole) if kind == "parameter" else whole
    if kind == "string":
        return b"text"
    if kind == "empty":
        return sharded(torch.zeros(0, 3), mesh["a"], [Shard(0)])
    if kind == "side by side":
        return sharded(whole, mesh["a"], [Shard(0)])
    return sharded(whole, mesh, [Shard(0) if kind == "all shard" else Replicate(), Shard(0)])


def offer_of(rank: int, chosen: list[tuple[str, int]]) -> Offer:
    """What a rank has: some values are there only for some ranks, as bits say."""
    found = {}
    for number, (kind, ranks) in enumerate(chosen):
        if ranks >> rank & 1:
            infix = "/.OPTIMIZER_SLOT/o" if kind == "slot" else ""
            found[f"{number:02}{infix}/.ATTRIBUTES/VARIABLE_VALUE"] = value_of(kind, number)
    keys, values = [*found, OBJECT_GRAPH_KEY], [*found.values(), b"record"]
    snapshot: Any = SimpleNamespace(keys=keys, values=values, graph=SimpleNamespace(record=b"record"), state_keys=list)
    return Offer(snapshot, SIZE)


# Of a mesh, all ranks have a value; what is on meshes side by side, and plain values, only some need have.
ALL = 2**SIZE - 1
COLUMNS = (0b0101, 0b1010, ALL)
CHOSEN = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(("parameter", "slot", "tensor", "string")), st.integers(1, ALL)),
        st.tuples(st.sampled_from(("all shard", "shard and copy")), st.just(ALL)),
        st.tuples(st.sampled_from(("side by side", "empty")), st.sampled_from(COLUMNS)),
    ),
    min_size=1,
    max_size=12,
)


def agreed(chosen: list[tuple[str, int]]) -> Shares:
    """What rank 0 finds, as the others hear it."""
    summaries, details = [], []
    for rank in range(SIZE):
        with as_rank(rank, SIZE):
            summaries.append(offer_of(rank, chosen).summary())
    shares = Shares.summarised(summaries)
    if shares.need_details:
        for rank in range(SIZE):
            with as_rank(rank, SIZE):
                details.append(offer_of(rank, chosen).details(shares, rank))
        shares = shares.detailed(details)
    return Shares.heard(shares.message())


@given(CHOSEN)
@settings(max_examples=60, deadline=None)
# The first ranks of both meshes have something together that the others do not see.
@example([("side by side", ALL), ("parameter", 0b0011), ("side by side", ALL)])
@example([("parameter", 0b0011), ("side by side", ALL), ("parameter", 0b0011), ("side by side", ALL)])
def test_everything_is_written_once_whatever_ranks_have(chosen: list[tuple[str, int]]) -> None:
    shares = agreed(chosen)
    written: dict[str, np.ndarray] = {}
    times: collections.Counter[str] = collections.Counter()
    for rank in range(SIZE):
        with as_rank(rank, SIZE):
            rows = shares.rows(offer_of(rank, chosen), rank, {})
            for row, (key, value) in enumerate(zip(rows.keys, rows.values, strict=True)):
                part = rows.parts.get(row)
                if part is None:
                    times[key] += 1
                    continue
                assert isinstance(value, torch.Tensor)
                counts = written.setdefault(key, np.zeros(part.full_shape, dtype=int))
                counts[tuple(slice(begin, begin + n) for begin, n in zip(part.offset, part.shape, strict=True))] += 1
    for key, counts in written.items():
        assert (counts == 1).all(), key
        assert key not in times
    assert set(times.values()) <= {1}
    there = {number for number, (_, ranks) in enumerate(chosen) if ranks}
    assert {int(key[:2]) for key in (*written, *times)} == there


def test_what_is_the_same_on_all_is_spread_by_size() -> None:
    chosen = [("parameter", ALL)] * 12
    shares = agreed(chosen)
    loads = []
    for rank in range(SIZE):
        with as_rank(rank, SIZE):
            rows = shares.rows(offer_of(rank, chosen), rank, {})
            loads.append(sum(value.nbytes for value in rows.values if isinstance(value, torch.Tensor)))
    assert max(loads) < 1.7 * min(loads)


def test_one_name_on_a_part_of_the_ranks_here_and_on_all_there_is_refused() -> None:
    def offer(rank: int) -> Offer:
        value = value_of("side by side" if rank else "all shard", 0)
        snapshot: Any = SimpleNamespace(keys=["x"], values=[value], graph=SimpleNamespace(record=b""), state_keys=list)
        return Offer(snapshot, SIZE)

    summaries, details = [], []
    for rank in range(SIZE):
        with as_rank(rank, SIZE):
            summaries.append(offer(rank).summary())
    shares = Shares.summarised(summaries)
    for rank in range(SIZE):
        with as_rank(rank, SIZE):
            details.append(offer(rank).details(shares, rank))
    with pytest.raises(UnsupportedValueError, match="on a mesh that others are not in, and some not"):
        shares.detailed(details)
