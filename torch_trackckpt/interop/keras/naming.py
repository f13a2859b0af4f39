"""What modules and saved layers are called, so that the two sides can be compared.

Both are spelled with dots and without leading underscores: ``blocks.0``, ``operations.1``, ``encoder.dense``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch_trackckpt.interop.keras.saved import SavedLayer, SavedVariable, canonical

__all__ = [
    "common_first",
    "counted",
    "last_part",
    "last_parts",
    "name_of_class",
    "parent_of",
    "plain",
    "texts",
    "variable_texts",
]


def plain(text: str) -> str:
    """A name of either side: dots, and no leading underscores."""
    return canonical(text.replace(".", "/")).replace("/", ".")


def texts(layer: SavedLayer) -> tuple[str, ...]:
    return tuple(text for text in (layer.path, *layer.aliases, layer.name) if text)


def variable_texts(layer: SavedLayer, variable: SavedVariable) -> set[str]:
    bases = texts(layer) or ("",)
    names = (variable.name, *variable.aliases)
    found = {plain(f"{base}/{name}" if base else name) for base in bases for name in names}
    if not layer.path:
        found |= {plain(name) for name in names}
    return found | ({plain(variable.full_name)} if variable.full_name else set())


_STRUCTURAL = ("operations", "functional", "layers")


def last_parts(layer: SavedLayer) -> set[str]:
    """The last parts of name and path, where they are names."""
    found = {last_part(plain(layer.name)), last_part(plain(layer.path))}
    return {
        text
        for text in found
        if text
        and not text.isdigit()
        and text not in _STRUCTURAL
        and not text.startswith(("layer_with_weights-", "layer-"))
    }


def last_part(text: str) -> str:
    return text.rpartition(".")[2]


def parent_of(text: str) -> str:
    return text.rpartition(".")[0]


def common_first(names: Sequence[str]) -> str:
    """What all names begin with: that of the model."""
    firsts = {name.split("/")[0] for name in names if name}
    return firsts.pop() if len(firsts) == 1 and all("/" in name for name in names if name) else ""


_WORDS = re.compile(r"(?<=.)(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])")
_COUNTED = re.compile(r"(.*?)(?:_(\d+))?")


def name_of_class(layer: str) -> str:
    """What Keras calls the first layer of a class: ``batch_normalization``; that of a wrapper goes by the wrapper."""
    return _WORDS.sub("_", layer.partition("(")[0]).lower()


def counted(name: str) -> tuple[str, int]:
    """A name as Keras makes it, with the number: ``dense`` has 0, ``dense_1`` has 1."""
    match = _COUNTED.fullmatch(name)
    assert match is not None
    return match[1], int(match[2] or 0)
