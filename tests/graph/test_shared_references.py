"""Objects that several paths lead to, and paths that lead back: on the way out and on the way in."""

import logging
from typing import Any

import pytest
import torch
import witness
from checkpoints import walk
from torch import nn

from torch_trackckpt import AutoTrackable, Checkpoint


def thing(**attributes: Any) -> AutoTrackable:
    made = AutoTrackable()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def keys(prefix: str) -> list[str]:
    """The object paths of what a checkpoint holds."""
    return [key.split("/.ATTRIBUTES")[0] for key in witness.read_bundle(prefix) if "/.ATTRIBUTES" in key]


def linear(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def test_a_shared_module_is_stored_once_and_restored_in_both_places(prefix: str) -> None:
    """C201"""
    shared = linear(3.0)
    Checkpoint(encoder=nn.Sequential(shared), decoder=[nn.ReLU(), shared]).write(prefix)
    assert keys(prefix) == ["decoder/1/weight"]
    live = linear(0.0)
    encoder, decoder = nn.Sequential(live), [nn.ReLU(), live]
    status = Checkpoint(encoder=encoder, decoder=decoder).read(prefix)
    status.assert_consumed().assert_existing_objects_matched()
    assert live.weight.item() == 3.0
    assert encoder[0] is decoder[1]


def test_tied_weights_have_one_key_and_are_one_object_after_a_restore(prefix: str) -> None:
    """C202"""

    def tied(value: float) -> nn.ModuleDict:
        model = nn.ModuleDict({"encoder": linear(value), "decoder": linear(9.0)})
        model["decoder"].weight = model["encoder"].weight
        return model

    Checkpoint(model=tied(3.0)).write(prefix)
    assert keys(prefix) == ["model/encoder/weight"]
    live = tied(0.0)
    weight = live["encoder"].weight
    Checkpoint(model=live).read(prefix).assert_consumed()
    assert live["encoder"].weight is live["decoder"].weight is weight
    assert weight.item() == 3.0


def test_two_objects_that_refer_to_each_other_are_saved_once_each_and_restored(prefix: str) -> None:
    """C203"""

    def cycle(first: float, second: float) -> AutoTrackable:
        a, b = thing(x=torch.tensor(first)), thing(y=torch.tensor(second))
        a.b, b.a = b, a
        return a

    Checkpoint(a=cycle(1.0, 2.0)).write(prefix)
    assert keys(prefix) == ["a/b/y", "a/x"]
    live = cycle(0.0, 0.0)
    Checkpoint(a=live).read(prefix).assert_consumed().assert_existing_objects_matched()
    assert (live.x, live.b.y, live.b.a is live) == (1.0, 2.0, True)


def test_an_object_that_refers_to_itself_is_saved_once(prefix: str) -> None:
    """C204: directly, and as its own root."""

    def looped(value: float) -> AutoTrackable:
        made = thing(x=torch.tensor(value))
        made.me = made
        return made

    Checkpoint(a=looped(1.0)).write(prefix)
    assert keys(prefix) == ["a/x"]
    live = looped(0.0)
    Checkpoint(a=live).read(prefix).assert_consumed()
    assert live.x == 1.0
    graph = walk(looped(1.0)).graph
    assert [(child.local_name, child.node_id) for child in graph.nodes[0].children] == [("x", 1), ("me", 0)]


def test_saved_as_one_and_loaded_as_two_the_first_path_gets_the_value(
    prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """C205: the log says that the references are inconsistent, and the assertions raise."""
    shared = torch.tensor(1.0)
    Checkpoint(a=thing(x=shared), b=thing(x=shared)).write(prefix)
    first, second = torch.tensor(0.0), torch.tensor(0.0)
    with caplog.at_level(logging.WARNING, "torch_trackckpt"):
        status = Checkpoint(b=thing(x=second), a=thing(x=first)).read(prefix)
    assert (first, second) == (1.0, 0.0)
    assert "Inconsistent references" in caplog.text
    for assertion in (status.assert_consumed, status.assert_existing_objects_matched):
        with pytest.raises(AssertionError, match=r"\(root\)\.b\.x"):
            assertion()


def test_saved_as_two_and_loaded_as_one_it_is_restored(prefix: str) -> None:
    """C206: containers take the children of both; of two values the first one counts."""
    Checkpoint(a=thing(x=torch.tensor(1.0)), b=thing(y=torch.tensor(2.0))).write(prefix)
    both = thing(x=torch.tensor(0.0), y=torch.tensor(0.0))
    status = Checkpoint(a=both, b=both).read(prefix)
    status.assert_consumed().assert_existing_objects_matched().assert_nontrivial_match()
    assert (both.x, both.y) == (1.0, 2.0)

    Checkpoint(a=thing(x=torch.tensor(1.0)), b=thing(x=torch.tensor(2.0))).write(prefix)
    tied = torch.tensor(0.0)
    status = Checkpoint(a=thing(x=tied), b=thing(x=tied)).read(prefix)
    status.assert_consumed().assert_existing_objects_matched()
    assert tied == 1.0


def test_a_checkpoint_is_a_child_like_any_other_and_may_save_on_its_own(prefix: str) -> None:
    """C207"""
    inner = Checkpoint(x=torch.tensor(1.0))
    outer = Checkpoint(inner=inner, y=torch.tensor(2.0))
    inner.back = outer
    assert inner.save(f"{prefix}-inner") == f"{prefix}-inner-1"
    assert outer.save(f"{prefix}-outer") == f"{prefix}-outer-1"
    assert keys(f"{prefix}-inner-1") == ["back/y", "save_counter", "x"]
    assert keys(f"{prefix}-outer-1") == ["inner/save_counter", "inner/x", "save_counter", "y"]
    x, y = torch.tensor(0.0), torch.tensor(0.0)
    twin = Checkpoint(x=x)
    twin.back = Checkpoint(y=y)
    twin.restore(f"{prefix}-inner-1").assert_consumed()
    assert (x, y, int(twin.save_counter)) == (1.0, 2.0, 1)
    inner.x.zero_()
    outer.restore(f"{prefix}-outer-1").assert_consumed()
    assert (inner.x, int(inner.save_counter), int(outer.save_counter)) == (1.0, 1, 1)
