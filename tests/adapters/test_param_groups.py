"""Which groups belong together, for any two partitions of some parameters."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trackckpt.adapters.param_groups import GroupMatch, assign_groups
from torch_trackckpt.errors import MismatchError

NUM = 5
Groups = list[dict[str, Any]]
NONE: frozenset[int] = frozenset()


@st.composite
def partitions(draw: st.DrawFn) -> list[tuple[list[int], float]]:
    """Some of the parameters, in groups with a hyper-parameter each."""
    labels = draw(st.lists(st.integers(-1, 2), min_size=NUM, max_size=NUM))
    rates = draw(st.lists(st.sampled_from([0.5, 0.25]), min_size=3, max_size=3))
    order = draw(st.permutations(sorted(set(labels) - {-1})))
    return [([i for i in range(NUM) if labels[i] == label], rates[label]) for label in order]


@settings(deadline=None, max_examples=300)
@given(partitions(), partitions())
def test_groups_are_matched_exactly_where_nothing_has_to_be_chosen(
    saved: list[tuple[list[int], float]], live: list[tuple[list[int], float]]
) -> None:
    """C122"""
    parameters = [torch.zeros(1) for _ in range(NUM)]
    stored: Groups = [{"params": [str(i) for i in group], "lr": rate} for group, rate in saved]
    members: list[list[object]] = [[parameters[i] for i in group] for group, _ in saved]
    groups: Groups = [{"params": [parameters[i] for i in group], "lr": rate} for group, rate in live]
    sources = [{index for index, (group, _) in enumerate(saved) if set(group) & set(mine)} for mine, _ in live]
    targets = [{index for index, (group, _) in enumerate(live) if set(group) & set(mine)} for mine, _ in saved]
    is_clear = all(len({saved[i][1] for i in found}) <= 1 for found in sources)
    is_clear &= all(len({live[i][1] for i in found}) <= 1 for found in targets)

    if not is_clear:
        with pytest.raises(MismatchError, match=r"the parameter groups differ: .* whose 'lr' differ"):
            GroupMatch.find(stored, members, groups, NONE)
        return
    match = GroupMatch.find(stored, members, groups, NONE)
    assign_groups(groups, stored, members, match)

    assert match.placed == {index for index, found in enumerate(targets) if found}
    for (_, rate), group, found in zip(live, groups, sources, strict=True):
        assert {group["lr"]} == ({saved[i][1] for i in found} or {rate})
    assert [{id(p) for p in group["params"]} for group in groups] == [{id(parameters[i]) for i in g} for g, _ in live]


def test_what_was_placed_before_is_not_assigned_again() -> None:
    """C107, C122"""
    first, second = torch.zeros(1), torch.zeros(1)
    stored: Groups = [{"params": ["a", "b"], "lr": 0.5}]
    groups: Groups = [{"params": [first], "lr": 0.25}, {"params": [second], "lr": 0.125}]

    match = GroupMatch.find(stored, [[first, second]], groups, frozenset({0}))

    assert match == GroupMatch({}, frozenset({0}))
