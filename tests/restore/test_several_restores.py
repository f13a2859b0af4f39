"""Several restores that wait at the same time: the latest that has a value decides, however late its object comes."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from checkpoints import Text, thing
from named_values import full, write_named, zeros
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import StepLR

from torch_trackckpt import AutoTrackable, Checkpoint
from torch_trackckpt.errors import MismatchError
from torch_trackckpt.restore.deferred import Restoration


def values(*tensors: torch.Tensor) -> list[float]:
    return [float(tensor.detach().flatten()[0]) for tensor in tensors]


def layer(value: float = 0.0) -> nn.Linear:
    module = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        module.weight.fill_(value)
    return module


@pytest.fixture
def swapping() -> Iterator[None]:
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


# ------------------------------------------------------------------------------------------- one checkpoint


def test_of_two_restores_of_the_same_objects_the_later_decides(prefix: str) -> None:
    """C069, C139: the assertions of the earlier one still pass."""
    old = Checkpoint(x=full(1.0), net=layer(1.0)).write(prefix + "-old")
    new = Checkpoint(x=full(2.0), net=layer(2.0)).write(prefix + "-new")
    checkpoint = Checkpoint(x=zeros(), net=layer())
    for paths, expected in (((old, new), 2.0), ((new, old), 1.0)):
        statuses = [checkpoint.read(path) for path in paths]
        assert values(checkpoint.x, checkpoint.net.weight) == [expected, expected]
        for status in statuses:
            status.assert_consumed().assert_existing_objects_matched()


@pytest.mark.parametrize("first", ["old", "new"])
def test_of_two_restores_that_wait_for_one_name_the_later_call_decides(prefix: str, first: str) -> None:
    """C082, C139"""
    paths = {
        "old": Checkpoint(a=thing(x=full(1.0), y=full(1.0))).write(prefix + "-old"),
        "new": Checkpoint(a=thing(x=full(2.0), z=full(2.0))).write(prefix + "-new"),
    }
    checkpoint = Checkpoint()
    second = "new" if first == "old" else "old"
    statuses = {name: checkpoint.read(paths[name]) for name in (first, second)}
    checkpoint.a = thing(x=zeros(), y=zeros(), z=zeros())
    assert values(checkpoint.a.x) == [2.0 if second == "new" else 1.0]
    # What the later one has nothing for comes from the earlier.
    assert values(checkpoint.a.y, checkpoint.a.z) == [1.0, 2.0]
    for status in statuses.values():
        with pytest.raises(AssertionError, match="not bound"):
            status.assert_existing_objects_matched()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_of_three_restores_the_latest_decides_for_each_object(prefix: str, order: tuple[int, ...]) -> None:
    """C082, C088"""
    has = [("a", "b"), ("b", "c"), ("c", "a")]
    paths = [
        Checkpoint(net=thing(**{name: full(float(number)) for name in names})).write(f"{prefix}-{number}")
        for number, names in enumerate(has)
    ]
    net = AutoTrackable()
    checkpoint = Checkpoint(net=net)
    statuses = [checkpoint.read(paths[number]) for number in order]
    for name in "abc":
        setattr(net, name, zeros())
        latest = [number for number in order if name in has[number]][-1]
        assert values(getattr(net, name)) == [float(latest)]
    for status in statuses:
        with pytest.raises(AssertionError, match="not bound"):
            status.assert_consumed()
    assert not net._waiting()


def test_a_restore_between_two_attachments_counts_for_the_second(prefix: str) -> None:
    """C082"""
    old = Checkpoint(x=full(1.0), y=full(1.0)).write(prefix + "-old")
    new = Checkpoint(x=full(2.0), y=full(2.0)).write(prefix + "-new")
    checkpoint = Checkpoint()
    checkpoint.read(old)
    checkpoint.x = zeros()
    assert values(checkpoint.x) == [1.0]
    checkpoint.read(new)
    checkpoint.y = zeros()
    assert values(checkpoint.x, checkpoint.y) == [2.0, 2.0]


def test_a_mismatch_of_an_older_restore_does_not_matter_where_a_newer_has_the_value(prefix: str) -> None:
    """C082, C086"""
    Checkpoint(x=torch.ones(3)).write(prefix + "-old")
    Checkpoint(x=full(2.0)).write(prefix + "-new")
    checkpoint = Checkpoint()
    checkpoint.read(prefix + "-old").expect_partial()
    checkpoint.read(prefix + "-new")
    checkpoint.x = zeros()
    assert values(checkpoint.x) == [2.0]


def test_a_mismatch_of_the_newest_restore_is_an_error_and_the_older_one_waits_as_well(prefix: str) -> None:
    """C082, C086"""
    Checkpoint(x=full(1.0)).write(prefix + "-old")
    Checkpoint(x=torch.ones(3)).write(prefix + "-new")
    checkpoint = Checkpoint()
    checkpoint.read(prefix + "-old")
    checkpoint.read(prefix + "-new")
    x = zeros()
    with pytest.raises(MismatchError):
        checkpoint.x = x
    assert values(x) == [0.0]
    checkpoint.x = torch.zeros(3)
    assert values(checkpoint.x) == [1.0]


# ------------------------------------------------------------------------------------------- several roots


@pytest.mark.parametrize("attach_to", list(itertools.permutations(["old", "new"])), ids=str)
@pytest.mark.parametrize("read_first", ["old", "new"])
def test_an_object_of_two_roots_has_the_values_of_the_file_that_was_restored_last(
    prefix: str, attach_to: tuple[str, str], read_first: str
) -> None:
    """C083, C139: an older restore that still waits never overwrites a newer."""
    numbers = {"old": 1.0, "new": 2.0}
    roots = {name: Checkpoint() for name in numbers}
    read_last = "new" if read_first == "old" else "old"
    statuses = {}
    for name in (read_first, read_last):
        path = Checkpoint(shared=layer(numbers[name])).write(f"{prefix}-{name}")
        statuses[name] = roots[name].read(path)
    shared = layer()
    for name in attach_to:
        roots[name].shared = shared
    assert values(shared.weight) == [numbers[read_last]]
    for status in statuses.values():
        status.assert_consumed()


def test_what_the_user_changed_is_not_overwritten_by_an_older_restore(prefix: str) -> None:
    """C083: nor by the newer one, whose value was used already."""
    old, new = Checkpoint(), Checkpoint()
    old.read(Checkpoint(x=full(1.0)).write(prefix + "-old"))
    new.read(Checkpoint(x=full(2.0)).write(prefix + "-new"))
    x = zeros()
    new.x = x
    x.fill_(7.0)
    old.x = x
    new.x = x
    assert values(x) == [7.0]


def test_a_root_that_is_gone_leaves_what_it_restored_and_takes_its_wait_with_it(prefix: str) -> None:
    """C083, C089"""
    old, new = Checkpoint(), Checkpoint()
    old.read(Checkpoint(x=full(1.0), y=full(1.0)).write(prefix + "-old")).expect_partial()
    new.read(Checkpoint(x=full(2.0), y=full(2.0)).write(prefix + "-new")).expect_partial()
    x, y = zeros(), zeros()
    new.x = x
    del new
    gc.collect()
    old.x, old.y = x, y
    assert values(x, y) == [2.0, 1.0]


def test_a_module_of_two_roots_waits_for_both(prefix: str) -> None:
    """C083"""
    net = nn.Sequential()
    old = Checkpoint(net=net)
    old.read(Checkpoint(net=nn.Sequential(layer(1.0), layer(1.0))).write(prefix + "-old")).expect_partial()
    new = Checkpoint(other=net)
    new.read(Checkpoint(other=nn.Sequential(layer(2.0))).write(prefix + "-new")).expect_partial()
    del old, new
    gc.collect()
    net.append(layer())
    net.append(layer())
    assert values(net[0].weight, net[1].weight) == [2.0, 1.0]


# ------------------------------------------------------------------------------ states, groups and slots


class Counter:
    def __init__(self, value: int = 0) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


@pytest.mark.parametrize("attach_to", list(itertools.permutations(["old", "new"])), ids=str)
def test_a_python_state_keeps_what_the_latest_restore_gave_it(prefix: str, attach_to: tuple[str, str]) -> None:
    """C083"""
    schedule_of = {
        name: StepLR(SGD(layer().parameters(), lr=1.0), step_size) for name, step_size in (("old", 3), ("new", 5))
    }
    roots = {name: Checkpoint() for name in ("old", "new")}
    for number, (name, root) in enumerate(roots.items(), start=1):
        saved = Checkpoint(counter=Counter(number), text=Text(name), schedule=schedule_of[name])
        root.read(saved.write(f"{prefix}-{name}"))
    counter, text, schedule = Counter(), Text(), StepLR(SGD(layer().parameters(), lr=1.0), 7)
    for name in attach_to:
        roots[name].counter, roots[name].text, roots[name].schedule = counter, text, schedule
    assert (counter.value, text.text, schedule.step_size) == (2, "new", 5)


def trained(first: nn.Linear, second: nn.Linear, lr: float) -> Optimizer:
    optimizer = Adam([{"params": first.parameters()}, {"params": second.parameters(), "lr": lr * 2}], lr=lr)
    for parameter in (first.weight, second.weight):
        parameter.grad = torch.full_like(parameter, lr)
    optimizer.step()
    return optimizer


def save_training(prefix: str, lr: float) -> tuple[str, Optimizer]:
    first, second = layer(lr), layer(lr)
    optimizer = trained(first, second, lr)
    return Checkpoint(first=first, second=second, optimizer=optimizer).write(prefix), optimizer


@pytest.mark.parametrize("late", list(itertools.permutations(["first", "second", "optimizer"])), ids="-".join)
@pytest.mark.parametrize("num_attached", [0, 1, 2])
def test_groups_and_slots_are_those_of_the_latest_restore(
    prefix: str, late: tuple[str, ...], num_attached: int
) -> None:
    """C082, C083"""
    old, _ = save_training(prefix + "-old", 0.25)
    new, expected = save_training(prefix + "-new", 0.5)
    first, second = layer(), layer()
    optimizer = Adam([{"params": first.parameters()}, {"params": second.parameters()}], lr=9.0)
    parts = {"first": first, "second": second, "optimizer": optimizer}
    checkpoint = Checkpoint(**{name: parts[name] for name in late[:num_attached]})
    statuses = [checkpoint.read(path) for path in (old, new)]
    for name in late[num_attached:]:
        setattr(checkpoint, name, parts[name])
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1.0]
    for parameter, theirs in zip((first.weight, second.weight), expected.state, strict=True):
        assert torch.equal(parameter, theirs)
        assert all(torch.equal(optimizer.state[parameter][name], slot) for name, slot in expected.state[theirs].items())
    for status in statuses:
        status.assert_consumed()


def test_a_group_that_only_the_older_restore_has_is_not_taken_from_it(prefix: str) -> None:
    """C082: the optimizer's hyper-parameters are one value, and have come from the newer."""
    old, _ = save_training(prefix + "-old", 0.25)
    first, second = layer(), layer()
    new = Checkpoint(first=first, optimizer=Adam(first.parameters(), lr=0.5)).write(prefix + "-new")
    optimizer = Adam([{"params": first.parameters()}, {"params": second.parameters()}], lr=9.0)
    checkpoint = Checkpoint(first=first, optimizer=optimizer)
    checkpoint.read(old).expect_partial()
    checkpoint.read(new).expect_partial()
    checkpoint.second = second
    assert values(second.weight) != [0.0]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 9.0]


def test_a_file_with_slots_and_then_one_without_give_each_what_they_have(prefix: str) -> None:
    """C108: both wait when the objects come."""
    with_slots, saved = save_training(prefix + "-slots", 0.25)
    without = Checkpoint(first=layer(5.0), second=layer(6.0)).write(prefix + "-without")
    for late in itertools.permutations(["first", "second", "optimizer"]):
        checkpoint = Checkpoint()
        checkpoint.read(with_slots).expect_partial()
        checkpoint.read(without).expect_partial()
        first, second = layer(), layer()
        parts = {"first": first, "second": second, "optimizer": trained(first, second, 9.0)}
        for name in late:
            setattr(checkpoint, name, parts[name])
        assert values(first.weight, second.weight) == [5.0, 6.0]
        for parameter, theirs in zip((first.weight, second.weight), saved.state, strict=True):
            slots = checkpoint.optimizer.state[parameter]
            assert all(torch.equal(slots[name], slot) for name, slot in saved.state[theirs].items())


def test_slots_of_an_older_restore_do_not_replace_those_of_a_newer(prefix: str) -> None:
    """C083: they wait in another root."""
    old_path, _ = save_training(prefix + "-old", 0.25)
    new_path, expected = save_training(prefix + "-new", 0.5)
    first, second = layer(), layer()
    optimizer = Adam([*first.parameters()])
    old = Checkpoint(first=first)
    old.read(old_path).expect_partial()
    Checkpoint(first=first, optimizer=optimizer).read(new_path).expect_partial()
    before = optimizer.state[first.weight]["exp_avg"].clone()
    old.optimizer = optimizer
    assert torch.equal(optimizer.state[first.weight]["exp_avg"], before)
    assert torch.equal(before, next(iter(expected.state.values()))["exp_avg"])
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert second.weight not in optimizer.state


# ------------------------------------------------------------------------------------ by graph and by name


@pytest.mark.parametrize("graph_last", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_of_a_restore_by_graph_and_one_by_names_the_later_decides(prefix: str, graph_last: bool, late: bool) -> None:
    """C082, C083"""
    by_graph = Checkpoint(net=layer(1.0), x=full(1.0)).write(prefix + "-graph")
    by_name = write_named(prefix + "-named", {"weight": torch.full((2, 2), 2.0), "x": full(2.0)})
    checkpoint = Checkpoint() if late else Checkpoint(net=layer(), x=zeros())
    for path in (by_name, by_graph) if graph_last else (by_graph, by_name):
        checkpoint.read(path).expect_partial()
    if late:
        checkpoint.net, checkpoint.x = layer(), zeros()
    expected = 1.0 if graph_last else 2.0
    assert values(checkpoint.net.weight, checkpoint.x) == [expected, expected]


# ------------------------------------------------------------------------------------------ swapped tensors


@pytest.mark.usefixtures("swapping")
def test_a_restored_module_can_be_converted_by_swapping(prefix: str) -> None:
    Checkpoint(net=nn.Sequential(layer(1.0), layer(1.0))).write(prefix)
    checkpoint = Checkpoint(net=nn.Sequential(layer()))
    status = checkpoint.read(prefix)
    weight = checkpoint.net[0].weight
    checkpoint.net.to(torch.float64)
    assert checkpoint.net[0].weight is weight
    assert weight.dtype == torch.float64
    checkpoint.net.append(layer())
    checkpoint.net.to(torch.float32)
    assert values(weight, checkpoint.net[1].weight) == [1.0, 1.0]
    status.assert_consumed()


@pytest.mark.usefixtures("swapping")
@pytest.mark.parametrize("late", list(itertools.permutations(["second", "optimizer"])), ids="-".join)
def test_slots_find_their_parameter_after_it_was_swapped(prefix: str, late: tuple[str, ...]) -> None:
    """C106"""
    path, saved = save_training(prefix, 0.25)
    first, second = layer(), layer()
    checkpoint = Checkpoint(first=first)
    status = checkpoint.read(path)
    first.to(torch.bfloat16).to(torch.float32)
    optimizer = Adam([{"params": first.parameters()}, {"params": second.parameters()}], lr=9.0)
    for name in late:
        setattr(checkpoint, name, {"second": second, "optimizer": optimizer}[name])
        second.double().float()
    for parameter, theirs in zip((first.weight, second.weight), saved.state, strict=True):
        assert torch.equal(optimizer.state[parameter]["exp_avg"], saved.state[theirs]["exp_avg"])
    status.assert_consumed()


@pytest.mark.usefixtures("swapping")
def test_a_restore_by_names_does_not_come_again_over_what_was_swapped_and_trained(prefix: str) -> None:
    """C080: it looks at everything again when an attribute is set."""
    write_named(prefix, {"weight": torch.full((2, 2), 1.0), "x": full(1.0)})
    checkpoint = Checkpoint(net=layer())
    checkpoint.read(prefix)
    checkpoint.net.double().float()
    with torch.no_grad():
        checkpoint.net.weight.fill_(7.0)
    checkpoint.x = zeros()
    assert values(checkpoint.net.weight, checkpoint.x) == [7.0, 1.0]


def test_a_restored_tensor_can_be_swapped_by_hand(prefix: str) -> None:
    Checkpoint(net=layer(1.0), x=full(1.0)).write(prefix)
    checkpoint = Checkpoint(net=layer())
    checkpoint.read(prefix)
    other = nn.Parameter(torch.full((2, 2), 5.0))
    torch.utils.swap_tensors(checkpoint.net.weight, other)
    assert values(checkpoint.net.weight, other) == [5.0, 1.0]
    x, y = zeros(), full(5.0)
    checkpoint.x = x
    torch.utils.swap_tensors(x, y)
    assert values(x, y) == [5.0, 1.0]


# ------------------------------------------------------------------------------- the same program again and again


def restorations() -> int:
    return sum(type(item) is Restoration for item in gc.get_objects())


def test_of_restores_that_wait_for_the_same_things_in_vain_only_the_latest_is_kept(
    prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    net = layer()
    optimizer = Adam(net.parameters())
    paths = [
        Checkpoint(net=layer(i), extra=full(i), optimizer=optimizer).write(f"{prefix}-{i}") for i in (1.0, 2.0, 3.0)
    ]
    before = restorations()
    evaluation = Checkpoint(net=net)
    for path in paths * 2:
        evaluation.read(path)
        assert restorations() == before + 1
    assert not caplog.records  # of the values the latest tells, when it goes
    evaluation.extra = zeros()
    assert values(net.weight, evaluation.extra) == [3.0, 3.0]
    del evaluation
    assert restorations() == before
    assert [record.getMessage().count("unrestored values") for record in caplog.records] == [1]


def test_a_restore_goes_on_waiting_behind_a_later_one_for_what_that_lacks_or_while_its_status_is_kept(
    prefix: str,
) -> None:
    more = Checkpoint(a=thing(x=full(1.0), y=full(1.0))).write(prefix + "-more")
    less = Checkpoint(a=thing(x=full(2.0))).write(prefix + "-less")
    checkpoint = Checkpoint()
    checkpoint.read(more)
    checkpoint.read(less)
    kept = checkpoint.read(less)
    checkpoint.read(less)
    checkpoint.a = thing(x=zeros(), y=zeros())
    assert values(checkpoint.a.x, checkpoint.a.y) == [2.0, 1.0]
    assert not kept.report().waiting
