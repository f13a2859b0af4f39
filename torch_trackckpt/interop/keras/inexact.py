"""What cannot be converted exactly."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Inexact"]


class Inexact(NamedTuple):
    """One thing that is not the same on both sides."""

    name: str
    """A tensor of the torch module, or a setting of the optimizer."""
    reason: str
    """Why, and what to do."""

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"
