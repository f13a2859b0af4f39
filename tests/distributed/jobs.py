"""What the ranks of the tests do."""

from __future__ import annotations

import contextlib
import errno
import os
import pkgutil
import random
import resource
import signal
import time
from typing import Any, NoReturn
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from torch_trackckpt import (
    Checkpoint,
    CheckpointManager,
    CheckpointOptions,
    CheckpointReader,
    RNGState,
    frozen_saver,
    latest_checkpoint,
)
from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.errors import DataLossError, RankError

FAST = CheckpointOptions(durable=False)
MODES = {
    "first": CheckpointOptions(durable=False, enable_async=True),
    "overlapped": CheckpointOptions(durable=False, enable_async=True, async_copy="overlapped"),
    "synchronous": FAST,
}


def model_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def trained(model: nn.Module, steps: int = 2) -> torch.optim.Optimizer:
    """With the same gradients on all ranks."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.rand(4, 8, generator=generator)).square().sum().backward()
        optimizer.step()
    return optimizer


def listed(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.tolist()
    if isinstance(state, dict):
        return {str(key): listed(value) for key, value in state.items()}
    return [listed(value) for value in state] if isinstance(state, (list, tuple)) else state


def save_replicated(rank: int, size: int, path: str) -> Any:
    """The same model on all ranks, and random states that are not."""
    model = model_of(0)
    optimizer = trained(model)
    model[1].running_mean.fill_(rank)
    torch.manual_seed(100 + rank)
    random.seed(rank)
    np.random.seed(rank)
    checkpoint = Checkpoint(model=model, optimizer=optimizer, rng=RNGState())
    saved = checkpoint.save(f"{path}/ckpt", FAST)
    files = sorted(os.listdir(path))
    live = listed({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    draws = [torch.rand(3).tolist(), random.random(), np.random.rand()]
    dist.barrier()

    other = model_of(1)
    resumed = Checkpoint(model=other, optimizer=torch.optim.AdamW(other.parameters()), rng=RNGState())
    resumed.restore(saved).assert_consumed()
    again = [torch.rand(3).tolist(), random.random(), np.random.rand()]
    return {
        "path": saved,
        "files": files,
        "live": live,
        "written": checkpoint.io_metrics.writes.last_bytes,
        "state": listed({"model": other.state_dict(), "optimizer": resumed.optimizer.state_dict()}),
        "draws": draws,
        "again": again,
    }


def save_in_turn(rank: int, size: int, path: str, mode: str) -> Any:
    """Several saves, of each of which the values are those of the call."""
    options = MODES[mode]
    model = nn.Linear(300, 300)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    checkpoint = Checkpoint(model=model, optimizer=optimizer)
    paths = []
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, -1.0)
        optimizer.step()
        paths.append(checkpoint.save(f"{path}/ckpt", options))
    checkpoint.sync()
    return paths


def manage(rank: int, size: int, path: str) -> Any:
    """Saves by a manager, and goes back from a checkpoint that one rank finds damaged."""
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.bias)
    manager = CheckpointManager(Checkpoint(model=model), path, max_to_keep=2)
    for number in range(4):
        nn.init.constant_(model.weight, number)
        manager.save(options=FAST)
    listed = list(manager.checkpoints)
    on_disk = sorted(os.listdir(path))
    again = CheckpointManager(Checkpoint(model=model), path, max_to_keep=2)
    dist.barrier()

    # Damage that only one rank sees.
    def damaged(*_: Any) -> NoReturn:
        raise DataLossError("a bad page")

    restore = Checkpoint.restore
    if rank == 1:
        Checkpoint.restore = lambda self, save_path, options=None: (  # type: ignore[method-assign]
            damaged() if save_path.endswith("-4") else restore(self, save_path, options)
        )
    restored = again.restore_or_initialize()
    weight = model.weight[0, 0].item()
    return {"listed": listed, "files": on_disk, "again": again.checkpoints, "restored": restored, "weight": weight}


class _Odd:
    """Cannot say what its state is."""

    def state_dict(self) -> dict[str, Any]:
        raise ValueError("odd")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def fail_and_go_on(rank: int, size: int, path: str, failing: int, how: str) -> Any:
    """One rank fails, and the next save works."""
    parts: dict[str, Any] = {"model": nn.Linear(100, 100)}
    nn.init.ones_(parts["model"].weight)
    checkpoint = Checkpoint(**parts)
    first = checkpoint.save(f"{path}/ckpt", FAST)
    before = sorted(os.listdir(path))
    if how == "adapter" and rank == failing:
        checkpoint.odd = _Odd()
    patched: Any = contextlib.nullcontext()
    if how == "full disk" and rank == failing:
        full = OSError(errno.ENOSPC, "No space left on device")
        patched = mock.patch.object(BundleWriter, "add_rows", side_effect=full)
    if how == "commit" and rank == failing:
        broken = OSError(errno.EIO, "Input/output error")
        patched = mock.patch("torch_trackckpt.save.commit._publish", side_effect=broken)
    error = ""
    with patched:
        try:
            checkpoint.save(f"{path}/ckpt", FAST)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
    dist.barrier()
    after = sorted(os.listdir(path))
    dist.barrier()
    if "odd" in vars(checkpoint):
        del checkpoint.odd
    second = checkpoint.save(f"{path}/ckpt", FAST)
    return {"first": first, "before": before, "error": error, "after": after, "second": second}


_PLACES = {
    "as it begins": "torch_trackckpt.distributed.group.Group.session",
    "saying what it has": "torch_trackckpt.save.ranks.Offer.summary",
    "planning": "torch_trackckpt.checkpoint.plan_of",
    "writing": "torch_trackckpt.bundle.writer.BundleWriter.add_rows",
    "having written": "torch_trackckpt.distributed.group.Session._say",
    "joining": "torch_trackckpt.save.joint.JointSave._joined",
    "renaming data": "torch_trackckpt.storage.local.LocalStorage.rename",
    "renaming the index": "torch_trackckpt.storage.local.LocalStorage.rename",
    "naming it": "torch_trackckpt.checkpoint.write_checkpoint_state",
    "telling of it": "torch_trackckpt.distributed.group.Session._say",
}
# How often the function is called before, where that is not at once.
# A session for the number of the save comes first.
_CALLS_BEFORE = {"having written": {0: 4, 1: 2}, "renaming the index": {0: 2}, "telling of it": {0: 5}}
PLACES = list(_PLACES)


def die(rank: int, size: int, path: str, victim: int, place: str, is_async: bool) -> Any:
    """One process is killed in the middle of the second save."""
    model = nn.Linear(100, 100)
    nn.init.ones_(model.weight)
    checkpoint = Checkpoint(model=model)
    options = CheckpointOptions(durable=False, enable_async=is_async, rank_silence_seconds=4)
    checkpoint.save(f"{path}/ckpt", options)
    checkpoint.sync()
    nn.init.zeros_(model.weight)
    if rank == victim:
        module, _, name = _PLACES[place].rpartition(".")
        left = _CALLS_BEFORE.get(place, {}).get(rank, 0)
        owner = pkgutil.resolve_name(module)
        original = getattr(owner, name)

        def killed(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **named)

        setattr(owner, name, killed)
    began = time.monotonic()
    try:
        checkpoint.save(f"{path}/ckpt", options)
        checkpoint.sync()
    except RankError as error:
        return {"error": str(error), "seconds": time.monotonic() - began}
    return {"error": "", "seconds": time.monotonic() - began}


class Stage(nn.Module):
    """The part of a network that one process of a pipeline has."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.add_module(f"layer{rank}", nn.Linear(4 + rank, 5 + rank))
        self.add_module("norm" if rank == 0 else "head", nn.Linear(3, 3))


def pipeline(rank: int, size: int, path: str) -> Any:
    """Each process has other modules, and an optimizer of the same name for its own."""
    torch.manual_seed(rank)
    stage = Stage(rank)
    shared = nn.Embedding(7, 2)
    nn.init.ones_(shared.weight)
    optimizer = torch.optim.AdamW([*stage.parameters(), *shared.parameters()], lr=0.25)
    for parameter in [*stage.parameters(), *shared.parameters()]:
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    checkpoint = Checkpoint(net=stage, shared=shared, optimizer=optimizer, rng=RNGState())
    saved = checkpoint.save(f"{path}/ckpt", FAST)
    expected = listed({"net": stage.state_dict(), "optimizer": optimizer.state_dict()})
    dist.barrier()
    torch.manual_seed(9)
    other, table = Stage(rank), nn.Embedding(7, 2)
    again = torch.optim.AdamW([*other.parameters(), *table.parameters()], lr=1.0)
    status = Checkpoint(net=other, shared=table, optimizer=again, rng=RNGState()).restore(saved)
    status.assert_existing_objects_matched()
    return {"expected": expected, "found": listed({"net": other.state_dict(), "optimizer": again.state_dict()})}


def conflict(rank: int, size: int, path: str) -> Any:
    """One name for two things."""
    try:
        Checkpoint(net=nn.Linear(2 + rank, 2)).save(f"{path}/ckpt", FAST)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def alone(rank: int, size: int, path: str) -> Any:
    """A process saves for itself."""
    if rank == 1:
        options = CheckpointOptions(durable=False, all_ranks=False)
        return Checkpoint(net=nn.Linear(2, 2)).save(f"{path}/mine", options)
    return None


def sharded_training(mesh: Any = None) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Layers whose sides no number of processes divides."""
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 1))
    named = {} if mesh is None else {"mesh": mesh}
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, **named)
    fully_shard(model, **named)
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps whose gradients are the same however many processes there are: all have the whole batch."""
    for step in steps:
        optimizer.zero_grad()
        model(torch.randn(4, 5, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()


def whole(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """All values, put together from all processes."""

    def full(value: Any) -> Any:
        return value.full_tensor().tolist() if isinstance(value, DTensor) else listed(value)

    found = {name: full(value.detach()) for name, value in model.named_parameters()}
    for name, value in model.named_parameters():
        found[f"{name}'s state"] = {key: full(slot) for key, slot in sorted(optimizer.state[value].items())}
    return found


def shard_and_save(rank: int, size: int, path: str, mode: str = "synchronous") -> Any:
    """A training that saves, goes on, and tells what it had at both times."""
    torch.manual_seed(0)
    model, optimizer = sharded_training()
    train(model, optimizer, range(3))
    checkpoint = Checkpoint(model=model, optimizer=optimizer)
    saved = whole(model, optimizer)
    checkpoint.save(f"{path}/ckpt", MODES[mode])
    train(model, optimizer, range(3, 6))
    checkpoint.sync()
    return {"saved": saved, "later": whole(model, optimizer)}


def reshard(rank: int, size: int, source: str, path: str) -> Any:
    """Restores what other processes have saved, saves it again, and goes on."""
    torch.manual_seed(1)
    model, optimizer = sharded_training()
    checkpoint = Checkpoint(model=model, optimizer=optimizer)
    checkpoint.restore(source).assert_consumed()
    read = checkpoint.io_metrics.reads.last_bytes
    restored = whole(model, optimizer)
    slots = [slot for state in optimizer.state.values() for slot in state.values() if isinstance(slot, DTensor)]
    own = sum(value.to_local().nbytes for value in (*model.parameters(), *slots))
    checkpoint.save(f"{path}/ckpt", FAST)
    train(model, optimizer, range(3, 6))
    return {"restored": restored, "later": whole(model, optimizer), "read": read, "own": own}


def meshes(rank: int, size: int, path: str) -> Any:
    """Four processes: two by two, sharded and replicated, and sharded in two ways."""
    torch.manual_seed(0)
    found = {}
    hybrid, optimizer = sharded_training(init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    train(hybrid, optimizer, range(2))
    checkpoint = Checkpoint(model=hybrid, optimizer=optimizer)
    checkpoint.write(f"{path}/hybrid", FAST)
    found["hybrid"] = whole(hybrid, optimizer)
    found["written"] = checkpoint.io_metrics.writes.last_bytes

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))
    parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh["data"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    model(torch.ones(3, 6)).square().mean().backward()
    optimizer.step()
    Checkpoint(model=model, optimizer=optimizer).write(f"{path}/tensor", FAST)
    found["tensor"] = whole(model, optimizer)
    # And back into another of the same kind.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    Checkpoint(model=model, optimizer=optimizer).read(f"{path}/tensor").assert_consumed()
    found["again"] = whole(model, optimizer)
    return found


def replicate_with_ddp(rank: int, size: int, path: str) -> Any:
    """DistributedDataParallel, whose wrapper has no name in the keys; resumed and uninterrupted are compared."""

    def training(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = DistributedDataParallel(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 1)))
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for step in numbers:
            optimizer.zero_grad()
            inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(10 * step + rank))
            model(inputs).square().mean().backward()
            optimizer.step()

    model, optimizer = training(0)
    steps(model, optimizer, range(3))
    Checkpoint(model=model, optimizer=optimizer).save(f"{path}/ckpt", FAST)
    steps(model, optimizer, range(3, 6))
    other, again = training(1)
    Checkpoint(model=other, optimizer=again).restore(f"{path}/ckpt-1").assert_consumed()
    steps(other, again, range(3, 6))
    return [listed([m.state_dict(), o.state_dict()]) for m, o in ((model, optimizer), (other, again))]


def restore_by_name(rank: int, size: int, path: str) -> Any:
    """What has names only, into parameters that are sharded."""
    layer = nn.Linear(5, 7)
    fully_shard(layer)
    Checkpoint(layer=layer).read(path).assert_existing_objects_matched()
    return {name: value.full_tensor().tolist() for name, value in layer.named_parameters()}


class _Ragged:
    """A state whose tensor has another shape in each process."""

    def __init__(self, count: int) -> None:
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        return {"seen": torch.arange(self.count)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = len(state["seen"])


def ragged(rank: int, size: int, path: str) -> Any:
    """States that cannot be parts of one tensor."""
    try:
        Checkpoint(seen=_Ragged(3 + rank)).save(f"{path}/ckpt", FAST)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def save_remotely(rank: int, size: int, url: str, is_async: bool) -> Any:
    """Sharded saves to remote storage: new ones, and one in the place of another."""
    torch.manual_seed(0)
    model, optimizer = sharded_training()
    train(model, optimizer, range(2))
    checkpoint = Checkpoint(model=model, optimizer=optimizer, rng=RNGState())
    options = MODES["first" if is_async else "synchronous"]
    checkpoint.write(f"{url}/same", options)
    train(model, optimizer, range(2, 3))
    checkpoint.write(f"{url}/same", options)
    train(model, optimizer, range(3, 4))
    first = checkpoint.save(f"{url}/ckpt", options)
    checkpoint.sync()
    expected = whole(model, optimizer)
    again, its_optimizer = sharded_training()
    Checkpoint(model=again, optimizer=its_optimizer, rng=RNGState()).restore(first).assert_consumed()
    return {"expected": expected, "found": whole(again, its_optimizer), "path": first}


def fail_remotely(rank: int, size: int, url: str, failing: int) -> Any:
    """One rank cannot upload."""
    checkpoint = Checkpoint(model=nn.Linear(100, 100))
    first = checkpoint.save(f"{url}/ckpt", FAST)
    dist.barrier()
    error = ""
    broken = OSError(errno.EIO, "the network is down")
    patched: Any = mock.patch.object(BundleWriter, "finish", side_effect=broken)
    with patched if rank == failing else contextlib.nullcontext():
        try:
            checkpoint.save(f"{url}/ckpt", FAST)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
    dist.barrier()
    latest = latest_checkpoint(url)
    dist.barrier()
    third = checkpoint.save(f"{url}/ckpt", FAST)
    return {"first": first, "error": error, "latest": latest, "third": third}


def meshes_side_by_side(rank: int, size: int, path: str) -> Any:
    """Two meshes of two, on each of which there is all of the model; and ranks that have something more."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    model, optimizer = sharded_training(mesh["data"])
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.fill_(number)
    train(model, optimizer, range(2))
    checkpoint = Checkpoint(model=model, optimizer=optimizer)
    checkpoint.write(f"{path}/same", FAST)
    if rank in (1, 3):
        checkpoint.more = nn.Linear(2, 2)
    checkpoint.write(f"{path}/more", FAST)
    return whole(model, optimizer)


def flat_parameters(rank: int, size: int, path: str) -> Any:
    """FSDP1."""
    model = FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu"))
    try:
        Checkpoint(model=model).save(f"{path}/ckpt", FAST)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def measure_memory(rank: int, size: int, path: str, count: int) -> Any:
    """How much more memory a sharded save, and a restore, need than the values themselves, in MiB."""

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def sharded(count: int) -> nn.Module:
        model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(count)))
        for layer in model:
            fully_shard(layer)
        fully_shard(model)
        return model

    # What comes with the first of either, whatever its size.
    first = Checkpoint(model=sharded(1))
    first.write(f"{path}/first", FAST)
    first.read(f"{path}/first").assert_consumed()
    model = sharded(count)
    checkpoint = Checkpoint(model=model)
    own = sum(value.to_local().nbytes for value in model.parameters()) / 2**20
    # Whole layers were there before they were sharded; what they took is to be taken again before anything counts.
    ballast = torch.ones(max(0, int((peak() - _resident()) * 2**18)))
    before = peak()
    checkpoint.write(f"{path}/ckpt", FAST)
    saved = peak()
    checkpoint.read(f"{path}/ckpt").assert_consumed()
    del ballast
    return {"own": own, "save": saved - before, "restore": peak() - saved}


def _resident() -> float:
    """How much memory the process has now, in MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def fail_in_callback(rank: int, size: int, url: str, failing: int) -> Any:
    """What is called when there is the checkpoint raises in one process."""

    def raise_there() -> None:
        if rank == failing:
            raise ZeroDivisionError("in a callback")

    model = nn.Linear(100, 100)
    nn.init.zeros_(model.weight)
    checkpoint = Checkpoint(model=model)
    checkpoint.write(f"{url}/ckpt", FAST)
    nn.init.ones_(model.weight)
    error = ""
    try:
        checkpoint.write(f"{url}/ckpt", CheckpointOptions(durable=False, experimental_write_callbacks=(raise_there,)))
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    dist.barrier()
    found = CheckpointReader(f"{url}/ckpt").get_tensor("model/weight/.ATTRIBUTES/VARIABLE_VALUE").tolist()[0][0]
    dist.barrier()
    again = checkpoint.write(f"{url}/again", FAST)
    return {"error": error, "found": found, "again": again}


def fail_in_background(rank: int, size: int, path: str) -> Any:
    """A callback of an asynchronous save raises in one process, which learns of it at its next save."""

    def raise_there() -> None:
        if rank == 1:
            raise ZeroDivisionError("in a callback")

    step = torch.zeros(3)
    checkpoint = Checkpoint(step=step, other=nn.Parameter(torch.zeros(5)))
    outcomes = []
    for number in range(4):
        step.fill_(number)
        checkpoint.other.data.fill_(number)
        callbacks = (raise_there,) if number == 1 else ()
        options = CheckpointOptions(durable=False, enable_async=True, experimental_write_callbacks=callbacks)
        try:
            outcomes.append(checkpoint.write(f"{path}/ckpt-{number}", options)[-1])
        except Exception as raised:
            outcomes.append(type(raised).__name__)
    checkpoint.sync()
    return outcomes


def save_alone_before(rank: int, size: int, path: str) -> Any:
    """One process has saved by itself, so that its counter is ahead."""
    checkpoint = Checkpoint(x=torch.zeros(2))
    if rank == 1:
        checkpoint.save(f"{path}/mine", CheckpointOptions(durable=False, all_ranks=False))
    return [checkpoint.save(f"{path}/ckpt", FAST), int(checkpoint.save_counter)]


def last_save_at_exit(rank: int, size: int, path: str) -> Any:
    """The last asynchronous save takes long after the main thread is over."""
    checkpoint = Checkpoint(x=torch.zeros(100))
    write = BundleWriter.add_rows

    def slowly(self: BundleWriter, *arguments: Any, **named: Any) -> None:
        time.sleep(6)
        write(self, *arguments, **named)

    BundleWriter.add_rows = slowly  # type: ignore[method-assign]
    options = CheckpointOptions(durable=False, enable_async=True, rank_silence_seconds=3)
    checkpoint.save(f"{path}/ckpt", options)
    return "ends"


def large_states(rank: int, size: int, path: str) -> Any:
    """States that are larger than what a store takes at once."""

    class State:
        def __init__(self) -> None:
            self.numbers = [rank] * 5_000_000

        def state_dict(self) -> dict[str, Any]:
            return {"numbers": self.numbers}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.numbers = state["numbers"]

    state = State()
    checkpoint = Checkpoint(state=state)
    saved = checkpoint.save(f"{path}/ckpt", FAST)
    state.numbers = []
    checkpoint.restore(saved).assert_consumed()
    return state.numbers == [rank] * 5_000_000


def of_two_kinds(rank: int, size: int, path: str) -> Any:
    """A parameter in one process, and a tensor in the other."""
    w = torch.zeros(3)
    try:
        Checkpoint(w=nn.Parameter(w) if rank == 0 else w, a=nn.Linear(2, 2)).save(f"{path}/ckpt", FAST)
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return ""


def frozen(rank: int, size: int, path: str) -> Any:
    """A saver of the same objects, one of which has a state by rank."""
    torch.manual_seed(rank)
    saver = frozen_saver(Checkpoint(rng=RNGState()))
    saved = saver.save(f"{path}/ckpt", FAST)
    expected = torch.rand(3)
    saver.restore(saved).assert_consumed()
    return torch.equal(expected, torch.rand(3))


def group_anew(rank: int, size: int, path: str) -> Any:
    """The processes part, and each saves for itself."""
    checkpoint = Checkpoint(x=torch.zeros(2))
    checkpoint.save(f"{path}/ckpt", FAST)
    dist.barrier()
    store = dist.distributed_c10d._get_default_store()
    dist.destroy_process_group()
    mine = checkpoint.write(f"{path}/mine-{rank}", FAST)
    dist.init_process_group("gloo", store=dist.PrefixStore("again", store), rank=size - 1 - rank, world_size=size)
    together = checkpoint.write(f"{path}/again", FAST)
    return [mine, together, sorted(name for name in os.listdir(path) if name.startswith("again"))]
