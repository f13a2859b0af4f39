"""Sonnet's vector quantizer, whose codes are moving averages of what was quantized to them, in PyTorch.

    python examples/ported/sonnet_vqvae.py [tests/corpus/v2-sonnet-vqvae-ema]

The checkpoint is one of those by which Sonnet makes sure that it goes on reading its own files, vqvae_ema_train in
https://github.com/google-deepmind/sonnet (Apache-2.0). Nobody trained it: each variable counts from zero. It has no
layer that torch.nn has, so that buffers are called as the file calls them, but for a `_` in front.
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
from torch.nn import functional

from torch_trackckpt.interop import load_keras

CORPUS = Path(__file__).parents[2] / "tests" / "corpus"


class MovingAverage(nn.Module):
    """An exponential moving average that is not drawn to zero, where it starts."""

    counter: Tensor
    hidden: Tensor
    average: Tensor

    def __init__(self, *shape: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("counter", torch.tensor(0))
        self.register_buffer("hidden", torch.zeros(shape))
        self.register_buffer("average", torch.zeros(shape))

    def forward(self, value: Tensor) -> Tensor:
        self.counter += 1
        self.hidden -= (self.hidden - value) * (1 - self.decay)
        self.average.copy_(self.hidden / (1 - self.decay**self.counter))
        return self.average


class VectorQuantizer(nn.Module):
    """The nearest code of each vector in inputs of shape [..., size]; in training, codes move towards the inputs.

    Args:
        size: of a code.
        num_codes: how many there are.
        commitment_cost: the weight of the loss.
        decay: of the moving averages.
    """

    embeddings: Tensor

    def __init__(self, size: int = 5, num_codes: int = 7, commitment_cost: float = 0.5, decay: float = 0.9) -> None:
        super().__init__()
        self.commitment_cost = commitment_cost
        self.register_buffer("embeddings", torch.randn(size, num_codes))
        self.ema_cluster_size = MovingAverage(num_codes, decay=decay)
        self.ema_dw = MovingAverage(size, num_codes, decay=decay)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        vectors = inputs.flatten(0, -2)
        distances = (
            vectors.square().sum(1, keepdim=True) - 2 * vectors @ self.embeddings + self.embeddings.square().sum(0)
        )
        indices = distances.argmin(1)
        quantized = self.embeddings.T[indices].view_as(inputs)
        loss = self.commitment_cost * functional.mse_loss(inputs, quantized.detach())
        encodings = functional.one_hot(indices, self.embeddings.shape[1]).to(inputs.dtype)
        if self.training:
            self.move_codes(vectors.detach(), encodings)
        used = encodings.mean(0)
        return {
            "quantize": inputs + (quantized - inputs).detach(),
            "loss": loss,
            "perplexity": torch.exp(-(used * torch.log(used + 1e-10)).sum()),
            "encoding_indices": indices.view(inputs.shape[:-1]),
        }

    def move_codes(self, vectors: Tensor, encodings: Tensor, epsilon: float = 1e-5) -> None:
        sizes = self.ema_cluster_size(encodings.sum(0))
        total = sizes.sum()
        sizes = (sizes + epsilon) / (total + len(sizes) * epsilon) * total
        self.embeddings.copy_(self.ema_dw(vectors.T @ encodings) / sizes)


def load(path: str | os.PathLike[str]) -> VectorQuantizer:
    """The model with the values of a checkpoint."""
    net = VectorQuantizer()
    load_keras(net, path)
    return net.eval()


def predict(net: VectorQuantizer, stored: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    """What the model makes of the stored inputs, and its codes after a step of training with them."""
    inputs = torch.from_numpy(stored["inputs"])
    trained = copy.deepcopy(net).train()
    trained(inputs)
    return {**net(inputs), "embeddings_after_step": trained.embeddings}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=CORPUS / "v2-sonnet-vqvae-ema")
    stored = np.load(CORPUS / "ported" / "sonnet_vqvae.npz")
    for name, values in predict(load(parser.parse_args().path), stored).items():
        print(f"{name}:\n{values.numpy()}\nwithin {np.abs(values.numpy() - stored[name]).max():.1e} of Sonnet\n")


if __name__ == "__main__":
    main()
