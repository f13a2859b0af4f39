"""Adapters show live objects to the object graph, one module for each family of objects.

Importing this package registers them all.
"""

from torch_trackckpt.adapters import containers, metric, module, optimizer, python_state, scheduler
from torch_trackckpt.adapters.registry import Adapter, adapt, is_trackable, register_adapter
from torch_trackckpt.adapters.rng import RNGState

__all__ = [
    "Adapter",
    "RNGState",
    "adapt",
    "containers",
    "is_trackable",
    "metric",
    "module",
    "optimizer",
    "python_state",
    "register_adapter",
    "scheduler",
]
