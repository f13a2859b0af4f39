"""Which module goes with which saved layer.

    map      what the caller says
    name     the dotted name of the module is the name or the path of the layer; or their last parts agree, where no
             other module and no other layer has the same
    order    all that is left fits, one after the other, shape by shape
    shape    else those that fit one layer only, which fits nothing else

What is left then is an error that shows both sides: nothing is guessed. So is a shape that does not fit.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from torch_trackckpt.errors import MismatchError
from torch_trackckpt.interop.keras.arrays import KerasArray, Piece
from torch_trackckpt.interop.keras.bound import BoundVariable
from torch_trackckpt.interop.keras.bound_model import Absent, BoundLayer, BoundModel, Foreign
from torch_trackckpt.interop.keras.fit import Pair, aligned, fit, whole
from torch_trackckpt.interop.keras.given_map import KerasMap, from_torch
from torch_trackckpt.interop.keras.inexact import Inexact
from torch_trackckpt.interop.keras.layers.sonnet import sonnet_form
from torch_trackckpt.interop.keras.misfit import (
    NOT_STORED,
    nearest,
    refusals,
    side_by_side,
    surplus,
    without_rule,
)
from torch_trackckpt.interop.keras.naming import (
    common_first,
    counted,
    last_part,
    last_parts,
    name_of_class,
    parent_of,
    plain,
    texts,
    variable_texts,
)
from torch_trackckpt.interop.keras.registry import LayerForm
from torch_trackckpt.interop.keras.saved import Flavor, SavedLayer, SavedModel, SavedVariable, canonical
from torch_trackckpt.interop.keras.units import AfterFlatten, Net, Raw, Unit

__all__ = ["Absent", "BoundLayer", "BoundModel", "Foreign", "bind", "bind_alone"]


def bind(
    module: nn.Module,
    saved: SavedModel,
    map: KerasMap | None = None,
    after_flatten: AfterFlatten | None = None,
) -> BoundModel:
    """Finds the layers of a saved model for a module.

    Raises:
        MismatchError: they do not fit together, or it is not clear how; the text shows both sides.
    """
    if not map:
        _check_kind(saved)
    binder = _Binder(Net(module, after_flatten), saved)
    binder.by_map(map or {})
    binder.by_name()
    binder.by_order()
    binder.check()
    return binder.result()


def bind_alone(net: Net, flavor: Flavor) -> BoundModel:
    """A module's tensors as Keras variables, where nothing is saved: each unit is one layer, or each of its parts is.

    Raises:
        MismatchError: a module has no rule, or cannot be a layer of Keras.
    """
    parameters = [raw for raw in net.raw if raw.is_parameter and raw.module is not net.module]
    if parameters and flavor is not Flavor.SONNET:
        raise MismatchError(without_rule(parameters, ()))
    doubts = _check_flatten(net, net.units)
    pairs: list[tuple[str, LayerForm, tuple[BoundVariable, ...]]] = []
    inexact = doubts
    for raw in net.raw:
        if raw.is_parameter:
            array = KerasArray((Piece(raw.own_name),), tuple(raw.tensor.shape))
            own = (BoundVariable(raw.module, raw.module_name, array, "", raw.own_name),)
            pairs.append((raw.name, LayerForm("", {raw.own_name: array}), own))
    for unit in net.units:
        for each in (unit,) if unit.form(None) is not None else unit.parts:
            is_sonnet = flavor is Flavor.SONNET
            form = sonnet_form(each.module, each.rule, None) if is_sonnet else each.form(None)
            if form is None or form.refused:
                reason = form.refused if form else f"it is no {'module of Sonnet' if is_sonnet else 'layer of Keras'}"
                raise MismatchError(f"{each.name} ({each.kind}): {reason}.")
            made = tuple(
                BoundVariable(each.module, each.module_name, array, each.name, name)
                for name, array in form.variables.items()
            )
            pairs.append((each.name, form, made))
            inexact += _inexact_of(each, form)
    variables = tuple(variable for _, _, some in pairs for variable in some)
    table = tuple(BoundLayer(name, "", "", form.keras, "layout") for name, form, _ in pairs)
    return BoundModel(variables, flavor, pairs=tuple(pairs), inexact=tuple(inexact), table=table)


def _check_kind(saved: SavedModel) -> None:
    names = {name for layer in saved.layers for name in layer.variables} & {"weight", "running_mean"}
    if names:
        raise MismatchError(
            f"{saved.path} has variables of the name {', '.join(sorted(names))}, as PyTorch calls them: it is not a "
            "checkpoint of Keras. Checkpoint(model=net).restore(path) reads those of this package."
        )


class _Binder:
    """Takes pairs away from both sides until nothing is left."""

    def __init__(self, net: Net, saved: SavedModel) -> None:
        self._net = net
        self._saved = saved
        self._units = list(net.units)
        self._raw = list(net.raw)
        self._layers = list(saved.layers)
        self._pairs: list[tuple[Pair, str]] = []
        self._raw_pairs: list[tuple[Raw, SavedLayer, SavedVariable, str]] = []
        self._left_out: list[str] = []
        self._doubts: list[Inexact] = []
        self._shared_name = common_first([layer.name for layer in saved.layers])
        self._miscounted = self._classes_counted_otherwise()

    # By the caller's map.

    def by_map(self, given: KerasMap) -> None:
        """Takes what the caller has paired."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for name, keras in from_torch(given, self._is_torch, self._is_keras).items():
            if keras is None:
                self._leave_out(name)
            else:
                groups.setdefault((keras,) if isinstance(keras, str) else tuple(keras), []).append(name)
        for keras_names, torch_names in groups.items():
            raw = [each for each in self._raw_named(torch_names) if each is not None]
            if raw:
                self._map_raw(raw, keras_names)
                continue
            units = [unit for name in torch_names for unit in self._units_named(name)]
            layers = [layer for name in keras_names for layer in self._layers_named(name)]
            self._take(units, layers, "map")

    def _is_torch(self, name: str) -> bool:
        return self._is_module(name) or any(raw.name == name for raw in self._net.raw)

    def _is_keras(self, name: str) -> bool:
        wanted = self._without_root(name)
        return bool(self._layers_of(name)) or any(
            wanted in variable_texts(layer, variable) or variable.name == name
            for layer, variable in self._free_variables()
        )

    def _leave_out(self, name: str) -> None:
        if not self._is_torch(name) and (layers := self._layers_of(name)):
            for layer in layers:
                self._layers.remove(layer)
            return
        raw = [each for each in self._raw if each.name == name or each.name.startswith(f"{name}.")]
        units = self._units_named(name) if not raw or self._is_module(name) else []
        for each in raw:
            self._raw.remove(each)
        for unit in units:
            self._remove_unit(unit)
        self._left_out.append(name)

    def _is_module(self, name: str) -> bool:
        return self._net.unit(name) is not None or name in self._net.containers

    def _units_named(self, name: str) -> list[Unit]:
        unit = self._net.unit(name)
        found = [unit] if unit is not None else self._net.containers.get(name, [])
        known = [u for u in found if u in self._units or any(u in other.parts for other in self._units)]
        if not known:
            names = [*(each.name for each in self._net.units), *self._net.containers, *(r.name for r in self._net.raw)]
            is_turned = any(plain(name) in {plain(text) for text in texts(layer)} for layer in self._saved.layers)
            told = " It is one of Keras, but not all that map says can be read in this direction." if is_turned else ""
            raise MismatchError(
                f"map names {name!r}, which is no layer of the net, or is there twice.{told} "
                f"{nearest(name, [each for each in names if each])}"
            )
        return known

    def _raw_named(self, names: Sequence[str]) -> list[Raw | None]:
        return [next((raw for raw in self._raw if raw.name == name), None) for name in names]

    def _layers_of(self, name: str) -> list[SavedLayer]:
        """A layer by any of its names; or all below a path, which a nested model has."""
        wanted = self._without_root(name)
        exact = [layer for layer in self._layers if wanted in {plain(text) for text in texts(layer)}]
        if not exact:
            alike = [layer for layer in self._layers if wanted in last_parts(layer)]
            exact = alike if len(alike) == 1 else []
        if not exact:
            exact = [
                layer for layer in self._layers if any(plain(text).startswith(f"{wanted}.") for text in texts(layer))
            ]
        return exact

    def _layers_named(self, name: str) -> list[SavedLayer]:
        exact = self._layers_of(name)
        if not exact:
            names = [text for layer in self._saved.layers for text in (layer.name, layer.path) if text]
            raise MismatchError(
                f"map names {name!r}, which is no layer of {self._saved.path} in the checkpoint, or is there twice. "
                f"{nearest(name, names)}"
            )
        return exact

    def _without_root(self, name: str) -> str:
        root = plain(self._saved.path.removeprefix("(root)").removeprefix("."))
        wanted = plain(name)
        return wanted.removeprefix(f"{root}.") if root else wanted

    def _map_raw(self, raw: Sequence[Raw], keras_names: Sequence[str]) -> None:
        if len(raw) != 1 or len(keras_names) != 1:
            raise MismatchError(
                f"map pairs {', '.join(each.name for each in raw)} with {', '.join(keras_names)}: a parameter goes "
                "with one variable."
            )
        found = [
            (layer, variable)
            for layer, variable in self._free_variables()
            if self._without_root(keras_names[0]) in variable_texts(layer, variable)
        ]
        if not found:
            found = [(lay, variable) for lay, variable in self._free_variables() if variable.name == keras_names[0]]
        if len(found) != 1:
            names = [f"{layer.path or layer.name}/{v.name}" for layer, v in self._free_variables()]
            raise MismatchError(
                f"map names {keras_names[0]!r} for the parameter {raw[0].name}; {len(found) or 'no'} variables of "
                f"{self._saved.path} go by that. {nearest(keras_names[0], names)}"
            )
        self._take_raw(raw[0], *found[0], "map")

    # By names.

    def by_name(self) -> None:
        """Takes what has the same names on both sides."""
        for raw in list(self._raw):
            found = [
                (layer, variable)
                for layer, variable in self._free_variables()
                if plain(raw.name) in variable_texts(layer, variable)
            ]
            if len(found) == 1:
                self._take_raw(raw, *found[0], "name")
        self._by_full_name()
        self._by_last_name()
        variables = list(self._free_variables())
        lasts = Counter(variable.name.rpartition("/")[2] for _, variable in variables)
        own = Counter(raw.own_name for raw in self._raw)
        for raw in list(self._raw):
            found = [(lay, v) for lay, v in variables if v.name.rpartition("/")[2] == canonical(raw.own_name)]
            is_only_one = len(found) == 1 == own[raw.own_name] == lasts[canonical(raw.own_name)]
            if is_only_one and raw.is_parameter and found[0][1].shape == tuple(raw.tensor.shape):
                self._take_raw(raw, *found[0], "name")

    def _by_full_name(self) -> None:
        layers_of: dict[str, list[SavedLayer]] = {}
        for layer in self._layers:
            for text in {plain(each) for each in self._own_texts(layer)} - {""}:
                layers_of.setdefault(text, []).append(layer)
        numbered = self._trusted_numbers(layers_of)
        for names, units in self._groups():
            for name in names:
                text = plain(name)
                found = [layer for layer in layers_of.get(text, ()) if layer in self._layers]
                is_free = all(unit in self._units for unit in units)
                if is_free and len(found) == 1 and (not last_part(text).isdigit() or parent_of(text) in numbered):
                    self._take_named(units, found[0])

    def _by_last_name(self) -> None:
        """Where neither side has it twice."""
        groups = [(names, units) for names, units in self._groups() if all(unit in self._units for unit in units)]
        torch_lasts = Counter(last for names, _ in groups for last in {last_part(plain(name)) for name in names})
        keras_lasts = Counter(last for layer in self._layers for last in last_parts(self._told(layer)))
        for names, units in groups:
            for last in {last_part(plain(name)) for name in names}:
                if not last or last.isdigit() or torch_lasts[last] != 1 or keras_lasts[last] != 1:
                    continue
                found = [layer for layer in self._layers if last in last_parts(self._told(layer))]
                if found and all(unit in self._units for unit in units):
                    self._take_named(units, found[0])

    def _take_named(self, units: Sequence[Unit], layer: SavedLayer) -> None:
        # A container that is not one layer has a name that means nothing to this one.
        is_itself = len(units) == 1 and not units[0].is_part and self._net.unit(units[0].name) is units[0]
        if is_itself or aligned(units, [layer], lenient=True) is not None:
            self._take(units, [layer], "name")

    def _groups(self) -> list[tuple[tuple[str, ...], list[Unit]]]:
        """Names, and the units that go by them: single ones first, then containers."""
        single = [(unit.names, [unit]) for unit in self._net.units]
        parts = [(part.names, [part]) for unit in self._net.units for part in unit.parts]
        return [*single, *((n, u) for n, u in parts if u[0] in self._units), *self._container_groups()]

    def _container_groups(self) -> list[tuple[tuple[str, ...], list[Unit]]]:
        return [((name,), list(units)) for name, units in self._net.containers.items() if name]

    def _own_texts(self, layer: SavedLayer) -> list[str]:
        layer = self._told(layer)
        found = list(texts(layer))
        if layer.name and self._shared_name:
            found.append(layer.name.removeprefix(f"{self._shared_name}/"))
        return found

    def _told(self, layer: SavedLayer) -> SavedLayer:
        """Without a name that is only a number of Keras's, which the net counts in another way."""
        is_count = counted(last_part(plain(layer.name)))[0] in self._miscounted
        return dataclasses.replace(layer, name="") if is_count else layer

    def _classes_counted_otherwise(self) -> set[str]:
        """Keras names layers by their class and counts them: ``dense``, ``dense_1``. Where the net has names of the
        kind, such as ``dense_1``, ``dense_2``, those tell something only if they are counted alike; and if it has
        fewer, only if none of the class has a name of another kind."""
        keras: dict[str, set[int]] = {}
        for layer in self._saved.layers:
            name, number = counted(last_part(plain(layer.name)))
            keras.setdefault(name, set()).add(number)
        torch_side: dict[str, set[int]] = {}
        otherwise = set()
        for unit in self._net.units:
            form = (unit.parts or (unit,))[0].form(None)
            own = name_of_class(form.keras) if form is not None else ""
            for last in {last_part(plain(name)) for name in unit.names}:
                name, number = counted(last)
                if name != own or unit.parts:
                    otherwise.add(own)
                if name == own:
                    torch_side.setdefault(own, set()).add(number)
        return {
            name
            for name, numbers in torch_side.items()
            if name in keras
            and numbers != keras[name]
            and (name in otherwise or not numbers < keras[name] or min(numbers) != min(keras[name]))
        }

    def _trusted_numbers(self, names: Iterable[str]) -> set[str]:
        """The lists whose elements have the same numbers on both sides: torch counts activations, Keras may not."""
        keras: dict[str, set[str]] = {}
        for text in names:
            if last_part(text).isdigit():
                keras.setdefault(parent_of(text), set()).add(last_part(text))
        torch_side: dict[str, set[str]] = {}
        for unit in self._net.units:
            for name in unit.names:
                parts = name.split(".")
                for depth, part in enumerate(parts):
                    if part.isdigit():
                        torch_side.setdefault(plain(".".join(parts[:depth])), set()).add(part)
        return {parent for parent, numbers in keras.items() if torch_side.get(parent) == numbers}

    # By order, then by shapes.

    def by_order(self) -> None:
        """Takes the rest, if all of it fits one after the other; else what fits in one way only."""
        if not self._units:
            return
        pairs = aligned(self._units, self._layers)
        if pairs is not None:
            self._check_turns(pairs)
            self._accept(pairs, "order")
            return
        fits = {(u, i): fit(u, whole(layer)).is_good for u in self._units for i, layer in enumerate(self._layers)}
        chosen = []
        for unit in self._units:
            places = [i for i in range(len(self._layers)) if fits[unit, i]]
            if len(places) == 1 and sum(fits[other, places[0]] for other in self._units) == 1:
                chosen.append((unit, self._layers[places[0]]))
        for unit, layer in chosen:
            share = whole(layer)
            self._accept([Pair(unit, share, fit(unit, share))], "shape")

    def _check_turns(self, pairs: Sequence[Pair]) -> None:
        """Refuses an order that names contradict, where the shapes would allow the names to be a coincidence."""
        units = {u.name: index for index, unit in enumerate(self._net.units) for u in (unit, *unit.parts)}
        layers = {layer.path: index for index, layer in enumerate(self._saved.layers)}
        named = [pair for pair, how in self._pairs if how == "name"]
        for one in pairs:
            for other in named:
                is_before = units[one.unit.name] < units[other.unit.name]
                if is_before == (layers[one.share.layer.path] < layers[other.share.layer.path]):
                    continue
                if all(fit(a.unit, b.share).is_good for a, b in ((one, other), (other, one))):
                    raise MismatchError(
                        f"{one.unit.name} would go with Keras's layer {one.share.layer.readable} by order, but comes "
                        f"{'before' if is_before else 'after'} {other.unit.name}, which has the name of Keras's layer "
                        f"{other.share.layer.readable}, where that order is the other way round; both fit both. Say "
                        f"which belong together: map={{{one.unit.name!r}: ..., {other.unit.name!r}: ...}}:\n"
                        f"{side_by_side(self._net.units, self._saved.layers)}"
                    )

    # Taking.

    def _take(self, units: Sequence[Unit], layers: Sequence[SavedLayer], how: str) -> None:
        pairs = aligned(units, layers) or aligned(units, layers, lenient=True)
        if pairs is None:
            raise MismatchError(self._misfit(units, layers, how))
        self._accept(pairs, how)

    def _accept(self, pairs: Sequence[Pair], how: str) -> None:
        for pair in pairs:
            self._pairs.append((pair, how))
            self._remove_unit(pair.unit)
            if pair.share.layer in self._layers:
                self._layers.remove(pair.share.layer)

    def _remove_unit(self, unit: Unit) -> None:
        if unit in self._units:
            self._units.remove(unit)
            return
        for index, other in enumerate(self._units):
            if unit in other.parts:
                # The others of its parts are layers of their own from now on.
                self._units[index : index + 1] = [part for part in other.parts if part != unit]
                return

    def _free_variables(self) -> Iterable[tuple[SavedLayer, SavedVariable]]:
        taken = {variable.node_id for _, _, variable, _ in self._raw_pairs}
        for layer in self._layers:
            for variable in layer.variables.values():
                if variable.node_id not in taken:
                    yield layer, variable

    def _take_raw(self, raw: Raw, layer: SavedLayer, variable: SavedVariable, how: str) -> None:
        if tuple(raw.tensor.shape) != variable.shape:
            raise MismatchError(
                f"{raw.name} goes with Keras's {layer.readable}/{variable.name} by {how}, but they do not fit: it is "
                f"{list(variable.shape)} in the checkpoint and {list(raw.tensor.shape)} in the module. Change the "
                f"module, or say map={{{raw.name!r}: ...}}; register_keras_layer tells of another layout."
            )
        self._raw_pairs.append((raw, layer, variable, how))
        self._raw.remove(raw)
        index = self._layers.index(layer)
        left = {name: each for name, each in layer.variables.items() if each.node_id != variable.node_id}
        self._layers[index : index + 1] = [dataclasses.replace(layer, variables=left)] if left else []

    # Errors.

    def _misfit(self, units: Sequence[Unit], layers: Sequence[SavedLayer], how: str) -> str:
        if len(units) == len(layers) == 1:
            unit, layer = units[0], layers[0]
            result = fit(unit, whole(layer))
            told = "; ".join([*result.problems, *(f"{name} is not stored" for name in result.missing)])
            return (
                f"{unit.name or 'The net'} ({unit.kind}) goes with Keras's layer {layer.readable} by {how}, but they "
                f"do not fit: {told}. Change the module"
                + (
                    "."
                    if how == "map"
                    else f", or pair it with another layer by map={{{unit.name!r}: ...}}, or leave it out by None."
                )
            )
        return (
            f"map pairs {len(units)} modules with {len(layers)} layers of Keras, which do not fit one another, one "
            f"after the other:\n{side_by_side(units, layers)}"
        )

    def check(self) -> None:
        """Refuses what is left over on either side."""
        parameters = [raw for raw in self._raw if raw.is_parameter]
        if parameters:
            raise MismatchError(without_rule(parameters, list(self._free_variables())))
        if self._units:
            raise MismatchError(self._left_over())
        if self._layers and any(how in ("order", "shape") for _, how in self._pairs):
            raise MismatchError(self._left_over())
        # Keras has its layers in the order of the data.
        places = {layer.path: index for index, layer in enumerate(self._saved.layers)}
        pairs = sorted((pair for pair, _ in self._pairs), key=lambda pair: places[pair.share.layer.path])
        self._doubts = _check_flatten(self._net, [pair.unit for pair in pairs])

    def _left_over(self) -> str:
        units, layers, path = self._units, self._layers, self._saved.path
        extra = surplus(units, layers)
        if not units:
            ways = [f"{p.unit.name!r}: {p.share.layer.name or p.share.layer.path!r}" for p, _ in self._pairs]
            found = ", ".join([*ways, *(f"{name!r}: None" for name in self._left_out)])
            told = (
                f"{', '.join(layer.readable for layer in layers)} of {path} in the checkpoint "
                f"{'have' if len(layers) > 1 else 'has'} no module in the net. Layers of Keras may be left over only "
                f"where the caller's map, or names, pair all modules. If this is right, say map={{{found}}}"
            )
        elif extra:
            names = ", ".join(unit.name or "The net" for unit in extra)
            plural = len(extra) > 1
            way = ", ".join(f"{unit.name!r}: None" for unit in extra)
            told = (
                f"{names} ({', '.join(unit.kind for unit in extra)}; {'; '.join(u.shapes for u in extra)}) "
                f"{'have' if plural else 'has'} no layer in {path} of the checkpoint. If Keras has no such "
                f"layer{'s' if plural else ''}, say map={{{way}}}"
            )
            if self._saved.flavor is Flavor.KERAS3:
                told += f" {NOT_STORED}"
        else:
            example = (units[0].name, layers[0].name or layers[0].path)
            told = (
                f"{len(units)} of the net's modules and {len(layers)} of Keras's layers in {path} are left over, which "
                "names do not pair, and which do not fit one another in their order. Say which belong together: "
                f"map={{{example[0]!r}: {example[1]!r}, ...}}; None leaves a module out"
            )
            if self._saved.flavor is Flavor.KERAS3 and len(units) > len(layers):
                told += f" {NOT_STORED}"
        told += "".join(f". {reason}" for reason in refusals(units, layers))
        if units and len(units) == len(layers):
            told += ". One after the other:"
            for unit, layer in zip(units, layers, strict=True):
                if problems := fit(unit, whole(layer)).problems:
                    told += f"\n  {unit.name or '(the net)'} is not {layer.readable}: {'; '.join(problems)}"
            told += "\nBoth sides"
        return f"{told}:\n{side_by_side(units, layers)}"

    # What came of it.

    def result(self) -> BoundModel:
        """The variables, in Keras's order."""
        by_node: dict[int, BoundVariable] = {}
        foreign: list[Foreign] = []
        absent: list[Absent] = []
        inexact = list(self._doubts)
        unmatched: list[str] = [raw.name for raw in self._raw]
        table: list[BoundLayer] = []
        places: list[tuple[int, BoundLayer]] = []
        order = [variable.node_id for layer in self._saved.layers for variable in layer.variables.values()]
        pairs: list[tuple[str, LayerForm, tuple[BoundVariable, ...]]] = []
        for pair, how in self._pairs:
            unit, share, form = pair.unit, pair.share, pair.fit.form
            assert form is not None
            layer = share.layer.readable
            made = []
            for name, saved in share.variables.items():
                if name in form.variables:
                    variable = BoundVariable(unit.module, unit.module_name, form.variables[name], layer, saved.name)
                    variable.keras_path = f"{share.layer.path}/{saved.name}"
                    variable.full_name = saved.full_name
                    _check_registered(variable)
                    by_node[saved.node_id] = variable
                    made.append(variable)
                elif name in form.foreign:
                    foreign.append(Foreign(saved, layer, unit.module, form.foreign[name]))
            for name, array in form.variables.items():
                if name in share.variables:
                    continue
                variable = BoundVariable(unit.module, unit.module_name, array, layer, name)
                if array.absent is None:
                    unmatched += [variable.torch_name(piece) for piece in array.pieces]
                    continue
                absent.append(Absent(variable, array.absent))
                made[0].constants.append((variable, array.absent))
            inexact += _inexact_of(unit, form)
            pairs.append((unit.name, form, tuple(made)))
            line = BoundLayer(unit.name, unit.kind, layer, form.keras, how)
            places.append((order.index(next(iter(share.variables.values())).node_id), line))
        for raw, saved_layer, saved, how in self._raw_pairs:
            array = KerasArray((Piece(raw.own_name),), saved.shape)
            variable = BoundVariable(raw.module, raw.module_name, array, saved_layer.readable, saved.name)
            variable.keras_path = f"{saved_layer.path}/{saved.name}"
            variable.full_name = saved.full_name
            by_node[saved.node_id] = variable
            kind = "Parameter" if raw.is_parameter else "buffer"
            places.append((order.index(saved.node_id), BoundLayer(raw.name, kind, variable.readable, "", how)))
        table = [line for _, line in sorted(places, key=lambda place: place[0])]
        table += [BoundLayer(name, "", "", "", "left out") for name in self._left_out]
        known = {*by_node, *(each.saved.node_id for each in foreign)}
        unused = [v for layer in self._saved.layers for v in layer.variables.values() if v.node_id not in known]
        _check_tied(by_node)
        return BoundModel(
            tuple(by_node[node_id] for node_id in order if node_id in by_node),
            self._saved.flavor,
            self._saved.graph,
            by_node,
            self._saved,
            tuple(table),
            tuple(unmatched),
            tuple(unused),
            tuple(foreign),
            tuple(absent),
            tuple(inexact),
            tuple(pairs),
        )


def _inexact_of(unit: Unit, form: LayerForm) -> list[Inexact]:
    prefix = unit.module_name
    return [
        Inexact(f"{prefix}.{name}" if name and prefix else name or prefix or unit.kind, reason)
        for name, reason in form.inexact.items()
    ]


def _check_registered(variable: BoundVariable) -> None:
    """Refuses tensors that are computed whenever they are asked for: a value would not stay there."""
    for piece in variable.array.pieces:
        path, _, own = piece.name.rpartition(".")
        owner = variable.module.get_submodule(path)
        if own not in owner._parameters and own not in owner._buffers:
            raise MismatchError(
                f"{variable.torch_name(piece)} is neither a parameter nor a buffer but computed, as by a "
                "parametrization (weight_norm, spectral_norm), so that it cannot be given a value. Load first and "
                "parametrize afterwards, or register a rule for the parameters by register_keras_layer."
            )


def _check_tied(by_node: Mapping[int, BoundVariable]) -> None:
    """Refuses two stored variables for one tensor."""
    owners: dict[tuple[int, int | None], BoundVariable] = {}
    for variable in by_node.values():
        for piece in variable.array.pieces:
            tensor = variable.tensor(piece.name)
            other = owners.setdefault((id(tensor), piece.begin), variable)
            if other is not variable:
                raise MismatchError(
                    f"{variable.torch_name(piece)} and a tensor of {other.module_name} are one and the same, but Keras "
                    f"stores {other.readable} and {variable.readable} as two variables. Untie them, or leave one "
                    f"module out: map={{{variable.module_name!r}: None}}."
                )


def _check_flatten(net: Net, units: Iterable[Unit]) -> list[Inexact]:
    """Refuses feature maps of which nothing is said; tells of those that are said in torch's order, as it seems."""
    doubts = []
    for unit, size, channels in net.flattened(units):
        try:
            feature_map = net.feature_map(unit)
        except KeyError:
            raise _undecided(unit, size, channels) from None
        if feature_map is not None and feature_map[0] == channels != feature_map[-1]:
            reason = (
                f"after_flatten has {tuple(feature_map)}, which is height, width and channels, but the convolution "
                f"before has {channels} channels; if it is torch's order, say {(*feature_map[1:], channels)}"
            )
            doubts.append(Inexact(unit.name, reason))
    return doubts


def _undecided(unit: Unit, size: int, channels: int) -> MismatchError:
    return MismatchError(
        f"{unit.name} ({unit.kind}, {size} inputs) comes after a convolution with {channels} channels: if a "
        f"feature map of {size // channels} places is flattened in front of it, the order of its inputs is another "
        "in Keras, where channels come last, and no shape tells. Say after_flatten="
        f"{{{unit.name!r}: (height, width, {channels})}}, the feature map's shape; or "
        f"after_flatten={{{unit.name!r}: None}} if nothing is flattened there, or the net flattens with "
        "channels last as Keras does."
    )
