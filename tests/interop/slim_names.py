"""The variables of slim's image models, name and shape, in the order of torchvision's ``state_dict``.

Written down from the structure of the models and not from the rules, so that it can tell whether these are right.
Channels are an eighth of what they are, rounded where they have to be; kernels are as large as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

Shape = tuple[int, ...]
Variables = Iterator[tuple[str, Shape]]

NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def scaled(size: int) -> int:
    """How many channels there are here."""
    return size // 8 if size > 7 and size % 8 == 0 else size


def conv(scope: str, height: int, width: int, channels: int, out: int, norm: tuple[str, ...] = NORM) -> Variables:
    """A convolution without bias, and its normalisation."""
    yield f"{scope}/weights", (height, width, scaled(channels), scaled(out))
    yield from ((f"{scope}/BatchNorm/{name}", (scaled(out),)) for name in norm)


def depthwise(scope: str, channels: int) -> Variables:
    yield f"{scope}/depthwise_weights", (3, 3, scaled(channels), 1)
    yield from ((f"{scope}/BatchNorm/{name}", (scaled(channels),)) for name in NORM)


def with_bias(scope: str, height: int, channels: int, out: int) -> Variables:
    yield f"{scope}/weights", (height, height, scaled(channels), scaled(out))
    yield f"{scope}/biases", (scaled(out),)


def logits(scope: str, channels: int, classes: int) -> Variables:
    yield f"{scope}/weights", (1, 1, scaled(channels), classes)
    yield f"{scope}/biases", (classes,)


def resnet_v1(depth: int, classes: int) -> Variables:
    units = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth]
    yield from conv(f"resnet_v1_{depth}/conv1", 7, 7, 3, 64)
    channels = 64
    for block, (count, width) in enumerate(zip(units, (64, 128, 256, 512), strict=True), 1):
        for unit in range(1, count + 1):
            scope = f"resnet_v1_{depth}/block{block}/unit_{unit}/bottleneck_v1"
            yield from conv(f"{scope}/conv1", 1, 1, channels, width)
            yield from conv(f"{scope}/conv2", 3, 3, width, width)
            yield from conv(f"{scope}/conv3", 1, 1, width, 4 * width)
            if unit == 1:
                yield from conv(f"{scope}/shortcut", 1, 1, channels, 4 * width)
            channels = 4 * width
    yield from logits(f"resnet_v1_{depth}/logits", channels, classes)


def resnet_v2(depth: int, classes: int) -> Variables:
    units = {50: (3, 4, 6, 3)}[depth]
    yield from with_bias(f"resnet_v2_{depth}/conv1", 7, 3, 64)
    channels = 64
    for block, (count, width) in enumerate(zip(units, (64, 128, 256, 512), strict=True), 1):
        for unit in range(1, count + 1):
            scope = f"resnet_v2_{depth}/block{block}/unit_{unit}/bottleneck_v2"
            yield from ((f"{scope}/preact/{name}", (scaled(channels),)) for name in NORM)
            yield from conv(f"{scope}/conv1", 1, 1, channels, width)
            yield from conv(f"{scope}/conv2", 3, 3, width, width)
            yield from with_bias(f"{scope}/conv3", 1, width, 4 * width)
            if unit == 1:
                yield from with_bias(f"{scope}/shortcut", 1, channels, 4 * width)
            channels = 4 * width
    yield from ((f"resnet_v2_{depth}/postnorm/{name}", (scaled(channels),)) for name in NORM)
    yield from logits(f"resnet_v2_{depth}/logits", channels, classes)


def _inception_block(name: str, channels: int, branches: str, norm: tuple[str, ...]) -> Variables:
    """A block, whose convolutions are written as ``branch/name:out``; the last part of a name is the kernel. A branch
    begins with the block's channels; ``+`` takes what the one before took."""
    branch, at, before = "", channels, channels
    for text in branches.split():
        where, out = text.removeprefix("+").split(":")
        if where[0] != branch:
            branch, at = where[0], channels
        elif text.startswith("+"):
            at = before
        kernel = where.rpartition("_")[2]
        # Two convolutions of one block are called 1x1, and are not.
        size = "3x3" if "1a_1x1" in where else kernel
        height, width = map(int, size.split("x"))
        yield from conv(f"InceptionV3/{name}/Branch_{where}", height, width, at, int(out), norm)
        before, at = at, int(out)


def inception_v3(classes: int) -> Variables:
    """In torchvision, the second classifier stands before the last blocks."""
    norm = NORM[1:]

    def stem(name: str, kernel: int, channels: int, out: int) -> Variables:
        return conv(f"InceptionV3/Conv2d_{name}", kernel, kernel, channels, out, norm)

    yield from stem("1a_3x3", 3, 3, 32)
    yield from stem("2a_3x3", 3, 32, 32)
    yield from stem("2b_3x3", 3, 32, 64)
    yield from stem("3b_1x1", 1, 64, 80)
    yield from stem("4a_3x3", 3, 80, 192)
    for name, channels, pool in (("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)):
        first, second = ("0b_1x1", "Conv_1_0c_5x5") if name == "Mixed_5c" else ("0a_1x1", "Conv2d_0b_5x5")
        yield from _inception_block(
            name,
            channels,
            f"0/Conv2d_0a_1x1:64 1/Conv2d_{first}:48 1/{second}:64 "
            f"2/Conv2d_0a_1x1:64 2/Conv2d_0b_3x3:96 2/Conv2d_0c_3x3:96 3/Conv2d_0b_1x1:{pool}",
            norm,
        )
    yield from _inception_block(
        "Mixed_6a",
        288,
        "0/Conv2d_1a_1x1:384 1/Conv2d_0a_1x1:64 1/Conv2d_0b_3x3:96 1/Conv2d_1a_1x1:96",
        norm,
    )
    for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        yield from _inception_block(
            name,
            768,
            f"0/Conv2d_0a_1x1:192 1/Conv2d_0a_1x1:{width} 1/Conv2d_0b_1x7:{width} 1/Conv2d_0c_7x1:192 "
            f"2/Conv2d_0a_1x1:{width} 2/Conv2d_0b_7x1:{width} 2/Conv2d_0c_1x7:{width} 2/Conv2d_0d_7x1:{width} "
            "2/Conv2d_0e_1x7:192 3/Conv2d_0b_1x1:192",
            norm,
        )
    yield from conv("InceptionV3/AuxLogits/Conv2d_1b_1x1", 1, 1, 768, 128, norm)
    yield from conv("InceptionV3/AuxLogits/Conv2d_2a_5x5", 5, 5, 128, 768, norm)
    yield from logits("InceptionV3/AuxLogits/Conv2d_2b_1x1", 768, classes)
    yield from _inception_block(
        "Mixed_7a",
        768,
        "0/Conv2d_0a_1x1:192 0/Conv2d_1a_3x3:320 1/Conv2d_0a_1x1:192 1/Conv2d_0b_1x7:192 1/Conv2d_0c_7x1:192 "
        "1/Conv2d_1a_3x3:192",
        norm,
    )
    for name, channels, third in (("Mixed_7b", 1280, "0b_3x1"), ("Mixed_7c", 2048, "0c_3x1")):
        yield from _inception_block(
            name,
            channels,
            f"0/Conv2d_0a_1x1:320 1/Conv2d_0a_1x1:384 1/Conv2d_0b_1x3:384 +1/Conv2d_{third}:384 "
            "2/Conv2d_0a_1x1:448 2/Conv2d_0b_3x3:384 2/Conv2d_0c_1x3:384 +2/Conv2d_0d_3x1:384 3/Conv2d_0b_1x1:192",
            norm,
        )
    yield from logits("InceptionV3/Logits/Conv2d_1c_1x1", 2048, classes)


def mobilenet_v1(classes: int) -> Variables:
    yield from conv("MobilenetV1/Conv2d_0", 3, 3, 3, 32)
    channels = 32
    for number, out in enumerate((64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024), 1):
        yield from depthwise(f"MobilenetV1/Conv2d_{number}_depthwise", channels)
        yield from conv(f"MobilenetV1/Conv2d_{number}_pointwise", 1, 1, channels, out)
        channels = out
    yield from logits("MobilenetV1/Logits/Conv2d_1c_1x1", channels, classes)


def mobilenet_v2(classes: int) -> Variables:
    yield from conv("MobilenetV2/Conv", 3, 3, 3, 32)
    yield from depthwise("MobilenetV2/expanded_conv/depthwise", 32)
    yield from conv("MobilenetV2/expanded_conv/project", 1, 1, 32, 16)
    widths = [24] * 2 + [32] * 3 + [64] * 4 + [96] * 3 + [160] * 3 + [320]
    channels = 16
    for number, out in enumerate(widths, 1):
        scope = f"MobilenetV2/expanded_conv_{number}"
        yield from conv(f"{scope}/expand", 1, 1, channels, 6 * channels)
        yield from depthwise(f"{scope}/depthwise", 6 * channels)
        yield from conv(f"{scope}/project", 1, 1, 6 * channels, out)
        channels = out
    yield from conv("MobilenetV2/Conv_1", 1, 1, channels, 1280)
    yield from logits("MobilenetV2/Logits/Conv2d_1c_1x1", 1280, classes)


def values_of(variables: Variables, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random values of the shapes, with what optimizers of the time have left beside them."""
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(shape, generator=generator) for name, shape in variables}
    first = next(iter(values))
    return values | {f"{first}/RMSProp": torch.zeros(values[first].shape), "global_step": torch.tensor(7)}
