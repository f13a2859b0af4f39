"""A saved graph as a sequence of Keras layers.

A layer is a group of values below one node, with the names that a rule of the registry expects: without leading
underscores, and, where the layer is made of others (an LSTM of its cell, attention of four dense layers), with the way
to them: ``cell/kernel``, ``query_dense/bias``. The sequence is in Keras's own order. Every layer goes by

    its path        the edges that lead to it from the model: ``_operations/1``, ``layer_with_weights-0``, ``blocks/0``
    other paths     ``layer-0``, ``_layers/1``
    its name        Keras's own, which is part of the full names of its values: ``dense``

Values that no such edges lead to are grouped by their full names. They are in the flat lists of an exported model
(``variables/3``), or are known to the optimizer alone: Keras 3 does not follow lists and dicts that are attributes.

What no model computes with is left out: counters, metrics, seed generators, the optimizer.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from torch_trackckpt.bundle.reader import StoredTensor
from torch_trackckpt.graph.object_graph import Child, ObjectGraph
from torch_trackckpt.trackable import VARIABLE_VALUE

__all__ = [
    "Flavor",
    "SavedLayer",
    "SavedModel",
    "SavedVariable",
    "canonical",
    "find_optimizers",
    "is_optimizer",
    "model_candidates",
    "read_saved_model",
    "skips",
]


class Flavor(enum.Enum):
    """Who wrote a checkpoint, or is to read it."""

    KERAS3 = "keras3"
    TF_KERAS = "tf_keras"
    TF_KERAS_LEGACY_OPTIMIZER = "tf_keras_legacy_optimizer"
    SONNET = "sonnet"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"There is no flavor {value!r}; there is {', '.join(repr(each.value) for each in cls)}.")


@dataclasses.dataclass(frozen=True)
class SavedVariable:
    """A stored value of a layer."""

    name: str
    """Within the layer: ``kernel``, ``cell/kernel``."""
    node_id: int
    shape: tuple[int, ...]
    key: str
    full_name: str = ""
    """As Keras calls the variable; empty where the file does not tell."""
    aliases: tuple[str, ...] = ()
    """Other names within the layer: an attribute, beside what the weight itself is called."""


@dataclasses.dataclass(frozen=True)
class SavedLayer:
    """A group of stored values."""

    path: str
    """From the model; empty for values of the model itself."""
    variables: Mapping[str, SavedVariable]
    name: str = ""
    """Keras's name of the layer, with those of the models that it is in; empty where the file does not tell."""
    aliases: tuple[str, ...] = ()
    """Other paths."""
    is_loose: bool = False
    """Whether the model does not lead to it: what the optimizer does not know either of such a layer is not stored."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all variables."""
        return {name: variable.shape for name, variable in self.variables.items()}

    @property
    def readable(self) -> str:
        """What messages call it."""
        if self.name and self.path:
            return f"{self.name} ({self.path})"
        return self.name or self.path or "(the model itself)"


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """The layers of one model of a checkpoint."""

    graph: ObjectGraph
    node_id: int
    flavor: Flavor
    layers: tuple[SavedLayer, ...]
    stored: Callable[[str], StoredTensor]
    """What the checkpoint has under a key."""
    is_flat: bool = False
    """Whether it is an exported one, of which only lists of variables are stored."""

    @property
    def path(self) -> str:
        """Where the model is in the checkpoint, as messages have it."""
        return self.graph.readable(self.node_id)


_MODEL_EDGE = re.compile(r"_operations|_functional|layer-\d+|layer_with_weights-\d+")
_KERAS2_ALIAS = re.compile(r"layer-\d+")

# Lists of what other edges lead to, and what belongs to training or serving.
_LISTS = {"variables", "trainable_variables", "non_trainable_variables", "_all_variables", "keras_api"}
_SKIPPED = _LISTS | {
    "save_counter",
    "signatures",
    "serve",
    "metrics",
    "_metrics",
    "compiled_metrics",
    "_compile_metrics",
    "_compile_loss",
    "compiled_loss",
    "loss_tracker",
    "_loss_tracker",
    "regularization_losses",
    "seed_generator",
    "_seed_generators",
    "_random_generator",
    "_trainable_variables",
}
_PARTS = {
    "cell",
    "cells",
    "forward_layer",
    "backward_layer",
    "layer",
    "query_dense",
    "key_dense",
    "value_dense",
    "output_dense",
    "moving_mean",
    "moving_variance",
    "input_to_hidden",
    "hidden_to_hidden",
}
"""What a layer calls the layers that it is made of."""
_SEED = "seed_generator_state"
_METRIC = {"total", "count"}
_CELL = re.compile(r"(?:.*_)?(?:lstm|gru|simple_rnn|rnn)_cell(?:_\d+)?|cell")
_DIRECTION = re.compile(r"(forward|backward)_.*")
_HEADS = {"query": "query_dense", "key": "key_dense", "value": "value_dense", "attention_output": "output_dense"}

_MOST_PATHS = 8


def canonical(name: str) -> str:
    """A local name, or several with slashes between, without leading underscores."""
    return "/".join(part.lstrip("_") or part for part in name.split("/"))


def skips(graph: ObjectGraph, child: Child) -> bool:
    """Whether an edge leads to something that is no part of the model's own values."""
    return child.local_name in _SKIPPED or is_optimizer(graph, child.node_id)


def is_optimizer(graph: ObjectGraph, node_id: int) -> bool:
    """Whether a node is an optimizer of any generation."""
    node = graph.nodes[node_id]
    names = {child.local_name for child in node.children}
    if node.slot_variables or names & {"_iterations", "iterations", "iter", "inner_optimizer"}:
        return True
    # Sonnet's have their lists beside the step.
    return "step" in names and bool(names & {"m", "v", "accumulated_momentum", "mom", "ms", "mg"})


def find_optimizers(graph: ObjectGraph) -> list[tuple[str, int]]:
    """Every optimizer with the path from the root, the shortest for each."""
    found: dict[int, str] = {}
    queue, seen = [(0, "")], {0}
    for node_id, path in queue:
        for child in graph.nodes[node_id].children:
            below = f"{path}/{child.local_name}" if path else child.local_name
            if is_optimizer(graph, child.node_id):
                found.setdefault(child.node_id, below)
            elif child.node_id not in seen and child.local_name not in _SKIPPED:
                seen.add(child.node_id)
                queue.append((child.node_id, below))
    return [(path, node_id) for node_id, path in found.items()]


def model_candidates(graph: ObjectGraph) -> list[tuple[str, int]]:
    """The nodes that may be the model, by their paths: the root where it has Keras's edges, else what it leads to. The
    root comes first where it is an object of the program, as in ``Checkpoint(model)`` and in a SavedModel."""
    names = [child.local_name for child in graph.nodes[0].children]
    if any(_MODEL_EDGE.fullmatch(name) for name in names) or "_all_variables" in names:
        return [("", 0)]
    leads = _leading(graph, 0)
    below = [child for child in graph.nodes[0].children if child.node_id in leads and not skips(graph, child)]
    # A checkpoint of a root object has that once more as its child.
    inner = [(c.local_name, c.node_id) for c in below if c.node_id and not graph.attributes(c.node_id)]
    if graph.child(0, "root") == 0 or "signatures" in names:
        return [("", 0), *inner]
    keras = [
        (name, node_id)
        for name, node_id in inner
        if any(_MODEL_EDGE.fullmatch(child.local_name) for child in graph.nodes[node_id].children)
    ]
    if keras:
        return keras
    if len(inner) > 1 or not inner:
        inner = [*inner, ("", 0)]
    return inner


def read_saved_model(graph: ObjectGraph, node_id: int, stored: Callable[[str], StoredTensor]) -> SavedModel:
    """The layers of a model.

    Args:
        graph: the saved graph.
        node_id: the model's node.
        stored: what the checkpoint has under a key.
    """
    walk = _Walk(graph, node_id, stored)
    layers = walk.layers()
    grouped = {variable.node_id for layer in layers for variable in layer.variables.values()}
    flat = walk.listed(node_id, "variables", grouped)
    known = bool(layers)
    layers = _inserted(layers, flat.layers, flat.order)
    # What other edges lead to belongs to other objects.
    placed = grouped | _leading(graph, 0)
    for path, optimizer_id in find_optimizers(graph):
        listed = walk.listed(optimizer_id, "_trainable_variables", placed, f"{path}/" if path else "")
        if listed.layers and (set(listed.order) & grouped or len(find_optimizers(graph)) == 1):
            layers = _inserted(layers, listed.layers, listed.order)
    named = _with_unique_names(layers)
    return SavedModel(
        graph, node_id, _flavor(graph, node_id, named), tuple(named), stored, not known and bool(flat.layers)
    )


@dataclasses.dataclass(frozen=True)
class _Listed:
    """What a flat list of variables has beyond the layers that are known."""

    layers: list[SavedLayer]
    order: dict[int, int]
    """The place of each node in the list."""


class _Walk:
    """Goes through the graph below a model."""

    def __init__(self, graph: ObjectGraph, node_id: int, stored: Callable[[str], StoredTensor]) -> None:
        self._graph = graph
        self._root = node_id
        self._stored = stored
        self._leads = _leading(graph, node_id)
        self._seen: set[int] = set()
        self._paths = self._all_paths()

    def layers(self) -> list[SavedLayer]:
        """The groups that edges lead to."""
        found: list[SavedLayer] = []
        todo = [(self._root, "")]
        while todo:
            node_id, path = todo.pop()
            if node_id not in self._seen:
                todo += reversed(self._collect(node_id, path, found))
        return found

    def _children(self, node_id: int) -> list[Child]:
        """Those that lead to values, those by their second names last."""
        children = [
            child
            for child in self._graph.nodes[node_id].children
            if child.node_id in self._leads and not skips(self._graph, child)
        ]
        names = {child.local_name for child in children}
        has_weights = {c.node_id for c in children if c.local_name.startswith("layer_with_weights-")}

        def is_alias(child: Child) -> bool:
            if child.local_name == "_layers":
                return "_operations" in names or "_functional" in names
            return bool(_KERAS2_ALIAS.fullmatch(child.local_name)) and child.node_id in has_weights

        return sorted(children, key=is_alias)

    def _collect(self, node_id: int, path: str, found: list[SavedLayer]) -> list[tuple[int, str]]:
        """The layer that a node is; what is left to be looked at below it, with the paths."""
        self._seen.add(node_id)
        whole = self._composite(node_id)
        if whole is not None:
            self._seen |= {variable.node_id for variable in whole.values()}
            self._add(node_id, path, whole, found)
            return []
        children = self._children(node_id)
        own: dict[str, SavedVariable] = {}
        for child in children:
            name = canonical(child.local_name)
            known = next((each for each in own.values() if each.node_id == child.node_id), None)
            if known is not None:
                own[known.name] = dataclasses.replace(known, aliases=(*known.aliases, name))
            elif child.node_id not in self._seen and (variable := self._variable(child.node_id, name)) is not None:
                self._seen.add(child.node_id)
                own.setdefault(name, variable)
        self._add(node_id, path, own, found)
        return [
            (child.node_id, f"{path}/{child.local_name}" if path else child.local_name)
            for child in children
            if child.node_id not in self._seen
        ]

    def _add(self, node_id: int, path: str, own: dict[str, SavedVariable], found: list[SavedLayer]) -> None:
        if own and not (set(own) == _METRIC and not any(variable.shape for variable in own.values())):
            aliases = tuple(other for other in self._paths.get(node_id, ()) if other != path)
            found.append(SavedLayer(path, own, _keras_name(own.values()), aliases))

    def _composite(self, node_id: int) -> dict[str, SavedVariable] | None:
        """The values below a layer that is made of others; None where the node is no such layer."""
        inner = [child for child in self._children(node_id) if not self._graph.attributes(child.node_id)]
        if node_id == self._root or not inner or any(canonical(child.local_name) not in _PARTS for child in inner):
            return None
        found: dict[str, SavedVariable] = {}
        queue = [(node_id, "")]
        seen = {node_id}
        below: dict[int, list[tuple[int, str]]] = {}
        for parent, prefix in queue:
            for child in self._children(parent):
                name = prefix + canonical(child.local_name)
                if child.node_id in seen:
                    continue
                seen.add(child.node_id)
                below.setdefault(parent, []).append((child.node_id, name))
                variable = self._variable(child.node_id, name)
                if variable is not None:
                    found.setdefault(name, variable)
                elif canonical(child.local_name) in _PARTS or child.local_name.isdigit():
                    queue.append((child.node_id, f"{name}/"))
                elif not self._graph.attributes(child.node_id):
                    return None
        return {name: found[name] for name in _depth_first(node_id, below) if name in found}

    def _variable(self, node_id: int, name: str) -> SavedVariable | None:
        for attribute in self._graph.attributes(node_id):
            if attribute.name == VARIABLE_VALUE:
                full_name = attribute.full_name
                if _SEED in (name.rpartition("/")[2], full_name.rpartition("/")[2]):
                    return None
                shape = self._stored(attribute.checkpoint_key).shape
                return SavedVariable(name, node_id, tuple(shape), attribute.checkpoint_key, full_name)
        return None

    def _all_paths(self) -> dict[int, list[str]]:
        """Several paths for each node that leads to values, breadth first."""
        paths: dict[int, list[str]] = {self._root: [""]}
        queue: list[tuple[int, str, frozenset[int]]] = [(self._root, "", frozenset({self._root}))]
        while queue:
            node_id, path, above = queue.pop(0)
            for child in self._graph.nodes[node_id].children:
                known = paths.setdefault(child.node_id, [])
                if child.node_id not in self._leads or child.node_id in above or len(known) >= _MOST_PATHS:
                    continue
                if skips(self._graph, child):
                    continue
                below = f"{path}/{child.local_name}" if path else child.local_name
                known.append(below)
                queue.append((child.node_id, below, above | {child.node_id}))
        return paths

    def listed(self, node_id: int, name: str, known: Collection[int], prefix: str = "") -> _Listed:
        """The values of a list that no layer has, as layers by their full names."""
        list_id = self._graph.child(node_id, name)
        if list_id is None:
            return _Listed([], {})
        children = [child for child in self._graph.nodes[list_id].children if child.local_name.isdigit()]
        children.sort(key=lambda child: int(child.local_name))
        order = {child.node_id: index for index, child in enumerate(children)}
        names = _names_by_state(self._graph, node_id, len(children)) if name == "_trainable_variables" else {}
        found: list[tuple[int, str, str, SavedVariable]] = []
        for index, child in enumerate(children):
            variable = self._variable(child.node_id, "")
            if variable is not None and child.node_id not in known:
                layer, _, last = variable.full_name.rpartition("/")
                found.append((index, names.get(child.node_id, layer), last or child.local_name, variable))
        counts = Counter((layer, last) for _, layer, last, _ in found)
        several = {layer for (layer, _), count in counts.items() if count > 1}
        several |= {
            layer for layer, _ in counts if all({(layer, last) for last in kind} & counts.keys() for kind in _KINDS)
        }
        layers: list[SavedLayer] = []
        for index, layer, last, variable in found:
            if not layers or not _continues(layers[-1], layer, last, layer not in several):
                path = f"{prefix}{name}/{index}"
                layers.append(SavedLayer(path, {}, layer, is_loose=name == "_trainable_variables"))
            variables = {**layers[-1].variables, last: dataclasses.replace(variable, name=last)}
            layers[-1] = dataclasses.replace(layers[-1], variables=variables)
        return _Listed(_joined(layers), order)


def _depth_first(root: int, below: Mapping[int, Sequence[tuple[int, str]]]) -> list[str]:
    """The names of a tree, which is the order in which Keras makes the variables."""
    order: list[str] = []
    todo = list(reversed(below.get(root, ())))
    while todo:
        node_id, name = todo.pop()
        order.append(name)
        todo += reversed(below.get(node_id, ()))
    return order


def _leading(graph: ObjectGraph, root: int) -> set[int]:
    """The nodes below a node from which edges lead to values, and those with values."""
    parents: dict[int, set[int]] = {}
    stack, seen, valued = [root], {root}, set()
    while stack:
        node_id = stack.pop()
        if any(attribute.name == VARIABLE_VALUE for attribute in graph.attributes(node_id)):
            valued.add(node_id)
        for child in graph.nodes[node_id].children:
            if skips(graph, child):
                continue
            parents.setdefault(child.node_id, set()).add(node_id)
            if child.node_id not in seen:
                seen.add(child.node_id)
                stack.append(child.node_id)
    leading, todo = set(valued), list(valued)
    while todo:
        for parent in parents.get(todo.pop(), ()):
            if parent not in leading:
                leading.add(parent)
                todo.append(parent)
    return leading


def _keras_name(variables: Iterable[SavedVariable]) -> str:
    """The name of a layer, from those of its variables: less as many parts as the variable's own name has."""
    nearest = min(variables, key=lambda variable: variable.name.count("/"))
    parts = nearest.full_name.split("/")
    # Keras 2 does not name the cell of older layers, nor what is in a wrapper.
    depth = min(nearest.name.count("/") + 1, max(len(parts) - 1, 1))
    return "/".join(parts[:-depth])


def _with_unique_names(layers: Sequence[SavedLayer]) -> list[SavedLayer]:
    """Without names that several layers have: those of models, of which Keras 3 gives their layers' weights."""
    counts = Counter(layer.name for layer in layers)
    return [layer if counts[layer.name] == 1 else dataclasses.replace(layer, name="") for layer in layers]


def _names_by_state(graph: ObjectGraph, optimizer_id: int, count: int) -> dict[int, str]:
    """The layers of an optimizer's variables, by node: Keras 3 spells them out in the names of the state that it keeps,
    ``sgd/model_block_0_kernel_momentum``, although the weights themselves are called ``model/kernel``."""
    variables = graph.child(optimizer_id, "_trainable_variables")
    found: dict[int, str] = {}
    for child in graph.nodes[optimizer_id].children:
        if child.local_name.startswith("_trainable") or variables is None or child.local_name == "_variables":
            continue
        states = {c.local_name: c.node_id for c in graph.nodes[child.node_id].children}
        if len(states) != count:
            continue
        for weight in graph.nodes[variables].children:
            state_id = states.get(weight.local_name)
            state = _full_name(graph, state_id).rpartition("/")[2] if state_id is not None else ""
            model, _, last = _full_name(graph, weight.node_id).rpartition("/")
            prefix = f"{model.replace('/', '_')}_" if model else ""
            inner = state.removeprefix(prefix)
            at = inner.rfind(f"_{last}_")
            if last and state.startswith(prefix) and at > 0:
                found.setdefault(weight.node_id, inner[:at])
    return found


def _full_name(graph: ObjectGraph, node_id: int) -> str:
    return next((attribute.full_name for attribute in graph.attributes(node_id)), "")


_AFTER = {
    "bias": {"kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel"},
    "recurrent_kernel": {"kernel"},
    "pointwise_kernel": {"depthwise_kernel"},
    "beta": {"gamma"},
    "moving_mean": {"gamma", "beta"},
    "moving_variance": {"moving_mean"},
}
"""What comes before a variable in the same layer, in the order in which Keras makes them."""

_KINDS = ({"kernel", "depthwise_kernel", "embeddings", "alpha"}, {"gamma", "beta", "moving_mean", "scale"})
"""What no layer of Keras has of both."""


def _continues(layer: SavedLayer, name: str, variable: str, is_own: bool) -> bool:
    """Whether the next variable of a list belongs to the layer before it.

    Args:
        layer: the one before.
        name: of the layer that the variable belongs to.
        variable: the last part of its name.
        is_own: whether the layer has that name alone; else it is the model's, and only variables tell.
    """
    if layer.name != name or variable in layer.variables:
        return False
    return is_own or list(layer.variables)[-1] in _AFTER.get(variable, ())


def _joined(layers: Sequence[SavedLayer]) -> list[SavedLayer]:
    """Layers that were listed by parts: a cell, two directions, the four layers of attention."""
    pieces: list[tuple[str, str, SavedLayer]] = []
    names = {layer.name for layer in layers}
    for layer in layers:
        parts = layer.name.split("/") if layer.name else []
        inner: list[str] = []
        if len(parts) > 1 and _CELL.fullmatch(parts[-1]):
            parts.pop()
            inner.insert(0, "cell")
        direction = _DIRECTION.fullmatch(parts[-1]) if len(parts) > 1 and inner else None
        if direction is not None:
            parts.pop()
            inner.insert(0, f"{direction[1]}_layer")
        above = "/".join(parts[:-1])
        if not inner and len(parts) > 1 and {f"{above}/{head}" for head in _HEADS} <= names and parts[-1] in _HEADS:
            inner.insert(0, _HEADS[parts.pop()])
        pieces.append(("/".join(parts), "/".join(inner), layer))
    found: list[SavedLayer] = []
    for name, inner_name, layer in pieces:
        prefix = f"{inner_name}/" if inner_name else ""
        variables = {
            f"{prefix}{own}": dataclasses.replace(variable, name=f"{prefix}{own}")
            for own, variable in layer.variables.items()
        }
        if found and prefix and found[-1].name == name and not found[-1].variables.keys() & variables.keys():
            found[-1] = dataclasses.replace(found[-1], variables={**found[-1].variables, **variables})
        else:
            found.append(dataclasses.replace(layer, name=name, variables=variables))
    return found


def _inserted(layers: Sequence[SavedLayer], others: Sequence[SavedLayer], order: Mapping[int, int]) -> list[SavedLayer]:
    """Layers with others among them, by the places that their variables have in a list."""
    found = list(layers)
    for other in others:
        place = _place(other, order)
        after = [index for index, layer in enumerate(found) if _place(layer, order) > place]
        found.insert(after[0] if after else len(found), other)
    return found


def _place(layer: SavedLayer, order: Mapping[int, int]) -> int:
    return min((order[v.node_id] for v in layer.variables.values() if v.node_id in order), default=-1)


def _flavor(graph: ObjectGraph, node_id: int, layers: Sequence[SavedLayer]) -> Flavor:
    names = {child.local_name for below in _reach(graph, node_id) for child in graph.nodes[below].children}
    optimizers = [optimizer_id for _, optimizer_id in find_optimizers(graph)]
    edges = {child.local_name for optimizer_id in optimizers for child in graph.nodes[optimizer_id].children}
    if names & {"_operations", "_functional", "_kernel", "_embeddings", "_tracked"} or "_trainable_variables" in edges:
        return Flavor.KERAS3
    if any(graph.nodes[optimizer_id].slot_variables for optimizer_id in optimizers) or "iter" in edges:
        return Flavor.TF_KERAS_LEGACY_OPTIMIZER
    variables = {variable for layer in layers for variable in layer.variables}
    if "keras_api" in names or any(_MODEL_EDGE.fullmatch(name) for name in names) or "_index_dict" in edges:
        return Flavor.TF_KERAS
    if variables & {"w", "b", "w_i", "w_h", "offset"}:
        return Flavor.SONNET
    # An exported model of Keras 3 has its variables a second time.
    twice = graph.child(node_id, "_all_variables")
    flat = graph.child(node_id, "variables")
    if twice is not None and flat is not None:
        ids = [{child.node_id for child in graph.nodes[list_id].children} for list_id in (twice, flat)]
        return Flavor.TF_KERAS if ids[0] & ids[1] else Flavor.KERAS3
    return Flavor.TF_KERAS


def _reach(graph: ObjectGraph, root: int) -> set[int]:
    seen, stack = {root}, [root]
    while stack:
        for child in graph.nodes[stack.pop()].children:
            if child.node_id not in seen and not skips(graph, child):
                seen.add(child.node_id)
                stack.append(child.node_id)
    return seen
