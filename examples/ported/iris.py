"""A small network that a tuner of TensorFlow Extended found for Fisher's irises, in PyTorch.

    python examples/ported/iris.py [tests/corpus/v2-prefix-named-checkpoint]

The checkpoint is a left-over in https://github.com/tensorflow/tfx (Apache-2.0), below
`tfx/examples/iris/iris_native_keras_custom_splits`: what `Model.save_weights` of a Keras of TensorFlow 2.3 wrote, the
state of Adam included. A checkpoint says nothing of activations: they are those of the example's source, as is the
order of the four features, sepal length and width, petal length and width.
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


class IrisClassifier(nn.Module):
    """Probabilities of three species, of shape [batch, 3], for measurements of shape [batch, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8)])
        self.species = nn.Linear(8, 3)

    def forward(self, features: Tensor) -> Tensor:
        for layer in self.hidden:
            features = layer(features).relu()
        return self.species(features).softmax(-1)


def load(path: str | os.PathLike[str]) -> IrisClassifier:
    """The model with the values of a checkpoint."""
    net = IrisClassifier()
    load_keras(net, path)
    return net.eval()


def predict(net: IrisClassifier, stored: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    """What the model says of the stored flowers."""
    with torch.no_grad():
        return {"probabilities": net(torch.from_numpy(stored["features"]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=CORPUS / "v2-prefix-named-checkpoint")
    stored = np.load(CORPUS / "ported" / "iris.npz")
    found = predict(load(parser.parse_args().path), stored)
    for ours, theirs in zip(found["probabilities"].tolist(), stored["probabilities"].tolist(), strict=True):
        print(" ".join(f"{p:.6f}" for p in ours), " TensorFlow:", " ".join(f"{p:.6f}" for p in theirs))


if __name__ == "__main__":
    main()
