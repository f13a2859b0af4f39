"""What is put into a tracked list or dict gets the values that wait under its name."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch

from torch_trackckpt import AutoTrackable, Checkpoint, NoDependency
from torch_trackckpt.adapters import adapt
from torch_trackckpt.trackable import Waiting


def thing(**attributes: Any) -> AutoTrackable:
    made = AutoTrackable()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


class Position:
    """A stored object that waits, and counts the elements that are there when it is asked."""

    restore_uid = 1

    def __init__(self, container: Any, value: float) -> None:
        self._container, self._value = container, value
        self.sizes: list[int] = []

    def restore(self, child: object) -> bool:
        if not isinstance(child, torch.Tensor):
            return False
        self.sizes.append(len(self._container))
        child.fill_(self._value)
        return True


def waiting_for(container: Any, *names: str) -> tuple[Waiting, list[int]]:
    """Has values 10, 11, ... wait for children; the list gets an entry for each child that was attached."""
    waiting = adapt(container)._waiting()  # type: ignore[union-attr]
    assert waiting is not None
    told: list[int] = []
    waiting.watch(lambda: told.append(len(container)))
    for value, name in enumerate(names, 10):
        waiting.add(name, Position(container, value))
    return waiting, told


def test_an_element_that_comes_later_gets_what_waits_under_its_index() -> None:
    """C092, C094: before it is in its place, and the watchers hear of it after that."""
    tracked = thing(l=[]).l
    waiting, told = waiting_for(tracked, "0", "2", "4")
    for value in (1.0, 2.0):
        tracked.append(torch.tensor(value))
    tracked += (torch.tensor(value) for value in (3.0, 4.0))
    assert (tracked, told) == ([10.0, 2.0, 11.0, 4.0], [1, 2, 3, 4])
    tracked.extend([torch.tensor(5.0), torch.tensor(6.0)])
    assert (tracked[4:], waiting.names) == ([12.0, 6.0], ())


def test_every_way_to_put_an_element_in_gives_it_what_waits() -> None:
    """C092"""
    values = torch.arange(5.0).unbind()
    tracked = thing(l=[None] * 3).l
    waiting_for(tracked, "0", "1", "2", "3", "4")
    tracked[-3] = values[0]
    tracked[1:3] = values[1:3]
    tracked.insert(100, values[3])
    assert tracked == [10.0, 11.0, 12.0, 13.0]
    tracked[4:] = [values[4]]
    assert tracked[4] == 14.0
    tracked = thing(l=[None, torch.tensor(1.0)]).l
    waiting_for(tracked, "3")
    tracked *= 2
    assert tracked[1:] == [10.0, None, 10.0]
    tracked = thing(l=[None] * 4).l
    waiting_for(tracked, "1", "3")
    tracked[1::2] = torch.zeros(2).unbind()
    assert tracked == [None, 10.0, None, 11.0]


def test_an_entry_that_comes_later_gets_what_waits_under_its_key() -> None:
    """C093"""
    tracked = thing(d={}).d
    waiting, told = waiting_for(tracked, "a", "b", "c", "d", "1")
    tracked["a"] = torch.tensor(1.0)
    tracked.update(b=torch.tensor(2.0), other=torch.tensor(3.0))
    tracked |= {"c": torch.tensor(4.0)}
    tracked.setdefault("d", torch.tensor(5.0))
    tracked[1] = torch.tensor(6.0)
    assert tracked == {"a": 10.0, "b": 11.0, "other": 3.0, "c": 12.0, "d": 13.0, 1: 6.0}
    assert (waiting.names, told) == (("1",), [1, 2, 3, 4, 5, 6])


def test_plain_values_and_marked_ones_take_nothing_and_tell_nobody() -> None:
    """C092, C197"""
    tracked = thing(l=[]).l
    waiting, told = waiting_for(tracked, "0", "1", "2")
    tracked.append(1.0)
    tracked.append(NoDependency(torch.tensor(2.0)))
    assert (tracked, waiting.names) == ([1.0, 2.0], ("0", "1", "2"))
    assert told == []


def test_an_element_that_cannot_be_restored_does_not_get_in() -> None:
    class Refusing(Position):
        def restore(self, child: object) -> bool:
            raise ValueError("a shape")

    root = thing(l=[], d={})
    for container in (root.l, root.d):
        waiting_for(container)[0].add("0", Refusing(container, 0.0))
    for put in (
        lambda: root.l.append(torch.ones(1)),
        lambda: root.l.extend([torch.ones(1)]),
        lambda: root.d.update({"0": torch.ones(1)}),
    ):
        with pytest.raises(ValueError, match="a shape"):
            put()
    assert (root.l, root.d) == ([], {})


def test_nothing_waits_for_the_elements_of_a_copy() -> None:
    tracked = thing(l=[]).l
    waiting_for(tracked, "0")
    for twin in (copy.copy(tracked), copy.deepcopy(tracked)):
        twin.append(torch.tensor(1.0))
        assert twin == [1.0]


# -------------------------------------------------------------------------------------------------- with files


def scalar(value: float = 0.0) -> torch.Tensor:
    return torch.tensor(float(value))


def test_elements_that_are_appended_after_a_restore_are_filled_from_the_elements_of_their_index(prefix: str) -> None:
    """C092"""
    Checkpoint(l=[scalar(1), 5, [scalar(2)], thing(x=scalar(3))]).write(prefix)
    live = Checkpoint(l=[scalar()])
    status = live.read(prefix)
    assert live.l == [1.0]
    live.l += [None, [scalar()]]
    with pytest.raises(AssertionError, match=r"\(root\)\.l\.3\.x"):
        status.assert_consumed()
    live.l.append(AutoTrackable())
    live.l[3].x = scalar()
    assert (live.l[2], live.l[3].x) == ([2.0], 3.0)
    status.assert_consumed()
    live.l.append(scalar(9))
    assert live.l[4] == 9.0


def test_entries_that_are_added_after_a_restore_are_filled_from_the_entries_of_their_key(prefix: str) -> None:
    """C093"""
    Checkpoint(d={"a": scalar(1), "b": {"c": scalar(2)}}).write(prefix)
    live = Checkpoint(d={})
    status = live.read(prefix)
    live.d["a"] = scalar()
    live.d.setdefault("b", {})["c"] = scalar()
    assert live.d == {"a": 1.0, "b": {"c": 2.0}}
    status.assert_consumed()
    live.d["z"] = scalar(9)
    assert live.d["z"] == 9.0


def test_a_list_that_is_assigned_after_a_restore_and_filled_by_append_is_filled(prefix: str) -> None:
    """C094"""
    Checkpoint(l=[scalar(1), scalar(2)], t=([scalar(3)],)).write(prefix)
    live = Checkpoint()
    status = live.read(prefix)
    live.l = []
    for _ in range(2):
        live.l.append(scalar())
    live.t = ([],)
    live.t[0].extend([scalar()])
    assert (live.l, live.t) == ([1.0, 2.0], ([3.0],))
    status.assert_consumed()


def test_an_entry_that_replaces_a_restored_one_keeps_its_value(prefix: str) -> None:
    """C093"""
    Checkpoint(d={"a": scalar(1)}, l=[scalar(2)]).write(prefix)
    live = Checkpoint(d={"a": scalar()}, l=[])
    live.read(prefix).expect_partial()
    live.d["a"] = scalar(7)
    live.l.append(scalar())
    live.l[0] = scalar(8)
    assert (live.d, live.l) == ({"a": 7.0}, [8.0])


def test_a_shape_that_does_not_fit_is_an_error_where_the_element_is_put_in(prefix: str) -> None:
    """C092"""
    Checkpoint(l=[torch.ones(2)]).write(prefix)
    live = Checkpoint(l=[])
    live.read(prefix).expect_partial()
    with pytest.raises(ValueError, match="shape"):
        live.l.append(torch.zeros(3))
    assert live.l == []
    live.l.append(torch.zeros(2))
    assert torch.equal(live.l[0], torch.ones(2))


def test_a_container_that_is_waited_for_is_freed_at_once_when_it_is_dropped(prefix: str) -> None:
    """C092: without the cycle collector."""
    Checkpoint(l=[scalar(1)], d={"a": scalar(2)}).write(prefix)
    live = Checkpoint(l=[], d={})
    live.read(prefix).expect_partial()
    references = [weakref.ref(live.l), weakref.ref(live.d)]
    gc.collect()
    gc.disable()
    try:
        live.l, live.d = None, None
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()
