"""Notices values that change while they are being saved."""

from __future__ import annotations

from torch_trackckpt.errors import ValueChangedError
from torch_trackckpt.save.plan import SavePlan

__all__ = ["check_unchanged"]


def check_unchanged(plan: SavePlan) -> None:
    """Checks that no tensor has changed, or got other memory, since the plan was made, as far as torch knows of it.

    To be asked when all is written. What the program may change from then on is no part of the checkpoint.

    Raises:
        ValueChangedError: one has.
    """
    if plan.late is not None:
        plan.late.check(is_last=True)
    changed = dict.fromkeys(plan.keys[row] for row in plan.table.changed())
    if plan.wholes is not None:
        changed |= dict.fromkeys(plan.wholes.changed())
    if changed:
        raise ValueChangedError(
            f"{len(changed)} values changed while they were being saved, the first is {next(iter(changed))}; no "
            "checkpoint has been made. Let no other thread train while a save is running."
        )
