"""What an asynchronous save costs a training.

Two loops in one process, which saves several times in each; the first save of all is shown apart:

- *stall*: save, then at once the step that changes all values in place. The time of the call, and what that step takes
  longer than steps without a save. A library that shares memory or copies on write pays here.
- *lost*: save, then forward and backward (matrix products, about half a second on all threads), then the in-place
  step, and so on until the save is complete. What the call and the first of these rounds take longer than rounds
  without a save (`lost_step`), and what all of them do (`lost_total`): the writer slows the training as well.

At the end the last checkpoint is restored and compared with the values at its call: a torn one is no checkpoint.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders.base import Contender
from benchmarks.memory import PeakMemory
from benchmarks.processor import ProcessorTime
from benchmarks.workloads import Training, digest

_SIDE = 1024
_NUM_BASE = 5
_NUM_BETWEEN = 2


def run_loop(
    training: Training, make: Callable[[], Contender], path: str, *, step_seconds: float, num_saves: int
) -> dict[str, Any]:
    """Both loops.

    Args:
        training: what is trained and saved.
        make: makes the contender, with its kept memory if it is one that does so before the first save.
        path: an empty directory.
        step_seconds: how long forward and backward take.
        num_saves: in each loop.
    """
    for parameter in training.model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    training.optimizer.step()
    work = Work.calibrated(step_seconds)
    own_peak = _own_peak(training, work, make)
    peak = PeakMemory()
    processor = ProcessorTime()
    contender = make()
    places = [Path(path) / str(number) for number in range(2 * num_saves)]
    figures = _stalls(contender, places[:num_saves]) | _losses(contender, places[num_saves:], work)
    figures["peak"] = None if contender.copies_live else max(0, peak.above() - own_peak)
    figures["others"] = processor.others()
    figures["bytes"] = contender.workload.nbytes()
    figures["wrong_pieces"] = _check(contender, places[-1])
    contender.close()
    return figures


def _own_peak(training: Training, work: Work, make: Callable[[], Contender]) -> int:
    """What the loop itself takes for a time, without any save."""
    contender = make()
    peak = PeakMemory()
    work()
    training.optimizer.step()
    _digest(contender)
    above = peak.above()
    contender.close()
    return above


@dataclasses.dataclass(frozen=True)
class Work:
    """What stands for forward and backward: so many products of two matrices."""

    count: int
    operands: torch.Tensor
    result: torch.Tensor

    @classmethod
    def calibrated(cls, seconds: float) -> Work:
        one = cls(1, torch.rand(_SIDE, _SIDE), torch.empty(_SIDE, _SIDE))
        one()
        each = statistics.median(_seconds(one) for _ in range(9))
        return dataclasses.replace(one, count=max(1, round(seconds / each)))

    def __call__(self) -> None:
        for _ in range(self.count):
            torch.mm(self.operands, self.operands, out=self.result)


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _step_seconds(contender: Contender) -> float:
    start = time.perf_counter()
    with contender.step_guard():
        contender.step()
    return time.perf_counter() - start


def _stalls(contender: Contender, places: list[Path]) -> dict[str, Any]:
    base = [_step_seconds(contender) for _ in range(_NUM_BASE)]
    blocked, steps, complete = [], [], []
    for place in places:
        place.mkdir()
        start = time.perf_counter()
        wait = contender.begin(place)
        blocked.append(time.perf_counter() - start)
        steps.append(_step_seconds(contender))
        wait()
        complete.append(time.perf_counter() - start)
        shutil.rmtree(place)
        base += [_step_seconds(contender) for _ in range(_NUM_BETWEEN)]
    usual = statistics.median(base)
    stalls = [call + step - usual for call, step in zip(blocked, steps, strict=True)]
    return {
        "step": usual,
        "blocked_first": blocked[0],
        "blocked_later": statistics.median(blocked[1:]),
        "stall_first": stalls[0],
        "stall_later": statistics.median(stalls[1:]),
        "complete": statistics.median(complete[1:]),
    }


def _losses(contender: Contender, places: list[Path], work: Work) -> dict[str, Any]:
    def round_seconds() -> float:
        return _seconds(work) + _step_seconds(contender)

    base = [round_seconds() for _ in range(_NUM_BASE)]
    calls, rounds = [], []
    for place in places:
        if place is places[-1]:
            _digest_file(place).write_text(_digest(contender))
        place.mkdir()
        start = time.perf_counter()
        wait = contender.begin(place)
        calls.append(time.perf_counter() - start)
        done = _Completion(wait)
        rounds.append([round_seconds()])
        while not done.is_set():
            rounds[-1].append(round_seconds())
        done.result()
        if place is not places[-1]:
            shutil.rmtree(place)
        base += [round_seconds() for _ in range(_NUM_BETWEEN)]
    usual = statistics.median(base)
    pairs = list(zip(calls, rounds, strict=True))
    return {
        "round": usual,
        "lost_step": statistics.median(call + seconds[0] - usual for call, seconds in pairs),
        "lost_total": statistics.median(call + sum(seconds) - usual * len(seconds) for call, seconds in pairs),
    }


class _Completion:
    """Waits for a save in a thread, so that the loop can ask whether it is complete."""

    def __init__(self, wait: Callable[[], object]) -> None:
        self._error: BaseException | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(wait,))
        self._thread.start()
        self.is_set = self._done.is_set

    def _run(self, wait: Callable[[], object]) -> None:
        try:
            wait()
        except BaseException as error:
            self._error = error
        self._done.set()

    def result(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


def _digest_file(place: Path) -> Path:
    return place.parent / "digest"


def _digest(contender: Contender) -> str:
    return " ".join(map(str, digest(contender.live())))


def _check(contender: Contender, place: Path) -> int:
    """How many tensors of the last checkpoint are not what they were at its call."""
    expected = _digest_file(place).read_text().split()
    contender.load(place)
    return sum(left != right for left, right in zip(expected, _digest(contender).split(), strict=True))
