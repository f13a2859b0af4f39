"""Classes that take part in the object graph by deriving from `Trackable` or `AutoTrackable`."""

import copy
import dataclasses
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import witness
from checkpoints import walk
from torch import nn

from torch_trackckpt import AutoTrackable, Checkpoint, NoDependency, PythonState, Trackable
from torch_trackckpt.trackable import Value


def saved_paths(root: object) -> list[str]:
    """The object paths of all tensors that a checkpoint of the object holds."""
    values = [value for value in walk(root).values[:-1] if isinstance(value.value, torch.Tensor)]
    return [value.key.split("/.ATTRIBUTES")[0] for value in values]


class Meter(Trackable):
    """A number in Python that is stored as a tensor."""

    def __init__(self, total: float) -> None:
        self.total = total

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        return {"total": torch.tensor(self.total)}

    def _restore_from_tensors(self, values: Mapping[str, Value]) -> None:
        self.total = float(torch.as_tensor(values["total"]))


# -------------------------------------------------------------------------------------------- Trackable


def test_an_object_saves_and_restores_values_that_it_encodes_itself(prefix: str) -> None:
    """C003"""
    Checkpoint(meter=Meter(2.5)).write(prefix)
    meter = Meter(0.0)
    Checkpoint(meter=meter).read(prefix).assert_consumed()
    assert meter.total == 2.5
    assert witness.read_bundle(prefix)["meter/.ATTRIBUTES/total"].data == torch.tensor(2.5).numpy().tobytes()


def test_an_object_that_only_saves_is_told_which_method_it_lacks(prefix: str) -> None:
    class WriteOnly(Trackable):
        def _serialize_to_tensors(self) -> Mapping[str, Value]:
            return {"total": torch.tensor(1.0)}

    Checkpoint(meter=WriteOnly()).write(prefix)
    with pytest.raises(NotImplementedError, match=r"WriteOnly saves values .* define _restore_from_tensors"):
        Checkpoint(meter=WriteOnly()).read(prefix)


def test_strings_of_a_scalar_and_of_an_array_come_back(prefix: str) -> None:
    """C358"""

    class Texts(Trackable):
        def __init__(self, scalar: bytes, array: list[list[bytes]]) -> None:
            self.values: dict[str, Value] = {"scalar": scalar, "array": np.array(array, dtype=object)}

        def _serialize_to_tensors(self) -> Mapping[str, Value]:
            return self.values

        def _restore_from_tensors(self, values: Mapping[str, Value]) -> None:
            self.values = dict(values)

    Checkpoint(t=Texts(b"\0\xff", [[b"", b"a"], [b"bc", b"x" * 300]])).write(prefix)
    texts = Texts(b"", [[b""]])
    Checkpoint(t=texts).read(prefix).assert_consumed()
    assert texts.values["scalar"] == b"\0\xff"
    array = texts.values["array"]
    assert isinstance(array, np.ndarray)
    assert array.tolist() == [[b"", b"a"], [b"bc", b"x" * 300]]


def test_an_object_may_make_a_child_when_the_checkpoint_asks_for_it(prefix: str) -> None:
    class Growing(AutoTrackable):
        def _lookup_dependency(self, name: str) -> object | None:
            if not hasattr(self, name):
                setattr(self, name, torch.zeros(2))
            return getattr(self, name)

    Checkpoint(g=nn.ParameterDict({"a": torch.ones(2)})).write(prefix)
    growing = Growing()
    Checkpoint(g=growing).read(prefix).assert_consumed()
    assert torch.equal(growing.a, torch.ones(2))


def test_two_views_with_one_identity_are_one_node() -> None:
    """C023"""

    class View(Trackable):
        def _identity(self) -> str:
            return "the same thing"

        def _serialize_to_tensors(self) -> Mapping[str, Value]:
            return {"x": torch.tensor(1)}

    assert saved_paths({"a": View(), "b": View()}) == ["a"]


# ---------------------------------------------------------------------------------------- AutoTrackable


def test_attributes_are_children_in_the_order_of_their_first_assignment() -> None:
    """C013"""
    thing = AutoTrackable()
    thing.z, thing.a = torch.tensor(1), torch.tensor(2)
    thing.z = torch.tensor(3)
    assert saved_paths(thing) == ["z", "a"]


def test_attributes_that_are_not_trackable_are_no_children() -> None:
    """C025: what is plain among them is the object's own state, which TensorFlow does not have."""
    thing = AutoTrackable()
    thing.number, thing.text, thing.function, thing.kind, thing.nothing = 1, "text", len, nn.Linear, None
    thing.layer = nn.Linear(1, 1, bias=False)
    snapshot = walk(thing)
    assert [child.local_name for child in snapshot.graph.nodes[0].children] == ["layer"]
    assert snapshot.values[1].value == b'{"number":1,"text":"text","nothing":null}'


def test_attributes_of_a_checkpoint_that_are_not_trackable_are_ignored() -> None:
    """C025"""
    checkpoint = Checkpoint(layer=nn.Linear(1, 1, bias=False))
    checkpoint.number, checkpoint.text, checkpoint.losses = 1, "text", [0.5]
    snapshot = walk(checkpoint)
    assert [child.local_name for child in snapshot.graph.nodes[0].children] == ["layer", "losses"]
    assert [value.key for value in snapshot.values[:-1]] == ["layer/weight/.ATTRIBUTES/VARIABLE_VALUE"]


def test_an_attribute_that_is_assigned_again_replaces_the_old_dependency() -> None:
    """C010"""
    thing = AutoTrackable()
    thing.x = torch.tensor(1)
    thing.x = replacement = torch.tensor(2)
    assert [value.value for value in walk(thing).values[:-1]] == [replacement]


def test_an_attribute_that_is_no_longer_trackable_is_no_dependency() -> None:
    """C010, C025"""
    thing = AutoTrackable()
    thing.x = torch.tensor(1)
    thing.x = 3
    assert saved_paths(thing) == []


def test_a_deleted_attribute_is_no_dependency_until_it_is_assigned_again() -> None:
    """C011"""
    thing = AutoTrackable()
    thing.x = torch.tensor(1)
    del thing.x
    assert saved_paths(thing) == []
    thing.x = torch.tensor(2)
    assert saved_paths(thing) == ["x"]


def test_a_subclass_that_never_calls_its_base_is_tracked() -> None:
    """C012"""

    class Child(Checkpoint):
        def __init__(self) -> None:
            self.x = torch.tensor(1)

    class Other(AutoTrackable):
        def __init__(self) -> None:
            self.x = NoDependency(torch.tensor(1))
            self._track_trackable(torch.tensor(2), "y")

    assert saved_paths(Other()) == ["y"]
    assert "x" in Child()._trackable_children()


def test_a_class_attribute_is_no_child() -> None:
    class Thing(AutoTrackable):
        shared = torch.tensor(1)

    assert saved_paths(Thing()) == []


# ---------------------------------------------------------------------------------------- NoDependency


def test_a_value_without_dependency_is_kept_and_not_saved() -> None:
    thing = AutoTrackable()
    layer = nn.Linear(1, 1)
    thing.layer = NoDependency(layer)
    assert thing.layer is layer
    assert saved_paths(thing) == []


def test_a_plain_assignment_makes_a_value_without_dependency_a_child_again() -> None:
    """C010"""
    thing = AutoTrackable()
    thing.x = NoDependency(torch.tensor(1))
    thing.x = torch.tensor(2)
    assert saved_paths(thing) == ["x"]


def test_a_child_can_be_taken_out_by_assigning_it_without_dependency() -> None:
    """C010"""
    thing = AutoTrackable()
    thing.x = torch.tensor(1)
    thing.x = NoDependency(thing.x)
    assert saved_paths(thing) == []


# ----------------------------------------------------------------------------------- explicit tracking


def test_an_explicitly_tracked_object_is_a_child_and_is_returned() -> None:
    thing, value = AutoTrackable(), torch.tensor(1)
    assert thing._track_trackable(value, "a/b") is value
    assert saved_paths(thing) == ["a.Sb"]


def test_a_second_object_under_a_used_name_is_refused_unless_overwriting_is_asked_for() -> None:
    """C009"""
    thing, first, second = AutoTrackable(), torch.tensor(1), torch.tensor(2)
    thing.x = first
    thing._track_trackable(first, "x")
    with pytest.raises(ValueError, match=r"AutoTrackable already has a child called 'x' .*overwrite=True"):
        thing._track_trackable(second, "x")
    thing._track_trackable(second, "x", overwrite=True)
    assert [value.value for value in walk(thing).values[:-1]] == [second]


def test_an_attribute_replaces_an_explicitly_tracked_object_of_its_name() -> None:
    """C010"""
    thing, explicit, assigned = AutoTrackable(), torch.tensor(1), torch.tensor(2)
    thing._track_trackable(explicit, "x")
    thing.x = assigned
    assert [value.value for value in walk(thing).values[:-1]] == [assigned]


def test_deleting_an_attribute_takes_out_what_was_explicitly_tracked_under_its_name() -> None:
    """C011"""
    thing = AutoTrackable()
    thing.x = torch.tensor(1)
    thing._track_trackable(thing.x, "x")
    del thing.x
    assert saved_paths(thing) == []


# ----------------------------------------------------------------------------------------- PythonState


class Counting(PythonState):
    """A state of its own, with a count of how often it was taken over."""

    def __init__(self, state: str | bytes) -> None:
        self.state = state
        self.received: list[bytes] = []

    def serialize(self) -> str | bytes:
        return self.state

    def deserialize(self, string_value: bytes) -> None:
        self.received.append(string_value)


@pytest.mark.parametrize(("state", "received"), [("hé", b"h\xc3\xa9"), (b"\0\xff", b"\0\xff"), ("", b"")])
def test_a_python_state_is_a_string_scalar_and_arrives_as_bytes(
    prefix: str, state: str | bytes, received: bytes
) -> None:
    """C155, C156, C157"""
    Checkpoint(s=Counting(state)).write(prefix)
    stored = witness.read_bundle(prefix)["s/.ATTRIBUTES/py_state"]
    assert (stored.dtype, stored.shape, stored.data) == (witness.DT_STRING, (), [received])
    other = Counting("other")
    Checkpoint(s=other).read(prefix).assert_consumed()
    assert other.received == [received]


# -------------------------------------------------------------------------------------------- slots


@dataclasses.dataclass(slots=True)
class Slotted(AutoTrackable):
    """A class whose attributes are in slots."""

    layers: list[Any]
    scale: torch.Tensor


def test_attributes_in_slots_are_children_as_all_others(prefix: str) -> None:
    saved = Slotted([torch.ones(1)], torch.tensor(2.0))
    saved.later = torch.tensor(3.0)
    assert saved_paths(saved) == ["scale", "later", "layers/0"]
    Checkpoint(saved).write(prefix)
    restored = Slotted([torch.zeros(1)], torch.tensor(0.0))
    status = Checkpoint(restored).read(prefix)
    restored.later = torch.tensor(0.0)
    status.assert_consumed()
    assert [restored.layers[0].item(), restored.scale.item(), restored.later.item()] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_an_object_with_slots_can_be_copied_and_pickled(copied: Callable[[Slotted], Slotted]) -> None:
    original = Slotted([torch.ones(1)], torch.tensor(2.0))
    original.later = NoDependency([3])
    twin = copied(original)
    assert (twin.layers, twin.scale, twin.later) == (original.layers, original.scale, [3])
    twin.layers.append(torch.zeros(1))
    assert saved_paths(twin) == ["scale", "layers/0", "layers/1"]
