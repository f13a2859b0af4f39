"""What to do with an object that is not trackable, by its kind."""

from __future__ import annotations

import dataclasses

__all__ = ["hint"]


def hint(value: object) -> str:
    """A sentence for an error message that a value is not trackable; empty where there is nothing special to say.

    Example:
        >>> from torch_trackckpt.adapters.hints import hint
        >>> hint(3)
        ''
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value).__name__
        return f"Let the dataclass {kind} derive from torch_trackckpt.AutoTrackable; its fields are saved then."
    return ""
