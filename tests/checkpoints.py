"""Small objects to save, and looks at what was saved of them."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
import witness

from torch_trackckpt import (
    AutoTrackable,
)
from torch_trackckpt.graph.walk import Snapshot, capture, collect
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY

X = "x/.ATTRIBUTES/VARIABLE_VALUE"


def paths(prefix: str) -> list[str]:
    """The object paths of all values in a file, in the order of their keys."""
    return [key.split("/.ATTRIBUTES")[0] for key in witness.read_bundle(prefix) if key != OBJECT_GRAPH_KEY]


def walk(root: object, attached: Mapping[str, object] | None = None) -> Snapshot:
    """What would be saved of a root: its object graph, and every value in it."""
    return collect(capture(root, attached))


def thing(**children: object) -> AutoTrackable:
    made = AutoTrackable()
    for name, child in children.items():
        setattr(made, name, child)
    return made


class Text:
    """An object that encodes itself."""

    def __init__(self, text: str = "") -> None:
        self.text = text

    def serialize(self) -> str:
        return self.text

    def deserialize(self, string_value: bytes) -> None:
        self.text = string_value.decode()


def names_in(directory: Path | str) -> list[str]:
    return sorted(os.listdir(directory))


def zero() -> torch.Tensor:
    return torch.tensor(0)
