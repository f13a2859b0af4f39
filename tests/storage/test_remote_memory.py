"""Saving to remote storage, and restoring from it, takes the same memory whatever the size of the checkpoint."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A file system that keeps no zeros, so that a checkpoint of them takes no memory but that of the package.
PROGRAM = """
import re
import sys

import fsspec
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch_trackckpt import Checkpoint, CheckpointOptions

MIB = 1 << 20


class Zeros:
    def __init__(self):
        self.size, self.kept = 0, {}

    def write(self, data):
        if data.count(0) != len(data):
            self.kept[self.size] = bytes(data)
        self.size += len(data)
        return len(data)

    def close(self):
        pass


class ZerosFileSystem(MemoryFileSystem):
    protocol = "zeros"
    store, pseudo_dirs, data = {}, [""], {}

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("zeros://"))

    def _open(self, path, mode="rb", **kwargs):
        if ".data-" not in path:
            return super()._open(path, mode, **kwargs)
        return self.data.setdefault(path, Zeros())

    def info(self, path, **kwargs):
        path = self._strip_protocol(path)
        if path in self.data:
            return {"name": path, "size": self.data[path].size, "type": "file"}
        return super().info(path, **kwargs)

    def cat_file(self, path, start=None, end=None, **kwargs):
        path = self._strip_protocol(path)
        if path not in self.data:
            return super().cat_file(path, start, end, **kwargs)
        for offset, kept in self.data[path].kept.items():
            if offset <= start and end <= offset + len(kept):
                return kept[start - offset : end - offset]
            assert end <= offset or offset + len(kept) <= start
        return bytes(end - start)


def peak_mib():
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\\s*(\\d+) kB", file.read())[1]) // 1024


fsspec.register_implementation("zeros", ZerosFileSystem)
num_threads, size = int(sys.argv[1]), int(sys.argv[2]) * MIB
options = CheckpointOptions(num_threads=num_threads)
saved = Checkpoint(**{f"x{i}": torch.zeros(size // 8, dtype=torch.uint8) for i in range(8)})
Checkpoint(x=torch.zeros(9 * MIB)).write("zeros://warm", options)
before = peak_mib()
path = saved.write("zeros://run/ckpt", options)
after_save = peak_mib()
live = {f"x{i}": torch.ones(size // 8, dtype=torch.uint8) for i in range(8)}
before_restore = peak_mib()
Checkpoint(**live).read(path, options).assert_consumed()
assert not any(tensor.any() for tensor in live.values())
print(after_save - before, peak_mib() - before_restore)
"""


def growth(num_threads: int, mib: int) -> tuple[int, int]:
    """By how many MiB the peak of a process rises when it saves, and when it restores."""
    arguments = [sys.executable, "-c", PROGRAM, str(num_threads), str(mib)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    saving, restoring = map(int, done.stdout.split())
    return saving, restoring


@pytest.mark.memory
@pytest.mark.parametrize("num_threads", [1, 4])
def test_a_checkpoint_of_a_gibibyte_takes_as_little_memory_as_the_page_says(num_threads: int) -> None:
    """docs/remote.md: two parts for each thread, and what the file system keeps; eight requests."""
    pytest.importorskip("fsspec", reason="fsspec is not installed (pip install 'torch_trackckpt[test]')")
    saving, restoring = growth(num_threads, 1024)
    assert saving <= 2 * 8 * num_threads + 32
    assert restoring <= 3 * 8 * 8 + 32
