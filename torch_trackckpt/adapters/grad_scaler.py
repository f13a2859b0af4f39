"""Gradient scalers of mixed precision as nodes: ``state_dict()`` of ``torch.amp.GradScaler``, checked beforehand."""

from __future__ import annotations

from typing import Any

from torch.amp import GradScaler

from torch_trackckpt.adapters.registry import register_adapter
from torch_trackckpt.adapters.state_node import StateNode
from torch_trackckpt.errors import DataLossError, MismatchError
from torch_trackckpt.trackable import Prepared

__all__ = ["GradScalerAdapter"]


class GradScalerAdapter(StateNode):
    """A gradient scaler. Its factors and its interval are part of its state, so the stored ones count.

    A disabled one has an empty state, and takes no other; the status tells that the stored one was not used.
    """

    def __init__(self, scaler: GradScaler) -> None:
        super().__init__(
            scaler,
            None,
            capture=lambda path_of: scaler.state_dict(),
            prepare=lambda stored, resolve: _prepare(scaler, stored),
        )
        self.adapted = scaler


def _prepare(scaler: GradScaler, stored: Any) -> Prepared:
    if not isinstance(stored, dict) or any(type(value) not in (int, float) for value in stored.values()):
        raise DataLossError("The stored state of a gradient scaler does not have the expected form.")
    if not scaler.is_enabled():
        return Prepared(
            lambda: None, ("the state of an enabled gradient scaler; this one is disabled",) if stored else ()
        )
    if not stored:
        raise MismatchError(
            "the checkpoint was saved with a disabled gradient scaler, which has no state, but this one is enabled; "
            "leave it out of the checkpoint that is restored, or restore into a disabled one."
        )
    if missing := sorted(scaler.state_dict().keys() - stored.keys()):
        raise DataLossError(f"The stored state of a gradient scaler lacks {', '.join(missing)}.")
    return Prepared(lambda: scaler.load_state_dict(stored))


register_adapter(GradScaler, GradScalerAdapter)
