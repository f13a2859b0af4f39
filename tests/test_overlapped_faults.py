"""Overlapped asynchronous saves that are interrupted, or whose values change in ways that torch does not count."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from checkpoints import names_in
from held import PATIENCE_SECONDS
from torch import nn

from torch_trackckpt import Checkpoint, CheckpointOptions, load_variable
from torch_trackckpt.adapters.step_hook import StepHook
from torch_trackckpt.errors import ValueChangedError
from torch_trackckpt.save.late import LateCopy
from torch_trackckpt.save.pending import PendingSave
from torch_trackckpt.trackable import SlotOwner, Trackable, Value

SYNC = CheckpointOptions(durable=False)
FIRST = CheckpointOptions(durable=False, enable_async=True)
OVERLAPPED = CheckpointOptions(durable=False, enable_async=True, async_copy="overlapped")
KEY = "weight/.ATTRIBUTES/VARIABLE_VALUE"


pytestmark = pytest.mark.usefixtures("late_whatever_its_size")


class Training:
    """One parameter, which each step makes smaller by one."""

    def __init__(self, make: Callable[..., torch.optim.Optimizer] = torch.optim.SGD, **options: object) -> None:
        self.weight = nn.Parameter(torch.full((64, 64), 8.0))
        self.weight.grad = torch.ones(64, 64)
        self.optimizer = make([self.weight], lr=1.0, **options)
        self.checkpoint = Checkpoint(weight=self.weight, optimizer=self.optimizer)

    def saved(self, path: Path) -> list[float]:
        value = load_variable(path, KEY)
        assert isinstance(value, torch.Tensor)
        found: list[float] = value.unique().tolist()
        return found


def late_keys(checkpoint: Checkpoint) -> list[str]:
    pending = checkpoint._own.pending
    assert pending is not None
    return [] if pending._late is None else pending._late._keys


# ------------------------------------------------------------------------------------------------- interrupts


@pytest.mark.parametrize("options", [FIRST, OVERLAPPED], ids=["first", "overlapped"])
def test_an_interrupt_while_the_thread_is_being_started_leaves_no_checkpoint(
    options: CheckpointOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C295"""
    training = Training()
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        started.append(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            training.checkpoint.write(tmp_path / "ckpt", options)
    (thread,) = started
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    assert names_in(tmp_path) == []
    assert training.checkpoint._own.pending is None
    training.optimizer.step()
    training.checkpoint.write(tmp_path / "ckpt", options)
    training.checkpoint.sync()
    assert training.saved(tmp_path / "ckpt") == [7.0]


@pytest.mark.parametrize("options", [FIRST, OVERLAPPED], ids=["first", "overlapped"])
def test_an_interrupt_after_the_thread_has_begun_is_raised_and_the_save_goes_on(
    options: CheckpointOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training()
    start = PendingSave.start

    def interrupted(pending: PendingSave) -> None:
        start(pending)
        while not pending._has_begun:
            threading.Event().wait(0.001)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PendingSave, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            training.checkpoint.write(tmp_path / "ckpt", options)
    training.optimizer.step()
    training.checkpoint.sync()
    assert training.saved(tmp_path / "ckpt") == [8.0]


def test_an_interrupt_between_the_hooks_and_the_thread_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training()
    precede = LateCopy.precede_steps_of

    def interrupted(copies: LateCopy, owners: object) -> None:
        precede(copies, owners)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LateCopy, "precede_steps_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    members = {id(training.weight)}
    assert not any(not waiting.tensors.isdisjoint(members) for waiting in StepHook.shared()._waiting)
    training.checkpoint.write(tmp_path / "ckpt", FIRST)
    training.optimizer.step()
    training.checkpoint.sync()
    assert training.saved(tmp_path / "ckpt") == [8.0]


def test_values_that_were_given_up_are_no_checkpoint(tmp_path: Path, not_copied: threading.Event) -> None:
    training = Training()
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    pending = training.checkpoint._own.pending
    assert pending is not None
    assert pending._late is not None
    pending._late.give_up()
    not_copied.set()
    with pytest.raises(RuntimeError, match="given up before its values were copied"):
        training.checkpoint.sync()
    assert names_in(tmp_path) == []


# ------------------------------------------------------------------------------- steps that torch does not count


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_that_the_checkpoint_does_not_track_waits_as_well(
    fused: bool, tmp_path: Path, not_copied: threading.Event
) -> None:
    """Fused steps do not count in the versions of tensors."""
    training = Training()
    other = torch.optim.SGD([training.weight], lr=3.0, fused=fused)
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    other.step()
    assert training.weight.unique().tolist() == [5.0]
    not_copied.set()
    training.checkpoint.sync()
    assert training.saved(tmp_path / "ckpt") == [8.0]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("place", ["closure", "hook"])
def test_a_save_in_the_midst_of_a_step_copies_at_once(
    place: str, fused: bool, tmp_path: Path, not_copied: threading.Event
) -> None:
    training = Training(fused=fused)

    def save(*_: object) -> None:
        training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
        assert late_keys(training.checkpoint) == []

    def closure() -> torch.Tensor:
        save()
        return torch.zeros(())

    if place == "closure":
        training.optimizer.step(closure)
    else:
        handle = training.optimizer.register_step_pre_hook(save)
        training.optimizer.step()
        handle.remove()
    not_copied.set()
    training.checkpoint.sync()
    assert training.weight.unique().tolist() == [7.0]
    assert training.saved(tmp_path / "ckpt") == [8.0]


def test_several_saves_of_one_optimizer_and_hooks_of_the_user_do_not_mind_each_other(
    tmp_path: Path, not_copied: threading.Event
) -> None:
    training = Training()
    others = [Checkpoint(weight=training.weight, optimizer=training.optimizer) for _ in range(3)]
    calls: list[str] = []
    for number, checkpoint in enumerate(others):
        checkpoint.write(tmp_path / str(number), OVERLAPPED)
        training.optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
        training.optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    training.optimizer.step()
    training.optimizer.step()
    assert calls == (["before"] * 3 + ["after"] * 3) * 2
    not_copied.set()
    for number, checkpoint in enumerate(others):
        checkpoint.sync()
        assert training.saved(tmp_path / str(number)) == [8.0]


def test_sync_while_another_thread_is_in_a_hook_of_the_step_disturbs_no_step(
    tmp_path: Path, not_copied: threading.Event
) -> None:
    training = Training()
    is_in_hook, may_go_on = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        is_in_hook.set()
        assert may_go_on.wait(PATIENCE_SECONDS)

    training.optimizer.register_step_pre_hook(hold)
    failures: list[BaseException] = []

    def step() -> None:
        try:
            training.optimizer.step()
        except BaseException as error:
            failures.append(error)

    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    thread = threading.Thread(target=step)
    thread.start()
    assert is_in_hook.wait(PATIENCE_SECONDS)
    not_copied.set()
    training.checkpoint.sync()
    may_go_on.set()
    thread.join(PATIENCE_SECONDS)
    assert failures == []
    assert training.saved(tmp_path / "ckpt") == [8.0]


# ------------------------------------------------------------------------------------------------- other memory


def test_a_parameter_that_goes_to_shared_memory_before_it_is_copied_is_noticed(
    tmp_path: Path, not_copied: threading.Event
) -> None:
    training = Training()
    training.checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    training.weight.share_memory_()
    not_copied.set()
    with pytest.raises(ValueChangedError):
        training.checkpoint.sync()
    assert names_in(tmp_path) == []


def test_a_parameter_of_which_a_buffer_is_a_view_with_gaps_is_copied_at_once(
    tmp_path: Path, not_copied: threading.Event
) -> None:
    """The buffer may change before the step."""
    training = Training()
    view = training.weight.data.t()
    checkpoint = Checkpoint(weight=training.weight, view=view[::2], optimizer=training.optimizer)
    checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    assert KEY not in late_keys(checkpoint)
    view.fill_(3.0)
    not_copied.set()
    checkpoint.sync()
    assert training.saved(tmp_path / "ckpt") == [8.0]


class Owner(SlotOwner):
    """Has slots, and names nothing that changes in steps alone."""

    def __init__(self, variable: torch.Tensor) -> None:
        self._variable = variable
        self._slot = torch.ones(4)

    def _slot_variables(self) -> Mapping[str, list[tuple[torch.Tensor, torch.Tensor]]]:  # type: ignore[override]
        return {"moment": [(self._variable, self._slot)]}

    def _variables_with_state(self) -> list[torch.Tensor]:
        return [self._variable]

    def _trackable_children(self) -> Mapping[str, Trackable]:
        return {}

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        return {}


def test_an_owner_of_slots_that_names_nothing_is_not_asked_for_its_steps(
    tmp_path: Path, not_copied: threading.Event
) -> None:
    training = Training()
    owner = Owner(training.weight)
    checkpoint = Checkpoint(weight=training.weight, optimizer=training.optimizer, owner=owner)
    checkpoint.write(tmp_path / "ckpt", OVERLAPPED)
    training.optimizer.step()
    not_copied.set()
    checkpoint.sync()
    assert training.saved(tmp_path / "ckpt") == [8.0]
