"""Parameters, buffers and submodules that modules get after a restore."""

from __future__ import annotations

import copy
import functools
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.modules.module as torch_module
from named_values import full, is_restored, ones, zeros
from torch import nn

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import MismatchError
from torch_trackckpt.update_uid import update_uid

Duplicate = Callable[[Any], Any]

DUPLICATES = pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["deep", "pickle"]
)


def parameter(value: float = 0.0) -> nn.Parameter:
    return nn.Parameter(full(value))


def linear(value: float = 0.0) -> nn.Linear:
    """All of whose values are the given one."""
    module = nn.Linear(2, 2)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.fill_(value)
    return module


def hooks_of_torch() -> int:
    """How many of torch's global registration hooks there are."""
    return sum(
        len(hooks)
        for hooks in (
            torch_module._global_parameter_registration_hooks,
            torch_module._global_buffer_registration_hooks,
            torch_module._global_module_registration_hooks,
        )
    )


def hooks_of(module: nn.Module) -> int:
    return sum(len(part._load_state_dict_pre_hooks) + len(part._forward_pre_hooks) for part in module.modules())


@pytest.fixture(autouse=True)
def nothing_waits() -> None:
    """What other tests have left waiting is gone with their objects."""
    gc.collect()


# ------------------------------------------------------------------------------------------ how children come


@pytest.mark.parametrize(
    "register",
    [
        lambda module: setattr(module, "x", parameter()),
        lambda module: module.register_parameter("x", parameter()),
        lambda module: module.register_buffer("x", zeros()),
    ],
    ids=["attribute", "register_parameter", "register_buffer"],
)
def test_a_tensor_is_restored_when_a_module_registers_it(prefix: str, register: Callable[[nn.Module], None]) -> None:
    """C076"""
    saved = nn.Module()
    saved.x, saved.y = parameter(1.0), parameter(1.0)
    Checkpoint(net=saved).write(prefix)
    net = nn.Module()
    status = Checkpoint(net=net).read(prefix)
    register(net)
    assert is_restored(net.x)
    with pytest.raises(AssertionError, match=r"\(root\)\.net\.y"):
        status.assert_consumed()
    net.register_buffer("y", zeros())
    assert is_restored(net.y)
    status.assert_consumed()


@pytest.mark.parametrize(
    ("container", "attach"),
    [
        (nn.Module, lambda module, child: setattr(module, "0", child)),
        (nn.Module, lambda module, child: module.add_module("0", child)),
        (nn.Module, lambda module, child: module.register_module("0", child)),
        (nn.ModuleList, lambda module, child: module.append(child)),
        (nn.ModuleList, lambda module, child: module.extend([child])),
        (nn.ModuleDict, lambda module, child: module.__setitem__("0", child)),
        (nn.ModuleDict, lambda module, child: module.update({"0": child})),
        (nn.Sequential, lambda module, child: module.append(child)),
        (nn.Sequential, lambda module, child: module.extend(nn.Sequential(child))),
    ],
    ids=["attribute", "add", "register", "append", "extend", "item", "update", "sequential", "sequential_extend"],
)
def test_a_submodule_is_restored_when_it_comes(
    prefix: str, container: Callable[[], nn.Module], attach: Callable[[Any, nn.Module], None]
) -> None:
    """C075, C078"""
    Checkpoint(net=nn.Sequential(linear(1.0))).write(prefix)
    net = container()
    status = Checkpoint(net=net).read(prefix)
    child = linear()
    attach(net, child)
    assert is_restored(*child.parameters())
    status.assert_consumed()


@pytest.mark.parametrize(
    ("saved", "live", "attach"),
    [
        (nn.ParameterList([parameter(1.0)]), nn.ParameterList, lambda module, child: module.append(child)),
        (nn.ParameterDict({"0": parameter(1.0)}), nn.ParameterDict, lambda module, child: module.update({"0": child})),
    ],
    ids=["list", "dict"],
)
def test_an_element_of_a_container_of_parameters_is_restored_when_it_comes(
    prefix: str, saved: nn.Module, live: Callable[[], nn.Module], attach: Callable[[Any, nn.Parameter], None]
) -> None:
    """C076"""
    Checkpoint(net=saved).write(prefix)
    net = live()
    status = Checkpoint(net=net).read(prefix)
    child = parameter()
    attach(net, child)
    assert is_restored(child)
    status.assert_consumed()


def test_modules_that_are_built_from_the_top_are_restored_leaf_by_leaf(prefix: str) -> None:
    """C076, C088: each entry is gone when its object has come."""
    Checkpoint(net=nn.Sequential(nn.Sequential(linear(1.0)))).write(prefix)
    net = nn.Sequential()
    status = Checkpoint(net=net).read(prefix)
    waiting_at: list[tuple[int, int]] = []
    outer = nn.Sequential()
    net.append(outer)
    waiting_at.append((hooks_of(net), hooks_of(outer)))
    inner = nn.Module()
    outer.append(inner)
    waiting_at.append((hooks_of(outer), hooks_of(inner)))
    inner.weight = nn.Parameter(torch.zeros(2, 2))
    waiting_at.append((hooks_of(outer), hooks_of(inner)))
    inner.bias = nn.Parameter(torch.zeros(2))
    assert is_restored(inner.weight, inner.bias)
    assert waiting_at == [(1, 1), (1, 1), (1, 1)]
    assert (hooks_of(net), hooks_of_torch()) == (0, 0)
    status.assert_consumed()


def test_modules_that_are_built_from_the_bottom_are_restored_when_they_come_into_the_graph(prefix: str) -> None:
    """C075, C079"""
    Checkpoint(net=nn.Sequential(nn.Sequential(linear(1.0)))).write(prefix)
    net = nn.Sequential()
    status = Checkpoint(net=net).read(prefix)
    leaf = linear(7.0)
    outer = nn.Sequential(leaf)
    assert torch.equal(leaf.bias, full(7.0))
    net.append(outer)
    assert is_restored(*leaf.parameters())
    status.assert_consumed()


def test_a_shared_submodule_that_comes_under_both_of_its_names_is_restored_once(prefix: str) -> None:
    shared = linear(1.0)
    Checkpoint(net=nn.Sequential(shared, shared)).write(prefix)
    net = nn.Sequential()
    status = Checkpoint(net=net).read(prefix)
    child = linear()
    net.append(child)
    with torch.no_grad():
        child.bias.fill_(5.0)
    net.append(child)
    assert torch.equal(child.bias, full(5.0))
    status.assert_consumed()
    assert hooks_of_torch() == 0


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, functools.partial(torch.compile, backend="eager")], ids=["parallel", "compiled"]
)
def test_a_wrapped_module_is_restored_when_it_comes(prefix: str, wrap: Callable[[nn.Module], nn.Module]) -> None:
    """C072, C075"""
    Checkpoint(net=nn.Sequential(linear(1.0), linear(1.0))).write(prefix)
    checkpoint = Checkpoint(net=nn.Sequential())
    status = checkpoint.read(prefix)
    first, second = linear(), nn.Module()
    checkpoint.net.append(wrap(first))
    checkpoint.net.append(wrap(second))
    assert is_restored(*first.parameters())
    second.register_parameter("weight", nn.Parameter(torch.zeros(2, 2)))
    second.register_parameter("bias", parameter())
    assert is_restored(*second.parameters())
    status.assert_consumed()


def test_a_child_that_was_put_where_torch_tells_nobody_is_found_when_somebody_asks(prefix: str) -> None:
    Checkpoint(net=nn.Sequential(linear(1.0))).write(prefix)
    net = nn.Sequential()
    status = Checkpoint(net=net).read(prefix)
    net.insert(0, linear())
    status.run_restore_ops()
    assert is_restored(*net.parameters())


def test_nothing_in_the_place_of_a_child_leaves_its_value_waiting(prefix: str) -> None:
    Checkpoint(net=linear(1.0)).write(prefix)
    net = nn.Module()
    Checkpoint(net=net).read(prefix)
    net.register_parameter("bias", None)
    net.register_buffer("weight", None)
    net.bias, net.weight = parameter(), torch.zeros(2, 2)
    assert is_restored(net.bias, net.weight)


# --------------------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("bias", nn.Parameter(torch.zeros(3))),
        ("bias", nn.Parameter(torch.zeros(2, dtype=torch.float64))),
    ],
    ids=["shape", "dtype"],
)
def test_a_parameter_that_does_not_fit_is_not_registered_and_its_value_waits(
    prefix: str, name: str, bad: nn.Parameter
) -> None:
    """C086"""
    Checkpoint(net=linear(1.0)).write(prefix)
    net = nn.Module()
    Checkpoint(net=net).read(prefix)
    with pytest.raises(MismatchError, match=r"\(root\)\.net\.bias"):
        setattr(net, name, bad)
    assert not hasattr(net, name)
    assert not bad.any()
    setattr(net, name, parameter())
    assert is_restored(getattr(net, name))


def test_a_submodule_that_does_not_fit_is_not_attached_and_its_values_wait(prefix: str) -> None:
    """C086: nothing of it has changed, the parts that would fit included."""
    Checkpoint(net=nn.Sequential(nn.Sequential(linear(1.0), linear(1.0)))).write(prefix)
    net = nn.Sequential()
    status = Checkpoint(net=net).read(prefix)
    bad = nn.Sequential(linear(), nn.Linear(2, 3))
    before = copy.deepcopy(bad.state_dict())
    with pytest.raises(MismatchError, match=r"\(root\)\.net\.0\.1\.weight"):
        net.append(bad)
    assert len(net) == 0
    assert all(torch.equal(value, before[name]) for name, value in bad.state_dict().items())
    net.append(nn.Sequential(linear(), linear()))
    assert is_restored(*net.parameters())
    status.assert_consumed()


# ----------------------------------------------------------------------------------- what torch's hooks cost


def test_hooks_are_gone_when_nothing_waits_any_more(prefix: str) -> None:
    """C088"""
    Checkpoint(net=linear(1.0)).write(prefix)
    net = nn.Module()
    status = Checkpoint(net=net).read(prefix)
    net.weight = nn.Parameter(torch.zeros(2, 2))
    assert (hooks_of_torch(), hooks_of(net)) == (3, 1)
    net.bias = parameter()
    assert (hooks_of_torch(), hooks_of(net)) == (0, 0)
    status.assert_consumed()


def test_a_restore_that_finds_everything_needs_no_hook(prefix: str) -> None:
    Checkpoint(net=linear(1.0)).write(prefix)
    net = linear()
    Checkpoint(net=net).read(prefix)
    assert (hooks_of_torch(), hooks_of(net)) == (0, 0)


def test_the_end_of_one_restore_s_wait_leaves_another_s(prefix: str) -> None:
    """Each in its turn goes while torch goes through its hooks."""
    Checkpoint(net=linear(1.0)).write(prefix)
    nets = [nn.Module(), nn.Module(), nn.Module()]
    for net in nets:
        Checkpoint(net=net).read(prefix)
    for net in nets:
        net.weight = nn.Parameter(torch.zeros(2, 2))
        net.register_buffer("bias", zeros())
        assert is_restored(net.weight, net.bias)
    assert hooks_of_torch() == 0


def test_a_registration_hook_of_the_user_does_not_mind_the_end_of_a_wait(prefix: str) -> None:
    seen: list[str] = []
    Checkpoint(net=linear(1.0)).write(prefix)
    net = nn.Module()
    net.weight = nn.Parameter(torch.zeros(2, 2))
    Checkpoint(net=net).read(prefix)
    handle = torch_module.register_module_parameter_registration_hook(lambda module, name, value: seen.append(name))
    try:
        net.bias = parameter()
        assert is_restored(net.bias)
        assert seen == ["bias"]
    finally:
        handle.remove()
    # Those that could not be removed serve the next wait, and go with it.
    other = nn.Module()
    other.weight = nn.Parameter(torch.zeros(2, 2))
    Checkpoint(net=other).read(prefix)
    assert hooks_of_torch() == 3
    other.bias = parameter()
    assert is_restored(other.bias)
    assert hooks_of_torch() == 0


def test_hooks_die_with_the_objects_that_waited(prefix: str) -> None:
    """C089"""
    Checkpoint(net=linear(1.0)).write(prefix)
    net = nn.Module()
    checkpoint = Checkpoint(net=net)
    checkpoint.read(prefix).expect_partial()
    assert hooks_of_torch() == 3
    gone = weakref.ref(net)
    gc.collect()
    gc.disable()
    try:
        del net, checkpoint
        assert gone() is None
        assert hooks_of_torch() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("lazy", [False, True])
def test_what_waits_for_a_module_forms_no_cycle_with_it(prefix: str, lazy: bool) -> None:
    """C089"""
    Checkpoint(net=nn.Linear(2, 2, bias=False)).write(prefix)
    net: nn.Module = nn.Sequential(nn.LazyLinear(2)) if lazy else nn.Module()
    checkpoint = Checkpoint(net=net)
    checkpoint.read(prefix).expect_partial()
    gone = weakref.ref(net)
    gc.collect()
    gc.disable()
    try:
        del net, checkpoint
        assert gone() is None
    finally:
        gc.enable()


# ------------------------------------------------------------------------------------------- other modules


def test_modules_outside_of_the_graph_are_not_restored(prefix: str) -> None:
    """C096"""
    Checkpoint(net=nn.Sequential(linear(1.0))).write(prefix)
    net = nn.Sequential()
    Checkpoint(net=net).read(prefix)
    other, inner = nn.Sequential(), nn.Module()
    other.append(linear())
    inner.weight = nn.Parameter(torch.zeros(2, 2))
    assert not any(value.any() for value in [*other.parameters(), *inner.parameters()])
    net.append(linear())
    assert is_restored(*net.parameters())


@DUPLICATES
def test_nothing_waits_for_the_children_of_a_copied_module(prefix: str, duplicate: Duplicate) -> None:
    """C096"""
    Checkpoint(net=linear(1.0)).write(prefix)
    net = nn.Sequential()
    Checkpoint(net=net).read(prefix)
    other = duplicate(net)
    other.bias = parameter()
    assert not other.bias.any()
    other.load_state_dict({"bias": full(3.0)})
    net.bias = parameter()
    assert is_restored(net.bias)
    assert torch.equal(other.bias, full(3.0))


@DUPLICATES
def test_a_copied_module_can_be_restored_itself_and_the_original_goes_on_waiting(
    prefix: str, duplicate: Duplicate
) -> None:
    """C076"""
    old = Checkpoint(net=linear(1.0)).write(prefix + "-old")
    new = Checkpoint(net=linear(2.0)).write(prefix + "-new")
    net = nn.Sequential()
    Checkpoint(net=net).read(old)
    other = duplicate(net)
    status = Checkpoint(net=other).read(new)
    for module in (net, other):
        module.weight, module.bias = nn.Parameter(torch.zeros(2, 2)), parameter()
    assert is_restored(net.weight, net.bias)
    assert torch.equal(other.bias, full(2.0))
    status.assert_consumed()


@DUPLICATES
def test_a_copied_lazy_module_can_be_restored_itself(prefix: str, duplicate: Duplicate) -> None:
    """C077"""
    saved = nn.Linear(2, 3, bias=False)
    Checkpoint(net=saved).write(prefix)
    net = nn.LazyLinear(3)
    Checkpoint(net=net).read(prefix)
    other = duplicate(net)
    Checkpoint(net=other).read(prefix)
    for module in (other, net):
        module(torch.ones(1, 2))
        assert torch.equal(module.weight, saved.weight)


@DUPLICATES
def test_a_copy_of_a_restored_tensor_has_its_values_of_no_restore(prefix: str, duplicate: Duplicate) -> None:
    """The number of a restore means nothing in another process, whose clock may be behind."""
    Checkpoint(net=linear(1.0), x=ones()).write(prefix)
    net, x = linear(), zeros()
    Checkpoint(net=net, x=x).read(prefix)
    assert min(update_uid(net.weight), update_uid(x)) > 0
    assert [update_uid(duplicate(net).weight), update_uid(duplicate(x))] == [-1, -1]


def test_a_restored_tensor_can_be_saved_and_loaded_by_torch_without_trust(prefix: str) -> None:
    Checkpoint(net=linear(1.0), x=ones()).write(prefix)
    net, x = linear(), zeros()
    Checkpoint(net=net, x=x).read(prefix)
    file = io.BytesIO()
    torch.save({"x": x, "bias": net.bias}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert is_restored(loaded["x"], loaded["bias"])
    assert [update_uid(value) for value in loaded.values()] == [-1, -1]


# ------------------------------------------------------------------------------- load_state_dict meanwhile


def test_load_state_dict_of_a_module_that_waits_for_children_that_are_not_there_is_torch_s(prefix: str) -> None:
    Checkpoint(net=linear(1.0)).write(prefix)
    net = nn.Module()
    net.weight = nn.Parameter(torch.zeros(2, 2))
    Checkpoint(net=net).read(prefix)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        net.load_state_dict({"weight": torch.full((2, 2), 3.0), "bias": full(3.0)})
    net.load_state_dict({"weight": torch.full((2, 2), 3.0)})
    net.bias = parameter()
    assert is_restored(net.bias)
    assert torch.equal(net.weight, torch.full((2, 2), 3.0))


def meta_linear() -> nn.Linear:
    return nn.Linear(2, 2, device="meta")


def test_what_waits_for_a_module_without_memory_is_offered_to_load_state_dict(prefix: str) -> None:
    """What the caller passes wins, and is not overwritten by the next forward pass."""
    Checkpoint(net=linear(1.0)).write(prefix)
    net = meta_linear()
    Checkpoint(net=net).read(prefix)
    net.load_state_dict({"bias": full(3.0)}, assign=True)
    assert is_restored(net.weight)
    net(torch.ones(1, 2))
    assert torch.equal(net.bias, full(3.0))
    assert (hooks_of_torch(), hooks_of(net)) == (0, 0)


def test_what_load_state_dict_does_not_load_goes_on_waiting(prefix: str) -> None:
    """Without `assign`, torch loads nothing into tensors on the meta device."""
    Checkpoint(net=linear(1.0)).write(prefix)
    net = meta_linear()
    Checkpoint(net=net).read(prefix)
    with pytest.warns(UserWarning, match="meta parameter"):
        net.load_state_dict({"weight": torch.full((2, 2), 3.0), "bias": full(3.0)})
    net.to_empty(device="cpu")
    net(torch.ones(1, 2))
    assert is_restored(*net.parameters())


@pytest.mark.parametrize("assign", [False, True])
def test_what_waits_for_memory_that_is_there_by_now_is_offered_too(prefix: str, assign: bool) -> None:
    Checkpoint(net=linear(1.0)).write(prefix)
    net = meta_linear()
    Checkpoint(net=net).read(prefix)
    net.to_empty(device="cpu")
    net.load_state_dict({"bias": full(3.0)}, assign=assign)
    assert is_restored(net.weight)
    net(torch.ones(1, 2))
    assert torch.equal(net.bias, full(3.0))


def test_a_load_hook_of_the_user_does_not_mind_the_end_of_a_wait(prefix: str) -> None:
    seen: list[str] = []
    Checkpoint(net=linear(1.0)).write(prefix)
    net = meta_linear()
    Checkpoint(net=net).read(prefix)
    net.register_load_state_dict_pre_hook(lambda module, state_dict, *_: seen.extend(state_dict))
    net.load_state_dict({}, assign=True)
    assert is_restored(*net.parameters())
    assert sorted(seen) == ["bias", "weight"]
