"""An LSTM of Keras 2.12 that judges sequences of five steps with three features each, in PyTorch.

    python examples/ported/lstm_from_sequential.py [tests/corpus/sm2-lstm-keras-2.12]

The model is a test file of TensorFlow.NET, `test/TensorFlowNET.Keras.UnitTest/Assets/lstm_from_sequential` of
https://github.com/SciSharp/TensorFlow.NET (Apache-2.0): Sequential([Input((5, 3)), LSTM(32), Dense(1, "sigmoid")]),
trained with the newer Adam, whose state the file has as well.
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


class SequenceClassifier(nn.Module):
    """A probability for each sequence of shape [batch, steps, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 32, batch_first=True)
        self.dense = nn.Linear(32, 1)

    def forward(self, sequences: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(sequences)
        return self.dense(hidden[-1]).sigmoid()


def load(path: str | os.PathLike[str]) -> SequenceClassifier:
    """The model with the values of a SavedModel or a checkpoint."""
    net = SequenceClassifier()
    load_keras(net, path)
    return net.eval()


def predict(net: SequenceClassifier, stored: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    """What the model says of the stored sequences."""
    with torch.no_grad():
        return {"dense": net(torch.from_numpy(stored["sequences"]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=CORPUS / "sm2-lstm-keras-2.12")
    stored = np.load(CORPUS / "ported" / "lstm_from_sequential.npz")
    found = predict(load(parser.parse_args().path), stored)
    for ours, theirs in zip(found["dense"].flatten(), stored["dense"].flatten(), strict=True):
        print(f"{ours:.7f}, where TensorFlow has {theirs:.7f}")


if __name__ == "__main__":
    main()
