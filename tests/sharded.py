"""Checkpoints in several data files, as tests look at them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from torch_trackckpt import Trackable


def files(name: str, count: int) -> list[str]:
    """The files of a checkpoint of so many shards."""
    return [f"{name}.data-{number:05d}-of-{count:05d}" for number in range(count)] + [f"{name}.index"]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


class Words(Trackable):
    """A trackable whose value is an array of strings."""

    def __init__(self, *words: bytes) -> None:
        self.words = np.array(words, dtype=object)

    def _serialize_to_tensors(self) -> Mapping[str, np.ndarray[Any, np.dtype[np.object_]]]:
        return {"VARIABLE_VALUE": self.words}

    def _restore_from_tensors(self, values: Mapping[str, Any]) -> None:
        self.words = values["VARIABLE_VALUE"]
