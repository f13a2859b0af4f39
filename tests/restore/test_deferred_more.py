"""Values that wait for their objects: several restores, errors, copies and what is kept alive."""

import copy
import gc
import os
import pickle
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from checkpoints import thing
from named_values import full, is_restored, ones, zeros
from torch import nn

from torch_trackckpt import AutoTrackable, Checkpoint
from torch_trackckpt.errors import CheckpointNotFoundError, DataLossError, MismatchError

Damage = Callable[[str, str], None]


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only reference counts free memory."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# ---------------------------------------------------------------------------------------------- several restores


def test_a_later_restore_wins_and_an_earlier_one_supplies_what_it_has_not(prefix: str) -> None:
    """C082"""
    old = Checkpoint(x=full(1.0), y=full(1.0)).write(prefix + "-old")
    new = Checkpoint(x=full(2.0)).write(prefix + "-new")
    checkpoint = Checkpoint()
    checkpoint.read(old)
    checkpoint.read(new)
    checkpoint.x, checkpoint.y = zeros(), zeros()
    assert torch.equal(checkpoint.x, full(2.0))
    assert torch.equal(checkpoint.y, full(1.0))


@pytest.mark.parametrize("old_last", [False, True])
def test_a_shared_part_is_restored_by_whoever_read_last(prefix: str, old_last: bool) -> None:
    """C082"""
    old = Checkpoint(part=thing(x=full(1.0))).write(prefix + "-old")
    new = Checkpoint(part=thing(x=full(2.0))).write(prefix + "-new")
    part = AutoTrackable()
    first, second = Checkpoint(part=part), Checkpoint(part=part)
    if old_last:
        second.read(new)
    first.read(old)
    if not old_last:
        second.read(new)
    part.x = zeros()
    assert torch.equal(part.x, full(1.0 if old_last else 2.0))


def test_restoring_nothing_leaves_what_waits(prefix: str) -> None:
    Checkpoint(x=ones()).write(prefix)
    checkpoint = Checkpoint()
    checkpoint.read(prefix)
    checkpoint.restore(None)
    checkpoint.x = zeros()
    assert is_restored(checkpoint.x)


def test_a_read_that_fails_to_open_leaves_what_waits(prefix: str) -> None:
    Checkpoint(x=ones()).write(prefix)
    checkpoint = Checkpoint()
    checkpoint.read(prefix)
    with pytest.raises(CheckpointNotFoundError):
        checkpoint.read(prefix + "-missing")
    checkpoint.x = zeros()
    assert is_restored(checkpoint.x)


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("late", [torch.zeros(3), torch.zeros(2, dtype=torch.int64)], ids=str)
def test_a_mismatch_is_raised_by_the_assignment_and_nothing_changes(prefix: str, late: torch.Tensor) -> None:
    """C086"""
    Checkpoint(x=ones()).write(prefix)
    checkpoint = Checkpoint()
    checkpoint.read(prefix)
    with pytest.raises(MismatchError, match=r"^1 value of '.*' cannot be restored; nothing has been assigned:\n  .*x"):
        checkpoint.x = late
    assert not late.any()


def test_a_mismatch_does_not_use_the_value_up(prefix: str) -> None:
    """C086"""
    Checkpoint(x=ones()).write(prefix)
    checkpoint = Checkpoint()
    status = checkpoint.read(prefix)
    with pytest.raises(MismatchError):
        checkpoint.x = torch.zeros(3)
    checkpoint.x = zeros()
    assert is_restored(checkpoint.x)
    status.assert_consumed()


def test_what_could_not_be_restored_is_not_attached(prefix: str) -> None:
    """C086, C128"""
    Checkpoint(x=ones()).write(prefix)
    checkpoint = Checkpoint()
    status = checkpoint.read(prefix)
    with pytest.raises(MismatchError):
        checkpoint.x = torch.zeros(3)
    assert not hasattr(checkpoint, "x")
    with pytest.raises(AssertionError, match=r"\(root\)\.x"):
        status.assert_consumed()


def test_damage_is_raised_by_the_assignment_and_nothing_changes(prefix: str, damage: Damage) -> None:
    """C382"""
    Checkpoint(part=thing(x=ones(), y=ones())).write(prefix)
    checkpoint = Checkpoint()
    checkpoint.read(prefix)
    damage(prefix, "part/y/.ATTRIBUTES/VARIABLE_VALUE")
    part = thing(x=zeros(), y=zeros())
    with pytest.raises(DataLossError, match=r"key part/y/"):
        checkpoint.part = part
    assert not part.x.any()
    assert not part.y.any()


def test_files_that_are_gone_are_named_by_the_assignment(prefix: str) -> None:
    """C085"""
    Checkpoint(x=ones()).write(prefix)
    checkpoint = Checkpoint()
    checkpoint.read(prefix)
    os.unlink(f"{prefix}.data-00000-of-00001")
    late = zeros()
    with pytest.raises(CheckpointNotFoundError, match=rf"{prefix}\.data-00000-of-00001"):
        checkpoint.x = late
    assert not late.any()


def test_a_replaced_checkpoint_is_an_error_never_other_values(prefix: str) -> None:
    Checkpoint(x=ones(), y=ones()).write(prefix)
    checkpoint = Checkpoint()
    checkpoint.read(prefix)
    Checkpoint(x=full(5.0), y=full(6.0)).write(prefix)
    late = zeros()
    with pytest.raises(DataLossError):
        checkpoint.x = late
    assert not late.any()


# ------------------------------------------------------------------------------------- copies and references


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))],
    ids=["copy", "deep", "pickle"],
)
def test_nothing_waits_for_the_attributes_of_a_copy(prefix: str, duplicate: Callable[[Checkpoint], Checkpoint]) -> None:
    Checkpoint(x=ones(), a=thing(x=ones())).write(prefix)
    checkpoint = Checkpoint(a=AutoTrackable())
    checkpoint.read(prefix)
    other = duplicate(checkpoint)
    other.x = zeros()
    assert not other.x.any()
    if other.a is not checkpoint.a:
        other.a.x = zeros()
        assert not other.a.x.any()
    checkpoint.x = zeros()
    checkpoint.a.x = zeros()
    assert is_restored(checkpoint.x, checkpoint.a.x)


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))],
    ids=["copy", "deep", "pickle"],
)
def test_a_copy_that_is_read_into_leaves_the_original_waiting(
    prefix: str, duplicate: Callable[[Checkpoint], Checkpoint]
) -> None:
    old = Checkpoint(x=full(1.0)).write(prefix + "-old")
    new = Checkpoint(x=full(2.0)).write(prefix + "-new")
    checkpoint = Checkpoint(y=zeros())
    checkpoint.read(old)
    other = duplicate(checkpoint)
    other.read(new)
    checkpoint.x, other.x = zeros(), zeros()
    assert torch.equal(checkpoint.x, full(1.0))
    assert torch.equal(other.x, full(2.0))


def test_what_waits_needs_neither_the_status_nor_the_caller_s_path(prefix: str) -> None:
    """C084"""
    Checkpoint(a=thing(x=ones())).write(prefix)
    a = AutoTrackable()
    checkpoint = Checkpoint(a=a)
    status = checkpoint.read(prefix)
    del status
    gc.collect()
    a.x = zeros()
    assert is_restored(a.x)


def test_a_root_that_is_referenced_weakly_is_not_kept_alive(prefix: str) -> None:
    Checkpoint(x=ones()).write(prefix)
    root = thing(x=zeros())
    checkpoint = Checkpoint(weakref.ref(root))
    status = checkpoint.read(prefix)
    assert is_restored(root.x)
    gone = weakref.ref(root)
    del root, status
    gc.collect()
    assert gone() is None


@pytest.mark.usefixtures("no_collector")
def test_what_waits_forms_no_cycle(prefix: str) -> None:
    """C089"""
    Checkpoint(net=nn.Linear(1, 1), a=thing(x=ones(), y=ones()), z=ones()).write(prefix)
    net, a = nn.Linear(1, 1), thing(x=zeros())
    checkpoint = Checkpoint(net=net, a=a)
    checkpoint.read(prefix)
    gone = {name: weakref.ref(value) for name, value in {"checkpoint": checkpoint, "net": net, "a": a}.items()}
    del checkpoint, net, a
    assert {name for name, reference in gone.items() if reference() is not None} == set()


def test_an_object_that_was_restored_and_replaced_is_not_kept_alive(prefix: str) -> None:
    Checkpoint(net=nn.Linear(1, 1), y=ones()).write(prefix)
    checkpoint = Checkpoint(net=nn.Linear(1, 1))
    checkpoint.read(prefix)
    gone = weakref.ref(checkpoint.net)
    checkpoint.net = nn.Linear(1, 1)
    gc.collect()
    assert gone() is None


# -------------------------------------------------------------------------------------------- inference mode


def test_a_tensor_that_was_made_and_attached_in_inference_mode_is_restored(prefix: str) -> None:
    """C071"""
    Checkpoint(x=ones(), y=ones()).write(prefix)
    checkpoint = Checkpoint()
    status = checkpoint.read(prefix)
    y = zeros()
    with torch.inference_mode():
        checkpoint.x = zeros()
        checkpoint.y = y
    assert is_restored(checkpoint.x, y)
    assert not y.is_inference()
    status.assert_consumed()


def test_gradients_and_graphs_are_left_as_they_were(prefix: str) -> None:
    """C056"""
    Checkpoint(x=ones()).write(prefix)
    checkpoint = Checkpoint()
    checkpoint.read(prefix)
    x = zeros().requires_grad_()
    checkpoint.x = x
    assert is_restored(x)
    assert x.is_leaf
    assert x.requires_grad
    x.sum().backward()
