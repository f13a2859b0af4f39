"""What the worker of `test_views.py` does with TensorFlow's view of a checkpoint."""

import base64
from typing import Any

import tensorflow as tf


def view(path: str) -> dict[str, Any]:
    """The children of every node, and the descendants of the root."""
    seen = tf.train.CheckpointView(path)
    num_nodes = len(seen._object_graph_proto.nodes)
    return {
        "children": [list(seen.children(node_id).items()) for node_id in range(num_nodes)],
        "descendants": seen.descendants(),
    }


def metadata(path: str) -> str:
    """The message that ``object_metadata`` returns, as base64."""
    from tensorflow.python.checkpoint.checkpoint import object_metadata

    return base64.b64encode(object_metadata(path).SerializeToString(deterministic=True)).decode()


def objects(edges: list[list[Any]]) -> list[tf.Module]:
    """Modules with these references: parent, name, child."""
    made = [tf.Module() for _ in range(1 + max((max(parent, child) for parent, _, child in edges), default=0))]
    for parent, name, child in edges:
        setattr(made[parent], name, made[child])
    return made


def write(prefix: str, edges: list[list[Any]]) -> str:
    """A checkpoint of modules, the first of which is the root."""
    return tf.train.Checkpoint(objects(edges)[0]).write(prefix)


def match(path: str, edges: list[list[Any]]) -> dict[str, Any]:
    """Node ids and numbers of the modules that TensorFlow matches and does not."""
    made = objects(edges)
    numbers = {id(module): number for number, module in enumerate(made)}
    matched, only_stored, only_live = tf.train.CheckpointView(path).diff(made[0])
    return {
        "matched": sorted([node_id, numbers[id(module)]] for node_id, module in matched.items()),
        "only_stored": only_stored,
        "only_live": [numbers[id(module)] for module in only_live],
    }


def live(edges: list[list[Any]]) -> dict[str, Any]:
    """What TensorFlow's view of live modules tells of their references."""
    made = objects(edges)
    numbers = {id(module): number for number, module in enumerate(made)}
    seen = tf.train.TrackableView(made[0])
    return {
        "children": [[[n, numbers[id(child)]] for n, child in seen.children(module).items()] for module in made],
        "descendants": [numbers[id(module)] for module in seen.descendants()],
    }
