"""The conversion of other people's checkpoints to the models of examples/ported, one value at a time.

A second way to what `load_keras` does by itself, which shares nothing with it: keys are written out, and so is what is
done to each value. Values are read by `load_checkpoint`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from corpus_truth import CORPUS
from torch import Tensor, nn

from torch_trackckpt import load_checkpoint

EXAMPLES = Path(__file__).parents[1] / "examples" / "ported"

Get = Callable[[str], Tensor]


@dataclasses.dataclass(frozen=True)
class Ported:
    """One model: the file that it comes from, and its values by hand.

    The tolerance of its outputs is relative to the largest of them.
    """

    name: str
    item: str
    make: Callable[[ModuleType], nn.Module]
    convert: Callable[[Get], dict[str, Tensor]]
    tolerance: float = 1e-5
    key: str = "{}/.ATTRIBUTES/VARIABLE_VALUE"

    @property
    def path(self) -> Path:
        """The checkpoint, or the SavedModel."""
        return CORPUS / self.item

    def example(self) -> ModuleType:
        """The script in examples/ported."""
        spec = importlib.util.spec_from_file_location(f"ported_{self.name}", EXAMPLES / f"{self.name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def stored(self) -> dict[str, Any]:
        """An input, and TensorFlow's outputs."""
        with np.load(CORPUS / "ported" / f"{self.name}.npz") as file:
            return dict(file)

    def values(self) -> dict[str, Tensor]:
        """The state of the module, converted by hand."""
        reader = load_checkpoint(self.path)
        return self.convert(lambda path: reader.get_tensor(self.key.format(path)))

    def net(self, example: ModuleType) -> nn.Module:
        """The module with these values. All have to be given but the counters of batches, which Keras does not keep."""
        net = self.make(example)
        missing, unexpected = net.load_state_dict(self.values(), strict=False)
        assert [name for name in missing if not name.endswith("num_batches_tracked")] == []
        assert unexpected == []
        return net.eval()

    def __str__(self) -> str:
        return self.name


def dense(get: Get, path: str, name: str) -> dict[str, Tensor]:
    return {f"{name}.weight": get(f"{path}/kernel").T, f"{name}.bias": get(f"{path}/bias")}


def convolution(get: Get, path: str, name: str) -> dict[str, Tensor]:
    """From height, width, in, out to out, in, height, width."""
    return {f"{name}.weight": get(f"{path}/kernel").permute(3, 2, 0, 1), f"{name}.bias": get(f"{path}/bias")}


def batch_norm(get: Get, path: str, name: str) -> dict[str, Tensor]:
    return {
        f"{name}.weight": get(f"{path}/gamma"),
        f"{name}.bias": get(f"{path}/beta"),
        f"{name}.running_mean": get(f"{path}/moving_mean"),
        f"{name}.running_var": get(f"{path}/moving_variance"),
    }


def basic_pitch(get: Get) -> dict[str, Tensor]:
    return {
        **batch_norm(get, "layer_with_weights-0", "norm"),
        **convolution(get, "layer_with_weights-1", "contour.0"),
        **batch_norm(get, "layer_with_weights-2", "contour.1"),
        **convolution(get, "layer_with_weights-3", "contour.3"),
        **convolution(get, "layer_with_weights-4", "note.0"),
        **convolution(get, "layer_with_weights-5", "onset_features.0"),
        **batch_norm(get, "layer_with_weights-6", "onset_features.1"),
        **convolution(get, "layer_with_weights-7", "note.2"),
        **convolution(get, "layer_with_weights-8", "onset.0"),
    }


def lstm_from_sequential(get: Get) -> dict[str, Tensor]:
    """The gates have one order in both. Torch has two biases, Keras one, which is their sum."""
    return {
        "lstm.weight_ih_l0": get("variables/0").T,
        "lstm.weight_hh_l0": get("variables/1").T,
        "lstm.bias_ih_l0": get("variables/2"),
        "lstm.bias_hh_l0": torch.zeros(4 * 32),
        **dense(get, "layer_with_weights-1", "dense"),
    }


def guesslang(get: Get) -> dict[str, Tensor]:
    dnn = "dnn/input_from_feature_columns/input_layer"
    return {
        "linear.weight": get("linear/linear_model/content/weights"),
        "linear_bias": get("linear/linear_model/bias_weights"),
        "embedding.weight": get(f"{dnn}/content_embedding/embedding_weights"),
        **dense(get, "dnn/hiddenlayer_0", "hidden.0"),
        **dense(get, "dnn/hiddenlayer_1", "hidden.1"),
        **dense(get, "dnn/logits", "logits"),
    }


def penguins(get: Get) -> dict[str, Tensor]:
    return {
        **dense(get, "layer_with_weights-0", "hidden.0"),
        **dense(get, "layer_with_weights-1", "hidden.1"),
        **dense(get, "layer_with_weights-2", "species"),
    }


def iris(get: Get) -> dict[str, Tensor]:
    return {
        **dense(get, "layer_with_weights-0", "hidden.0"),
        **dense(get, "layer_with_weights-1", "hidden.1"),
        **dense(get, "layer_with_weights-2", "hidden.2"),
        **dense(get, "layer_with_weights-3", "species"),
    }


def sonnet_lstm(get: Get) -> dict[str, Tensor]:
    """The gates have one order in both. Torch has two biases, Sonnet one, which is their sum."""
    return {
        "weight_ih_l0": get("module/_w_i").T,
        "weight_hh_l0": get("module/_w_h").T,
        "bias_ih_l0": get("module/b"),
        "bias_hh_l0": torch.zeros(4 * 8),
        "weight_hr_l0": get("module/projection").T,
    }


def sonnet_cifar(get: Get) -> dict[str, Tensor]:
    """Averages have the rank of an image; there is a hidden and a corrected one."""
    values = {"logits.weight": get("module/_logits_module/w").T, "logits.bias": get("module/_logits_module/b")}
    for layer in range(2):
        values |= {
            f"convs.{layer}.weight": get(f"module/_conv_modules/{layer}/w").permute(3, 2, 0, 1),
            f"convs.{layer}.bias": get(f"module/_conv_modules/{layer}/b"),
            f"norms.{layer}.weight": get(f"module/_bn_modules/{layer}/scale"),
            f"norms.{layer}.bias": get(f"module/_bn_modules/{layer}/offset"),
            f"norms.{layer}.running_mean": get(f"module/_bn_modules/{layer}/moving_mean/average")[0, 0, 0],
            f"norms.{layer}.running_var": get(f"module/_bn_modules/{layer}/moving_variance/average")[0, 0, 0],
        }
    return values


def sonnet_vqvae(get: Get) -> dict[str, Tensor]:
    values = {"embeddings": get("module/embeddings")}
    for average in ("ema_cluster_size", "ema_dw"):
        values |= {
            f"{average}.counter": get(f"module/{average}/_counter"),
            f"{average}.hidden": get(f"module/{average}/_hidden"),
            f"{average}.average": get(f"module/{average}/average"),
        }
    return values


def sonnet_mean(get: Get) -> dict[str, Tensor]:
    return {"sum": get("module/sum"), "count": get("module/count")}


PORTED = (
    # The logarithm of what is nearly silent shows how sums were rounded: TensorFlow's outputs are within 1e-5 of what
    # double precision gives, torch's within 2e-5.
    Ported("basic_pitch", "sm2-basic-pitch", lambda example: example.BasicPitch(), basic_pitch, tolerance=5e-5),
    Ported(
        "lstm_from_sequential",
        "sm2-lstm-keras-2.12",
        lambda example: example.SequenceClassifier(),
        lstm_from_sequential,
    ),
    Ported("guesslang", "sm2-guesslang-estimator", lambda example: example.Guesslang(), guesslang, key="{}"),
    Ported("penguins", "sm2-keras-iris", lambda example: example.PenguinClassifier(), penguins),
    Ported("iris", "v2-prefix-named-checkpoint", lambda example: example.IrisClassifier(), iris),
    Ported("sonnet_lstm", "v2-sonnet-lstm", lambda example: example.make(), sonnet_lstm),
    Ported("sonnet_cifar", "v2-sonnet-cifar", lambda example: example.Cifar10ConvNet(), sonnet_cifar),
    Ported("sonnet_vqvae", "v2-sonnet-vqvae-ema", lambda example: example.VectorQuantizer(), sonnet_vqvae),
    Ported("sonnet_mean", "v2-sonnet-mean-2shards", lambda example: example.Mean(2, 2), sonnet_mean),
)
