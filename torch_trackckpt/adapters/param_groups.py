"""Which stored parameter groups of an optimizer belong to which live ones, by the parameters that they have in common.

Groups may be reordered, merged and split, as long as nothing has to be chosen: stored groups that come together in one
live group have to agree in every hyper-parameter, and live groups that share a stored one have to agree in theirs
(where they differ, somebody meant them to).
"""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from torch_trackckpt.errors import DataLossError, MismatchError

__all__ = [
    "GroupMatch",
    "are_same",
    "assign_groups",
    "check_stored",
    "check_tensors",
    "hyper_parameters",
    "is_equal",
    "some",
]

Group = dict[str, Any]

_NOT_HYPER_PARAMETERS = frozenset({"params", "param_names"})


def hyper_parameters(group: Group) -> dict[str, Any]:
    """All that a group holds beside its parameters."""
    return {name: value for name, value in group.items() if name not in _NOT_HYPER_PARAMETERS}


def check_stored(groups: Any) -> None:
    """Refuses what is no list of groups with object paths as members.

    Raises:
        DataLossError: it is not.
    """
    if not isinstance(groups, list) or not all(_is_group(group) for group in groups):
        raise DataLossError("The stored param_groups of an optimizer do not have the expected form.")


def _is_group(group: Any) -> bool:
    return (
        isinstance(group, dict)
        and all(isinstance(name, str) for name in group)
        and isinstance(group.get("params"), list)
        and all(path is None or isinstance(path, str) for path in group["params"])
    )


@dataclasses.dataclass(frozen=True)
class GroupMatch:
    """Which live groups take the hyper-parameters of which stored groups."""

    sources: Mapping[int, Sequence[int]]
    """By live group, the stored ones whose hyper-parameters it takes now; they are all the same."""
    placed: frozenset[int]
    """Stored groups that have a place among the live ones."""

    @classmethod
    def find(
        cls, stored: list[Group], members: list[list[object]], live: list[Group], placed: frozenset[int]
    ) -> GroupMatch:
        """Matches groups, and checks that nothing has to be chosen.

        Args:
            stored: the groups of the checkpoint.
            members: the live parameters of each of them, None where there is none.
            live: the optimizer's groups.
            placed: stored groups that were given to live ones before. What they hold is not given once more, neither
                to those (they may have changed since) nor to groups that were added for some of their members.

        Raises:
            MismatchError: the groups truly differ.
        """
        group_of = {id(parameter): index for index, group in enumerate(live) for parameter in group["params"]}
        found = [sorted({group_of[id(member)] for member in group if id(member) in group_of}) for group in members]
        sources: dict[int, list[int]] = {}
        for index, live_indices in enumerate(found):
            for live_index in live_indices:
                sources.setdefault(live_index, []).append(index)
            if index not in placed:
                _check_split(index, stored, live_indices, live)
        for live_index, indices in sources.items():
            if not placed.issuperset(indices):
                _check_merge(live_index, indices, stored)
        taken = {live_index: indices for live_index, indices in sources.items() if placed.isdisjoint(indices)}
        return cls(taken, placed | {index for index, live_indices in enumerate(found) if live_indices})


def _check_split(index: int, stored: list[Group], live_indices: list[int], live: list[Group]) -> None:
    if (difference := _difference(live, live_indices)) is None:
        return
    name, first, second, values = difference
    raise MismatchError(
        f"the parameter groups differ: stored group {index} ({some(stored[index]['params'])}) has parameters in live "
        f"groups {first} and {second}, whose {name!r} differ ({values}), and it has one value for both; make the "
        f"groups as they were when the checkpoint was saved, or give these equal values before the restore and set "
        f"{name!r} after it."
    )


def _check_merge(live_index: int, indices: list[int], stored: list[Group]) -> None:
    if (difference := _difference(stored, indices)) is None:
        return
    name, first, second, values = difference
    raise MismatchError(
        f"the parameter groups differ: live group {live_index} has parameters of stored groups {first} "
        f"({some(stored[first]['params'])}) and {second} ({some(stored[second]['params'])}), whose {name!r} differ "
        f"({values}); make the groups as they were when the checkpoint was saved."
    )


def _difference(groups: list[Group], indices: list[int]) -> tuple[str, int, int, str] | None:
    """The first hyper-parameter in which some groups differ: its name, two of the groups, and what they have."""
    for second in indices[1:]:
        left, right = hyper_parameters(groups[indices[0]]), hyper_parameters(groups[second])
        for name in {**left, **right}:
            if name not in left or name not in right or not is_equal(left[name], right[name]):
                values = " and ".join(repr(group[name]) if name in group else "none" for group in (left, right))
                return name, indices[0], second, values
    return None


def is_equal(left: Any, right: Any) -> bool:
    """Whether two hyper-parameters are the same, tensors in them as well."""
    if left is right:
        return True
    if isinstance(left, torch.Tensor) or isinstance(right, torch.Tensor):
        both = isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor)
        return both and left.dtype == right.dtype and torch.equal(left.cpu(), right.cpu())
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return np.array_equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(is_equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple, deque)) and type(left) is type(right):
        return len(left) == len(right) and all(map(is_equal, left, right))
    return bool(left == right)


# A learning rate in a tensor may be part of a captured graph: such tensors keep their identity.


def check_tensors(group: Group, stored: Group) -> None:
    """Hyper-parameters that live in tensors take numbers and tensors of their shape.

    Raises:
        MismatchError: the stored value is neither.
    """
    for name, value in hyper_parameters(stored).items():
        for current, new in _tensors_and_values(group.get(name), value):
            is_number = type(new) in (int, float, bool)
            if not is_number and not (isinstance(new, torch.Tensor) and new.shape == current.shape):
                raise MismatchError(
                    f"the hyper-parameter {name!r} is a tensor of shape {list(current.shape)} here, but the "
                    f"checkpoint has {new!r} for it."
                )


def assign_groups(live: list[Group], stored: list[Group], members: list[list[object]], match: GroupMatch) -> None:
    """Gives live groups stored hyper-parameters, and the stored order where they have the same members."""
    given: dict[int, list[tuple[Any, Any, Any]]] = {}
    for target, (source, *_) in match.sources.items():
        group = live[target]
        for name, value in hyper_parameters(stored[source]).items():
            group[name] = _replacement(group.get(name), value, given)
        if are_same(members[source], group["params"]):
            _reorder(group, members[source])


def _replacement(current: Any, value: Any, given: dict[int, list[tuple[Any, Any, Any]]]) -> Any:
    """The new value in place of a live one. Groups that share a list or dict go on to share one."""
    if not isinstance(current, (list, dict, set)):
        return _assigned(current, value)
    for _, earlier, new in given.setdefault(id(current), []):
        if is_equal(earlier, value):
            return new
    new = _assigned(current, value)
    # The old one is kept: another object at its address would be taken for it.
    given[id(current)].append((current, value, new))
    return new


def _tensors_and_values(current: Any, value: Any) -> list[tuple[torch.Tensor, Any]]:
    """The tensors in a live hyper-parameter, such as a pair of betas, and what is stored for each."""
    if isinstance(current, torch.Tensor):
        return [(current, value)]
    if _are_parallel(current, value):
        return [pair for parts in zip(current, value, strict=True) for pair in _tensors_and_values(*parts)]
    return []


def _assigned(current: Any, value: Any) -> Any:
    if isinstance(current, torch.Tensor):
        with torch.no_grad():
            return current.copy_(torch.as_tensor(value, dtype=current.dtype, device=current.device))
    if _are_parallel(current, value):
        return type(value)(_assigned(*parts) for parts in zip(current, value, strict=True))
    # A stored group may be given to several live ones, which share nothing.
    return copy.deepcopy(value)


def _are_parallel(current: Any, value: Any) -> bool:
    return type(value) in (list, tuple) and type(current) is type(value) and len(current) == len(value)


def _reorder(group: Group, members: list[Any]) -> None:
    """Puts a group's parameters into the stored order, which flat states depend on."""
    order = {id(parameter): index for index, parameter in enumerate(group["params"])}
    if "param_names" in group:
        group["param_names"][:] = [group["param_names"][order[id(member)]] for member in members]
    group["params"][:] = members


def are_same(members: list[object], parameters: list[torch.Tensor]) -> bool:
    """Whether two lists have the same elements, in any order."""
    return len(members) == len(parameters) and {id(m) for m in members} == {id(p) for p in parameters}


def some(paths: Sequence[str | None]) -> str:
    """The first few of a group's members."""
    shown = ", ".join(str(path) for path in paths[:3])
    return shown + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
