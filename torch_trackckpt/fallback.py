"""Going back from damaged checkpoints to the newest one that is sound."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable, Iterable

from torch_trackckpt.errors import CheckpointNotFoundError, DataLossError

__all__ = ["first_sound"]

_REASON_CHARACTERS = 500
"""How much of an error the log repeats; it may name very many values."""

_logger = logging.getLogger("torch_trackckpt")

Failure = tuple[str, CheckpointNotFoundError | DataLossError]


def first_sound(paths: Iterable[str], use: Callable[[str], object]) -> str:
    """The first checkpoint that can be used. If it is not the first of all, one line of the log says why.

    Only damage and missing files make it go on to the next. Every other error, such as values that do not fit the
    program, would not go away with another checkpoint, and is raised.

    Args:
        paths: the checkpoints, newest first; at least one.
        use: verifies or restores one.

    Raises:
        CheckpointNotFoundError: every checkpoint, or one of its files, is missing.
        DataLossError: every checkpoint is damaged or missing; the text tells of each.
    """
    failures: list[Failure] = []
    for path in paths:
        try:
            use(path)
        except (CheckpointNotFoundError, DataLossError) as error:
            failures.append((path, error))
            continue
        if failures:
            skipped = "; ".join(f"{failed!r}: {_in_short(error)}" for failed, error in failures)
            _logger.warning("%r is taken instead of newer checkpoints that cannot be used: %s", path, skipped)
        return path
    raise _united(failures) from failures[0][1]


def _in_short(error: Exception) -> str:
    return textwrap.shorten(str(error), _REASON_CHARACTERS, placeholder=" ...")


def _united(failures: list[Failure]) -> CheckpointNotFoundError | DataLossError:
    listed = "\n".join(f"{path!r}: {error}" for path, error in failures)
    text = f"None of the checkpoints that the state file lists ({len(failures)}) can be used:\n{listed}"
    if all(isinstance(error, CheckpointNotFoundError) for _, error in failures):
        return CheckpointNotFoundError(text)
    return DataLossError(text)
