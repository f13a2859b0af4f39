"""This package, by its public names: every byte is checked when it is restored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch_trackckpt as tt
from benchmarks.contenders.base import Contender, NotAvailableError
from benchmarks.workloads import Workload
from torch_trackckpt.sharding import ShardableTensor, ShardByTaskPolicy, ShardingCallback, Shards


class Deal(ShardingCallback):
    """Values dealt out in turn to so many data files."""

    def __init__(self, num_shards: int) -> None:
        self._num_shards = num_shards

    @property
    def description(self) -> str:
        return f"values dealt out in turn to {self._num_shards} files"

    def __call__(self, shardable_tensors: Sequence[ShardableTensor]) -> Shards:
        shards: list[dict[str, dict[str, Any]]] = [{} for _ in range(min(self._num_shards, len(shardable_tensors)))]
        for number, value in enumerate(shardable_tensors):
            shards[number % len(shards)].setdefault(value.checkpoint_key, {})[value.slice_spec] = value.tensor
        return shards


class TrackCkpt(Contender):
    """A `Checkpoint` of the model and the optimizer, or of the dict.

    Args:
        workload: what is saved.
        durable: as the option; what the medium demands.
        num_shards: data files: 1 as TensorFlow makes it, more by a callback; 0 for what the package does by itself.
        frozen: saves by a `frozen_saver`, which has walked the objects before.
        asynchronous: how `begin` copies: ``"copy"`` or ``"overlapped"``.
        prewarmed: whether the memory for the copies is made before the first save.
    """

    def __init__(
        self,
        workload: Workload,
        durable: bool = False,
        num_shards: int = 0,
        frozen: bool = False,
        asynchronous: str = "",
        prewarmed: bool = False,
    ) -> None:
        super().__init__(workload)
        self.syncs_files = durable
        chosen: dict[str, Any] = {"durable": durable}
        if num_shards:
            chosen["experimental_sharding_callback"] = ShardByTaskPolicy() if num_shards == 1 else Deal(num_shards)
        if asynchronous:
            chosen["enable_async"] = True
        if asynchronous == "overlapped":
            chosen["async_copy"] = "overlapped"
        try:
            self._options = tt.CheckpointOptions(**chosen)
        except TypeError as error:
            raise NotAvailableError(f"not available: CheckpointOptions has no such option yet ({error})") from error
        self._prewarmed = prewarmed
        self._frozen = frozen

    def prepare(self) -> None:
        training = self.workload.training
        if training is None:
            self._checkpoint = tt.Checkpoint(tensors=self.workload.plain)
        else:
            self._checkpoint = tt.Checkpoint(model=training.model, optimizer=training.optimizer)
        self._write = tt.frozen_saver(self._checkpoint).save if self._frozen else self._checkpoint.write
        if self._prewarmed:
            prewarm = getattr(self._checkpoint, "prewarm", None)
            if prewarm is None:
                raise NotAvailableError("not available: Checkpoint has no prewarm yet")
            prewarm(self._options)

    def save(self, path: Path) -> None:
        self._write(path / "ckpt", self._options)

    def load(self, path: Path) -> None:
        self._checkpoint.read(path / "ckpt", self._options).assert_consumed()

    def read_one(self, path: Path, name: str) -> float:
        path_in_graph = f"tensors/{name}" if self.workload.training is None else f"model/{name.replace('.', '/')}"
        key = f"{path_in_graph}/.ATTRIBUTES/VARIABLE_VALUE"
        value: Any = tt.load_checkpoint(path / "ckpt").get_tensor(key)
        return float(value.sum())

    def begin(self, path: Path) -> Callable[[], object]:
        self._checkpoint.write(path / "ckpt", self._options)
        return self._checkpoint.sync

    def close(self) -> None:
        self._checkpoint.sync()
