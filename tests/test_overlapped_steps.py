"""Overlapped asynchronous saves: the next step waits for what is not copied yet, and nobody else does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import names_in
from held import PATIENCE_SECONDS
from overlapped import OVERLAPPED, SYNC, Training, assert_same_files, hooks_of, weight_in
from torch import nn

from torch_trackckpt import (
    Checkpoint,
    load_checkpoint,
    preemption_save_context,
)
from torch_trackckpt.save.late import LateCopy

pytestmark = pytest.mark.usefixtures("late_whatever_its_size")


@pytest.mark.parametrize("first", [0, 1])
def test_parameters_of_two_optimizers_wait_for_whichever_steps_first(
    tmp_path: Path, not_copied: threading.Event, first: int
) -> None:
    training = Training()
    optimizers = [training.optimizer, torch.optim.SGD(training.model.parameters(), lr=1)]
    training.checkpoint.second = optimizers[1]
    training.checkpoint.write(tmp_path / "expected", SYNC)
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    training.pass_through()
    optimizers[first].step()
    assert hooks_of(optimizers[first]) == 0
    optimizers[1 - first].step()
    assert hooks_of(optimizers[1 - first]) == 0
    not_copied.set()
    training.checkpoint.sync()
    assert_same_files(tmp_path / "expected", tmp_path / "ckpt")


def test_steps_in_several_other_threads_wait_too(tmp_path: Path, not_copied: threading.Event) -> None:
    training = Training()
    second = torch.optim.SGD(training.model.parameters(), lr=1)
    training.checkpoint.second = second
    training.checkpoint.write(tmp_path / "expected", SYNC)
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    training.pass_through()
    threads = [threading.Thread(target=optimizer.step) for optimizer in (training.optimizer, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    not_copied.set()
    training.checkpoint.sync()
    assert_same_files(tmp_path / "expected", tmp_path / "ckpt")


def test_the_hooks_of_others_are_called_and_stay(tmp_path: Path, not_copied: threading.Event) -> None:
    training = Training()
    calls: list[str] = []
    training.optimizer.register_step_pre_hook(lambda *_: calls.append("earlier"))
    training.checkpoint.write(tmp_path / "expected", SYNC)
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    training.optimizer.register_step_pre_hook(lambda *_: calls.append("later"))
    training.optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    for _ in range(2):
        training.train()
    assert calls == ["earlier", "later", "after"] * 2
    assert hooks_of(training.optimizer) == 3
    not_copied.set()
    training.checkpoint.sync()
    assert_same_files(tmp_path / "expected", tmp_path / "ckpt")


def test_without_a_step_the_hook_is_gone_after_sync(tmp_path: Path) -> None:
    training = Training()
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    assert hooks_of(training.optimizer) == 1
    training.checkpoint.sync()
    assert hooks_of(training.optimizer) == 0


def test_sync_in_another_thread_leaves_the_hook_to_the_thread_that_trains(tmp_path: Path) -> None:
    """Which may be going through the hooks."""
    training = Training()
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    other = threading.Thread(target=training.checkpoint.sync)
    other.start()
    other.join()
    assert hooks_of(training.optimizer) == 1
    training.train()
    assert hooks_of(training.optimizer) == 0


class Outer(torch.optim.AdamW):
    """Calls the step of its base, which is wrapped as well."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Wrapper:
    """As Accelerate's, which is no Optimizer at all."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.step()


def by_scaler(training: Training) -> None:
    scaler = torch.amp.GradScaler("cpu")
    training.optimizer.zero_grad()
    scaler.scale(training.model(torch.rand(5, 6)).sum()).backward()
    scaler.step(training.optimizer)


def by_schedule(training: Training) -> None:
    schedule = torch.optim.lr_scheduler.StepLR(training.optimizer, 1)
    training.train()
    schedule.step()


def by_compiled_step(training: Training) -> None:
    training.pass_through()
    torch.compile(training.optimizer.step, backend="eager")()


def by_wrapper(training: Training) -> None:
    training.pass_through()
    Wrapper(training.optimizer).step()


WAYS: dict[str, tuple[Any, Callable[[Training], None]]] = {
    "a subclass": (Outer, Training.train),
    "a gradient scaler": (torch.optim.AdamW, by_scaler),
    "a scheduler, which wraps the method": (torch.optim.AdamW, by_schedule),
    "a wrapper": (torch.optim.AdamW, by_wrapper),
    "a closure": (torch.optim.LBFGS, lambda training: training.optimizer.step(training.pass_through)),
    "a compiled method": (torch.optim.AdamW, by_compiled_step),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("way", WAYS)
def test_however_the_step_is_called_it_waits(tmp_path: Path, not_copied: threading.Event, way: str) -> None:
    make, step = WAYS[way]
    training = Training.__new__(Training)
    torch.manual_seed(0)
    training.model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    training.optimizer = make(training.model.parameters(), lr=0.1)
    training.checkpoint = Checkpoint(model=training.model, optimizer=training.optimizer)
    step(training)
    training.checkpoint.write(tmp_path / "expected", SYNC)
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    before = training.weight.detach().clone()
    step(training)
    assert not torch.equal(training.weight, before)
    not_copied.set()
    training.checkpoint.sync()
    assert_same_files(tmp_path / "expected", tmp_path / "ckpt")
    assert hooks_of(training.optimizer) == 0


def test_a_save_before_the_step_completes_the_one_before(tmp_path: Path) -> None:
    training = Training()
    training.checkpoint.write(tmp_path / "expected", SYNC)
    for number in range(3):
        training.checkpoint.write(tmp_path / f"ckpt{number}", OVERLAPPED)
        assert hooks_of(training.optimizer) == 1
    training.checkpoint.sync()
    for number in range(3):
        assert_same_files(tmp_path / "expected", tmp_path / f"ckpt{number}")


def test_restoring_before_the_step_completes_the_save_first(tmp_path: Path) -> None:
    training = Training()
    training.checkpoint.write(tmp_path / "old", SYNC)
    training.train()
    training.checkpoint.write(tmp_path / "expected", SYNC)
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    training.checkpoint.read(tmp_path / "old").assert_consumed()
    assert_same_files(tmp_path / "expected", tmp_path / "ckpt")
    assert torch.equal(training.weight, weight_in(tmp_path / "old"))


def test_before_a_preemption_the_save_is_completed_and_the_last_one_synchronous(tmp_path: Path) -> None:
    training = Training()
    training.checkpoint.write(tmp_path / "first", OVERLAPPED)
    with preemption_save_context():
        training.checkpoint.write(tmp_path / "last", OVERLAPPED)
    assert_same_files(tmp_path / "first", tmp_path / "last")
    assert hooks_of(training.optimizer) == 0


def test_a_step_does_not_wait_for_a_thread_that_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(copies: LateCopy) -> None:
        raise MemoryError("no thread")

    monkeypatch.setattr(LateCopy, "run", fail)
    training = Training()
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    training.train()
    with pytest.raises(MemoryError, match="no thread"):
        training.checkpoint.sync()
    assert names_in(tmp_path) == []
    assert hooks_of(training.optimizer) == 0


def test_a_thread_that_cannot_be_started_leaves_no_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    training = Training()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    assert hooks_of(training.optimizer) == 0
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    training.checkpoint.sync()


def test_a_keyboard_interrupt_while_the_step_waits_ends_the_step_and_the_next_waits_again(
    tmp_path: Path, not_copied: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training()
    training.checkpoint.write(tmp_path / "expected", SYNC)
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    before = training.weight.detach().clone()

    def interrupted(self: LateCopy) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LateCopy, "hasten", interrupted)
        with pytest.raises(KeyboardInterrupt):
            training.train()
    assert torch.equal(training.weight, before)
    training.train()
    assert not torch.equal(training.weight, before)
    not_copied.set()
    training.checkpoint.sync()
    assert_same_files(tmp_path / "expected", tmp_path / "ckpt")


PROGRAM = """
import os, sys, threading, torch
from torch_trackckpt import Checkpoint, CheckpointOptions, load_variable
from torch_trackckpt.adapters.step_hook import StepHook
torch.set_num_threads(1)  # a forked child has no threads of torch's
w = torch.nn.Parameter(torch.ones(300, 300))
optimizer = torch.optim.SGD([w], lr=1.0)
checkpoint = Checkpoint(w=w, optimizer=optimizer)
w.grad = torch.ones(300, 300)
def save(progress):
    checkpoint.save(sys.argv[1] + "/ckpt", CheckpointOptions(
        enable_async=True, async_copy="overlapped", progress=progress))
    assert len(StepHook.shared()._waiting) == 1
def first():
    return load_variable(sys.argv[1] + "/ckpt-1", "w/.ATTRIBUTES/VARIABLE_VALUE").unique().tolist()
"""

FORK = """
gate = threading.Event()
save(lambda done, total: gate.wait(60))
child = os.fork()
if child == 0:
    code = 1
    try:
        optimizer.step()
        checkpoint.sync()
        code = int(len(StepHook.shared()._waiting) != 0)
    finally:
        os._exit(code)
_, status = os.waitpid(child, 0)
assert status == 0
gate.set()
checkpoint.sync()
assert first() == [1.0]
print("ok")
"""

EXIT = """
about_to_exit = threading.Event()
def wait(done, total):
    about_to_exit.wait(60)
    threading.main_thread().join()
save(wait)
optimizer.step()
about_to_exit.set()
"""


def run(program: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program, str(folder)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_steps_without_waiting_for_its_parents_save(tmp_path: Path) -> None:
    assert run(FORK, tmp_path).strip() == "ok"


def test_a_save_is_completed_before_the_interpreter_exits(tmp_path: Path) -> None:
    run(EXIT, tmp_path)
    stored = load_checkpoint(tmp_path / "ckpt-1").get_tensor("w/.ATTRIBUTES/VARIABLE_VALUE")
    assert torch.equal(torch.as_tensor(stored), torch.ones(300, 300))
