"""TensorFlow's object checkpoints for PyTorch."""

from importlib.metadata import version

from torch_trackckpt.adapters import RNGState, register_adapter
from torch_trackckpt.bundle.reader import CheckpointReader
from torch_trackckpt.capture import capture_dependencies
from torch_trackckpt.checkpoint import Checkpoint
from torch_trackckpt.frozen import frozen_saver
from torch_trackckpt.graph.walk import list_objects
from torch_trackckpt.management.manager import CheckpointManager
from torch_trackckpt.management.waiting import checkpoints_iterator
from torch_trackckpt.options import CheckpointOptions
from torch_trackckpt.preemption import SaveOnSignal, preemption_save_context
from torch_trackckpt.reading import list_variables, load_checkpoint, load_variable
from torch_trackckpt.restore.materialize import gather_initializers
from torch_trackckpt.restore.status import streaming_restore
from torch_trackckpt.save.merge import merge_checkpoints
from torch_trackckpt.state_file import get_checkpoint_state, latest_checkpoint, update_checkpoint_state
from torch_trackckpt.trackable import NoDependency, PythonState, Trackable
from torch_trackckpt.tracking.autotrackable import AutoTrackable
from torch_trackckpt.views import CheckpointView, TrackableView, object_metadata

__version__ = version("torch_trackckpt")

__all__ = [
    "AutoTrackable",
    "Checkpoint",
    "CheckpointManager",
    "CheckpointOptions",
    "CheckpointReader",
    "CheckpointView",
    "NoDependency",
    "PythonState",
    "RNGState",
    "SaveOnSignal",
    "Trackable",
    "TrackableView",
    "__version__",
    "capture_dependencies",
    "checkpoints_iterator",
    "frozen_saver",
    "gather_initializers",
    "get_checkpoint_state",
    "latest_checkpoint",
    "list_objects",
    "list_variables",
    "load_checkpoint",
    "load_variable",
    "merge_checkpoints",
    "object_metadata",
    "preemption_save_context",
    "register_adapter",
    "streaming_restore",
    "update_checkpoint_state",
]
