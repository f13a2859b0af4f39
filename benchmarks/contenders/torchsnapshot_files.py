"""torchsnapshot, which takes the model and the optimizer themselves and restores them in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contenders.base import Contender


class TorchSnapshot(Contender):
    """`Snapshot.take` and `restore`."""

    install = "torchsnapshot"

    def prepare(self) -> None:
        self._library = self.library("torchsnapshot")

    def _app_state(self) -> dict[str, Any]:
        training = self.workload.training
        if training is not None:
            return {"model": training.model, "optimizer": training.optimizer}
        return {"tensors": self._library.StateDict(**self.workload.plain)}

    def save(self, path: Path) -> None:
        self._library.Snapshot.take(str(path / "state"), self._app_state())

    def load(self, path: Path) -> None:
        self._library.Snapshot(str(path / "state")).restore(self._app_state())

    def read_one(self, path: Path, name: str) -> float:
        part = "tensors" if self.workload.training is None else "model"
        return float(self._library.Snapshot(str(path / "state")).read_object(f"0/{part}/{name}").sum())

    def begin(self, path: Path) -> Callable[[], object]:
        pending = self._library.Snapshot.async_take(str(path / "state"), self._app_state())
        wait: Callable[[], object] = pending.wait
        return wait
