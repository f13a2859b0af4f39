"""The two graphs, seen without saving or restoring: a checkpoint's (`CheckpointView`) and a program's
(`TrackableView`).

Nothing in either changes. Of a checkpoint only its index and the record of the object graph are read: data files that
do not hold the record may be absent.
"""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch_trackckpt.adapters import adapt
from torch_trackckpt.bundle.reader import StoredTensor
from torch_trackckpt.checkpoint import Checkpoint
from torch_trackckpt.graph.messages import read_object_graph
from torch_trackckpt.graph.object_graph import ObjectGraph
from torch_trackckpt.graph.walk import discover, live_object
from torch_trackckpt.options import CheckpointOptions
from torch_trackckpt.reading import load_checkpoint
from torch_trackckpt.restore.match import match
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY, Trackable

__all__ = ["CheckpointView", "TrackableView", "object_metadata"]


def object_metadata(save_path: str | os.PathLike[str]) -> ObjectGraph:
    """The object graph of a checkpoint: its nodes, their children, values and slot variables. TensorFlow's
    ``object_metadata``.

    Args:
        save_path: a checkpoint, or whatever else `load_checkpoint` takes.

    Raises:
        ValueError: the checkpoint has no object graph, as those of TensorFlow 1; or, of a directory, there is no
            checkpoint in it.
        CheckpointNotFoundError: there is no checkpoint at the path, or not the data file that holds the record.
        DataLossError: the index or the record is damaged.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import Checkpoint, object_metadata
        >>> path = Checkpoint(layer=torch.nn.Linear(2, 1)).write(tempfile.mkdtemp() + "/ckpt")
        >>> for node in object_metadata(path).nodes:
        ...     print([child.local_name for child in node.children], [value.full_name for value in node.attributes])
        ['layer'] []
        ['weight', 'bias'] []
        [] ['weight']
        [] ['bias']
    """
    reader = load_checkpoint(save_path)
    graph = read_object_graph(reader)
    if graph is None:
        raise ValueError(
            f"The checkpoint {reader.file_prefix!r} is not object-based: it has no {OBJECT_GRAPH_KEY}. It was saved by "
            "names, as TensorFlow 1 does; `list_variables` shows them, and `Checkpoint.restore` can restore by them."
        )
    return graph


class CheckpointView:
    """The objects of a checkpoint by number, and how they compare with live ones. TensorFlow's
    ``tf.train.CheckpointView``.

    A node that stands for a part of an object which the object itself keeps (an optimizer's ``param_groups``) is
    matched with the `Trackable` that stands for this part. Slot variables belong to two objects and are children of
    none; `object_metadata` has them.

    Args:
        save_path: a checkpoint, or whatever else `load_checkpoint` takes. Its files are closed again at once.
        options: with ``experimental_skip_slot_variables``, `match` and `diff` tell of a restore with this option,
            which leaves out what belongs to the slots of optimizers. Others have no effect.

    Raises:
        ValueError, CheckpointNotFoundError, DataLossError: as `object_metadata`.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import Checkpoint, CheckpointView
        >>> path = Checkpoint(layer=torch.nn.Linear(2, 1)).save(tempfile.mkdtemp() + "/ckpt")
        >>> view = CheckpointView(path)
        >>> view.children(0), view.children(1)
        ({'layer': 1, 'save_counter': 2}, {'weight': 3, 'bias': 4})
        >>> matched, only_stored, only_live = view.diff({"layer": torch.nn.Linear(2, 1, bias=False)})
        >>> sorted(matched), only_stored, only_live
        ([0, 1, 3], [2, 4], [])
    """

    def __init__(self, save_path: str | os.PathLike[str], options: CheckpointOptions | None = None) -> None:
        self._save_path = os.fsdecode(save_path)
        self._options = options or CheckpointOptions()
        self._graph = object_metadata(save_path)

    def children(self, node_id: int) -> dict[str, int]:
        """The children of an object: node ids by local name, in the stored order.

        Raises:
            IndexError: there is no such node.
        """
        num_nodes = len(self._graph.nodes)
        if not 0 <= node_id < num_nodes:
            raise IndexError(
                f"There is no node {node_id} in {self._save_path!r}; its nodes are 0, the root, to {num_nodes - 1}."
            )
        return {child.local_name: child.node_id for child in self._graph.nodes[node_id].children}

    def descendants(self) -> list[int]:
        """The root and every node below it, breadth first. Slot variables are no children, so they are not here."""
        return self._graph.descendants()

    def match(self, obj: Any) -> dict[int, Any]:
        """Which live objects a restore would give the stored values to.

        Args:
            obj: a `Checkpoint`, or what stands for the root of the stored graph: any trackable object.

        Returns:
            The live object for each node that has one, the root always. A node that several ways lead to has the object
            at the end of the first; a warning tells where another is at the end of another way.

        Raises:
            ValueError: the object is not trackable.
        """
        return _live_objects(self._bound(obj))

    def diff(self, obj: Any) -> tuple[dict[int, Any], list[int], list[Any]]:
        """What a checkpoint and live objects have in common and what not.

        Args:
            obj: as for `match`.

        Returns:
            What `match` returns; the nodes that have no live object; the live objects that no node has. Both lists are
            in breadth-first order.

        Raises:
            ValueError: the object is not trackable.
        """
        bound = self._bound(obj)
        matched = {trackable._identity() for trackable in bound.values()}
        live = discover(*_root_and_attached(obj))
        only_stored = [node_id for node_id in self.descendants() if node_id not in bound]
        only_live = [live_object(node.trackable) for key, node in live.nodes.items() if key not in matched]
        return _live_objects(bound), only_stored, only_live

    def _bound(self, obj: object) -> Mapping[int, Trackable]:
        # Without the slots in it, the graph needs no optimizer to make any, and nothing but names is compared.
        nodes = tuple(dataclasses.replace(node, slot_variables=()) for node in self._graph.nodes)
        skip_slots = self._options.experimental_skip_slot_variables
        return match(ObjectGraph(nodes), *_root_and_attached(obj), _no_value, skip_slot_variables=skip_slots).bound


def _live_objects(bound: Mapping[int, Trackable]) -> dict[int, Any]:
    return {node_id: live_object(trackable) for node_id, trackable in bound.items()}


def _no_value(key: str) -> StoredTensor:
    raise AssertionError(f"A view asked for the value {key}.")


def _root_and_attached(obj: object) -> tuple[object, Mapping[str, object]]:
    if isinstance(obj, Checkpoint):
        return obj._graph_root(), obj._attached()
    return _trackable(obj), {}


def _trackable(obj: object) -> Trackable:
    trackable = adapt(obj)
    if trackable is None:
        raise ValueError(f"A trackable object is expected, not {obj!r} of type {type(obj).__name__}.")
    return trackable


class TrackableView:
    """The objects that a checkpoint of a live object would hold. TensorFlow's ``tf.train.TrackableView``.

    Args:
        root: any trackable object, or a weak reference to one. The view itself refers to it weakly; lists, tuples and
            dicts, to which there are no weak references, it keeps.

    Raises:
        ValueError: the root is not trackable.

    Example:
        >>> import torch
        >>> from torch_trackckpt import TrackableView
        >>> layer = torch.nn.Linear(2, 1)
        >>> view = TrackableView(layer)
        >>> list(view.children(layer))
        ['weight', 'bias']
        >>> [type(obj).__name__ for obj in view.descendants()]
        ['Linear', 'Parameter', 'Parameter']
    """

    def __init__(self, root: Any) -> None:
        _trackable(root)
        self._root = root if isinstance(root, weakref.ref) else _reference(root)

    @property
    def root(self) -> Any:
        """The root.

        Raises:
            ReferenceError: it is gone.
        """
        root = self._root()
        if root is None:
            raise ReferenceError("The root of this view is gone: a view refers to it weakly, so keep it elsewhere.")
        return root

    @classmethod
    def children(cls, obj: Any) -> dict[str, Any]:
        """The trackable children of any object by local name, in order.

        Raises:
            ValueError: the object is not trackable.
        """
        adapted = {name: adapt(child) for name, child in _trackable(obj)._trackable_children().items()}
        return {name: live_object(child) for name, child in adapted.items() if child is not None}

    def descendants(self) -> list[Any]:
        """The root and every object below it, breadth first, each once.

        Raises:
            ReferenceError: the root is gone.
        """
        return [live_object(node.trackable) for node in discover(self.root).nodes.values()]


def _reference(root: object) -> Callable[[], Any]:
    try:
        return weakref.ref(root)
    except TypeError:
        return lambda: root
