"""Objects that encode their own state, with `serialize` or with `state_dict`: stored as text, never as a pickle."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import witness
from torch import nn

from torch_trackckpt import AutoTrackable, Checkpoint, PythonState, latest_checkpoint
from torch_trackckpt.errors import DataLossError, UnsupportedFormatError, UnsupportedValueError
from torch_trackckpt.trackable import Trackable, Value


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "ckpt")


class Text:
    """A python state that keeps whatever it is given, and notes every call."""

    def __init__(self, value: str | bytes = b"") -> None:
        self.value = value
        self.received: list[bytes] = []

    def serialize(self) -> str | bytes:
        return self.value

    def deserialize(self, value: bytes) -> None:
        self.value = value
        self.received.append(value)


class Box:
    """Anything at all as a `state_dict`."""

    def __init__(self, state: Any = None) -> None:
        self.state = state
        self.num_captures = 0

    def state_dict(self) -> Any:
        self.num_captures += 1
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


class Stored(Trackable):
    """Chosen values and children where another object has its own."""

    def __init__(self, values: Mapping[str, Value], **children: object) -> None:
        self._values = values
        self._children = children

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        return self._values

    def _trackable_children(self) -> Mapping[str, object]:
        return self._children


def py_state(prefix: str, path: str) -> bytes:
    stored = witness.read_bundle(prefix)[f"{path}/.ATTRIBUTES/py_state"]
    assert stored.dtype == witness.DT_STRING
    assert stored.shape == ()
    (value,) = stored.data
    assert isinstance(value, bytes)
    return value


# serialize and deserialize.


def test_a_serialized_object_is_a_string_scalar_of_its_own_node(prefix: str) -> None:
    """C155"""
    Checkpoint(holder=AutoTrackable(), thing=Text(b"abc")).write(prefix)

    root, *_ = graph = witness.read_graph(prefix)
    (node,) = (graph[child.node_id] for child in root.children if child.local_name == "thing")

    assert py_state(prefix, "thing") == b"abc"
    assert node.attributes == [witness.Attribute("py_state", "", "thing/.ATTRIBUTES/py_state")]
    assert node.has_checkpoint_values


def test_text_is_stored_as_utf_8_and_arrives_as_bytes(prefix: str) -> None:
    """C156"""
    path = Checkpoint(thing=Text("é")).save(prefix)
    thing = Text()

    Checkpoint(thing=thing).restore(path).assert_consumed()

    assert thing.received == ["é".encode()]


@pytest.mark.parametrize("value", [b"", b"\x00", b"\xff\xfe\x00a\n", bytes(range(256)) * 300], ids=len)
def test_arbitrary_bytes_come_back_unchanged(value: bytes, prefix: str) -> None:
    """C157"""
    path = Checkpoint(thing=Text(value)).save(prefix)
    thing = Text()

    Checkpoint(thing=thing).restore(path).assert_consumed()

    assert thing.received == [value]


def test_each_restore_hands_over_the_value_of_its_file(prefix: str) -> None:
    """C158"""
    thing = Text(b"one")
    checkpoint = Checkpoint(thing=thing)
    paths = [checkpoint.save(prefix)]
    thing.value = b"two"
    paths.append(checkpoint.save(prefix))

    for path in (paths[0], paths[1], paths[0]):
        checkpoint.restore(path).assert_consumed()

    assert thing.received == [b"one", b"two", b"one"]


def test_a_subclass_of_python_state_that_says_so_is_one(prefix: str) -> None:
    """C155"""

    class Counter(PythonState):
        count = 3

        def serialize(self) -> str:
            return str(self.count)

        def deserialize(self, string_value: bytes) -> None:
            self.count = int(string_value)

    path = Checkpoint(counter=Counter()).save(prefix)
    other = Counter()
    other.count = 0
    Checkpoint(counter=other).restore(path).assert_consumed()

    assert other.count == 3


class ArrayState(PythonState):
    """TensorFlow's own example of a python state: a NumPy array."""

    def __init__(self, array: np.ndarray[Any, Any] | None = None) -> None:
        self.array = array

    def serialize(self) -> bytes:
        assert self.array is not None
        return json.dumps(self.array.tolist()).encode()

    def deserialize(self, string_value: bytes) -> None:
        self.array = np.array(json.loads(string_value))


class Arrays(Trackable):
    """Makes its children when the file asks for them."""

    def __init__(self, **arrays: ArrayState) -> None:
        self.arrays = arrays

    def _trackable_children(self) -> Mapping[str, object]:
        return self.arrays

    def _lookup_dependency(self, name: str) -> object:
        return self.arrays.setdefault(name, ArrayState())


def test_children_that_are_made_when_the_file_names_them_are_restored(prefix: str) -> None:
    """C159"""
    path = Checkpoint(arrays=Arrays(x=ArrayState(np.arange(3)), y=ArrayState(np.zeros(0)))).save(prefix)
    arrays = Arrays()

    Checkpoint(arrays=arrays).restore(path).assert_consumed()

    assert {name: state.array.tolist() for name, state in arrays.arrays.items() if state.array is not None} == {
        "x": [0, 1, 2],
        "y": [],
    }


class OnlySerializes:
    def serialize(self) -> bytes:
        return b""


@pytest.mark.parametrize("value", [Text, OnlySerializes(), Box], ids=["a class", "half the methods", "another class"])
def test_classes_and_objects_with_half_of_the_methods_are_not_trackable(value: object) -> None:
    """C155, C164"""
    with pytest.raises(ValueError, match=r"thing is a .*not trackable"):
        Checkpoint(thing=value)


def test_what_serialize_raises_reaches_the_caller_and_leaves_no_file(tmp_path: Path) -> None:
    """C160"""

    class Broken(Text):
        def serialize(self) -> bytes:
            raise LookupError("no state today")

    with pytest.raises(LookupError, match="no state today"):
        Checkpoint(model=nn.Linear(2, 2), thing=Broken()).save(str(tmp_path / "run" / "ckpt"))

    assert list(tmp_path.rglob("*")) == []


def test_a_failing_serialize_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    """C160"""
    thing = Text(b"good")
    checkpoint = Checkpoint(thing=thing)
    path = checkpoint.save(str(tmp_path / "ckpt"))
    before = sorted(tmp_path.iterdir())
    thing.value = None  # type: ignore[assignment]

    with pytest.raises(TypeError):
        checkpoint.save(str(tmp_path / "ckpt"))

    assert sorted(tmp_path.iterdir()) == before
    assert latest_checkpoint(str(tmp_path)) == path


@pytest.mark.parametrize("value", [None, 5, bytearray(b"x"), torch.ones(1)], ids=lambda value: type(value).__name__)
def test_a_serialize_that_returns_neither_text_nor_bytes_is_refused(value: Any, prefix: str) -> None:
    """C161"""
    with pytest.raises(TypeError) as error:
        Checkpoint(thing=Text(value)).save(prefix)

    assert str(error.value) == (
        "(root).thing cannot be saved: Text.serialize() must return str or bytes, not " + type(value).__name__ + "."
    )


@pytest.mark.parametrize("saved", [Text(b"x"), Box({"a": 1})], ids=["serialize", "state_dict"])
def test_python_state_that_the_live_object_does_not_know_is_not_consumed(saved: object, prefix: str) -> None:
    """C162"""
    path = Checkpoint(thing=saved).save(prefix)

    status = Checkpoint(thing=AutoTrackable()).restore(path)

    with pytest.raises(AssertionError, match=r"Unused attributes .*\(root\)\.thing: py_state"):
        status.assert_consumed()


@pytest.mark.parametrize("live", [Text(b"before"), Box("before")], ids=["serialize", "state_dict"])
def test_an_ordinary_value_where_the_live_object_is_a_python_state_is_not_handed_to_it(
    live: Text | Box, prefix: str
) -> None:
    """C163"""
    path = Checkpoint(thing=torch.ones(2)).save(prefix)

    status = Checkpoint(thing=live).restore(path)

    assert vars(live) in ({"value": b"before", "received": []}, {"state": "before", "num_captures": 0})
    with pytest.raises(AssertionError, match=r"\(root\)\.thing not assigned a value"):
        status.assert_consumed()


@pytest.mark.parametrize("live", [Text(b"before"), Box("before")], ids=["serialize", "state_dict"])
def test_a_tensor_under_the_name_of_a_python_state_is_damage_and_is_not_handed_over(
    live: Text | Box, prefix: str
) -> None:
    """C163"""
    path = Checkpoint(thing=Stored({"py_state": torch.ones(2)})).save(prefix)

    with pytest.raises(DataLossError, match=r"\(root\)\.thing cannot be restored .*nothing has been assigned"):
        Checkpoint(thing=live).restore(path)

    assert vars(live) in ({"value": b"before", "received": []}, {"state": "before", "num_captures": 0})


def test_an_object_with_a_broken_get_config_is_saved_as_if_it_had_none(prefix: str) -> None:
    """C164"""

    class Configured(AutoTrackable):
        def get_config(self) -> None:
            raise RuntimeError("never call this")

    thing = Configured()
    thing.weight = torch.ones(1)
    path = Checkpoint(thing=thing).save(prefix)

    assert [key for key in witness.read_bundle(path) if key.startswith("thing/")] == [
        "thing/weight/.ATTRIBUTES/VARIABLE_VALUE"
    ]
    Checkpoint(thing=thing).restore(path).assert_consumed()


# state_dict and load_state_dict.

NESTED = {
    "epoch": 3,
    "best": float("inf"),
    "milestones": {5: "five", (1, 2): None},
    "shape": torch.Size([2, 3]),
    "dtype": torch.bfloat16,
    "bytes": b"\x00\xff",
    "list": [True, 1.5, "é", (1, (2,))],
    "array": np.arange(3, dtype=np.int16),
}


def test_a_nested_state_comes_back_with_its_types(prefix: str) -> None:
    """C166"""
    path = Checkpoint(thing=Box(NESTED)).save(prefix)
    box = Box()

    Checkpoint(thing=box).restore(path).assert_consumed()

    assert repr(box.state) == repr(NESTED)


@pytest.mark.parametrize("state", [None, {}, [], 5, "text", torch.arange(3)], ids=repr)
def test_a_state_need_not_be_a_dict(state: object, prefix: str) -> None:
    """C166"""
    path = Checkpoint(thing=Box(state)).save(prefix)
    box = Box("other")

    Checkpoint(thing=box).restore(path).assert_consumed()

    assert repr(box.state) == repr(state)


def test_tensors_of_a_state_are_children_and_the_text_refers_to_them(prefix: str) -> None:
    """C166"""
    Checkpoint(thing=Box({"ema": [torch.tensor([1.0]), torch.tensor([2], dtype=torch.int32)]})).write(prefix)

    stored = witness.read_bundle(prefix)

    assert json.loads(py_state(prefix, "thing")) == {"ema": [{"$": "tensor", "v": "0"}, {"$": "tensor", "v": "1"}]}
    assert stored["thing/0/.ATTRIBUTES/VARIABLE_VALUE"].data == np.float32(1).tobytes()
    assert stored["thing/1/.ATTRIBUTES/VARIABLE_VALUE"].data == np.int32(2).tobytes()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3).T,
        torch.ones(1).expand(3),
        torch.tensor([1.5], dtype=torch.bfloat16),
        torch.zeros(0, 4),
        torch.ones(2, requires_grad=True),
        torch.ones(2, requires_grad=True) * 2,
        nn.Parameter(torch.ones(2)),
    ],
    ids=["transposed", "expanded", "bfloat16", "empty", "requires grad", "has a graph", "parameter"],
)
def test_a_tensor_of_a_state_comes_back_plain_with_equal_values(tensor: torch.Tensor, prefix: str) -> None:
    """C026, C166"""
    path = Checkpoint(thing=Box({"tensor": tensor})).save(prefix)
    box = Box()

    Checkpoint(thing=box).restore(path).assert_consumed()

    restored = box.state["tensor"]
    assert type(restored) is torch.Tensor
    assert not restored.requires_grad
    assert restored.dtype == tensor.dtype
    assert torch.equal(restored, tensor)


def test_a_tensor_that_occurs_twice_in_a_state_is_stored_once_and_shared_again(prefix: str) -> None:
    """C166"""
    shared = torch.ones(3)
    path = Checkpoint(thing=Box({"a": shared, "b": (shared,)})).save(prefix)
    box = Box()

    Checkpoint(thing=box).restore(path).assert_consumed()

    assert [key for key in witness.read_bundle(path) if key.startswith("thing/1")] == []
    assert box.state["a"] is box.state["b"][0]


def test_a_parameter_inside_another_objects_state_stays_the_modules_value(prefix: str) -> None:
    """C166: a state is a value of its own, so restoring it never rebinds the parameter."""
    model = nn.Linear(1, 1, bias=False)
    path = Checkpoint(ema=Box({"shadow": model.weight}), model=model).save(prefix)
    saved = model.weight.detach().clone()

    keys = [key for key in witness.read_bundle(path) if key.startswith(("ema", "model"))]
    assert keys == [
        "ema/.ATTRIBUTES/py_state",
        "ema/0/.ATTRIBUTES/VARIABLE_VALUE",
        "model/weight/.ATTRIBUTES/VARIABLE_VALUE",
    ]

    other, box = nn.Linear(1, 1, bias=False), Box()
    Checkpoint(ema=box, model=other).restore(path).assert_consumed()

    assert torch.equal(other.weight, saved)
    assert torch.equal(box.state["shadow"], saved)
    assert box.state["shadow"].data_ptr() != other.weight.data_ptr()


def test_a_restored_tensor_is_independent_of_the_file_and_of_the_next_restore(prefix: str) -> None:
    """C059, C166"""
    path = Checkpoint(thing=Box({"tensor": torch.ones(2)})).save(prefix)
    first, second = Box(), Box()

    for box in (first, second):
        Checkpoint(thing=box).restore(path).assert_consumed()
    first.state["tensor"].zero_()

    assert torch.equal(second.state["tensor"], torch.ones(2))


def test_a_save_asks_for_the_state_once_and_a_restore_or_an_assertion_never_does(prefix: str) -> None:
    """C166"""
    box = Box({"a": 1})
    checkpoint = Checkpoint(thing=box)

    path = checkpoint.save(prefix)
    assert box.num_captures == 1

    checkpoint.restore(path).assert_consumed()
    assert box.num_captures == 1


def test_a_state_that_changes_after_the_save_does_not_change_the_file(prefix: str) -> None:
    """C058, C166"""
    box = Box({"list": [1], "tensor": torch.ones(1)})
    checkpoint = Checkpoint(thing=box)
    path = checkpoint.save(prefix)
    box.state["list"].append(2)
    box.state["tensor"].zero_()

    checkpoint.restore(path).assert_consumed()

    assert repr(box.state) == repr({"list": [1], "tensor": torch.ones(1)})


def test_saving_equal_states_gives_equal_files(tmp_path: Path) -> None:
    """C028"""
    states = [NESTED | {"set": {0, 8}}, copy.deepcopy(NESTED) | {"set": {8, 0}}]

    for index, state in enumerate(states):
        Checkpoint(thing=Box(state)).write(tmp_path / str(index))

    for suffix in (".index", ".data-00000-of-00001"):
        assert (tmp_path / f"0{suffix}").read_bytes() == (tmp_path / f"1{suffix}").read_bytes()


def test_an_object_that_two_names_lead_to_is_captured_and_stored_once(prefix: str) -> None:
    """C023"""
    box = Box({"a": torch.ones(1)})

    Checkpoint(a=box, b=[box]).write(prefix)

    assert box.num_captures == 1
    assert [key for key in witness.read_bundle(prefix) if key.startswith(("a/", "b/"))] == [
        "a/.ATTRIBUTES/py_state",
        "a/0/.ATTRIBUTES/VARIABLE_VALUE",
    ]


class Unsafe:
    pass


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        ({"hooks": [Unsafe()]}, "the value at ['hooks'][0] is a "),
        ({"schedule": {3: lambda step: step}}, "the value at ['schedule'][3] is a builtins.function"),
        ({"model": nn.Linear(1, 1)}, "the value at ['model'] is a torch.nn.modules.linear.Linear"),
        (Unsafe(), "the value is a "),
    ],
    ids=["object", "function", "module", "whole"],
)
def test_a_state_that_cannot_be_encoded_is_refused_with_its_object_and_position(
    state: object, complaint: str, tmp_path: Path
) -> None:
    """C168"""
    holder = AutoTrackable()
    holder.thing = Box(state)

    with pytest.raises(UnsupportedValueError) as error:
        Checkpoint(holder=holder).save(tmp_path / "ckpt")

    assert str(error.value).startswith(f"(root).holder.thing cannot be saved: {complaint}")
    assert "register_adapter" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2).to_sparse(), torch.ones(2, device="meta")],
    ids=["sparse", "meta"],
)
def test_a_tensor_of_a_state_that_cannot_be_written_is_refused_by_its_key(tensor: torch.Tensor, tmp_path: Path) -> None:
    """C168, C369"""
    with pytest.raises(UnsupportedValueError, match=r"^thing/0/\.ATTRIBUTES/VARIABLE_VALUE: "):
        Checkpoint(thing=Box({"tensor": tensor})).save(tmp_path / "ckpt")

    assert list(tmp_path.iterdir()) == []


HOSTILE = {
    "not JSON": (b"\x80\x04\x95", DataLossError),
    "a pickle": (b"cos\nsystem\n(S'true'\ntR.", DataLossError),
    "an unknown kind": (b'{"$":"os.system","v":"true"}', UnsupportedFormatError),
    "an object's class": (b'{"$":"object","v":["os","system"]}', UnsupportedFormatError),
    "a tensor that is not there": (b'{"$":"tensor","v":"7"}', DataLossError),
    "too deep": (b"[" * 10_000 + b"]" * 10_000, DataLossError),
}


@pytest.mark.parametrize(("text", "error"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_state_is_refused_by_name_and_nothing_is_assigned(
    text: bytes, error: type[Exception], prefix: str
) -> None:
    """C169"""
    path = Checkpoint(a=torch.zeros(2), b=Box(1), thing=Text(text), z=Text(b"new")).save(prefix)
    tensor, before, box, after = torch.ones(2), Box("old"), Box("old"), Text(b"old")

    with pytest.raises(error, match=r"\(root\)\.thing cannot be restored .*nothing has been assigned"):
        Checkpoint(a=tensor, b=before, thing=box, z=after).restore(path)

    assert torch.equal(tensor, torch.ones(2))
    assert (before.state, box.state, after.value) == ("old", "old", b"old")


def test_a_string_where_a_state_refers_to_a_tensor_is_damage(prefix: str) -> None:
    """C169"""
    thing = Stored({"py_state": b'{"$":"tensor","v":"0"}'}, **{"0": Stored({"VARIABLE_VALUE": b"text"})})
    path = Checkpoint(thing=thing).save(prefix)

    with pytest.raises(DataLossError, match=r"\(root\)\.thing\.0 cannot be restored .* stored as text"):
        Checkpoint(thing=Box()).restore(path)


# Modules with extra state.


class Extra(nn.Module):
    def __init__(self, extra: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.extra = extra

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


@pytest.mark.parametrize("extra", [{"steps": 3, "table": torch.arange(3)}, [1], None, torch.ones(2)], ids=repr)
def test_a_modules_extra_state_travels_with_it(extra: Any, prefix: str) -> None:
    """C166"""
    path = Checkpoint(model=nn.Sequential(Extra(extra))).save(prefix)
    model = nn.Sequential(Extra("other"))

    Checkpoint(model=model).restore(path).assert_consumed()

    assert repr(model[0].extra) == repr(extra)
    assert "model/0/_extra_state/.ATTRIBUTES/py_state" in witness.read_bundle(path)


def test_a_module_without_extra_state_has_no_such_child(prefix: str) -> None:
    """C166"""
    Checkpoint(model=nn.Linear(1, 1)).write(prefix)

    assert not any("_extra_state" in key for key in witness.read_bundle(prefix))


class Refusing(Box):
    def load_state_dict(self, state: Any) -> None:
        raise RuntimeError("not this one")


def test_what_load_state_dict_refuses_reaches_the_caller(prefix: str) -> None:
    """C166"""
    path = Checkpoint(thing=Box(1)).save(prefix)

    with pytest.raises(RuntimeError, match=r"\(root\)\.thing did not take its state .*RuntimeError: not this one"):
        Checkpoint(thing=Refusing()).restore(path)
