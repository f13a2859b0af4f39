"""torch_checkpointing, Meta's successor of torch.distributed.checkpoint: synchronous, and overlapped with the step.

Buffered files (`use_direct_io=False`). A file is written by one thread: with two threads a training is its two items,
model and optimizer, and a plain dict is cut into halves. Its asynchronous save returns at once and copies while the
program goes on; the program has to take its lock around every change in place.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contenders.base import Contender
from benchmarks.workloads import Workload


class TorchCheckpointing(Contender):
    """A `CheckpointManager` of its own for each process, as a training has."""

    install = "torch_checkpointing"

    def __init__(self, workload: Workload, threads: int = 1, overlapped: bool = False) -> None:
        super().__init__(workload)
        self._threads = threads
        self._overlapped = overlapped

    def prepare(self) -> None:
        library = self.library("torch_checkpointing")
        config = self.library("torch_checkpointing.config")
        writer = self.library("torch_checkpointing.checkpoint_writer").CheckpointWriterConfig(
            file_write_max_threads=self._threads
        )
        storage = self.library("torch_checkpointing.storage.filesystem").LocalFileSystemStorageConfig(
            use_direct_io=False
        )
        save: Any = config.SyncCheckpointSaverConfig(writer_config=writer)
        if self._overlapped:
            staging = self.library("torch_checkpointing.staging").CheckpointStagerConfig(
                use_pinned_memory=False, use_non_blocking_copy=False
            )
            save = config.AsyncCheckpointSaverConfig(writer_config=writer, staging_config=staging)
        self._manager = library.CheckpointManager(library.CheckpointManager.Config(save=save, storage_config=storage))

    def _items(self) -> dict[str, Any]:
        state = self.workload.state()
        if self.workload.training is not None or self._threads == 1:
            return state
        names = list(state["tensors"])
        cuts = [len(names) * part // self._threads for part in range(self._threads + 1)]
        return {
            f"part{number}": {name: state["tensors"][name] for name in names[begin:end]}
            for number, (begin, end) in enumerate(itertools.pairwise(cuts))
        }

    def save(self, path: Path) -> None:
        self._manager.save(str(path / "state"), self._items())

    def load(self, path: Path) -> None:
        self._manager.load(str(path / "state"), into=self._items())

    def begin(self, path: Path) -> Callable[[], object]:
        future = self._manager.save(str(path / "state"), self._items())
        result: Callable[[], object] = future.result
        return result

    def step_guard(self) -> contextlib.AbstractContextManager[Any]:
        guard: contextlib.AbstractContextManager[Any] = self._manager.lock()
        return guard

    def close(self) -> None:
        self._manager.close()
