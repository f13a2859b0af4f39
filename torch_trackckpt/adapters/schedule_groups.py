"""What a schedule keeps for each parameter group of its optimizer, brought into the order of the live groups.

PyTorch keeps such values in lists, one item for each group in its order. The groups of a restored optimizer are matched
by their parameters, and may come in another order, or be merged or split; the lists have to follow them. A live group
that has no parameter of a stored one keeps what the live schedule has for it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch_trackckpt.adapters.param_groups import is_equal, some
from torch_trackckpt.adapters.state_node import PathOf
from torch_trackckpt.errors import MismatchError
from torch_trackckpt.trackable import Resolve

__all__ = ["GroupsOfSchedule", "members_of_groups"]

State = Mapping[str, Any]

_ONE_FOR_EACH_GROUP = (
    "base_lrs",
    "max_lrs",
    "min_lrs",
    "_last_lr",
    "lr_lambdas",
    "base_momentums",
    "max_momentums",
)


def members_of_groups(scheduler: Any, path_of: PathOf) -> list[list[str]]:
    """The object paths of the parameters of each group, of those that have one."""
    return [
        [path for path in map(path_of, group["params"]) if path is not None]
        for group in _groups_of_optimizer(scheduler)
    ]


def _groups_of_optimizer(scheduler: Any) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = getattr(getattr(scheduler, "optimizer", None), "param_groups", [])
    return groups


@dataclasses.dataclass(frozen=True)
class GroupsOfSchedule:
    """Which live groups have parameters of which stored groups."""

    sources: Sequence[Sequence[int]]
    """For each live group, the stored ones that its values may come from."""
    stored: Sequence[Sequence[str]]
    """What `members_of_groups` gave when the schedule was stored."""

    @classmethod
    def find(cls, scheduler: Any, stored: list[list[str]], resolve: Resolve) -> GroupsOfSchedule:
        """Matches the groups of a schedule's optimizer.

        Args:
            scheduler: the live schedule.
            stored: what `members_of_groups` gave.
            resolve: finds the live parameters.
        """
        live = _groups_of_optimizer(scheduler)
        group_of = {id(parameter): index for index, group in enumerate(live) for parameter in group["params"]}
        sources: list[list[int]] = [[] for _ in live]
        for index, paths in enumerate(stored):
            for live_index in sorted({group_of[id(p)] for p in map(resolve, paths) if id(p) in group_of}):
                sources[live_index].append(index)
        if len(live) == len(stored):
            for index, paths in enumerate(stored):
                # Of groups whose parameters had no path, the order is all that is known.
                if not paths and not sources[index]:
                    sources[index] = [index]
        return cls(sources, stored)

    @property
    def is_in_order(self) -> bool:
        """Whether all groups are as they were stored."""
        return list(self.sources) == [[index] for index in range(len(self.stored))]

    @property
    def unplaced(self) -> list[str]:
        """Stored groups that no live one has parameters of, in words."""
        placed = {index for indices in self.sources for index in indices}
        return [
            f"the values for a group of {len(paths)} parameters, none of which is known here ({some(paths)})"
            if paths
            else "the values for a group whose parameters had no path"
            for index, paths in enumerate(self.stored)
            if index not in placed
        ]

    def is_unknown(self, state: State) -> bool:
        """Whether no group has a place, and it matters which one would get it."""
        if any(self.sources) or not self.stored:
            return False
        lists = [values for values in _lists(state) if len(values) == len(self.stored)]
        is_same = all(is_equal(value, values[0]) for values in lists for value in values)
        return len(self.sources) != len(self.stored) or not is_same

    def in_live_order(self, scheduler: Any, state: State, live: State) -> dict[str, Any]:
        """The stored state with each list of values for groups in the order of the live groups.

        Args:
            scheduler: the live schedule.
            state: the stored state; those of nested schedules are brought into order as well.
            live: the state of the live schedule.

        Raises:
            MismatchError: it is not clear which of several values a group should get.
        """
        if self.is_in_order or not any(self.sources):
            return dict(state)
        result = dict(state)
        for name, values in state.items():
            if name in _ONE_FOR_EACH_GROUP and isinstance(values, list):
                result[name] = self._values(name, values, live.get(name))
            elif isinstance(values, (list, tuple)) and not type(scheduler).__module__.startswith("torch."):
                result[name] = self._of_another(f"{type(scheduler).__name__}.{name}", values, live.get(name))
        if isinstance(nested := state.get("_schedulers"), list):
            parts = zip(scheduler._schedulers, nested, live["_schedulers"], strict=True)
            result["_schedulers"] = [self.in_live_order(*part) for part in parts]
        return result

    def _values(self, name: str, values: list[Any], live: Any) -> list[Any]:
        if len(values) != len(self.stored):
            raise MismatchError(
                f"the parameter groups are others than those that were saved, or come in another order, and the stored "
                f"{name} {values} are not one for each of the {len(self.stored)} groups; make the groups as they were "
                "when the checkpoint was saved."
            )
        return [
            _one_value(name, [values[stored] for stored in indices]) if indices else _live_value(name, live, index)
            for index, indices in enumerate(self.sources)
        ]

    def _of_another(self, name: str, values: Sequence[Any], live: Any) -> Any:
        """A list in a schedule that is not PyTorch's: it may be for groups, or just have as many items."""
        if len(values) != len(self.stored) or is_equal(values, live):
            return values
        if is_equal([values[index] for indices in self.sources for index in indices[:1]], list(live or ())):
            return live
        raise MismatchError(
            f"the parameter groups are others than those that were saved, or come in another order, and it is not "
            f"clear whether the items of the stored {name} {values} belong to them; make the groups as they were when "
            "the checkpoint was saved."
        )


def _lists(state: State) -> Iterator[list[Any]]:
    """All lists of values for groups."""
    for name in _ONE_FOR_EACH_GROUP:
        if isinstance(values := state.get(name), list):
            yield values
    for part in state.get("_schedulers", ()):
        yield from _lists(part)


def _one_value(name: str, values: list[Any]) -> Any:
    if not all(is_equal(value, values[0]) for value in values):
        raise MismatchError(
            f"the parameter groups are others than those that were saved, and it is not clear which of the stored "
            f"{name} {values} belongs to one of them; make the groups as they were when the checkpoint was saved."
        )
    # Groups share nothing, as those of a live schedule.
    return copy.deepcopy(values[0])


def _live_value(name: str, live: Any, index: int) -> Any:
    if not isinstance(live, list) or index >= len(live):
        raise MismatchError(
            f"the checkpoint has no {name} for parameter group {index}, whose parameters are in none of the stored "
            "groups, and the live schedule has none either; make the schedule after the group."
        )
    return live[index]
