"""What a manager keeps: TensorFlow's two numbers, and policies."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from checkpoints import names_in
from clocks import FakeClock
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trackckpt import Checkpoint, CheckpointManager, CheckpointOptions, get_checkpoint_state, latest_checkpoint
from torch_trackckpt.errors import DataLossError
from torch_trackckpt.retention import (
    KeepBest,
    KeepEveryHours,
    KeepEverySteps,
    KeepLatest,
    Retention,
    SavedCheckpoint,
)

FAST = CheckpointOptions(durable=False)
HOUR = 3600.0
RECORDS = "checkpoint_records.json"


def numbers(paths: Sequence[str]) -> list[int]:
    return [int(path.rpartition("-")[2]) for path in paths]


def on_disk(directory: Path | str) -> list[int]:
    """The numbers of the checkpoints whose files are there, all of them."""
    found = sorted(int(name[5:-6]) for name in os.listdir(directory) if name.endswith(".index"))
    data = [f"ckpt-{number}.data-00000-of-00001" for number in found]
    assert sorted(data) == sorted(name for name in os.listdir(directory) if ".data" in name)
    return found


def last_preserved(directory: Path) -> float:
    state = get_checkpoint_state(directory)
    assert state is not None
    return state.last_preserved_timestamp


class Run:
    """A training that saves by a clock, and may be restarted."""

    def __init__(self, directory: Path | str, **kwargs: Any) -> None:
        self.directory, self.kwargs = directory, kwargs
        self.clock = FakeClock()
        self.step = torch.tensor(0)
        self.checkpoint = Checkpoint(step=self.step)
        self.restart()

    def restart(self, **kwargs: Any) -> None:
        self.kwargs |= kwargs
        self.manager = CheckpointManager(self.checkpoint, self.directory, clock=self.clock, **self.kwargs)

    def save(self, *, after_hours: float = 0.0, **kwargs: Any) -> str | None:
        self.clock.now += after_hours * HOUR
        return self.manager.save(options=FAST, **kwargs)

    @property
    def listed(self) -> list[int]:
        return numbers(self.manager.checkpoints)


# ------------------------------------------------------------------------------------------- TensorFlow's two numbers


def test_one_of_every_few_hours_is_preserved_when_it_would_be_deleted(tmp_path: Path) -> None:
    """C214, C215."""
    run = Run(tmp_path, max_to_keep=1, keep_checkpoint_every_n_hours=2)
    for _ in range(8):
        run.save(after_hours=0.75)
    assert run.listed == [8]
    assert on_disk(tmp_path) == [3, 6, 8]
    assert last_preserved(tmp_path) == 1_700_000_000.0 + 6 * 0.75 * HOUR


def test_the_time_of_the_last_preserved_one_outlives_the_manager(tmp_path: Path) -> None:
    """C215, C216."""
    run = Run(tmp_path, max_to_keep=1, keep_checkpoint_every_n_hours=2)
    for _ in range(8):
        run.save(after_hours=0.75)
        run.restart()
    assert run.listed == [8]
    assert on_disk(tmp_path) == [3, 6, 8]
    run.restart(keep_checkpoint_every_n_hours=None)
    run.save(after_hours=100)
    run.save(after_hours=100)
    assert on_disk(tmp_path) == [3, 6, 10]


def test_exactly_so_many_hours_are_enough(tmp_path: Path) -> None:
    run = Run(tmp_path, max_to_keep=1, keep_checkpoint_every_n_hours=1)
    start = run.clock.now - 1
    run.clock.now = start
    run.save(after_hours=1)
    run.save()
    assert on_disk(tmp_path) == [1, 2]
    assert last_preserved(tmp_path) == start + HOUR


def test_no_hours_preserve_nothing_as_in_tensorflow(tmp_path: Path) -> None:
    run = Run(tmp_path, max_to_keep=1, keep_checkpoint_every_n_hours=0)
    for _ in range(3):
        run.save(after_hours=5)
    assert on_disk(tmp_path) == [3]


def test_a_clock_that_was_set_back_deletes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """C217."""
    run = Run(tmp_path, max_to_keep=1, keep_checkpoint_every_n_hours=1)
    for _ in range(3):
        run.save(after_hours=2)
    assert on_disk(tmp_path) == [1, 2, 3]
    run.clock.now = 1_600_000_000.0
    run.restart()
    assert "seconds behind the last preserved checkpoint" in caplog.text
    assert run.listed == []
    assert numbers([run.manager.latest_checkpoint or ""]) == [3]
    run.save(after_hours=0.5)
    run.save(after_hours=0.1)
    assert on_disk(tmp_path) == [1, 2, 3, 5]
    assert last_preserved(tmp_path) == 1_600_000_000.0
    run.save(after_hours=1)
    run.save(after_hours=0)
    assert on_disk(tmp_path) == [1, 2, 3, 6, 7]


def test_a_time_that_is_yet_to_come_counts_as_now(tmp_path: Path) -> None:
    """C217."""
    run = Run(tmp_path, max_to_keep=3)
    start = run.clock.now
    for _ in range(3):
        run.save(after_hours=10)
    run.clock.now = start + HOUR
    run.restart()
    assert run.listed == [1, 2, 3]
    assert [saved.timestamp for saved in run.manager.records] == [start + HOUR] * 3


def test_after_a_save_without_the_manager_older_ones_are_kept_for_good(tmp_path: Path) -> None:
    """C218, C241: the state file of `save` lists one path, without a time."""
    run = Run(tmp_path, max_to_keep=2)
    run.save()
    run.save()
    run.checkpoint.save(tmp_path / "ckpt")
    state = get_checkpoint_state(tmp_path)
    assert state is not None
    assert state.all_model_checkpoint_paths == (str(tmp_path / "ckpt-3"),)
    run.restart()
    assert run.listed == []
    for _ in range(3):
        run.save()
    assert on_disk(tmp_path) == [1, 2, 3, 5, 6]


class PlainManager:
    """TensorFlow's rules, slow and plain: files, list and file of state are plain values."""

    def __init__(self) -> None:
        self.files: set[int] = set()
        self.state: tuple[int, list[tuple[int, float]], float] | None = None
        self.counter = 0

    def start(self, now: float, keep: int | None, hours: float | None) -> None:
        self.keep, self.hours = keep, hours
        self.queue: list[tuple[int, float]] = []
        self.latest: int | None = None
        self.preserved = now - 1.0
        if self.state is not None:
            self.latest, stored, self.preserved = self.state
            self.preserved = min(self.preserved, now)
            for number, time in stored:
                if min(time, now) > self.preserved:
                    self.queue.append((number, min(time, now)))

    def save(self, now: float, number: int | None) -> None:
        self.counter += 1
        saved = self.counter if number is None else number
        self.files.add(saved)
        self.queue = [entry for entry in self.queue if entry[0] != saved] + [(saved, now)]
        self.latest = saved
        while self.keep is not None and len(self.queue) > self.keep:
            oldest, time = self.queue.pop(0)
            if self.hours and time - self.hours * 3600 >= self.preserved:
                self.preserved = time
            else:
                self.files.discard(oldest)
        self.state = (self.latest, list(self.queue), self.preserved)


clock_steps = st.sampled_from([0.001, 0.5, 1.0, 1800.0, HOUR, 2 * HOUR, 86400.0, -1.0, -7200.0, -1e6])
settings_of_a_manager = st.tuples(st.none() | st.integers(1, 3), st.sampled_from([None, 0.5, 1.0, 1.5, 24.0]))
events = st.one_of(
    st.tuples(st.just("save"), st.none() | st.integers(1, 6)),
    st.tuples(st.just("clock"), clock_steps),
    st.tuples(st.just("restart"), settings_of_a_manager),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(events, max_size=25), st.none() | st.integers(1, 3), st.sampled_from([None, 0.5, 1.0]))
def test_any_sequence_of_saves_restarts_and_clocks_goes_by_tensorflows_rules(
    sequence: list[tuple[str, Any]], keep: int | None, hours: float | None
) -> None:
    """C210, C211, C213, C214, C215, C216, C217, C219, C220."""
    with TemporaryDirectory() as folder:
        run = Run(folder, max_to_keep=keep, keep_checkpoint_every_n_hours=hours)
        plain = PlainManager()
        plain.start(run.clock.now, keep, hours)
        for event, value in sequence:
            if event == "save":
                run.save(checkpoint_number=value)
                plain.save(run.clock.now, value)
            elif event == "clock":
                run.clock.now += value
            else:
                run.restart(max_to_keep=value[0], keep_checkpoint_every_n_hours=value[1])
                plain.start(run.clock.now, *value)
            assert on_disk(folder) == sorted(plain.files)
            assert run.listed == [number for number, _ in plain.queue]
            latest = run.manager.latest_checkpoint
            assert (None if latest is None else numbers([latest])[0]) == plain.latest
            assert latest_checkpoint(folder) == latest
            state = get_checkpoint_state(folder)
            assert (state is None) == (plain.state is None)
            if state is not None and plain.state is not None:
                assert state.all_model_checkpoint_timestamps == tuple(time for _, time in plain.state[1])
                assert state.last_preserved_timestamp == plain.state[2]


# ------------------------------------------------------------------------------------------------- policies


def test_policies_keep_what_any_of_them_wants(tmp_path: Path) -> None:
    run = Run(tmp_path, retention=KeepLatest(2) | KeepBest(1, "loss") | KeepEverySteps(4))
    for loss in [0.9, 0.8, 0.1, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]:
        run.save(metrics={"loss": loss})
    assert run.listed == on_disk(tmp_path) == [1, 3, 4, 8, 9]


def test_the_latest_is_kept_even_if_no_policy_wants_it(tmp_path: Path) -> None:
    run = Run(tmp_path, retention=KeepBest(1, "accuracy", mode="max"))
    for accuracy in [0.3, 0.9, 0.1]:
        run.save(metrics={"accuracy": accuracy})
    assert run.listed == on_disk(tmp_path) == [2, 3]
    run.save()
    assert run.listed == on_disk(tmp_path) == [2, 4]
    assert latest_checkpoint(tmp_path) == run.manager.latest_checkpoint == str(tmp_path / "ckpt-4")


def test_metrics_and_steps_outlive_the_manager(tmp_path: Path) -> None:
    step = torch.tensor(0)
    run = Run(tmp_path, retention=KeepBest(2, "loss") | KeepEverySteps(10), step_counter=step)
    for loss in [0.5, 0.1, math.nan, math.inf, -math.inf, 0.3]:
        step += 4
        run.save(metrics={"loss": torch.tensor(loss), "other": 7})
        before = run.manager.records
        run.restart()
        assert repr(run.manager.records) == repr(before)
    assert [(saved.step, saved.metrics["loss"]) for saved in run.manager.records] == [
        (4, 0.5),
        (8, pytest.approx(0.1)),
        (12, pytest.approx(math.nan, nan_ok=True)),
        (20, -math.inf),
        (24, pytest.approx(0.3)),
    ]
    json.loads((tmp_path / RECORDS).read_text(), parse_constant=pytest.fail)


def test_the_file_of_records_is_there_only_if_there_is_something_to_record(tmp_path: Path) -> None:
    for name, kwargs in [("plain", {}), ("metrics", {"metrics": {"loss": 1}})]:
        manager = CheckpointManager(Checkpoint(), tmp_path / name, max_to_keep=2)
        for _ in range(3):
            manager.save(options=FAST, **kwargs)  # type: ignore[arg-type]
    assert RECORDS not in names_in(tmp_path / "plain")
    records = json.loads((tmp_path / "metrics" / RECORDS).read_text())["checkpoints"]
    assert [record["path"] for record in records] == ["ckpt-2", "ckpt-3"]
    # A policy can be taken up later.
    manager = CheckpointManager(Checkpoint(), tmp_path / "metrics", retention=KeepBest(1, "loss"))
    assert [saved.metrics for saved in manager.records] == [{"loss": 1.0}] * 2


def test_a_record_counts_only_for_the_very_checkpoint(tmp_path: Path) -> None:
    """Somebody else, such as TensorFlow, has replaced a checkpoint of the same name."""
    run = Run(tmp_path, retention=KeepLatest(3))
    run.save(metrics={"loss": 0.1})
    run.save(metrics={"loss": 0.2})
    kept = (tmp_path / RECORDS).read_bytes()
    run.save(checkpoint_number=1, after_hours=1)
    (tmp_path / RECORDS).write_bytes(kept)
    run.restart()
    assert [(saved.path[-1], saved.metrics) for saved in run.manager.records] == [("2", {"loss": 0.2}), ("1", {})]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"checkpoints": [{}]}', b'{"checkpoints": [{"path": 1}]}', b"\xff"]
)
def test_records_that_are_damaged_stop_the_manager(tmp_path: Path, content: bytes) -> None:
    """Without the metrics it would delete the best."""
    run = Run(tmp_path, retention=KeepBest(1, "loss"))
    run.save(metrics={"loss": 0.1})
    (tmp_path / RECORDS).write_bytes(content)
    with pytest.raises(DataLossError, match=rf"{RECORDS}', cannot be understood"):
        run.restart()


def test_metrics_without_the_one_that_is_compared_are_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, retention=KeepLatest(1) | KeepBest(1, "loss"))
    with pytest.raises(ValueError, match="The metrics lack loss, which the retention policy compares; they have los"):
        run.save(metrics={"los": 1.0})
    with pytest.raises(TypeError, match="The metric 'loss' must be a number, not None"):
        run.save(metrics={"loss": None})
    with pytest.raises(TypeError, match="The metric 'loss' must be a number"):
        run.save(metrics={"loss": torch.ones(2)})
    assert names_in(tmp_path) == []
    assert int(run.checkpoint.save_counter) == 0


def test_every_few_hours_one_is_kept_also_after_the_clock_was_set_back(tmp_path: Path) -> None:
    run = Run(tmp_path, retention=KeepEveryHours(2))
    for _ in range(6):
        run.save(after_hours=0.8)
        run.restart()
    assert run.listed == on_disk(tmp_path) == [1, 4, 6]
    run.clock.now -= 1e6
    run.restart()
    assert run.listed == [1, 4, 6]
    for _ in range(6):
        run.save(after_hours=0.8)
        run.restart()
    assert run.listed == on_disk(tmp_path) == [1, 4, 7, 10, 12]


def test_steps_are_those_of_the_counter_or_else_the_numbers(tmp_path: Path) -> None:
    run = Run(tmp_path / "numbers", retention=KeepEverySteps(2))
    for _ in range(5):
        run.save()
    assert run.listed == [1, 2, 4, 5]
    steps = iter([0, 700, 1000, 1900, 2600, 3500])
    run = Run(tmp_path / "counter", retention=KeepEverySteps(1000), step_counter=lambda: next(steps))
    for _ in range(6):
        run.save()
    assert run.listed == [1, 3, 5, 6]


def test_checkpoints_of_a_plain_manager_are_taken_over_with_their_numbers(tmp_path: Path) -> None:
    run = Run(tmp_path, max_to_keep=None)
    for _ in range(6):
        run.save()
    run.kwargs.clear()
    run.restart(retention=KeepEverySteps(3))
    assert run.listed == [1, 2, 3, 4, 5, 6]
    run.save()
    assert run.listed == on_disk(tmp_path) == [1, 3, 6, 7]


def test_a_policy_of_ones_own_is_asked_with_what_is_known(tmp_path: Path) -> None:
    class KeepOdd(Retention):
        def kept(self, checkpoints: Sequence[SavedCheckpoint]) -> list[SavedCheckpoint]:
            return [saved for saved in checkpoints if saved.metrics["number"] % 2]

    run = Run(tmp_path, retention=KeepOdd() | KeepLatest(1))
    for number in range(1, 7):
        run.save(metrics={"number": number})
    assert run.listed == on_disk(tmp_path) == [1, 3, 5, 6]


values = st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan, math.inf, -math.inf])
policies = st.one_of(
    st.builds(KeepLatest, st.integers(1, 4)),
    st.builds(KeepBest, st.integers(1, 3), st.just("m"), st.sampled_from(["min", "max"])),
    st.builds(KeepEverySteps, st.integers(1, 5)),
    st.builds(KeepEveryHours, st.sampled_from([0.5, 1.0, 3.0])),
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(policies, min_size=1, max_size=3),
    st.lists(st.tuples(st.sampled_from([-2.0, 0.0, 0.25, 0.5, 1.0, 4.0]), values, st.booleans()), max_size=15),
)
def test_what_policies_keep_does_not_depend_on_when_they_are_asked(
    several: list[Retention], saves: list[tuple[float, float, bool]]
) -> None:
    """Of each moment's files, those stay that one look at the whole history would choose."""
    retention = several[0]
    for policy in several[1:]:
        retention = retention | policy
    history: list[SavedCheckpoint] = []
    with TemporaryDirectory() as folder:
        run = Run(folder, retention=retention)
        for number, (hours, value, restarts) in enumerate(saves, 1):
            run.save(after_hours=hours, metrics={"m": value})
            history.append(SavedCheckpoint(f"{folder}/ckpt-{number}", run.clock.now, number, {"m": value}))
            if restarts:
                run.restart()
            expected = {saved.path for policy in several for saved in policy.kept(history)} | {history[-1].path}
            assert run.manager.checkpoints == [saved.path for saved in history if saved.path in expected]
            assert [f"{folder}/ckpt-{n}" for n in on_disk(folder)] == run.manager.checkpoints


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: KeepLatest(0), ValueError, "KeepLatest: num_checkpoints must be at least 1, but is 0"),
        (lambda: KeepLatest(1.5), TypeError, "must be an integer, not 1.5"),
        (lambda: KeepBest(0, "loss"), ValueError, "KeepBest: num_checkpoints"),
        (lambda: KeepBest(1, "loss", mode="low"), ValueError, "mode must be 'min' or 'max', not 'low'"),
        (lambda: KeepBest(1, 2), TypeError, "metric must be the name of a metric, not 2"),
        (lambda: KeepEverySteps(0), ValueError, "KeepEverySteps: num_steps must be at least 1"),
        (lambda: KeepEveryHours(0), ValueError, "KeepEveryHours: num_hours must be a positive number, not 0"),
        (lambda: KeepEveryHours(math.inf), ValueError, "must be a positive number, not inf"),
        (lambda: KeepLatest(1) | 2, TypeError, "unsupported operand"),
    ],
)
def test_policies_check_their_arguments(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize("kwargs", [{"max_to_keep": 1}, {"keep_checkpoint_every_n_hours": 1}])
def test_policies_and_numbers_are_not_mixed(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="retention stands for max_to_keep and keep_checkpoint_every_n_hours"):
        CheckpointManager(Checkpoint(), tmp_path, retention=KeepLatest(1), **kwargs)
    with pytest.raises(TypeError, match=r"must be a policy of torch_trackckpt\.retention, not 3"):
        CheckpointManager(Checkpoint(), tmp_path, retention=3)  # type: ignore[arg-type]


def test_policies_are_values() -> None:
    assert KeepLatest(2) == KeepLatest(2) != KeepLatest(3)
    joined = KeepLatest(2) | KeepBest(1, "a") | (KeepBest(1, "b") | KeepEveryHours(1))
    assert joined == KeepLatest(2) | (KeepBest(1, "a") | KeepBest(1, "b")) | KeepEveryHours(1)
    assert joined.metrics == {"a", "b"}
    assert len({joined, joined | KeepLatest(1)}) == 2
