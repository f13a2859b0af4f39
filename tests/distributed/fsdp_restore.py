"""One of several processes that restore a training of one process into modules of FSDP2: see `test_fsdp_restore`.

python fsdp_restore.py <rank> <number of processes> <checkpoint> <file for the rendezvous> <file of expected values>
"""

import itertools
import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from torch_trackckpt import Checkpoint, CheckpointReader

BATCH = torch.ones(2, 5)


def model_on(device: str) -> nn.Sequential:
    with torch.device(device):
        return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 1))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """One step of training; returns what the model says after it."""
    optimizer.zero_grad()
    model(BATCH).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        after: torch.Tensor = model(BATCH)
        return after


def restore(rank: int, world_size: int, prefix: str, device: str, num_steps: int) -> list[torch.Tensor]:
    mesh = init_device_mesh("cpu", (world_size,))
    model = model_on(device)
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    checkpoint = Checkpoint(model=model, optimizer=optimizer)
    for _ in range(num_steps):
        # Leaves whole parameters behind, which are not those to restore into.
        step(model, optimizer)
    status = checkpoint.read(prefix)
    if device == "meta":
        status.run_restore_ops("cpu")
    status.assert_consumed()
    mine = [*model.parameters(), *(slot for s in optimizer.state.values() for n, slot in s.items() if n != "step")]
    assert all(isinstance(tensor, DTensor) for tensor in mine)
    if device == "cpu":
        groups = CheckpointReader(prefix).stored("optimizer/param_groups/.ATTRIBUTES/py_state").nbytes
        steps = 4 * len(optimizer.state)
        parts = sum(tensor.to_local().nbytes for tensor in mine)
        assert checkpoint.io_metrics.reads.last_bytes == parts + steps + groups
    with torch.no_grad():
        restored = model(BATCH)
    return [restored, step(model, optimizer), step(model, optimizer)]


def main(rank: int, world_size: int, prefix: str, rendezvous: str, expected: str) -> None:
    warnings.simplefilter("error")
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    outcomes = torch.load(expected, weights_only=True)
    for device, num_steps in itertools.chain(itertools.product(["cpu"], [0, 1]), [("meta", 0)]):
        found = restore(rank, world_size, prefix, device, num_steps)
        for mine, wanted in zip(found, outcomes, strict=True):
            torch.testing.assert_close(mine, wanted)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
    sys.stderr.flush()
    # Threads of torch's that are still there at the exit of the interpreter abort it now and then.
    os._exit(0)
