"""Modules of FSDP2: their parameters are in parts, but for the time of a forward and backward pass."""

from __future__ import annotations

import sys

from torch import nn

__all__ = ["put_back_parts"]


def put_back_parts(module: nn.Module) -> None:
    """Has a module of FSDP2 have the parameters again that its optimizer knows, as torch's ``state_dict`` does.

    A forward pass without a backward one leaves the whole tensors in their place, and these are neither what is trained
    nor what is there after the next pass. Nothing is done for other modules, or those below.
    """
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    if kind is not None and isinstance(module, kind):
        module.reshard()
