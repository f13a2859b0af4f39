"""The last save before the process ends: within the context, and after a signal."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import X, names_in, zero
from held import ASYNC

from torch_trackckpt import (
    Checkpoint,
    CheckpointOptions,
    SaveOnSignal,
    latest_checkpoint,
    load_variable,
    preemption_save_context,
)
from torch_trackckpt.preemption import in_preemption_save_context

# ------------------------------------------------------------------------------------------------ the context


def test_within_the_context_an_asynchronous_save_waits_and_is_synchronous_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """C328, C329"""
    gate = threading.Event()
    threads: list[str] = []
    options = CheckpointOptions(
        durable=False,
        enable_async=True,
        experimental_write_callbacks=[lambda: threads.append(threading.current_thread().name)],
        progress=lambda done, total: gate.wait(60),
    )
    checkpoint = Checkpoint(x=torch.tensor(1))
    first = checkpoint.save(tmp_path / "ckpt", options)
    releasing = threading.Timer(0.05, gate.set)
    releasing.start()
    with preemption_save_context():
        last = checkpoint.save(tmp_path / "ckpt", options)
        assert latest_checkpoint(tmp_path) == last == f"{tmp_path}/ckpt-2"
    releasing.join()
    assert threads == [f"save {first}", threading.current_thread().name]
    assert os.path.exists(first + ".index")
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert message == f"The save to {last!r} is synchronous, although enable_async is set: it is the last one."


def test_within_the_context_a_write_is_synchronous_as_well(tmp_path: Path) -> None:
    """C328"""
    with preemption_save_context():
        Checkpoint(x=zero()).write(tmp_path / "ckpt", ASYNC)
        assert names_in(tmp_path) == ["ckpt.data-00000-of-00001", "ckpt.index"]


def test_the_last_save_is_made_although_the_one_before_failed_whose_error_comes_later(tmp_path: Path) -> None:
    """C320, C328"""
    (tmp_path / "file").write_text("")
    checkpoint = Checkpoint(x=torch.tensor(1))
    checkpoint.save(tmp_path / "file" / "ckpt", ASYNC)
    with preemption_save_context():
        assert checkpoint.save(tmp_path / "ckpt", ASYNC) == f"{tmp_path}/ckpt-2"
        assert latest_checkpoint(tmp_path) == f"{tmp_path}/ckpt-2"
    with pytest.raises(NotADirectoryError):
        checkpoint.sync()
    checkpoint.sync()


def test_the_context_is_that_of_its_thread_and_ends_with_its_block() -> None:
    """C328"""
    elsewhere: list[bool] = []
    with contextlib.suppress(LookupError), preemption_save_context():
        assert in_preemption_save_context()
        with preemption_save_context():
            pass
        assert in_preemption_save_context()
        thread = threading.Thread(target=lambda: elsewhere.append(in_preemption_save_context()))
        thread.start()
        thread.join()
        raise LookupError
    assert elsewhere == [False]
    assert not in_preemption_save_context()


# ------------------------------------------------------------------------------------------------- the signal


class Manager:
    """Saves as a manager of checkpoints does."""

    def __init__(self) -> None:
        self.saves: list[tuple[bool, bool]] = []

    def save(self, checkpoint_number: int | None = None, check_interval: bool = True) -> None:
        self.saves.append((check_interval, in_preemption_save_context()))


class Saver:
    """Has a ``save`` that takes nothing."""

    def __init__(self) -> None:
        self.count = 0

    def save(self) -> None:
        self.count += 1


def test_without_a_signal_nothing_is_saved() -> None:
    saver = Saver()
    with SaveOnSignal(saver) as preemption:
        assert not preemption.step()
        assert not preemption.should_stop
    assert saver.count == 0


def test_a_signal_is_noted_at_once_and_acted_upon_at_the_next_boundary_once() -> None:
    saver = Saver()
    with SaveOnSignal(saver) as preemption:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert preemption.should_stop
        assert saver.count == 0
        assert preemption.step()
        assert preemption.step()
    assert saver.count == 1


def test_any_function_serves_and_is_called_within_the_preemption_context() -> None:
    """C328"""
    calls: list[bool] = []
    with SaveOnSignal(lambda: calls.append(in_preemption_save_context()), [signal.SIGUSR1]) as preemption:
        signal.raise_signal(signal.SIGUSR1)
        preemption.step()
    assert calls == [True]
    assert not in_preemption_save_context()


def test_the_interval_of_a_manager_does_not_forbid_the_last_save() -> None:
    manager = Manager()
    with SaveOnSignal(manager) as preemption:
        signal.raise_signal(signal.SIGTERM)
        preemption.step()
    assert manager.saves == [(False, True)]


def train_until_a_signal(preemption: SaveOnSignal) -> None:
    with preemption:
        signal.raise_signal(signal.SIGTERM)
        preemption.step()
        raise AssertionError("the training goes on")


def test_the_process_exits_with_the_code_that_was_chosen_after_the_save() -> None:
    saver = Saver()
    with pytest.raises(SystemExit) as exiting:
        train_until_a_signal(SaveOnSignal(saver, exit_code=143))
    assert exiting.value.code == 143
    assert saver.count == 1


def test_the_end_of_the_block_is_a_boundary_unless_an_exception_ends_it() -> None:
    saver = Saver()
    with SaveOnSignal(saver):
        signal.raise_signal(signal.SIGTERM)
    assert saver.count == 1
    with contextlib.suppress(LookupError), SaveOnSignal(saver):
        signal.raise_signal(signal.SIGTERM)
        raise LookupError
    assert saver.count == 1


def test_a_save_that_fails_is_an_error_of_the_step_and_is_tried_again_by_the_next() -> None:
    attempts: list[str] = []

    def save() -> None:
        attempts.append("save")
        if len(attempts) == 1:
            raise OSError("no space")

    with SaveOnSignal(save) as preemption:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(OSError, match="no space"):
            preemption.step()
        assert preemption.step()
    assert attempts == ["save", "save"]


@pytest.mark.parametrize("end", [lambda: None, lambda: (_ for _ in ()).throw(LookupError)])
def test_the_handlers_before_are_put_back(end: Callable[[], object]) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with contextlib.suppress(LookupError), SaveOnSignal(Saver(), [signal.SIGTERM, signal.SIGUSR1]):
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            end()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        signal.raise_signal(signal.SIGUSR1)
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_that_cannot_be_handled_leaves_all_handlers_as_they_were() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        SaveOnSignal(Saver(), [signal.SIGTERM, signal.SIGKILL]).__enter__()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_is_named_twice_is_put_back_as_well() -> None:
    with SaveOnSignal(Saver(), [signal.SIGTERM, signal.SIGTERM]):
        pass
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_block_waits_for_a_signal_of_its_own() -> None:
    saves: list[str] = []
    preemption = SaveOnSignal(lambda: saves.append("save"))
    for number in (1, 2):
        with preemption:
            assert not preemption.step()
            signal.raise_signal(signal.SIGTERM)
        assert preemption.should_stop
        assert len(saves) == number


def test_another_thread_than_the_main_one_is_refused() -> None:
    errors: list[str] = []

    def enter() -> None:
        try:
            with SaveOnSignal(Saver()):
                pass
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert errors == [
        "SaveOnSignal must be entered in the main thread: Python lets no other handle signals.",
    ]


def test_a_handler_that_python_cannot_put_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    with pytest.raises(RuntimeError, match="SIGTERM has a handler that was not installed from Python"):
        SaveOnSignal(Saver()).__enter__()


def test_a_saver_that_cannot_be_called_without_arguments_is_refused_before_a_signal_comes() -> None:
    with pytest.raises(TypeError, match=r"without arguments \(missing a required argument: 'file_prefix'\); wrap it"):
        SaveOnSignal(Checkpoint())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"needs an object with save\(\), or a function, not 3"):
        SaveOnSignal(3)  # type: ignore[arg-type]


TRAINING = """
import sys, time, torch
from torch_trackckpt import Checkpoint, CheckpointOptions, SaveOnSignal
x = torch.tensor([0, 0])
checkpoint = Checkpoint(x=x)
options = CheckpointOptions(enable_async=True)
with SaveOnSignal(lambda: checkpoint.save(sys.argv[1], options), exit_code=7) as preemption:
    print("training", flush=True)
    while not preemption.step():
        x[0] += 1
        time.sleep(0.01)  # the signal mostly comes here, between the halves of a step
        x[1] += 1
"""


def test_a_training_that_gets_a_real_sigterm_saves_whole_steps_and_exits(tmp_path: Path) -> None:
    """C328, C329"""
    command = [sys.executable, "-c", TRAINING, str(tmp_path / "ckpt")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        assert training.stdout.readline() == "training\n"
        training.send_signal(signal.SIGTERM)
        _, log = training.communicate(timeout=300)
    assert training.returncode == 7, log
    assert "SIGTERM has come; saving for the last time." in log
    saved = latest_checkpoint(tmp_path)
    assert saved == f"{tmp_path}/ckpt-1"
    first, second = torch.as_tensor(load_variable(saved, X)).tolist()
    assert first == second
