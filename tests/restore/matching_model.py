"""A slow, plain model of how restores are matched, and random programs for it.

The model knows nothing but numbers, names and dicts. It follows TensorFlow's rules as they are told:

    bind       breadth first, each saved node to the first live object that a path leads to
    values     an object takes the value of a node if no later restore, and none of the same, gave it one before
    wait       a saved child that has no live one, and any value below it, waits at the live parent under its name
    attach     what waits under the name is restored into the new child, the latest restore first
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import TypeAlias

from hypothesis import strategies as st

__all__ = ["Graph", "Model", "Program", "programs"]

OBJECT, MODULE, TENSOR, LIST, DICT = KINDS = ("object", "module", "tensor", "list", "dict")
CONTAINERS = (LIST, DICT)
NAMES = ("a", "b", "c", "d", "e", "f", "0", "1", "2")

Edge: TypeAlias = tuple[int, str, int]
"""Parent, local name, child."""


@dataclasses.dataclass
class Graph:
    """Objects by number, and the edges between them in the order in which they are made. The root is number 0."""

    kinds: list[str]
    edges: list[Edge]

    def children(self, parent: int) -> list[tuple[str, int]]:
        """In the order in which they are saved: a module's parameters come before its submodules."""
        found = [(name, child) for owner, name, child in self.edges if owner == parent]
        if self.kinds[parent] == MODULE:
            found.sort(key=lambda pair: self.kinds[pair[1]] != TENSOR)
        return found

    def below(self, node: int) -> set[int]:
        """The node and everything that paths from it lead to."""
        found, stack = set(), [node]
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack += [child for _, child in self.children(node)]
        return found

    def has_values(self, node: int) -> bool:
        return any(self.kinds[below] == TENSOR for below in self.below(node))


@dataclasses.dataclass
class Program:
    """What is saved, and what a program does."""

    files: list[Graph]
    live: Graph
    """Lists and dicts are filled before the program begins; every other edge is one of the steps."""
    steps: list[int | Edge]
    """Restores, by the number of the file, and attachments."""

    def saved_value(self, file: int, node: int) -> float:
        return 100.0 * (file + 1) + node

    def initial_value(self, live: int) -> float:
        return -1.0 - live


class Model:
    """What the live objects of a program hold.

    Args:
        program: the program, whose steps are done one after the other by `run`.
        counts_nodes_without_values: a live tensor that stands for a saved object without a value counts as restored,
            and takes no value of the same restore or an earlier one. That is so in TensorFlow; the package lets it
            have the value.
    """

    def __init__(self, program: Program, *, counts_nodes_without_values: bool = False) -> None:
        self._program = program
        self._counts_nodes_without_values = counts_nodes_without_values
        kinds = program.live.kinds
        self._children: list[dict[str, int]] = [{} for _ in kinds]
        for parent, name, child in program.live.edges:
            if kinds[parent] in CONTAINERS:
                self._children[parent][name] = child
        self._waiting: list[dict[str, list[tuple[_Restore, int]]]] = [{} for _ in kinds]
        self._last_restore = [-1 for _ in kinds]
        self._num_restores = 0
        self._values = [program.initial_value(live) for live in range(len(kinds))]

    def run(self) -> list[float]:
        """The value of each live tensor, in the order of their numbers, after all steps."""
        for step in self._program.steps:
            if isinstance(step, int):
                self._restore(_Restore(self._num_restores, step), 0, 0)
                self._num_restores += 1
            else:
                self._attach(*step)
        return [value for value, kind in zip(self._values, self._program.live.kinds, strict=True) if kind == TENSOR]

    def _attach(self, parent: int, name: str, child: int) -> None:
        self._children[parent][name] = child
        positions = self._waiting[parent].pop(name, [])
        for restore, node in sorted(positions, key=lambda position: position[0].number, reverse=True):
            self._restore(restore, node, child)

    def _restore(self, restore: _Restore, node: int, live: int) -> None:
        graph = self._program.files[restore.file]
        queue: deque[tuple[int, int]] = deque()

        def bind(node: int, live: int) -> None:
            if node not in restore.bound:
                restore.bound[node] = live
                queue.append((node, live))

        bind(node, live)
        while queue:
            node, live = queue.popleft()
            self._give_value(restore, node, live)
            for name, child in graph.children(node):
                if child in restore.bound:
                    continue
                if name in self._children[live]:
                    bind(child, self._children[live][name])
                elif graph.has_values(child):
                    self._waiting[live].setdefault(name, []).append((restore, child))

    def _give_value(self, restore: _Restore, node: int, live: int) -> None:
        has_value = self._program.files[restore.file].kinds[node] == TENSOR
        if self._last_restore[live] < restore.number and (has_value or self._counts_nodes_without_values):
            self._last_restore[live] = restore.number
            if has_value:
                self._values[live] = self._program.saved_value(restore.file, node)


@dataclasses.dataclass
class _Restore:
    number: int
    file: int
    bound: dict[int, int] = dataclasses.field(default_factory=dict)


# ------------------------------------------------------------------------------------------ random programs


def may_hold(kinds: list[str], parent: int, child: int) -> bool:
    """Modules hold modules and parameters; lists and dicts are held by objects, and hold anything else."""
    if child == 0:
        return kinds[parent] == OBJECT or kinds[parent] == kinds[0] == MODULE
    if kinds[parent] == MODULE:
        return kinds[child] in (MODULE, TENSOR)
    if kinds[child] in CONTAINERS:
        return kinds[parent] == OBJECT
    return kinds[parent] != TENSOR


def tidied(kinds: list[str], edges: list[Edge]) -> Graph:
    """Without what no program can do: two children of one name, a shared list or dict, gaps in a list."""
    names: dict[tuple[int, str], int] = {}
    held: set[int] = set()
    for parent, name, child in edges:
        is_free = (parent, name) not in names and not (kinds[child] in CONTAINERS and child in held)
        if may_hold(kinds, parent, child) and is_free:
            if kinds[parent] == LIST:
                name = str(sum(owner == parent for owner, _ in names))
            names[parent, name] = child
            held.add(child)
    return Graph(kinds, [(parent, name, child) for (parent, name), child in names.items()])


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """A graph in which most things are reachable, with shared objects and cycles."""
    kinds = [draw(st.sampled_from([OBJECT, OBJECT, MODULE]))]
    kinds += draw(st.lists(st.sampled_from([OBJECT, MODULE, LIST, DICT, TENSOR]), min_size=1, max_size=4))
    kinds += [TENSOR] * draw(st.integers(1, 4))
    edges: list[Edge] = []
    for child in range(1, len(kinds)):
        parents = [parent for parent in range(child) if may_hold(kinds, parent, child)]
        if parents:
            parent = draw(st.sampled_from(parents))
            taken = {name for owner, name, _ in edges if owner == parent}
            edges.append((parent, draw(st.sampled_from([name for name in NAMES if name not in taken])), child))
    edges += draw(st.lists(random_edges(len(kinds)), max_size=4))
    return tidied(kinds, edges)


def names() -> st.SearchStrategy[str]:
    return st.sampled_from(NAMES)


def random_edges(num_objects: int) -> st.SearchStrategy[Edge]:
    numbers = st.integers(0, num_objects - 1)
    return st.tuples(numbers, names(), numbers)


@st.composite
def versions(draw: st.DrawFn, graph: Graph) -> Graph:
    """The graph as another version of the program has it: some names, edges and kinds have changed."""
    kinds, edges = list(graph.kinds), list(graph.edges)
    for _ in range(draw(st.integers(0, 3))):
        change = draw(st.sampled_from(["rename", "redirect", "drop", "add", "kind", "move"]))
        index = draw(st.integers(0, max(len(edges) - 1, 0)))
        if change == "add" or not edges:
            edges.append(draw(random_edges(len(kinds))))
        elif change == "kind":
            kinds[draw(st.integers(1, len(kinds) - 1))] = draw(st.sampled_from(KINDS))
        else:
            parent, name, child = edges.pop(index)
            if change == "rename":
                edges.insert(index, (parent, draw(names()), child))
            elif change == "redirect":
                edges.insert(index, (parent, name, draw(st.integers(0, len(kinds) - 1))))
            elif change == "move":
                edges.append((parent, name, child))
    return tidied(kinds, edges)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """A program that restores one to three files of related graphs while its own graph grows."""
    base = draw(graphs())
    files = [draw(versions(base)) for _ in range(draw(st.integers(1, 3)))]
    live = draw(versions(base))
    attachments = [edge for edge in live.edges if live.kinds[edge[0]] not in CONTAINERS]
    steps: list[int | Edge] = list(draw(st.permutations(attachments)))
    for file in draw(st.lists(st.sampled_from(range(len(files))), min_size=1, max_size=3)):
        steps.insert(draw(st.integers(0, len(steps))), file)
    return Program(files, live, steps)
