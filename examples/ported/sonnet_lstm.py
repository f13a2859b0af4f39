"""An LSTM of Sonnet with a projection of its output, in PyTorch, where it is one layer: `LSTM(128, 8, proj_size=1)`.

    python examples/ported/sonnet_lstm.py [tests/corpus/v2-sonnet-lstm]

The checkpoint is one of those by which Sonnet makes sure that it goes on reading its own files, lstm_8_projected_1 in
https://github.com/google-deepmind/sonnet (Apache-2.0). Nobody trained it: each variable counts from zero.
"""

import argparse
import copy
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


def make() -> nn.LSTM:
    """Sonnet's core takes one step at a time, this layer a sequence of shape [steps, batch, 128]."""
    return nn.LSTM(128, 8, proj_size=1)


def load(path: str | os.PathLike[str]) -> nn.LSTM:
    """The layer with the values of a checkpoint."""
    net = make()
    load_keras(net, path)
    return net.eval()


def predict(net: nn.LSTM, stored: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    """What the layer makes of the stored sequences, and the state in which they leave it.

    In double precision, since with such weights each step makes rounding errors a hundred times larger.
    """
    with torch.no_grad():
        outputs, (_, cell) = copy.deepcopy(net).double()(torch.from_numpy(stored["sequences"]))
    return {"outputs": outputs, "cell": cell[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=CORPUS / "v2-sonnet-lstm")
    stored = np.load(CORPUS / "ported" / "sonnet_lstm.npz")
    found = predict(load(parser.parse_args().path), stored)
    for ours, theirs in zip(found["outputs"].flatten(1).tolist(), stored["outputs"][..., 0].tolist(), strict=True):
        print(" ".join(f"{value:10.6f}" for value in ours), " Sonnet:", " ".join(f"{value:10.6f}" for value in theirs))


if __name__ == "__main__":
    main()
