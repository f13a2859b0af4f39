"""What is put into a tracked list or dict gets the values that wait under its name."""

import copy
from typing import Any

import pytest
import torch

from torch_trackckpt import AutoTrackable, NoDependency
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
