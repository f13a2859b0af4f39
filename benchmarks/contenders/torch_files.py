"""`torch.save` and `torch.load`; with `mmap=True`; and, asynchronous, a copy of everything and a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders.base import Contender
from benchmarks.workloads import Workload


class TorchFile(Contender):
    """Whole nested dicts in one file."""

    def __init__(self, workload: Workload, mmap: bool = False) -> None:
        super().__init__(workload)
        self._mmap = mmap

    def save(self, path: Path) -> None:
        torch.save(self.workload.state(), path / "state.pt")

    def load(self, path: Path) -> None:
        state = torch.load(path / "state.pt", weights_only=True, mmap=self._mmap)
        if self._mmap and self.workload.training is not None:
            self._copy_mapped(state)
        else:
            self.workload.load_state(state)

    def _copy_mapped(self, state: dict[str, Any]) -> None:
        """`Optimizer.load_state_dict` would keep the map, and leave the reading to the next step."""
        training = self.workload.training
        assert training is not None
        training.model.load_state_dict(state["model"])
        with torch.no_grad():
            for number, parameter in enumerate(training.model.parameters()):
                for slot, value in training.optimizer.state[parameter].items():
                    value.copy_(state["optimizer"]["state"][number][slot])

    def read_one(self, path: Path, name: str) -> float:
        state = torch.load(path / "state.pt", weights_only=True, mmap=self._mmap)
        return float(state["model" if "model" in state else "tensors"][name].sum())

    def begin(self, path: Path) -> Callable[[], object]:
        copied = _clone(self.workload.state())
        errors: list[BaseException] = []

        def write() -> None:
            try:
                torch.save(copied, path / "state.pt")
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=write)
        thread.start()

        def wait() -> None:
            thread.join()
            if errors:
                raise errors[0]

        return wait


def _clone(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _clone(item) for key, item in value.items()}
    return value
