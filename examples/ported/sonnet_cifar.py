"""A small sibling of Sonnet's Cifar10ConvNet, in PyTorch: two convolutions with batch norm, and ten classes.

    python examples/ported/sonnet_cifar.py [tests/corpus/v2-sonnet-cifar]

The checkpoint is one of those by which Sonnet makes sure that it goes on reading its own files,
cifar10_convnet_2x3_2x2_1x3x3x2 in https://github.com/google-deepmind/sonnet (Apache-2.0). Nobody trained it: each
variable counts from zero.
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
from torch.nn import functional

from torch_trackckpt.interop import load_keras

CORPUS = Path(__file__).parents[2] / "tests" / "corpus"


class Cifar10ConvNet(nn.Module):
    """Logits of shape [batch, 10] for images of shape [batch, channels, height, width].

    Args:
        in_channels: of an image.
        out_channels: of each convolution in turn.
        strides: of each convolution in turn.
    """

    def __init__(
        self, in_channels: int = 2, out_channels: tuple[int, ...] = (2, 3), strides: tuple[int, ...] = (2, 2)
    ) -> None:
        super().__init__()
        ins = (in_channels, *out_channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride)
            for before, after, stride in zip(ins, out_channels, strides, strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels, eps=1e-5, momentum=0.001) for channels in out_channels)
        self.logits = nn.Linear(ins[-1], 10)

    def forward(self, images: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            images = norm(conv(pad_to_same(images, 3, conv.stride[0]))).relu()
        return self.logits(images.mean((2, 3)))


def pad_to_same(images: Tensor, width: int, stride: int) -> Tensor:
    """TensorFlow's "SAME": as much as is needed, an odd pixel at the end. Torch has no such thing beside a stride."""
    padding: list[int] = []
    for size in reversed(images.shape[2:]):
        missing = max((-(-size // stride) - 1) * stride + width - size, 0)
        padding += [missing // 2, missing - missing // 2]
    return functional.pad(images, padding)


def load(path: str | os.PathLike[str]) -> Cifar10ConvNet:
    """The model with the values of a checkpoint."""
    net = Cifar10ConvNet()
    load_keras(net, path)
    return net.eval()


def predict(net: Cifar10ConvNet, stored: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    """What the model says of the stored images, which have their channels last, as Sonnet wants them."""
    with torch.no_grad():
        return {"logits": net(torch.from_numpy(stored["images"]).permute(0, 3, 1, 2))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=CORPUS / "v2-sonnet-cifar")
    stored = np.load(CORPUS / "ported" / "sonnet_cifar.npz")
    found = predict(load(parser.parse_args().path), stored)
    for ours, theirs in zip(found["logits"].tolist(), stored["logits"].tolist(), strict=True):
        print("PyTorch", " ".join(f"{value:9.3f}" for value in ours))
        print("Sonnet ", " ".join(f"{value:9.3f}" for value in theirs))


if __name__ == "__main__":
    main()
