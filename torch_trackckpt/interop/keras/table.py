"""The table of layers in the documentation, made of what the rules say about examples.

python -m torch_trackckpt.interop.keras.table docs/from-keras-layers.md
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from torch_trackckpt.interop.keras.arrays import KerasArray, Piece
from torch_trackckpt.interop.keras.composition import form_of
from torch_trackckpt.interop.keras.layers import dense_after_flatten
from torch_trackckpt.interop.keras.layers.sonnet import sonnet_form
from torch_trackckpt.interop.keras.modules import KerasNormalization
from torch_trackckpt.interop.keras.registry import LayerForm, Rule, StoredShapes, rule_for

__all__ = ["MappingRow", "layers_page", "mapping_rows"]

Make = Callable[[], nn.Module]


@dataclasses.dataclass(frozen=True)
class MappingRow:
    """A variable of a Keras layer, and what of a torch module it is."""

    torch: str
    keras: str
    variable: str
    tensors: str
    transform: str
    absent: str
    """What takes its place where the Keras layer does not have it."""


@dataclasses.dataclass(frozen=True)
class _Example:
    torch: str
    make: Make
    stored: StoredShapes | None = None
    rule: Rule | None = None


_HEAD = (8, 2, 4)

_EXAMPLES = (
    _Example("Linear", lambda: nn.Linear(3, 4)),
    _Example("Linear, heads apart", lambda: nn.Linear(8, 8), {"kernel": _HEAD, "bias": (2, 4)}),
    _Example("Linear behind Flatten", lambda: nn.Linear(12, 4), rule=dense_after_flatten((2, 2, 3))),
    _Example("any module", lambda: nn.Linear(3, 4), {"layer/kernel": (3, 4), "layer/bias": (4,)}),
    _Example("any module", lambda: nn.Linear(3, 4), {"layer/kernel": (3, 4), "layer/bias": (4,), "vector_u": (1, 4)}),
    _Example("Embedding, EmbeddingBag", lambda: nn.Embedding(3, 4)),
    _Example("Conv1d", lambda: nn.Conv1d(3, 4, 2)),
    _Example("Conv2d", lambda: nn.Conv2d(3, 4, 2)),
    _Example("Conv3d", lambda: nn.Conv3d(3, 4, 2)),
    _Example("Conv1d(groups=C)", lambda: nn.Conv1d(3, 6, 2, groups=3)),
    _Example("Conv2d(groups=C)", lambda: nn.Conv2d(3, 6, 2, groups=3)),
    _Example("ConvTranspose1d", lambda: nn.ConvTranspose1d(3, 4, 2)),
    _Example("ConvTranspose2d", lambda: nn.ConvTranspose2d(3, 4, 2)),
    _Example("ConvTranspose3d", lambda: nn.ConvTranspose3d(3, 4, 2)),
    _Example("BatchNorm1d, 2d, 3d, SyncBatchNorm", lambda: nn.BatchNorm2d(3)),
    _Example("LayerNorm", lambda: nn.LayerNorm(3)),
    _Example("LayerNorm((C, H, W))", lambda: nn.LayerNorm((3, 2, 4)), {"gamma": (2, 4, 3), "beta": (2, 4, 3)}),
    _Example("GroupNorm", lambda: nn.GroupNorm(2, 4)),
    _Example("InstanceNorm1d, 2d, 3d", lambda: nn.InstanceNorm2d(3, affine=True)),
    _Example("RMSNorm", lambda: nn.RMSNorm(3)),
    _Example("PReLU", lambda: nn.PReLU(3), {"alpha": (1, 1, 3)}),
    _Example("LSTM", lambda: nn.LSTM(3, 4)),
    _Example("GRU", lambda: nn.GRU(3, 4)),
    _Example("RNN", lambda: nn.RNN(3, 4)),
    _Example("LSTM(bidirectional=True)", lambda: nn.LSTM(3, 4, bidirectional=True)),
    _Example("LSTM(num_layers=2)", lambda: nn.LSTM(3, 4, 2), {"cell/cells/0/kernel": (3, 16)}),
    _Example("LSTMCell", lambda: nn.LSTMCell(3, 4)),
    _Example("GRUCell", lambda: nn.GRUCell(3, 4)),
    _Example("RNNCell", lambda: nn.RNNCell(3, 4)),
    _Example("MultiheadAttention", lambda: nn.MultiheadAttention(8, 2)),
    _Example("MultiheadAttention(kdim=, vdim=)", lambda: nn.MultiheadAttention(8, 2, kdim=3, vdim=5)),
    _Example("KerasNormalization", lambda: KerasNormalization([3])),
)

_SONNET = (
    _Example("Linear", lambda: nn.Linear(3, 4)),
    _Example("Conv2d", lambda: nn.Conv2d(3, 4, 2)),
    _Example("Conv2d(groups=C)", lambda: nn.Conv2d(3, 6, 2, groups=3)),
    _Example("ConvTranspose2d", lambda: nn.ConvTranspose2d(3, 4, 2)),
    _Example("Embedding", lambda: nn.Embedding(3, 4)),
    _Example("LayerNorm", lambda: nn.LayerNorm(3)),
    _Example("BatchNorm2d", lambda: nn.BatchNorm2d(3)),
    _Example("LSTM, LSTMCell", lambda: nn.LSTMCell(3, 4)),
    _Example("LSTM(proj_size=)", lambda: nn.LSTM(3, 4, proj_size=2)),
    _Example("RNN, RNNCell", lambda: nn.RNNCell(3, 4)),
)

_REFUSED = (
    _Example("GRU", lambda: nn.GRU(3, 4), {"cell/kernel": (3, 12), "cell/bias": (12,)}),
    _Example("LSTM(proj_size=)", lambda: nn.LSTM(3, 4, proj_size=2)),
    _Example(
        "LSTM(num_layers=2, bidirectional=True)",
        lambda: nn.LSTM(3, 4, 2, bidirectional=True),
        {"cell/cells/0/kernel": (3, 16)},
    ),
    _Example(
        "MultiheadAttention",
        lambda: nn.MultiheadAttention(8, 2),
        {"query_dense/kernel": _HEAD, "key_dense/kernel": (8, 1, 4)},
    ),
    _Example("MultiheadAttention(add_bias_kv=True)", lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True)),
    _Example("PReLU", lambda: nn.PReLU(3), {"alpha": (5, 6, 3)}),
    _Example("RMSNorm", lambda: nn.RMSNorm(3), {"gamma": (3,)}),
    _Example("Linear", lambda: nn.Linear(3, 4), {"kernel": (3, 4), "lora_kernel_a": (3, 2), "lora_kernel_b": (2, 4)}),
    _Example("ConvTranspose2d(groups=3)", lambda: nn.ConvTranspose2d(3, 3, 2, groups=3)),
    _Example("BatchNorm2d(track_running_stats=False)", lambda: nn.BatchNorm2d(3, track_running_stats=False)),
    _Example("InstanceNorm2d(track_running_stats=True)", lambda: nn.InstanceNorm2d(3, track_running_stats=True)),
)

_INEXACT = (
    _Example("BatchNorm1d, 2d, 3d, SyncBatchNorm", lambda: nn.BatchNorm2d(3)),
    _Example("LayerNorm", lambda: nn.LayerNorm(3), {"gamma": (3,)}),
    _Example("LayerNorm((4, 4))", lambda: nn.LayerNorm((4, 4)), {"gamma": (4, 4), "beta": (4, 4)}),
    _Example("GRU(bias=False)", lambda: nn.GRU(3, 4, bias=False), {"cell/kernel": (3, 12)}),
    _Example("any module", lambda: nn.Linear(3, 4), {"layer/kernel": (3, 4), "vector_u": (1, 4)}),
)


def _forms(examples: Iterable[_Example], sonnet: bool = False) -> Iterator[tuple[_Example, LayerForm]]:
    for example in examples:
        # Nothing is computed, and no random numbers are drawn.
        with torch.device("meta"):
            module = example.make()
        form = sonnet_form(module, _rule(module), None) if sonnet else form_of(module, example.stored, example.rule)
        assert form is not None
        yield example, form


def _rule(module: nn.Module) -> Rule:
    rule = rule_for(module)
    assert rule is not None
    return rule


def mapping_rows(sonnet: bool = False) -> list[MappingRow]:
    """What every rule of torch.nn says, with an example of each form.

    Args:
        sonnet: about Sonnet's modules in place of Keras's layers.
    """
    rows = []
    for example, form in _forms(_SONNET if sonnet else _EXAMPLES, sonnet):
        rows += [_row(example, form, variable, array) for variable, array in form.variables.items()]
        for variable, make in form.foreign.items():
            written = "as it was" if make is None else "made"
            rows.append(MappingRow(example.torch, form.keras, variable, "none", f"not read; written: {written}", ""))
    return rows


def _row(example: _Example, form: LayerForm, variable: str, array: KerasArray) -> MappingRow:
    tensors = ", ".join(_readable(piece) for piece in array.pieces)
    if array.merged:
        tensors = " + ".join([tensors, *array.merged])
    absent = "" if array.absent is None else f"{array.absent:g}"
    return MappingRow(example.torch, form.keras, variable, tensors, array.transform.name, absent)


def _readable(piece: Piece) -> str:
    return piece.name if piece.begin is None else f"{piece.name}[{piece.begin}:{piece.end}]"


_INTRODUCTION = """\
# Layers of Keras and Sonnet

`make layers-page` makes this page of what the rules say. A row is one variable of a layer, as Keras stores it,
and the tensors of the torch module that it is. Every layout is exact in both directions, bit for bit. Where two of
torch's biases are added to be one of Keras's, what is read goes to the first, and the second becomes zero.

What is not stored, the module has to have as the layer does: strides, padding, dilation, activations, the order of axes
(Keras has channels last), epsilon (1e-3 in Keras's normalizations where nothing is said, 1e-6 in RMSNormalization),
momentum (1 minus Keras's, whose default is 0.01 in torch).
"""

_SEVERAL = """\
A SeparableConv is two modules, `depthwise`, without a bias, and `pointwise`. An attention may be four `Linear`:
`query`, `key`, `value` and `output`. Each is bound as a part of the saved layer. The other way round, a recurrent
module with `num_layers=2` is two layers, its parts `l0` and `l1`, or one RNN of two cells in Keras 2.
"""


def layers_page() -> str:
    """The page, in Markdown."""
    columns = ("variable", "tensors", "layout", "where absent")
    reasons = ("torch.nn", "Keras", "what", "reason")
    refused = [(example.torch, form.keras, "all", form.refused or "") for example, form in _forms(_REFUSED)]
    inexact = [
        (example.torch, form.keras, tensor or "all", reason)
        for example, form in _forms(_INEXACT)
        for tensor, reason in form.inexact.items()
    ]
    sections = (
        _INTRODUCTION,
        "## Keras\n",
        _table(("torch.nn", "Keras", *columns), map(dataclasses.astuple, mapping_rows())),
        _SEVERAL,
        "## Sonnet\n",
        _table(("torch.nn", "Sonnet", *columns), map(dataclasses.astuple, mapping_rows(sonnet=True))),
        "## Reported as inexact\n",
        _table(reasons, inexact),
        "## Refused\n",
        _table(reasons, refused),
    )
    return "\n".join(sections)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head)]
    before: Sequence[str] = ()
    for row in rows:
        # What stands above is not said again.
        lines.append(["", "", *row[2:]] if row[:2] == before else row)
        before = row[:2]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(layers_page())
