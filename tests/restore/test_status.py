"""What a restore says of what it matched."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from torch_trackckpt import AutoTrackable, Checkpoint, CheckpointOptions
from torch_trackckpt.restore.status import LoadStatus


def zero() -> torch.Tensor:
    return torch.tensor(0.0)


def thing(**children: object) -> AutoTrackable:
    made = AutoTrackable()
    for name, child in children.items():
        setattr(made, name, child)
    return made


# --------------------------------------------------------------------------------------------- matched


def test_when_everything_matched_each_assertion_returns_the_status(prefix: str) -> None:
    """C126"""
    path = Checkpoint(x=zero()).save(prefix)
    status = Checkpoint(x=zero()).restore(path)
    assert status.assert_consumed() is status
    assert status.assert_existing_objects_matched() is status
    assert status.assert_nontrivial_match() is status


def test_a_value_of_the_file_without_a_live_object_is_named_by_assert_consumed_alone(prefix: str) -> None:
    """C127"""
    Checkpoint(a=thing(b=zero(), c=zero())).write(prefix)
    status = Checkpoint(a=thing(c=zero())).read(prefix)
    status.assert_existing_objects_matched()
    with pytest.raises(AssertionError, match=rf"^Unresolved object in checkpoint '{prefix}': \(root\)\.a\.b\. "):
        status.assert_consumed()


def test_a_live_object_without_a_value_in_the_file_is_named_by_both(prefix: str) -> None:
    """C128"""
    Checkpoint(x=zero()).write(prefix)
    status = Checkpoint(x=zero(), y=zero()).read(prefix)
    for check in (status.assert_consumed, status.assert_existing_objects_matched):
        with pytest.raises(AssertionError, match=r"Found 1 Python objects .* '.*ckpt': \(root\)\.y\."):
            check()


def test_of_many_live_objects_without_values_ten_are_named_and_all_counted(prefix: str) -> None:
    """C128, C143"""
    Checkpoint(x=zero()).write(prefix)
    status = Checkpoint(x=zero(), more=[zero() for _ in range(25)]).read(prefix)
    with pytest.raises(AssertionError) as caught:
        status.assert_existing_objects_matched()
    message = str(caught.value)
    assert message.startswith("Found 25 Python objects that were not bound to checkpointed values")
    assert message.count("(root).more.") == 10
    assert "and 15 more" in message


def test_of_many_values_without_live_objects_ten_are_named(prefix: str) -> None:
    """C143"""
    Checkpoint(x=zero(), more=[zero() for _ in range(25)]).write(prefix)
    with pytest.raises(AssertionError) as caught:
        Checkpoint(x=zero()).read(prefix).assert_consumed()
    assert str(caught.value).count("(root).more.") == 10
    assert "and 15 more" in str(caught.value)


def test_a_stored_value_that_the_live_object_does_not_know_is_named_by_assert_consumed(prefix: str) -> None:
    """C133"""

    class Text:
        def serialize(self) -> str:
            return ""

        def deserialize(self, string_value: bytes) -> None: ...

    Checkpoint(x=Text()).write(prefix)
    status = Checkpoint(x=thing()).read(prefix)
    status.assert_existing_objects_matched()
    with pytest.raises(AssertionError, match=r"^Unused attributes in checkpoint '.*\(root\)\.x: py_state"):
        status.assert_consumed()


def test_a_value_of_another_kind_under_the_right_name_is_no_value(prefix: str) -> None:
    """C128, C163"""
    Checkpoint(x=thing(y=zero())).write(prefix)
    status = Checkpoint(x=zero()).read(prefix)
    with pytest.raises(AssertionError, match=rf"^Object \(root\)\.x not assigned a value from checkpoint '{prefix}'"):
        status.assert_existing_objects_matched()


def test_both_sides_of_a_mismatch_are_named_in_one_error(prefix: str) -> None:
    """C127, C128: a renamed child is seen at once."""
    Checkpoint(old=zero()).write(prefix)
    with pytest.raises(AssertionError) as caught:
        Checkpoint(new=zero()).read(prefix).assert_consumed()
    assert "(root).old" in str(caught.value)
    assert "(root).new" in str(caught.value)


def test_nothing_but_the_root_matched_is_not_a_nontrivial_match(prefix: str) -> None:
    """C129"""
    Checkpoint(x=zero()).write(prefix)
    with pytest.raises(
        AssertionError,
        match=r"^Nothing except the root object matched a checkpointed value of '.*'.*\(root\)\.x; .*\(root\)\.y",
    ):
        Checkpoint(y=zero()).read(prefix).assert_nontrivial_match()


def test_a_program_without_dependencies_has_nothing_to_load(prefix: str) -> None:
    """C129"""
    Checkpoint(x=zero()).write(prefix)
    status = Checkpoint().read(prefix)
    with pytest.raises(AssertionError, match=r"^Nothing to load\. No dependencies have been added to \(root\) yet\.$"):
        status.assert_nontrivial_match()


def test_the_restored_counter_is_a_nontrivial_match(prefix: str) -> None:
    """C130"""
    path = Checkpoint(x=zero()).save(prefix)
    Checkpoint(y=zero()).restore(path).assert_nontrivial_match()


def test_live_objects_are_looked_at_when_the_assertion_is_called(prefix: str) -> None:
    """C131"""
    Checkpoint(x=zero()).write(prefix)
    checkpoint = Checkpoint(x=zero())
    status = checkpoint.read(prefix)
    status.assert_consumed()
    checkpoint.y = zero()
    with pytest.raises(AssertionError, match=r"\(root\)\.y"):
        status.assert_consumed()
    del checkpoint.y
    status.assert_consumed()


def test_one_status_fails_and_passes_as_objects_come_and_go(prefix: str) -> None:
    """C131"""
    Checkpoint(a=thing(x=zero(), y=zero())).write(prefix)
    checkpoint = Checkpoint()
    status = checkpoint.read(prefix)
    with pytest.raises(AssertionError, match=r"\(root\)\.a\.x, \(root\)\.a\.y\."):
        status.assert_consumed()
    checkpoint.a = thing(x=zero())
    with pytest.raises(AssertionError, match=r": \(root\)\.a\.y\."):
        status.assert_consumed()
    checkpoint.a.y = zero()
    assert status.assert_consumed() is status
    checkpoint.a.z = zero()
    with pytest.raises(AssertionError, match=r": \(root\)\.a\.z\."):
        status.assert_existing_objects_matched()


def test_that_something_came_unnoticed_is_said_by_the_assertion(prefix: str) -> None:
    """C131: an OrderedDict tells nobody."""
    Checkpoint(items=[zero(), zero()]).write(prefix)
    items = OrderedDict({"0": zero()})
    status = Checkpoint(items=items).read(prefix).expect_partial()
    with pytest.raises(AssertionError) as caught:
        status.assert_consumed()
    assert "run_restore_ops" not in str(caught.value)
    items["1"] = zero()
    with pytest.raises(AssertionError, match=r"What has come since .* run_restore_ops\(\)\.$"):
        status.assert_consumed()
    status.run_restore_ops()
    status.assert_consumed()


def test_a_status_outlives_the_checkpoint_object(prefix: str) -> None:
    """C132"""
    x = zero()
    Checkpoint(x=x).write(prefix)
    checkpoint = Checkpoint(x=x)
    status = checkpoint.read(prefix)
    del checkpoint
    status.assert_consumed()
    status.assert_existing_objects_matched()
    status.assert_nontrivial_match()
    assert str(status).endswith(": 1 value restored")


def test_a_status_outlives_the_checkpoint_object_while_parts_of_the_program_come(prefix: str) -> None:
    """C132"""
    Checkpoint(a=thing(x=zero(), y=zero())).write(prefix)
    a = thing(x=zero())
    status = Checkpoint(a=a).read(prefix)
    with pytest.raises(AssertionError, match=r"\(root\)\.a\.y"):
        status.assert_consumed()
    a.y = zero()
    status.assert_consumed()


def test_tensors_on_the_meta_device_are_matched_but_not_restored(prefix: str) -> None:
    Checkpoint(x=zero()).write(prefix)
    status = Checkpoint(x=torch.empty((), device="meta")).read(prefix)
    status.assert_nontrivial_match()
    for check in (status.assert_consumed, status.assert_existing_objects_matched):
        with pytest.raises(
            AssertionError, match=r"^1 tensor of the meta device waits .* \(root\)\.x\. Call run_restore"
        ):
            check()
    status.run_restore_ops()
    status.assert_consumed()


def test_one_live_object_where_the_file_has_two_containers_is_accepted(prefix: str) -> None:
    """C135"""
    Checkpoint(a=thing(x=torch.tensor(1.0)), b=thing(y=torch.tensor(2.0))).write(prefix)
    both = thing(x=zero(), y=zero())
    Checkpoint(a=both, b=both).read(prefix).assert_consumed()
    assert (both.x.item(), both.y.item()) == (1.0, 2.0)


def test_one_live_tensor_where_the_file_has_two_is_accepted_and_the_first_decides(prefix: str) -> None:
    """C136"""
    Checkpoint(a=thing(x=torch.tensor(1.0)), z=torch.tensor(2.0)).write(prefix)
    x = zero()
    Checkpoint(a=thing(x=x), z=x).read(prefix).assert_consumed()
    assert x.item() == 2.0


def test_containers_without_values_are_ignored_on_either_side(prefix: str) -> None:
    """C137, C138"""
    Checkpoint(x=zero(), empty=[], nested={"a": thing()}).write(prefix)
    status = Checkpoint(x=zero(), numbers={"a": 1, "b": [2]}, other=[]).read(prefix)
    status.assert_consumed()
    assert status.report().is_complete


def test_two_live_objects_where_one_was_saved_are_reported(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """C134"""
    shared = torch.tensor(1.0)
    Checkpoint(a=shared, b=shared).write(prefix)
    a, b = zero(), zero()
    status = Checkpoint(a=a, b=b).read(prefix)
    assert (a.item(), b.item()) == (1.0, 0.0)
    for check in (status.assert_consumed, status.assert_existing_objects_matched):
        with pytest.raises(AssertionError, match=r"\(root\)\.b"):
            check()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_later_restore_does_not_unmatch_an_earlier_one(prefix: str) -> None:
    """C139"""
    checkpoint = Checkpoint(x=zero())
    path = checkpoint.save(prefix)
    status = checkpoint.restore(path)
    checkpoint.restore(path).assert_consumed()
    status.assert_consumed()


def test_what_came_late_and_took_newer_values_satisfies_both_restores(prefix: str) -> None:
    """C139"""
    old = Checkpoint(x=torch.tensor(1.0), y=torch.tensor(1.0)).write(prefix + "-old")
    new = Checkpoint(x=torch.tensor(2.0), y=torch.tensor(2.0)).write(prefix + "-new")
    checkpoint = Checkpoint(x=zero())
    first, second = checkpoint.read(old), checkpoint.read(new)
    checkpoint.y = zero()
    first.assert_consumed()
    second.assert_consumed()
    assert (checkpoint.x.item(), checkpoint.y.item()) == (2.0, 2.0)


# ----------------------------------------------------------------------------------------------- slots


def trained() -> tuple[nn.Linear, torch.optim.Optimizer]:
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_stored_slots_without_a_live_optimizer_are_named_after_optimizer_and_variable(prefix: str) -> None:
    """C118"""
    model, optimizer = trained()
    Checkpoint(model=model, optimizer=optimizer).write(prefix)
    status = Checkpoint(model=model).read(prefix)
    with pytest.raises(
        AssertionError, match=r"\(root\)\.optimizer's state 'momentum_buffer' for \(root\)\.model\.weight"
    ):
        status.assert_consumed()


def test_live_slots_without_a_stored_value_are_named_likewise(prefix: str) -> None:
    """C112, C113"""
    model, optimizer = trained()
    Checkpoint(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)).write(prefix)
    status = Checkpoint(model=model, optimizer=optimizer).read(prefix)
    with pytest.raises(
        AssertionError, match=r"\(root\)\.optimizer's state 'momentum_buffer' for \(root\)\.model\.weight"
    ):
        status.assert_existing_objects_matched()


def test_skipped_slots_keep_their_values_and_are_not_asked_for(prefix: str) -> None:
    """C116"""
    model, optimizer = trained()
    Checkpoint(model=model, optimizer=optimizer).write(prefix)
    slot = optimizer.state[model.weight]["momentum_buffer"]
    slot.fill_(9.0)
    options = CheckpointOptions(experimental_skip_slot_variables=True)
    Checkpoint(model=model, optimizer=optimizer).read(prefix, options).assert_consumed()
    assert slot.item() == 9.0


# --------------------------------------------------------------------------------- the harmless methods


def test_expecting_a_partial_match_returns_the_status_any_number_of_times(prefix: str) -> None:
    """C140"""
    Checkpoint(x=zero(), y=zero()).write(prefix)
    status = Checkpoint(x=zero()).read(prefix)
    assert status.expect_partial().expect_partial() is status


def test_running_restore_ops_does_nothing_where_a_file_was_given(prefix: str) -> None:
    """C141"""
    x = torch.tensor(1.0)
    Checkpoint(x=x).write(prefix)
    status = Checkpoint(x=x).read(prefix)
    x.fill_(5.0)
    assert status.run_restore_ops() is None
    assert status.initialize_or_restore() is None
    assert x.item() == 5.0


# --------------------------------------------------------------------------------------- restore(None)


@pytest.mark.parametrize(
    "check",
    [
        LoadStatus.assert_consumed,
        LoadStatus.assert_existing_objects_matched,
        LoadStatus.assert_nontrivial_match,
        LoadStatus.run_restore_ops,
    ],
    ids=lambda function: function.__name__,
)
def test_without_a_path_nothing_was_restored_as_every_assertion_says(check: Callable[[LoadStatus], object]) -> None:
    """C060, C142"""
    status = Checkpoint(x=zero()).restore(None)
    with pytest.raises(
        AssertionError, match=r"^No checkpoint specified \(save_path=None\); nothing is being restored\.$"
    ):
        getattr(status, check.__name__)()


def test_without_a_path_the_harmless_methods_are_harmless_and_the_counter_is_made(tmp_path: Path) -> None:
    """C060"""
    x = torch.tensor(3.0)
    checkpoint = Checkpoint(x=x)
    status = checkpoint.restore(None)
    assert status.expect_partial() is status
    assert status.initialize_or_restore() is None
    assert x.item() == 3.0
    assert "save_counter" in checkpoint._trackable_children()
