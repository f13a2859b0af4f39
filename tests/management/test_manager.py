"""`CheckpointManager`: numbers, lists, intervals, and what happens when something goes wrong."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import names_in, zero
from clocks import FakeClock

from torch_trackckpt import (
    Checkpoint,
    CheckpointManager,
    CheckpointOptions,
    get_checkpoint_state,
    latest_checkpoint,
)
from torch_trackckpt.errors import CheckpointNotFoundError
from torch_trackckpt.sharding import MaxShardSizePolicy
from torch_trackckpt.storage.local import LocalStorage

FAST = CheckpointOptions(durable=False)


def base(paths: list[str]) -> list[str]:
    return [os.path.basename(path) for path in paths]


def save_all(manager: CheckpointManager, times: int) -> None:
    for _ in range(times):
        manager.save(options=FAST)


# ------------------------------------------------------------------------------------------------- names and lists


def test_a_save_takes_the_next_number_and_becomes_the_latest(tmp_path: Path) -> None:
    """C208, C209, C231."""
    checkpoint = Checkpoint(x=zero())
    manager = CheckpointManager(checkpoint, str(tmp_path / "run"), max_to_keep=None)
    assert manager.latest_checkpoint is None
    assert manager.checkpoints == []
    assert not (tmp_path / "run").exists()

    first, second = manager.save(), manager.save()

    assert [first, second] == [f"{tmp_path}/run/ckpt-1", f"{tmp_path}/run/ckpt-2"]
    assert manager.checkpoints == [first, second]
    assert manager.latest_checkpoint == second == latest_checkpoint(tmp_path / "run")
    assert (manager.checkpoint, manager.directory) == (checkpoint, f"{tmp_path}/run")
    assert int(checkpoint.save_counter) == 2


def test_only_the_newest_stay(tmp_path: Path) -> None:
    """C210."""
    options = CheckpointOptions(durable=False, experimental_sharding_callback=MaxShardSizePolicy(8))
    manager = CheckpointManager(Checkpoint(x=torch.ones(4)), tmp_path, max_to_keep=3)
    manager.save(options=options)
    assert len(list(tmp_path.glob("ckpt-1.data-*"))) > 1
    save_all(manager, 3)
    assert base(manager.checkpoints) == ["ckpt-2", "ckpt-3", "ckpt-4"]
    expected = [f"ckpt-{n}.{kind}" for n in (2, 3, 4) for kind in ("data-00000-of-00001", "index")]
    assert names_in(tmp_path) == ["checkpoint", *expected]


def test_without_a_number_all_stay(tmp_path: Path) -> None:
    """C211."""
    manager = CheckpointManager(Checkpoint(), tmp_path, max_to_keep=None)
    save_all(manager, 4)
    assert base(manager.checkpoints) == ["ckpt-1", "ckpt-2", "ckpt-3", "ckpt-4"]
    assert all(Path(path + ".index").exists() for path in manager.checkpoints)


def test_a_new_manager_goes_on_and_deletes_nothing_before_its_first_save(tmp_path: Path) -> None:
    """C213."""
    checkpoint = Checkpoint()
    save_all(CheckpointManager(checkpoint, tmp_path, max_to_keep=4), 4)
    before = names_in(tmp_path)

    manager = CheckpointManager(checkpoint, tmp_path, max_to_keep=2)

    assert base(manager.checkpoints) == ["ckpt-1", "ckpt-2", "ckpt-3", "ckpt-4"]
    assert manager.latest_checkpoint == str(tmp_path / "ckpt-4")
    assert names_in(tmp_path) == before
    save_all(manager, 1)
    assert base(manager.checkpoints) == ["ckpt-4", "ckpt-5"]


def test_the_list_is_a_copy(tmp_path: Path) -> None:
    """C232."""
    manager = CheckpointManager(Checkpoint(), tmp_path, max_to_keep=2)
    save_all(manager, 2)
    manager.checkpoints.clear()
    manager.records.clear()
    assert base(manager.checkpoints) == ["ckpt-1", "ckpt-2"]


def test_checkpoints_that_no_manager_saved_are_never_deleted(tmp_path: Path) -> None:
    """C218."""
    checkpoint = Checkpoint(x=torch.tensor(7))
    unmanaged = [checkpoint.save(tmp_path / "model") for _ in range(3)]

    manager = CheckpointManager(checkpoint, tmp_path, max_to_keep=1)
    assert manager.latest_checkpoint == unmanaged[-1]
    assert manager.checkpoints == []
    x = zero()
    checkpoint = Checkpoint(x=x)
    manager = CheckpointManager(checkpoint, tmp_path, max_to_keep=1)
    assert manager.restore_or_initialize() == unmanaged[-1]
    assert x == 7
    save_all(manager, 3)

    assert base(manager.checkpoints) == ["ckpt-6"]
    assert all(Path(path + ".index").exists() for path in unmanaged)


@pytest.mark.parametrize("number", [7, 0, torch.tensor(7), torch.tensor([7]), np.int64(7), -1])
def test_a_number_may_be_given_and_the_counter_counts_all_the_same(tmp_path: Path, number: Any) -> None:
    """C219."""
    checkpoint = Checkpoint()
    manager = CheckpointManager(checkpoint, tmp_path, max_to_keep=None)
    path = manager.save(checkpoint_number=number, options=FAST)
    assert path == str(tmp_path / f"ckpt-{int(number)}")
    assert int(checkpoint.save_counter) == 1
    assert manager.save(options=FAST) == str(tmp_path / "ckpt-2")


def test_a_number_used_again_replaces_its_checkpoint_which_becomes_the_newest(tmp_path: Path) -> None:
    """C220."""
    x = torch.tensor(1)
    checkpoint = Checkpoint(x=x)
    manager = CheckpointManager(checkpoint, tmp_path, max_to_keep=3)
    save_all(manager, 2)
    x.fill_(5)
    manager.save(checkpoint_number=1, options=FAST)
    assert base(manager.checkpoints) == ["ckpt-2", "ckpt-1"]
    assert manager.latest_checkpoint == str(tmp_path / "ckpt-1")
    x.fill_(0)
    assert manager.restore_or_initialize() == str(tmp_path / "ckpt-1")
    assert x == 5


@pytest.mark.parametrize("number", [1.0, "1", torch.tensor(1.0), torch.tensor([1, 2])])
def test_a_number_that_is_none_is_refused_before_the_counter_rises(tmp_path: Path, number: Any) -> None:
    """C221."""
    checkpoint = Checkpoint()
    manager = CheckpointManager(checkpoint, tmp_path / "run", max_to_keep=None)
    with pytest.raises(TypeError, match="checkpoint_number must be an integer, not"):
        manager.save(checkpoint_number=number)
    assert int(checkpoint.save_counter) == 0
    assert not (tmp_path / "run").exists()


def test_the_name_may_be_chosen_and_lie_in_a_subdirectory(tmp_path: Path) -> None:
    """C222."""
    manager = CheckpointManager(Checkpoint(), tmp_path / "a", max_to_keep=1, checkpoint_name="x")
    assert manager.save() == str(tmp_path / "a" / "x-1")
    checkpoint = Checkpoint()
    manager = CheckpointManager(checkpoint, tmp_path / "b", max_to_keep=1, checkpoint_name="sub/x")
    save_all(manager, 2)
    assert names_in(tmp_path / "b" / "sub") == ["x-2.data-00000-of-00001", "x-2.index"]
    again = CheckpointManager(checkpoint, tmp_path / "b", max_to_keep=1, checkpoint_name="sub/x")
    assert again.checkpoints == manager.checkpoints == [str(tmp_path / "b" / "sub" / "x-2")]


@pytest.mark.parametrize("name", ["./x", "sub/../x"])
def test_the_newest_is_not_deleted_because_it_goes_by_two_names(tmp_path: Path, name: str) -> None:
    def manager() -> CheckpointManager:
        return CheckpointManager(Checkpoint(), tmp_path, max_to_keep=1, checkpoint_name=name)

    (tmp_path / "sub").mkdir()
    manager().save(options=FAST)
    again = manager()
    path = again.save(options=FAST)
    assert path is not None
    assert again.checkpoints == [path]
    assert Path(path + ".index").exists()


def test_the_directory_may_be_a_path_and_results_are_texts(tmp_path: Path) -> None:
    """C223."""
    manager = CheckpointManager(Checkpoint(), tmp_path, max_to_keep=2)
    path = manager.save()
    for result in (path, manager.directory, manager.latest_checkpoint, *manager.checkpoints):
        assert type(result) is str


@pytest.mark.parametrize("directory", [".", "", "run", "./run/"])
def test_a_relative_directory_works_and_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint()
    manager = CheckpointManager(checkpoint, directory, max_to_keep=2)
    save_all(manager, 3)
    again = CheckpointManager(checkpoint, directory, max_to_keep=2)
    assert again.checkpoints == manager.checkpoints == [os.path.join(directory, f"ckpt-{n}") for n in (2, 3)]
    assert again.latest_checkpoint == latest_checkpoint(directory)
    assert len(list(tmp_path.rglob("*.index"))) == 2


def test_a_directory_that_was_moved_is_understood(tmp_path: Path) -> None:
    """C239."""
    x = torch.tensor(3)
    save_all(CheckpointManager(Checkpoint(x=x), tmp_path / "old", max_to_keep=2), 3)
    shutil.move(tmp_path / "old", tmp_path / "new")
    x.zero_()
    manager = CheckpointManager(Checkpoint(x=x), tmp_path / "new", max_to_keep=2)
    assert manager.checkpoints == [str(tmp_path / "new" / f"ckpt-{n}") for n in (2, 3)]
    assert manager.restore_or_initialize() == str(tmp_path / "new" / "ckpt-3")
    assert x == 3
    save_all(manager, 1)
    assert names_in(tmp_path / "new")[1:] == [
        f"ckpt-{n}.{kind}" for n in (3, 4) for kind in ("data-00000-of-00001", "index")
    ]


# ------------------------------------------------------------------------------------------------- restoring


def test_the_latest_is_restored(tmp_path: Path) -> None:
    """C224."""
    x = torch.tensor(1.0)
    checkpoint = Checkpoint(x=x)
    manager = CheckpointManager(checkpoint, tmp_path, max_to_keep=2, init_fn=pytest.fail)
    path = manager.save()
    x.zero_()
    assert manager.restore_or_initialize() == path
    assert x == 1
    x.zero_()
    assert CheckpointManager(checkpoint, tmp_path, max_to_keep=2, init_fn=pytest.fail).restore_or_initialize() == path
    assert x == 1


def test_where_there_is_none_the_function_is_called(tmp_path: Path) -> None:
    """C225."""
    calls: list[str] = []
    manager = CheckpointManager(Checkpoint(), tmp_path, max_to_keep=2, init_fn=lambda: calls.append("init"))
    assert manager.restore_or_initialize() is None
    assert calls == ["init"]
    assert CheckpointManager(Checkpoint(), tmp_path, max_to_keep=2).restore_or_initialize() is None
    assert names_in(tmp_path) == []


# ------------------------------------------------------------------------------------------------- intervals


def with_interval(directory: Path, interval: int | None = 2, **kwargs: Any) -> tuple[CheckpointManager, torch.Tensor]:
    step = torch.tensor(0)
    checkpoint = Checkpoint(step=step)
    return CheckpointManager(
        checkpoint, directory, max_to_keep=None, step_counter=step, checkpoint_interval=interval, **kwargs
    ), step


def saved_steps(manager: CheckpointManager, step: torch.Tensor, steps: list[int], **kwargs: Any) -> list[int]:
    saved = []
    for now in steps:
        step.fill_(now)
        if manager.save(options=FAST, **kwargs) is not None:
            saved.append(now)
    return saved


def test_an_interval_needs_a_counter(tmp_path: Path) -> None:
    """C226."""
    with pytest.raises(ValueError, match="pass a step_counter as well"):
        CheckpointManager(Checkpoint(), tmp_path, max_to_keep=1, checkpoint_interval=2)


def test_an_interval_lies_between_two_saves(tmp_path: Path) -> None:
    """C227, C231."""
    manager, step = with_interval(tmp_path)
    assert manager.checkpoint_interval == 2
    assert saved_steps(manager, step, [0, 1, 2, 2, 3, 5]) == [0, 2, 5]
    assert int(manager.checkpoint.save_counter) == 3


def test_the_interval_may_be_overruled_but_a_step_is_saved_once(tmp_path: Path) -> None:
    """C228."""
    manager, step = with_interval(tmp_path)
    assert saved_steps(manager, step, [0, 1, 1, 2], check_interval=False) == [0, 1, 2]


def test_the_interval_counts_from_the_last_step_that_is_given(tmp_path: Path) -> None:
    """C229."""
    manager, step = with_interval(tmp_path, last_checkpoint_step=1)
    assert saved_steps(manager, step, [1, 2, 3, 4, 5]) == [3, 5]


def test_the_restored_step_counts_as_saved(tmp_path: Path) -> None:
    """C230."""
    manager, step = with_interval(tmp_path)
    assert saved_steps(manager, step, [3]) == [3]
    manager, step = with_interval(tmp_path)
    manager.restore_or_initialize()
    assert int(step) == 3
    assert saved_steps(manager, step, [3, 4, 5]) == [5]


def test_a_step_whose_save_failed_does_not_count_as_saved(tmp_path: Path) -> None:
    """TensorFlow would refuse to save it again."""
    step = torch.tensor(0)
    checkpoint = Checkpoint(step=step)
    manager = CheckpointManager(checkpoint, tmp_path, max_to_keep=None, step_counter=step, checkpoint_interval=2)
    with pytest.raises(RuntimeError, match="refused"):
        manager.save(options=CheckpointOptions(experimental_write_callbacks=[failing("refused")]))
    assert manager.save() == str(tmp_path / "ckpt-2")


@pytest.mark.parametrize("counter", [lambda: 4, 4, np.int32(4), torch.tensor(4.0), lambda: torch.tensor([4])])
def test_a_counter_is_whatever_gives_a_whole_number(tmp_path: Path, counter: Any) -> None:
    manager = CheckpointManager(Checkpoint(), tmp_path, step_counter=counter, checkpoint_interval=1)
    assert manager.save(options=FAST) is not None
    assert manager.save(options=FAST) is None
    assert manager.records[0].step == 4


@pytest.mark.parametrize("counter", [1.5, torch.tensor(float("nan")), float("inf"), lambda: "many"])
def test_a_counter_that_gives_no_whole_number_is_refused(tmp_path: Path, counter: Any) -> None:
    manager = CheckpointManager(Checkpoint(), tmp_path, step_counter=counter)
    with pytest.raises(ValueError, match="The step counter must give a whole number, not"):
        manager.save()
    assert names_in(tmp_path) == []


# ------------------------------------------------------------------------------------------------- pruning


def test_files_that_somebody_else_removed_are_no_matter(tmp_path: Path) -> None:
    """C233."""
    manager = CheckpointManager(Checkpoint(), tmp_path, max_to_keep=2)
    save_all(manager, 2)
    (tmp_path / "ckpt-1.index").unlink()
    save_all(manager, 1)
    for path in tmp_path.glob("ckpt-2.*"):
        path.unlink()
    save_all(manager, 1)
    assert base(manager.checkpoints) == ["ckpt-3", "ckpt-4"]
    assert not list(tmp_path.glob("ckpt-[12].*"))


def test_only_files_of_that_very_checkpoint_are_deleted(tmp_path: Path) -> None:
    """C234."""
    others = ["ckpt-10.index", "ckpt-1.old.index", "ckpt-1.txt", "ckpt-1", "ckpt-1.data-00000-of-00001.copy"]
    others += ["ckpt-1.data-x", "xckpt-1.index", "ckpt-1.meta", "ckpt-1.index.html", "ckpt-11.data-00000-of-00001"]
    for name in others:
        (tmp_path / name).touch()
    manager = CheckpointManager(Checkpoint(), tmp_path, max_to_keep=1)
    save_all(manager, 1)
    (tmp_path / "ckpt-1.data-00001-of-00002").touch()
    save_all(manager, 1)
    assert names_in(tmp_path) == sorted([*others, "checkpoint", "ckpt-2.data-00000-of-00001", "ckpt-2.index"])


def test_a_replacement_that_was_interrupted_is_deleted_as_well(tmp_path: Path) -> None:
    manager = CheckpointManager(Checkpoint(), tmp_path, max_to_keep=1)
    save_all(manager, 1)
    for name in ("index", "data-00000-of-00001"):
        shutil.copy(tmp_path / f"ckpt-1.{name}", tmp_path / f"ckpt-1.{name}.next")
    save_all(manager, 1)
    assert not list(tmp_path.glob("ckpt-1.*"))


def test_files_are_deleted_after_the_state_file_is_written_and_indexes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C235."""
    steps: list[object] = []
    manager = CheckpointManager(Checkpoint(), tmp_path, max_to_keep=1)
    save_all(manager, 1)
    put, remove = LocalStorage.put, LocalStorage.remove

    def logging_put(storage: LocalStorage, path: str, data: bytes) -> None:
        put(storage, path, data)
        state = get_checkpoint_state(tmp_path)
        assert state is not None
        steps.append((base([state.model_checkpoint_path]), base(list(state.all_model_checkpoint_paths))))
        assert Path(state.model_checkpoint_path + ".index").exists()

    def logging_remove(storage: LocalStorage, path: str) -> None:
        steps.append(os.path.basename(path))
        remove(storage, path)

    monkeypatch.setattr(LocalStorage, "put", logging_put)
    monkeypatch.setattr(LocalStorage, "remove", logging_remove)
    save_all(manager, 1)
    assert steps == [
        (["ckpt-2"], ["ckpt-1", "ckpt-2"]),
        "ckpt-1.index",
        "ckpt-1.data-00000-of-00001",
        (["ckpt-2"], ["ckpt-2"]),
    ]


def test_a_file_that_cannot_be_deleted_is_an_error_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = CheckpointManager(Checkpoint(), tmp_path, max_to_keep=1)
    save_all(manager, 1)

    def refuse(storage: LocalStorage, path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "remove", refuse)
        with pytest.raises(PermissionError, match=r"ckpt-1\.index"):
            manager.save(options=FAST)
    assert manager.latest_checkpoint == latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-2")
    assert base(manager.checkpoints) == ["ckpt-1", "ckpt-2"]
    save_all(manager, 1)
    assert base(manager.checkpoints) == ["ckpt-3"]
    assert not list(tmp_path.glob("ckpt-[12].*"))


# ------------------------------------------------------------------------------------------------- failures, callbacks


def failing(text: str) -> Callable[[], None]:
    def fail() -> None:
        raise RuntimeError(text)

    return fail


class Unsaveable:
    """Fails when it is saved."""

    def state_dict(self) -> dict[str, object]:
        return {"x": object()}

    def load_state_dict(self, state: dict[str, object]) -> None: ...


def test_a_save_that_fails_leaves_lists_and_files_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C236."""
    checkpoint = Checkpoint()
    manager = CheckpointManager(checkpoint, tmp_path, max_to_keep=1)
    path = manager.save(options=FAST)
    before = names_in(tmp_path), (tmp_path / "checkpoint").read_bytes()
    checkpoint.bad = Unsaveable()
    with pytest.raises(TypeError):
        manager.save(options=FAST)
    assert (names_in(tmp_path), (tmp_path / "checkpoint").read_bytes()) == before
    del checkpoint.bad

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "put", lambda *_: failing("no space")())
        with pytest.raises(RuntimeError, match="no space"):
            manager.save(options=FAST)
    assert (tmp_path / "checkpoint").read_bytes() == before[1]
    assert (manager.checkpoints, manager.latest_checkpoint) == ([path], path)
    assert manager.save(options=FAST) == str(tmp_path / "ckpt-4")


def test_callbacks_run_before_the_bookkeeping_and_options_are_not_changed(tmp_path: Path) -> None:
    """C238."""
    seen: list[object] = []

    def callback(path: str) -> None:
        seen.append((path, Path(path + ".index").exists(), latest_checkpoint(tmp_path), manager.latest_checkpoint))

    options = CheckpointOptions(durable=False, experimental_write_callbacks=[callback])
    manager = CheckpointManager(Checkpoint(), tmp_path, max_to_keep=1)
    path = manager.save(options=options)
    assert seen == [(path, True, None, None)]
    assert options == CheckpointOptions(durable=False, experimental_write_callbacks=[callback])
    manager.save(options=options)
    assert seen[1] == (manager.latest_checkpoint, True, path, path)


# ------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("number", [0, -1])
def test_a_number_to_keep_that_is_not_positive_is_refused(tmp_path: Path, number: int) -> None:
    """C212."""
    with pytest.raises(ValueError, match=rf"max_to_keep \(None keeps all\) must be at least 1, but is {number}"):
        CheckpointManager(Checkpoint(), tmp_path, max_to_keep=number)


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"max_to_keep": 1.5}, TypeError, "max_to_keep .* must be an integer, not 1.5"),
        ({"keep_checkpoint_every_n_hours": -1}, ValueError, "must not be negative, but is -1"),
        ({"keep_checkpoint_every_n_hours": float("nan")}, ValueError, "must not be negative, but is nan"),
        ({"checkpoint_interval": -1, "step_counter": 1}, ValueError, "checkpoint_interval must be at least 0"),
        ({"checkpoint_interval": 0.5, "step_counter": 1}, TypeError, "checkpoint_interval must be an integer"),
    ],
)
def test_arguments_out_of_range_are_refused(
    tmp_path: Path, kwargs: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        CheckpointManager(Checkpoint(), tmp_path, **kwargs)


def test_something_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="checkpoint must be a Checkpoint, not a Linear"):
        CheckpointManager(torch.nn.Linear(1, 1), tmp_path)  # type: ignore[arg-type]


def test_a_state_file_that_names_no_checkpoint_stops_the_manager(tmp_path: Path) -> None:
    """C253."""
    (tmp_path / "checkpoint").touch()
    with pytest.raises(ValueError, match="names no checkpoint"):
        CheckpointManager(Checkpoint(), tmp_path, max_to_keep=1)


def test_a_state_file_that_cannot_be_understood_counts_as_absent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """C252."""
    (tmp_path / "checkpoint").write_text("nonsense")
    manager = CheckpointManager(Checkpoint(), tmp_path, max_to_keep=1, clock=FakeClock())
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert (manager.checkpoints, manager.restore_or_initialize()) == ([], None)
    assert manager.save() == latest_checkpoint(tmp_path)


def test_a_latest_checkpoint_that_is_gone_with_all_others_is_no_reason_to_start_again(tmp_path: Path) -> None:
    manager = CheckpointManager(Checkpoint(), tmp_path, max_to_keep=1, init_fn=pytest.fail)
    save_all(manager, 1)
    for path in tmp_path.glob("ckpt-1.*"):
        path.unlink()
    assert manager.latest_checkpoint == str(tmp_path / "ckpt-1")
    with pytest.raises(CheckpointNotFoundError):
        manager.restore_or_initialize()
