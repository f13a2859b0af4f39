"""Every variable of slim's image models finds the tensor of the module with torchvision's names, and no other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.errors import MismatchError
from torch_trackckpt.interop import (
    INCEPTION_V3,
    MOBILENET_V1,
    MOBILENET_V2,
    RESNET_V1,
    RESNET_V2,
    RuleSet,
    RulesLoadStatus,
    load_name_based,
)

from . import slim_names
from .image_modules import MobileNetV1, ResNetV2, torchvision_like

MOBILENET_V1_OUTS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model on both sides."""

    module: nn.Module
    variables: dict[str, torch.Tensor]
    rules: RuleSet

    @property
    def expected(self) -> dict[str, str]:
        """Both sides list their tensors in the same order."""
        names = [name for name in self.module.state_dict() if not name.endswith("num_batches_tracked")]
        if self.rules is INCEPTION_V3:
            names = [name for name in names if not name.endswith(".bn.weight")]
        keys = [key for key in self.variables if key != "global_step" and "RMSProp" not in key]
        return dict(zip(names, keys, strict=True))


def case(name: str, classes: int = 1000, background: int = 0) -> Case:
    stored = classes + background
    if name.startswith("resnet_v1"):
        depth = int(name.rpartition("_")[2])
        variables, module, rules = (
            slim_names.resnet_v1(depth, stored),
            torchvision_like(f"resnet{depth}", classes),
            RESNET_V1,
        )
    elif name == "resnet_v2_50":
        variables, module, rules = slim_names.resnet_v2(50, stored), ResNetV2((3, 4, 6, 3), classes), RESNET_V2
    elif name == "inception_v3":
        variables, module, rules = slim_names.inception_v3(stored), torchvision_like(name, classes), INCEPTION_V3
    elif name == "mobilenet_v1":
        variables, module, rules = (
            slim_names.mobilenet_v1(stored),
            MobileNetV1(MOBILENET_V1_OUTS, classes),
            MOBILENET_V1,
        )
    else:
        variables, module, rules = slim_names.mobilenet_v2(stored), torchvision_like(name, classes), MOBILENET_V2
    return Case(module, slim_names.values_of(variables), rules)


NAMES = [
    "resnet_v1_50",
    "resnet_v1_101",
    "resnet_v1_152",
    "resnet_v2_50",
    "inception_v3",
    "mobilenet_v1",
    "mobilenet_v2",
]


def write(folder: Path, values: dict[str, torch.Tensor]) -> str:
    prefix = str(folder / "model.ckpt")
    with BundleWriter(prefix + ".data-00000-of-00001", prefix + ".index", durable=False) as writer:
        for name in sorted(values):
            writer.add(name, values[name])
    return prefix


def reasons(status: RulesLoadStatus, name: str) -> list[str]:
    return [reason for inexact, reason in status.inexact if inexact == name]


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_finds_its_tensor_and_nothing_is_left(name: str, tmp_path: Path) -> None:
    model = case(name, classes=10)
    status = load_name_based(model.module, write(tmp_path, model.variables), model.rules).assert_consumed()
    assert status.bound == model.expected
    assert set(status.ignored) == {key for key in model.variables if "RMSProp" in key or "step" in key}
    assert status.global_step == 7
    for torch_name, key in model.expected.items():
        value, live = model.variables[key], model.module.state_dict()[torch_name]
        if value.dim() == 4 and not key.endswith("depthwise_weights"):
            value = value.permute(3, 2, 0, 1)
        elif value.dim() == 4:
            value = value.permute(2, 3, 0, 1)
        assert torch.equal(live, value.reshape(live.shape)), torch_name


@pytest.mark.parametrize("name", ["inception_v3", "mobilenet_v2", "resnet_v2_50"])
def test_the_background_class_is_left_out_where_that_is_asked_for(name: str, tmp_path: Path) -> None:
    model = case(name, classes=10, background=1)
    path = write(tmp_path, model.variables)
    status = load_name_based(model.module, path, model.rules, drop_background_class=True).assert_consumed()
    found = 0
    for torch_name, key in status.bound.items():
        if "ogits" in key and "BatchNorm" not in key and model.variables[key].shape[-1] == 11:
            stored, live = model.variables[key], model.module.state_dict()[torch_name]
            assert torch.equal(live, stored[1:] if stored.dim() == 1 else stored[0, 0, :, 1:].t())
            found += 1
    assert found == (4 if name == "inception_v3" else 2)


def test_one_class_more_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    model = case("mobilenet_v2", classes=10, background=1)
    path = write(tmp_path, model.variables)
    with pytest.raises(MismatchError, match=r"1x1 convolution as linear: \[11, 160\]") as caught:
        load_name_based(model.module, path, model.rules)
    assert str(caught.value).count("the file has one class more, the background: drop_background_class=True") == 2
    assert all(not tensor.any() for tensor in model.module.state_dict().values())


def test_no_class_more_is_an_error_where_one_is_to_be_left_out(tmp_path: Path) -> None:
    model = case("resnet_v1_50", classes=10)
    with pytest.raises(MismatchError, match="as many classes as the module: leave drop_background_class out"):
        load_name_based(model.module, write(tmp_path, model.variables), model.rules, drop_background_class=True)


def test_a_normalisation_without_gamma_has_the_scale_1(tmp_path: Path) -> None:
    model = case("inception_v3", classes=10)
    status = load_name_based(model.module, write(tmp_path, model.variables), model.rules)
    scales = [name for name in model.module.state_dict() if name.endswith(".bn.weight")]
    assert len(scales) == 96
    assert all(model.module.state_dict()[name].eq(1).all() for name in scales)
    assert all(
        reasons(status, name) == ["nothing is stored for it, which stands for 1; it was not trained"] for name in scales
    )
    assert not set(scales) & {*status.bound, *status.unmatched_torch}
    assert "  inexact  Conv2d_1a_3x3.bn.weight and 95 more: nothing is stored for it" in str(status)


def test_the_scale_of_a_layer_that_is_missing_is_missing_too(tmp_path: Path) -> None:
    model = case("inception_v3", classes=10)
    values = {key: value for key, value in model.variables.items() if "Mixed_7c/Branch_3" not in key}
    status = load_name_based(model.module, write(tmp_path, values), model.rules)
    assert {name.rpartition(".")[0] for name in status.unmatched_torch} == {
        "Mixed_7c.branch_pool.conv",
        "Mixed_7c.branch_pool.bn",
    }
    with pytest.raises(AssertionError, match=r"nothing for 5 values .*Mixed_7c\.branch_pool\.conv\.weight"):
        status.assert_existing_objects_matched()


def test_a_module_without_the_second_classifier_leaves_it_over(tmp_path: Path) -> None:
    model = case("inception_v3", classes=10)
    del model.module._modules["AuxLogits"]
    path = write(tmp_path, model.variables)
    status = load_name_based(model.module, path, model.rules).assert_existing_objects_matched()
    key = "InceptionV3/AuxLogits/Conv2d_2b_1x1/biases"
    assert status.unused_keys[key] == "the module has no 'AuxLogits.fc.bias'"
    with pytest.raises(AssertionError, match=r"10 values of .* were not used: .*AuxLogits"):
        status.assert_consumed()
    load_name_based(model.module, path, model.rules.ignoring("InceptionV3/AuxLogits/.*")).assert_consumed()


def test_an_epsilon_that_differs_is_named_with_its_layer(tmp_path: Path) -> None:
    variables = slim_names.values_of(slim_names.mobilenet_v1(10))
    path = write(tmp_path, variables)
    status = load_name_based(MobileNetV1(MOBILENET_V1_OUTS, 10, eps=1e-5), path, MOBILENET_V1)
    assert reasons(status, "features.3.1") == ["eps is 1e-05 here, and 0.001 in TensorFlow's model"]
    assert len([name for name, reason in status.inexact if reason.startswith("eps is")]) == 27
    right = load_name_based(MobileNetV1(MOBILENET_V1_OUTS, 10), path, MOBILENET_V1)
    assert {name for name, _ in right.inexact} == {"slim MobileNet v1"}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("resnet_v1_50", "stride 2 in conv2 of the last unit"),
        ("resnet_v2_50", "normalises before it convolves"),
        ("inception_v3", "count_include_pad=False"),
        ("mobilenet_v1", "relu6"),
        ("mobilenet_v2", "SAME"),
    ],
)
def test_what_the_module_has_to_do_otherwise_is_told(name: str, told: str, tmp_path: Path) -> None:
    model = case(name, classes=10)
    status = load_name_based(model.module, write(tmp_path, model.variables), model.rules)
    assert any(told in reason for reason in reasons(status, model.rules.title))
    assert told in str(status)
    assert told in status._repr_html_()
