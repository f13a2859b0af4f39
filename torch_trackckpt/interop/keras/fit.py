"""Whether a unit of a torch module can be a saved layer, or a run of units a run of layers.

Runs need not be equally long. A SeparableConv is two convolutions of torch, attention may be four Linears; an LSTM of
two layers is two layers of Keras.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch_trackckpt.interop.keras.composition import parts_of_saved
from torch_trackckpt.interop.keras.registry import LayerForm
from torch_trackckpt.interop.keras.saved import SavedLayer, SavedVariable
from torch_trackckpt.interop.keras.units import Unit

__all__ = ["Fit", "Pair", "Share", "aligned", "fit", "whole"]


@dataclasses.dataclass(frozen=True)
class Share:
    """The variables of a saved layer, or some of them, under the names that a rule expects."""

    layer: SavedLayer
    variables: Mapping[str, SavedVariable]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all of them."""
        return {name: variable.shape for name, variable in self.variables.items()}


@dataclasses.dataclass(frozen=True)
class Fit:
    """How well a unit is a layer."""

    form: LayerForm | None
    problems: tuple[str, ...] = ()
    """What does not fit; with the stored shapes and those of the module."""
    missing: tuple[str, ...] = ()
    """Variables that the layer should have."""

    @property
    def is_good(self) -> bool:
        """Whether everything fits and is there."""
        return not self.problems and not self.missing


@dataclasses.dataclass(frozen=True)
class Pair:
    """A unit, and what it is of a layer."""

    unit: Unit
    share: Share
    fit: Fit


def whole(layer: SavedLayer) -> Share:
    """All of a layer."""
    return Share(layer, layer.variables)


def fit(unit: Unit, share: Share) -> Fit:
    """Compares a unit with what is stored."""
    shapes = share.shapes
    form = unit.form(shapes)
    if form is None:
        return Fit(None, (f"a {unit.kind} is no layer with the variables {_listed(shapes)}",))
    if form.refused is not None:
        return Fit(form, (form.refused,))
    problems, missing = [], []
    for name, array in form.variables.items():
        if name not in shapes:
            if array.absent is None:
                missing.append(name)
        elif shapes[name] != array.shape:
            pieces = [(piece.name, list(_tensor_shape(unit, piece.name))) for piece in array.pieces]
            problems.append(
                f"{name} is {list(shapes[name])} in the checkpoint and {list(array.shape)} in the module, in Keras's "
                f"layout (in torch {', '.join(f'{tensor} {shape}' for tensor, shape in pieces)})"
            )
    extra = [name for name in shapes if name not in form.variables and name not in form.foreign]
    if extra:
        left = {name: shapes[name] for name in extra}
        problems.append(f"the layer has {_listed(left)}, of which the {unit.kind} has nothing ({unit.shapes})")
    return Fit(form, tuple(problems), tuple(missing))


def aligned(units: Sequence[Unit], layers: Sequence[SavedLayer], *, lenient: bool = False) -> list[Pair] | None:
    """Pairs all units with all layers, in order.

    Args:
        units: of the module.
        layers: of the checkpoint.
        lenient: lets variables be missing where they should be there.

    Returns:
        None where they do not fit one another.
    """
    dead: set[tuple[int, int]] = set()
    # Each entry: where it is, the pairs that led there, and the ways that are left to try.
    path: list[tuple[int, int, list[tuple[int, int, list[Pair]]]]] = []
    steps: list[list[Pair]] = []
    at = (0, 0)
    while at != (len(units), len(layers)):
        ways = [] if at in dead else _ways(units, layers, *at, lenient=lenient)
        path.append((*at, ways))
        steps.append([])
        while path and not path[-1][2]:
            dead.add(path.pop()[:2])
            steps.pop()
        if not path:
            return None
        unit_index, layer_index, left = path[-1]
        taken_units, taken_layers, pairs = left.pop(0)
        steps[-1] = pairs
        at = (unit_index + taken_units, layer_index + taken_layers)
    return [pair for pairs in steps for pair in pairs]


def _ways(
    units: Sequence[Unit], layers: Sequence[SavedLayer], unit_index: int, layer_index: int, *, lenient: bool
) -> list[tuple[int, int, list[Pair]]]:
    """How many units and layers may be next, and their pairs."""
    found: list[tuple[int, int, list[Pair]]] = []
    if unit_index == len(units) or layer_index == len(layers):
        return found
    unit, layer = units[unit_index], layers[layer_index]

    def attempt(some: Sequence[Unit], shares: Sequence[Share], taken_units: int, taken_layers: int) -> None:
        if len(some) != len(shares):
            return
        pairs = []
        for each, share in zip(some, shares, strict=True):
            result = fit(each, share)
            if result.problems or (result.missing and not (lenient or _may_lack(result, share))):
                return
            pairs.append(Pair(each, share, result))
        found.append((taken_units, taken_layers, pairs))

    attempt([unit], [whole(layer)], 1, 1)
    if shares := _shares(layer):
        attempt(units[unit_index : unit_index + len(shares)], shares, len(shares), 1)
    if unit.parts:
        some = layers[layer_index : layer_index + len(unit.parts)]
        attempt(unit.parts, [whole(each) for each in some], 1, len(some))
    return found


def _may_lack(result: Fit, share: Share) -> bool:
    """Keras 3 does not store what is not trained of layers that only its optimizer knows."""
    assert result.form is not None
    return share.layer.is_loose and all(name.startswith("moving_") for name in result.missing)


def _shares(layer: SavedLayer) -> list[Share]:
    """A layer as several, where it can be seen so."""
    parts = parts_of_saved(layer.variables.keys())
    return [Share(layer, {own: layer.variables[name] for own, name in names.items()}) for names in parts.values()]


def _tensor_shape(unit: Unit, name: str) -> tuple[int, ...]:
    path, _, own = name.rpartition(".")
    tensor = getattr(unit.module.get_submodule(path), own)
    return tuple(tensor.shape)


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
