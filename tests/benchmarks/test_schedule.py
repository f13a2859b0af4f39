"""The harness runs from end to end, with a megabyte."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks.contenders.entries import ENTRIES
from benchmarks.files import evict, files_of, flipped_byte, resident_pages
from benchmarks.growth import points
from benchmarks.machine import file_system_of
from benchmarks.process import run_measurement
from benchmarks.schedule import Schedule, Settings, single_tasks, transfer_tasks
from benchmarks.workloads import SMALLEST

CONTENDERS = frozenset({"torch_trackckpt", "torch", "torch_trackckpt, copy"})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        tmpfs=tmp_path,
        disk=tmp_path,
        scales={"W1": 1e-2, "W2": 1e-3, "W3": 1e-6},
        rounds=1,
        seconds=300,
        num_keys=50,
        step_seconds=0.001,
        num_saves=2,
        limit_bytes=2**21,
        contenders=CONTENDERS,
    )


def test_two_contenders_save_and_restore_in_processes_of_their_own(settings: Settings) -> None:
    is_on_disk = file_system_of(settings.disk) != "tmpfs"
    restores = ("load", "cold") if is_on_disk else ("load",)
    wanted = frozenset({"save/W1/disk", *(f"{action}/W1/disk" for action in restores), "async"})
    lines: list[str] = []
    schedule = Schedule(dataclasses.replace(settings, only=wanted), lines.append)

    schedule.run()

    measured = {(run["figure"], run["contender"]): run for run in schedule.runs}
    assert schedule.left_out == {}
    assert len(lines) == len(schedule.runs) == len(measured)
    for name in ("torch_trackckpt", "torch"):
        assert measured["save/W1/disk", name]["file_bytes"] >= measured["save/W1/disk", name]["bytes"]
        for action in restores:
            run = measured[f"{action}/W1/disk", name]
            assert run["wrong_pieces"] == 0
            assert run["wall"] > 0
            assert (run["cache"] == "warm") == (action == "load")
    loop = measured["async/W1/tmpfs", "torch_trackckpt, copy"]
    assert loop["wrong_pieces"] == 0
    assert {"blocked_first", "stall_later", "lost_step", "lost_total"} <= loop.keys()
    assert list(settings.tmpfs.iterdir()) == []


def test_a_large_index_is_looked_into(settings: Settings) -> None:
    schedule = Schedule(dataclasses.replace(settings, only=frozenset({"index"})), lambda line: None)

    schedule.run()

    assert [run["wrong_pieces"] for run in schedule.runs] == [0]
    assert schedule.runs[0]["open_list"] > 0


@pytest.mark.parametrize("workload", ["W1", "W2"])
def test_one_tensor_is_read_by_its_name(workload: str, tmp_path: Path) -> None:
    request = {"contender": "torch_trackckpt", "workload": workload, "scale": SMALLEST[workload], "path": str(tmp_path)}
    run_measurement("measure", {"action": "save", **request}, timeout_seconds=60)

    assert run_measurement("measure", {"action": "read", **request}, timeout_seconds=60)["wrong_pieces"] == 0


def test_limits_of_the_machine_are_rates(settings: Settings) -> None:
    request = {"directories": {"tmpfs": str(settings.tmpfs)}, "bytes": settings.limit_bytes}

    measured = run_measurement("limits", request, timeout_seconds=60)

    assert {"memory copy", "tmpfs write", "tmpfs read, 1 thread"} <= measured.keys()
    assert all(rate > 0 for rate in measured.values())


def test_one_flipped_byte_is_noticed_by_this_package_alone(settings: Settings) -> None:
    schedule = Schedule(dataclasses.replace(settings, only=frozenset({"probe"})), lambda line: None)

    schedule.run()

    found = {run["contender"]: run["noticed"] for run in schedule.runs}

    assert found == {"torch_trackckpt": True, "torch": False}


def test_when_the_time_is_up_the_rest_is_left_out_by_name(settings: Settings) -> None:
    schedule = Schedule(dataclasses.replace(settings, seconds=0), lambda line: None)

    schedule.run()

    assert schedule.runs == []
    assert schedule.left_out["cold/W1/disk: torch_trackckpt"] == "the time was up"
    assert schedule.left_out["limits: machine"] == "the time was up"


def test_every_contender_has_a_place_in_the_schedule(settings: Settings) -> None:
    everybody = dataclasses.replace(settings, contenders=frozenset())
    planned = {
        contender
        for essential in (True, False)
        for groups in (transfer_tasks(everybody, essential), single_tasks(everybody, essential))
        for tasks in groups
        for task in tasks
        for _, contender in task.steps
    }

    assert planned == {entry.name for entry in ENTRIES} | {"machine"}


def test_growth_goes_by_powers_up_to_the_largest_that_is_wanted() -> None:
    assert {point.at for point in points() if point.series == "tensors"} == {10**n for n in range(2, 7)}
    assert max(point.at for point in points() if point.series == "bytes") == 1e10
    assert max(point.at for point in points(0.01) if point.series == "tensors") == 1e4
    assert {point.at for point in points() if point.series == "shards"} == {1, 2, 4, 8, 16, 32, 64}


def test_a_flipped_byte_is_put_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")

    with flipped_byte(path, 1):
        assert path.read_bytes() != b"abc"

    assert path.read_bytes() == b"abc"


def test_pages_of_a_file_that_was_read_are_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    path.parent.mkdir()
    path.write_bytes(bytes(5 * 4096))
    path.read_bytes()

    assert files_of(tmp_path) == [path]
    assert resident_pages(path) == 5


def test_files_that_stay_in_memory_are_not_called_cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(4096))
    monkeypatch.setattr("benchmarks.files.resident_pages", lambda path: 1)

    with pytest.raises(RuntimeError, match="still in memory"):
        evict(tmp_path)
