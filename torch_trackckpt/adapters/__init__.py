"""Adapters show live objects to the object graph, one module for each family of objects.

Importing this package registers them all.
"""

from torch_trackckpt.adapters import (
    containers,
    module,
    optimizer,
    python_state,
    samplers,
    scheduler,
    stateful_data_loader,
)
from torch_trackckpt.adapters.advice import advice_for
from torch_trackckpt.adapters.registry import Adapter, adapt, is_trackable, register_adapter
from torch_trackckpt.adapters.rng import RNGState

__all__ = [
    "Adapter",
    "RNGState",
    "adapt",
    "advice_for",
    "containers",
    "is_trackable",
    "module",
    "optimizer",
    "python_state",
    "register_adapter",
    "samplers",
    "scheduler",
    "stateful_data_loader",
]
