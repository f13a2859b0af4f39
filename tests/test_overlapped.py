"""Overlapped asynchronous saves: the values of the call are in the file, or there is no file."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import names_in
from held import PATIENCE_SECONDS, HeldStorage
from overlapped import OVERLAPPED, SYNC, Training, assert_same_files, hooks_of, late_keys, weight_in
from torch import nn
from torch.optim import swa_utils

from torch_trackckpt import (
    Checkpoint,
    CheckpointManager,
    CheckpointOptions,
    frozen_saver,
    load_checkpoint,
)
from torch_trackckpt.errors import ValueChangedError
from torch_trackckpt.sharding import MaxShardSizePolicy

pytestmark = pytest.mark.usefixtures("late_whatever_its_size")

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
