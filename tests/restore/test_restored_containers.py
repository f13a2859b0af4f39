"""Lists, tuples and dicts are matched element by element, by index or key, whatever they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from checkpoints import thing
from named_values import full, is_restored, ones, zeros
from torch import nn

from torch_trackckpt import AutoTrackable, Checkpoint
from torch_trackckpt.errors import MismatchError

Make = Callable[[list[torch.Tensor]], object]

LIKE_A_LIST: dict[str, Make] = {
    "list": list,
    "tuple": tuple,
    "dict": lambda tensors: {str(index): tensor for index, tensor in enumerate(tensors)},
    "object": lambda tensors: thing(**{str(index): tensor for index, tensor in enumerate(tensors)}),
    "parameters": lambda tensors: nn.ParameterList(map(nn.Parameter, tensors)),
}
EACH = pytest.mark.parametrize("kind", list(LIKE_A_LIST))


def element(container: object, name: str) -> torch.Tensor:
    if isinstance(container, (AutoTrackable, nn.Module)):
        found = getattr(container, name)
    else:
        found = container[name] if isinstance(container, dict) else container[int(name)]  # type: ignore[index]
    assert isinstance(found, torch.Tensor)
    return found


@EACH
@pytest.mark.parametrize("late", [False, True])
def test_a_list_is_restored_into_whatever_has_its_numbers_as_names(prefix: str, kind: str, late: bool) -> None:
    """C195"""
    Checkpoint(items=[full(1.0), full(2.0)]).write(prefix)
    items = LIKE_A_LIST[kind]([zeros(), zeros()])
    checkpoint = Checkpoint() if late else Checkpoint(items=items)
    status = checkpoint.read(prefix)
    if late:
        checkpoint.items = items
    assert torch.equal(element(checkpoint.items, "0"), full(1.0))
    assert torch.equal(element(checkpoint.items, "1"), full(2.0))
    status.assert_consumed()


@EACH
def test_whatever_has_numbers_as_names_is_restored_into_a_list(prefix: str, kind: str) -> None:
    """C195"""
    Checkpoint(items=LIKE_A_LIST[kind]([full(1.0), full(2.0)])).write(prefix)
    items = [zeros(), zeros()]
    Checkpoint(items=items).read(prefix).assert_consumed()
    assert torch.equal(items[0], full(1.0))
    assert torch.equal(items[1], full(2.0))


@EACH
def test_fewer_elements_than_were_saved_are_restored_and_the_rest_is_not_consumed(prefix: str, kind: str) -> None:
    """C196"""
    Checkpoint(items=[ones(), ones(), ones()]).write(prefix)
    items = LIKE_A_LIST[kind]([zeros(), zeros()])
    status = Checkpoint(items=items).read(prefix)
    assert is_restored(element(items, "0"), element(items, "1"))
    status.assert_existing_objects_matched()
    with pytest.raises(AssertionError, match=r"\(root\)\.items\.2"):
        status.assert_consumed()


@EACH
def test_more_elements_than_were_saved_are_existing_objects_without_values(prefix: str, kind: str) -> None:
    """C196"""
    Checkpoint(items=[ones()]).write(prefix)
    items = LIKE_A_LIST[kind]([zeros(), zeros()])
    status = Checkpoint(items=items).read(prefix)
    assert is_restored(element(items, "0"))
    assert not element(items, "1").any()
    for assertion in (status.assert_existing_objects_matched, status.assert_consumed):
        with pytest.raises(AssertionError, match=r"\(root\)\.items\.1"):
            assertion()


def test_a_late_list_with_an_element_that_does_not_fit_changes_nothing(prefix: str) -> None:
    """C086"""
    Checkpoint(items=[ones(), ones()]).write(prefix)
    checkpoint = Checkpoint()
    checkpoint.read(prefix)
    items = [zeros(), torch.zeros(3)]
    with pytest.raises(MismatchError, match=r"\(root\)\.items\.1"):
        checkpoint.items = items
    assert not items[0].any()
    checkpoint.items = [zeros(), zeros()]
    assert is_restored(*checkpoint.items)
