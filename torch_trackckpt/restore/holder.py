"""What a restore needs to know of the checkpoint that it was called on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

__all__ = ["Holder"]


class Holder(Protocol):
    """The object whose attributes count as children of the root."""

    def _graph_root(self) -> object:
        """The live object for node 0.

        Raises:
            ReferenceError: it was given as a weak reference, and is gone.
        """
        ...

    def _attached(self) -> Mapping[str, object]:
        """What counts as children of the root without being known to it."""
        ...
