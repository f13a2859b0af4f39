"""Managers of both sides tell the same, and each goes on in the other's directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from clocks import FakeClock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torch_trackckpt import (
    Checkpoint,
    CheckpointManager,
    CheckpointOptions,
    checkpoints_iterator,
    latest_checkpoint,
    update_checkpoint_state,
)
from torch_trackckpt.retention import KeepBest, KeepLatest

from .conftest import Worker, tensorflow_worker

FAST = CheckpointOptions(durable=False)
START = 1_700_000_000.25
HOUR = 3600.0
Event = tuple[str, Any]


@pytest.fixture(scope="module")
def theirs() -> Iterator[Worker]:
    with tensorflow_worker("manager_functions.py") as worker:
        yield worker


def run_ours(directory: str, now: float, keep: int | None, hours: float | None, events: list[Event]) -> list[Any]:
    """What `manager_functions.run_manager` does, with our manager."""
    clock = FakeClock(now)
    value = torch.zeros((), dtype=torch.int64)
    checkpoint = Checkpoint(value=value)
    manager = CheckpointManager(checkpoint, directory, keep, hours, clock=clock)
    told = [_told(manager, None)]
    for event, argument in events:
        result = None
        if event == "save":
            value += 1
            result = manager.save(checkpoint_number=argument, options=FAST)
        elif event == "clock":
            clock.now += argument
        elif event == "restart":
            manager = CheckpointManager(checkpoint, directory, *argument, clock=clock)
        elif event == "restore":
            result = manager.restore_or_initialize()
        elif event == "remove":
            for path in Path(directory).glob(f"ckpt-{argument}.*"):
                path.unlink()
        told.append(_told(manager, result))
    return told


def _told(manager: CheckpointManager, result: str | None) -> dict[str, Any]:
    state = Path(manager.directory, "checkpoint")
    return {
        "result": result,
        "checkpoints": manager.checkpoints,
        "latest": manager.latest_checkpoint,
        "files": sorted(name for name in os.listdir(manager.directory) if name != "checkpoint_records.json"),
        "state": state.read_text() if state.exists() else None,
        "counter": int(manager.checkpoint.save_counter),
    }


def run_theirs(
    worker: Worker, directory: str, now: float, keep: int | None, hours: float | None, events: list[Event]
) -> list[Any]:
    told: list[Any] = worker.call(
        "run_manager", directory=directory, now=now, keep=keep, hours=hours, events=[list(event) for event in events]
    )
    return told


def without(told: list[Any], directory: str) -> list[Any]:
    """What was told, with paths as seen from the directory."""

    def stripped(value: Any) -> Any:
        if isinstance(value, list):
            return [stripped(element) for element in value]
        return value.removeprefix(directory + "/") if isinstance(value, str) else value

    return [{name: stripped(value) for name, value in step.items()} for step in told]


clock_steps = st.sampled_from([0.001, 1.0, 1 / 3, 1800.0, HOUR, 2 * HOUR, 86400.0, -1.0, -7200.0, -1e7])
managers = st.tuples(st.none() | st.integers(1, 3), st.sampled_from([None, 0.5, 1.0, 24.0]))
events = st.lists(
    st.one_of(
        st.tuples(st.just("save"), st.none() | st.integers(0, 6)),
        st.tuples(st.just("save"), st.none()),
        st.tuples(st.just("clock"), clock_steps),
        st.tuples(st.just("restart"), managers),
        st.tuples(st.just("remove"), st.integers(1, 3)),
    ),
    max_size=20,
)
live = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@live
@given(managers, events)
def test_any_sequence_gives_the_same_files_lists_and_state(
    theirs: Worker, tmp_path_factory: pytest.TempPathFactory, manager: tuple[Any, Any], sequence: list[Event]
) -> None:
    """C399, C210, C213, C214, C215, C216, C217, C219, C220, C233, C240."""
    folder = tmp_path_factory.mktemp("managers")
    (folder / "theirs").mkdir()
    (folder / "ours").mkdir()
    expected = run_theirs(theirs, str(folder / "theirs"), START, *manager, sequence)
    told = run_ours(str(folder / "ours"), START, *manager, sequence)
    assert without(told, str(folder / "ours")) == without(expected, str(folder / "theirs"))


@live
@given(managers, st.lists(st.tuples(managers, events, clock_steps), min_size=2, max_size=4), st.booleans())
def test_each_goes_on_where_the_other_stopped(
    theirs: Worker,
    tmp_path_factory: pytest.TempPathFactory,
    manager: tuple[Any, Any],
    stages: list[tuple[Any, list[Event], float]],
    we_begin: bool,
) -> None:
    """C399: the stages in turns, beside TensorFlow alone; each stage begins with a restore."""
    folder = tmp_path_factory.mktemp("turns")
    alone, shared = str(folder / "alone"), str(folder / "shared")
    os.mkdir(alone)
    os.mkdir(shared)
    now = START
    for number, (settings_of_stage, sequence, pause) in enumerate(stages):
        # What is restored has to be there.
        sequence = [("save", None)] * (number == 0) + [event for event in sequence if event[0] != "remove"]
        sequence = [("restore", None), *sequence]
        expected = run_theirs(theirs, alone, now, *settings_of_stage, sequence)
        if (number % 2 == 0) == we_begin:
            told = run_ours(shared, now, *settings_of_stage, sequence)
        else:
            told = run_theirs(theirs, shared, now, *settings_of_stage, sequence)
        assert without(told, shared) == without(expected, alone)
        now += sum(event[1] for event in sequence if event[0] == "clock") + pause


def test_each_finds_the_others_latest(theirs: Worker, tmp_path: Path) -> None:
    """C399."""
    saves: list[Event] = [("save", None)] * 4
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    run_ours(str(tmp_path / "ours"), START, 2, None, saves)
    run_theirs(theirs, str(tmp_path / "theirs"), START, 2, None, saves)
    for name in ("ours", "theirs"):
        path = str(tmp_path / name / "ckpt-4")
        assert theirs.call("latest_checkpoint", directory=str(tmp_path / name)) == path
        assert latest_checkpoint(tmp_path / name) == latest_checkpoint(tmp_path / name, verify=True) == path
        assert theirs.call("iterate", directory=str(tmp_path / name), timeout=0) == [path]
        assert list(checkpoints_iterator(tmp_path / name, timeout=0)) == [path]


def test_tensorflow_takes_no_notice_of_records_and_they_of_its_checkpoints(theirs: Worker, tmp_path: Path) -> None:
    """C399: a directory of policies, gone on with by TensorFlow, and again by policies."""
    directory = str(tmp_path)
    clock = FakeClock(START)
    value = torch.zeros((), dtype=torch.int64)
    checkpoint = Checkpoint(value=value)
    policy = KeepLatest(2) | KeepBest(1, "loss")
    manager = CheckpointManager(checkpoint, tmp_path, retention=policy, clock=clock)
    for loss in (0.5, 0.1, 0.3, 0.4):
        clock.now += 1
        manager.save(options=FAST, metrics={"loss": loss})
    assert [path[-1] for path in manager.checkpoints] == ["2", "3", "4"]

    told = run_theirs(theirs, directory, START + 10, 3, None, [("restore", None), ("save", None), ("save", 4)])

    assert [path[-1] for path in told[1]["checkpoints"]] == ["2", "3", "4"]
    assert told[1]["result"] == f"{directory}/ckpt-4"
    assert [path[-1] for path in told[-1]["checkpoints"]] == ["3", "5", "4"]
    clock.now = START + 20
    manager = CheckpointManager(checkpoint, tmp_path, retention=policy, clock=clock)
    # Its checkpoint 4 is not the one that had a loss of 0.4.
    assert [(saved.path[-1], dict(saved.metrics)) for saved in manager.records] == [
        ("3", {"loss": 0.3}),
        ("5", {}),
        ("4", {}),
    ]
    assert manager.restore_or_initialize() == f"{directory}/ckpt-4"
    assert manager.save(options=FAST) == f"{directory}/ckpt-7"
    assert [path[-1] for path in manager.checkpoints] == ["3", "4", "7"]


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(
    ("path", "paths", "times", "preserved"),
    [
        ("{d}/b", None, None, None),
        ("{d}/b", [], None, 1.5),
        ("{d}/b", ["{d}/a", "{d}/b"], [1.1, 1e9 / 3], 0.1),
        ("{d}/b", ["{d}/b", "{d}/a"], [1.0, 2.0, 3.0], None),
        ("sub/b", ["/abs/a", "{d}/b"], None, None),
        ('{d}/q"\té', ["/abs/../a"], None, 1e300),
    ],
)
def test_state_files_that_are_written_by_hand_are_the_same(
    theirs: Worker,
    tmp_path: Path,
    relative: bool,
    path: str,
    paths: list[str] | None,
    times: list[float] | None,
    preserved: float | None,
) -> None:
    """C242, C243, C244, C245, C399."""
    written = []
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        directory = os.path.relpath(tmp_path / name) if relative else str(tmp_path / name)
        newest = path.format(d=directory)
        every = None if paths is None else [other.format(d=directory) for other in paths]
        if name == "ours":
            update_checkpoint_state(
                directory,
                newest,
                every,
                all_model_checkpoint_timestamps=times,
                last_preserved_timestamp=preserved,
            )
        else:
            theirs.call("update_state", directory=directory, path=newest, paths=every, times=times, preserved=preserved)
        written.append((tmp_path / name / "checkpoint").read_text().replace(str(tmp_path / name), "{d}"))
    assert written[0] == written[1]
