"""Checks many values of a checkpoint, and says of all of them what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch_trackckpt.errors import (
    CheckpointNotFoundError,
    DataLossError,
    TensorNotFoundError,
    UnsupportedFormatError,
)

__all__ = ["verify_values"]

AT_ONCE_BYTES = 64 << 20
"""How much is read between two calls of the callback (one value may be larger)."""

_MOST_NAMED = 100
"""How many damaged values an error names."""

_FAILURES = (DataLossError, CheckpointNotFoundError, UnsupportedFormatError, TensorNotFoundError)

Failure = tuple[str, Exception]


def verify_values(
    values: Sequence[tuple[str, int]],
    verify: Callable[[list[str]], None],
    prefix: str,
    progress: Callable[[int, int], object] | None,
) -> None:
    """Checks every value, whatever is wrong with those before it.

    Args:
        values: keys, and how many bytes belong to each.
        verify: checks the values of some keys, and raises for the first that is damaged.
        prefix: what to call the checkpoint.
        progress: called with the number of bytes that were checked, and of all.

    Raises:
        DataLossError: several things are wrong, or values are damaged.
        CheckpointNotFoundError, UnsupportedFormatError: this alone is wrong.
    """
    total = sum(nbytes for _, nbytes in values)
    failures: list[Failure] = []
    done = 0
    for batch in _batches(values):
        failures += _failures([key for key, _ in batch], verify)
        done += sum(nbytes for _, nbytes in batch)
        if progress is not None:
            progress(done, total)
    _raise_failures(failures, prefix)


def _batches(values: Sequence[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    batch: list[tuple[str, int]] = []
    num_bytes = 0
    for key, nbytes in values:
        if batch and num_bytes + nbytes > AT_ONCE_BYTES:
            yield batch
            batch, num_bytes = [], 0
        batch.append((key, nbytes))
        num_bytes += nbytes
    yield batch


def _failures(keys: list[str], verify: Callable[[list[str]], None]) -> list[Failure]:
    """What is wrong with each value. All go in one call; only if it fails, they go one by one."""
    try:
        verify(keys)
    except _FAILURES as error:
        if len(keys) == 1:
            return [(keys[0], error)]
        return [failure for key in keys for failure in _failures([key], verify)]
    return []


def _raise_failures(failures: list[Failure], prefix: str) -> None:
    if not failures:
        return
    (key, first), *others = failures
    if not others and (not isinstance(first, DataLossError) or f"key {key}" in str(first)):
        raise first
    listed = "\n  ".join(f"{key}: {error}" for key, error in failures[:_MOST_NAMED])
    if len(failures) > _MOST_NAMED:
        listed += f"\n  and {len(failures) - _MOST_NAMED} more"
    text = f"{len(failures)} value{'s' if others else ''} of {prefix!r} cannot be read:\n  {listed}"
    # Where all failures are of one kind (a missing data file, say), so is the error.
    kinds = {type(error) for _, error in failures}
    raise (kinds.pop() if len(kinds) == 1 else DataLossError)(text) from first
