"""Modules on the meta device: a restore binds their tensors, and memory and values come when they are asked for."""

import copy
import weakref
from collections.abc import Callable

import pytest
import torch
from named_values import ones, write_named
from torch import nn
from torch.nn.modules import module as torch_module

from torch_trackckpt import Checkpoint, CheckpointOptions, RNGState, gather_initializers, streaming_restore
from torch_trackckpt.errors import DataLossError, MismatchError, RestoreError, UninitializedError, UnsupportedValueError

Damage = Callable[[str, str], None]
KEY = "net/2/weight/.ATTRIBUTES/VARIABLE_VALUE"


def make() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def on_meta(function: Callable[[], nn.Module] = make) -> nn.Module:
    with torch.device("meta"):
        return function()


@pytest.fixture
def net() -> nn.Module:
    """What is saved: nothing in it is as it was made."""
    net = make()
    for tensor in (*net.parameters(), net[1].running_mean, net[1].running_var):
        nn.init.uniform_(tensor.detach(), 0.1, 1.0)
    net[1].num_batches_tracked.fill_(7)
    return net


@pytest.fixture
def path(net: nn.Module, prefix: str) -> str:
    return Checkpoint(net=net).write(prefix)


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def is_equal(live: nn.Module, saved: nn.Module) -> bool:
    found, wanted = live.state_dict(), saved.state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(found[name].cpu(), wanted[name]) for name in wanted)


def is_all_on_meta(module: nn.Module) -> bool:
    return all(tensor.is_meta for tensor in tensors(module).values())


# -------------------------------------------------------------------------------------------------- run_restore_ops


def test_a_restore_leaves_tensors_on_the_meta_device_and_run_restore_ops_makes_them(net: nn.Module, path: str) -> None:
    live = on_meta()
    status = Checkpoint(net=live).read(path)
    assert is_all_on_meta(live)
    status.run_restore_ops()
    assert is_equal(live, net)
    status.assert_consumed()


def test_tensors_are_made_where_the_caller_says(net: nn.Module, path: str, device: torch.device) -> None:
    live = on_meta()
    Checkpoint(net=live).read(path).run_restore_ops(device=device)
    assert {tensor.device.type for tensor in tensors(live).values()} == {device.type}
    assert is_equal(live, net)


def test_by_default_tensors_are_made_on_the_default_device_of_the_call(path: str) -> None:
    live = on_meta()
    with torch.device("meta"):
        status = Checkpoint(net=live).read(path)
        with pytest.raises(ValueError, match=r"^Tensors on the meta device are to get memory, which .* Pass device="):
            status.run_restore_ops()
        assert is_all_on_meta(live)
        status.run_restore_ops("cpu")
    status.assert_consumed()


def test_every_tensor_stays_the_object_that_it_is(net: nn.Module, path: str) -> None:
    live = on_meta()
    before = tensors(live)
    status = Checkpoint(net=live).read(path)
    status.run_restore_ops()
    status.run_restore_ops()
    assert all(tensor is before[name] for name, tensor in tensors(live).items())


def test_tied_weights_stay_tied(prefix: str) -> None:
    def tied() -> nn.Module:
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        net[1].weight = net[0].weight
        return net

    saved, live = tied(), on_meta(tied)
    status = Checkpoint(net=live).read(Checkpoint(net=saved).write(prefix))
    status.run_restore_ops()
    status.assert_consumed()
    assert live[0].weight is live[1].weight
    assert is_equal(live, saved)


@pytest.mark.parametrize(
    "kind", [torch.optim.Adam, torch.optim.Adagrad, torch.optim.SGD], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("all_on_meta", [False, True])
def test_an_optimizer_made_on_meta_parameters_goes_on_bit_for_bit(
    net: nn.Module, prefix: str, kind: type[torch.optim.Optimizer], all_on_meta: bool
) -> None:
    """Adagrad makes its slots at once, on the meta device."""

    def optimizer_of(net: nn.Module) -> torch.optim.Optimizer:
        groups = [
            {"params": [*net[0].parameters()], "lr": 0.5},
            {"params": [*net[1].parameters(), *net[2].parameters()]},
        ]
        return kind(groups, **({"lr": 0.1, "momentum": 0.9} if kind is torch.optim.SGD else {"lr": 0.1}))

    def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        net(torch.arange(15.0).reshape(5, 3)).square().sum().backward()
        optimizer.step()

    optimizer = optimizer_of(net)
    step(net, optimizer)
    Checkpoint(net=net, optimizer=optimizer).write(prefix)
    live = on_meta()
    with torch.device("meta" if all_on_meta else "cpu"):
        its_optimizer = optimizer_of(live)
    status = Checkpoint(net=live, optimizer=its_optimizer).read(prefix)
    status.run_restore_ops()
    status.assert_consumed()
    for _ in range(3):
        step(net, optimizer)
        step(live, its_optimizer)
    assert is_equal(live, net)


def test_hooks_attributes_and_requires_grad_stay(path: str) -> None:
    live = on_meta()
    weight = live[0].weight
    calls: list[str] = []
    weight.note = "mine"
    weight.register_hook(lambda gradient: calls.append("gradient"))
    handle = weight.register_post_accumulate_grad_hook(lambda parameter: calls.append("accumulated"))
    live[2].requires_grad_(False)
    Checkpoint(net=live).read(path).run_restore_ops()
    live(torch.ones(2, 3)).sum().backward()
    handle.remove()
    live(torch.ones(2, 3)).sum().backward()
    assert calls == ["gradient", "accumulated", "gradient"]
    assert weight.note == "mine"
    assert [parameter.requires_grad for parameter in live.parameters()] == [True] * 4 + [False] * 2
    assert all(parameter.is_leaf for parameter in live.parameters())


class Tagged(nn.Parameter):
    def __new__(cls, data: torch.Tensor, tag: str) -> "Tagged":
        return torch.Tensor._make_subclass(cls, data, True)

    def __init__(self, data: torch.Tensor, tag: str) -> None:
        self.tag = tag


class Named(torch.Tensor):
    pass


def test_subclasses_stay_what_they_are_whatever_their_constructors_want(net: nn.Module, path: str) -> None:
    live = on_meta()
    live[0].weight = Tagged(live[0].weight.data, "tag")
    live[1].running_mean = live[1].running_mean.as_subclass(Named)
    Checkpoint(net=live).read(path).run_restore_ops()
    assert type(live[0].weight) is Tagged
    assert live[0].weight.tag == "tag"
    assert type(live[1].running_mean) is Named
    assert is_equal(live, net)


def test_the_layout_in_memory_stays(prefix: str) -> None:
    saved = nn.Conv2d(3, 4, 2)
    live = nn.Conv2d(3, 4, 2, device="meta").to(memory_format=torch.channels_last)
    Checkpoint(net=live).read(Checkpoint(net=saved).write(prefix)).run_restore_ops()
    assert live.weight.is_contiguous(memory_format=torch.channels_last)
    assert is_equal(live, saved)


def test_weak_references_are_no_obstacle(prefix: str) -> None:
    """Recurrent layers have them."""
    saved, live = nn.LSTM(2, 3), nn.LSTM(2, 3, device="meta")
    reference = weakref.ref(live.weight_ih_l0)
    Checkpoint(net=live).read(Checkpoint(net=saved).write(prefix)).run_restore_ops()
    assert reference() is live.weight_ih_l0
    assert torch.equal(live(torch.ones(4, 2))[0], saved(torch.ones(4, 2))[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("make_holder", [lambda net: net(torch.empty(5, 3, device="meta")), torch.jit.script])
def test_what_holds_a_tensor_out_of_python_s_sight_is_an_error(
    path: str, make_holder: Callable[[nn.Module], object]
) -> None:
    live = on_meta()
    holder = make_holder(live)
    status = Checkpoint(net=live).read(path)
    with pytest.raises(
        RestoreError, match=r"^\(root\)\.net\.0\.weight cannot get memory in place: .* Nothing has been re"
    ):
        status.run_restore_ops()
    assert is_all_on_meta(live)
    del holder
    status.expect_partial()


def test_parametrized_and_lazy_modules_are_made(prefix: str) -> None:
    saved = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))
    live = nn.Sequential(on_meta(lambda: copy.deepcopy(saved[0]).to("meta")), nn.LazyLinear(2, device="meta"))
    status = Checkpoint(net=live).read(Checkpoint(net=saved).write(prefix))
    status.run_restore_ops()
    status.assert_consumed()
    assert torch.equal(live(torch.ones(2, 3)), saved(torch.ones(2, 3)))


def test_nothing_is_left_behind_in_modules_and_in_torch(path: str) -> None:
    live = on_meta()
    Checkpoint(net=live).read(path).run_restore_ops()
    assert not torch_module._global_parameter_registration_hooks
    for module in live.modules():
        assert not module._load_state_dict_pre_hooks
        assert not module._forward_pre_hooks


def test_inference_mode_of_the_caller_makes_no_difference(net: nn.Module, path: str) -> None:
    live = on_meta()
    status = Checkpoint(net=live).read(path)
    with torch.inference_mode():
        status.run_restore_ops()
    assert is_equal(live, net)
    live(torch.ones(2, 3)).sum().backward()


def test_a_restore_of_real_tensors_does_not_mind_that_meta_is_the_default_device(net: nn.Module, prefix: str) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    strided = torch.arange(4.0).reshape(2, 2).t()
    Checkpoint(net=net, optimizer=optimizer, rng=RNGState(), strided=strided).write(prefix)
    live = make()
    its_optimizer = torch.optim.Adam(live.parameters())
    other = torch.zeros(2, 2).t()
    with torch.device("meta"):
        status = Checkpoint(net=live, optimizer=its_optimizer, rng=RNGState(), strided=other).read(prefix)
    status.assert_consumed()
    assert is_equal(live, net)
    assert torch.equal(other, strided)
    slots = [slot for state in its_optimizer.state.values() for slot in state.values()]
    assert len(slots) == 18
    assert not any(slot.is_meta for slot in slots)


# ------------------------------------------------------------------------------- what the user does in its place


def test_what_to_empty_has_made_gets_its_values_with_the_first_forward_pass(net: nn.Module, path: str) -> None:
    live = on_meta().eval()
    status = Checkpoint(net=live).read(path)
    live.to_empty(device="cpu")
    assert torch.equal(live(torch.ones(2, 3)), net.eval()(torch.ones(2, 3)))
    status.assert_consumed()


def test_what_to_empty_has_made_gets_its_values_by_run_restore_ops(net: nn.Module, path: str) -> None:
    live = on_meta()
    status = Checkpoint(net=live).read(path)
    live.to_empty(device="cpu")
    status.run_restore_ops()
    assert is_equal(live, net)


@pytest.mark.parametrize("assign", [False, True])
def test_what_load_state_dict_has_given_is_not_overwritten(net: nn.Module, path: str, assign: bool) -> None:
    live = on_meta().eval()
    status = Checkpoint(net=live).read(path)
    if not assign:
        live.to_empty(device="cpu")
    other = make().eval()
    live.load_state_dict(other.state_dict(), assign=assign)
    status.run_restore_ops()
    live(torch.ones(2, 3))
    assert is_equal(live, other)
    status.assert_consumed()


def test_load_state_dict_by_assignment_takes_what_waits_for_the_rest(net: nn.Module, path: str) -> None:
    live = on_meta()
    status = Checkpoint(net=live).read(path)
    live.load_state_dict({"0.bias": torch.full((4,), 9.0)}, assign=True)
    assert torch.equal(live[0].bias, torch.full((4,), 9.0))
    assert torch.equal(live[2].weight, net[2].weight)
    assert not any(tensor.is_meta for tensor in tensors(live).values())
    status.assert_consumed()


# ----------------------------------------------------------------------------------------------------- two restores


@pytest.mark.parametrize("newer_first", [False, True])
def test_of_two_restores_that_wait_the_newer_wins(net: nn.Module, path: str, prefix: str, newer_first: bool) -> None:
    newer = Checkpoint(net=make())
    other = newer.write(prefix + "-other")
    live = on_meta()
    checkpoint = Checkpoint(net=live)
    statuses = [checkpoint.read(path), checkpoint.read(other)]
    for status in reversed(statuses) if newer_first else statuses:
        status.run_restore_ops()
        assert is_equal(live, newer.net)
        status.assert_consumed()


def test_an_object_takes_nothing_that_waits_under_a_name_which_it_has_not(prefix: str) -> None:
    """In the first checkpoint, but not in the second, it has that name as well."""
    shared = torch.ones(2)
    first = Checkpoint(a=shared, b=shared).write(prefix + "-first")
    second = Checkpoint(b=torch.full((2,), 2.0)).write(prefix + "-second")
    checkpoint = Checkpoint()
    checkpoint.read(first)
    checkpoint.read(second)
    checkpoint.a = torch.zeros(2)
    assert torch.equal(checkpoint.a, shared)
    checkpoint.b = torch.zeros(2)
    assert torch.equal(checkpoint.b, torch.full((2,), 2.0))


# ----------------------------------------------------------------------------------------------------------- errors


def test_values_that_will_not_fit_are_reported_by_the_restore_itself(path: str) -> None:
    """C061, C062"""
    live = on_meta()
    live[0] = nn.Linear(3, 5, device="meta")
    live[2] = nn.Linear(4, 2, device="meta", dtype=torch.float64)
    with pytest.raises(MismatchError, match=r"^4 values of .*nothing has been assigned") as caught:
        Checkpoint(net=live).read(path)
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        assert f"(root).net.{name}" in str(caught.value)
    assert is_all_on_meta(live)


@pytest.mark.parametrize("call", ["run_restore_ops", "initialize_or_restore", "streaming"])
@pytest.mark.parametrize("verify", ["during", "before"])
def test_after_damage_everything_is_on_the_meta_device_again(
    net: nn.Module, path: str, damage: Damage, call: str, verify: str
) -> None:
    """C382"""
    live = on_meta()
    live[1].register_buffer("more", torch.zeros(2, device="meta"), persistent=False)
    before = tensors(live)
    status = Checkpoint(net=live).read(path, CheckpointOptions(verify=verify))
    damage(path, KEY)
    with pytest.raises(DataLossError, match="net/2/weight"):
        streaming_restore(status) if call == "streaming" else getattr(status, call)()
    assert is_all_on_meta(live)
    assert all(tensor is before[name] for name, tensor in tensors(live).items())
    damage(path, KEY)
    status.initialize_or_restore()
    assert is_equal(live, net)


def test_a_tensor_on_the_meta_device_is_still_not_saved(prefix: str) -> None:
    live = on_meta()
    with pytest.raises(UnsupportedValueError, match=r"net/0/weight.*meta device"):
        Checkpoint(net=live).write(prefix)


# -------------------------------------------------------------------------------------------- initialize_or_restore


class Rotary(nn.Module):
    """With a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(2))
        self.register_buffer("angles", torch.empty(3), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.scale)
        self.angles.copy_(torch.arange(3.0))


class Table(nn.Module):
    """Nothing can initialise this."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("cache", torch.ones(3), persistent=False)


def test_what_the_checkpoint_has_not_is_initialised_and_the_rest_restored(net: nn.Module, prefix: str) -> None:
    Checkpoint(old=net).write(prefix)
    old, new = on_meta(), on_meta()
    status = Checkpoint(old=old, new=new).read(prefix)
    status.initialize_or_restore()
    assert is_equal(old, net)
    assert torch.equal(new[1].weight, torch.ones(4))
    assert torch.equal(new[1].running_mean, torch.zeros(4))
    assert new[0].weight.abs().max() <= 3**-0.5
    with pytest.raises(AssertionError, match=r"\(root\)\.new\.0\.weight"):
        status.assert_existing_objects_matched()
    status.expect_partial()


def test_a_buffer_that_is_not_saved_is_initialised(prefix: str) -> None:
    saved = Rotary()
    with torch.no_grad():
        saved.scale.fill_(5.0)
    live = on_meta(Rotary)
    status = Checkpoint(net=live).read(Checkpoint(net=saved).write(prefix))
    status.initialize_or_restore()
    status.assert_consumed()
    assert torch.equal(live.scale, torch.full((2,), 5.0))
    assert torch.equal(live.angles, torch.arange(3.0))


@pytest.mark.parametrize("path_is_none", [False, True])
def test_a_module_that_nothing_can_initialise_is_an_error_and_nothing_changes(prefix: str, path_is_none: bool) -> None:
    Checkpoint(net=nn.Sequential(nn.Linear(2, 2), Table())).write(prefix)
    live = on_meta(lambda: nn.Sequential(nn.Linear(2, 2), Table()))
    checkpoint = Checkpoint(net=live)
    status = checkpoint.restore(None) if path_is_none else checkpoint.read(prefix)
    wanting = "weight, cache" if path_is_none else "cache"
    with pytest.raises(UninitializedError, match=rf"Such modules: 1; the first is a Table with {wanting}\."):
        status.initialize_or_restore()
    assert is_all_on_meta(live)
    status.expect_partial()


def test_real_tensors_keep_their_values_those_of_parts_as_well(prefix: str) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Linear(2, 2)
            self.bias = nn.Parameter(torch.zeros(2))
            self.gain = nn.Parameter(torch.empty(2, device="meta"))

        def reset_parameters(self) -> None:
            self.part.reset_parameters()
            nn.init.zeros_(self.bias)
            nn.init.ones_(self.gain)

    whole = Whole()
    with torch.no_grad():
        whole.bias.fill_(3.0)
    before = copy.deepcopy(whole.part)
    Checkpoint(net=whole).restore(None).initialize_or_restore()
    assert is_equal(whole.part, before)
    assert torch.equal(whole.bias, torch.full((2,), 3.0))
    assert torch.equal(whole.gain, torch.ones(2))


def test_the_whole_is_initialised_after_its_parts() -> None:
    """As constructors do it, so that it can correct them."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Linear(2, 2)
            self.gain = nn.Parameter(torch.empty(2))
            self.reset_parameters()

        def reset_parameters(self) -> None:
            nn.init.constant_(self.part.weight, 7.0)
            nn.init.ones_(self.gain)

    whole = on_meta(Whole)
    Checkpoint(net=whole).restore(None).initialize_or_restore()
    assert torch.equal(whole.part.weight, torch.full((2, 2), 7.0))


def test_attention_and_transformers_have_a_reset_of_another_name() -> None:
    live = on_meta(lambda: nn.TransformerEncoderLayer(4, 2, 8))
    Checkpoint(net=live).restore(None).initialize_or_restore()
    assert not any(tensor.is_meta for tensor in tensors(live).values())
    assert not live.self_attn.in_proj_bias.any()


def test_a_reset_that_raises_leaves_everything_as_it_was() -> None:
    class Broken(Rotary):
        def reset_parameters(self) -> None:
            if not self.scale.is_meta:
                raise RuntimeError("no")

    live = nn.Sequential(nn.Linear(2, 2), on_meta(Broken))
    before = copy.deepcopy(live[0])
    with pytest.raises(RuntimeError, match="no"):
        Checkpoint(net=live).restore(None).initialize_or_restore()
    assert is_all_on_meta(live[1])
    assert is_equal(live[0], before)


def test_without_a_checkpoint_only_what_is_on_the_meta_device_is_initialised(device: torch.device) -> None:
    """C060"""
    real, live = make(), on_meta()
    before = copy.deepcopy(real)
    Checkpoint(real=real, live=live).restore(None).initialize_or_restore(device=device)
    assert is_equal(real, before)
    assert {tensor.device.type for tensor in tensors(live).values()} == {device.type}
    assert torch.equal(live[1].running_var.cpu(), torch.ones(4))


def test_initializers_are_those_of_all_modules_below_a_root() -> None:
    net = make()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(9.0)
    resets = gather_initializers(Checkpoint(net=net, more={"net": net}))
    assert len(resets) == 3
    for reset in resets:
        reset()
    assert not any(torch.equal(parameter, torch.full_like(parameter, 9.0)) for parameter in net.parameters())


# ---------------------------------------------------------------------------------------------------------- by names


def test_by_names_tensors_are_made_and_restored(prefix: str, device: torch.device) -> None:
    write_named(prefix, {"weight": ones(), "weight/momentum_buffer": torch.full((2,), 3.0)})
    live = nn.ParameterDict({"weight": torch.empty(2, device="meta")})
    status = Checkpoint(net=live).read(prefix)
    before = live["weight"]
    status.run_restore_ops(device)
    status.assert_consumed()
    assert live["weight"] is before
    assert torch.equal(before.cpu(), ones())
    assert before.device.type == device.type


def test_by_names_the_rest_is_initialised(prefix: str) -> None:
    write_named(prefix, {"0.weight": torch.ones(4, 3), "0.bias": torch.ones(4)})
    live = on_meta()
    status = Checkpoint(net=live).read(prefix)
    status.initialize_or_restore()
    assert live[0].weight.all()
    assert torch.equal(live[1].weight, torch.ones(4))
    assert not any(tensor.is_meta for tensor in tensors(live).values())


def test_by_names_after_damage_everything_is_on_the_meta_device_again(prefix: str, damage: Damage) -> None:
    """C382"""
    write_named(prefix, {"0.weight": torch.ones(4, 3), "0.bias": torch.ones(4)})
    live = on_meta()
    status = Checkpoint(net=live).read(prefix)
    damage(prefix, "0.bias")
    for call in (status.run_restore_ops, status.initialize_or_restore):
        with pytest.raises(DataLossError, match=r"0\.bias"):
            call()
        assert is_all_on_meta(live)


def test_by_names_a_lazy_module_is_left_to_its_first_forward_pass(prefix: str) -> None:
    write_named(prefix, {"weight": torch.ones(2, 3)})
    live = nn.LazyLinear(2)
    status = Checkpoint(net=live).read(prefix)
    status.run_restore_ops()
    live(torch.ones(1, 3))
    status.run_restore_ops()
    assert live.weight.all()
