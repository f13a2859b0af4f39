"""What a schedule keeps for each parameter group of its optimizer, brought into the order of the live groups.

PyTorch keeps such values in lists, one item for each group in its order. The groups of a restored optimizer are matched
by their parameters, and may come in another order, or be merged or split; the lists have to follow them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch_trackckpt.adapters.state_node import PathOf
from torch_trackckpt.errors import MismatchError
from torch_trackckpt.trackable import Resolve

__all__ = ["first_members", "with_values_of_live_groups"]

_ONE_FOR_EACH_GROUP = (
    "base_lrs",
    "max_lrs",
    "min_lrs",
    "_last_lr",
    "lr_lambdas",
    "base_momentums",
    "max_momentums",
)


def first_members(scheduler: Any, path_of: PathOf) -> list[str | None] | None:
    """The object path of one parameter of each group, by which the groups are known; None where there is one group."""
    groups = _groups(scheduler)
    if len(groups) < 2:
        return None
    paths = [[path for path in map(path_of, group["params"][:1]) if path is not None] for group in groups]
    return [path[0] if path else None for path in paths]


def with_values_of_live_groups(
    scheduler: Any, state: Mapping[str, Any], members: list[str | None] | None, resolve: Resolve
) -> dict[str, Any]:
    """The state of a schedule with each list of values for groups in the order of the live groups.

    Args:
        scheduler: the live schedule.
        state: the stored state; those of nested schedules are brought into order as well.
        members: what `first_members` gave when it was stored.
        resolve: finds the live parameters.

    Raises:
        MismatchError: groups were merged or split, and it is not clear which of several values one should get.
    """
    stored: list[object] = [None if path is None else resolve(path) for path in members or [None]]
    sources = _sources(_groups(scheduler), stored)
    return _in_order(state, len(stored), sources) if sources is not None else dict(state)


def _groups(scheduler: Any) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = getattr(getattr(scheduler, "optimizer", None), "param_groups", [])
    return groups


def _sources(live_groups: list[dict[str, Any]], stored: list[object]) -> list[list[int]] | None:
    """For each live group, the stored ones that its values may come from; None where the order is the same."""
    group_of = {id(parameter): index for index, group in enumerate(live_groups) for parameter in group["params"]}
    found: list[list[int]] = [[] for _ in live_groups]
    for index, parameter in enumerate(stored):
        if id(parameter) in group_of:
            found[group_of[id(parameter)]].append(index)
    if len(live_groups) == len(stored) and not any(found):
        # Nothing is known of the parameters here.
        return None
    sources = [indices or list(range(len(stored))) for indices in found]
    return None if sources == [[index] for index in range(len(stored))] else sources


def _in_order(state: Mapping[str, Any], num_stored: int, sources: list[list[int]]) -> dict[str, Any]:
    result = dict(state)
    for name in _ONE_FOR_EACH_GROUP:
        values = state.get(name)
        if isinstance(values, list) and len(values) == num_stored:
            result[name] = [_one_value(name, [values[index] for index in indices]) for indices in sources]
    if isinstance(nested := state.get("_schedulers"), list):
        result["_schedulers"] = [_in_order(part, num_stored, sources) for part in nested]
    return result


def _one_value(name: str, values: list[Any]) -> Any:
    if any(value != values[0] for value in values):
        raise MismatchError(
            f"the parameter groups are others than those that were saved, and it is not clear which of the stored "
            f"{name} {values} belongs to one of them; make the groups as they were when the checkpoint was saved."
        )
    return values[0]
