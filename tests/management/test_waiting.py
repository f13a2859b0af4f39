"""Waiting for checkpoints, by a clock that goes on only while somebody sleeps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clocks import FakeClock

from torch_trackckpt import Checkpoint, CheckpointManager, CheckpointOptions, checkpoints_iterator
from torch_trackckpt.management.waiting import wait_for_new_checkpoint

FAST = CheckpointOptions(durable=False)


class Training:
    """A process that saves at given times, while somebody else sleeps."""

    def __init__(self, directory: Path, *times: float) -> None:
        self.clock = FakeClock(0.0)
        self.manager = CheckpointManager(Checkpoint(), directory, max_to_keep=2)
        self._due = list(times)

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.clock.sleep(seconds)
        self.catch_up()

    def catch_up(self) -> None:
        while self._due and self._due[0] <= self.clock.now:
            self._due.pop(0)
            self.manager.save(options=FAST)

    def iterate(self, directory: Path, **kwargs: Any) -> Iterator[str]:
        return checkpoints_iterator(directory, clock=self.clock, sleep=self.sleep, **kwargs)

    def wait(self, directory: Path, last: str | None = None, **kwargs: Any) -> str | None:
        return wait_for_new_checkpoint(directory, last, clock=self.clock, sleep=self.sleep, **kwargs)


def asked(*answers: bool) -> tuple[Callable[[], bool], list[bool]]:
    """A function that gives these answers, and those that it has not given yet."""
    left = list(answers)
    return lambda: left.pop(0), left


def test_each_newest_checkpoint_comes_once_and_those_between_two_looks_do_not(tmp_path: Path) -> None:
    """C260, C261."""
    training = Training(tmp_path, 0, 3, 3.2, 3.4, 9)
    training.catch_up()
    seen = []
    for path in training.iterate(tmp_path, timeout=10):
        seen.append((path[-1], training.clock.now))
        assert path == training.manager.latest_checkpoint
    assert seen == [("1", 0), ("2", 3), ("4", 4), ("5", 9)]
    assert training.clock.now == 19


def test_the_function_is_asked_at_each_timeout(tmp_path: Path) -> None:
    """C262."""
    training = Training(tmp_path, 25)
    timeout_fn, left = asked(False, False, False, True)
    seen = [(path[-1], training.clock.now) for path in training.iterate(tmp_path, timeout=10, timeout_fn=timeout_fn)]
    # At 10, at 20, after the checkpoint at 25, at 35.
    assert seen == [("1", 25)]
    assert training.clock.now == 35
    assert left == []


def test_if_nothing_comes_and_nothing_will_nothing_is_yielded(tmp_path: Path) -> None:
    """C263."""
    training = Training(tmp_path)
    assert list(training.iterate(tmp_path, timeout=0, timeout_fn=lambda: True)) == []
    assert training.clock.slept == []


def test_the_function_ends_an_iteration_that_would_wait_for_ever(tmp_path: Path) -> None:
    training = Training(tmp_path, 0)
    training.catch_up()
    assert len(list(training.iterate(tmp_path, timeout_fn=lambda: True))) == 1


def test_a_checkpoint_that_came_before_the_end_was_told_is_not_lost(tmp_path: Path) -> None:
    """TensorFlow would pass over the last checkpoint of a training."""
    training = Training(tmp_path, 0, 5)
    training.catch_up()
    seen = []
    for path in training.iterate(tmp_path, timeout=1, timeout_fn=lambda: True):
        seen.append(path[-1])
        training.sleep(7)  # The evaluation, during which the training ends.
    assert seen == ["1", "2"]


def test_so_many_seconds_lie_between_two_yields(tmp_path: Path) -> None:
    """C264."""
    training = Training(tmp_path, *range(20))
    training.catch_up()
    seen = []
    for _ in training.iterate(tmp_path, min_interval_secs=7, timeout=2):
        seen.append(training.clock.now)
        training.sleep(3)
    assert seen == [0, 7, 14, 21]


def test_a_yield_that_took_longer_is_followed_at_once(tmp_path: Path) -> None:
    """C264."""
    training = Training(tmp_path, *range(20))
    training.catch_up()
    iterator = training.iterate(tmp_path, min_interval_secs=2)
    next(iterator)
    training.sleep(5)
    before = training.clock.now
    next(iterator)
    assert training.clock.now == before


def test_a_directory_that_does_not_exist_yet_is_waited_for(tmp_path: Path) -> None:
    """C265."""
    training = Training(tmp_path / "later", 4)
    assert training.wait(tmp_path / "later", timeout=2) is None
    assert not (tmp_path / "later").exists()
    assert training.wait(tmp_path / "later") == str(tmp_path / "later" / "ckpt-1")
    assert training.clock.now == 4


@pytest.mark.parametrize(("timeout", "pause", "looks"), [(1, 0.5, 2), (1, 0.4, 3), (0.3, 1, 1), (0, 1, 0)])
def test_the_wait_ends_when_the_time_is_over(tmp_path: Path, timeout: float, pause: float, looks: int) -> None:
    """C266."""
    training = Training(tmp_path)
    assert training.wait(tmp_path, timeout=timeout, seconds_to_sleep=pause) is None
    assert training.clock.now == pytest.approx(timeout)
    assert len(training.clock.slept) == looks


def test_a_checkpoint_that_is_known_is_not_new(tmp_path: Path) -> None:
    training = Training(tmp_path, 0, 6)
    training.catch_up()
    first = training.wait(tmp_path)
    assert first == training.manager.latest_checkpoint
    assert training.wait(tmp_path, first, timeout=2) is None
    assert training.wait(tmp_path, first) == str(tmp_path / "ckpt-2")
    assert training.clock.now == 6


def test_without_a_timeout_the_wait_is_as_long_as_it_has_to_be(tmp_path: Path) -> None:
    """C267."""
    training = Training(tmp_path, 100_000)
    iterator = training.iterate(tmp_path)
    assert next(iterator) == str(tmp_path / "ckpt-1")
    assert training.clock.now == 100_000
    iterator.close()  # type: ignore[attr-defined]
    assert list(iterator) == []


def test_the_clock_and_the_sleep_of_the_system_are_the_default(tmp_path: Path) -> None:
    """C266."""
    start = time.monotonic()
    assert wait_for_new_checkpoint(tmp_path, seconds_to_sleep=0.02, timeout=0.05) is None
    assert list(checkpoints_iterator(tmp_path, timeout=0.05)) == []
    assert time.monotonic() - start >= 0.1


def test_a_wait_can_be_ended_from_another_thread(tmp_path: Path) -> None:
    """C267."""

    class Stopped(Exception):
        pass

    stop = threading.Event()

    def sleep(seconds: float) -> None:
        if stop.wait(seconds):
            raise Stopped

    threading.Timer(0.05, stop.set).start()
    with pytest.raises(Stopped):
        next(checkpoints_iterator(tmp_path, sleep=sleep))
