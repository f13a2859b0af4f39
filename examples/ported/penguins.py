"""A small network of TensorFlow Extended that tells three species of penguins apart, in PyTorch.

    python examples/ported/penguins.py [tests/corpus/sm2-keras-iris]

The SavedModel is a test file of the package tfx 1.21.0 (Apache-2.0), `tfx/components/testdata/trainer/keras`, written
by Keras of TensorFlow 2.3. Its signature parses records and lets a transform layer pass them on as they are; the module
takes the four measurements that come out. Keras puts them together in the order of `FEATURES`.
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from torch_trackckpt.interop import load_keras

CORPUS = Path(__file__).parents[2] / "tests" / "corpus"

FEATURES = ("culmen_length_mm", "culmen_depth_mm", "flipper_length_mm", "body_mass_g")


class PenguinClassifier(nn.Module):
    """Probabilities of three species, of shape [batch, 3], for features of shape [batch, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(len(FEATURES), 8), nn.Linear(8, 8)])
        self.species = nn.Linear(8, 3)

    def forward(self, features: Tensor) -> Tensor:
        for layer in self.hidden:
            features = layer(features).relu()
        return self.species(features).softmax(-1)


def load(path: str | os.PathLike[str]) -> PenguinClassifier:
    """The model with the values of a SavedModel or a checkpoint."""
    net = PenguinClassifier()
    load_keras(net, path)
    return net.eval()


def predict(net: PenguinClassifier, stored: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    """What the model says of the stored penguins."""
    with torch.no_grad():
        return {"output_0": net(torch.from_numpy(stored["features"]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=CORPUS / "sm2-keras-iris")
    stored = np.load(CORPUS / "ported" / "penguins.npz")
    found = predict(load(parser.parse_args().path), stored)
    for ours, theirs in zip(found["output_0"].tolist(), stored["output_0"].tolist(), strict=True):
        print(" ".join(f"{p:.6f}" for p in ours), " TensorFlow:", " ".join(f"{p:.6f}" for p in theirs))


if __name__ == "__main__":
    main()
