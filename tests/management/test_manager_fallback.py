"""Going back to an older checkpoint where the newest is damaged or gone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import X

from torch_trackckpt import Checkpoint, CheckpointManager, CheckpointOptions, CheckpointReader, latest_checkpoint
from torch_trackckpt.errors import CheckpointNotFoundError, DataLossError, MismatchError, RestoreError
from torch_trackckpt.restore import assign

Damage = Callable[[str, str], None]
FAST = CheckpointOptions(durable=False)


class Run:
    """Three checkpoints, whose value `x` is their number, and which hold what the program had then."""

    def __init__(self, directory: Path, max_to_keep: int | None = None) -> None:
        self.x = torch.zeros(1000)
        self.checkpoint = Checkpoint(x=self.x)
        self.manager = CheckpointManager(self.checkpoint, directory, max_to_keep, init_fn=pytest.fail)

    def save(self) -> str:
        self.x += 1
        path = self.manager.save(options=FAST)
        assert path is not None
        return path

    def restart(self, max_to_keep: int | None = None) -> None:
        self.x.zero_()
        self.manager = CheckpointManager(self.checkpoint, self.manager.directory, max_to_keep, init_fn=pytest.fail)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path)
    for _ in range(3):
        made.save()
    made.restart()
    return made


def remove(prefix: str, pattern: str) -> None:
    for path in Path(prefix).parent.glob(Path(prefix).name + pattern):
        path.unlink()


def cut(prefix: str, name: str) -> None:
    path = Path(f"{prefix}.{name}")
    path.write_bytes(path.read_bytes()[:-1])


def the_warning(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("torch_trackckpt", logging.WARNING)
    return record.getMessage()


WAYS: dict[str, tuple[Callable[[str], None], str]] = {
    "index is gone": (lambda prefix: remove(prefix, ".index"), "There is no checkpoint at"),
    "data is gone": (lambda prefix: remove(prefix, ".data*"), "data-00000-of-00001"),
    "all is gone": (lambda prefix: remove(prefix, ".*"), "There is no checkpoint at"),
    "index is cut": (lambda prefix: cut(prefix, "index"), ".index"),
    "data is cut": (lambda prefix: cut(prefix, "data-00000-of-00001"), "data-00000-of-00001"),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_next_older_one_is_restored_and_the_log_says_why(
    run: Run, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    *_, second, third = run.manager.checkpoints
    spoil, reason = WAYS[way]
    spoil(third)

    assert run.manager.restore_or_initialize() == second

    assert torch.equal(run.x, torch.full((1000,), 2.0))
    text = the_warning(caplog)
    assert text.startswith(f"{second!r} is taken instead of newer checkpoints that cannot be used: {third!r}: ")
    assert reason in text


@pytest.mark.parametrize("way", WAYS)
def test_the_latest_that_is_verified_is_the_next_older_one(
    run: Run, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    *_, second, third = run.manager.checkpoints
    directory = run.manager.directory
    assert latest_checkpoint(directory, verify=True) == third
    assert not caplog.records
    spoil, reason = WAYS[way]
    spoil(third)
    assert latest_checkpoint(directory, verify=True) == second
    assert f"{third!r}: " in the_warning(caplog)
    assert reason in caplog.text


def test_a_flipped_bit_is_enough(run: Run, damage: Damage, caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = run.manager.checkpoints
    damage(third, X)
    damage(second, X)
    assert latest_checkpoint(run.manager.directory) == third
    assert latest_checkpoint(run.manager.directory, verify=True) == first
    assert run.manager.restore_or_initialize() == first
    assert torch.equal(run.x, torch.full((1000,), 1.0))
    for record in caplog.records:
        assert record.getMessage().index(third) < record.getMessage().index(f"; {second!r}: ")
    assert len(caplog.records) == 2


def test_training_goes_on_from_the_older_one_and_replaces_the_damaged(run: Run, damage: Damage) -> None:
    third = run.manager.checkpoints[-1]
    damage(third, X)
    run.manager.restore_or_initialize()
    assert run.save() == third
    CheckpointReader(third).verify()
    assert len(run.manager.checkpoints) == 3


def test_if_none_is_sound_nothing_is_initialized(run: Run, damage: Damage) -> None:
    first, second, third = run.manager.checkpoints
    damage(third, X)
    damage(second, X)
    remove(first, ".*")
    with pytest.raises(DataLossError) as caught:
        run.manager.restore_or_initialize()
    text = str(caught.value)
    assert text.startswith("None of the checkpoints that the state file lists (3) can be used:")
    assert text.index(f"\n{third!r}: ") < text.index(f"\n{second!r}: ") < text.index(f"\n{first!r}: ")
    assert torch.equal(run.x, torch.zeros(1000))
    with pytest.raises(DataLossError, match=r"\(3\) can be used"):
        latest_checkpoint(run.manager.directory, verify=True)


def test_if_all_are_gone_the_error_says_that(run: Run) -> None:
    for path in run.manager.checkpoints:
        remove(path, ".*")
    with pytest.raises(CheckpointNotFoundError, match=r"\(3\) can be used"):
        run.manager.restore_or_initialize()
    with pytest.raises(CheckpointNotFoundError, match=r"\(3\) can be used"):
        latest_checkpoint(run.manager.directory, verify=True)
    assert latest_checkpoint(run.manager.directory) is None


def test_what_was_read_before_the_damage_was_found_is_overwritten(
    run: Run, damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a checkpoint of more than 64 MiB."""
    monkeypatch.setattr(assign, "VERIFIED_BEFORE_BYTES", 0)
    y = torch.tensor(1.0)
    run.checkpoint.y = y
    run.save()
    y.fill_(2)
    run.save()
    sound, damaged = run.manager.checkpoints[-2:]
    damage(damaged, "y/.ATTRIBUTES/VARIABLE_VALUE")
    y.fill_(0)
    with pytest.raises(DataLossError) as caught:
        run.checkpoint.restore(damaged)
    assert caught.value.overwritten == ("(root).x", "(root).save_counter")
    assert torch.equal(run.x, torch.full((1000,), 2.0))
    assert run.manager.restore_or_initialize() == sound
    assert y == 1
    assert torch.equal(run.x, torch.full((1000,), 1.0))


def test_a_value_that_only_the_damaged_one_has_is_not_left_behind_in_silence(
    run: Run, damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.checkpoint.y = torch.ones(())
    path = run.save()
    damage(path, "y/.ATTRIBUTES/VARIABLE_VALUE")

    with monkeypatch.context() as patch:
        patch.setattr(assign, "VERIFIED_BEFORE_BYTES", 0)
        with pytest.raises(DataLossError, match=r"live values had been overwritten .* lacks 1 of its keys.*y/\.ATTR"):
            run.manager.restore_or_initialize()
        assert torch.equal(run.x, torch.full((1000,), 1.0))
        run.checkpoint.y.zero_()
        # Checked before anything changes, it does not matter.
        options = CheckpointOptions(verify="before")
        assert run.manager.restore_or_initialize(options=options) == run.manager.checkpoints[-2]
    assert run.checkpoint.y == 0
    assert torch.equal(run.x, torch.full((1000,), 3.0))


def test_values_that_do_not_fit_are_the_programs_fault(run: Run) -> None:
    other = Checkpoint(x=torch.zeros(7))
    with pytest.raises(MismatchError, match="incompatible tensor"):
        CheckpointManager(other, run.manager.directory, max_to_keep=2).restore_or_initialize()


def test_an_object_that_refuses_its_state_is_no_damage(tmp_path: Path) -> None:
    class Refusing:
        def state_dict(self) -> dict[str, int]:
            return {"a": 1}

        def load_state_dict(self, state: dict[str, int]) -> None:
            raise KeyError("a")

    manager = CheckpointManager(Checkpoint(x=Refusing()), tmp_path, max_to_keep=2)
    manager.save(options=FAST)
    manager.save(options=FAST)
    with pytest.raises(RestoreError):
        manager.restore_or_initialize()


def test_the_list_of_the_state_file_is_gone_through_also_after_the_clock_was_set_back(
    tmp_path: Path, damage: Damage
) -> None:
    run = Run(tmp_path, max_to_keep=5)
    for _ in range(3):
        run.save()
    paths = run.manager.checkpoints
    manager = CheckpointManager(run.checkpoint, tmp_path, max_to_keep=5, clock=lambda: 0.0)
    assert manager.checkpoints == []
    damage(paths[2], X)
    assert manager.restore_or_initialize() == paths[1]


def test_a_moved_checkpoint_is_verified_where_it_is(run: Run, damage: Damage) -> None:
    """The state file has absolute paths that are gone."""
    directory = Path(run.manager.directory)
    text = (directory / "checkpoint").read_text().replace('paths: "', 'paths: "/gone/')
    (directory / "checkpoint").write_text(
        text.replace('model_checkpoint_path: "ckpt', 'model_checkpoint_path: "/gone/ckpt')
    )
    damage(str(directory / "ckpt-3"), X)
    assert latest_checkpoint(directory, verify=True) == str(directory / "ckpt-2")
    run.restart()
    assert run.manager.restore_or_initialize() == str(directory / "ckpt-2")


def test_without_a_state_file_there_is_nothing_to_verify(tmp_path: Path) -> None:
    """C251."""
    assert latest_checkpoint(tmp_path, verify=True) is None
