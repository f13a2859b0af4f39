"""The protobuf messages of the format, declared under a package name of our own.

They live in a descriptor pool of their own as well, so that TensorFlow, which declares the same messages, can
be imported into the same process before or after.

    TrackableObjectGraph   1 nodes: repeated TrackableObject
    TrackableObject        1 children: repeated ObjectReference         2 attributes: repeated SerializedTensor
                           3 slot_variables: repeated SlotVariableReference
                           4 registered_saver: RegisteredSaver          5 has_checkpoint_values: BoolValue
                           50001 module_version: Int64Value
    ObjectReference        1 node_id: int32                    2 local_name: string
    SerializedTensor       1 name: string    2 full_name: string    3 checkpoint_key: string
    SlotVariableReference  1 original_variable_node_id: int32  2 slot_name: string
                           3 slot_variable_node_id: int32
    RegisteredSaver        1 name: string    2 object_name: string
    BoolValue              1 value: bool
    Int64Value             1 value: int64
    CheckpointState        1 model_checkpoint_path: string
                           2 all_model_checkpoint_paths: repeated string
                           3 all_model_checkpoint_timestamps: repeated double
                           4 last_preserved_timestamp: double

`module_version` is ours. TensorFlow numbers its fields from 1 on and skips those that it does not know, so a graph that
has it is a sound one to it. It is written only where a module is of another version than torch's default, 1.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from torch_trackckpt.bundle.reader import CheckpointReader
from torch_trackckpt.errors import DataLossError
from torch_trackckpt.graph.object_graph import Attribute, Child, Node, ObjectGraph, SlotVariable
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY

__all__ = ["CheckpointStateMessage", "decode_object_graph", "encode_object_graph", "read_object_graph"]

_PACKAGE = "torch_trackckpt"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "string": _Field.TYPE_STRING,
    "bool": _Field.TYPE_BOOL,
    "double": _Field.TYPE_DOUBLE,
}
_MESSAGES = {
    "TrackableObjectGraph": ("repeated TrackableObject nodes",),
    "TrackableObject": (
        "repeated ObjectReference children",
        "repeated SerializedTensor attributes",
        "repeated SlotVariableReference slot_variables",
        "optional RegisteredSaver registered_saver",
        "optional BoolValue has_checkpoint_values",
        "optional Int64Value module_version = 50001",
    ),
    "ObjectReference": ("optional int32 node_id", "optional string local_name"),
    "SerializedTensor": (
        "optional string name",
        "optional string full_name",
        "optional string checkpoint_key",
    ),
    "SlotVariableReference": (
        "optional int32 original_variable_node_id",
        "optional string slot_name",
        "optional int32 slot_variable_node_id",
    ),
    "RegisteredSaver": ("optional string name", "optional string object_name"),
    "BoolValue": ("optional bool value",),
    "Int64Value": ("optional int64 value",),
    "CheckpointState": (
        "optional string model_checkpoint_path",
        "repeated string all_model_checkpoint_paths",
        "repeated double all_model_checkpoint_timestamps",
        "optional double last_preserved_timestamp",
    ),
}


def _declare() -> dict[str, type[message.Message]]:
    file = descriptor_pb2.FileDescriptorProto(name="torch_trackckpt/messages.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        declared = file.message_type.add(name=name)
        for number, field in enumerate(fields, start=1):
            label, kind, field_name, *own_number = field.replace("=", " ").split()
            declared.field.add(
                name=field_name,
                number=int(own_number[0]) if own_number else number,
                label=_Field.LABEL_REPEATED if label == "repeated" else _Field.LABEL_OPTIONAL,
                type=_SCALARS.get(kind, _Field.TYPE_MESSAGE),
                type_name=None if kind in _SCALARS else f".{_PACKAGE}.{kind}",
            )
    return dict(message_factory.GetMessages([file], pool=descriptor_pool.DescriptorPool()))


_CLASSES = _declare()
_GraphMessage: Any = _CLASSES[f"{_PACKAGE}.TrackableObjectGraph"]
CheckpointStateMessage: Any = _CLASSES[f"{_PACKAGE}.CheckpointState"]
"""The message of the state file."""


def encode_object_graph(graph: ObjectGraph) -> bytes:
    """The bytes that the checkpoint keeps under its object graph key."""
    encoded = _GraphMessage()
    for node in graph.nodes:
        target = encoded.nodes.add()
        for child in node.children:
            target.children.add(node_id=child.node_id, local_name=child.local_name)
        for attribute in node.attributes:
            target.attributes.add(
                name=attribute.name, full_name=attribute.full_name, checkpoint_key=attribute.checkpoint_key
            )
        for slot in node.slot_variables:
            target.slot_variables.add(
                original_variable_node_id=slot.variable_id,
                slot_name=slot.slot_name,
                slot_variable_node_id=slot.slot_id,
            )
        if node.registered_saver is not None:
            target.registered_saver.name, target.registered_saver.object_name = node.registered_saver
        if node.has_checkpoint_values is not None:
            # A false BoolValue is still present, as an empty message.
            target.has_checkpoint_values.SetInParent()
            target.has_checkpoint_values.value = node.has_checkpoint_values
        if node.module_version is not None:
            target.module_version.SetInParent()
            target.module_version.value = node.module_version
    return bytes(encoded.SerializeToString(deterministic=True))


def decode_object_graph(data: bytes, source: str) -> ObjectGraph:
    """The object graph in a checkpoint's record.

    Args:
        data: the record.
        source: what to call the checkpoint in an error.

    Raises:
        DataLossError: the record is no object graph, or refers to nodes that it does not have.
    """
    encoded = _GraphMessage()
    try:
        encoded.ParseFromString(data)
    except message.DecodeError as error:
        raise DataLossError(f"The object graph of {source!r} is damaged: it does not parse ({error}).") from error
    nodes = tuple(_decode_node(node) for node in encoded.nodes)
    _check_references(nodes, source)
    return ObjectGraph(nodes)


def read_object_graph(reader: CheckpointReader) -> ObjectGraph | None:
    """The object graph of an open checkpoint, or None where its values have names only.

    Raises:
        DataLossError: as `decode_object_graph`; or the record itself is damaged.
    """
    if not reader.has_tensor(OBJECT_GRAPH_KEY):
        return None
    record = reader.get_tensor(OBJECT_GRAPH_KEY)
    if not isinstance(record, bytes):
        raise DataLossError(f"The object graph of {reader.file_prefix!r} is damaged: it is not a string scalar.")
    return decode_object_graph(record, reader.file_prefix)


def _decode_node(node: Any) -> Node:
    return Node(
        children=tuple(Child(child.node_id, child.local_name) for child in node.children),
        attributes=tuple(Attribute(a.name, a.full_name, a.checkpoint_key) for a in node.attributes),
        slot_variables=tuple(
            SlotVariable(slot.original_variable_node_id, slot.slot_name, slot.slot_variable_node_id)
            for slot in node.slot_variables
        ),
        registered_saver=(
            (node.registered_saver.name, node.registered_saver.object_name)
            if node.HasField("registered_saver")
            else None
        ),
        has_checkpoint_values=(node.has_checkpoint_values.value if node.HasField("has_checkpoint_values") else None),
        module_version=node.module_version.value if node.HasField("module_version") else None,
    )


def _check_references(nodes: tuple[Node, ...], source: str) -> None:
    if not nodes:
        raise DataLossError(f"The object graph of {source!r} has no root node.")
    for node_id, node in enumerate(nodes):
        referred = [child.node_id for child in node.children]
        for slot in node.slot_variables:
            referred += [slot.variable_id, slot.slot_id]
        for other in referred:
            if not 0 <= other < len(nodes):
                raise DataLossError(
                    f"The object graph of {source!r} is damaged: node {node_id} refers to node {other}, "
                    f"but there are {len(nodes)} nodes."
                )
