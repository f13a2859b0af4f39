"""Sonnet's metric Mean, in PyTorch: the mean of all tensors that it has seen, element by element.

    python examples/ported/sonnet_mean.py [tests/corpus/v2-sonnet-mean-2shards]

The checkpoint is one of those by which Sonnet makes sure that it goes on reading its own files, mean_2x2 in
https://github.com/google-deepmind/sonnet (Apache-2.0), in two data files. Its sum counts from zero to three, of zero
tensors.
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


class Mean(nn.Module):
    """The mean of all tensors of this shape so far."""

    sum: Tensor
    count: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("sum", torch.zeros(shape))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, value: Tensor) -> Tensor:
        self.sum += value
        self.count += 1
        return self.sum / self.count


def load(path: str | os.PathLike[str]) -> Mean:
    """The metric with the values of a checkpoint."""
    net = Mean(2, 2)
    load_keras(net, path)
    return net


def predict(net: Mean, stored: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    """The mean after each of the stored tensors."""
    going_on = copy.deepcopy(net)
    return {"means": torch.stack([going_on(value) for value in torch.from_numpy(stored["inputs"])])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=CORPUS / "v2-sonnet-mean-2shards")
    stored = np.load(CORPUS / "ported" / "sonnet_mean.npz")
    found = predict(load(parser.parse_args().path), stored)
    for ours, theirs in zip(found["means"].tolist(), stored["means"].tolist(), strict=True):
        print(f"{ours}, where Sonnet has {theirs}")


if __name__ == "__main__":
    main()
