"""Attention with several heads. Keras has query, key, value and output as layers of their own, with the heads as an
axis; torch has the first three below one another where their inputs are equally wide."""

from __future__ import annotations

from torch import nn

from torch_trackckpt.interop.keras.arrays import KerasArray, Piece
from torch_trackckpt.interop.keras.layers.dense import linear_arrays
from torch_trackckpt.interop.keras.registry import LayerForm, StoredShapes
from torch_trackckpt.interop.keras.transforms import flattened_kernel, reshaped

__all__ = ["multihead_attention"]

_GROUPED = (
    "{query} heads share {key} keys and values in a GroupQueryAttention, and in torch's MultiheadAttention each has "
    "its own. Use four Linears and torch.nn.functional.scaled_dot_product_attention(enable_gqa=True), bound one "
    "by one"
)
_EXTRA_BIAS = "Keras has no bias_k and bias_v, which the module has by add_bias_kv=True"


def multihead_attention(module: nn.MultiheadAttention, stored: StoredShapes | None) -> LayerForm | None:
    """A MultiHeadAttention whose heads are as wide, together, as its queries and its outputs."""
    if module.bias_k is not None:
        return LayerForm("MultiHeadAttention", {}, refused=_EXTRA_BIAS)
    heads = module.num_heads
    stored_heads = [(stored or {}).get(f"{part}_dense/kernel", (0, 0))[1] for part in ("query", "key")]
    if stored_heads[0] != stored_heads[1]:
        refused = _GROUPED.format(query=stored_heads[0], key=stored_heads[1])
        return LayerForm("GroupQueryAttention", {}, refused=refused)

    width = module.embed_dim
    head = (heads, width // heads)
    arrays: dict[str, KerasArray] = {}
    for index, (part, inputs) in enumerate((("query", width), ("key", module.kdim), ("value", module.vdim))):
        rows = (index * width, (index + 1) * width)
        fused = module.in_proj_weight is not None
        weight = Piece("in_proj_weight", *rows) if fused else Piece(f"{part[0]}_proj_weight")
        kernel = (inputs, *head)
        arrays[f"{part}_dense/kernel"] = KerasArray((weight,), kernel, flattened_kernel(kernel, inputs, width))
        if module.in_proj_bias is not None:
            bias = Piece("in_proj_bias", *rows)
            arrays[f"{part}_dense/bias"] = KerasArray((bias,), head, reshaped(head, (width,)), absent=0.0)
    output = linear_arrays(module.out_proj, kernel=(*head, width), prefix="out_proj.")
    return LayerForm("MultiHeadAttention", arrays | {f"output_dense/{name}": array for name, array in output.items()})
