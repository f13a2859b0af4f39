"""Layers that change a model's input by what they saw of the data before."""

from __future__ import annotations

from torch_trackckpt.interop.keras.arrays import KerasArray, Piece
from torch_trackckpt.interop.keras.modules import KerasNormalization
from torch_trackckpt.interop.keras.registry import LayerForm, StoredShapes

__all__ = ["normalization"]


def normalization(module: KerasNormalization, stored: StoredShapes | None) -> LayerForm | None:
    """A Normalization that was adapted to data; one with a fixed mean and variance stores nothing."""
    # Keras 2 has both names for the same variables.
    prefix = "" if stored is not None and "mean" in stored else "adapt_"
    named = ((f"{prefix}mean", "mean"), (f"{prefix}variance", "variance"), ("count", "count"))
    return LayerForm(
        "Normalization",
        {keras: KerasArray((Piece(name),), tuple(module.get_buffer(name).shape)) for keras, name in named},
    )
