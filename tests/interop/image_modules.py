"""Modules with the names and shapes of torchvision's, and small ones for the models that torchvision does not have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from .slim_names import scaled

_LISTS = Path(__file__).with_name("torchvision_state_dicts.txt")
"""Names and shapes of the models of torchvision 0.29, without ``num_batches_tracked``."""


def torchvision_shapes(model: str, classes: int) -> dict[str, tuple[int, ...]]:
    """A model's ``state_dict`` with channels as in `slim_names`."""
    _, _, text = _LISTS.read_text().partition(f"# {model}\n")
    shapes = {}
    for line in text.partition("#")[0].splitlines():
        name, _, sizes = line.partition(" ")
        shapes[name] = tuple(classes if size == "1000" else scaled(int(size)) for size in sizes.split(","))
    return shapes


def torchvision_like(model: str, classes: int) -> nn.Module:
    """A module of these names and shapes."""
    root = nn.Module()
    for name, shape in torchvision_shapes(model, classes).items():
        path, _, last = name.rpartition(".")
        part = root
        for step in path.split("."):
            if step not in part._modules:
                part.add_module(step, nn.Module())
            part = part.get_submodule(step)
        if last.startswith("running_"):
            part.register_buffer(last, torch.zeros(shape))
        else:
            part.register_parameter(last, nn.Parameter(torch.zeros(shape)))
    return root


class PreActivation(nn.Module):
    """A unit of a ResNet v2."""

    def __init__(self, channels: int, width: int, *, is_first: bool) -> None:
        super().__init__()
        self.preact = nn.BatchNorm2d(channels)
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1)
        self.downsample = nn.Conv2d(channels, 4 * width, 1) if is_first else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.preact(x).relu()
        shortcut = x if self.downsample is None else self.downsample(before)
        y = self.bn1(self.conv1(before)).relu()
        y = self.bn2(self.conv2(y)).relu()
        return shortcut + self.conv3(y)


class ResNetV2(nn.Module):
    """The names that the rules for ResNet v2 mean."""

    def __init__(self, units: Sequence[int], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, scaled(64), 7, 2, 3)
        channels = scaled(64)
        for block, count in enumerate(units, 1):
            width, layer = scaled(64) << (block - 1), nn.Sequential()
            for unit in range(count):
                layer.append(PreActivation(channels, width, is_first=unit == 0))
                channels = 4 * width
            self.add_module(f"layer{block}", layer)
        self.norm = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)


class MobileNetV1(nn.Module):
    """The names that the rules for MobileNet v1 mean; with fewer blocks, a small one of the same kind."""

    def __init__(self, outs: Sequence[int], classes: int, first: int = 32, eps: float = 1e-3) -> None:
        super().__init__()

        def norm(size: int) -> list[nn.Module]:
            return [nn.BatchNorm2d(size, eps=eps), nn.ReLU6()]

        channels = scaled(first)
        self.features = nn.Sequential(nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), *norm(channels)))
        for out in map(scaled, outs):
            depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
            pointwise = nn.Conv2d(channels, out, 1, bias=False)
            self.features.append(nn.Sequential(depthwise, *norm(channels), pointwise, *norm(out)))
            channels = out
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits
