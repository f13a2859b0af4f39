"""Reads the record of an object graph, whose layout is at the top of `csrc/graph/messages.h`.

`module_version`, the field 50001 of a node, is ours. TensorFlow numbers its fields from 1 on and skips those that it
does not know, so a graph that has it is a sound one to it. It is written only where a module is of another version than
torch's default, 1.
"""

from __future__ import annotations

from torch_trackckpt import _native
from torch_trackckpt.bundle.reader import CheckpointReader
from torch_trackckpt.errors import DataLossError
from torch_trackckpt.graph.object_graph import ObjectGraph
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY

__all__ = ["decode_object_graph", "read_object_graph"]


def decode_object_graph(data: bytes, source: str) -> ObjectGraph:
    """The object graph in a checkpoint's record.

    Args:
        data: the record.
        source: what to call the checkpoint in an error.

    Raises:
        DataLossError: the record is no object graph, or refers to nodes that it does not have.
    """
    try:
        return ObjectGraph.of(_native.SavedGraph(data))
    except DataLossError as error:
        raise DataLossError(f"The object graph of {source!r} is damaged: {error}.") from error


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
