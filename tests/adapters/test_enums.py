"""Members of enums in a state: stored by name, and found again only where the live object has the enum already."""

import enum
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import witness
from adapters.optimizers import Odd, linear
from torch import nn

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import MismatchError, UnsupportedValueError


class Mode(enum.Enum):
    FAST = 1
    EXACT = 2


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Box:
    """Anything at all as a `state_dict`; counts how often it is asked for."""

    def __init__(self, state: Any = None, **attributes: Any) -> None:
        self._box = [state]
        self.num_captures = 0
        vars(self).update(attributes)

    def state_dict(self) -> Any:
        self.num_captures += 1
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self._box = [state]

    @property
    def state(self) -> Any:
        return self._box[0]


class Hidden(Box):
    """Its attributes do not show what is in its state."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self._get = lambda: state
        self.loaded: Any = None

    def state_dict(self) -> Any:
        self.num_captures += 1
        return self._get()

    def load_state_dict(self, state: Any) -> None:
        self.loaded = state


class Trainer(Box):
    class Phase(enum.Enum):
        WARM_UP = 1

    levels: ClassVar = {"default": Level.LOW}


@pytest.mark.parametrize(
    ("state", "live"),
    [
        (Mode.FAST, Box(Mode.EXACT)),
        ({"mode": Mode.FAST}, Box({"mode": Mode.EXACT})),
        ({"mode": Mode.FAST}, Box(mode=Mode)),
        ({"mode": Mode.FAST}, Box(options=[{"a": (Mode.EXACT,)}])),
        ({Mode.FAST: [1], Mode.EXACT: [2]}, Box({Mode.FAST: []})),
        (OrderedDict([(Level.HIGH, {Mode.FAST})]), Trainer(Mode.FAST)),
        (Trainer.Phase.WARM_UP, Trainer()),
        (Access.READ | Access.WRITE, Box(Access.READ)),
        (Access(0), Box(Access.READ)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Box) else repr(value),
)
def test_a_member_comes_back_where_the_live_object_has_its_enum(state: Any, live: Box, prefix: str) -> None:
    """C166, C169"""
    path = Checkpoint(thing=Box(state)).save(prefix)
    num_captures = live.num_captures

    Checkpoint(thing=live).restore(path).assert_consumed()

    assert live.state == state
    assert type(live.state) is type(state)
    assert live.num_captures == num_captures


def test_the_present_state_is_asked_where_the_attributes_do_not_tell(prefix: str) -> None:
    """C166"""
    path = Checkpoint(thing=Box([Mode.FAST, Level.LOW])).save(prefix)
    live = Hidden({"mode": Mode.EXACT, "levels": [Level.HIGH]})

    Checkpoint(thing=live).restore(path).assert_consumed()

    assert live.loaded == [Mode.FAST, Level.LOW]


def test_the_class_is_stored_by_its_qualified_name_alone(prefix: str) -> None:
    """C166"""
    Checkpoint(thing=Box(Trainer.Phase.WARM_UP)).write(prefix)

    (text,) = witness.read_bundle(prefix)["thing/.ATTRIBUTES/py_state"].data
    assert text == b'{"$":"enum","type":"Trainer.Phase","v":"WARM_UP"}'


class Failing(Box):
    def state_dict(self) -> Any:
        raise LookupError("nothing to save yet")


def other_mode() -> type[enum.Enum]:
    return enum.Enum("Mode", "FAST SLOW", module="elsewhere", qualname="Mode")


@pytest.mark.parametrize(
    ("live", "complaint"),
    [
        (
            Box("before"),
            r"enum 'Mode', and neither the attributes nor the present state of the live Box .* an attribute",
        ),
        (Box(Level.LOW), r"enum 'Mode', and neither"),
        (Failing("before"), r"enum 'Mode', .* cannot be asked for it: LookupError: nothing to save yet"),
        (
            Box(enum.Enum("Mode", "SLOW").SLOW),
            r"holds Mode\.FAST, but the live enum .*Mode has no such member; .* SLOW",
        ),
        (Box([Mode.EXACT, other_mode()]), r"the live object uses .*test_enums\.Mode and elsewhere\.Mode"),
    ],
    ids=["no enum", "another enum", "no state", "another member", "two of the name"],
)
def test_a_member_that_cannot_be_found_is_a_mismatch_and_nothing_changes(
    live: Box, complaint: str, prefix: str
) -> None:
    """C169"""
    path = Checkpoint(thing=Box(Mode.FAST), weight=torch.ones(2)).save(prefix)
    before, weight = live.state, torch.zeros(2)

    with pytest.raises(
        MismatchError, match=rf"\(root\)\.thing cannot be restored .*nothing has been assigned: .*{complaint}"
    ):
        Checkpoint(thing=live, weight=weight).restore(path)

    assert live.state is before
    assert torch.equal(weight, torch.zeros(2))


def test_a_module_is_never_searched_for_the_enum_of_a_file(prefix: str) -> None:
    """C169: that this module defines `Mode` gives an object of a class of this module nothing."""
    path = Checkpoint(thing=Box(Mode.FAST)).save(prefix)

    with pytest.raises(MismatchError, match="a file cannot have classes imported"):
        Checkpoint(thing=Box()).restore(path)


def test_a_flag_of_unknown_bits_is_refused_at_the_save(tmp_path: Path) -> None:
    """C168"""
    bits = enum.IntFlag("Bits", "LOW HIGH")

    with pytest.raises(
        UnsupportedValueError, match=r"\(root\)\.thing cannot be saved: the value at \['a'\] is a .*Bits"
    ):
        Checkpoint(thing=Box({"a": bits(64)})).save(tmp_path / "ckpt")

    assert list(tmp_path.iterdir()) == []


def test_members_among_hyper_parameters_and_state_of_an_optimizer_come_back(prefix: str) -> None:
    """C103, C121"""
    model = linear()
    optimizer = Odd(model.parameters())
    optimizer.param_groups[0]["mode"] = Mode.EXACT
    optimizer.fill(model.weight, {"mode": Mode.EXACT})
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other = Odd(model.parameters())
    other.param_groups[0]["mode"] = Mode.FAST

    Checkpoint(model=model, optimizer=other).restore(path).assert_consumed()

    assert other.param_groups[0]["mode"] is Mode.EXACT
    assert other.state[model.weight]["mode"] is Mode.EXACT


class Extra(nn.Module):
    def __init__(self, mode: Mode) -> None:
        super().__init__()
        self.settings = [mode]

    def get_extra_state(self) -> dict[str, Mode]:
        return {"mode": self.settings[0]}

    def set_extra_state(self, state: dict[str, Mode]) -> None:
        self.settings = [state["mode"]]


def test_members_in_the_extra_state_of_a_module_come_back(prefix: str) -> None:
    """C166"""
    path = Checkpoint(model=Extra(Mode.EXACT)).save(prefix)
    model = Extra(Mode.FAST)

    Checkpoint(model=model).restore(path).assert_consumed()

    assert model.settings == [Mode.EXACT]
