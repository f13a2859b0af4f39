"""Sonnet's modules are read and written like Keras's models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from keras_oracle import Keras, Program, inputs, layer, subclassed
from torch import nn

from torch_trackckpt import Checkpoint
from torch_trackckpt.interop import keras_view, load_keras

CORPUS = Path(__file__).parents[2] / "corpus"


def program() -> Program:
    attributes = {
        "first": layer("Linear", output_size=4),
        "blocks": [layer("Linear", output_size=4), layer("LayerNorm", axis=-1, create_scale=True, create_offset=True)],
        "head": layer("Linear", output_size=2),
    }
    model = subclassed(attributes, ["first", "blocks/0", "blocks/1", "head"], base="Module")
    return Program("sonnet", model, [inputs(3)])


def module() -> nn.ModuleDict:
    blocks = nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4)])
    return nn.ModuleDict({"head": nn.Linear(4, 2), "blocks": blocks, "first": nn.Linear(3, 4)})


def test_a_module_of_sonnet_goes_there_and_back(keras: Keras, tmp_path: Path) -> None:
    written = keras.write(program(), tmp_path / "theirs")
    net = module()
    status = load_keras(net, written.prefix).assert_consumed()
    assert {line.how for line in status.bound} == {"name"}
    x = torch.from_numpy(written.inputs[0])
    outputs = net["head"](net["blocks"][1](net["blocks"][0](net["first"](x))))
    np.testing.assert_allclose(outputs.detach().numpy(), written.outputs[0], rtol=0, atol=1e-6)
    for settings in ({"like": written.prefix}, {"flavor": "sonnet"}):
        path = Checkpoint(model=keras_view(net, **settings)).save(str(tmp_path / "ours"))  # type: ignore[call-overload]
        restored = keras.restore(program(), path, written, tmp_path / "back")
        restored.assert_used()
        restored.assert_same(written, steps=None)


def test_a_net_of_sonnet_is_bound_by_the_names_of_its_lists() -> None:
    net = nn.ModuleDict(
        {
            "conv_modules": nn.ModuleList([nn.Conv2d(2, 2, 3), nn.Conv2d(2, 3, 3)]),
            "bn_modules": nn.ModuleList([nn.BatchNorm2d(2), nn.BatchNorm2d(3)]),
            "logits_module": nn.Linear(3, 10),
        }
    )
    status = load_keras(net, CORPUS / "v2-sonnet-cifar" / "checkpoint-1").assert_consumed()
    assert [(line.torch_name, line.keras.partition("(")[2], line.how) for line in status.bound] == [
        ("conv_modules.0", "_conv_modules/0)", "name"),
        ("conv_modules.1", "_conv_modules/1)", "name"),
        ("bn_modules.0", "_bn_modules/0)", "name"),
        ("bn_modules.1", "_bn_modules/1)", "name"),
        ("logits_module", "_logits_module)", "name"),
    ]
