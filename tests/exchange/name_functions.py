"""What the worker of the tests of name-based files does with TensorFlow. Values are those of `functions.py`."""

from typing import Any

import tensorflow as tf
from functions import State, constant, content_of, decode_value

Json = Any


def save_by_names(prefix: str, values: dict[str, Json], cuts: dict[str, int], version: int, sharded: bool) -> str:
    """The path that a Saver of TensorFlow 1 gives; variables named in ``cuts`` are partitioned that often."""
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        for name, value in values.items():
            cut = tf.compat.v1.fixed_size_partitioner(cuts[name]) if name in cuts else None
            array = decode_value(value)
            tf.compat.v1.get_variable(
                name,
                shape=array.shape,
                dtype=tf.dtypes.as_dtype(value["dtype"]),
                partitioner=cut,
                initializer=_from(array),
            )
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(write_version=version, sharded=sharded)
        return saver.save(session, prefix, global_step=3, write_meta_graph=False)


def _from(array: Any) -> Any:
    """An initializer that gives a part of an array."""

    def initialize(shape: Any, dtype: Any = None, partition_info: Any = None) -> Any:
        offset = [0] * array.ndim if partition_info is None else partition_info.var_offset
        part = array[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]
        return tf.constant(part, dtype=dtype)

    return initialize


def restore_by_names(
    path: str, call: str, variables: dict[str, Json], late: dict[str, Json], nested: dict[str, Json], has_state: bool
) -> Json:
    """Restores into variables of the names, some of them set afterwards, some children of a module `part`.

    The contents by name, and what each assertion raises, or null.
    """
    made = {name: tf.Variable(constant(value), name=name) for name, value in (variables | late | nested).items()}
    checkpoint = tf.train.Checkpoint(**{name: made[name] for name in variables})
    if nested:
        part = tf.Module()
        for name in nested:
            setattr(part, name, made[name])
        checkpoint.part = part
    if has_state:
        checkpoint.state = State(b"live")
    status = getattr(checkpoint, call)(path)
    for name in late:
        setattr(checkpoint, name, made[name])
    outcomes = {}
    for assertion in ["assert_consumed", "assert_existing_objects_matched", "assert_nontrivial_match"]:
        try:
            getattr(status, assertion)()
            outcomes[assertion] = None
        except AssertionError as error:
            outcomes[assertion] = str(error)
    state = checkpoint.state.data.decode() if has_state else None
    return {"contents": {name: content_of(made[name]) for name in made}, "outcomes": outcomes, "state": state}
