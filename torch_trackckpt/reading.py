"""Looks into checkpoints without a model: open one, list what it holds, read one value."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from torch_trackckpt.bundle.file_names import checkpoint_exists, saved_model_prefix
from torch_trackckpt.bundle.reader import CheckpointReader
from torch_trackckpt.state_file import latest_checkpoint
from torch_trackckpt.storage.choice import storage_for

__all__ = ["list_variables", "load_checkpoint", "load_variable"]


def load_checkpoint(ckpt_dir_or_file: str | os.PathLike[str]) -> CheckpointReader:
    """Opens a checkpoint for reading single values. TensorFlow's ``tf.train.load_checkpoint``.

    Args:
        ckpt_dir_or_file: the path of a checkpoint of either format (see `CheckpointReader`); or a directory, which
            stands for its latest checkpoint; or a SavedModel directory, which stands for the model's variables.

    Raises:
        ValueError: the directory has no checkpoint.
        CheckpointNotFoundError: there is nothing at the path.
        DataLossError: the index is damaged.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import Checkpoint, load_checkpoint
        >>> directory = tempfile.mkdtemp()
        >>> path = Checkpoint(x=torch.ones(2)).save(directory + "/ckpt")
        >>> load_checkpoint(directory).has_tensor("x/.ATTRIBUTES/VARIABLE_VALUE")
        True
    """
    path = os.fsdecode(ckpt_dir_or_file)
    if not storage_for(path).is_directory(path):
        return CheckpointReader(path)
    found = latest_checkpoint(path) or saved_model_prefix(path)
    if found is not None:
        return CheckpointReader(found)
    # A checkpoint may have the name of a directory, or, if its path ends in a separator, none of its own.
    if checkpoint_exists(path):
        return CheckpointReader(path)
    raise ValueError(
        f"Couldn't find a checkpoint in the directory {path!r}: it has no usable state file and is no SavedModel."
    )


def list_variables(ckpt_dir_or_file: str | os.PathLike[str]) -> list[tuple[str, list[int]]]:
    """Every key of a checkpoint with its shape, sorted by key. TensorFlow's ``tf.train.list_variables``.

    Raises:
        ValueError, CheckpointNotFoundError, DataLossError: as `load_checkpoint`.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import Checkpoint, list_variables
        >>> path = Checkpoint(x=torch.ones(2, 3)).write(tempfile.mkdtemp() + "/ckpt")
        >>> list_variables(path)
        [('_CHECKPOINTABLE_OBJECT_GRAPH', []), ('x/.ATTRIBUTES/VARIABLE_VALUE', [2, 3])]
    """
    return sorted(load_checkpoint(ckpt_dir_or_file).get_variable_to_shape_map().items())


def load_variable(
    ckpt_dir_or_file: str | os.PathLike[str], name: str
) -> torch.Tensor | bytes | np.ndarray[Any, np.dtype[np.object_]]:
    """One value of a checkpoint. TensorFlow's ``tf.train.load_variable``.

    Args:
        ckpt_dir_or_file: as for `load_checkpoint`.
        name: the key; a trailing ``:0`` is dropped.

    Returns:
        What `CheckpointReader.get_tensor` returns.

    Raises:
        TensorNotFoundError: there is no such key.
        ValueError, CheckpointNotFoundError, DataLossError: as `load_checkpoint`.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import Checkpoint, load_variable
        >>> path = Checkpoint(x=torch.ones(2)).write(tempfile.mkdtemp() + "/ckpt")
        >>> load_variable(path, "x/.ATTRIBUTES/VARIABLE_VALUE")
        tensor([1., 1.])
    """
    return load_checkpoint(ckpt_dir_or_file).get_tensor(name.removesuffix(":0"))
