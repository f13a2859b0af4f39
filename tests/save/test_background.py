"""When threads that write rest, and when not."""

from __future__ import annotations

import pytest

from torch_trackckpt.save import background
from torch_trackckpt.save.background import Pace


class Clock:
    """Stands still unless it is moved; a rest moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.rests: list[float] = []
        monkeypatch.setattr(background.time, "monotonic", lambda: self.now)

    def rest(self, seconds: float) -> bool:
        self.rests.append(round(seconds, 6))
        self.now += seconds
        return False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def paced(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Pace:
    pace = Pace()
    monkeypatch.setattr(pace._is_awaited, "wait", clock.rest)
    return pace


def test_threads_work_for_three_tenths_of_the_time_and_rest_until_the_next_period(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = paced(clock, monkeypatch)
    for _ in range(40):
        pace.rest()
        clock.now += 0.01
    assert all(0.05 <= rest <= 0.07 for rest in clock.rests)
    assert 0.25 < 0.4 / (clock.now - 1000) < 0.45


def test_a_long_piece_of_work_is_followed_by_a_rest_until_all_begin_again(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = paced(clock, monkeypatch)
    clock.now += 0.75
    pace.rest()
    assert clock.rests == [0.05]


def test_nobody_rests_when_somebody_waits() -> None:
    pace = Pace()
    pace._begin -= 0.05
    pace.hurry()
    pace.rest()
    assert pace._is_awaited.is_set()
