"""Modules on the meta device that come after the restore, with and without streaming."""

from collections.abc import Callable

import pytest
import torch
from checkpoints import thing
from named_values import full, ones, write_named, zeros
from torch import nn

from torch_trackckpt import Checkpoint, streaming_restore
from torch_trackckpt.errors import DataLossError, MismatchError

Damage = Callable[[str, str], None]


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


@pytest.fixture
def net() -> nn.ModuleList:
    net = nn.ModuleList(block() for _ in range(3))
    for index, tensor in enumerate(net.state_dict().values()):
        tensor.fill_(index + 1)
    return net


@pytest.fixture
def path(net: nn.ModuleList, prefix: str) -> str:
    return Checkpoint(net=net).write(prefix)


def is_equal(live: nn.Module, saved: nn.Module) -> bool:
    found, wanted = live.state_dict(), saved.state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(found[name].cpu(), wanted[name]) for name in wanted)


def is_all_on_meta(module: nn.Module) -> bool:
    return all(tensor.is_meta for tensor in module.state_dict().values())


# ------------------------------------------------------------------------------------------------ without streaming


def test_without_streaming_a_late_module_waits_for_run_restore_ops(net: nn.ModuleList, path: str) -> None:
    checkpoint = Checkpoint()
    status = checkpoint.read(path)
    with torch.device("meta"):
        checkpoint.net = nn.ModuleList(block() for _ in range(3))
    assert is_all_on_meta(checkpoint.net)
    with pytest.raises(
        AssertionError, match=r"^21 tensors of the meta device wait for values of checkpoint .*and 11 more"
    ):
        status.assert_existing_objects_matched()
    status.run_restore_ops()
    assert is_equal(checkpoint.net, net)
    status.assert_consumed()


def test_what_comes_after_run_restore_ops_waits_for_the_next_one(net: nn.ModuleList, path: str) -> None:
    checkpoint = Checkpoint(net=nn.ModuleList())
    status = checkpoint.read(path)
    for _ in range(3):
        with torch.device("meta"):
            checkpoint.net.append(block())
        assert is_all_on_meta(checkpoint.net[-1])
        status.run_restore_ops()
        assert not is_all_on_meta(checkpoint.net[-1])
    assert is_equal(checkpoint.net, net)
    status.assert_consumed()


def test_one_tensor_on_the_meta_device_is_named_as_one(prefix: str) -> None:
    Checkpoint(x=ones()).write(prefix)
    status = Checkpoint(x=torch.zeros(2, device="meta")).read(prefix).expect_partial()
    with pytest.raises(
        AssertionError, match=r"^1 tensor of the meta device waits for values .*: \(root\)\.x\. Call run_"
    ):
        status.assert_consumed()


# --------------------------------------------------------------------------------------------------- with streaming


def test_what_is_there_is_made_at_once_and_what_comes_when_it_comes(net: nn.ModuleList, path: str) -> None:
    with torch.device("meta"):
        live = nn.ModuleList([block()])
    checkpoint = Checkpoint(net=live)
    status = checkpoint.read(path)
    streaming_restore(status)
    assert is_equal(live[0], net[0])
    for index in (1, 2):
        with torch.device("meta"):
            live.append(block())
        assert is_equal(live[index], net[index])
    status.assert_consumed()


def test_meta_may_be_the_default_device_while_modules_are_made(net: nn.ModuleList, path: str) -> None:
    """The device is that of the call of streaming_restore."""
    checkpoint = Checkpoint()
    status = checkpoint.read(path)
    streaming_restore(status)
    with torch.device("meta"):
        checkpoint.net = nn.ModuleList(block() for _ in range(3))
        assert is_equal(checkpoint.net, net)
        with pytest.raises(ValueError, match="meta device"):
            streaming_restore(status)


def test_the_device_may_be_said(net: nn.ModuleList, path: str, device: torch.device) -> None:
    checkpoint = Checkpoint()
    streaming_restore(checkpoint.read(path), device=device)
    checkpoint.net = nn.ModuleList(block().to("meta") for _ in range(3))
    assert is_equal(checkpoint.net, net)
    assert {parameter.device.type for parameter in checkpoint.net.parameters()} == {device.type}


def test_parameters_and_buffers_that_are_registered_one_by_one_are_made(net: nn.ModuleList, path: str) -> None:
    live = nn.Module()
    checkpoint = Checkpoint(net=[thing(**{"1": live})])
    status = Checkpoint(net=nn.ModuleList([nn.Sequential(live)])).read(path).expect_partial()
    streaming_restore(status)
    live.weight = nn.Parameter(torch.empty(3, 3, device="meta"))
    live.register_buffer("bias", torch.empty(3, device="meta"))
    assert torch.equal(live.weight, net[0][0].weight)
    assert torch.equal(live.bias, net[0][0].bias)
    del checkpoint


def test_tensors_that_are_no_module_s_are_made_as_well(prefix: str) -> None:
    Checkpoint(x=ones(), part=thing(y=full(2.0))).write(prefix)
    checkpoint = Checkpoint()
    status = checkpoint.read(prefix)
    streaming_restore(status)
    x = torch.empty(2, device="meta")
    checkpoint.x = x
    checkpoint.part = thing(y=torch.empty(2, device="meta"))
    assert torch.equal(x, ones())
    assert torch.equal(checkpoint.part.y, full(2.0))
    status.assert_consumed()


def test_an_optimizer_that_comes_after_its_parameters_gets_its_slots(prefix: str) -> None:
    saved = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(saved.parameters())
    saved(ones()).sum().backward()
    optimizer.step()
    Checkpoint(net=saved, optimizer=optimizer).write(prefix)
    checkpoint = Checkpoint()
    status = checkpoint.read(prefix)
    streaming_restore(status)
    with torch.device("meta"):
        checkpoint.net = nn.Linear(2, 2)
        checkpoint.optimizer = torch.optim.Adam(checkpoint.net.parameters())
    status.assert_consumed()
    for live, its_own in zip(checkpoint.net.parameters(), saved.parameters(), strict=True):
        found, wanted = checkpoint.optimizer.state[live], optimizer.state[its_own]
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_same_tensor_that_comes_twice_is_made_once(prefix: str) -> None:
    saved = nn.Linear(2, 2, bias=False)
    Checkpoint(net=nn.ModuleList([saved, saved])).write(prefix)
    checkpoint = Checkpoint(net=nn.ModuleList())
    status = checkpoint.read(prefix)
    streaming_restore(status)
    live = nn.Linear(2, 2, bias=False, device="meta")
    checkpoint.net.append(live)
    with torch.no_grad():
        live.weight.fill_(5.0)
    checkpoint.net.append(live)
    assert torch.equal(live.weight, torch.full((2, 2), 5.0))
    status.assert_consumed()


# ----------------------------------------------------------------------------------------------------------- errors


def test_a_module_that_does_not_fit_is_not_attached_and_the_values_wait_on(net: nn.ModuleList, path: str) -> None:
    live = nn.ModuleList()
    status = Checkpoint(net=live).read(path)
    streaming_restore(status)
    wrong = nn.Sequential(nn.Linear(3, 7), nn.BatchNorm1d(3)).to("meta")
    with pytest.raises(MismatchError, match=r"\(root\)\.net\.0\.0\.weight"):
        live.append(wrong)
    assert len(live) == 0
    assert is_all_on_meta(wrong)
    live.extend([block().to("meta") for _ in range(3)])
    assert is_equal(live, net)


def test_after_damage_the_module_is_on_the_meta_device_and_the_values_wait_on(
    net: nn.ModuleList, path: str, damage: Damage
) -> None:
    """C382"""
    live = nn.ModuleList()
    status = Checkpoint(net=live).read(path)
    streaming_restore(status)
    damage(path, "net/0/0/weight/.ATTRIBUTES/VARIABLE_VALUE")
    part = block().to("meta")
    with pytest.raises(DataLossError, match="net/0/0/weight"):
        live.append(part)
    assert len(live) == 0
    assert is_all_on_meta(part)
    damage(path, "net/0/0/weight/.ATTRIBUTES/VARIABLE_VALUE")
    live.append(part)
    assert is_equal(live[0], net[0])
    status.expect_partial()


def test_where_the_first_step_fails_nothing_streams_later(path: str, damage: Damage) -> None:
    with torch.device("meta"):
        live = nn.ModuleList([block()])
    status = Checkpoint(net=live).read(path).expect_partial()
    damage(path, "net/0/0/weight/.ATTRIBUTES/VARIABLE_VALUE")
    with pytest.raises(DataLossError):
        streaming_restore(status)
    live.append(block().to("meta"))
    assert is_all_on_meta(live)


def test_what_is_gone_is_not_made(path: str) -> None:
    with torch.device("meta"):
        live = nn.ModuleList(block() for _ in range(3))
    tensors = [*live.parameters(), *live.buffers()]
    checkpoint = Checkpoint(net=live)
    status = checkpoint.read(path).expect_partial()
    del live
    checkpoint.net = nn.ModuleList()
    status.run_restore_ops()
    assert all(tensor.is_meta for tensor in tensors)
    assert not status.report().restored
    assert not status.report().is_complete


@pytest.mark.parametrize("by_names", [False, True])
def test_only_a_checkpoint_with_an_object_graph_streams(prefix: str, by_names: bool) -> None:
    if by_names:
        write_named(prefix, {"x": ones()})
    status = Checkpoint(x=zeros()).restore(prefix if by_names else None)
    with pytest.raises(
        TypeError, match=r"^streaming_restore needs the status of a checkpoint with an object graph, not "
    ):
        streaming_restore(status)
