"""Optimizer state that no optimizer wrote: refused by name, and nothing changes."""

import copy
import json
from collections.abc import Mapping

import pytest
import torch
from adapters.optimizers import adam, everything, is_same, linear, momentum, train, trained
from torch import optim

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import (
    DataLossError,
    MismatchError,
    TrackckptError,
    UnsupportedFormatError,
)
from torch_trackckpt.trackable import SlotOwner

# Crafted and hostile content.


class Raw:
    """Bytes in the place of a python state."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    def serialize(self) -> bytes:
        return self.text

    def deserialize(self, value: bytes) -> None:
        raise AssertionError("never restored")


class Forged(SlotOwner):
    """Saves like an optimizer, with content of the test's choice."""

    def __init__(
        self, slots: Mapping[str, list[tuple[torch.Tensor, torch.Tensor]]] | None = None, **children: bytes
    ) -> None:
        self._slots = slots or {}
        self._children = {name: Raw(text) for name, text in children.items()}

    def _trackable_children(self) -> Mapping[str, object]:
        return self._children

    def _slot_variables(self) -> Mapping[str, list[tuple[torch.Tensor, torch.Tensor]]]:
        return self._slots

    def _variables_with_state(self) -> list[torch.Tensor]:
        return []


GROUPS = {
    "not JSON": b"{",
    "a list": b"[]",
    "a string": b'"SGD"',
    "no groups": b'{"kind":"SGD"}',
    "no kind": b'{"groups":[]}',
    "groups in a dict": b'{"kind":"SGD","groups":{}}',
    "a group that is a number": b'{"kind":"SGD","groups":[5]}',
    "a group without members": b'{"kind":"SGD","groups":[{"lr":1.0}]}',
    "members that are a number": b'{"kind":"SGD","groups":[{"params":5}]}',
    "members that are text": b'{"kind":"SGD","groups":[{"params":"model/weight"}]}',
    "a member that is a number": b'{"kind":"SGD","groups":[{"params":[5]}]}',
    "a member that is a list": b'{"kind":"SGD","groups":[{"params":[["model/weight"]]}]}',
    "a member that is a dict": b'{"kind":"SGD","groups":[{"params":[{"a":1}]}]}',
    "a name that is a number": b'{"kind":"Other","groups":[{"$":"dict","v":[[5,1],["params",[]],["x",1]]}]}',
    "a kind that is a list": b'{"kind":["SGD"],"groups":[{"params":[]}]}',
    "another kind": b'{"kind":"os.system","groups":[{"params":["model/weight","model/bias"],"command":"true"}]}',
    "an unknown tag": b'{"kind":"SGD","groups":[{"$":"pickle","v":[]}]}',
    "a tensor that is not there": b'{"kind":"SGD","groups":[{"params":["model/weight"],"lr":{"$":"tensor","v":"0"}}]}',
}


@pytest.mark.parametrize("text", GROUPS.values(), ids=GROUPS)
def test_groups_that_no_optimizer_wrote_are_refused_and_nothing_changes(text: bytes, prefix: str) -> None:
    """C122, C169"""
    path = Checkpoint(model=linear(5), optimizer=Forged(param_groups=text)).save(prefix)
    model, optimizer = trained(momentum)
    before = everything(model, optimizer)

    with pytest.raises(
        (DataLossError, MismatchError, UnsupportedFormatError), match=r"\(root\)\.optimizer\.param_groups"
    ):
        Checkpoint(model=model, optimizer=optimizer).restore(path)

    assert is_same(everything(model, optimizer), before)


@pytest.mark.parametrize("lr", ['"fast"', "[1.0,2.0]", '{"$":"bytes","v":""}', "null"])
def test_a_value_that_a_learning_rate_in_a_tensor_cannot_take_is_refused_and_nothing_changes(
    lr: str, prefix: str
) -> None:
    """C103, C169"""
    text = f'{{"kind":"Adam","groups":[{{"params":["model/weight","model/bias"],"betas":[0.0,0.0],"lr":{lr}}}]}}'
    path = Checkpoint(model=linear(5), optimizer=Forged(param_groups=text.encode())).save(prefix)
    model = linear()
    optimizer = optim.Adam(model.parameters(), lr=torch.tensor(0.1), foreach=False)
    before = everything(model, optimizer)

    with pytest.raises(TrackckptError, match=r"\(root\)\.optimizer\.param_groups"):
        Checkpoint(model=model, optimizer=optimizer).restore(path)

    assert is_same(everything(model, optimizer), before)


@pytest.mark.parametrize(
    "members",
    ['["model/weight","model/weight"]', '["nowhere"]', '[""]', '["model"]', '["../model/weight"]', "[null]"],
    ids=["one twice", "unknown", "the root", "a module", "a parent", "null"],
)
def test_members_that_name_no_parameter_move_nothing(members: str, prefix: str) -> None:
    """C122, C169: the live group keeps its own parameters, each once, in its order."""
    text = f'{{"kind":"SGD","groups":[{{"params":{members},"param_names":["x"]}}]}}'
    path = Checkpoint(model=linear(), optimizer=Forged(param_groups=text.encode())).save(prefix)
    model, optimizer = trained(momentum)
    before = everything(model, optimizer)

    Checkpoint(model=model, optimizer=optimizer).restore(path)

    assert is_same(everything(model, optimizer)[1:], before[1:])


EXTRA = {
    "a list": b"[]",
    "a number for a parameter": b'{"model/weight":5}',
    "a list for a parameter": b'{"model/weight":[["step",1]]}',
    "not JSON": b"\x80\x04",
}


@pytest.mark.parametrize("text", EXTRA.values(), ids=EXTRA)
def test_extra_state_that_no_optimizer_wrote_is_refused_and_nothing_changes(text: bytes, prefix: str) -> None:
    """C121, C169"""
    path = Checkpoint(model=linear(5), optimizer=Forged(extra_state=text)).save(prefix)
    model, optimizer = trained(momentum)
    before = everything(model, optimizer)

    with pytest.raises(DataLossError, match=r"\(root\)\.optimizer\.extra_state cannot be restored"):
        Checkpoint(model=model, optimizer=optimizer).restore(path)

    assert is_same(everything(model, optimizer), before)


@pytest.mark.parametrize("path", ["nowhere", "", "model", "model/0", "stray"])
def test_extra_state_of_what_is_no_parameter_of_the_optimizer_is_left_aside(path: str, prefix: str) -> None:
    """C121, C169"""
    text = json.dumps({path: {"step": 1}}).encode()
    saved = Checkpoint(model=linear(), optimizer=Forged(extra_state=text), stray=torch.ones(1)).save(prefix)
    model, optimizer = trained(momentum)
    before = copy.deepcopy(optimizer.state_dict())

    Checkpoint(model=model, optimizer=optimizer, stray=torch.ones(1)).restore(saved)

    assert is_same(optimizer.state_dict(), before)


@pytest.mark.parametrize("missing", ["exp_avg", "exp_avg_sq", "step"])
def test_an_incomplete_set_of_slots_is_not_given_to_a_fresh_optimizer(missing: str, prefix: str) -> None:
    """C105: it would break the next step. Another program's file may hold one."""
    model, optimizer = trained()
    slots = {name: [(model.weight, value)] for name, value in optimizer.state[model.weight].items() if name != missing}
    path = Checkpoint(model=model, optimizer=Forged(slots)).save(prefix)
    other = linear(1)
    other_optimizer = adam(other)

    status = Checkpoint(model=other, optimizer=other_optimizer).restore(path)

    assert other_optimizer.state_dict()["state"] == {}
    train(other, other_optimizer)
    with pytest.raises(AssertionError, match=r"\(root\)\.optimizer"):
        status.assert_consumed()


def test_another_programs_slots_go_in_place_of_those_that_are_there(prefix: str) -> None:
    """C104"""
    model, optimizer = trained()
    forged_model = linear()
    slots = {name: [(forged_model.weight, torch.full((2, 3), 7.0))] for name in ("exp_avg", "exp_avg_sq")}
    path = Checkpoint(model=forged_model, optimizer=Forged(slots)).save(prefix)

    Checkpoint(model=model, optimizer=optimizer).restore(path)

    state = optimizer.state[model.weight]
    assert torch.equal(state["exp_avg"], torch.full((2, 3), 7.0))
    assert torch.equal(state["step"], torch.tensor(1.0))
    train(model, optimizer)


@pytest.mark.parametrize("shape", [(), (3, 2), (1, 2, 3)], ids=str)
def test_a_slot_of_another_shape_than_the_live_one_is_a_mismatch_and_nothing_changes(
    shape: tuple[int, ...], prefix: str
) -> None:
    """C065, C122"""
    saved = linear(5)
    path = Checkpoint(model=saved, optimizer=Forged({"exp_avg": [(saved.weight, torch.ones(shape))]})).save(prefix)
    model, optimizer = trained()
    before = everything(model, optimizer)

    with pytest.raises(MismatchError, match=r"optimizer's state 'exp_avg' for \(root\)\.model\.weight: .*shape"):
        Checkpoint(model=model, optimizer=optimizer).restore(path)

    assert is_same(everything(model, optimizer), before)


@pytest.mark.parametrize("text", [b"[]", b"5", b"{", b'"text"'])
def test_global_state_that_no_optimizer_wrote_is_refused_and_nothing_changes(text: bytes, prefix: str) -> None:
    """C121, C169"""
    path = Checkpoint(model=linear(5), optimizer=Forged(global_state=text)).save(prefix)
    model, optimizer = trained(momentum)
    before = everything(model, optimizer)

    with pytest.raises(DataLossError, match=r"\(root\)\.optimizer\.global_state cannot be restored"):
        Checkpoint(model=model, optimizer=optimizer).restore(path)

    assert is_same(everything(model, optimizer), before)
