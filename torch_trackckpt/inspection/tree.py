"""The object graph of a checkpoint as text; no model is needed.

Every object stands once, at the end of the shortest way from the root; other ways to it only point there. A slot
variable stands under its variable, with the path of its optimizer. Objects may be shared, form cycles and lie deeper
than Python can recurse, so the tree is built breadth first and drawn from a stack.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Iterator

from torch_trackckpt.bundle.reader import StoredTensor
from torch_trackckpt.graph.keys import escape
from torch_trackckpt.graph.messages import read_object_graph
from torch_trackckpt.graph.object_graph import ObjectGraph
from torch_trackckpt.reading import load_checkpoint
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY, PYTHON_STATE, VARIABLE_VALUE

__all__ = ["format_tree"]

_WIDEST_COLUMN = 72
"""Rows that begin deeper than this push their values to the right, instead of those of every other row."""


def format_tree(ckpt_dir_or_file: str | os.PathLike[str], *, max_lines: int | None = None) -> str:
    """The objects of a checkpoint as a tree of their local names, each value with its dtype, shape and size.

    A checkpoint without an object graph is shown as a tree of its keys, split at ``/``. The last line has the totals;
    the record of the graph itself is not counted.

    Args:
        ckpt_dir_or_file: as for `load_checkpoint`.
        max_lines: how many lines of the tree to show; one more then tells how many there are besides.

    Raises:
        ValueError, CheckpointNotFoundError, DataLossError: as `load_checkpoint`; ``max_lines`` is below 1.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from torch_trackckpt import Checkpoint
        >>> path = Checkpoint(layer=nn.Linear(3, 2)).write(tempfile.mkdtemp() + "/ckpt")
        >>> print(format_tree(path))
        ckpt
        └─ layer
           ├─ weight  float32 [2, 3]  24 B
           └─ bias    float32 [2]      8 B
        2 values, 32 B, 4 objects
    """
    if max_lines is not None and max_lines < 1:
        raise ValueError(f"max_lines is {max_lines}; at least one line is shown.")
    reader = load_checkpoint(ckpt_dir_or_file)
    stored = {value.key: value for value in reader.all_stored()}
    title = _printable(os.path.basename(reader.file_prefix))
    graph = read_object_graph(reader)
    if graph is not None:
        del stored[OBJECT_GRAPH_KEY]
        tree, objects = _tree_of_objects(graph, stored, title), _counted(len(graph.nodes), "object")
    else:
        tree, objects = _tree_of_keys(stored, title), "no object graph"
    rows = _rows(tree)
    lines = _aligned(list(itertools.islice(rows, max_lines)))
    if num_hidden := sum(1 for _ in rows):
        lines.append(f"... {_counted(num_hidden, 'more line')}")
    total = _human_size(sum(value.nbytes for value in stored.values()))
    return "\n".join([*lines, f"{_counted(len(stored), 'value')}, {total}, {objects}"])


_DEEPEST = 100
"""How many levels are drawn: each line begins with its way from the root."""


@dataclasses.dataclass
class _Line:
    """One line of the tree, and those below it."""

    label: str
    value: str = ""
    size: str = ""
    branches: list[_Line] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, eq=False)
class _Edge:
    """A way from an object to one below it: to a child, or to a slot variable. Compared by identity."""

    name: str
    node_id: int
    optimizer_id: int | None = None
    """For a slot variable: whose state it is."""


# With an object graph.


def _tree_of_objects(graph: ObjectGraph, stored: dict[str, StoredTensor], title: str) -> _Line:
    edges = _edges(graph)
    ways = _shortest_ways(edges)
    lines = [_line_of_object(graph, node_id, stored) for node_id in range(len(graph.nodes))]
    lines[0].label = title
    for node_id, line in enumerate(lines):
        # Before the values of an object with several stand the objects below it.
        line.branches[:0] = [_branch(edge, ways, lines, node_id) for edge in edges[node_id]]
    return lines[0]


def _edges(graph: ObjectGraph) -> list[list[_Edge]]:
    """For each object, the ways down from it."""
    edges = [[_Edge(child.local_name, child.node_id) for child in node.children] for node in graph.nodes]
    for optimizer_id, node in enumerate(graph.nodes):
        for slot in node.slot_variables:
            edges[slot.variable_id].append(_Edge(slot.slot_name, slot.slot_id, optimizer_id))
    return edges


def _shortest_ways(edges: list[list[_Edge]]) -> dict[int, tuple[int, _Edge]]:
    """For each object below the root, the object above it and the edge between them."""
    ways: dict[int, tuple[int, _Edge]] = {}
    queue = deque([0])
    while queue:
        parent = queue.popleft()
        for edge in edges[parent]:
            if edge.node_id != 0 and edge.node_id not in ways:
                ways[edge.node_id] = (parent, edge)
                queue.append(edge.node_id)
    return ways


def _branch(edge: _Edge, ways: dict[int, tuple[int, _Edge]], lines: list[_Line], parent: int) -> _Line:
    label = _printable(edge.name)
    if edge.optimizer_id is not None:
        label += f" ({_path(edge.optimizer_id, ways)})"
    if ways.get(edge.node_id) != (parent, edge):
        return _Line(f"{label} -> {_path(edge.node_id, ways)}")
    lines[edge.node_id].label = label
    return lines[edge.node_id]


def _path(node_id: int, ways: dict[int, tuple[int, _Edge]]) -> str:
    names = []
    while node_id in ways:
        node_id, edge = ways[node_id]
        names.append(_printable(escape(edge.name)))
    return "/".join(reversed(names)) or "(root)"


def _line_of_object(graph: ObjectGraph, node_id: int, stored: dict[str, StoredTensor]) -> _Line:
    """A variable or a python state has its value on its own line; other values are branches by their names."""
    attributes = graph.nodes[node_id].attributes
    values = [_line_of_value(attribute.name, stored.get(attribute.checkpoint_key)) for attribute in attributes]
    if len(values) == 1 and attributes[0].name in (VARIABLE_VALUE, PYTHON_STATE):
        return values[0]
    return _Line("", branches=values)


def _line_of_value(name: str, stored: StoredTensor | None) -> _Line:
    if stored is None:
        return _Line(_printable(name), "missing")
    value = "python state" if name == PYTHON_STATE else f"{stored.dtype} {list(stored.shape)}"
    return _Line(_printable(name), value, _human_size(stored.nbytes))


# Without one.


def _tree_of_keys(stored: dict[str, StoredTensor], title: str) -> _Line:
    root = _Line(title)
    below: dict[tuple[int, str], _Line] = {}
    for key, value in stored.items():
        line = root
        for part in key.split("/"):
            step = (id(line), part)
            if step not in below:
                below[step] = _Line(_printable(part))
                line.branches.append(below[step])
            line = below[step]
        described = _line_of_value(key, value)
        line.value, line.size = described.value, described.size
    return root


# As text.


def _rows(root: _Line) -> Iterator[tuple[str, str, str]]:
    """Drawn label, value and size of each line, from top to bottom."""
    stack = [(root, "", "")]
    while stack:
        line, lead, lead_below = stack.pop()
        yield lead + line.label, line.value, line.size
        if line.branches and len(lead_below) >= _DEEPEST * len("│  "):
            yield lead_below + "└─ ... (deeper)", "", ""
            continue
        for branch in reversed(line.branches):
            is_last = branch is line.branches[-1]
            corner, below = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
            stack.append((branch, lead_below + corner, lead_below + below))


def _aligned(rows: list[tuple[str, str, str]]) -> list[str]:
    with_value = [row for row in rows if row[1]]
    label, value, size = (
        max((len(row[column]) for row in with_value if len(row[column]) <= _WIDEST_COLUMN), default=0)
        for column in range(3)
    )
    return [f"{row[0]:<{label}}  {row[1]:<{value}}  {row[2]:>{size}}".rstrip() for row in rows]


def _human_size(num_bytes: int) -> str:
    if num_bytes < 1024:
        return f"{num_bytes} B"
    size, units = num_bytes / 1024, ["KiB", "MiB", "GiB", "TiB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.1f} {units[0]}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _printable(name: str) -> str:
    """A name as it can stand in a line of text."""
    return name if name.isprintable() and name else repr(name)
