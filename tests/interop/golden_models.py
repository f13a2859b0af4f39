"""The models of the golden Keras checkpoints as PyTorch has them: the modules, their optimizers, and their losses.

They are written as one writes PyTorch, with names and an order of registration of their own, so that every way to
find the Keras layer of a module is needed by some of them:

- by order: `k3_sequential_mlp_adam`, `k3_lstm_text_rmsprop`, `k3_mha_layer`;
- by name: `k3_functional_cnn_sgd`, `k3_layers_zoo` (both are registered in another order), `k2_sequential_legacy_adam`,
  and the SavedModels;
- by path of attributes: `k3_subclassed_list_attr`, `k2_subclassed`;
- by the caller's map: `k2_functional_gru_adamw`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

GOLDEN = Path(__file__).parents[1] / "golden" / "keras"

Array = np.ndarray[Any, np.dtype[Any]]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


# Batch normalization that trains as Keras 3 does: its running variance is the mean of the biased ones.


class _Biased:
    biased_running_var = True

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        dims = [dim for dim in range(x.dim()) if dim != 1]
        with torch.no_grad():
            self.running_mean.lerp_(x.mean(dims), self.momentum)
            self.running_var.lerp_(x.var(dims, correction=0), self.momentum)
        return functional.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


class BiasedBatchNorm1d(_Biased, nn.BatchNorm1d):
    """As Keras 3 trains, and tf_keras matrices."""


class BiasedBatchNorm2d(_Biased, nn.BatchNorm2d):
    """As Keras 3 trains."""


# The modules.


class Cnn(nn.Module):
    """`k3_functional_cnn_sgd`: images come channels-last; names are those of Keras, the order is not."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        # A separable convolution is two of them.
        self.sep = nn.Sequential(nn.Conv2d(12, 12, 3, groups=12, bias=False), nn.Conv2d(12, 4, 1))
        self.conv = nn.Conv2d(3, 6, 3, stride=2)
        self.bn = BiasedBatchNorm2d(6, eps=1e-3, momentum=0.01)
        self.dw = nn.Conv2d(6, 12, 3, padding="same", groups=6)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image.permute(0, 3, 1, 2)
        # `same` for a stride of 2: 9 rows take one before and one after, 8 columns one after.
        x = self.conv(functional.pad(x, (0, 1, 1, 1)))
        x = self.pool(self.sep(self.dw(self.bn(x).relu())))
        return self.head(x.flatten(1))


class Text(nn.Module):
    """`k3_lstm_text_rmsprop`: names of its own, Keras's order."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 6)
        self.reader = nn.LSTM(6, 5, batch_first=True)
        self.classes = nn.Linear(5, 3)
        # Keras has one bias; two that train would be one that trains twice as fast.
        nn.init.zeros_(self.reader.bias_hh_l0)
        self.reader.bias_hh_l0.requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        lengths = (ids != 0).sum(1)
        packed = pack_padded_sequence(self.words(ids), lengths, batch_first=True, enforce_sorted=False)
        _, (last, _) = self.reader(packed)
        return self.classes(last[0])


class Zoo(nn.Module):
    """`k3_layers_zoo`: names are those of Keras, the order is not."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 3, batch_first=True)
        self.causal = nn.Conv1d(6, 4, 3, dilation=2)
        self.einsum = nn.Linear(6, 2 * 3)
        self.gn = nn.GroupNorm(2, 4, eps=1e-3)
        self.ln = nn.LayerNorm(6, eps=1e-3)
        self.rms = nn.RMSNorm(4, eps=1e-6)
        self.prelu = nn.PReLU(4)
        self.gconv = nn.Conv2d(4, 6, 3, padding="same", groups=2)
        self.deconv = nn.ConvTranspose2d(6, 4, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.deconv(x.permute(0, 3, 1, 2))[:, :, : 2 * x.shape[1], : 2 * x.shape[2]]
        x = self.gconv(self.prelu(self.gn(x))).permute(0, 2, 3, 1)
        x = self.einsum(self.ln(x)).flatten(1, 2)
        x = self.causal(functional.pad(x.transpose(1, 2), (4, 0))).transpose(1, 2)
        outputs, _ = self.gru(self.rms(x))
        return outputs[:, -1]


class CrossAttention(nn.Module):
    """`k3_mha_layer`."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return self.attention(query, value, value, need_weights=False)[0]


class ListAttribute(nn.Module):
    """`k3_subclassed_list_attr`: attributes as in Keras."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), BiasedBatchNorm1d(4, eps=1e-3, momentum=0.01)])
        self.pair = nn.ModuleList([nn.Linear(4, 4)])
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks[1](self.blocks[0](self.first(x)).relu())
        return self.head(self.pair[0](x))


class Averaged(nn.Module):
    """`k2_functional_gru_adamw`: names of its own, and another order."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Linear(5, 2)
        self.norm = nn.LayerNorm(5, eps=1e-3)
        self.listener = nn.GRU(4, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.answer(self.norm(self.listener(x)[0]).mean(1))


class ListAndDict(nn.Module):
    """`k2_subclassed`: attributes as in Keras."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4, eps=1e-3)])
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 2)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.heads["a"](self.blocks[1](self.blocks[0](self.first(x)).relu()))


def numbered_mlp() -> nn.Module:
    """`k3_sequential_mlp_adam`: no names at all, Keras's order."""
    norm = BiasedBatchNorm1d(8, eps=1e-3, momentum=0.01)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.0), norm, nn.Linear(8, 2))


def named_mlp() -> nn.Module:
    """`k2_sequential_legacy_adam`: Keras's names and order."""
    layers = {
        "hidden": nn.Linear(5, 6),
        "tanh": nn.Tanh(),
        "bn": BiasedBatchNorm1d(6, eps=1e-3, momentum=0.01),
        "head": nn.Linear(6, 2),
    }
    return nn.Sequential(OrderedDict(layers))


def small() -> nn.Module:
    """The model of the three SavedModels: Keras's names and order."""
    layers = {
        "hidden": nn.Linear(5, 4),
        "relu": nn.ReLU(),
        "drop": nn.Dropout(0.2),
        "bn": nn.BatchNorm1d(4, eps=1e-3, momentum=0.01),
        "head": nn.Linear(4, 2),
    }
    return nn.Sequential(OrderedDict(layers))


# The cases.


@dataclasses.dataclass(frozen=True)
class GoldenCase:
    """A golden Keras checkpoint, and the PyTorch program that it is loaded into."""

    name: str
    """Of its folder."""
    net: Callable[[], nn.Module]
    """Makes the module, with random weights."""
    layers: Mapping[str, str]
    """The names of the torch modules of Keras's layers."""
    outputs_within: float
    """How far outputs may be from those of Keras: twice what was measured, for other processors."""
    make_optimizer: Callable[[nn.Module, Mapping[str, Any]], torch.optim.Optimizer] | None = None
    """From a module and the settings of Keras's optimizer; None where there is none."""
    step_within: float | None = None
    """How far weights may be after one more step, with Adam's epsilon where Keras has it; None without an optimizer."""
    map: Mapping[str, str] | None = None
    """What the caller has to say: Keras's layers of the torch modules; None where names or order tell."""
    after_flatten: Mapping[str, tuple[int, int, int]] | None = None
    """Height, width and channels of what torch flattens in front of a module."""
    is_step_exact: bool = True
    """Whether torch's optimizer takes the step that Keras takes; where not, ``step_within`` is for one that does."""
    notes: str = ""

    @property
    def folder(self) -> Path:
        return GOLDEN / self.name

    @functools.cached_property
    def manifest(self) -> Any:
        return json.loads((self.folder / "manifest.json").read_text())

    @property
    def prefix(self) -> str:
        """What the files of the checkpoint begin with."""
        return str(self.folder / self.manifest["prefix"])

    @property
    def path(self) -> str:
        """What a user names: the prefix, or the folder of a SavedModel."""
        return str(self.folder / self.manifest["saved_model"]) if "saved_model" in self.manifest else self.prefix

    @property
    def is_trained(self) -> bool:
        return self.make_optimizer is not None

    def optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        """A new optimizer for a module, without state."""
        assert self.make_optimizer is not None
        return self.make_optimizer(net, self.manifest["optimizer"]["config"])

    @property
    def loss(self) -> Loss:
        """Of outputs and labels; a mean."""
        if self.manifest["train"]["loss"] == "mse":
            return functional.mse_loss
        return lambda logits, labels: functional.cross_entropy(logits, labels.long())

    @property
    def epsilon(self) -> float | None:
        """The epsilon of Keras's Adam, which torch adds elsewhere; None for other optimizers."""
        described = self.manifest["optimizer"]
        return described["config"]["epsilon"] if described["class"] in ("Adam", "AdamW") else None

    def inputs(self) -> list[torch.Tensor]:
        return [torch.from_numpy(np.load(self.folder / name)) for name in self.manifest["io"]["inputs"]]

    def outputs(self) -> list[torch.Tensor]:
        """What Keras gives for the inputs."""
        return [torch.from_numpy(np.load(self.folder / name)) for name in self.manifest["io"]["outputs"]]

    def run(self, net: nn.Module, inputs: list[torch.Tensor] | None = None) -> list[torch.Tensor]:
        """What a module gives at inference, for the case's inputs if there are no others."""
        was_training = net.training
        net.eval()
        with torch.no_grad():
            outputs = net(*(self.inputs() if inputs is None else inputs))
        net.train(was_training)
        return [outputs]

    def next_batch(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Inputs and labels of the step that comes after the checkpoint."""
        number = self.manifest["train"]["next_batch_index"]
        with np.load(self.folder / "batches.npz") as batches:
            xs = [torch.from_numpy(batches[f"x{i}"][number]) for i in range(len(self.manifest["io"]["inputs"]))]
            return xs, torch.from_numpy(batches["y"][number])

    def after(self) -> dict[str, Array]:
        """Keras's variables after one more step, as ``layer/variable``, in its own layout."""
        with np.load(self.folder / "after.npz") as arrays:
            return dict(arrays)

    def not_in_checkpoint(self) -> dict[str, Array]:
        """What Keras had and did not save, as ``layer/variable``, in its own layout."""
        if "not_in_checkpoint" not in self.manifest:
            return {}
        with np.load(self.folder / self.manifest["not_in_checkpoint"]) as arrays:
            return dict(arrays)


def _sgd(net: nn.Module, config: Mapping[str, Any]) -> torch.optim.Optimizer:
    lr, momentum = config["learning_rate"], config["momentum"]
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum, nesterov=config["nesterov"])


def _adam(net: nn.Module, config: Mapping[str, Any]) -> torch.optim.Optimizer:
    betas = (config["beta_1"], config["beta_2"])
    lr, eps, amsgrad = config["learning_rate"], config["epsilon"], config["amsgrad"]
    # Keras's weight decay is always that of AdamW.
    kind = (
        functools.partial(torch.optim.AdamW, weight_decay=config["weight_decay"])
        if config.get("weight_decay")
        else torch.optim.Adam
    )
    return kind(net.parameters(), lr=lr, betas=betas, eps=eps, amsgrad=amsgrad)


def _rmsprop(net: nn.Module, config: Mapping[str, Any]) -> torch.optim.Optimizer:
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    lr, eps, momentum = config["learning_rate"], config["epsilon"], config["momentum"]
    centered = config["centered"]
    return torch.optim.RMSprop(trained, lr=lr, alpha=config["rho"], eps=eps, momentum=momentum, centered=centered)


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_SMALL = _same("hidden", "bn", "head")
_BLOCKS = {"first": "first", "block_0": "blocks.0", "block_1": "blocks.1"}

CASES = (
    GoldenCase(
        "k3_sequential_mlp_adam",
        numbered_mlp,
        {"hidden": "0", "bn": "3", "head": "4"},
        outputs_within=5e-7,
        make_optimizer=_adam,
        step_within=3e-7,
        notes="By order: the module's names are numbers.",
    ),
    GoldenCase(
        "k3_functional_cnn_sgd",
        Cnn,
        _same("conv", "bn", "dw", "sep", "head"),
        outputs_within=2e-7,
        make_optimizer=_sgd,
        step_within=1e-7,
        after_flatten={"head": (2, 1, 4)},
        notes="By name. `sep` of Keras is the two modules of a Sequential; the rows of `head` come in another order.",
    ),
    GoldenCase(
        "k3_lstm_text_rmsprop",
        Text,
        {"emb": "words", "lstm": "reader", "head": "classes"},
        outputs_within=1e-7,
        make_optimizer=_rmsprop,
        step_within=2e-7,
        is_step_exact=False,
        notes="By order. Keras adds epsilon inside of the root, where torch's RMSprop adds it outside.",
    ),
    GoldenCase(
        "k3_layers_zoo",
        Zoo,
        _same("deconv", "gn", "prelu", "gconv", "ln", "einsum", "causal", "rms", "gru"),
        outputs_within=3e-7,
        notes="By name.",
    ),
    GoldenCase(
        "k3_mha_layer",
        CrossAttention,
        {"mha": "attention"},
        outputs_within=6e-7,
        notes="By order: there is one layer. Its query, key and value are one parameter of torch.",
    ),
    GoldenCase(
        "k3_subclassed_list_attr",
        ListAttribute,
        _BLOCKS | {"pair_0": "pair.0", "head": "head"},
        outputs_within=3e-7,
        make_optimizer=_sgd,
        step_within=2e-7,
        notes="By path of attributes, except `blocks`: its weights are only in the optimizer's list of them, and the "
        "moving statistics of `blocks.1` are not in the file.",
    ),
    GoldenCase(
        "k2_sequential_legacy_adam",
        named_mlp,
        _same("hidden", "bn", "head"),
        outputs_within=3e-7,
        make_optimizer=_adam,
        step_within=3e-7,
        notes="By name. Epsilon is 1e-3, so that its place shows.",
    ),
    GoldenCase(
        "k2_functional_gru_adamw",
        Averaged,
        {"gru": "listener", "ln": "norm", "head": "answer"},
        outputs_within=3e-7,
        make_optimizer=_adam,
        step_within=3e-7,
        map={"listener": "gru", "norm": "ln", "answer": "head"},
        notes="By the caller's map: neither names nor order agree.",
    ),
    GoldenCase(
        "k2_subclassed",
        ListAndDict,
        _BLOCKS | {"head_a": "heads.a"},
        outputs_within=2e-7,
        make_optimizer=_sgd,
        step_within=2e-7,
        notes="By path of attributes: `blocks/0` is `blocks.0`, `heads/a` is `heads.a`.",
    ),
    GoldenCase(
        "k3_saved_model_export",
        small,
        _SMALL,
        outputs_within=3e-7,
        notes="By name, which only full names of variables tell.",
    ),
    GoldenCase("k3_saved_model_tf", small, _SMALL, outputs_within=3e-7, notes="By name."),
    GoldenCase("k2_saved_model", small, _SMALL, outputs_within=3e-7, notes="By name."),
)
