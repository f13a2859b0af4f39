"""The names under which a Keras program looks for its variables, where no checkpoint tells.

    Keras 3     Sequential    _functional/_operations/N    N counts all layers, from 1; 0 is the InputLayer
                functional    _operations/N                N counts all operations, with inputs, ``a + b``, masks
                subclassed    attribute/..., attribute/N/...
    tf_keras    Sequential,   layer_with_weights-N         N counts the layers that have weights
                functional    layer-M                      M counts all layers
                subclassed    attribute/...
    Sonnet                    attribute/...

How many layers without weights Keras has in between, torch cannot know; ``layers`` says it. What a checkpoint of the
Keras program itself (``like=``) tells is surer than any of this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Union

from torch import nn

from torch_trackckpt.errors import MismatchError
from torch_trackckpt.interop.keras.binding import bind_alone
from torch_trackckpt.interop.keras.bound import BoundVariable
from torch_trackckpt.interop.keras.bound_model import BoundModel
from torch_trackckpt.interop.keras.edges import edges_of
from torch_trackckpt.interop.keras.leaves import Made
from torch_trackckpt.interop.keras.registry import LayerForm
from torch_trackckpt.interop.keras.saved import Flavor
from torch_trackckpt.interop.keras.units import Net
from torch_trackckpt.trackable import Trackable

__all__ = ["Flavor", "Layers", "Tree", "lay_out"]

Layers = Sequence[str | Sequence[str]]
"""The layers of a Keras model in the order of ``model.layers``, as names of torch modules; what is no name of one is a
layer without weights; several names are one layer, as two convolutions are a SeparableConv. A functional model's begin
with its inputs, those of a Sequential do not."""

Tree = dict[str, Union["Tree", Trackable]]
"""Edges and what they lead to."""


def lay_out(
    net: Net, flavor: Flavor, layers: Layers | None = None, sequential: bool | None = None
) -> tuple[BoundModel, Tree]:
    """The names of a module's tensors in a Keras model of a flavor.

    Args:
        net: the module.
        flavor: of the program that is to read them.
        layers: see `Layers`; without, a module that is no ``nn.Sequential`` is a subclassed Keras model with
            attributes of the same names.
        sequential: whether ``layers`` are those of a Sequential; None where either may be.

    Raises:
        MismatchError: the names depend on what only ``layers``, or a checkpoint, can tell.
    """
    bound = bind_alone(net, flavor)
    tree = _tree(net, bound, layers, sequential)
    variables: dict[int, BoundVariable] = {}
    _find_variables(tree, variables)
    if layers is not None:
        # Their paths are numbers, in an order that need not be that of torch's modules.
        for variable in variables.values():
            variable.full_name = _name_in_torch(variable)
    # Optimizers have what they keep in the order of Keras's layers, which is not that of torch's modules.
    return dataclasses.replace(bound, variables=tuple(variables.values())), tree


def _name_in_torch(variable: BoundVariable) -> str:
    """A name as Keras makes them, of that of the module; numbers are no names."""
    parts = variable.layer.split(".")
    return "" if any(not part or part.isdigit() for part in parts) else "/".join([*parts, variable.name])


def _find_variables(tree: Tree, found: dict[int, BoundVariable]) -> None:
    """Those of a tree, each once; tells them where they are."""
    todo: list[tuple[str, Tree | Trackable]] = [("", tree)]
    while todo:
        path, each = todo.pop()
        if isinstance(each, BoundVariable):
            if found.setdefault(id(each), each) is each and not each.keras_path:
                each.keras_path = path
        elif not isinstance(each, Trackable):
            todo += [(f"{path}/{name}" if path else name, below) for name, below in reversed(each.items())]


def _tree(net: Net, bound: BoundModel, layers: Layers | None, sequential: bool | None) -> Tree:
    flavor = bound.flavor
    found = {name: (form, variables) for name, form, variables in bound.pairs}
    layouter = _Layouter(flavor, found)
    if layers is not None:
        if bound.flavor is not Flavor.KERAS3 and sequential is None:
            sequential = isinstance(net.module, nn.Sequential)
        return layouter.listed(layers, sequential)
    if isinstance(net.module, nn.Sequential) and flavor is not Flavor.SONNET:
        names = [name for name, child in net.module._modules.items() if child is not None]
        weightless = [name for name in names if name not in found]
        if flavor is Flavor.KERAS3 and weightless:
            known = [
                f"{name!r}" if name in found else f"a {type(net.module._modules[name]).__name__}" for name in names
            ]
            raise MismatchError(
                "Keras 3 numbers all layers of a Sequential, also those without weights, and torch cannot know which "
                f"Keras has: {', '.join(weightless)} may be layers there or not. Say layers=[...], Keras's "
                f"model.layers in order with the names of torch's modules ({', '.join(known)}) and any other word for "
                "a layer without weights; or like=, a checkpoint of the Keras program."
            )
        return layouter.listed(names, True)
    return layouter.by_attributes(net)


def _numbered(nodes: Sequence[Tree]) -> Tree:
    return {str(index): node for index, node in enumerate(nodes) if node}


class _Layouter:
    def __init__(self, flavor: Flavor, found: Mapping[str, tuple[LayerForm, tuple[BoundVariable, ...]]]) -> None:
        self._flavor = flavor
        self._found = found

    def listed(self, layers: Layers, sequential: bool | None) -> Tree:
        """A Sequential or functional model."""
        if self._flavor is Flavor.SONNET:
            raise MismatchError("layers= is for Keras: Sonnet's modules have the names of attributes.")
        names = [each if isinstance(each, str) else tuple(each) for each in layers]
        flat = [name for each in names for name in ((each,) if isinstance(each, str) else each)]
        lacking = [name for name in self._found if name not in flat]
        if lacking or len(set(flat) & self._found.keys()) != sum(name in self._found for name in flat):
            raise MismatchError(
                f"layers lists {', '.join(map(str, names))}, but the net's layers with weights are "
                f"{', '.join(self._found)}; each has to be there once"
                + (f", and {', '.join(lacking)} {'are' if len(lacking) > 1 else 'is'} missing." if lacking else ".")
            )
        nodes = [self._node(each) for each in names]
        if self._flavor is not Flavor.KERAS3:
            tree: Tree = {}
            with_weights = [node for node in nodes if node]
            tree |= {f"layer_with_weights-{index}": node for index, node in enumerate(with_weights)}
            if len(with_weights) < len(nodes) or not sequential:
                tree |= {f"layer-{index}": node for index, node in enumerate(nodes) if node}
            return tree
        numbered = _numbered(nodes)
        begins_with_input = isinstance(names[0], str) and names[0].lower().startswith("input")
        of_functional: Tree = {"_operations": numbered}
        of_sequential: Tree = {
            "_functional": {"_operations": numbered if begins_with_input else _numbered([{}, *nodes])}
        }
        if sequential or (sequential is None and nodes[0]):
            # What begins with weights has no input in the list, as a Sequential has none.
            return of_sequential
        # The first may be an input, or a layer of a Sequential: neither looks where the other does.
        return of_functional if sequential is False else of_functional | of_sequential

    def by_attributes(self, net: Net) -> Tree:
        """A subclassed model."""
        tree: Tree = {}
        for name, (form, variables) in self._found.items():
            node = tree
            *above, last = name.split(".") if name else [""]
            path = ""
            for part in above:
                path = f"{path}.{part}" if path else part
                self._check_container(net, path)
                below = node.setdefault(part, {})
                assert isinstance(below, dict)
                node = below
            if not form.keras:
                node[last] = variables[0]
            elif last:
                node[last] = self._edges(form, variables)
            else:
                node.update(self._edges(form, variables))
        return tree

    def _check_container(self, net: Net, path: str) -> None:
        if isinstance(net.module.get_submodule(path), nn.Sequential) and self._flavor is not Flavor.SONNET:
            raise MismatchError(
                f"{path} is a Sequential inside of a model: whether Keras has a Sequential there as well, and with "
                "which layers without weights, torch cannot know. Give like=, a checkpoint of the Keras program."
            )

    def _node(self, name: str | tuple[str, ...]) -> Tree:
        if not isinstance(name, str):
            return self._separable(name)
        return self._edges(*self._found[name]) if name in self._found else {}

    def _separable(self, names: Sequence[str]) -> Tree:
        """Two convolutions that are one layer."""
        unknown = [name for name in names if name not in self._found]
        kinds = [] if unknown else [self._found[name][0].keras for name in names]
        if len(kinds) != 2 or not (kinds[0].startswith("Depthwise") and kinds[1].startswith("Conv")):
            raise MismatchError(
                f"layers has {', '.join(names)} as one layer; only a depthwise convolution and the one after it are "
                "one, a SeparableConv."
            )
        first, second = (self._found[name][1] for name in names)
        tree: Tree = {"depthwise_kernel": first[0]}
        for variable in second:
            tree["pointwise_kernel" if variable.name == "kernel" else variable.name] = variable
        return tree

    def _edges(self, form: LayerForm, variables: Sequence[BoundVariable]) -> Tree:
        tree: Tree = {}
        generation = "tf_keras" if self._flavor is Flavor.TF_KERAS_LEGACY_OPTIMIZER else self._flavor.value
        leaves: dict[str, Trackable] = {variable.name: variable for variable in variables}
        for name, make in form.foreign.items():
            if make is None:
                raise MismatchError(
                    f"{form.keras} has a variable {name!r}, which torch has nothing like: give like=, a checkpoint "
                    "that has its value."
                )
            leaves[name] = Made(variables[0].module, make)
        for name, leaf in leaves.items():
            *above, last = edges_of(generation, form.keras, name)
            node = tree
            for part in above:
                below = node.setdefault(part, {})
                assert isinstance(below, dict)
                node = below
            node[last] = leaf
        return tree
