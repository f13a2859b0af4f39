"""The names of the edges at which a Keras program looks for its variables.

A rule names variables without the underscores of attributes. Where there is no checkpoint of the program to tell, these
tables do. What is not in them is spelled as the rules spell it.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["KERAS_EDGES", "edges_of"]

_OWN_KERNEL = {"kernel": "_kernel"}
_ATTENTION = ("query", "key", "value", "output")

KERAS_EDGES: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "keras3": {
        **dict.fromkeys(("Dense", "EinsumDense", "Conv1D", "Conv2D", "Conv3D"), _OWN_KERNEL),
        "Embedding": {"embeddings": "_embeddings"},
        "MultiHeadAttention": {
            f"{part}_dense/{name}": f"_{part}_dense/{edge}"
            for part in _ATTENTION
            for name, edge in (("kernel", "_kernel"), ("bias", "bias"))
        },
    },
    "tf_keras": {
        "DepthwiseConv1D": {"kernel": "depthwise_kernel"},
        "DepthwiseConv2D": {"kernel": "depthwise_kernel"},
        "Normalization": {"adapt_mean": "mean", "adapt_variance": "variance"},
        "MultiHeadAttention": {
            f"{part}_dense/{name}": f"_{part}_dense/{name}" for part in _ATTENTION for name in ("kernel", "bias")
        },
    },
    "sonnet": {
        "LSTM": {"w_h": "_w_h", "w_i": "_w_i"},
        "VanillaRNN": {
            "b": "_b",
            "hidden_to_hidden/w": "_hidden_to_hidden/w",
            "input_to_hidden/w": "_input_to_hidden/w",
        },
        "BatchNorm": {
            f"{average}/{name}": f"{average}/_{name}"
            for average in ("moving_mean", "moving_variance")
            for name in ("counter", "hidden")
        },
    },
}
"""For each generation and each class of layers: from a variable's name to its path, where they differ."""


def edges_of(generation: str, layer: str, variable: str) -> tuple[str, ...]:
    """The edges from a layer to one of its variables.

    Args:
        generation: ``keras3``, ``tf_keras`` or ``sonnet``.
        layer: the class: `LayerForm.keras`.
        variable: a name of `LayerForm.variables` or `LayerForm.foreign`.

    Example:
        >>> edges_of("keras3", "MultiHeadAttention", "query_dense/kernel")
        ('_query_dense', '_kernel')
    """
    return tuple(KERAS_EDGES[generation].get(layer, {}).get(variable, variable).split("/"))
