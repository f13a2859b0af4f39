"""How object paths and checkpoint keys are spelled."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trackckpt.graph.keys import attribute_key, escape, object_path, readable_path, slot_path


def test_a_key_is_the_path_of_local_names_and_the_attribute() -> None:
    """C001"""
    assert attribute_key(object_path(("model", "fc", "weight")), "VARIABLE_VALUE") == (
        "model/fc/weight/.ATTRIBUTES/VARIABLE_VALUE"
    )


def test_the_key_of_the_root_begins_with_a_slash() -> None:
    """C003"""
    assert attribute_key("", "total") == "/.ATTRIBUTES/total"


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("a/b/c", "a.Sb.Sc"),
        ("a.b", "a..b"),
        ("d/.S", "d.S..S"),
        (".S", "..S"),
        (".ATTRIBUTES", "..ATTRIBUTES"),
        (".OPTIMIZER_SLOT", "..OPTIMIZER_SLOT"),
        ("é", "é"),
        ("", ""),
    ],
)
def test_dots_are_doubled_before_slashes_are_written_as_dot_s(name: str, escaped: str) -> None:
    """C004, C005, C006"""
    assert escape(name) == escaped


def test_an_attribute_name_is_escaped_like_a_local_name() -> None:
    """C007"""
    assert attribute_key("child", "a.b/c") == "child/.ATTRIBUTES/a..b.Sc"


def test_a_slot_lies_below_its_variable_under_the_whole_path_of_its_optimizer() -> None:
    """C125"""
    assert slot_path("model/w", "trainer/opt", "exp/avg") == "model/w/.OPTIMIZER_SLOT/trainer/opt/exp.Savg"


def test_messages_join_unescaped_names_with_dots() -> None:
    assert readable_path(()) == "(root)"
    assert readable_path(("model", "a/b")) == "(root).model.a/b"


names = st.lists(st.text(alphabet="aS./é", min_size=1, max_size=4), max_size=4).map(tuple)


@settings(deadline=None)
@given(names, names)
def test_different_names_never_give_one_path(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    """C005"""
    assert (object_path(one) == object_path(other)) == (one == other)


@settings(deadline=None)
@given(names)
def test_no_name_can_forge_a_reserved_word(local_names: tuple[str, ...]) -> None:
    """C005"""
    assert not {".ATTRIBUTES", ".OPTIMIZER_SLOT"} & set(object_path(local_names).split("/"))
