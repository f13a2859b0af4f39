"""Values that wait for their objects: what is attached after a restore is restored when it is attached."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import Text, thing
from named_values import full, is_restored, ones, zeros
from torch import nn

import torch_trackckpt.checkpoint
from torch_trackckpt import AutoTrackable, Checkpoint, NoDependency
from torch_trackckpt.errors import MismatchError

GOLDEN = Path(__file__).parent.parent / "golden"


# ---------------------------------------------------------------------------------------------- what is noticed


@pytest.mark.parametrize("call", ["read", "restore"])
def test_an_attribute_of_the_checkpoint_gets_its_value_when_it_is_set(prefix: str, call: str) -> None:
    """C074, C079, C131"""
    path = Checkpoint(x=ones(), y=ones()).save(prefix)
    checkpoint = Checkpoint(y=zeros())
    checkpoint.save_counter  # noqa: B018  makes it
    status = getattr(checkpoint, call)(path)
    with pytest.raises(AssertionError, match=r"Unresolved object .*\(root\)\.x"):
        status.assert_consumed()
    x = full(7.0)
    checkpoint.x = x
    assert checkpoint.x is x
    assert is_restored(x)
    status.assert_consumed()


def test_a_module_is_restored_with_everything_below_it(prefix: str) -> None:
    """C075"""
    saved = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    Checkpoint(net=saved).write(prefix)
    checkpoint = Checkpoint()
    status = checkpoint.read(prefix)
    checkpoint.net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    found = checkpoint.net.state_dict()
    assert [name for name, value in saved.state_dict().items() if not torch.equal(found[name], value)] == []
    status.assert_consumed()


@pytest.mark.parametrize("make", [list, tuple, lambda items: dict(zip("01", items, strict=True))])
def test_a_container_is_restored_with_everything_in_it(prefix: str, make: Callable[[list[object]], object]) -> None:
    Checkpoint(items=[ones(), {"x": [ones()]}]).write(prefix)
    checkpoint = Checkpoint()
    status = checkpoint.read(prefix)
    first, second = zeros(), zeros()
    checkpoint.items = make([first, {"x": [second]}])
    assert is_restored(first, second)
    status.assert_consumed()


def test_an_attribute_of_an_object_below_is_noticed(prefix: str) -> None:
    """C074"""
    Checkpoint(a=[thing(b=thing(x=ones(), y=ones()))]).write(prefix)
    b = thing(y=zeros())
    status = Checkpoint(a=[thing(b=b)]).read(prefix)
    b.x = zeros()
    assert is_restored(b.x, b.y)
    status.assert_consumed()


def test_an_object_that_came_late_is_listened_to(prefix: str) -> None:
    Checkpoint(a=thing(x=ones(), b=thing(y=ones()))).write(prefix)
    checkpoint = Checkpoint()
    status = checkpoint.read(prefix)
    checkpoint.a = thing(x=zeros(), b=thing())
    checkpoint.a.b.y = zeros()
    assert is_restored(checkpoint.a.x, checkpoint.a.b.y)
    status.assert_consumed()


def test_an_object_that_came_late_and_empty_is_listened_to(prefix: str) -> None:
    """C074"""
    Checkpoint(a=thing(b=thing(x=ones()))).write(prefix)
    checkpoint = Checkpoint()
    status = checkpoint.read(prefix)
    checkpoint.a = AutoTrackable()
    checkpoint.a.b = AutoTrackable()
    checkpoint.a.b.x = zeros()
    assert is_restored(checkpoint.a.b.x)
    status.assert_consumed()


def test_an_explicitly_tracked_object_is_noticed(prefix: str) -> None:
    Checkpoint(a=thing(x=ones())).write(prefix)
    checkpoint = Checkpoint(a=thing())
    checkpoint.read(prefix)
    assert is_restored(checkpoint.a._track_trackable(zeros(), "x"))


def test_two_objects_that_hold_each_other_are_both_restored(prefix: str) -> None:
    """C090"""
    first, second = thing(v=ones()), thing(v=full(2.0))
    first.other, second.other = second, first
    Checkpoint(first=first).write(prefix)
    first, second = AutoTrackable(), AutoTrackable()
    status = Checkpoint(first=first).read(prefix)
    first.other, second.other = second, first
    with pytest.raises(AssertionError, match=r"\(root\)\.first\.v"):
        status.assert_consumed()
    first.v, second.v = zeros(), zeros()
    assert is_restored(first.v)
    assert torch.equal(second.v, full(2.0))
    status.assert_consumed()


def test_a_checkpoint_of_a_class_of_its_own_may_make_its_parts_later(prefix: str) -> None:
    """C097"""

    class Trainer(Checkpoint):
        def build(self) -> None:
            self.net = nn.Linear(1, 1)
            self.parts = thing(x=zeros())

    saved = Trainer()
    saved.build()
    with torch.no_grad():
        saved.net.weight.fill_(1.0)
        saved.net.bias.fill_(1.0)
        saved.parts.x.fill_(1.0)
    path = saved.save(prefix)
    trainer = Trainer()
    status = trainer.restore(path)
    trainer.build()
    assert is_restored(trainer.net.weight, trainer.net.bias, trainer.parts.x)
    status.assert_consumed()


def test_children_of_a_root_and_of_its_checkpoint_are_both_noticed(prefix: str) -> None:
    Checkpoint(thing(a=ones()), b=full(2.0)).write(prefix)
    root = AutoTrackable()
    checkpoint = Checkpoint(root)
    status = checkpoint.read(prefix)
    root.a, checkpoint.b = zeros(), zeros()
    assert is_restored(root.a)
    assert torch.equal(checkpoint.b, full(2.0))
    status.assert_consumed()


def test_a_save_counter_that_is_made_after_a_read_has_the_stored_number(prefix: str) -> None:
    """C041: as in TensorFlow, the numbers go on."""
    saved = Checkpoint(x=ones())
    saved.save(prefix)
    path = saved.save(prefix)
    checkpoint = Checkpoint(x=zeros())
    status = checkpoint.read(path)
    assert checkpoint.save(prefix) == f"{prefix}-3"
    status.assert_consumed()


def test_a_python_state_that_comes_late_takes_its_bytes_when_it_comes(prefix: str) -> None:
    """C095"""

    Checkpoint(text=Text("saved")).write(prefix)
    checkpoint = Checkpoint()
    status = checkpoint.read(prefix)
    text = Text("live")
    checkpoint.text = text
    assert text.text == "saved"
    status.assert_consumed()


def test_values_of_a_saved_model_wait_as_well() -> None:
    """C343"""
    checkpoint = Checkpoint()
    status = checkpoint.restore(GOLDEN / "saved_model" / "export")
    checkpoint.w = torch.zeros(1, 2)
    checkpoint.layers = [torch.tensor(0, dtype=torch.int32)]
    assert torch.equal(checkpoint.w, torch.tensor([[1.0, 2.0]]))
    assert checkpoint.layers[0] == 3
    with pytest.raises(AssertionError, match=r"^Found 1 Python objects .*\(root\)\.save_counter\."):
        status.assert_existing_objects_matched()


# ------------------------------------------------------------------------------------------ what is left alone


def test_each_value_is_used_once(prefix: str) -> None:
    """C080"""
    Checkpoint(x=ones()).write(prefix)
    checkpoint = Checkpoint()
    checkpoint.read(prefix)
    checkpoint.x = zeros()
    first = checkpoint.x
    checkpoint.x = zeros()
    assert not checkpoint.x.any()
    first.fill_(5.0)
    checkpoint.x = first
    assert torch.equal(first, full(5.0))


@pytest.mark.parametrize("deleted", [False, True])
def test_what_replaces_a_restored_object_keeps_its_own_value(prefix: str, deleted: bool) -> None:
    """C081"""
    Checkpoint(x=ones()).write(prefix)
    checkpoint = Checkpoint(x=zeros())
    status = checkpoint.read(prefix)
    for _ in range(5):  # one of them will be where the first one was in memory
        if deleted:
            del checkpoint.x
        checkpoint.x = zeros()
        assert not checkpoint.x.any()
        with pytest.raises(AssertionError, match=r"\(root\)\.x"):
            status.assert_existing_objects_matched()


def test_what_is_not_trackable_does_not_use_the_value_up(prefix: str) -> None:
    Checkpoint(x=ones()).write(prefix)
    checkpoint = Checkpoint()
    checkpoint.read(prefix)
    for value in (None, 5, "text", object()):
        checkpoint.x = value
    checkpoint.x = zeros()
    assert is_restored(checkpoint.x)


def test_what_is_no_dependency_is_not_restored(prefix: str) -> None:
    Checkpoint(x=ones()).write(prefix)
    checkpoint = Checkpoint()
    checkpoint.read(prefix)
    checkpoint.x = NoDependency(zeros())
    assert not checkpoint.x.any()


def test_objects_outside_of_the_graph_are_not_restored(prefix: str) -> None:
    """C096"""
    Checkpoint(x=ones(), a=thing(x=ones())).write(prefix)
    Checkpoint(a=AutoTrackable()).read(prefix)
    outside, other = AutoTrackable(), Checkpoint()
    outside.x, other.x = zeros(), zeros()
    assert not outside.x.any()
    assert not other.x.any()


def test_an_object_that_was_taken_out_is_not_restored_for_want_of_its_place(prefix: str) -> None:
    Checkpoint(a=thing(x=ones(), y=ones())).write(prefix)
    checkpoint = Checkpoint(a=thing(y=zeros()))
    status = checkpoint.read(prefix)
    checkpoint.a = thing(y=zeros())
    checkpoint.a.x = zeros()
    assert not checkpoint.a.x.any()
    assert not checkpoint.a.y.any()
    with pytest.raises(AssertionError, match=r"\(root\)\.a\.y, \(root\)\.a\.x"):
        status.assert_existing_objects_matched()


def test_nothing_is_walked_or_read_where_nothing_waits_under_a_name(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C087"""
    Checkpoint(x=ones(), y=ones()).write(prefix)
    checkpoint = Checkpoint(x=zeros())
    checkpoint.read(prefix)
    for file in Path(prefix).parent.iterdir():
        file.unlink()

    def refuse(*arguments: object) -> object:
        raise AssertionError("walked")

    monkeypatch.setattr(torch_trackckpt.checkpoint, "discover", refuse)
    checkpoint.other = nn.Linear(1, 1)
    checkpoint.x = zeros()
    checkpoint.note = "text"


def test_an_attribute_of_another_name_changes_nothing(prefix: str) -> None:
    """A slot that found no place at the restore does not overwrite what has been trained since."""

    class Lazy(torch.optim.Optimizer):
        def __init__(self, parameters: list[torch.Tensor]) -> None:
            super().__init__(parameters, {"lr": 0.1})

        def step(self, closure: object = None) -> None:  # type: ignore[override]
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter] = {"m": torch.full_like(parameter, 9.0), "v": torch.full_like(parameter, 9.0)}

    w = torch.zeros(2, 2, requires_grad=True)
    optimizer = Lazy([w])
    checkpoint = Checkpoint(model=thing(w=w), optimizer=optimizer)
    checkpoint.restore(GOLDEN / "obj_adam_slots" / "ckpt-1")
    assert w.any()
    assert not optimizer.state
    optimizer.step()
    checkpoint.note = "text"
    checkpoint.other = zeros()
    assert torch.equal(optimizer.state[w]["m"], torch.full((2, 2), 9.0))


def test_a_restore_that_fails_leaves_the_wait_of_the_one_before(prefix: str) -> None:
    """C079"""
    path = Checkpoint(x=ones(), y=ones()).write(prefix)
    checkpoint = Checkpoint(y=zeros())
    checkpoint.read(path)
    other = Checkpoint(y=torch.ones(7)).write(prefix + "-other")
    with pytest.raises(MismatchError):
        checkpoint.read(other)
    checkpoint.x = zeros()
    assert is_restored(checkpoint.x)
