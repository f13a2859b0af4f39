"""Pieces of work that go on at the same time, each in steps that tell how far it is."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence

from torch_trackckpt.errors import WriterClosedError

__all__ = ["at_once"]


@dataclasses.dataclass(frozen=True)
class _Failure:
    error: BaseException


def at_once(works: Sequence[Iterator[int]], num_threads: int, stop: Callable[[], object]) -> Generator[int]:
    """What all of the works yield, as it comes. No thread is in a work any more when this ends.

    Args:
        works: each is run by one thread; whoever is free takes the next.
        num_threads: how many at once. With 1, or a single work, everything happens in the caller's thread, and so it
            does where the system gives no thread, as at the exit of the interpreter.
        stop: called when the first work fails, and when the caller gives up; it makes the others end soon, by a
            `WriterClosedError`.

    Raises:
        BaseException: what a work raised; of several, the first that is no consequence of another's.
    """
    remaining = collections.deque(works)
    outcomes: queue.SimpleQueue[int | _Failure | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            while work := _next_of(remaining):
                for outcome in work:
                    outcomes.put(outcome)
        except BaseException as error:
            outcomes.put(_Failure(error))
        finally:
            outcomes.put(None)

    count = min(num_threads, len(works))
    threads: list[threading.Thread] = []
    is_complete = False
    failure: _Failure | None = None
    try:
        _start(run, count if count > 1 else 0, threads)
        running = len(threads)
        while running:
            outcome = outcomes.get()
            if isinstance(outcome, _Failure):
                failure = outcome
                break
            if outcome is None:
                running -= 1
            else:
                yield outcome
        if failure is None:
            for work in remaining:
                yield from work
            is_complete = True
    finally:
        # An interrupt may come at any time, also while a thread is being started. Such a thread cannot be waited for
        # before it has an identity, and then finds nothing left to do.
        remaining.clear()
        if not is_complete:
            stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if failure is not None:
        raise _cause(failure, outcomes)


def _cause(first: _Failure, outcomes: queue.SimpleQueue[int | _Failure | None]) -> BaseException:
    """The first error, of those of all works, that is not that another has failed."""
    errors = [first.error]
    with contextlib.suppress(queue.Empty):
        while True:
            outcome = outcomes.get_nowait()
            if isinstance(outcome, _Failure):
                errors.append(outcome.error)
    return next((error for error in errors if not isinstance(error, WriterClosedError)), first.error)


def _next_of(works: collections.deque[Iterator[int]]) -> Iterator[int] | None:
    with contextlib.suppress(IndexError):
        return works.popleft()
    return None


def _start(run: Callable[[], None], count: int, threads: list[threading.Thread]) -> None:
    """Adds as many threads as the system gives."""
    for _ in range(count):
        thread = threading.Thread(target=run, name="torch_trackckpt writer", daemon=False)
        threads.append(thread)
        try:
            thread.start()
        except RuntimeError:
            threads.remove(thread)
            break
