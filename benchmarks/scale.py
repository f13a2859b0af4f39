"""What rank 0 has to do when very many ranks have saved: their plans and indexes alone, without any tensor.

    python -m benchmarks.scale [--ranks 1024] [--slices 2000] [--place /dev/shm]

Every rank has a slice of each of so many tensors, which is what FSDP leaves it with. Printed are the size of the
indexes, how long it takes to make one of them, and the memory that this takes; then the same for what the ranks say to
each other before they write.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from torch_trackckpt import _native
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.save.ranks import Shares


def write_indexes(place: Path, num_ranks: int, num_slices: int) -> list[str]:
    """The index that each rank writes: a row of each tensor is its own."""
    keys = [
        f"model/layers/{number}/attention/projection/weight/.ATTRIBUTES/VARIABLE_VALUE" for number in range(num_slices)
    ]
    row = torch.zeros(1, 1)
    indexes = []
    for rank in range(num_ranks):
        index = str(place / f"part.index.{rank}")
        part = TensorSlice.box((num_ranks, 1), (rank, 0), (1, 1))
        data = place / "data"
        with BundleWriter(str(data), index, durable=False) as writer:
            for key in keys:
                writer.add_slice(key, row, part)
        data.unlink()
        indexes.append(index)
    return indexes


def merge(indexes: list[str], merged: str) -> dict[str, float]:
    """Makes one index of all, in a process of its own; returns what that took."""
    script = (
        "import json, resource, sys, time\n"
        "from torch_trackckpt import _native\n"
        "indexes = json.load(sys.stdin)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "start = time.perf_counter()\n"
        f"shards = _native.merge_indexes(indexes, {merged!r}, durable=False)\n"
        "seconds = time.perf_counter() - start\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(json.dumps({'seconds': seconds, 'mib': (after - before) / 1024, 'shards': len(shards)}))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(indexes), capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(answer.stdout)
    return found


def summaries(num_ranks: int, num_states: int) -> tuple[int, float]:
    """How many bytes the ranks say at first, and how long rank 0 thinks about it."""
    generator = np.random.default_rng(0)
    said = [
        json.dumps(
            {
                "digest": "0" * 32,
                "states": {
                    f"state{number}/.ATTRIBUTES/py_state": generator.bytes(16).hex() if number == 0 else "1" * 32
                    for number in range(num_states)
                },
            }
        )
        for _ in range(num_ranks)
    ]
    start = time.perf_counter()
    Shares.summarised([json.loads(text) for text in said])
    return sum(map(len, said)), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--slices", type=int, default=2000)
    parser.add_argument("--place", type=Path, default=Path("/dev/shm"), help="a directory in memory")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.place) as place:
        start = time.perf_counter()
        indexes = write_indexes(Path(place), chosen.ranks, chosen.slices)
        written = time.perf_counter() - start
        num_bytes = sum(Path(index).stat().st_size for index in indexes)
        print(f"{chosen.ranks} ranks, {chosen.slices} slices each: {num_bytes / 1e6:.0f} MB of indexes")
        print(f"  a rank writes its own in {written / chosen.ranks * 1e3:.1f} ms")
        merged = f"{place}/merged.index"
        found = merge(indexes, merged)
        size = Path(merged).stat().st_size
        print(
            f"  rank 0 makes one of them in {found['seconds']:.2f} s, with {found['mib']:.0f} MiB ({size / 1e6:.0f} MB)"
        )
        start = time.perf_counter()
        _native.BundleReader(merged, f"{place}/data")
        print(f"  a reader opens it in {(time.perf_counter() - start) * 1e3:.0f} ms")
    said, seconds = summaries(chosen.ranks, 20)
    print(f"  what the ranks say first: {said / 1e6:.2f} MB, {seconds * 1e3:.0f} ms of rank 0")
    print(f"  this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at most")


if __name__ == "__main__":
    main()
