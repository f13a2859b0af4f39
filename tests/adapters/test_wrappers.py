"""Wrapping or unwrapping between save and restore changes nothing."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from checkpoints import paths
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper, offload_wrapper
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from torch_trackckpt import Checkpoint, register_adapter
from torch_trackckpt.adapters import adapt


class Net(nn.Module):
    """A layer, and one with buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.layer(x))
        return y


KEYS = sorted(
    ["layer/bias", "layer/weight"]
    + [f"norm/{name}" for name in ("bias", "num_batches_tracked", "running_mean", "running_var", "weight")]
)


def compiled(module: nn.Module) -> nn.Module:
    wrapped = torch.compile(module, backend="eager")
    assert isinstance(wrapped, nn.Module)
    return wrapped


def compiled_in_place(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


def with_checkpointed_layers(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        setattr(module, name, checkpoint_wrapper(child))
    return module


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "nothing": lambda module: module,
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "torch.compile": compiled,
    "Module.compile": compiled_in_place,
    "checkpoint_wrapper": checkpoint_wrapper,
    "offload_wrapper": offload_wrapper,
    "checkpoint_wrapper inside": with_checkpointed_layers,
    "three": lambda module: compiled(nn.DataParallel(checkpoint_wrapper(compiled(module)))),
}


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrap_restored", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("wrap_saved", WRAPPERS.values(), ids=WRAPPERS)
def test_what_is_saved_under_one_wrapper_is_restored_under_any_other(
    wrap_saved: Callable[[nn.Module], nn.Module], wrap_restored: Callable[[nn.Module], nn.Module], prefix: str
) -> None:
    """C072"""
    saved, restored = Net(), Net()
    Checkpoint(model=wrap_saved(saved)).write(prefix)
    assert paths(prefix) == [f"model/{key}" for key in KEYS]

    Checkpoint(model=wrap_restored(restored)).read(prefix).assert_consumed()
    assert is_same(saved, restored)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_an_optimizer_over_a_wrapped_model_fits_one_over_the_bare_model(
    wrap: Callable[[nn.Module], nn.Module], prefix: str
) -> None:
    """C072"""
    model = wrap(Net())
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    Checkpoint(model=model, optimizer=optimizer).write(prefix)

    bare = Net()
    fresh = torch.optim.Adam(bare.parameters())
    Checkpoint(model=bare, optimizer=fresh).read(prefix).assert_consumed()
    for mine, theirs in zip(bare.parameters(), model.parameters(), strict=True):
        assert torch.equal(fresh.state[mine]["exp_avg"], optimizer.state[theirs]["exp_avg"])


def is_same(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(
        (*left.parameters(), *left.buffers()),
        (*right.parameters(), *right.buffers()),
        strict=True,
    )
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_a_wrapper_has_no_node_of_its_own_wherever_it_is_in_a_model(prefix: str) -> None:
    """C072"""
    Checkpoint(m=nn.Sequential(compiled(nn.Linear(1, 1)), nn.DataParallel(nn.Linear(1, 1, bias=False)))).write(prefix)
    assert paths(prefix) == ["m/0/bias", "m/0/weight", "m/1/weight"]


def test_a_module_and_its_wrapper_are_one_node(prefix: str) -> None:
    """C023, C072"""
    module = nn.Linear(1, 1, bias=False)
    Checkpoint(bare=module, wrapped=nn.DataParallel(module)).write(prefix)
    assert paths(prefix) == ["bare/weight"]


def test_a_parallel_wrapper_with_buffers_of_its_own_keeps_its_node(prefix: str) -> None:
    class Counting(nn.DataParallel):
        def __init__(self, module: nn.Module, steps: int) -> None:
            super().__init__(module)
            self.register_buffer("steps", torch.tensor(steps))

    Checkpoint(m=Counting(nn.Linear(1, 1), 7)).write(prefix)
    fresh = Counting(nn.Linear(1, 1), 0)
    Checkpoint(m=fresh).read(prefix).assert_consumed()

    assert fresh.steps.item() == 7


def test_a_late_child_of_a_wrapped_module_gets_its_values(prefix: str) -> None:
    saved = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    Checkpoint(m=saved).write(prefix)
    growing = nn.Sequential(nn.Linear(2, 2))
    status = Checkpoint(m=nn.DataParallel(growing)).read(prefix)
    growing.append(checkpoint_wrapper(nn.Linear(2, 1)))

    status.assert_consumed()
    assert is_same(saved, growing)


def test_a_users_own_wrapper_joins_them_with_one_line(prefix: str) -> None:
    class Logged(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

    register_adapter(Logged, lambda wrapper: adapt(wrapper.inner))
    Checkpoint(m=nn.Sequential(Logged(nn.Linear(1, 1)))).write(prefix)
    assert paths(prefix) == ["m/0/bias", "m/0/weight"]


# ------------------------------------------------------------------------------------------ averaged models


def averaged(num_updates: int = 3, **options: Any) -> AveragedModel:
    model = Net()
    average = AveragedModel(model, **options)
    for _ in range(num_updates):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        average.update_parameters(model)
    return average


def test_an_average_has_the_keys_of_the_model_and_its_number(prefix: str) -> None:
    Checkpoint(ema=averaged()).write(prefix)
    assert paths(prefix) == sorted(f"ema/{key}" for key in [*KEYS, "n_averaged"])


@pytest.mark.parametrize("options", [{}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9), "use_buffers": True}])
def test_an_average_goes_on_where_it_was(options: dict[str, Any], prefix: str) -> None:
    saved = averaged(**options)
    Checkpoint(ema=saved).write(prefix)
    fresh = averaged(num_updates=0, **options)
    Checkpoint(ema=fresh).read(prefix).assert_consumed()
    assert is_same(saved, fresh)
    assert fresh.n_averaged.item() == 3

    more = Net()
    for average in (saved, fresh):
        average.update_parameters(more)
        update_bn([torch.arange(12.0).reshape(4, 3)], average)
    assert is_same(saved, fresh)


def test_the_average_is_restored_as_a_plain_model(prefix: str) -> None:
    """Only the number of averages has no place there, and the status tells of it."""
    average = averaged()
    Checkpoint(model=average).write(prefix)
    model = Net()
    status = Checkpoint(model=model).read(prefix)
    status.assert_existing_objects_matched()
    assert is_same(model, average.module)
    with pytest.raises(AssertionError, match="n_averaged"):
        status.assert_consumed()


def test_a_plain_model_is_restored_as_an_average(prefix: str) -> None:
    """The number of averages is not in the file. The status tells of it: with 0, the next update starts anew."""
    model = Net()
    Checkpoint(model=model).write(prefix)
    average = averaged(num_updates=2)
    status = Checkpoint(model=average).read(prefix)
    assert is_same(model, average.module)
    assert average.n_averaged.item() == 2
    with pytest.raises(AssertionError, match="n_averaged"):
        status.assert_existing_objects_matched()


def test_an_average_of_a_wrapped_model_is_one_of_the_model(prefix: str) -> None:
    saved = AveragedModel(nn.DataParallel(checkpoint_wrapper(nn.Linear(1, 1))))
    Checkpoint(ema=saved).write(prefix)
    assert paths(prefix) == ["ema/bias", "ema/n_averaged", "ema/weight"]
    fresh = nn.DataParallel(AveragedModel(nn.Linear(1, 1)))
    Checkpoint(ema=fresh).read(prefix).assert_consumed()
    assert torch.equal(*(next(model.parameters()) for model in (saved, fresh)))


def test_an_average_that_was_saved_below_the_name_of_the_wrapper_is_taken(prefix: str) -> None:
    average = averaged()
    Checkpoint(ema={"module": average.module, "n_averaged": average.n_averaged}).write(prefix)
    assert "ema/module/layer/weight" in paths(prefix)
    fresh = averaged(num_updates=0)
    Checkpoint(ema=fresh).read(prefix).assert_consumed()
    assert is_same(average, fresh)


def test_an_average_of_an_average_keeps_its_node(prefix: str) -> None:
    saved = AveragedModel(averaged(num_updates=2))
    Checkpoint(ema=saved).write(prefix)
    fresh = AveragedModel(averaged(num_updates=1))
    Checkpoint(ema=fresh).read(prefix).assert_consumed()
    assert (fresh.n_averaged.item(), fresh.module.n_averaged.item()) == (0, 2)


def test_an_average_and_what_it_averages_are_two_objects(prefix: str) -> None:
    average = averaged()
    Checkpoint(ema=average, inside=average.module).write(prefix)
    fresh = copy.deepcopy(average)
    for parameter in fresh.parameters():
        torch.nn.init.zeros_(parameter)
    Checkpoint(ema=fresh, inside=fresh.module).read(prefix).assert_consumed()
    assert is_same(average, fresh)


def test_an_average_on_the_meta_device_is_given_memory(prefix: str) -> None:
    saved = averaged()
    Checkpoint(ema=saved).write(prefix)
    with torch.device("meta"):
        fresh = AveragedModel(Net())
    status = Checkpoint(ema=fresh).read(prefix)
    status.run_restore_ops("cpu")
    status.assert_consumed()
    assert is_same(saved, fresh)


# -------------------------------------------------------------------------------------- wrappers of other packages


def test_what_fabric_sets_up_is_saved_as_what_it_wraps(prefix: str) -> None:
    fabric_module = pytest.importorskip("lightning.fabric")
    fabric = fabric_module.Fabric(accelerator="cpu", devices=1)
    model = Net()
    bare = torch.optim.Adam(model.parameters())
    wrapped, optimizer = fabric.setup(model, bare)
    fabric.backward(wrapped(torch.randn(4, 3)).square().sum())
    optimizer.step()
    Checkpoint(model=wrapped, optimizer=optimizer).write(prefix)
    assert [path for path in paths(prefix) if ".OPTIMIZER" not in path] == [
        *(f"model/{key}" for key in KEYS),
        "optimizer/param_groups",
    ]
    fresh = Net()
    fresh_optimizer = torch.optim.Adam(fresh.parameters())
    Checkpoint(model=fresh, optimizer=fresh_optimizer).read(prefix).assert_consumed()
    assert is_same(model, fresh)
    assert torch.equal(fresh_optimizer.state[fresh.layer.weight]["exp_avg"], bare.state[model.layer.weight]["exp_avg"])


def test_what_accelerate_prepares_is_saved_as_what_it_wraps(prefix: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = Net()
    bare = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(bare, 1)
    prepared, optimizer, scheduler = accelerator.prepare(model, bare, schedule)
    accelerator.backward(prepared(torch.randn(4, 3)).square().sum())
    optimizer.step()
    scheduler.step()
    Checkpoint(model=prepared, optimizer=optimizer, scheduler=scheduler).write(prefix)
    fresh = Net()
    fresh_optimizer = torch.optim.SGD(fresh.parameters(), lr=0.1, momentum=0.9)
    fresh_schedule = torch.optim.lr_scheduler.StepLR(fresh_optimizer, 1)
    Checkpoint(model=fresh, optimizer=fresh_optimizer, scheduler=fresh_schedule).read(prefix).assert_consumed()
    assert is_same(model, fresh)
    assert fresh_schedule.get_last_lr() == schedule.get_last_lr() != [0.1]
