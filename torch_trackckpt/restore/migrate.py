"""Names of today for what older versions of modules have saved.

When a module that can take over older versions (`can_migrate`) is paired with a node, and what is stored below the node
is not what the module has, its loading is rehearsed (`adapters.module_migration`). The outcome is another graph: edges
with the names of today that lead to the same nodes, so that slots, references in states and what waits need to know
nothing of it. A value that a module computes belongs to the node that had its name, or to a new one.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_trackckpt.adapters.module import ModuleAdapter
from torch_trackckpt.adapters.module_migration import (
    Rehearsal,
    can_migrate,
    rehearse_loading,
)
from torch_trackckpt.adapters.stand_ins import live_parts, live_tensors
from torch_trackckpt.bundle.reader import CheckpointReader
from torch_trackckpt.errors import DataLossError, TensorNotFoundError
from torch_trackckpt.graph.object_graph import Child, Node, ObjectGraph
from torch_trackckpt.trackable import VARIABLE_VALUE, Trackable

__all__ = ["Migration", "Migrator"]

_FIRST_VERSION = 1
"""That of a module which says nothing else, in torch and in a node."""

_EXTRA_STATE = "_extra_state"

_Kind = tuple[torch.dtype, tuple[int, ...]]
"""Of a stored tensor."""

_KIND_OF_EXTRA_STATE: _Kind = (torch.uint8, (0,))
"""It is no tensor, and stands among the entries so that it moves with its module."""

_MOST_CHARACTERS = 1 << 26
"""How long all names below a node may be together; shared nodes of a hostile file could have any number of names."""


@dataclasses.dataclass(frozen=True)
class Migration:
    """What becomes of the graph when a module has taken over what an older version of it has saved."""

    graph: ObjectGraph
    changed: frozenset[int]
    """Nodes that were there and have other children now."""
    done: frozenset[int]
    """Nodes whose modules were asked."""
    computed: Mapping[int, torch.Tensor | None]
    """Values of nodes that are not those in the file; None where a live tensor is to keep the one that it has."""
    used_up: frozenset[int]
    """Nodes whose values modules have made others from, or have dropped."""
    reshaped: frozenset[int]
    """Nodes with a computed value of another shape than the stored one, whose slots do not fit any more."""
    attributes: tuple[tuple[nn.Module, str, object], ...]
    """What modules keep otherwise than as parameters and buffers: to be set on them."""


class Migrator:
    """Has modules take over what older versions of them have saved.

    Args:
        reader: the checkpoint.
    """

    def __init__(self, reader: CheckpointReader) -> None:
        self._reader = reader

    def __call__(self, graph: ObjectGraph, node_id: int, trackable: Trackable) -> Migration | None:
        """Asks a live object about what is stored below its node; None where nothing is another than it seems.

        Raises:
            RestoreError: a module does not take what is stored.
            DataLossError: damage; or the names below the node are beyond all measure.
        """
        if not isinstance(trackable, ModuleAdapter) or not can_migrate(trackable.adapted):
            return None
        module: nn.Module = trackable.adapted
        below = _Below(graph, node_id)
        kinds = self._kinds(graph, below)
        if below.is_of(module, kinds):
            return None
        values = _placeholders(kinds)
        rehearsal = rehearse_loading(
            module,
            values,
            below.versions(),
            lambda name: self._read(graph, below.leaves[name], values[name]),
            lambda prefix: f"{graph.readable(node_id)}.{prefix}"[:-1],
        )
        return _Renaming(graph, below, rehearsal, values).migration([prefix for prefix, _ in live_parts(module)])

    def _kinds(self, graph: ObjectGraph, below: _Below) -> dict[str, _Kind]:
        """Everything stored that can be an entry of a ``state_dict``."""
        found = {}
        for name, node_id in below.leaves.items():
            attributes = graph.nodes[node_id].attributes
            if name.rpartition(".")[2] == _EXTRA_STATE:
                found[name] = _KIND_OF_EXTRA_STATE
            elif len(attributes) == 1 and attributes[0].name == VARIABLE_VALUE:
                # What is not in the file is told of when it is to be assigned.
                with contextlib.suppress(TensorNotFoundError):
                    stored = self._reader.stored(attributes[0].checkpoint_key)
                    if stored.dtype.torch_dtype is not None:
                        found[name] = (stored.dtype.torch_dtype, stored.shape)
        return found

    def _read(self, graph: ObjectGraph, node_id: int, placeholder: torch.Tensor) -> torch.Tensor:
        attribute = graph.nodes[node_id].attributes[0]
        value = self._reader.get_tensor(attribute.checkpoint_key) if attribute.name == VARIABLE_VALUE else placeholder
        assert isinstance(value, torch.Tensor)
        return value


class _Below:
    """What is stored below a node, by dotted names from there, as in a ``state_dict``.

    Args:
        graph: the saved graph.
        node_id: the node.
    """

    def __init__(self, graph: ObjectGraph, node_id: int) -> None:
        self.inner: dict[str, int] = {"": node_id}
        """Prefix -> node without a value of its own."""
        self.leaves: dict[str, int] = {}
        """Name -> node with a value. Nodes whose names no ``state_dict`` could have are not among them."""
        self._graph = graph
        num_characters = 0
        stack: list[tuple[str, int, frozenset[int]]] = [("", node_id, frozenset())]
        while stack:
            prefix, parent_id, above = stack.pop()
            above = above | {parent_id}
            for child in graph.nodes[parent_id].children:
                name = prefix + child.local_name
                num_characters += len(name) + len(above)
                if num_characters > _MOST_CHARACTERS:
                    raise DataLossError(
                        f"The object graph is damaged, or shares nodes without measure: the names below "
                        f"{graph.readable(node_id)} have more than {_MOST_CHARACTERS} characters together."
                    )
                is_known = name in self.leaves or f"{name}." in self.inner
                if not child.local_name or "." in child.local_name or is_known:
                    continue
                node = graph.nodes[child.node_id]
                if node.attributes:
                    self.leaves[name] = child.node_id
                elif child.node_id not in above and not (node.registered_saver or node.slot_variables):
                    self.inner[f"{name}."] = child.node_id
                    stack.append((f"{name}.", child.node_id, above))

    def versions(self) -> dict[str, int]:
        """The version of each module, by prefix."""
        versions = {prefix: self._graph.nodes[node_id].module_version for prefix, node_id in self.inner.items()}
        return {prefix: _FIRST_VERSION if version is None else version for prefix, version in versions.items()}

    def is_of(self, module: nn.Module, stored: Mapping[str, _Kind]) -> bool:
        """Whether a module would save the same today, as far as can be told without values."""
        live = live_tensors(module)
        if live.keys() != {name for name in stored if name.rpartition(".")[2] != _EXTRA_STATE}:
            return False
        if any(not _is_alike(live[name], stored[name]) for name in live):
            return False
        versions = self.versions()
        return all(
            versions[prefix] == (ModuleAdapter(part)._module_version() or _FIRST_VERSION)
            for prefix, part in live_parts(module)
            if prefix in versions and can_migrate(part)
        )


def _is_alike(live: torch.Tensor, stored: _Kind) -> bool:
    return is_lazy(live) or (live.dtype, tuple(live.shape)) == stored


def _placeholders(kinds: Mapping[str, _Kind]) -> dict[str, torch.Tensor]:
    found = {}
    for name, (dtype, shape) in kinds.items():
        # A damaged file may tell of shapes that no tensor can have, which is found when it is to be read.
        with contextlib.suppress(RuntimeError):
            found[name] = torch.empty(shape, dtype=dtype, device="meta")
    return found


class _Renaming:
    """Makes the graph with the names of today.

    Args:
        graph: the graph before.
        below: what it has below a node.
        rehearsal: where the values of that go.
        values: those of the leaves that were offered to the module.
    """

    def __init__(
        self, graph: ObjectGraph, below: _Below, rehearsal: Rehearsal, values: Mapping[str, torch.Tensor]
    ) -> None:
        self._graph, self._below, self._values = graph, below, values
        self._nodes = list(graph.nodes)
        self._computed: dict[int, torch.Tensor | None] = {}
        self._reshaped: set[int] = set()
        self._attributes = tuple(rehearsal.attributes)
        self._children_of: dict[int, tuple[Child, ...]] = {}
        self._inner_ids: dict[str, int] = {}
        self._node_of = {name: node_id for name, node_id in below.leaves.items() if name not in values}
        self._place(rehearsal)
        self._names_in: dict[str, dict[str, None]] = {}
        for name in self._node_of:
            self._note_name(name)

    def _place(self, rehearsal: Rehearsal) -> None:
        """Finds the node for each name of today."""
        leaves = self._below.leaves
        at_home = {source for name, source in rehearsal.renamed.items() if name == source}
        placed: set[str] = set()
        for name, source in rehearsal.renamed.items():
            is_first = name == source if source in at_home else source not in placed
            placed.add(source)
            # A stored value with two names from now on has a node for each.
            self._node_of[name] = leaves[source] if is_first else self._append(self._graph.nodes[leaves[source]])
        taken = {leaves[source] for source in placed}
        for name, value in rehearsal.computed.items():
            node_id = leaves.get(name)
            if node_id is None or node_id in taken or name not in self._values:
                node_id = self._append(Node(has_checkpoint_values=value is not None))
            elif value is not None and value.shape != self._values[name].shape:
                self._reshaped.add(node_id)
            taken.add(node_id)
            self._node_of[name] = node_id
            self._computed[node_id] = value
        offered = {leaves[name] for name in self._values}
        self._used_up = frozenset(offered - taken)

    def _append(self, node: Node) -> int:
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _note_name(self, name: str) -> None:
        """Has every prefix of a name know what comes next."""
        is_known = False
        while not is_known:
            above, dot, own_name = name.rpartition(".")
            is_known = above + dot in self._names_in or not dot
            self._names_in.setdefault(above + dot, {})[own_name] = None
            name = above

    def migration(self, asked: list[str]) -> Migration | None:
        """The outcome; None where it is what was there before.

        Args:
            asked: the prefixes of the modules that were asked.
        """
        # What is lower has a longer prefix and comes first.
        prefixes = {*self._below.inner, *self._names_in}
        for prefix in sorted(prefixes, key=lambda prefix: prefix.count("."), reverse=True):
            self._rewrite(prefix)
        replaced = {
            node_id: children
            for node_id, children in self._children_of.items()
            if children != self._graph.nodes[node_id].children
        }
        for node_id, children in replaced.items():
            node = self._nodes[node_id]
            self._nodes[node_id] = dataclasses.replace(
                node, children=children, has_checkpoint_values=node.has_checkpoint_values or bool(children)
            )
        if not (replaced or self._computed or self._used_up or self._attributes):
            return None
        return Migration(
            ObjectGraph(tuple(self._nodes), self._graph.as_saved or self._graph),
            frozenset(replaced),
            frozenset(self._inner_ids[prefix] for prefix in asked if prefix in self._inner_ids),
            self._computed,
            self._used_up,
            frozenset(self._reshaped),
            self._attributes,
        )

    def _rewrite(self, prefix: str) -> None:
        """Gives the node of a prefix its children of today, or makes one; a node that has lost everything goes."""
        old_id = self._below.inner.get(prefix)
        old = () if old_id is None else self._graph.nodes[old_id].children
        wanted = dict(self._names_in.get(prefix, {}))
        children: list[Child] = []
        has_lost = False
        for child in old:
            name = prefix + child.local_name
            if self._below.inner.get(f"{name}.") == child.node_id or self._below.leaves.get(name) == child.node_id:
                wanted.pop(child.local_name, None)
                now = self._child(name)
                has_lost |= now is None
                children += [] if now is None else [Child(now, child.local_name)]
            else:
                children.append(child)
        for own_name in wanted:
            now = self._child(prefix + own_name)
            children += [] if now is None else [Child(now, own_name)]
        if prefix and has_lost and not any(self._has_values(child.node_id) for child in children):
            return
        if old_id is not None and self._children_of.setdefault(old_id, tuple(children)) == tuple(children):
            self._inner_ids[prefix] = old_id
        else:
            # Also for a node with two names, below which not the same has happened.
            self._inner_ids[prefix] = self._append(Node(tuple(children), has_checkpoint_values=True))

    def _child(self, name: str) -> int | None:
        return self._node_of.get(name, self._inner_ids.get(f"{name}."))

    def _has_values(self, node_id: int) -> bool:
        node = self._nodes[node_id]
        # A node that was empty may have been given children on the way up to here.
        children = self._children_of.get(node_id, node.children)
        return bool(children or node.attributes or node.registered_saver or node_id in self._computed)
