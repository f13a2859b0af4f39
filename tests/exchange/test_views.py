"""Our views and TensorFlow's see the same graphs."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from graph_messages import encode_object_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torch_trackckpt import (
    AutoTrackable,
    Checkpoint,
    CheckpointOptions,
    CheckpointView,
    TrackableView,
    object_metadata,
)

from .conftest import Worker, tensorflow_worker

GOLDEN = Path(__file__).parents[1] / "golden"
WITH_GRAPH = [v["prefix"] for v in json.loads((GOLDEN / "manifest.json").read_text())["vectors"] if "object_graph" in v]
FAST = CheckpointOptions(durable=False)

Edges = list[tuple[int, str, int]]
"""A graph of objects: parent, name, child. The root is 0."""


@pytest.fixture(scope="module")
def views_of_tensorflow() -> Iterator[Worker]:
    """TensorFlow's views, in a worker of this file's own."""
    with tensorflow_worker("view_functions.py") as worker:
        yield worker


def seen(path: str | Path) -> dict[str, Any]:
    """What our view tells, in the form of the worker."""
    view = CheckpointView(path)
    num_nodes = len(object_metadata(path).nodes)
    return {
        "children": [[list(item) for item in view.children(node_id).items()] for node_id in range(num_nodes)],
        "descendants": view.descendants(),
    }


def objects(edges: Edges) -> list[AutoTrackable]:
    made = [AutoTrackable() for _ in range(1 + max((max(parent, child) for parent, _, child in edges), default=0))]
    for parent, name, child in edges:
        setattr(made[parent], name, made[child])
    return made


EDGES = st.lists(st.tuples(st.integers(0, 6), st.sampled_from("abcdxyz"), st.integers(0, 6)), max_size=20)
examples = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@given(edges=EDGES)
@examples
def test_both_views_of_a_checkpoint_that_we_wrote_tell_the_same(views_of_tensorflow: Worker, edges: Edges) -> None:
    """C400, C268, C269"""
    with TemporaryDirectory() as folder:
        path = Checkpoint(objects(edges)[0], x=torch.ones(2)).save(f"{folder}/ckpt", FAST)
        assert seen(path) == views_of_tensorflow.call("view", path=path)


@given(edges=EDGES)
@examples
def test_both_views_of_a_checkpoint_that_tensorflow_wrote_tell_the_same(
    views_of_tensorflow: Worker, edges: Edges
) -> None:
    """C400"""
    with TemporaryDirectory() as folder:
        path = views_of_tensorflow.call("write", prefix=f"{folder}/ckpt", edges=edges)
        assert seen(path) == views_of_tensorflow.call("view", path=path)


def test_both_views_of_a_training_tell_the_same(views_of_tensorflow: Worker, tmp_path: Path) -> None:
    """C400"""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(5, 3)).sum().backward()
    optimizer.step()
    path = Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "ckpt")
    assert seen(path) == views_of_tensorflow.call("view", path=path)


@pytest.mark.parametrize("name", WITH_GRAPH)
def test_both_views_of_the_golden_files_tell_the_same(views_of_tensorflow: Worker, name: str) -> None:
    """C400, C279"""
    path = str(GOLDEN / name)
    assert seen(path) == views_of_tensorflow.call("view", path=path)
    record = base64.b64decode(views_of_tensorflow.call("metadata", path=path))
    assert encode_object_graph(object_metadata(path)) == record


@given(stored=EDGES, live=EDGES)
@examples
def test_both_views_match_the_same_objects(views_of_tensorflow: Worker, stored: Edges, live: Edges) -> None:
    """C400, C270, C271, C272: objects of any graph, shared and in cycles."""
    made = objects(live)
    numbers = {id(item): number for number, item in enumerate(made)}
    with TemporaryDirectory() as folder:
        path = Checkpoint(objects(stored)[0]).write(f"{folder}/ckpt", FAST)
        theirs = views_of_tensorflow.call("match", path=path, edges=live)
        matched, only_stored, only_live = CheckpointView(path).diff(made[0])
    assert sorted([node_id, numbers[id(item)]] for node_id, item in matched.items()) == theirs["matched"]
    assert only_stored == theirs["only_stored"]
    assert [numbers[id(item)] for item in only_live] == theirs["only_live"]


@given(edges=EDGES)
@examples
def test_both_views_of_live_objects_tell_the_same(views_of_tensorflow: Worker, edges: Edges) -> None:
    """C276, C277: set in the order of their names, which is that of a tf.Module in any case."""
    edges = sorted(edges)
    theirs = views_of_tensorflow.call("live", edges=edges)
    made = objects(edges)
    numbers = {id(item): number for number, item in enumerate(made)}
    children = [[[name, numbers[id(c)]] for name, c in TrackableView.children(item).items()] for item in made]
    assert children == theirs["children"]
    assert [numbers[id(item)] for item in TrackableView(made[0]).descendants()] == theirs["descendants"]
