"""Rules for the image models of TensorFlow's slim library, and for modules with torchvision's names.

torchvision has no ResNet v2 and no MobileNet v1; the names for these are in its style, as the tables in
``docs/from-name-based.md`` show them.
"""

from __future__ import annotations

from torch_trackckpt.interop.rules import Rule, RuleSet, Scope
from torch_trackckpt.interop.transforms import CONV_2D, DEPTHWISE_2D, LOGITS_1X1

__all__ = ["INCEPTION_V3", "MOBILENET_V1", "MOBILENET_V2", "RESNET_V1", "RESNET_V2"]


def _norm(name: str) -> tuple[Rule, ...]:
    return (
        Rule("gamma", f"{name}.weight"),
        Rule("beta", f"{name}.bias"),
        Rule("moving_mean", f"{name}.running_mean"),
        Rule("moving_variance", f"{name}.running_var"),
    )


def _normed(weight: Rule, norm: str) -> tuple[Rule, ...]:
    """A convolution without bias, and its batch normalisation."""
    return (weight, *Scope("BatchNorm", "", _norm(norm)).rules)


def _conv(conv: str, norm: str) -> tuple[Rule, ...]:
    return _normed(Rule("weights", f"{conv}.weight", CONV_2D), norm)


def _depthwise(conv: str, norm: str) -> tuple[Rule, ...]:
    return _normed(Rule("depthwise_weights", f"{conv}.weight", DEPTHWISE_2D), norm)


_CONV_WITH_BIAS = (Rule("weights", "weight", CONV_2D), Rule("biases", "bias"))
_LOGITS = (
    Rule("weights", "weight", LOGITS_1X1, has_classes=True),
    Rule("biases", "bias", has_classes=True),
)
_SAME_PADDING = (
    "slim pads convolutions and pools of stride 2 as SAME, which puts the odd row and column at the end; padding=1 has "
    "it at the beginning as well. Pad with F.pad(x, (0, 1, 0, 1)) and padding=0 where the size is even."
)

RESNET_V1 = RuleSet(
    "slim ResNet v1",
    (
        Scope(r"resnet_v1_\d+/conv1", "", _conv("conv1", "bn1")),
        Scope(
            r"resnet_v1_\d+/block(\d+)/unit_(\d+)/bottleneck_v1/conv(\d)", "layer{1}.{2-1}", _conv("conv{3}", "bn{3}")
        ),
        Scope(
            r"resnet_v1_\d+/block(\d+)/unit_(\d+)/bottleneck_v1/shortcut",
            "layer{1}.{2-1}.downsample",
            _conv("0", "1"),
        ),
        Scope(r"resnet_v1_\d+/logits", "fc", _LOGITS),
    ),
    epsilon=1e-5,
    notes=(
        "slim has stride 2 in conv2 of the last unit of blocks 1 to 3, whose shortcut is a 1x1 max-pool of stride 2; "
        "torchvision has it in the first unit of the blocks that follow.",
        "slim's max-pool pads as SAME: with F.pad(x, (0, 1, 0, 1), value=-inf) and padding=0 where the size is even.",
    ),
)
"""For torchvision's ``resnet50``, ``resnet101`` and ``resnet152``."""

_UNIT_V2 = r"resnet_v2_\d+/block(\d+)/unit_(\d+)/bottleneck_v2"

RESNET_V2 = RuleSet(
    "slim ResNet v2",
    (
        Scope(r"resnet_v2_\d+/conv1", "conv1", _CONV_WITH_BIAS),
        Scope(f"{_UNIT_V2}/preact", "layer{1}.{2-1}", _norm("preact")),
        Scope(f"{_UNIT_V2}/conv([12])", "layer{1}.{2-1}", _conv("conv{3}", "bn{3}")),
        Scope(f"{_UNIT_V2}/conv3", "layer{1}.{2-1}.conv3", _CONV_WITH_BIAS),
        Scope(f"{_UNIT_V2}/shortcut", "layer{1}.{2-1}.downsample", _CONV_WITH_BIAS),
        Scope(r"resnet_v2_\d+/postnorm", "", _norm("norm")),
        Scope(r"resnet_v2_\d+/logits", "fc", _LOGITS),
    ),
    epsilon=1e-5,
    notes=(
        "ResNet v2 normalises before it convolves: preact and relu are the input of conv1 and of downsample; conv3 and "
        "downsample are plain convolutions with a bias; norm and relu follow the last block.",
        "slim has stride 2 in conv2 of the last unit of blocks 1 to 3, whose shortcut is a 1x1 max-pool of stride 2.",
        "slim's max-pool pads as SAME: with F.pad(x, (0, 1, 0, 1), value=-inf) and padding=0 where the size is even.",
    ),
)
"""For a module with pre-activation units whose names are in torchvision's style."""


def _branches(blocks: str, branches: dict[str, str]) -> tuple[Scope, ...]:
    """One scope for each convolution of some blocks: slim's name below the block, torchvision's below the block."""
    return tuple(
        Scope(f"InceptionV3/Mixed_({blocks})/Branch_{name}", f"Mixed_{{1}}.{torch_name}", _conv("conv", "bn"))
        for name, torch_name in branches.items()
    )


INCEPTION_V3 = RuleSet(
    "slim Inception v3",
    (
        Scope(r"InceptionV3/Conv2d_(\d[ab]_\dx\d)", "Conv2d_{1}", _conv("conv", "bn")),
        *_branches(
            "5[bcd]",
            {
                "0/Conv2d_0a_1x1": "branch1x1",
                # The second block has other names for the same two.
                "1/Conv2d_0[ab]_1x1": "branch5x5_1",
                "1/(?:Conv2d_0b|Conv_1_0c)_5x5": "branch5x5_2",
                "2/Conv2d_0a_1x1": "branch3x3dbl_1",
                "2/Conv2d_0b_3x3": "branch3x3dbl_2",
                "2/Conv2d_0c_3x3": "branch3x3dbl_3",
                "3/Conv2d_0b_1x1": "branch_pool",
            },
        ),
        *_branches(
            "6a",
            {
                # The two that are called 1x1 have kernels of 3x3.
                "0/Conv2d_1a_1x1": "branch3x3",
                "1/Conv2d_0a_1x1": "branch3x3dbl_1",
                "1/Conv2d_0b_3x3": "branch3x3dbl_2",
                "1/Conv2d_1a_1x1": "branch3x3dbl_3",
            },
        ),
        *_branches(
            "6[bcde]",
            {
                "0/Conv2d_0a_1x1": "branch1x1",
                "1/Conv2d_0a_1x1": "branch7x7_1",
                "1/Conv2d_0b_1x7": "branch7x7_2",
                "1/Conv2d_0c_7x1": "branch7x7_3",
                "2/Conv2d_0a_1x1": "branch7x7dbl_1",
                "2/Conv2d_0b_7x1": "branch7x7dbl_2",
                "2/Conv2d_0c_1x7": "branch7x7dbl_3",
                "2/Conv2d_0d_7x1": "branch7x7dbl_4",
                "2/Conv2d_0e_1x7": "branch7x7dbl_5",
                "3/Conv2d_0b_1x1": "branch_pool",
            },
        ),
        *_branches(
            "7a",
            {
                "0/Conv2d_0a_1x1": "branch3x3_1",
                "0/Conv2d_1a_3x3": "branch3x3_2",
                "1/Conv2d_0a_1x1": "branch7x7x3_1",
                "1/Conv2d_0b_1x7": "branch7x7x3_2",
                "1/Conv2d_0c_7x1": "branch7x7x3_3",
                "1/Conv2d_1a_3x3": "branch7x7x3_4",
            },
        ),
        *_branches(
            "7[bc]",
            {
                "0/Conv2d_0a_1x1": "branch1x1",
                "1/Conv2d_0a_1x1": "branch3x3_1",
                "1/Conv2d_0b_1x3": "branch3x3_2a",
                "1/Conv2d_0[bc]_3x1": "branch3x3_2b",
                "2/Conv2d_0a_1x1": "branch3x3dbl_1",
                "2/Conv2d_0b_3x3": "branch3x3dbl_2",
                "2/Conv2d_0c_1x3": "branch3x3dbl_3a",
                "2/Conv2d_0d_3x1": "branch3x3dbl_3b",
                "3/Conv2d_0b_1x1": "branch_pool",
            },
        ),
        Scope("InceptionV3/AuxLogits/Conv2d_1b_1x1", "AuxLogits.conv0", _conv("conv", "bn")),
        Scope("InceptionV3/AuxLogits/Conv2d_2a_5x5", "AuxLogits.conv1", _conv("conv", "bn")),
        Scope("InceptionV3/AuxLogits/Conv2d_2b_1x1", "AuxLogits.fc", _LOGITS),
        Scope("InceptionV3/Logits/Conv2d_1c_1x1", "fc", _LOGITS),
    ),
    constants=((r".*\.bn\.weight", 1.0),),
    epsilon=1e-3,
    notes=(
        "slim's average pools leave the padding out of the mean: F.avg_pool2d(..., count_include_pad=False) in each "
        "branch_pool, where torchvision counts it.",
    ),
)
"""For torchvision's ``inception_v3(transform_input=False)``."""

MOBILENET_V1 = RuleSet(
    "slim MobileNet v1",
    (
        Scope("MobilenetV1/Conv2d_0", "features.0", _conv("0", "1")),
        Scope(r"MobilenetV1/Conv2d_(\d+)_depthwise", "features.{1}", _depthwise("0", "1")),
        Scope(r"MobilenetV1/Conv2d_(\d+)_pointwise", "features.{1}", _conv("3", "4")),
        Scope("MobilenetV1/Logits/Conv2d_1c_1x1", "classifier", _LOGITS),
    ),
    epsilon=1e-3,
    notes=("Every normalisation is followed by relu6.", _SAME_PADDING),
)
"""For a module whose ``features`` are sequences: convolution, normalisation and relu6 at 0, 1 and 2, and for the
pointwise half of a block at 3, 4 and 5."""

MOBILENET_V2 = RuleSet(
    "slim MobileNet v2",
    (
        Scope("MobilenetV2/Conv", "features.0", _conv("0", "1")),
        Scope("MobilenetV2/expanded_conv/depthwise", "features.1.conv.0", _depthwise("0", "1")),
        Scope("MobilenetV2/expanded_conv/project", "features.1.conv", _conv("1", "2")),
        Scope(r"MobilenetV2/expanded_conv_(\d+)/expand", "features.{1+1}.conv.0", _conv("0", "1")),
        Scope(r"MobilenetV2/expanded_conv_(\d+)/depthwise", "features.{1+1}.conv.1", _depthwise("0", "1")),
        Scope(r"MobilenetV2/expanded_conv_(\d+)/project", "features.{1+1}.conv", _conv("2", "3")),
        Scope("MobilenetV2/Conv_1", "features.18", _conv("0", "1")),
        Scope("MobilenetV2/Logits/Conv2d_1c_1x1", "classifier.1", _LOGITS),
    ),
    epsilon=1e-3,
    notes=(_SAME_PADDING,),
)
"""For torchvision's ``mobilenet_v2``."""
