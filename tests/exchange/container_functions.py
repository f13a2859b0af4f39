"""What the worker of the tests of containers does with TensorFlow; a program is Python that changes `root`."""

from collections import namedtuple
from typing import Any

import tensorflow as tf
from functions import *  # noqa: F403  the worker serves them as well
from tensorflow.python.trackable.data_structures import NoDependency

AutoTrackable = tf.__internal__.tracking.AutoTrackable


def names(root: AutoTrackable) -> dict[str, Any]:
    """What a program may use."""
    return {
        "root": root,
        "thing": AutoTrackable,
        "value": tf.Variable,
        "NoDependency": NoDependency,
        "Pair": namedtuple("Pair", ["x", "y"]),
    }


def write_program(prefix: str, program: str) -> str | None:
    """Writes what a program made of the root; what TensorFlow says where it refuses to."""
    root = AutoTrackable()
    exec(program, names(root))
    try:
        tf.train.Checkpoint(root).write(prefix)
    except ValueError as error:
        return str(error)
    return None


def read_program(path: str, program: str, result: str) -> list[float]:
    """Values of the root after the program and `tf.train.Checkpoint.read`, by an expression that gives variables."""
    root = AutoTrackable()
    exec(program, names(root))
    tf.train.Checkpoint(root).read(path).assert_consumed()
    return [float(variable) for variable in eval(result, {"root": root})]
