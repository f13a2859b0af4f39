"""What the ranks do in ``test_resharding``."""

from __future__ import annotations

import resource
from typing import Any

import torch
from distributed.trainings import FAST, MODES, listed, sharded_training, train, whole
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from torch_trackckpt import Checkpoint


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
