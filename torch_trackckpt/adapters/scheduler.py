"""Learning rate schedules as nodes.

The python state is ``{"kind": class name, "state": what state_dict() returns}``: schedulers take any dict without a
question, and one of another class would go on with a wrong learning rate.
"""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from torch_trackckpt.adapters.kinds import accepted_kinds
from torch_trackckpt.adapters.registry import register_adapter
from torch_trackckpt.adapters.state_node import StateNode
from torch_trackckpt.errors import DataLossError, MismatchError
from torch_trackckpt.trackable import Prepared

__all__ = ["SchedulerAdapter"]


class SchedulerAdapter(StateNode):
    """A scheduler; its optimizer is another object's business."""

    def __init__(self, scheduler: LRScheduler) -> None:
        super().__init__(
            scheduler,
            None,
            capture=lambda path_of: {"kind": type(scheduler).__name__, "state": scheduler.state_dict()},
            prepare=lambda stored, resolve: _prepare(scheduler, stored),
        )
        self.adapted = scheduler


def _prepare(scheduler: LRScheduler, stored: Any) -> Prepared:
    if not isinstance(stored, dict) or stored.keys() != {"kind", "state"}:
        raise DataLossError("The stored state of a scheduler does not have the expected form.")
    live = type(scheduler)
    if stored["kind"] not in accepted_kinds(live, LRScheduler):
        raise MismatchError(
            f"the checkpoint holds the state of a {stored['kind']}, but the live scheduler is a {live.__name__}; "
            "restore into the kind of scheduler that was saved, or leave the scheduler out."
        )
    return Prepared(lambda: scheduler.load_state_dict(stored["state"]))


register_adapter(LRScheduler, SchedulerAdapter)
