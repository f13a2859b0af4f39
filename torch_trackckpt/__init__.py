"""TensorFlow's object checkpoints for PyTorch."""

from importlib.metadata import version

from torch_trackckpt.adapters import RNGState, register_adapter
from torch_trackckpt.bundle.reader import CheckpointReader
from torch_trackckpt.checkpoint import Checkpoint
from torch_trackckpt.graph.walk import list_objects
from torch_trackckpt.manager import CheckpointManager
from torch_trackckpt.options import CheckpointOptions
from torch_trackckpt.reading import list_variables, load_checkpoint, load_variable
from torch_trackckpt.save.merge import merge_checkpoints
from torch_trackckpt.state_file import get_checkpoint_state, latest_checkpoint, update_checkpoint_state
from torch_trackckpt.trackable import AutoTrackable, NoDependency, PythonState, Trackable
from torch_trackckpt.waiting import checkpoints_iterator

__version__ = version("torch_trackckpt")

__all__ = [
    "AutoTrackable",
    "Checkpoint",
    "CheckpointManager",
    "CheckpointOptions",
    "CheckpointReader",
    "NoDependency",
    "PythonState",
    "RNGState",
    "Trackable",
    "__version__",
    "checkpoints_iterator",
    "get_checkpoint_state",
    "latest_checkpoint",
    "list_objects",
    "list_variables",
    "load_checkpoint",
    "load_variable",
    "merge_checkpoints",
    "register_adapter",
    "update_checkpoint_state",
]
