"""What a way of saving and restoring does, in the same steps for all of them.

Fairness: each begins from live tensors and ends with the values inside the live model, optimizer or tensors; what it
takes to get from these to what a library wants, such as a call of `state_dict`, is part of `save` and `load`.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.workloads import Workload


class NotAvailableError(Exception):
    """The contender cannot take part; the text says why, or what to install."""


class Contender:
    """One way, over one workload. A subclass overrides what it can do; `entries` says which of it is measured."""

    install = ""
    """What pip installs, for the message where it is absent."""

    syncs_files = False
    """Whether `save` comes back only when the disk has everything. The harness does it for the others."""

    copies_live = False
    """Whether its live tensors are not the workload's own, but as much memory beside them."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    def library(self, name: str) -> Any:
        """An imported module, typed as Any because few of them have types."""
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise NotAvailableError(f"pip install {self.install} ({error})") from error

    def prepare(self) -> None:
        """Imports and makes what a program has before its first save. Not timed."""

    def save(self, path: Path) -> None:
        """Saves into the directory, which is empty."""
        raise NotImplementedError

    def load(self, path: Path) -> None:
        """Restores into the live tensors."""
        raise NotImplementedError

    def read_one(self, path: Path, name: str) -> float:
        """The sum of one tensor, read without the others."""
        raise NotImplementedError

    def begin(self, path: Path) -> Callable[[], object]:
        """Begins an asynchronous save; what it returns waits until that is complete."""
        raise NotImplementedError

    def step_guard(self) -> contextlib.AbstractContextManager[Any]:
        """What the program has to hold while it changes values in place."""
        return contextlib.nullcontext()

    def step(self) -> None:
        """The in-place update of a training step."""
        if self.workload.training is None:
            with torch.no_grad():
                for tensor in self.workload.plain.values():
                    tensor.mul_(0.999)
        else:
            self.workload.training.optimizer.step()

    def live(self) -> dict[str, torch.Tensor]:
        """The live values, by the workload's names, to check them."""
        return self.workload.tensors()

    def close(self) -> None:
        """Ends what `prepare` began."""


def copy_into(live: dict[str, torch.Tensor], stored: Callable[[str], torch.Tensor]) -> None:
    """Copies a stored tensor into each live one, as a user of a library of plain tensors does."""
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(stored(name))
