"""torch.distributed.checkpoint in one process: `save` and `load`, and `async_save` with its two ways of staging.

The kept stager is `DefaultStager` with what it can do without an accelerator. `FileSystemWriter` has a cache for staged
values as well, but it pins memory, which needs one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.contenders.base import Contender
from benchmarks.workloads import Workload


class DCP(Contender):
    """The flat dict of all tensors, which it restores in place. It syncs its files, but not their directory."""

    def __init__(self, workload: Workload, threads: int = 1, stager: str = "default") -> None:
        super().__init__(workload)
        self._threads = threads
        self._stager = stager

    def prepare(self) -> None:
        self._dcp = self.library("torch.distributed.checkpoint")
        self._kept = None
        if self._stager == "kept":
            staging = self.library("torch.distributed.checkpoint.staging")
            options = staging.StagingOptions(
                use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
            )
            self._kept = staging.DefaultStager(options)

    def save(self, path: Path) -> None:
        writer = self._dcp.FileSystemWriter(path, thread_count=self._threads)
        self._dcp.save(self.workload.tensors(), storage_writer=writer, no_dist=True)

    def load(self, path: Path) -> None:
        self._dcp.load(self.workload.tensors(), checkpoint_id=path, no_dist=True)

    def read_one(self, path: Path, name: str) -> float:
        wanted = torch.empty_like(self.workload.tensors()[name])
        self._dcp.load({name: wanted}, checkpoint_id=path, no_dist=True)
        return float(wanted.sum())

    def begin(self, path: Path) -> Callable[[], object]:
        writer = self._dcp.FileSystemWriter(path, thread_count=self._threads)
        future = self._dcp.async_save(
            self.workload.tensors(), storage_writer=writer, no_dist=True, async_stager=self._kept
        )
        result: Callable[[], object] = future.result
        return result

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
