"""Plain attributes of an `AutoTrackable`: its own state in a checkpoint."""

from __future__ import annotations

import collections
import dataclasses
import enum
import math
import struct
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import Text, thing, walk
from torch import nn

from torch_trackckpt import AutoTrackable, Checkpoint, CheckpointOptions, NoDependency, frozen_saver, list_variables
from torch_trackckpt.errors import MismatchError, RestoreError, StructureChangedError, UnsupportedValueError
from torch_trackckpt.reading import load_variable
from torch_trackckpt.tracking.data_structures import TrackedDict, TrackedList


@dataclasses.dataclass
class Progress(AutoTrackable):
    step: int = 0
    best_loss: float = math.inf
    losses: list[float] = dataclasses.field(default_factory=list)
    layer: nn.Module | None = None


class Slotted(AutoTrackable):
    __slots__ = ("decay",)

    def __init__(self, decay: float) -> None:
        self.decay = decay


def restored(saved: AutoTrackable, live: AutoTrackable, prefix: str) -> Any:
    path = Checkpoint(thing=saved).write(prefix)
    Checkpoint(thing=live).read(path).assert_consumed()
    return live


VALUES = [
    None,
    True,
    3,
    2**70,
    0.1,
    -0.0,
    math.inf,
    math.nan,
    1 - 2j,
    "text",
    b"\x00\xff",
    torch.bfloat16,
    torch.device("cpu"),
    torch.Size([2, 3]),
    np.float32(0.1),
    np.int64(-3),
    (1, (2.5, "x"), None),
    frozenset({1, 2}),
    collections.Counter("aab"),
    collections.OrderedDict(b=1, a=2),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_plain_attribute_is_restored_bit_for_bit(value: object, prefix: str) -> None:
    other = restored(thing(x=value), thing(x=None), prefix)
    assert type(other.x) is type(value)
    assert repr(other.x) == repr(value)
    if isinstance(value, float):
        assert struct.pack("<d", other.x) == struct.pack("<d", value)


def test_an_array_is_restored_bit_for_bit(prefix: str) -> None:
    array = np.random.default_rng(0).normal(size=(3, 4))
    other = restored(thing(x=array), thing(x=np.zeros(1)), prefix)
    assert other.x.tobytes() == array.tobytes()
    assert other.x.shape == array.shape


class Phase(enum.Enum):
    WARM = 1
    COLD = 2


def test_members_of_enums_are_restored_where_the_live_object_has_the_enum(prefix: str) -> None:
    other = restored(
        thing(phase=Phase.COLD, seen=[Phase.COLD], step=2), thing(phase=Phase.WARM, seen=[], step=0), prefix
    )
    assert (other.phase, other.seen, other.step) == (Phase.COLD, [Phase.COLD], 2)
    stranger = thing(phase=None, seen=[], step=0)
    with pytest.raises(MismatchError, match=r"\(root\)\.thing .*enum 'Phase'.*Give the object an attribute"):
        Checkpoint(thing=stranger).read(prefix)
    assert (stranger.phase, stranger.step) == (None, 0)


def test_a_dataclass_is_saved_with_its_fields_and_its_children(prefix: str) -> None:
    saved = Progress(7, 0.25, [0.5, 0.25], nn.Linear(1, 1))
    live = Progress(layer=nn.Linear(1, 1))
    restored(saved, live, prefix)
    assert (live.step, live.best_loss, live.losses) == (7, 0.25, [0.5, 0.25])
    assert live.layer is not None
    assert saved.layer is not None
    assert torch.equal(live.layer.weight, saved.layer.weight)  # type: ignore[arg-type]
    assert [name for name, _ in list_variables(prefix)] == [
        "_CHECKPOINTABLE_OBJECT_GRAPH",
        "thing/.ATTRIBUTES/py_state",
        "thing/layer/bias/.ATTRIBUTES/VARIABLE_VALUE",
        "thing/layer/weight/.ATTRIBUTES/VARIABLE_VALUE",
    ]


def test_what_only_the_class_has_so_far_becomes_the_objects_own(prefix: str) -> None:
    class Counter(AutoTrackable):
        step = 0
        losses: list[float] = []  # noqa: RUF012
        width = 3

    saved = Counter()
    saved.step += 5
    saved.losses = [0.5]
    other = restored(saved, Counter(), prefix)
    assert (other.step, other.losses, other.width) == (5, [0.5], 3)
    assert (Counter.step, Counter.losses) == (0, [])


def test_attributes_in_slots_are_saved(prefix: str) -> None:
    assert restored(Slotted(0.999), Slotted(0.0), prefix).decay == 0.999


def test_what_is_stored_is_the_json_of_a_dict(prefix: str) -> None:
    Checkpoint(thing=thing(step=3, text="é", losses=[0.5], pair=(1, 2))).write(prefix)
    expected = '{"step":3,"text":"é","losses":[0.5],"pair":{"$":"tuple","v":[1,2]}}'
    assert load_variable(prefix, "thing/.ATTRIBUTES/py_state") == expected.encode()


@pytest.mark.parametrize(
    "value", [len, nn.Linear, torch, object(), torch.ones(1), nn.ReLU(), Text("x"), [torch.ones(1), 3], {"a": [len]}]
)
def test_what_is_not_plain_stays_out(value: object, prefix: str) -> None:
    Checkpoint(thing=thing(x=value, y=torch.ones(1))).write(prefix)
    assert "thing/.ATTRIBUTES/py_state" not in dict(list_variables(prefix))


def test_a_list_inside_of_itself_stays_out() -> None:
    made = thing(x=[1])
    made.x.append(made.x)
    assert made._serialize_to_tensors() == {}


def test_what_is_marked_stays_out_as_an_attribute_and_as_an_element() -> None:
    made = thing(step=1, cache=NoDependency(5), window=[1, NoDependency([2])])
    assert made._serialize_to_tensors() == {"py_state": b'{"step":1}'}


def test_a_class_that_says_what_is_saved_keeps_the_word() -> None:
    class Own(AutoTrackable):
        def __init__(self) -> None:
            self.number = 3

        def _serialize_to_tensors(self) -> Any:
            return {**super()._serialize_to_tensors(), "half": torch.tensor(1.5)}

    assert Own()._attribute_names() == ("half",)


def test_an_object_without_plain_attributes_has_no_value_of_its_own() -> None:
    assert [value.key for value in walk(thing(x=torch.ones(1))).values[:-1]] == ["x/.ATTRIBUTES/VARIABLE_VALUE"]


def test_text_that_cannot_be_stored_is_refused_by_the_name_of_its_attribute(prefix: str) -> None:
    with pytest.raises(UnsupportedValueError, match=r"\(root\)\.thing cannot be saved: its attribute 'name': .*NoDep"):
        Checkpoint(thing=thing(step=1, name="\udc80")).write(prefix)


# ------------------------------------------------------------------------------------------------- Restoring


def test_a_live_list_or_dict_is_filled_in_place(prefix: str) -> None:
    saved = thing(losses=[0.1, 0.2, 0.3], counts={"a": 1, "b": [3]}, seen={1, 2}, nested=[[1], {"k": [2]}])
    live = thing(losses=[9.0], counts={"z": 0, "b": [0, 0]}, seen={5}, nested=[[0], {"k": []}])
    held = live.losses, live.counts, live.seen, live.nested, live.nested[0], live.nested[1]["k"], live.counts["b"]
    restored(saved, live, prefix)
    now = live.losses, live.counts, live.seen, live.nested, live.nested[0], live.nested[1]["k"], live.counts["b"]
    assert all(a is b for a, b in zip(held, now, strict=True))
    assert now == ([0.1, 0.2, 0.3], {"a": 1, "b": [3]}, {1, 2}, [[1], {"k": [2]}], [1], [2], [3])
    assert isinstance(live.losses, TrackedList)
    assert isinstance(live.counts, TrackedDict)


def test_a_list_that_was_filled_can_be_saved_again_and_take_modules(prefix: str) -> None:
    live = restored(thing(rows=[[1], [2], [3]]), thing(rows=[[0]]), prefix)
    live.rows.append(nn.Linear(1, 1, bias=False))
    assert [value.key for value in walk(live).values[:-1]] == ["rows/3/weight/.ATTRIBUTES/VARIABLE_VALUE"]


def test_a_list_is_shorter_after_going_back(prefix: str) -> None:
    live = thing(losses=[])
    path = Checkpoint(thing=live).write(prefix)
    live.losses.append(1.0)
    Checkpoint(thing=live).read(path).assert_consumed()
    assert live.losses == []


def test_attributes_are_set_the_way_that_the_class_wants(prefix: str) -> None:
    seen = []

    class Watched(AutoTrackable):
        def __init__(self, step: int) -> None:
            self.step = step
            self.other = 0

        def __setattr__(self, name: str, value: Any) -> None:
            seen.append((name, value))
            super().__setattr__(name, value)

    saved, live = Watched(5), Watched(1)
    seen.clear()
    restored(saved, live, prefix)
    assert seen == [("step", 5)]


def test_a_stored_attribute_that_the_live_object_lacks_is_unused(prefix: str) -> None:
    path = Checkpoint(thing=thing(step=3, epoch=1)).write(prefix)
    live = thing(step=0)
    status = Checkpoint(thing=live).read(path).assert_existing_objects_matched()
    assert live.step == 3
    assert not hasattr(live, "epoch")
    with pytest.raises(AssertionError, match=r"Unused attributes .*: \(root\)\.thing: epoch\."):
        status.assert_consumed()


@pytest.mark.parametrize("live", [thing(x=torch.ones(1)), thing(step=len), thing(step=NoDependency(0))])
def test_stored_attributes_without_a_plain_place_are_unused(live: AutoTrackable, prefix: str) -> None:
    path = Checkpoint(thing=thing(step=3, x=torch.zeros(1))).write(prefix)
    status = Checkpoint(thing=live).read(path)
    with pytest.raises(AssertionError, match=r"Unused attributes .*: \(root\)\.thing: (step|py_state)\."):
        status.assert_consumed()


def test_an_attribute_that_is_not_stored_keeps_its_value_and_is_named(prefix: str) -> None:
    path = Checkpoint(thing=thing(step=3)).write(prefix)
    live = thing(step=0, epoch=4, layers=[], cache=NoDependency(1))
    status = Checkpoint(thing=live).read(path)
    assert (live.step, live.epoch) == (3, 4)
    with pytest.raises(AssertionError, match=r"Attributes that checkpoint .* lacks.*: \(root\)\.thing: epoch\. They"):
        status.assert_existing_objects_matched()
    assert [value.name for value in status.report().only_in_program] == ["(root).thing: epoch"]


def test_an_object_that_was_saved_without_numbers_keeps_its_own(prefix: str) -> None:
    """As TensorFlow's checkpoints are."""
    live = restored(thing(x=torch.ones(1)), thing(x=torch.zeros(1), units=4), prefix)
    assert live.units == 4


def test_an_object_that_is_not_in_the_checkpoint_is_named(prefix: str) -> None:
    path = Checkpoint(x=torch.ones(1)).write(prefix)
    status = Checkpoint(x=torch.zeros(1), progress=Progress()).read(path)
    with pytest.raises(AssertionError, match=r"\(root\)\.progress"):
        status.assert_existing_objects_matched()


def test_lists_that_were_empty_or_are_have_nothing_to_complain_about(prefix: str) -> None:
    """C183: they may be those of modules, before there is any."""
    restored(thing(layers=[], x=torch.ones(1)), thing(layers=[nn.ReLU()], x=torch.ones(1)), prefix)
    restored(thing(layers=[nn.ReLU()], step=1), thing(layers=[], step=1), prefix + "2")


def test_nothing_changes_where_something_else_does_not_fit(prefix: str) -> None:
    path = Checkpoint(thing=thing(step=3, x=torch.ones(2))).write(prefix)
    live = thing(step=0, x=torch.ones(3))
    with pytest.raises(ValueError, match="shape"):
        Checkpoint(thing=live).read(path)
    assert live.step == 0


@pytest.mark.parametrize("name", ["_owner", "_attributes", "_serialize_to_tensors"])
def test_an_attribute_cannot_have_the_name_of_a_method_that_checkpoints_call(name: str) -> None:
    with pytest.raises(AttributeError, match=f"'{name}' is a method of AutoTrackable.*another name"):
        setattr(thing(), name, 3)


def test_a_frozen_dataclass_has_the_stored_values_or_is_refused_before_anything_changes(prefix: str) -> None:
    @dataclasses.dataclass(frozen=True)
    class Sizes(AutoTrackable):
        width: int = 1

    restored(Sizes(2), Sizes(2), prefix)
    progress = Progress()
    Checkpoint(a=Progress(step=3), sizes=Sizes(2)).write(prefix)
    with pytest.raises(MismatchError, match=r"\(root\)\.sizes .*Sizes is frozen.* stored for width"):
        Checkpoint(a=progress, sizes=Sizes()).read(prefix)
    assert progress.step == 0


def test_an_attribute_that_the_class_refuses_ends_the_restore_with_its_name(prefix: str) -> None:
    class Guarded(AutoTrackable):
        def __setattr__(self, name: str, value: Any) -> None:
            if value == 3:
                raise RuntimeError("not three")
            super().__setattr__(name, value)

    path = Checkpoint(thing=thing(step=3)).write(prefix)
    live = Guarded()
    live.step = 0
    with pytest.raises(RestoreError, match=r"\(root\)\.thing did not take its state .*not three"):
        Checkpoint(thing=live).read(path)


def test_an_object_that_appears_later_gets_its_numbers_then(prefix: str) -> None:
    path = Checkpoint(owner=thing(progress=Progress(4))).write(prefix)
    checkpoint = Checkpoint(owner=thing())
    status = checkpoint.read(path)
    checkpoint.owner.progress = Progress()  # type: ignore[attr-defined]
    assert checkpoint.owner.progress.step == 4  # type: ignore[attr-defined]
    status.assert_consumed()


def test_the_state_of_an_object_of_another_kind_is_unused(prefix: str) -> None:
    path = Checkpoint(thing=Text("no JSON")).write(prefix)
    status = Checkpoint(thing=thing(step=1)).read(path)
    with pytest.raises(AssertionError, match=r"\(root\)\.thing: py_state"):
        status.assert_consumed()
    with pytest.raises(AssertionError, match=r"\(root\)\.thing: step"):
        status.assert_existing_objects_matched()


# ------------------------------------------------------------------------------------------- The other ways


@pytest.mark.parametrize("is_async", [False, True])
def test_every_save_has_the_numbers_of_its_time(is_async: bool, prefix: str) -> None:
    live = Progress()
    checkpoint = Checkpoint(progress=live)
    options = CheckpointOptions(enable_async=is_async)
    for step in range(1, 3):
        live.step = step
        live.losses.append(step / 2)
        path = checkpoint.save(prefix, options)
        live.losses.append(99.0)
        checkpoint.sync()
        live.losses.pop()
        other = Progress()
        Checkpoint(progress=other).restore(path).expect_partial()
        assert (other.step, other.losses) == (step, [0.5, 1.0][:step])


def test_a_frozen_saver_saves_the_numbers_of_each_time(prefix: str) -> None:
    live = Progress(layer=nn.Linear(1, 1))
    checkpoint = Checkpoint(progress=live)
    saver = frozen_saver(checkpoint)
    live.step = 5
    live.losses.append(0.5)
    path = saver.save(prefix)
    whole = checkpoint.write(prefix + "-whole")
    for end in (".index", ".data-00000-of-00001"):
        with open(path + end, "rb") as first, open(whole + end, "rb") as second:
            assert first.read() == second.read()
    live.step = 0
    live.losses.clear()
    saver.restore(path).assert_consumed()
    assert (live.step, live.losses) == (5, [0.5])


def test_the_first_number_of_an_object_is_a_change_to_a_frozen_saver(prefix: str) -> None:
    live = thing(x=torch.ones(1))
    saver = frozen_saver(Checkpoint(thing=live))
    live.step = 1
    with pytest.raises(StructureChangedError, match=r"the values of \(root\)\.thing"):
        saver.save(prefix)


def test_a_checkpoint_saves_no_numbers_of_its_own(prefix: str) -> None:
    """C025: as its subclasses."""

    class Mine(Checkpoint):
        def __init__(self, **children: Any) -> None:
            super().__init__(**children)
            self.step = 3

    mine = Mine(x=torch.ones(1))
    mine.write(prefix)
    assert [name for name, _ in list_variables(prefix)] == [
        "_CHECKPOINTABLE_OBJECT_GRAPH",
        "x/.ATTRIBUTES/VARIABLE_VALUE",
    ]


def test_an_auto_trackable_root_has_its_state_at_the_root(prefix: str) -> None:
    path = Checkpoint(Progress(3)).write(prefix)
    live = Progress()
    Checkpoint(live).read(path).assert_consumed()
    assert live.step == 3
