"""The worker itself: whatever goes wrong in it is an error of the call, never a hang."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import Worker, WorkerError

FUNCTIONS = """
import os, sys, time

def add(left, right):
    print("not an answer")
    return left + right

def refuse():
    raise ValueError("the reason")

def die():
    print("last words", file=sys.stderr, flush=True)
    os._exit(3)

def hang():
    print("still here", file=sys.stderr, flush=True)
    time.sleep(600)
"""

StartWorker = Callable[..., Worker]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartWorker]:
    started = []

    def start(text: str = FUNCTIONS, timeout_seconds: float = 60.0) -> Worker:
        functions = tmp_path / "functions.py"
        functions.write_text(text)
        started.append(Worker(functions, timeout_seconds))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


def test_a_function_that_prints_still_answers(start: StartWorker) -> None:
    assert start().call("add", left=[1], right=["é"]) == [1, "é"]


def test_an_exception_comes_with_its_traceback_and_the_worker_lives_on(start: StartWorker) -> None:
    worker = start()
    with pytest.raises(WorkerError, match=r"(?s)refuse: ValueError: the reason\nTraceback.*in refuse"):
        worker.call("refuse")
    assert worker.call("add", left=1, right=2) == 3


def test_a_death_is_reported_with_the_last_output_and_the_next_call_starts_anew(start: StartWorker) -> None:
    worker = start()
    with pytest.raises(WorkerError, match=r"(?s)die ended the worker with status 3.*last words"):
        worker.call("die")
    assert worker.call("add", left=1, right=2) == 3


def test_a_file_of_functions_that_cannot_be_loaded_is_reported(start: StartWorker) -> None:
    with pytest.raises(WorkerError, match=r"(?s)add ended the worker with status 1.*ModuleNotFoundError: .*absent"):
        start("import absent_module").call("add", left=1, right=2)


def test_a_hanging_function_is_stopped(start: StartWorker) -> None:
    with pytest.raises(WorkerError, match=r"hang gave no answer within 2\.0 seconds"):
        start(timeout_seconds=2.0).call("hang")
