"""Checkpoints without an object graph: what is attached after the restore, and slot variables."""

import copy
import gc
import weakref
from collections import OrderedDict

import pytest
import torch
from checkpoints import thing
from named_values import assert_all_pass, assert_each_raises, layer, scalar, write_named
from torch import nn

from torch_trackckpt import AutoTrackable, Checkpoint, CheckpointOptions
from torch_trackckpt.errors import MismatchError

# ------------------------------------------------------------------------------------------ what comes late


def test_what_is_attached_later_is_restored_when_it_is_attached(prefix: str) -> None:
    """C334"""
    write_named(prefix, {"x": scalar(1), "weight": scalar(2), "part.inner.z": scalar(3)})
    checkpoint = Checkpoint(x=scalar())
    status = checkpoint.read(prefix)
    checkpoint.net = layer()
    assert checkpoint.net["weight"] == 2
    checkpoint.part = thing(inner=thing())
    checkpoint.part.inner.z = scalar()
    assert checkpoint.part.inner.z == 3
    assert_all_pass(status)
    checkpoint.unknown = scalar(5)
    assert checkpoint.unknown == 5
    assert_each_raises(status, r": \(root\)\.unknown\.")


def test_what_cannot_tell_of_new_parts_is_restored_by_the_assertion(prefix: str) -> None:
    """C334"""
    write_named(prefix, {"weight": scalar(1), "items.1": scalar(2)})
    module, items = nn.ParameterDict(), OrderedDict({"0": AutoTrackable()})
    status = Checkpoint(module=module, items=items).read(prefix)
    module["weight"] = scalar()
    items["1"] = scalar()  # type: ignore[assignment]
    status.assert_consumed()
    assert (module["weight"], items["1"]) == (1, 2)


def test_a_value_is_given_once(prefix: str) -> None:
    write_named(prefix, {"x": scalar(1)})
    checkpoint = Checkpoint(x=scalar())
    status = checkpoint.read(prefix)
    checkpoint.x.fill_(9)
    checkpoint.x = checkpoint.x
    checkpoint.y = AutoTrackable()
    status.assert_consumed()
    status.run_restore_ops()
    assert checkpoint.x == 9


def test_an_object_where_a_restored_one_was_is_another_object(prefix: str) -> None:
    """C334: its place in memory may be the same."""
    write_named(prefix, {"x": torch.ones(2)})
    checkpoint = Checkpoint(x=torch.zeros(2))
    status = checkpoint.read(prefix)
    outcomes = []
    for _ in range(20):
        del checkpoint.x
        checkpoint.x = torch.zeros(2)
        status.assert_consumed()
        outcomes.append(bool(checkpoint.x.all()))
    assert all(outcomes)


def test_a_conflict_of_a_late_object_is_raised_where_it_is_attached(prefix: str) -> None:
    """C086"""
    write_named(prefix, {"x": torch.ones(2)})
    checkpoint = Checkpoint()
    checkpoint.read(prefix)
    with pytest.raises(MismatchError, match=r"\(root\)\.x: received incompatible tensor with shape \[2\]"):
        checkpoint.x = torch.zeros(3)
    checkpoint.x = torch.zeros(2)
    assert torch.equal(checkpoint.x, torch.ones(2))


@pytest.mark.parametrize("with_graph_first", [False, True])
def test_a_later_read_ends_the_wait_of_an_earlier_one(prefix: str, with_graph_first: bool) -> None:
    paths = [
        write_named(prefix + "-names", {"x": scalar(1), "y": scalar(1)}),
        Checkpoint(x=scalar(2), y=scalar(2)).write(prefix),
    ]
    first, second = paths[::-1] if with_graph_first else paths
    checkpoint = Checkpoint()
    checkpoint.read(first)
    checkpoint.read(second)
    checkpoint.x = scalar()
    assert checkpoint.x == (1 if with_graph_first else 2)


def test_an_object_attached_in_inference_mode_is_of_use_outside(prefix: str) -> None:
    module, optimizer = trained(torch.optim.SGD, momentum=0.9)
    slot = torch.full_like(module.weight, 3.0)
    write_named(prefix, {"weight": torch.ones(1, 2), "weight/momentum_buffer": slot})
    checkpoint = Checkpoint(module=module)
    checkpoint.read(prefix)
    with torch.inference_mode():
        checkpoint.optimizer = optimizer
    assert torch.equal(optimizer.state[module.weight]["momentum_buffer"], slot)
    optimizer.step()


def test_a_root_that_is_referenced_weakly_is_not_kept_alive(prefix: str) -> None:
    write_named(prefix, {"x": scalar(1)})
    root = thing(x=scalar())
    checkpoint = Checkpoint(weakref.ref(root))
    status = checkpoint.read(prefix)
    assert root.x == 1
    gone = weakref.ref(root)
    del root, status
    gc.collect()
    assert gone() is None
    with pytest.raises(ReferenceError, match="is gone"):
        checkpoint.read(prefix)


# ---------------------------------------------------------------------------------------------------- slots


def trained(kind: type[torch.optim.Optimizer], **options: object) -> tuple[nn.Linear, torch.optim.Optimizer]:
    module = nn.Linear(2, 1, bias=False)
    optimizer = kind(module.parameters(), lr=0.1, **options)  # type: ignore[call-arg]
    module(torch.ones(2)).sum().backward()
    optimizer.step()
    return module, optimizer


ADAM = {"weight": torch.ones(1, 2), "weight/exp_avg": torch.full((1, 2), 2.0), "weight/exp_avg_sq": torch.ones(1, 2)}


def test_slots_are_restored_under_the_name_of_their_variable(prefix: str) -> None:
    """C334"""
    write_named(prefix, {**ADAM, "weight/step": scalar(7)})
    module, optimizer = trained(torch.optim.Adam)
    assert_all_pass(Checkpoint(module=module, optimizer=optimizer).read(prefix))
    assert torch.equal(optimizer.state[module.weight]["exp_avg"], ADAM["weight/exp_avg"])
    assert torch.equal(optimizer.state[module.weight]["exp_avg_sq"], ADAM["weight/exp_avg_sq"])
    assert optimizer.state[module.weight]["step"] == 7


def test_the_name_map_is_asked_for_slots_by_variable_and_slot(prefix: str) -> None:
    """C338"""
    write_named(prefix, {"weight": torch.ones(1, 2), "w/Momentum": torch.full((1, 2), 2.0)})
    module, optimizer = trained(torch.optim.SGD, momentum=0.9)
    options = CheckpointOptions(name_map={"weight/momentum_buffer": "w/Momentum"})
    assert_all_pass(Checkpoint(module=module, optimizer=optimizer).read(prefix, options))
    assert torch.equal(optimizer.state[module.weight]["momentum_buffer"], torch.full((1, 2), 2.0))


def test_a_missing_slot_is_named_even_where_others_of_its_variable_were_found(prefix: str) -> None:
    """C335"""
    write_named(prefix, ADAM)
    module, optimizer = trained(torch.optim.Adam)
    status = Checkpoint(module=module, optimizer=optimizer).read(prefix)
    assert torch.equal(optimizer.state[module.weight]["exp_avg"], ADAM["weight/exp_avg"])
    assert optimizer.state[module.weight]["step"] == 1
    assert_each_raises(status, r"names: \(root\)\.optimizer's state 'step' for \(root\)\.module\.weight\. ")


def test_slots_that_are_skipped_keep_their_values_and_are_not_asked_for(prefix: str) -> None:
    """C116"""
    write_named(prefix, ADAM)
    module, optimizer = trained(torch.optim.Adam)
    before = optimizer.state[module.weight]["exp_avg"].clone()
    options = CheckpointOptions(experimental_skip_slot_variables=True)
    assert_all_pass(Checkpoint(module=module, optimizer=optimizer).read(prefix, options))
    assert torch.equal(optimizer.state[module.weight]["exp_avg"], before)


def test_an_optimizer_that_has_made_no_step_has_no_slots_to_restore(prefix: str) -> None:
    write_named(prefix, ADAM)
    module = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.Adam(module.parameters())
    assert_all_pass(Checkpoint(module=module, optimizer=optimizer).read(prefix))
    assert not optimizer.state


def test_irregular_state_of_an_optimizer_is_left_alone(prefix: str) -> None:
    module = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.LBFGS(module.parameters())
    optimizer.step(lambda: float((module(torch.ones(2)) ** 2).sum().detach()))
    before = copy.deepcopy(optimizer.state_dict())
    write_named(prefix, {"weight": torch.ones(1, 2)})
    assert_all_pass(Checkpoint(module=module, optimizer=optimizer).read(prefix))
    assert str(optimizer.state_dict()) == str(before)
