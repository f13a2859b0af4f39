"""Lists, tuples, dicts and torch's own containers as nodes."""

from collections import OrderedDict, namedtuple

import pytest
import torch
from checkpoints import walk
from torch import nn

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import UnsupportedValueError


def saved_paths(root: object) -> list[str]:
    return [value.key.split("/.ATTRIBUTES")[0] for value in walk(root).values[:-1]]


def ones() -> torch.Tensor:
    return torch.ones(2)


Point = namedtuple("Point", ["x", "y"])


@pytest.mark.parametrize(
    ("container", "paths"),
    [
        ([ones(), ones()], ["0", "1"]),
        ((ones(), ones()), ["0", "1"]),
        (Point(ones(), ones()), ["x", "y"]),
        ({"b": ones(), "a": ones()}, ["b", "a"]),
        (OrderedDict(b=ones(), a=ones()), ["b", "a"]),
        ([[ones()], {"k": (ones(),)}], ["0/0", "1/k/0"]),
        (nn.ParameterList([ones(), ones()]), ["0", "1"]),
        (nn.ParameterDict([("b", ones()), ("a", ones())]), ["b", "a"]),
        (nn.ModuleList([nn.Linear(1, 1, bias=False)]), ["0/weight"]),
        (nn.ModuleDict({"é/x": nn.Linear(1, 1, bias=False)}), ["é.Sx/weight"]),
        (nn.Sequential(nn.ReLU(), nn.Linear(1, 1, bias=False)), ["1/weight"]),
        (nn.Sequential(OrderedDict(act=nn.ReLU(), fc=nn.Linear(1, 1, bias=False))), ["fc/weight"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_elements_are_children_by_index_or_key(container: object, paths: list[str]) -> None:
    """C006, C037, C171"""
    assert saved_paths(container) == paths


def test_elements_of_a_list_of_modules_change_as_the_program_likes(prefix: str) -> None:
    """C171: torch's containers are modules, whose elements are those at the time of the save."""
    layers = nn.ModuleList([nn.Linear(1, 1, bias=False)])
    heads = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False)})
    checkpoint = Checkpoint(layers=layers, heads=heads)
    layers.append(nn.Linear(2, 2, bias=False))
    layers.insert(0, nn.ReLU())
    del layers[1]
    heads.pop("a")
    heads["b"] = nn.Linear(1, 1, bias=False)
    assert saved_paths(checkpoint) == ["heads/b/weight", "layers/1/weight"]
    checkpoint.write(prefix)
    twin = nn.ModuleList([nn.ReLU(), nn.Linear(2, 2, bias=False)])
    Checkpoint(layers=twin, heads=nn.ModuleDict({"b": nn.Linear(1, 1, bias=False)})).read(prefix).assert_consumed()
    assert torch.equal(twin[1].weight, layers[1].weight)


def test_eleven_elements_keep_the_order_of_their_numbers() -> None:
    """C013"""
    assert saved_paths([torch.tensor(index) for index in range(11)]) == [str(index) for index in range(11)]


def test_an_element_that_is_not_trackable_keeps_its_number_and_has_no_node() -> None:
    """C025"""
    assert saved_paths([1, ones(), "text", ones()]) == ["1", "3"]
    assert saved_paths({"a": 1, 2: "text", "b": ones()}) == ["b"]


def test_a_trackable_under_a_key_that_is_no_text_is_refused_at_save_with_its_path() -> None:
    with pytest.raises(UnsupportedValueError, match=r"^\(root\)\.table cannot be saved: .*non-string key 3 .*Tensor"):
        walk({"table": {3: ones()}})


def test_a_plain_value_under_a_key_that_is_no_text_is_ignored() -> None:
    """C187"""
    assert saved_paths({"a": ones(), 1: 2, 2: (0.5, "text"), None: None}) == ["a"]


def test_a_list_in_a_module_is_seen_as_torch_sees_it_unless_it_is_tracked_beside_the_module(prefix: str) -> None:
    """C200"""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(1, 2, bias=False)
            self.experts = [nn.Linear(1, 1, bias=False) for _ in range(2)]

    live, twin = Experts(), Experts()
    assert list(live.state_dict()) == ["gate.weight"]
    assert saved_paths(Checkpoint(model=live)) == ["model/gate/weight"]
    checkpoint = Checkpoint(model=live, experts=live.experts)
    assert saved_paths(checkpoint) == ["experts/0/weight", "experts/1/weight", "model/gate/weight"]
    checkpoint.write(prefix)
    Checkpoint(model=twin, experts=twin.experts).read(prefix).assert_consumed()
    assert torch.equal(twin.experts[1].weight, live.experts[1].weight)


def test_one_element_in_two_containers_is_one_node() -> None:
    """C023"""
    shared = ones()
    assert saved_paths({"list": [shared], "dict": {"k": shared}}) == ["list/0"]


def test_a_container_that_contains_itself_is_one_node() -> None:
    """C013"""
    container: list[object] = [ones()]
    container.append(container)
    snapshot = walk(container)
    assert [(child.local_name, child.node_id) for child in snapshot.graph.nodes[0].children] == [("0", 1), ("1", 0)]


def test_a_list_is_restored_from_a_tuple_and_a_dict_of_the_same_names(prefix: str) -> None:
    """C037: only local names count."""
    Checkpoint(c=(torch.tensor(1), torch.tensor(2))).write(prefix)
    as_list, as_dict = [torch.tensor(0), torch.tensor(0)], {"1": torch.tensor(0), "0": torch.tensor(0)}
    Checkpoint(c=as_list).read(prefix).assert_consumed()
    Checkpoint(c=as_dict).read(prefix).assert_consumed()
    assert as_list == [torch.tensor(1), torch.tensor(2)]
    assert as_dict == {"0": torch.tensor(1), "1": torch.tensor(2)}


def test_a_list_is_restored_into_a_tuple_and_a_dict_of_the_same_names(prefix: str) -> None:
    """C195"""
    Checkpoint(c=[torch.tensor(1), torch.tensor(2)]).write(prefix)
    as_dict, as_tuple = {"0": torch.tensor(0), "1": torch.tensor(0)}, (torch.tensor(0), torch.tensor(0))
    Checkpoint(c=as_dict).read(prefix).assert_consumed().assert_existing_objects_matched()
    Checkpoint(c=as_tuple).read(prefix).assert_consumed().assert_existing_objects_matched()
    assert as_dict == {"0": torch.tensor(1), "1": torch.tensor(2)}
    assert as_tuple == (torch.tensor(1), torch.tensor(2))


def test_a_longer_list_keeps_what_the_checkpoint_has_nothing_for(prefix: str) -> None:
    """C196"""
    Checkpoint(c=[torch.tensor(1)]).write(prefix)
    live = [torch.tensor(0), torch.tensor(5)]
    status = Checkpoint(c=live).read(prefix)
    assert live == [torch.tensor(1), torch.tensor(5)]
    with pytest.raises(AssertionError, match=r"\(root\)\.c\.1"):
        status.assert_existing_objects_matched()


def test_a_shorter_list_takes_what_it_has_room_for(prefix: str) -> None:
    """C127, C196"""
    Checkpoint(c=[torch.tensor(1), torch.tensor(2)]).write(prefix)
    short = [torch.tensor(0)]
    status = Checkpoint(c=short).read(prefix)
    assert torch.equal(short[0], torch.tensor(1))
    status.assert_existing_objects_matched()
    with pytest.raises(AssertionError, match=r"\(root\)\.c\.1"):
        status.assert_consumed()


def test_empty_containers_on_either_side_are_ignored_by_every_assertion(prefix: str) -> None:
    """C137"""
    Checkpoint(x=ones(), saved=[], both={}).write(prefix)
    status = Checkpoint(x=torch.zeros(2), live=(), both=[]).read(prefix)
    status.assert_consumed().assert_existing_objects_matched().assert_nontrivial_match()


def test_containers_without_trackables_that_were_added_later_are_ignored(prefix: str) -> None:
    """C138"""
    Checkpoint(x=ones()).write(prefix)
    Checkpoint(x=torch.zeros(2), numbers={"a": 1, "b": [2, 3]}).read(prefix).assert_consumed()
