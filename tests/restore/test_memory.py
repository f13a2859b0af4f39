"""A restore needs no second copy of the checkpoint; the meta device saves the first one that is thrown away."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.memory

MIB = 1 << 20

FRAME = """
import re
import torch
from torch import nn
from torch_trackckpt import Checkpoint, CheckpointOptions, streaming_restore

def peak():
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\\s*(\\d+) kB", file.read())[1]) << 10

def make(device=None):
    # As large parts as the name says, in MiB, each of two tensors.
    return nn.ModuleList(nn.Linear(2048, {part} * 128, device=device) for _ in range({parts}))

path = {path!r}
warm = nn.Linear(8, 8)
Checkpoint(x=warm).read(Checkpoint(x=warm).write(path + "-warm"))
{work}
"""


def run(path: Path, parts: int, part: int, work: str) -> str:
    """What a process of its own prints."""
    code = FRAME.format(path=str(path), parts=parts, part=part, work=work)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """What is left in it does not stay, because it is large."""
    yield tmp_path
    for file in tmp_path.iterdir():
        file.unlink()


def write(path: Path, parts: int, part: int) -> None:
    run(
        path,
        parts,
        part,
        """
net = make()
for index, linear in enumerate(net):
    nn.init.constant_(linear.weight, index + 1.0)
Checkpoint(net=net).write(path, CheckpointOptions(durable=False))
""",
    )


CHECK = """
assert [float(linear.weight[-1, -1].detach()) for linear in net] == [index + 1.0 for index in range(len(net))]
status.assert_consumed()
"""


@pytest.mark.parametrize(
    "work",
    [
        "status.run_restore_ops()",
        "status.initialize_or_restore()",
        "streaming_restore(status)",
    ],
    ids=["run_restore_ops", "initialize_or_restore", "streaming_restore"],
)
def test_a_model_on_the_meta_device_costs_its_own_size(directory: Path, work: str) -> None:
    path = directory / "ckpt"
    write(path, parts=4, part=64)
    grown = run(
        path,
        4,
        64,
        f"""
before = peak()
net = make("meta")
status = Checkpoint(net=net).read(path)
assert peak() - before < {8 * MIB}
{work}
print(peak() - before)
{CHECK}
""",
    )
    assert int(grown) < (256 + 64) * MIB


def test_parts_that_are_made_and_dropped_one_by_one_cost_the_size_of_one(directory: Path) -> None:
    path = directory / "ckpt"
    write(path, parts=4, part=64)
    grown = run(
        path,
        4,
        64,
        """
before = peak()
checkpoint = Checkpoint(net=nn.Module())
status = checkpoint.read(path).expect_partial()
streaming_restore(status)
for index in range(4):
    part = nn.Linear(2048, 64 * 128, device="meta")
    setattr(checkpoint.net, str(index), part)
    assert float(part.weight[-1, -1].detach()) == index + 1.0
    delattr(checkpoint.net, str(index))
    del part
print(peak() - before)
""",
    )
    assert int(grown) < (64 + 64) * MIB


def test_a_restore_into_real_tensors_costs_next_to_nothing(directory: Path) -> None:
    """Here of 1 GiB."""
    path = directory / "ckpt"
    write(path, parts=8, part=128)
    grown = run(
        path,
        8,
        128,
        f"""
net = make()
before = peak()
status = Checkpoint(net=net).read(path)
print(peak() - before)
{CHECK}
""",
    )
    assert int(grown) < 64 * MIB
