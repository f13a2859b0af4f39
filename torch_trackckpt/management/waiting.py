"""Waits for checkpoints that another process saves, such as an evaluation for those of a training."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from torch_trackckpt.state_file import latest_checkpoint

__all__ = ["checkpoints_iterator", "wait_for_new_checkpoint"]


def wait_for_new_checkpoint(
    checkpoint_dir: str | os.PathLike[str],
    last_checkpoint: str | None = None,
    seconds_to_sleep: float = 1,
    timeout: float | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> str | None:
    """Waits until the newest checkpoint of a directory is another one. TensorFlow's function of this name.

    Args:
        checkpoint_dir: the directory, which need not exist yet.
        last_checkpoint: the path that is known already.
        seconds_to_sleep: how long to wait between two looks.
        timeout: after how many seconds to give up; None waits for ever. The last look is at that time, while TensorFlow
            gives up as soon as another ``seconds_to_sleep`` would be too long.
        clock: tells seconds, from any beginning.
        sleep: waits so many seconds. A ``threading.Event().wait`` can be woken up.

    Returns:
        The path, or None when the time is over.

    Raises:
        ValueError: the state file names no checkpoint.

    Example:
        >>> import tempfile
        >>> from torch_trackckpt import Checkpoint
        >>> from torch_trackckpt.management.waiting import wait_for_new_checkpoint
        >>> directory = tempfile.mkdtemp()
        >>> path = Checkpoint().save(directory + "/ckpt")
        >>> wait_for_new_checkpoint(directory) == path
        True
        >>> wait_for_new_checkpoint(directory, path, timeout=0) is None
        True
    """
    start = clock()
    while True:
        found = latest_checkpoint(checkpoint_dir)
        if found is not None and found != last_checkpoint:
            return found
        pause = seconds_to_sleep
        if timeout is not None:
            remaining = start + timeout - clock()
            if remaining <= 0:
                return None
            pause = min(pause, remaining)
        sleep(pause)


def checkpoints_iterator(
    checkpoint_dir: str | os.PathLike[str],
    min_interval_secs: float = 0,
    timeout: float | None = None,
    timeout_fn: Callable[[], object] | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[str]:
    """Yields the newest checkpoint of a directory, then waits for the next. TensorFlow's
    ``tf.train.checkpoints_iterator``.

    Checkpoints that came and were followed by others between two looks are passed over.

    Args:
        checkpoint_dir: the directory, which need not exist yet.
        min_interval_secs: the least number of seconds from one yield to the next.
        timeout: how many seconds to wait for a checkpoint; None waits for ever.
        timeout_fn: whether there will be no more; without it, the iteration ends at the timeout. As in TensorFlow it is
            asked at each timeout and after each checkpoint. If it says so, a checkpoint that came in the meantime is
            still yielded; TensorFlow passes over it.
        clock: tells seconds, from any beginning.
        sleep: waits so many seconds.

    Yields:
        Paths for `Checkpoint.restore`.

    Raises:
        ValueError: the state file names no checkpoint.

    Example:
        >>> import tempfile
        >>> from torch_trackckpt import Checkpoint, checkpoints_iterator
        >>> directory = tempfile.mkdtemp()
        >>> path = Checkpoint().save(directory + "/ckpt")
        >>> list(checkpoints_iterator(directory, timeout=0)) == [path]
        True
    """
    last: str | None = None
    is_over = False
    while True:
        found = wait_for_new_checkpoint(
            checkpoint_dir, last, timeout=0 if is_over else timeout, clock=clock, sleep=sleep
        )
        if found is not None:
            last, start = found, clock()
            yield found
            pause = start + min_interval_secs - clock()
            if pause > 0:
                sleep(pause)
        elif is_over or timeout_fn is None:
            return
        is_over = timeout_fn is not None and bool(timeout_fn())
