"""The record of an object graph by way of the protobuf package, to hold the native code against."""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from torch_trackckpt.graph.object_graph import Attribute, Child, Node, ObjectGraph, SlotVariable

_PACKAGE = "witness"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "string": _Field.TYPE_STRING,
    "bool": _Field.TYPE_BOOL,
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
}


def _declare() -> dict[str, type[message.Message]]:
    file = descriptor_pb2.FileDescriptorProto(name="witness/messages.proto", package=_PACKAGE, syntax="proto3")
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


def encode_object_graph(graph: ObjectGraph) -> bytes:
    """The bytes that a checkpoint keeps under its object graph key."""
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


def parse_object_graph(data: bytes) -> ObjectGraph:
    """What protobuf makes of a record."""
    return ObjectGraph(tuple(_decode_node(node) for node in _GraphMessage.FromString(data).nodes))


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
