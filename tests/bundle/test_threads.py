"""How many threads read or write."""

import os

import pytest

from torch_trackckpt.bundle.threads import num_threads


def test_the_callers_number_is_taken() -> None:
    assert [num_threads(wanted) for wanted in (1, 3, 20)] == [1, 3, 20]


@pytest.mark.parametrize(("processors", "expected"), [({0}, 1), ({1, 5}, 2), (set(range(64)), 8)])
def test_otherwise_there_are_as_many_as_processors_that_the_process_may_use_up_to_eight(
    monkeypatch: pytest.MonkeyPatch, processors: set[int], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: processors, raising=False)
    assert num_threads() == expected
