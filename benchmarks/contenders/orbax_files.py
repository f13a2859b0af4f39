"""Orbax, for JAX. It takes NumPy arrays as well: views of the live tensors, so that no conversion is counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders.base import Contender, copy_into


class Orbax(Contender):
    """`PyTreeCheckpointer` with its default format, and its asynchronous form."""

    install = "orbax-checkpoint"

    def prepare(self) -> None:
        self._library = self.library("orbax.checkpoint")
        self._sync = self._library.PyTreeCheckpointer()
        self._async = self._library.AsyncCheckpointer(self._library.PyTreeCheckpointHandler())

    def _arrays(self) -> dict[str, Any]:
        return {name: tensor.detach().numpy() for name, tensor in self.workload.tensors().items()}

    def save(self, path: Path) -> None:
        self._sync.save(path / "state", self._arrays())

    def load(self, path: Path) -> None:
        stored = self._sync.restore(path / "state")
        copy_into(self.workload.tensors(), lambda name: torch.from_numpy(stored[name]))

    def begin(self, path: Path) -> Callable[[], object]:
        self._async.save(path / "state", self._arrays())
        wait: Callable[[], object] = self._async.wait_until_finished
        return wait

    def close(self) -> None:
        self._sync.close()
        self._async.close()
