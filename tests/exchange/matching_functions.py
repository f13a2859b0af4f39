"""What the worker does for the model of matching: it does the steps of a random program with TensorFlow's objects."""

from typing import Any

import tensorflow as tf

Json = Any


def run_program(paths: list[str], kinds: list[str], edges: Json, steps: Json, initial: list[float]) -> list[float]:
    """The value of each variable after all steps.

    Args:
        paths: the files.
        kinds: what each object is: "object" or "module" (a `tf.Module`), "tensor", "list" or "dict".
        edges: [parent, name, child], of which those of lists and dicts are made here.
        steps: the number of a file to restore, or an edge to make.
        initial: values of the variables.
    """
    objects: list[Any] = [None] * len(kinds)
    for number, kind in enumerate(kinds):
        if kind == "tensor":
            objects[number] = tf.Variable(initial[number], dtype=tf.float32)
        elif kind in ("object", "module"):
            objects[number] = tf.Module()
    for number, kind in enumerate(kinds):
        children = {name: objects[child] for parent, name, child in edges if parent == number}
        if kind == "list":
            objects[number] = list(children.values())
        elif kind == "dict":
            objects[number] = children
    checkpoint = tf.train.Checkpoint(objects[0])
    for step in steps:
        if isinstance(step, int):
            checkpoint.read(paths[step]).expect_partial()
        else:
            parent, name, child = step
            setattr(objects[parent], name, objects[child])
    return [float(value.numpy()) for value, kind in zip(objects, kinds, strict=True) if kind == "tensor"]
