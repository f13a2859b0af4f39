"""A torch module as a node with Keras's names.

The view has no children of its own: it takes them from a graph, that of the checkpoint that it is restored from, or of
the template that a save is to look like, or from the rules of a flavor. Of such a graph it has the edges that lead to
variables of the model, and at their ends a `BoundVariable` each.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from torch_trackckpt.bundle.reader import CheckpointReader, StoredTensor
from torch_trackckpt.errors import MismatchError, UnsupportedFormatError, UnsupportedValueError
from torch_trackckpt.graph.messages import read_object_graph
from torch_trackckpt.graph.object_graph import ObjectGraph
from torch_trackckpt.interop.keras.binding import bind
from torch_trackckpt.interop.keras.bound import BoundVariable
from torch_trackckpt.interop.keras.bound_model import BoundModel, Structure
from torch_trackckpt.interop.keras.given_map import KerasMap
from torch_trackckpt.interop.keras.inexact import Inexact
from torch_trackckpt.interop.keras.layout import Flavor, Layers, Tree, lay_out
from torch_trackckpt.interop.keras.leaves import Kept, Made
from torch_trackckpt.interop.keras.saved import SavedModel, model_candidates, read_saved_model, skips
from torch_trackckpt.interop.keras.units import AfterFlatten, Net
from torch_trackckpt.reading import load_checkpoint
from torch_trackckpt.trackable import Trackable, Value

__all__ = ["KerasModelView", "ViewNode", "find_model", "find_view", "loose_variables", "open_keras"]

_ATTRIBUTE = "_trackckpt_keras_view"
_MOST_PLACES = 10
"""How many an error lists."""


class ViewNode(Trackable):
    """What is on the way to the variables."""

    def __init__(self, children: dict[str, Trackable] | None = None) -> None:
        self.children = {} if children is None else children

    def _trackable_children(self) -> Mapping[str, object]:
        return self.children

    def _lookup_dependency(self, name: str) -> object | None:
        return self.children.get(name)


@dataclasses.dataclass(frozen=True)
class _Bound:
    """A binding, and the edges that lead to it."""

    model: BoundModel
    children: dict[str, Trackable]
    structure: Structure
    """The modules at that time."""


class KerasModelView(Trackable):
    """A torch module as Keras stores a model; made by `keras_view`.

    Args:
        module: the model.
        like: a checkpoint of the Keras program: a prefix, a directory of checkpoints, or a SavedModel directory.
        flavor: of the Keras program, where there is no such checkpoint; a checkpoint of another one is refused.
        layers, sequential: see `layout.lay_out`.
        map: see `given_map.KerasMap`.
        after_flatten: see `units.AfterFlatten`.
        model: where in ``like`` the model is.
        optimizer: what Keras has below the model under this name, where it was compiled.
        keep_others: has variables of Keras that the module has nothing for keep the values of the checkpoint that was
            restored, or of ``like``; without, they are an error when the view is saved.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        like: str | os.PathLike[str] | None = None,
        flavor: Flavor | str | None = None,
        layers: Layers | None = None,
        sequential: bool | None = None,
        map: KerasMap | None = None,
        after_flatten: AfterFlatten | None = None,
        model: str | None = None,
        optimizer: Trackable | None = None,
        keep_others: bool = False,
    ) -> None:
        self.module = module
        self.flavor = None if flavor is None else Flavor(flavor)
        self.beside: dict[str, Trackable] = {} if optimizer is None else {"optimizer": optimizer}
        """What else is below the model's node."""
        self._like = None if like is None else os.fsdecode(like)
        self._layers = layers
        self._sequential = sequential
        self._map = map
        self._after_flatten = after_flatten
        self._model = model
        self._keep_others = keep_others
        self._frozen: dict[int, nn.Parameter] = {}
        self._optimizers: weakref.WeakSet[Trackable] = weakref.WeakSet()
        self._paired: _Bound | None = None
        self._told: _Bound | None = None
        """What `like` or the flavor tells."""
        if layers is not None and self.flavor is None:
            raise ValueError("layers= says how a flavor names its variables: say flavor= as well.")
        if sequential is not None and layers is None:
            raise ValueError("sequential= says what kind of model the layers are of: say layers= as well.")
        self._mark()

    def _mark(self) -> None:
        """Lets views of optimizers find this one by the parameters."""
        for parameter in self.module.parameters():
            former = vars(parameter).get(_ATTRIBUTE)
            former = former if isinstance(former, _Mark) else None
            if former is None or not former.has(self):
                vars(parameter)[_ATTRIBUTE] = _Mark(self, former)

    # What goes with what.

    def is_optimised_by(self, optimizer: Trackable) -> None:
        """Tells it of the view of an optimizer that stores variables for it."""
        self._optimizers.add(optimizer)

    def bound(self) -> BoundModel:
        """The module's tensors as Keras's variables: of the checkpoint that the view was restored from last; else of
        ``like``; else of the flavor.

        Raises:
            MismatchError: the module does not fit, or neither is given.
        """
        return self._require(self._paired).model

    @property
    def inexact(self) -> tuple[Inexact, ...]:
        """What does not carry over exactly."""
        return self.bound().inexact

    @property
    def unmatched_torch(self) -> tuple[str, ...]:
        """Tensors of the module that have found no value in the checkpoint that was restored last."""
        if self._paired is None:
            return ()
        model = self._paired.model
        loose = [
            variable.torch_name(piece)
            for variable in loose_variables(model).values()
            if not variable.is_given
            for piece in variable.array.pieces
        ]
        return (*model.unmatched_torch, *loose)

    def _require(self, bound: _Bound | None) -> _Bound:
        if bound is not None:
            return bound
        is_flavor = self._like is None
        if self._told is None or (is_flavor and not self._told.structure.is_kept()):
            if self._told is not None:
                # Modules were replaced, added or removed: the flavor tells of those that are there now.
                self._mark()
            self._told = self._tell()
        return self._told

    def _tell(self) -> _Bound:
        structure = Structure(self.module, self._after_flatten)
        if self._like is not None:
            reader, graph = open_keras(self._like)
            saved, model = find_model(graph, reader.stored, self._bind, self._model)
            self._check_flavor(saved)

            def read(key: str) -> torch.Tensor:
                value = reader.get_tensor(key)
                assert isinstance(value, torch.Tensor)
                return value

            return _Bound(model, self._mirror(saved, model, read), structure)
        if self.flavor is None:
            raise MismatchError(
                f"The Keras view of this {type(self.module).__name__} does not know what Keras calls its variables: "
                "restore a checkpoint of the Keras program first, or say like=, the path of one, or flavor= "
                f"({', '.join(each.value for each in Flavor)})."
            )
        model, tree = lay_out(Net(self.module, self._after_flatten), self.flavor, self._layers, self._sequential)
        model.remember_frozen(self._frozen)
        return _Bound(model, _nodes(tree).children, structure)

    def _bind(self, saved: SavedModel) -> BoundModel:
        model = bind(self.module, saved, self._map, self._after_flatten)
        model.remember_frozen(self._frozen)
        return model

    def _check_flavor(self, saved: SavedModel) -> None:
        legacy = {Flavor.TF_KERAS, Flavor.TF_KERAS_LEGACY_OPTIMIZER}
        if self.flavor is None or saved.flavor is self.flavor or {saved.flavor, self.flavor} <= legacy:
            return
        example = saved.layers[0].path if saved.layers else ""
        raise MismatchError(
            f"{saved.path} of the checkpoint is of the flavor {saved.flavor.value} (its first layer is {example!r}), "
            f"but the view was made for {self.flavor.value}. Leave flavor out to have it detected, or say what it is."
        )

    def _mirror(
        self, saved: SavedModel, model: BoundModel, read: Callable[[str], torch.Tensor] | None
    ) -> dict[str, Trackable]:
        """The edges of a graph that lead to what is bound."""
        leaves: dict[int, Trackable] = dict(model.by_node)
        for foreign in model.foreign:
            make = foreign.make
            key, readable = foreign.saved.key, f"{foreign.layer}/{foreign.saved.name}"
            name = foreign.saved.full_name
            made = Made(foreign.module, make, name) if make else _kept(readable, key, read, name)
            leaves[foreign.saved.node_id] = made
        if self._keep_others:
            for variable in model.unused:
                leaves[variable.node_id] = _kept(variable.name, variable.key, read, variable.full_name)
        return _mirrored(saved, leaves)

    # As a node.

    def _paired_with(self, graph: ObjectGraph, node_id: int, stored: Callable[[str], Any]) -> None:
        saved = read_saved_model(graph, node_id, stored)
        if not saved.layers:
            names = ", ".join(child.local_name for child in graph.nodes[node_id].children)
            raise MismatchError(
                f"{saved.path} of the checkpoint has no variables of a Keras model; it has {names or 'nothing'}. Give "
                "the view the place that it has in the Keras program, as load_keras finds it; or, if the checkpoint "
                "has names only, as those of TensorFlow 1, use load_name_based."
            )
        self._check_flavor(saved)
        model = self._bind(saved)
        self._paired = _Bound(model, self._mirror(saved, model, None), Structure(self.module, self._after_flatten))

    def _lookup_dependency(self, name: str) -> object | None:
        if name in self.beside:
            return self.beside[name]
        return None if self._paired is None else self._paired.children.get(name)

    def _trackable_children(self) -> Mapping[str, object]:
        if self._paired is None and self._like is None and self.flavor is None:
            return self.beside
        return {**self._for_saving().children, **self.beside}

    def _for_saving(self) -> _Bound:
        # Of an exported model only lists are stored, which no Keras model has.
        paired = self._paired
        is_flat = paired is not None and paired.model.saved is not None and paired.model.saved.is_flat
        has_other = self._like is not None or self.flavor is not None
        return self._require(None if is_flat and has_other else paired)

    def _attribute_names(self) -> tuple[str, ...]:
        return ()

    def _asks_for_values(self, is_known: bool) -> bool:
        if self._paired is None:
            # With names of its own, it has children that ask.
            return self._like is None and self.flavor is None
        return bool(self.unmatched_torch)

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        """Has no values; but it is here that a save asks."""
        try:
            bound = self._for_saving()
        except MismatchError as error:
            raise UnsupportedValueError(str(error)) from error
        model = bound.model
        if not bound.structure.is_kept():
            raise UnsupportedValueError(
                f"modules of the {type(self.module).__name__} were replaced, added or removed since the view was bound "
                "to a checkpoint, so that it would save values of modules that are gone, or leave some out. Make the "
                "view anew, keras_view(module, ...), with like= or flavor=; or restore a checkpoint into it first."
            )
        saved = model.saved
        if saved is not None and saved.is_flat:
            raise UnsupportedValueError(
                "its names are those of an exported model, a list of variables, which no Keras model restores: say "
                "like=, a checkpoint of the Keras program, or flavor=."
            )
        if model.unused and not self._keep_others:
            raise UnsupportedValueError(
                f"Keras has variables that the module has nothing for: {', '.join(model.unused_keys[:10])}"
                f"{', ...' if len(model.unused_keys) > 10 else ''}. Without them Keras would keep the values of "
                "another model. Say keep_others=True to have them keep the values of the checkpoint."
            )
        if (loose := loose_variables(model)) and not self._optimizers:
            names = [variable.torch_name(variable.array.pieces[0]) for variable in loose.values()]
            raise UnsupportedValueError(
                f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''} would be lost: Keras 3 stores nothing of "
                "lists and dicts of layers below the model, only what its optimizer trains. Save the optimizer as "
                "well, Checkpoint(model=..., optimizer=keras_view(optimizer)), or leave these modules out by "
                "map={name: None}."
            )
        lost = [name for absent in model.absent if absent.is_lost for name in absent.names]
        if lost:
            raise UnsupportedValueError(
                f"{', '.join(lost)} {'have' if len(lost) > 1 else 'has'} been trained, but Keras's layer has no "
                "variable for it: it was read as a constant. Freeze it (requires_grad_(False)), or give the layer one."
            )
        return {}


def open_keras(path: str) -> tuple[CheckpointReader, ObjectGraph]:
    """A checkpoint, and the graph of its objects.

    Raises:
        UnsupportedFormatError: it is of a format without objects, or one of Keras's own.
    """
    if path.endswith((".keras", ".h5", ".hdf5")) and os.path.isfile(path):
        raise UnsupportedFormatError(
            f"{path!r} is of a format of Keras's own, not a checkpoint. Have Keras write one: "
            "tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(prefix); or a SavedModel, "
            "model.export(directory)."
        )
    reader = load_checkpoint(path)
    graph = read_object_graph(reader)
    if graph is None:
        raise UnsupportedFormatError(
            f"{path!r} has no object graph: its values have names only, as those of TensorFlow 1. load_name_based "
            "reads such, with rules for the names."
        )
    return reader, graph


def loose_variables(model: BoundModel) -> dict[int, BoundVariable]:
    """Those that only an optimizer of the checkpoint leads to, by their nodes."""
    layers = () if model.saved is None else model.saved.layers
    ids = [v.node_id for layer in layers if layer.is_loose for v in layer.variables.values()]
    return {node_id: model.by_node[node_id] for node_id in ids if node_id in model.by_node}


def find_model(
    graph: ObjectGraph,
    stored: Callable[[str], StoredTensor],
    bind_to: Callable[[SavedModel], BoundModel],
    path: str | None = None,
) -> tuple[SavedModel, BoundModel]:
    """The model of a checkpoint that a module is bound to.

    Args:
        graph: the saved graph.
        stored: what the checkpoint has under a key.
        bind_to: binds the module.
        path: where it is; None where the only one is meant that fits.

    Raises:
        MismatchError: there is none, or several; or the one that there is does not fit.
    """
    if path is not None:
        node_id = graph.find(path)
        if node_id is None:
            known = [repr(name) for name, _ in model_candidates(graph)]
            names = ", ".join([*known[:_MOST_PLACES], *(["..."] if len(known) > _MOST_PLACES else [])])
            raise MismatchError(f"The checkpoint has nothing at model={path!r}; there is {names or 'nothing'}.")
        saved = read_saved_model(graph, node_id, stored)
        return saved, bind_to(saved)
    candidates = model_candidates(graph)
    fitting: list[tuple[str, SavedModel, BoundModel]] = []
    errors: list[tuple[str, MismatchError]] = []
    for name, node_id in candidates:
        saved = read_saved_model(graph, node_id, stored)
        if not any(variable.shape for layer in saved.layers for variable in layer.variables.values()):
            # Counters are no model.
            continue
        try:
            fitting.append((name, saved, bind_to(saved)))
        except MismatchError as error:
            errors.append((name, error))
    if fitting and all(_is_same(bound, fitting[0][2]) for _, _, bound in fitting):
        return fitting[0][1:]
    if not fitting and (len(errors) == 1 or (errors and not errors[0][0])):
        raise errors[0][1]
    if not fitting and not errors:
        below = [child.local_name for child in graph.nodes[0].children]
        children = ", ".join([*below[:_MOST_PLACES], *(["..."] if len(below) > _MOST_PLACES else [])])
        raise MismatchError(
            f"The checkpoint has no Keras model; its root has {children or 'nothing'}. If one of them is meant, say "
            "model=, its name."
        )
    places = [each[0] for each in fitting] or [place for place, _ in errors]
    listed = ", ".join(repr(place) if place else "'' (the root itself)" for place in places[:_MOST_PLACES])
    listed += f" and {len(places) - _MOST_PLACES} more" if len(places) > _MOST_PLACES else ""
    if fitting:
        raise MismatchError(f"The module fits several objects of the checkpoint: say model=, one of {listed}.")
    told = "\n".join(f"{name or 'the root itself'}: {error}" for name, error in errors[:_MOST_PLACES])
    raise MismatchError(f"The module fits none of {listed}; model= says which is meant.\n{told}")


def _is_same(one: BoundModel, other: BoundModel) -> bool:
    """Whether two have the same tensors for the same variables, as an object and the only one that it has do."""

    def names(bound: BoundModel) -> dict[int, list[str]]:
        return {node_id: [v.torch_name(piece) for piece in v.array.pieces] for node_id, v in bound.by_node.items()}

    return names(one) == names(other)


def find_view(parameter: torch.Tensor) -> KerasModelView | None:
    """The youngest view of a module that a parameter belongs to, if there is one that still lives.

    Raises:
        UnsupportedValueError: there are several, and they were told different things of Keras.
    """
    mark = vars(parameter).get(_ATTRIBUTE)
    if not isinstance(mark, _Mark):
        return None
    if len(_settings(mark.living())) > 1:
        # Those that nobody has any more may be in cycles with what they are bound to.
        gc.collect()
    views = mark.living()
    if len(settings := _settings(views)) > 1:
        raise UnsupportedValueError(
            f"{len(views)} Keras views of a {type(views[0].module).__name__} are alive, and they differ: "
            f"{'; '.join(settings)}. Say which the optimizer belongs to: keras_view(optimizer, model=view)."
        )
    return views[0] if views else None


def _settings(views: Sequence[KerasModelView]) -> list[str]:
    """What several views were told, each once; without older ones that were told nothing, as that of `load_keras`,
    which lives on in its status."""
    told = []
    for index, view in enumerate(views):
        if index == 0 or view.flavor is not None or view._like is not None:
            flavor = None if view.flavor is None else view.flavor.value
            told.append(f"flavor={flavor!r}, like={view._like!r}")
    return list(dict.fromkeys(told))


class _Mark:
    """What a parameter carries. A copy of it is another one, in no view."""

    def __init__(self, view: KerasModelView, former: _Mark | None) -> None:
        older = [] if former is None else former.living()
        self._views: list[weakref.ref[KerasModelView]] = [weakref.ref(each) for each in (view, *older)]

    def living(self) -> list[KerasModelView]:
        """The views that are there, the youngest first."""
        return [view for each in self._views if (view := each()) is not None]

    def has(self, view: KerasModelView) -> bool:
        """Whether a view is one of them."""
        return any(each is view for each in self.living())

    def __deepcopy__(self, memo: object) -> None:
        return None

    def __reduce__(self) -> tuple[type[set[Any]], tuple[()]]:
        # `torch.load(weights_only=True)` accepts it.
        return set, ()


def _kept(readable: str, key: str, read: Callable[[str], torch.Tensor] | None, full_name: str) -> Kept:
    return Kept(readable, lambda: None if read is None else read(key), full_name)


def _nodes(tree: Tree) -> ViewNode:
    """A node for each of a tree; one for what is there twice."""
    made = {id(tree): ViewNode()}
    todo = [tree]
    while todo:
        each = todo.pop()
        node = made[id(each)]
        for name, below in each.items():
            if not isinstance(below, Trackable) and id(below) not in made:
                made[id(below)] = ViewNode()
                todo.append(below)
            node.children[name] = below if isinstance(below, Trackable) else made[id(below)]
    return made[id(tree)]


def _mirrored(saved: SavedModel, leaves: Mapping[int, Trackable]) -> dict[str, Trackable]:
    """The edges below a model that lead to some nodes."""
    graph = saved.graph
    lists = ("variables", "trainable_variables", "non_trainable_variables") if saved.is_flat else ()
    parents: dict[int, list[tuple[int, str]]] = {}
    order: list[int] = [saved.node_id]
    seen = {saved.node_id}
    for node_id in order:
        for child in graph.nodes[node_id].children:
            if child.node_id == saved.node_id or (skips(graph, child) and child.local_name not in lists):
                continue
            parents.setdefault(child.node_id, []).append((node_id, child.local_name))
            if child.node_id not in seen:
                seen.add(child.node_id)
                order.append(child.node_id)
    leading, todo = set(leaves) & seen, [node_id for node_id in leaves if node_id in seen]
    while todo:
        for parent, _ in parents.get(todo.pop(), ()):
            if parent not in leading:
                leading.add(parent)
                todo.append(parent)
    nodes: dict[int, Trackable] = {
        node_id: leaves.get(node_id) or ViewNode() for node_id in order if node_id in leading
    }
    for node_id in order:
        node = nodes.get(node_id)
        if isinstance(node, ViewNode):
            for child in graph.nodes[node_id].children:
                is_edge = not skips(graph, child) or child.local_name in lists
                # A checkpoint of a root object has that as a child of its own.
                if is_edge and child.node_id in nodes and child.node_id != saved.node_id:
                    node.children[child.local_name] = nodes[child.node_id]
    root = nodes.get(saved.node_id)
    return root.children if isinstance(root, ViewNode) else {}
