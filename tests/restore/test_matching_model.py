"""Random programs restore exactly what the model says."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from hypothesis import event, example, given, settings
from restore.matching_model import CONTAINERS, DICT, LIST, OBJECT, TENSOR, Graph, Model, Program, programs
from torch import nn

from torch_trackckpt import AutoTrackable, Checkpoint, CheckpointOptions

FAST = CheckpointOptions(durable=False)


def build(graph: Graph, values: list[float]) -> list[Any]:
    """The objects of a graph, without the edges that a program makes in its steps."""
    objects: list[Any] = [None] * len(graph.kinds)
    for number, kind in enumerate(graph.kinds):
        if kind == TENSOR:
            objects[number] = nn.Parameter(torch.tensor(values[number]))
        elif kind not in CONTAINERS:
            objects[number] = AutoTrackable() if kind == OBJECT else nn.Module()
    for number, kind in enumerate(graph.kinds):
        children = {name: objects[child] for name, child in graph.children(number)}
        if kind == LIST:
            objects[number] = list(children.values())
        elif kind == DICT:
            objects[number] = children
    return objects


def write(program: Program, file: int, folder: str) -> str:
    graph = program.files[file]
    objects = build(graph, [program.saved_value(file, node) for node in range(len(graph.kinds))])
    for parent, name, child in graph.edges:
        if graph.kinds[parent] not in CONTAINERS:
            setattr(objects[parent], name, objects[child])
    return Checkpoint(objects[0]).write(f"{folder}/{file}", FAST)


def run(program: Program) -> list[float]:
    """The value of each live tensor after all steps."""
    live = program.live
    objects = build(live, [program.initial_value(number) for number in range(len(live.kinds))])
    checkpoint = Checkpoint(objects[0])
    with tempfile.TemporaryDirectory() as folder:
        paths = [write(program, file, folder) for file in range(len(program.files))]
        for step in program.steps:
            if isinstance(step, int):
                checkpoint.read(paths[step], FAST).expect_partial()
            else:
                parent, name, child = step
                setattr(objects[parent], name, objects[child])
    return [float(value.detach()) for value, kind in zip(objects, live.kinds, strict=True) if kind == TENSOR]


LEADS_BACK = Program(
    files=[Graph([OBJECT] * 5 + [TENSOR], [(0, "a", 1), (1, "b", 2), (2, "c", 3), (3, "b", 4), (4, "v", 5)])],
    live=Graph([OBJECT] * 3 + [TENSOR], [(0, "a", 1), (1, "b", 2), (2, "c", 1), (2, "v", 3)]),
    steps=[(0, "a", 1), (2, "c", 1), (2, "v", 3), 0, (1, "b", 2)],
)
"""The object that comes holds the one that it comes to, which stands for two saved objects then."""


@given(program=programs())
@example(program=LEADS_BACK)
@settings(max_examples=2000, deadline=None, derandomize=True, database=None)
def test_every_live_tensor_has_the_value_that_the_model_gives_it(program: Program) -> None:
    """C031, C074, C075, C076, C082, C083, C087, C090, C091, C134, C135, C136"""
    expected = Model(program).run()
    event(f"{sum(value > 0 for value in expected)} restored")
    assert run(program) == expected
