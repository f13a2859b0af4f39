"""Overlapped asynchronous saves: the values of the call are in the file, or there is no file."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import names_in
from held import PATIENCE_SECONDS, HeldStorage
from torch import nn
from torch.optim import swa_utils

from torch_trackckpt import (
    Checkpoint,
    CheckpointManager,
    CheckpointOptions,
    frozen_saver,
    load_checkpoint,
    preemption_save_context,
)
from torch_trackckpt.adapters.step_hook import StepHook
from torch_trackckpt.errors import ValueChangedError
from torch_trackckpt.save import late
from torch_trackckpt.save.late import LateCopy
from torch_trackckpt.sharding import MaxShardSizePolicy

SYNC = CheckpointOptions(durable=False)
OVERLAPPED = CheckpointOptions(durable=False, enable_async=True, async_copy="overlapped")


@pytest.fixture(autouse=True)
def _small_tensors_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each tensor were worth being copied late."""
    monkeypatch.setattr(late, "_LEAST_BYTES", 1)


@pytest.fixture
def not_copied(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The background thread copies nothing before this is set; whoever steps copies by himself."""
    gate = threading.Event()
    run = LateCopy.run

    def run_later(copies: LateCopy) -> None:
        assert gate.wait(PATIENCE_SECONDS), "nobody let the thread copy"
        run(copies)

    monkeypatch.setattr(LateCopy, "run", run_later)
    yield gate
    gate.set()


class Training:
    """A small one, with buffers that each forward pass changes."""

    def __init__(self, make: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.optimizer = make(self.model.parameters(), lr=0.1)
        self.checkpoint = Checkpoint(model=self.model, optimizer=self.optimizer)
        self.train()

    @property
    def weight(self) -> nn.Parameter:
        weight = self.model[0].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def pass_through(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss: torch.Tensor = self.model(torch.rand(5, 6)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def train(self) -> None:
        self.pass_through()
        self.optimizer.step()


def hooks_of(optimizer: torch.optim.Optimizer) -> int:
    """Its own, and those who wait for a step of it."""
    members = {id(member) for group in optimizer.param_groups for member in group["params"]}
    waiting = [
        waiting
        for waiting in StepHook.shared()._waiting
        if waiting.callback() is not None and not waiting.tensors.isdisjoint(members)
    ]
    own = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    return len(waiting) + sum(map(len, own))


def late_keys(checkpoint: Checkpoint) -> set[str]:
    """What the pending save has not copied at its call."""
    pending = checkpoint._own.pending
    assert pending is not None
    assert pending._late is not None
    return {key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE") for key in pending._late._keys}


def assert_same_files(expected: Path, saved: Path) -> None:
    for suffix in (".index", ".data-00000-of-00001"):
        assert Path(f"{saved}{suffix}").read_bytes() == Path(f"{expected}{suffix}").read_bytes(), suffix


# ------------------------------------------------------------------------------------------ the values of the call


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize(
    "make",
    [
        torch.optim.AdamW,
        torch.optim.Adam,
        lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
        lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, foreach=True),
        lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, fused=True),
        torch.optim.Adagrad,
    ],
    ids=["AdamW", "Adam", "SGD", "foreach", "fused", "Adagrad"],
)
def test_the_files_are_those_of_a_synchronous_save_of_that_moment_although_training_goes_on(
    tmp_path: Path, not_copied: threading.Event, make: Callable[..., torch.optim.Optimizer], steps: int
) -> None:
    training = Training(make)
    training.checkpoint.write(tmp_path / "expected", SYNC)
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    for _ in range(steps):
        training.train()
    if not steps:
        training.pass_through()
    not_copied.set()
    training.checkpoint.sync()
    assert_same_files(tmp_path / "expected", tmp_path / "ckpt")
    assert hooks_of(training.optimizer) == 0


def test_parameters_and_slots_are_copied_late_and_all_else_at_once(tmp_path: Path, not_copied: threading.Event) -> None:
    training = Training()
    frozen = nn.Linear(3, 3)
    training.checkpoint.frozen, training.checkpoint.plain = frozen, torch.ones(5)
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    names = {f"model/{layer}/{kind}" for layer in "012" for kind in ("weight", "bias")}
    slots = {f"{name}/.OPTIMIZER_SLOT/optimizer/{slot}" for name in names for slot in ("exp_avg", "exp_avg_sq", "step")}
    assert late_keys(training.checkpoint) == names | slots


def test_small_tensors_are_copied_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    training = Training()
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    assert hooks_of(training.optimizer) == 0
    training.checkpoint.sync()


def test_parts_of_a_sharded_save_are_copied_at_once_and_the_rest_late(
    tmp_path: Path, not_copied: threading.Event
) -> None:
    training = Training()
    options = {"durable": False, "experimental_sharding_callback": MaxShardSizePolicy(128)}
    training.checkpoint.write(tmp_path / "expected", CheckpointOptions(**options))
    training.checkpoint.write(
        tmp_path / "ckpt", CheckpointOptions(**options, enable_async=True, async_copy="overlapped")
    )
    assert "model/0/bias" in late_keys(training.checkpoint)
    assert "model/0/weight" not in late_keys(training.checkpoint)
    training.train()
    not_copied.set()
    training.checkpoint.sync()
    expected = sorted(tmp_path.glob("expected*"))
    assert [path.read_bytes() for path in sorted(tmp_path.glob("ckpt*"))] == [path.read_bytes() for path in expected]


def test_the_manager_and_frozen_savers_save_so_as_well(tmp_path: Path, not_copied: threading.Event) -> None:
    training = Training()
    training.checkpoint.write(tmp_path / "expected", SYNC)
    saver = frozen_saver(training.checkpoint)
    saver.save(tmp_path / "frozen", OVERLAPPED)
    training.train()
    not_copied.set()
    training.checkpoint.sync()
    assert_same_files(tmp_path / "expected", tmp_path / "frozen")

    not_copied.clear()
    manager = CheckpointManager(training.checkpoint, tmp_path / "managed")
    before = training.weight.detach().clone()
    path = manager.save(options=OVERLAPPED)
    assert path is not None
    training.train()
    not_copied.set()
    manager.sync()
    assert torch.equal(weight_in(path), before)


def weight_in(path: str | Path) -> torch.Tensor:
    return torch.as_tensor(load_checkpoint(path).get_tensor("model/0/weight/.ATTRIBUTES/VARIABLE_VALUE"))


def test_a_save_without_an_optimizer_copies_everything_at_once(tmp_path: Path) -> None:
    x = torch.ones(3)
    checkpoint = Checkpoint(x=x)
    checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    x.zero_()
    checkpoint.sync()
    assert load_checkpoint(tmp_path / "ckpt").get_tensor("x/.ATTRIBUTES/VARIABLE_VALUE").tolist() == [1] * 3


def test_inference_tensors_are_copied_at_once(tmp_path: Path, not_copied: threading.Event) -> None:
    training = Training()
    with torch.inference_mode():
        training.optimizer.state[training.weight]["exp_avg"] = torch.ones(8, 6)
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    assert "model/0/weight/.OPTIMIZER_SLOT/optimizer/exp_avg" not in late_keys(training.checkpoint)


def test_a_parameter_whose_memory_a_buffer_has_as_well_is_copied_at_once(
    tmp_path: Path, not_copied: threading.Event
) -> None:
    """It may change with the buffer, and its version does not tell of it."""
    training = Training()
    training.model.register_buffer("alias", training.weight.data[2:4])
    before = training.weight.detach().clone()
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    assert "model/0/weight" not in late_keys(training.checkpoint)
    assert "model/0/bias" in late_keys(training.checkpoint)
    training.model.get_buffer("alias").zero_()
    not_copied.set()
    training.checkpoint.sync()
    assert torch.equal(weight_in(tmp_path / "ckpt"), before)


def test_averaged_weights_may_change_before_the_step(tmp_path: Path, not_copied: threading.Event) -> None:
    training = Training()
    average = swa_utils.AveragedModel(training.model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
    average.update_parameters(training.model)
    training.train()
    training.checkpoint.average = average
    training.checkpoint.write(tmp_path / "expected", SYNC)
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    average.update_parameters(training.model)
    training.train()
    not_copied.set()
    training.checkpoint.sync()
    assert_same_files(tmp_path / "expected", tmp_path / "ckpt")


def test_a_parameter_that_gets_other_memory_is_saved_as_it_was(tmp_path: Path, not_copied: threading.Event) -> None:
    training = Training()
    before = training.weight.detach().clone()
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    training.weight.data = torch.zeros(8, 6)
    training.train()
    not_copied.set()
    training.checkpoint.sync()
    assert torch.equal(weight_in(tmp_path / "ckpt"), before)


def test_what_is_freed_before_the_step_is_saved_as_it_was(tmp_path: Path, not_copied: threading.Event) -> None:
    training = Training()
    checkpoint = training.checkpoint
    checkpoint.write(tmp_path / "expected", SYNC)
    checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    optimizer, model = weakref.ref(training.optimizer), weakref.ref(training.model)
    del training, checkpoint.model, checkpoint.optimizer
    gc.collect()
    assert optimizer() is None, "the save kept the optimizer alive"
    assert model() is None
    filler = [torch.full((8, 6), 7.0) for _ in range(100)]
    not_copied.set()
    checkpoint.sync()
    del filler
    assert_same_files(tmp_path / "expected", tmp_path / "ckpt")


def test_a_hook_keeps_no_checkpoint_alive(tmp_path: Path, not_copied: threading.Event) -> None:
    training = Training()
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    checkpoint = weakref.ref(training.checkpoint)
    del training.checkpoint
    gc.collect()
    assert checkpoint() is None
    training.train()
    not_copied.set()


def test_parameters_that_are_added_before_the_step_are_no_part_of_the_save(
    tmp_path: Path, not_copied: threading.Event
) -> None:
    training = Training()
    training.checkpoint.write(tmp_path / "expected", SYNC)
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    added = nn.Parameter(torch.ones(4))
    training.optimizer.add_param_group({"params": [added]})
    added.grad = torch.ones(4)
    training.train()
    not_copied.set()
    training.checkpoint.sync()
    assert_same_files(tmp_path / "expected", tmp_path / "ckpt")


# ------------------------------------------------------------------------------------------ who waits, and how long


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


# ------------------------------------------------------------------------------------------ what is refused


def load_own_state(training: Training) -> None:
    training.model.load_state_dict({name: value.clone() for name, value in training.model.state_dict().items()})


def clip_weights(training: Training) -> None:
    with torch.no_grad():
        training.weight.clamp_(-0.1, 0.1)


@pytest.mark.parametrize("then_step", [False, True])
@pytest.mark.parametrize("change", [load_own_state, clip_weights])
def test_a_change_before_the_step_is_an_error_that_names_the_values_and_leaves_no_file(
    tmp_path: Path, not_copied: threading.Event, change: Callable[[Training], None], then_step: bool
) -> None:
    training = Training()
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    change(training)
    if then_step:
        training.train()
    not_copied.set()
    with pytest.raises(ValueChangedError, match=r"values changed.*model/0/weight"):
        training.checkpoint.sync()
    assert names_in(tmp_path) == []
    assert hooks_of(training.optimizer) == 0
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    training.checkpoint.sync()
    assert torch.equal(weight_in(tmp_path / "ckpt"), training.weight)


@pytest.mark.parametrize("then_step", [False, True])
def test_a_change_after_its_copy_is_refused_as_well(tmp_path: Path, held: HeldStorage, then_step: bool) -> None:
    """What wrote may have begun before the copy was made: torch counts a version when it has written."""
    training = Training()
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    pending = training.checkpoint._own.pending
    assert pending is not None
    assert pending._late is not None
    pending._late.hasten()
    clip_weights(training)
    if then_step:
        training.train()
    held.release()
    with pytest.raises(ValueChangedError, match="model/0/weight"):
        training.checkpoint.sync()
    assert names_in(tmp_path) == []


def test_changes_after_the_files_are_complete_do_not_matter(tmp_path: Path) -> None:
    training = Training()
    written = threading.Event()
    changed = threading.Event()

    def callback() -> None:
        written.set()
        assert changed.wait(PATIENCE_SECONDS)

    options = CheckpointOptions(
        durable=False, enable_async=True, async_copy="overlapped", experimental_write_callbacks=[callback]
    )
    training.checkpoint.write(tmp_path / "expected", SYNC)
    training.checkpoint.write(tmp_path / "ckpt", options)
    assert written.wait(PATIENCE_SECONDS)
    clip_weights(training)
    changed.set()
    training.checkpoint.sync()
    assert_same_files(tmp_path / "expected", tmp_path / "ckpt")


@pytest.mark.parametrize("seed", range(40))
def test_whatever_another_thread_changes_the_file_has_the_values_of_the_call_or_is_not_there(
    tmp_path: Path, held: HeldStorage, seed: int
) -> None:
    """The other thread has ended before files are made, so that its last operation is over."""
    rng = random.Random(seed)
    training = Training(seed=seed)
    large = nn.Parameter(torch.rand(rng.choice([1000, 300_000])))
    training.optimizer.add_param_group({"params": [large]})
    training.checkpoint.large = large
    held.release()
    training.checkpoint.write(tmp_path / "expected", SYNC)
    held.hold()
    tensors = [large, *training.model.parameters(), *training.model.buffers()]
    begin = threading.Event()
    chosen = [(rng.choice(tensors), rng.random() * 0.002) for _ in range(rng.randrange(4))]

    def change() -> None:
        begin.wait(PATIENCE_SECONDS)
        for tensor, seconds in chosen:
            threading.Event().wait(seconds)
            with torch.no_grad():
                tensor.add_(1)

    other = threading.Thread(target=change)
    other.start()
    try:
        if rng.random() < 0.5:
            begin.set()
        training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
        begin.set()
        if rng.random() < 0.3:
            training.checkpoint.optimizer.zero_grad()
            other.join()
            training.optimizer.step()
        other.join()
        held.release()
        training.checkpoint.sync()
    except ValueChangedError:
        assert not list(tmp_path.glob("ckpt*"))
        return
    finally:
        begin.set()
        other.join()
    assert_same_files(tmp_path / "expected", tmp_path / "ckpt")


def test_an_unknown_way_to_copy_is_refused() -> None:
    with pytest.raises(ValueError, match="async_copy must be 'first' or 'overlapped', not 'later'"):
        CheckpointOptions(async_copy="later")  # type: ignore[arg-type]
