"""Saved layers which are one layer around another, or several in one.

TimeDistributed(Dense)   layer/kernel, layer/bias                    a Dense, further down
SeparableConv2D          depthwise_kernel, pointwise_kernel, bias    two convolutions
MultiHeadAttention       query_dense/kernel, ..., output_dense/bias  four matrices
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from torch import nn

from torch_trackckpt.interop.keras.layers.sonnet import sonnet_form
from torch_trackckpt.interop.keras.registry import LayerForm, Rule, StoredShapes, rule_for

__all__ = ["form_of", "parts_of_saved"]

_WRAPPED = "layer/"
_SEPARABLE = {"depthwise_kernel", "pointwise_kernel"}
_ATTENTION = ("query", "key", "value", "output")
_SPECTRAL = (
    "exact in inference: the kernel that Keras last computed with. Trained on in Keras, it is divided by its norm at "
    "each step, and what torch.nn.utils.parametrizations.spectral_norm keeps for that has another shape"
)


def form_of(module: nn.Module, stored: StoredShapes | None = None, rule: Rule | None = None) -> LayerForm | None:
    """What a module is as a certain saved layer, whatever is wrapped around it, and whoever saved it.

    Args:
        module: the module.
        stored: the variables of the saved layer; None for what Keras would usually have.
        rule: in place of that of the module's class.

    Returns:
        The form, with names of variables as they are in ``stored``. None where the module is no Keras layer, or
        cannot be one with these variables. The shapes need not fit; they are to be compared.
    """
    rule = rule or rule_for(module)
    if rule is None:
        return None
    if stored is None:
        return rule(module, None)
    spectral = "vector_u" in stored
    inner = _inner_names(stored) if spectral or _is_wrapped(stored) else None
    if inner is None:
        return sonnet_form(module, rule, stored) or rule(module, stored)
    form = rule(module, {name: stored[saved] for name, saved in inner.items()})
    if form is None:
        return None
    variables = {inner.get(name, _WRAPPED + name): array for name, array in form.variables.items()}
    if not spectral:
        return dataclasses.replace(form, keras=f"TimeDistributed({form.keras})", variables=variables)
    first = next((array.pieces[0].name for array in form.variables.values()), "")
    return dataclasses.replace(
        form,
        keras=f"SpectralNormalization({form.keras})",
        variables=variables,
        inexact={**form.inexact, first: _SPECTRAL},
        foreign={**form.foreign, **dict.fromkeys(set(stored) - set(inner.values()))},
    )


def _is_wrapped(names: Collection[str]) -> bool:
    return bool(names) and all(name.startswith(_WRAPPED) for name in names)


def _inner_names(stored: StoredShapes) -> Mapping[str, str]:
    """From names in the layer that is wrapped to those in the one around it, which may have its kernel as well."""
    own = {name: name for name in stored if name in ("kernel", "embeddings")}
    return own | {name.removeprefix(_WRAPPED): name for name in stored if name.startswith(_WRAPPED)}


def parts_of_saved(names: Collection[str]) -> Mapping[str, Mapping[str, str]]:
    """How a saved layer falls into several, for programs that have a module for each.

    Args:
        names: of its variables.

    Returns:
        For each part, the variables that it would have as a layer of its own, and what they are called in the saved
        layer. Empty for a layer that does not fall into parts.

    Example:
        >>> parts_of_saved(["depthwise_kernel", "pointwise_kernel", "bias"])
        {'depthwise': {'kernel': 'depthwise_kernel'}, 'pointwise': {'kernel': 'pointwise_kernel', 'bias': 'bias'}}
    """
    if _is_wrapped(names):
        inner = parts_of_saved([name.removeprefix(_WRAPPED) for name in names])
        return {part: {own: _WRAPPED + name for own, name in parts.items()} for part, parts in inner.items()}
    if set(names) >= _SEPARABLE:
        pointwise = {"kernel": "pointwise_kernel", "bias": "bias"}
        return {
            "depthwise": {"kernel": "depthwise_kernel"},
            "pointwise": {own: name for own, name in pointwise.items() if name in names},
        }
    if all(f"{part}_dense/kernel" in names for part in _ATTENTION):
        return {
            part: {own: f"{part}_dense/{own}" for own in ("kernel", "bias") if f"{part}_dense/{own}" in names}
            for part in _ATTENTION
        }
    return {}
