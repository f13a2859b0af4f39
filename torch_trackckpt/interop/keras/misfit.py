"""What errors show of modules and layers that do not go together."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch_trackckpt.interop.keras.fit import fit, whole
from torch_trackckpt.interop.keras.saved import SavedLayer, SavedVariable
from torch_trackckpt.interop.keras.units import Raw, Unit

__all__ = ["NOT_STORED", "nearest", "refusals", "side_by_side", "surplus", "without_rule"]

_MOST_LINES = 20

NOT_STORED = (
    "(Keras 3 does not store layers in lists or dicts that are attributes, except for the weights that an optimizer of "
    "the checkpoint trains)"
)


def without_rule(parameters: Sequence[Raw], free: Sequence[tuple[SavedLayer, SavedVariable]]) -> str:
    """Of parameters that neither a rule nor a name takes.

    Args:
        parameters: those.
        free: the variables that nothing has taken either.
    """
    told = (
        f"No rule tells what Keras calls {', '.join(raw.name for raw in parameters)}, and no variable has a name of "
        "the kind. Register one for the class of the module, register_keras_layer(kind, rule), or pair parameter and "
        f"variable: map={{{parameters[0].name!r}: 'layer/variable'}}; None leaves it out."
    )
    for raw in parameters[:_MOST_LINES]:
        alike = [
            f"{layer.name or layer.path}/{variable.name}".lstrip("/")
            for layer, variable in free
            if variable.shape == tuple(raw.tensor.shape)
        ]
        told += f"\n    {raw.name} {list(raw.tensor.shape)}" + (f"  fits {', '.join(alike[:5])}" if alike else "")
    return told


def surplus(units: Sequence[Unit], layers: Sequence[SavedLayer]) -> list[Unit]:
    """The units that are clearly too many: all others fit the layers in their order, and these fit none of them."""
    fits = [[fit(unit, whole(layer)).is_good for layer in layers] for unit in units]
    rows, columns = len(units), len(layers)
    longest = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in reversed(range(rows)):
        for j in reversed(range(columns)):
            longest[i][j] = max(longest[i + 1][j], longest[i][j + 1], longest[i + 1][j + 1] + fits[i][j])
    if longest[0][0] < columns:
        return []
    left: list[int] = []
    i = j = 0
    while i < rows:
        if j < columns and fits[i][j] and longest[i][j] == longest[i + 1][j + 1] + 1:
            i, j = i + 1, j + 1
        elif j < columns and longest[i][j] == longest[i][j + 1]:
            j += 1
        else:
            left.append(i)
            i += 1
    return [] if any(any(fits[index]) for index in left) else [units[index] for index in left]


def refusals(units: Sequence[Unit], layers: Sequence[SavedLayer]) -> list[str]:
    """Why a unit that fits no layer cannot be one of those that nothing fits, where a rule says so."""
    fits = {(u, i): fit(u, whole(layer)) for u in units for i, layer in enumerate(layers)}
    alone = [i for i in range(len(layers)) if not any(fits[unit, i].is_good for unit in units)]
    found: dict[str, str] = {}
    for unit in units:
        if any(fits[unit, i].is_good for i in range(len(layers))):
            continue
        for i in alone:
            form = fits[unit, i].form
            if form is not None and form.refused is not None:
                found.setdefault(
                    form.refused, f"{unit.name or 'The net'} cannot be {layers[i].readable}: {form.refused}"
                )
    return list(found.values())


def side_by_side(units: Sequence[Unit], layers: Sequence[SavedLayer]) -> str:
    """Both sides, one below the other, with all shapes, and candidates."""
    lines = ["  the net has"] if units else []
    for unit in units[:_MOST_LINES]:
        form = unit.form(None)
        shapes = {} if form is None else {name: array.shape for name, array in form.variables.items()}
        keras = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        fitting = [layer.readable for layer in layers if fit(unit, whole(layer)).is_good]
        told = f"; fits {', '.join(fitting)}" if fitting else ""
        lines.append(
            f"    {unit.name or '(the net)'}  {unit.kind} ({unit.shapes})  in Keras's layout {keras or '-'}{told}"
        )
    lines += [f"    and {len(units) - _MOST_LINES} more"] if len(units) > _MOST_LINES else []
    lines += ["  Keras has"] if layers else []
    for layer in layers[:_MOST_LINES]:
        stored = ", ".join(f"{name} {list(shape)}" for name, shape in layer.shapes.items())
        lines.append(f"    {layer.readable}  {stored}")
    lines += [f"    and {len(layers) - _MOST_LINES} more"] if len(layers) > _MOST_LINES else []
    return "\n".join(lines)


def nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3) or list(names[:10])
    return f"There is {', '.join(dict.fromkeys(near)) or 'nothing'}."
