"""What the worker does with TensorFlow. Arguments and results are JSON.

value     {"dtype": TensorFlow's name, "shape": [...], "data": base64, or for strings a list of base64}
objects   a list of {"kind": "variable", "name": ..., "value": value}      a tf.Variable
                    {"kind": "state", "data": base64}                      a PythonState
                    {"kind": "module", "children": [[name, index], ...]}   a tf.Module with these attributes
                    {"kind": "dict", "children": [[name, index], ...]}     a dict
                    {"kind": "list", "children": [["0", index], ...]}      a list
tree      {"objects": objects, "root": index or null, "children": {keyword: index}}: a tf.train.Checkpoint
"""

import base64
from typing import Any

import numpy as np
import tensorflow as tf

Json = Any


# Values.


def decode_value(value: Json) -> np.ndarray:
    if value["dtype"] == "string":
        elements = np.empty(len(value["data"]), dtype=object)
        elements[:] = [base64.b64decode(element) for element in value["data"]]
        return elements.reshape(value["shape"])
    dtype = tf.dtypes.as_dtype(value["dtype"]).as_numpy_dtype
    return np.ndarray(value["shape"], dtype, buffer=bytearray(base64.b64decode(value["data"])))


def encode_value(dtype: tf.DType, value: Any) -> Json:
    if dtype == tf.string:
        elements = np.asarray(value, dtype=object)
        return {"dtype": "string", "shape": elements.shape, "data": [to_base64(e) for e in elements.ravel()]}
    array = np.asarray(value)
    little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return {"dtype": dtype.name, "shape": array.shape, "data": to_base64(little_endian.tobytes())}


def constant(value: Json) -> tf.Tensor:
    return tf.constant(decode_value(value), dtype=tf.dtypes.as_dtype(value["dtype"]))


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# Objects.


class State(tf.train.experimental.PythonState):
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data

    def deserialize(self, string_value: bytes) -> None:
        self.data = string_value


def build_objects(objects: Json) -> list[Any]:
    built: dict[int, Any] = {}

    def build(index: int) -> Any:
        if index not in built:
            built[index] = build_one(objects[index])
        return built[index]

    def build_one(description: Json) -> Any:
        if description["kind"] == "variable":
            return tf.Variable(constant(description["value"]), name=description["name"])
        if description["kind"] == "state":
            return State(base64.b64decode(description["data"]))
        children = {name: build(child) for name, child in description["children"]}
        if description["kind"] == "list":
            return list(children.values())
        if description["kind"] == "dict":
            return children
        module = tf.Module()
        for name, child in children.items():
            setattr(module, name, child)
        return module

    return [build(index) for index in range(len(objects))]


def build_checkpoint(tree: Json) -> tuple[tf.train.Checkpoint, list[Any]]:
    objects = build_objects(tree["objects"])
    root = None if tree["root"] is None else objects[tree["root"]]
    return tf.train.Checkpoint(root, **{name: objects[index] for name, index in tree["children"].items()}), objects


def content_of(built: Any) -> Json:
    if isinstance(built, tf.Variable):
        return encode_value(built.dtype, built.numpy())
    return to_base64(built.data) if isinstance(built, State) else None


# Bundles.


def save_tensors(prefix: str, keys: list[str], values: list[Json], slices: list[str]) -> None:
    """`SaveV2`, whose keys may be any bytes."""
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=[base64.b64decode(key) for key in keys],
        shape_and_slices=slices,
        tensors=[constant(value) for value in values],
    )


def merge_bundles(prefixes: list[str], destination: str) -> None:
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=prefixes, destination_prefix=destination)


def read_all(path: str) -> dict[str, Json]:
    """Every key, with its value as `tf.train.load_checkpoint` gives it."""
    reader = tf.train.load_checkpoint(path)
    shapes = reader.get_variable_to_shape_map()
    found = {}
    for key, dtype in reader.get_variable_to_dtype_map().items():
        found[key] = encode_value(dtype, reader.get_tensor(key))
        if list(found[key]["shape"]) != shapes[key]:
            raise AssertionError(f"{key}: listed with shape {shapes[key]}, read with {found[key]['shape']}")
    return found


def read_one(path: str, key: str) -> Json:
    reader = tf.train.load_checkpoint(path)
    return encode_value(reader.get_variable_to_dtype_map()[key], reader.get_tensor(key))


def list_variables(path: str) -> list[tuple[str, list[int]]]:
    return tf.train.list_variables(path)


def latest_checkpoint(directory: str) -> str | None:
    return tf.train.latest_checkpoint(directory)


# Files of the older format.


def save_v1(path: str, keys: list[str], values: list[Json], slices: list[str]) -> None:
    """`SaveSlices`: each value is the whole of its key, or the part that its text in ``slices`` says."""
    tf.raw_ops.SaveSlices(
        filename=path,
        tensor_names=[base64.b64decode(key) for key in keys],
        shapes_and_slices=slices,
        data=[constant(value) for value in values],
    )


# Checkpoints.


def write(prefix: str, tree: Json) -> str:
    checkpoint, _ = build_checkpoint(tree)
    return checkpoint.write(prefix)


def save(prefix: str, tree: Json, times: int, after: str | None) -> str:
    """The last path of several saves, after a restore where ``after`` names a checkpoint."""
    checkpoint, _ = build_checkpoint(tree)
    if after is not None:
        checkpoint.restore(after).assert_consumed()
    return [checkpoint.save(prefix) for _ in range(times)][-1]


def restore(path: str, tree: Json, assertions: list[str]) -> Json:
    """The content of every object and the counter, after `restore` and the assertions of its status."""
    checkpoint, objects = build_checkpoint(tree)
    status = checkpoint.restore(path)
    for assertion in assertions:
        getattr(status, assertion)()
    return {"contents": [content_of(built) for built in objects], "save_counter": int(checkpoint.save_counter)}


def read(path: str, tree: Json, assertions: list[str]) -> Json:
    """The content of every object, after `read` and the assertions of its status."""
    checkpoint, objects = build_checkpoint(tree)
    status = checkpoint.read(path)
    for assertion in assertions:
        getattr(status, assertion)()
    return {"contents": [content_of(built) for built in objects]}


# Slot variables.


def write_with_adam(prefix: str, tree: Json) -> dict[str, Json]:
    """A checkpoint with an optimizer of TensorFlow 1 that has made one step; by key, what it holds."""
    checkpoint, objects = build_checkpoint(tree)
    variables = [built for built in objects if isinstance(built, tf.Variable)]
    checkpoint.optimizer = tf.compat.v1.train.AdamOptimizer(0.1)
    checkpoint.optimizer.apply_gradients([(tf.ones_like(variable), variable) for variable in variables])
    return read_all(checkpoint.write(prefix))


def restore_slots(path: str, tree: Json, slot_names: list[str]) -> dict[str, list[Json]]:
    """By slot name, the slots that an optimizer of TensorFlow 1 takes from a checkpoint, in the variables' order."""
    checkpoint, objects = build_checkpoint(tree)
    variables = [built for built in objects if isinstance(built, tf.Variable)]
    checkpoint.optimizer = tf.compat.v1.train.GradientDescentOptimizer(0.1)
    checkpoint.restore(path).assert_existing_objects_matched()
    found = {name: [checkpoint.optimizer.get_slot(variable, name) for variable in variables] for name in slot_names}
    return {name: [encode_value(slot.dtype, slot.numpy()) for slot in slots] for name, slots in found.items()}
