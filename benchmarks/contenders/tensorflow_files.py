"""`tf.train.Checkpoint` over tf.Variables of the workload's shapes and values, which are its live tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.contenders.base import Contender


class TensorFlow(Contender):
    """A list of variables. Its step multiplies each by a number, in place."""

    install = "tensorflow-cpu"
    copies_live = True

    def prepare(self) -> None:
        self._tf = self.library("tensorflow")
        self._names = list(self.workload.tensors())
        self._variables = [self._tf.Variable(tensor.detach().numpy()) for tensor in self.workload.tensors().values()]
        self._checkpoint = self._tf.train.Checkpoint(variables=self._variables)

    def save(self, path: Path) -> None:
        self._checkpoint.write(str(path / "ckpt"))

    def load(self, path: Path) -> None:
        self._checkpoint.read(str(path / "ckpt")).assert_consumed()

    def read_one(self, path: Path, name: str) -> float:
        number = self._names.index(name)
        reader = self._tf.train.load_checkpoint(str(path / "ckpt"))
        return float(reader.get_tensor(f"variables/{number}/.ATTRIBUTES/VARIABLE_VALUE").sum())

    def begin(self, path: Path) -> Callable[[], object]:
        options = self._tf.train.CheckpointOptions(experimental_enable_async_checkpoint=True)
        self._checkpoint.write(str(path / "ckpt"), options=options)
        wait: Callable[[], object] = self._checkpoint.sync
        return wait

    def step(self) -> None:
        for variable in self._variables:
            variable.assign(variable * 0.999)

    def live(self) -> dict[str, torch.Tensor]:
        values = zip(self._names, self._variables, strict=True)
        return {name: torch.tensor(variable.numpy()) for name, variable in values}
