"""The choices a caller has when saving and restoring."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

__all__ = ["CheckpointOptions"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """Options of `Checkpoint.save`, `write`, `read` and `restore`; never changed by them.

    The names that start with ``experimental_`` are TensorFlow's, the others are ours.

    Raises:
        ValueError: for an unknown ``verify``, or a callback that cannot be called with the path alone.
        TypeError: for an option that does not exist.

    Example:
        >>> from torch_trackckpt import CheckpointOptions
        >>> CheckpointOptions(durable=False).durable
        False
    """

    durable: bool = True
    """Wait until the disk has every byte before a file gets its name. False skips each fsync: faster, and
    safe against a crash of the process but not of the machine."""

    verify: Literal["during", "before"] = "during"
    """When a restore checks the checksums of what it reads. ``"before"``: all of them before the first live
    value changes. ``"during"``: on the way, in one pass over the data; a checkpoint of up to 64 MiB is checked
    before even so, and damage in a larger one raises an error that names the values already overwritten."""

    experimental_skip_slot_variables: bool = False
    """Restore only: optimizer slot variables are neither restored nor asked for by the assertions."""

    experimental_write_callbacks: Sequence[Callable[..., Any]] = ()
    """Called in order when the files of a save are complete and before the state file names them; each takes
    either nothing or the path."""

    experimental_io_device: Any = None
    """Accepted for TensorFlow's sake; it has no effect."""

    def __post_init__(self) -> None:
        if self.verify not in ("during", "before"):
            raise ValueError(f"verify must be 'during' or 'before', not {self.verify!r}.")
        for callback in self.experimental_write_callbacks:
            if _num_parameters(callback) > 1:
                raise ValueError(
                    f"A write callback takes no argument or the path alone, but {callback!r} "
                    f"takes {_num_parameters(callback)}."
                )

    def run_write_callbacks(self, path: str) -> None:
        """Calls each write callback with what it takes."""
        for callback in self.experimental_write_callbacks:
            callback(path) if _num_parameters(callback) else callback()


def _num_parameters(callback: Callable[..., Any]) -> int:
    return len(inspect.signature(callback).parameters)
