"""Asynchronous saving: what the caller sees, when the files appear, and where errors go."""

from __future__ import annotations

import copy
import gc
import logging
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch
from checkpoints import X, names_in, paths, thing, zero
from held import ASYNC, PATIENCE_SECONDS, HeldStorage
from torch import nn

from torch_trackckpt import (
    Checkpoint,
    CheckpointOptions,
    latest_checkpoint,
    load_checkpoint,
    load_variable,
    preemption_save_context,
)
from torch_trackckpt.errors import CheckpointNotFoundError, UnsupportedValueError
from torch_trackckpt.save import pending, staging
from torch_trackckpt.sharding import MaxShardSizePolicy

COUNTER = "save_counter/.ATTRIBUTES/VARIABLE_VALUE"
SYNC = CheckpointOptions(durable=False)


def numbers(path: str) -> list[int]:
    return [int(torch.as_tensor(load_variable(path, X))), int(torch.as_tensor(load_variable(path, COUNTER)))]


def test_save_returns_the_final_path_at_once_and_the_file_appears_later(tmp_path: Path, held: HeldStorage) -> None:
    """C312, C317, C333"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    path = checkpoint.save(tmp_path / "ckpt", ASYNC)
    assert path == f"{tmp_path}/ckpt-1"
    assert names_in(tmp_path) == []
    held.release()
    checkpoint.sync()
    assert names_in(tmp_path) == ["checkpoint", "ckpt-1.data-00000-of-00001", "ckpt-1.index"]
    assert latest_checkpoint(tmp_path) == path
    checkpoint.sync()


@pytest.mark.parametrize("name", ["enable_async", "experimental_enable_async_checkpoint"])
def test_either_name_of_the_option_makes_a_save_asynchronous(tmp_path: Path, held: HeldStorage, name: str) -> None:
    """C302"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    checkpoint.write(tmp_path / "ckpt", CheckpointOptions(**{name: True}))
    assert names_in(tmp_path) == []
    held.release()
    checkpoint.sync()
    assert names_in(tmp_path) == ["ckpt.data-00000-of-00001", "ckpt.index"]


def test_without_an_asynchronous_save_sync_returns_at_once() -> None:
    """C333"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    checkpoint.sync()
    checkpoint.sync()


@pytest.mark.parametrize("sharding", [None, MaxShardSizePolicy(200)])
@pytest.mark.parametrize("durable", [True, False])
def test_the_files_are_byte_for_byte_those_of_a_synchronous_save(
    tmp_path: Path, durable: bool, sharding: MaxShardSizePolicy | None
) -> None:
    """C313, C332"""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(4, 5)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    for folder, is_async in (("sync", False), ("async", True)):
        checkpoint = Checkpoint(model=model, optimizer=optimizer, scheduler=scheduler, view=torch.rand(3, 4).t() * 0)
        options = CheckpointOptions(durable=durable, enable_async=is_async, experimental_sharding_callback=sharding)
        checkpoint.save(tmp_path / folder / "ckpt", options)
        checkpoint.sync()
        checkpoint.write(tmp_path / folder / "written", options)
        checkpoint.sync()
    files = names_in(tmp_path / "sync")
    assert files == names_in(tmp_path / "async")
    for name in files:
        assert (tmp_path / "sync" / name).read_bytes() == (tmp_path / "async" / name).read_bytes(), name


def test_saves_in_a_row_are_written_in_order_and_numbered_without_gaps(tmp_path: Path) -> None:
    """C316, C322"""
    x = torch.tensor(0)
    checkpoint = Checkpoint(x=x)
    saved = []
    for number in range(1, 21):
        x.fill_(number)
        saved.append(checkpoint.save(tmp_path / "ckpt", ASYNC))
        assert checkpoint.save_counter.item() == number
    checkpoint.sync()
    assert saved == [f"{tmp_path}/ckpt-{number}" for number in range(1, 21)]
    assert [numbers(path) for path in saved] == [[number, number] for number in range(1, 21)]
    assert latest_checkpoint(tmp_path) == saved[-1]


def test_synchronous_and_asynchronous_saves_share_their_numbers(tmp_path: Path) -> None:
    """C322"""
    x = torch.tensor(0)
    checkpoint = Checkpoint(x=x)
    for number in range(1, 9):
        x.fill_(number)
        assert checkpoint.save(tmp_path / "ckpt", ASYNC if number % 3 else SYNC) == f"{tmp_path}/ckpt-{number}"
    checkpoint.sync()
    assert [numbers(f"{tmp_path}/ckpt-{number}") for number in range(1, 9)] == [[n, n] for n in range(1, 9)]
    restored = Checkpoint(x=zero())
    restored.restore(latest_checkpoint(tmp_path)).assert_consumed()
    assert restored.save(tmp_path / "ckpt", SYNC) == f"{tmp_path}/ckpt-9"


def test_objects_that_come_later_are_in_the_later_files(tmp_path: Path) -> None:
    """C323"""
    checkpoint = Checkpoint(x=zero())
    first = checkpoint.save(tmp_path / "ckpt", ASYNC)
    checkpoint.late = thing(y=torch.tensor(5))
    second = checkpoint.save(tmp_path / "ckpt", ASYNC)
    checkpoint.sync()
    assert paths(first) == ["save_counter", "x"]
    assert paths(second) == ["late/y", "save_counter", "x"]


def test_slots_that_an_optimizer_makes_later_are_in_the_later_files(tmp_path: Path) -> None:
    """C324"""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    checkpoint = Checkpoint(w=weight, optimizer=optimizer)
    first = checkpoint.save(tmp_path / "ckpt", ASYNC)
    weight.sum().backward()
    optimizer.step()
    second = checkpoint.save(tmp_path / "ckpt", ASYNC)
    checkpoint.sync()
    slot = "w/.OPTIMIZER_SLOT/optimizer/momentum_buffer"
    assert (slot in paths(first), slot in paths(second)) == (False, True)
    weight.sum().backward()
    optimizer.step()
    checkpoint.restore(second).assert_consumed()
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], torch.ones(3))


def test_a_written_file_has_no_counter(tmp_path: Path) -> None:
    """C325"""
    checkpoint = Checkpoint(x=zero())
    checkpoint.write(tmp_path / "ckpt", ASYNC)
    checkpoint.sync()
    assert paths(str(tmp_path / "ckpt")) == ["x"]


@pytest.mark.parametrize("way", ["restore", "read"])
def test_restoring_with_the_same_checkpoint_waits_for_its_save(tmp_path: Path, held: HeldStorage, way: str) -> None:
    """C318"""
    x = torch.tensor(1)
    checkpoint = Checkpoint(x=x)
    path = checkpoint.save(tmp_path / "ckpt", ASYNC)
    x.fill_(2)
    releasing = threading.Timer(0.05, held.release)
    releasing.start()
    getattr(checkpoint, way)(path).assert_consumed()
    releasing.join()
    assert x.item() == 1


def test_another_checkpoint_finds_the_file_after_sync(tmp_path: Path, held: HeldStorage) -> None:
    """C319"""
    x = zero()
    checkpoint, other = Checkpoint(x=torch.tensor(1)), Checkpoint(x=x)
    path = checkpoint.save(tmp_path / "ckpt", ASYNC)
    with pytest.raises(CheckpointNotFoundError):
        other.restore(path)
    held.release()
    checkpoint.sync()
    other.restore(path).assert_consumed()
    assert x.item() == 1


def test_a_save_waits_for_the_one_before(tmp_path: Path) -> None:
    """C316: at most one is pending."""
    under_way: list[list[str]] = []

    def look(done_bytes: int, total_bytes: int) -> None:
        threads = (thread.name for thread in threading.enumerate())
        under_way.append([name for name in threads if name.startswith(f"save {tmp_path}")])

    checkpoint = Checkpoint(x=zero())
    options = CheckpointOptions(durable=False, enable_async=True, progress=look)
    saved = [checkpoint.save(tmp_path / "ckpt", options) for _ in range(5)]
    checkpoint.sync()
    assert under_way == [[f"save {path}"] for path in saved]


def test_a_relative_path_is_meant_where_the_program_was_at_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: HeldStorage
) -> None:
    """C053, C306"""
    seen: list[str] = []
    options = CheckpointOptions(enable_async=True, experimental_write_callbacks=[seen.append])
    checkpoint = Checkpoint(x=zero())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    assert checkpoint.save("run/ckpt", options) == "run/ckpt-1"
    monkeypatch.chdir(tmp_path / "elsewhere")
    held.release()
    checkpoint.sync()
    assert seen == ["run/ckpt-1"]
    assert names_in(tmp_path / "run") == ["checkpoint", "ckpt-1.data-00000-of-00001", "ckpt-1.index"]
    assert (tmp_path / "run" / "checkpoint").read_text().splitlines()[0] == 'model_checkpoint_path: "ckpt-1"'
    assert names_in(tmp_path / "elsewhere") == []
    checkpoint.write("slash/", ASYNC)
    checkpoint.sync()
    assert names_in("slash") == [".data-00000-of-00001", ".index"]


def test_the_options_of_the_caller_stay_as_they_were(tmp_path: Path) -> None:
    """C304, C331"""
    options = CheckpointOptions(
        durable=False,
        experimental_enable_async_checkpoint=True,
        experimental_write_callbacks=[lambda: None],
        experimental_sharding_callback=MaxShardSizePolicy(100),
    )
    before = copy.copy(options)
    checkpoint = Checkpoint(x=zero())
    path = checkpoint.save(tmp_path / "ckpt", options)
    checkpoint.write(tmp_path / "other", options)
    with preemption_save_context():
        checkpoint.save(tmp_path / "ckpt", options)
    checkpoint.restore(path, options)
    checkpoint.read(tmp_path / "other", options)
    assert options == before


# -------------------------------------------------------------------------------------------------- errors


def failed(tmp_path: Path) -> Checkpoint:
    """A checkpoint whose asynchronous save has failed, which nobody was told yet."""
    (tmp_path / "file").write_text("")
    checkpoint = Checkpoint(x=torch.tensor(1))
    checkpoint.write(tmp_path / "ok", SYNC)
    assert checkpoint.save(tmp_path / "file" / "ckpt", ASYNC) == f"{tmp_path}/file/ckpt-1"
    return checkpoint


@pytest.mark.parametrize("call", ["save", "write", "restore", "read", "restore nothing", "sync", "asynchronous save"])
def test_an_error_in_the_background_is_raised_by_the_next_call_once(tmp_path: Path, call: str) -> None:
    """C320, C321: its number is spent, and the call that raised has spent none."""
    checkpoint = failed(tmp_path)
    calls = {
        "save": lambda: checkpoint.save(tmp_path / "ckpt", SYNC),
        "asynchronous save": lambda: checkpoint.save(tmp_path / "ckpt", ASYNC),
        "write": lambda: checkpoint.write(tmp_path / "written", SYNC),
        "restore": lambda: checkpoint.restore(tmp_path / "ok"),
        "restore nothing": lambda: checkpoint.restore(None),
        "read": lambda: checkpoint.read(tmp_path / "ok"),
        "sync": checkpoint.sync,
    }
    before = names_in(tmp_path)
    with pytest.raises(NotADirectoryError):
        calls[call]()
    assert names_in(tmp_path) == before
    assert checkpoint.save_counter.item() == 1
    calls[call]()
    assert checkpoint.save(tmp_path / "ckpt", ASYNC).endswith("-3" if "save" in call else "-2")
    checkpoint.sync()


def test_an_error_in_the_background_is_logged_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """C320"""
    checkpoint = failed(tmp_path)
    with pytest.raises(NotADirectoryError):
        checkpoint.sync()
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == f"The asynchronous save to '{tmp_path}/file/ckpt-1' failed."
    assert record.exc_info


def test_a_failed_save_leaves_the_state_file_and_the_checkpoints_before(tmp_path: Path) -> None:
    """C317"""
    checkpoint = Checkpoint(x=torch.tensor(1))
    first = checkpoint.save(tmp_path / "ckpt", SYNC)

    def fail(done_bytes: int, total_bytes: int) -> None:
        raise OSError("no space")

    checkpoint.save(tmp_path / "ckpt", CheckpointOptions(enable_async=True, progress=fail))
    with pytest.raises(OSError, match="no space"):
        checkpoint.sync()
    assert names_in(tmp_path) == ["checkpoint", "ckpt-1.data-00000-of-00001", "ckpt-1.index"]
    assert latest_checkpoint(tmp_path) == first


def test_what_cannot_be_saved_is_an_error_of_the_call_itself(tmp_path: Path) -> None:
    checkpoint = Checkpoint(x=torch.empty(2, device="meta"))
    with pytest.raises(UnsupportedValueError, match="meta device"):
        checkpoint.save(tmp_path / "ckpt", ASYNC)
    checkpoint.sync()


# ----------------------------------------------------------------------------------------------- callbacks


def test_write_callbacks_run_after_the_write_off_the_main_thread(tmp_path: Path) -> None:
    """C307, C308, C327"""
    seen: list[object] = []

    def look(path: str) -> None:
        seen.append((path, paths(path), latest_checkpoint(tmp_path), threading.current_thread().name))

    options = CheckpointOptions(
        durable=False, enable_async=True, experimental_write_callbacks=[look, lambda: seen.append("second")]
    )
    checkpoint = Checkpoint(x=zero())
    written = checkpoint.write(tmp_path / "other", options)
    saved = checkpoint.save(tmp_path / "ckpt", options)
    checkpoint.sync()
    assert seen == [
        (written, ["x"], None, f"save {written}"),
        "second",
        (saved, ["save_counter", "x"], None, f"save {saved}"),
        "second",
    ]
    assert latest_checkpoint(tmp_path) == saved


def test_a_raising_callback_leaves_the_files_but_no_state(tmp_path: Path) -> None:
    """C309, C317, C320"""

    def refuse() -> None:
        raise LookupError("no more quota")

    checkpoint = Checkpoint(x=zero())
    first = checkpoint.save(tmp_path / "ckpt", ASYNC)
    second = checkpoint.save(
        tmp_path / "ckpt", CheckpointOptions(enable_async=True, experimental_write_callbacks=[refuse])
    )
    with pytest.raises(LookupError, match="no more quota"):
        checkpoint.sync()
    assert latest_checkpoint(tmp_path) == first
    assert paths(second) == ["save_counter", "x"]


def test_asynchronous_saves_in_a_callback_of_a_synchronous_one_take_turns(tmp_path: Path) -> None:
    """They share the memory for copies, so that the second waits for the first."""
    x = torch.zeros(1 << 20)
    checkpoint = Checkpoint(x=x)

    def save_twice() -> None:
        for number in (1, 2):
            with torch.no_grad():
                x.fill_(number)
            checkpoint.write(tmp_path / f"inner-{number}", ASYNC)

    options = CheckpointOptions(durable=False, experimental_write_callbacks=[save_twice])
    checkpoint.write(tmp_path / "outer", options)
    checkpoint.sync()
    for number in (1, 2):
        assert load_variable(tmp_path / f"inner-{number}", X).unique().tolist() == [number]


@pytest.mark.parametrize("call", ["save", "write", "restore", "read", "sync"])
def test_a_callback_that_would_wait_for_its_own_save_is_an_error(tmp_path: Path, call: str) -> None:
    checkpoint = Checkpoint(x=zero())
    gate = threading.Event()
    calls = {
        "save": lambda: checkpoint.save(tmp_path / "again"),
        "write": lambda: checkpoint.write(tmp_path / "again"),
        "restore": lambda: checkpoint.restore(tmp_path / "ckpt-1"),
        "read": lambda: checkpoint.read(tmp_path / "ckpt-1"),
        "sync": checkpoint.sync,
    }

    def call_it() -> None:
        assert gate.wait(PATIENCE_SECONDS)
        calls[call]()

    checkpoint.save(tmp_path / "ckpt", CheckpointOptions(enable_async=True, experimental_write_callbacks=[call_it]))
    gate.set()
    with pytest.raises(RuntimeError, match="would wait for this very save; use another Checkpoint"):
        checkpoint.sync()


@pytest.mark.parametrize("is_async", [False, True])
def test_progress_is_told_for_each_batch_and_ends_at_the_total(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    monkeypatch.setattr(staging, "BATCH_BYTES", 400)
    told: list[tuple[int, int]] = []
    options = CheckpointOptions(
        enable_async=is_async,
        progress=lambda done, total: told.append((done, total)),
        experimental_sharding_callback=MaxShardSizePolicy(2000),
        # Several threads may be done at once, which is told once.
        num_threads=1,
    )
    checkpoint = Checkpoint(a=torch.rand(100), b=torch.rand(20, 10).t(), c=torch.rand(50), d=torch.rand(300))
    checkpoint.write(tmp_path / "ckpt", options)
    checkpoint.sync()
    done, totals = zip(*told, strict=True)
    assert list(done) == sorted(set(done))
    assert set(totals) == {done[-1]}
    stored = load_checkpoint(tmp_path / "ckpt")
    assert done[-1] > sum(stored[key].nbytes for key in stored if key != "_CHECKPOINTABLE_OBJECT_GRAPH")
    assert len(told) >= 4


# ---------------------------------------------------------------------------------- threads, processes, memory


def test_threads_that_save_one_checkpoint_asynchronously_take_turns(tmp_path: Path) -> None:
    """C322"""
    checkpoint = Checkpoint(x=torch.ones(1000))
    saved: list[str] = []
    threads = [
        threading.Thread(target=lambda: saved.extend(checkpoint.save(tmp_path / "ckpt", ASYNC) for _ in range(10)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    checkpoint.sync()
    assert sorted(saved) == sorted(str(tmp_path / f"ckpt-{number}") for number in range(1, 31))
    for path in saved:
        load_checkpoint(path).verify()


def test_a_save_is_completed_although_nobody_has_the_checkpoint_any_more(tmp_path: Path, held: HeldStorage) -> None:
    """C330"""
    model = nn.Linear(2, 2)
    expected = model.weight.detach().clone()
    checkpoint = Checkpoint(model=model)
    gone = weakref.ref(checkpoint), weakref.ref(model)
    path = checkpoint.save(tmp_path / "ckpt", ASYNC)
    (writing,) = [thread for thread in threading.enumerate() if thread.name == f"save {path}"]
    del checkpoint, model
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    held.release()
    writing.join()
    assert torch.equal(load_variable(path, "model/weight/.ATTRIBUTES/VARIABLE_VALUE"), expected)
    assert latest_checkpoint(tmp_path) == path


def test_the_memory_of_the_copy_is_used_again_by_the_next_save(tmp_path: Path) -> None:
    checkpoint = Checkpoint(x=torch.ones(1000), y=torch.ones(1000))
    for _ in range(3):
        checkpoint.save(tmp_path / "ckpt", ASYNC)
    size = checkpoint._own.staging.num_bytes
    assert size == sum(-(-nbytes // 64) * 64 for nbytes in (4000, 4000, 8)) + staging.SLACK_BYTES


EXITING = """
import sys, threading, torch
from torch_trackckpt import Checkpoint, CheckpointOptions
about_to_exit = threading.Event()
def wait(done_bytes, total_bytes):
    about_to_exit.wait(60)
    threading.main_thread().join()
checkpoint = Checkpoint(x=torch.arange(1000))
print(checkpoint.save(sys.argv[1], CheckpointOptions(enable_async=True, progress=wait)))
about_to_exit.set()
{end}
"""


@pytest.mark.parametrize(("end", "code"), [("", 0), ("sys.exit(3)", 3), ("raise LookupError", 1)])
def test_a_save_is_completed_before_the_interpreter_exits(tmp_path: Path, end: str, code: int) -> None:
    """C330: the thread is in the middle of the file when the main thread has ended."""
    program = EXITING.format(end=end)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "ckpt")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert latest_checkpoint(tmp_path) == done.stdout.strip() == f"{tmp_path}/ckpt-1"
    assert torch.equal(load_variable(str(tmp_path / "ckpt-1"), X), torch.arange(1000))


def test_an_error_that_nobody_asked_for_is_seen_when_the_interpreter_exits(tmp_path: Path) -> None:
    """C320"""
    program = """
import sys, torch
from torch_trackckpt import Checkpoint, CheckpointOptions
Checkpoint(x=torch.ones(3)).save("/dev/null/ckpt", CheckpointOptions(enable_async=True))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert "The asynchronous save to '/dev/null/ckpt-1' failed." in done.stderr
    assert "NotADirectoryError" in done.stderr


def test_a_save_in_an_exit_handler_is_synchronous_with_a_warning(tmp_path: Path) -> None:
    """C330: nothing would wait for its thread any more."""
    program = """
import atexit, sys, torch
from torch_trackckpt import Checkpoint, CheckpointOptions
checkpoint = Checkpoint(x=torch.ones(3))
atexit.register(lambda: checkpoint.save(sys.argv[1], CheckpointOptions(enable_async=True)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "ckpt")], capture_output=True, text=True, timeout=300, check=True
    )
    assert "is synchronous, although enable_async is set: Python is exiting" in done.stderr
    assert latest_checkpoint(tmp_path) == f"{tmp_path}/ckpt-1"


def test_a_forked_child_neither_waits_for_its_parents_save_nor_disturbs_it(tmp_path: Path) -> None:
    program = """
import os, sys, threading, torch
from torch_trackckpt import Checkpoint, CheckpointOptions, load_variable
x = torch.tensor(1)
checkpoint = Checkpoint(x=x)
gate = threading.Event()
options = CheckpointOptions(enable_async=True, progress=lambda done, total: gate.wait(60))
checkpoint.save(sys.argv[1] + "/parent/ckpt", options)
child = os.fork()
if child == 0:
    try:
        checkpoint.sync()
        x.fill_(2)
        checkpoint.save(sys.argv[1] + "/child/ckpt", CheckpointOptions(enable_async=True))
        checkpoint.sync()
    finally:
        os._exit(0)
_, status = os.waitpid(child, 0)
gate.set()
checkpoint.sync()
for path in ("parent/ckpt-1", "child/ckpt-2"):
    print(load_variable(f"{sys.argv[1]}/{path}", "x/.ATTRIBUTES/VARIABLE_VALUE").item())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.split() == ["1", "2"], done.stderr


def test_a_copy_of_a_checkpoint_has_no_part_in_its_pending_save(tmp_path: Path, held: HeldStorage) -> None:
    checkpoint = Checkpoint(x=torch.tensor(1))
    checkpoint.save(tmp_path / "ckpt", ASYNC)
    other = copy.copy(checkpoint)
    other.sync()
    assert names_in(tmp_path) == []


def test_a_thread_that_cannot_be_started_is_an_error_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C042"""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    checkpoint = Checkpoint(x=torch.tensor(1))
    with monkeypatch.context() as patch:
        patch.setattr(pending.threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            checkpoint.save(tmp_path / "ckpt", ASYNC)
    assert os.listdir(tmp_path) == []
    assert checkpoint.save(tmp_path / "ckpt", ASYNC) == f"{tmp_path}/ckpt-2"
    checkpoint.sync()
