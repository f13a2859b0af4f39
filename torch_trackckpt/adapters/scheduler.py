"""Learning rate schedules as nodes.

The python state is ``{"kind": class name, "state": what state_dict() returns}``, and, of a schedule that is made of
others, ``"parts": [{"kind": class name}, ...]`` beside these. Schedulers take any dict without a question, and one of
another class would go on with a wrong learning rate. ``"groups"`` has the paths of the parameters in each group of the
optimizer; a scheduler without an optimizer has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, SequentialLR
from torch.optim.swa_utils import SWALR

from torch_trackckpt.adapters.kinds import accepted_kinds
from torch_trackckpt.adapters.registry import register_adapter
from torch_trackckpt.adapters.schedule_groups import GroupsOfSchedule, members_of_groups
from torch_trackckpt.adapters.state_node import PathOf, StateNode
from torch_trackckpt.errors import DataLossError, MismatchError
from torch_trackckpt.trackable import Prepared, Resolve

__all__ = ["SchedulerAdapter"]


class SchedulerAdapter(StateNode):
    """A scheduler; its optimizer is another object's business."""

    def __init__(self, scheduler: LRScheduler) -> None:
        super().__init__(
            scheduler,
            None,
            capture=lambda path_of: _capture(scheduler, path_of),
            prepare=lambda stored, resolve: _prepare(scheduler, stored, resolve),
        )
        self.adapted = scheduler


def _capture(scheduler: LRScheduler, path_of: PathOf) -> dict[str, Any]:
    captured = {**_kinds(scheduler), "state": _state_of(scheduler)}
    members = members_of_groups(scheduler, path_of)
    return {**captured, "groups": members} if members else captured


def _parts(scheduler: LRScheduler) -> list[LRScheduler]:
    """The schedulers that a scheduler is made of."""
    return list(scheduler._schedulers) if isinstance(scheduler, (SequentialLR, ChainedScheduler)) else []


def _kinds(scheduler: LRScheduler) -> dict[str, Any]:
    kinds: dict[str, Any] = {"kind": type(scheduler).__name__}
    if parts := _parts(scheduler):
        kinds["parts"] = [_kinds(part) for part in parts]
    return kinds


def _prepare(scheduler: LRScheduler, stored: Any, resolve: Resolve) -> Prepared:
    if not isinstance(stored, dict) or not _is_sound(stored, stored.get("state")) or not _are_paths(stored):
        raise DataLossError("The stored state of a scheduler does not have the expected form.")
    for complaint in _differences(scheduler, stored, "the live scheduler"):
        raise MismatchError(
            f"{complaint}; restore into the kind of scheduler that was saved, or leave the scheduler out."
        )
    groups = GroupsOfSchedule.find(scheduler, stored.get("groups", []), resolve)
    if groups.is_unknown(stored["state"]):
        # Until its parameters come, with the model: positions tell nothing.
        return Prepared(lambda: None, tuple(groups.unplaced), stored)
    state = groups.in_live_order(scheduler, stored["state"], _state_of(scheduler))

    def assign() -> None:
        scheduler.load_state_dict(state)
        _set_anneal_functions(scheduler)

    return Prepared(assign, tuple(groups.unplaced) if any(groups.sources) else ())


def _is_sound(kinds: Any, state: Any) -> bool:
    """Whether the kinds and the states of nested schedulers have the form that they are saved in."""
    if not isinstance(kinds, dict) or not isinstance(kinds.get("kind"), str) or not isinstance(state, dict):
        return False
    parts, states = kinds.get("parts", []), state.get("_schedulers", [])
    return (
        kinds.keys() <= {"kind", "parts", "state", "groups"}
        and isinstance(parts, list)
        and isinstance(states, list)
        and len(parts) == len(states)
        and all(map(_is_sound, parts, states))
    )


def _are_paths(stored: dict[str, Any]) -> bool:
    groups = stored.get("groups", [])
    return isinstance(groups, list) and all(
        isinstance(paths, list) and all(isinstance(path, str) for path in paths) for paths in groups
    )


def _differences(live: LRScheduler, stored: dict[str, Any], called: str) -> Iterator[str]:
    kind = type(live).__name__
    if stored["kind"] not in accepted_kinds(type(live), LRScheduler):
        yield f"the checkpoint holds the state of a {stored['kind']}, but {called} is a {kind}"
    live_parts, stored_parts = _parts(live), stored.get("parts", [])
    if len(live_parts) != len(stored_parts):
        yield (
            f"the checkpoint holds the state of a {kind} of {len(stored_parts)} schedulers "
            f"({', '.join(part['kind'] for part in stored_parts)}), but {called} has {len(live_parts)} "
            f"({', '.join(type(part).__name__ for part in live_parts)})"
        )
    for index, (live_part, stored_part) in enumerate(zip(live_parts, stored_parts, strict=False)):
        yield from _differences(live_part, stored_part, f"number {index} of the schedulers in {called}")


# SWALR of torch 2.6 has its annealing function in its state; later ones have the function's name there, which is what
# is stored.


def _anneal_functions() -> dict[str, Any]:
    return {"cos": SWALR._cosine_anneal, "linear": SWALR._linear_anneal}


def _state_of(scheduler: LRScheduler, state: dict[str, Any] | None = None) -> dict[str, Any]:
    state = dict(scheduler.state_dict() if state is None else state)
    if isinstance(scheduler, SWALR) and "anneal_func" in state:
        names = [name for name, function in _anneal_functions().items() if function is state["anneal_func"]]
        if names:
            del state["anneal_func"]
            state["_anneal_strategy"] = names[0]
    if parts := _parts(scheduler):
        state["_schedulers"] = list(map(_state_of, parts, state["_schedulers"]))
    return state


def _set_anneal_functions(scheduler: LRScheduler) -> None:
    for part in _parts(scheduler):
        _set_anneal_functions(part)
    if isinstance(scheduler, SWALR) and not hasattr(SWALR, "_set_anneal_func"):
        scheduler.anneal_func = _anneal_functions()[scheduler._anneal_strategy]


register_adapter(LRScheduler, SchedulerAdapter)
