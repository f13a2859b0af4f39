"""The text file ``checkpoint``, which names the newest checkpoint of a directory and all that are kept.

It is a `CheckpointState` message (`torch_trackckpt.graph.messages`) in protobuf's text form. Paths are stored as
relative to its directory, so that the directory can be moved.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from pathlib import Path

from google.protobuf import text_format

from torch_trackckpt.bundle.file_names import checkpoint_exists, index_name
from torch_trackckpt.graph.messages import CheckpointStateMessage
from torch_trackckpt.storage.base import Storage

__all__ = ["CheckpointState", "get_checkpoint_state", "latest_checkpoint", "write_checkpoint_state"]

STATE_FILE = "checkpoint"

_logger = logging.getLogger("torch_trackckpt")


@dataclasses.dataclass(frozen=True)
class CheckpointState:
    """The content of a state file."""

    model_checkpoint_path: str
    """The newest checkpoint."""
    all_model_checkpoint_paths: tuple[str, ...]
    """Every checkpoint that is kept, oldest first."""
    all_model_checkpoint_timestamps: tuple[float, ...] = ()
    """When each was made, in seconds since 1970; may be empty."""
    last_preserved_timestamp: float = 0.0
    """When the last checkpoint that is kept for good was made."""


def write_checkpoint_state(directory: str, state: CheckpointState, storage: Storage) -> None:
    """Replaces the state file of a directory.

    Raises:
        RuntimeError: a checkpoint has the path of the state file itself.
    """
    path = os.path.join(directory, STATE_FILE)
    paths = [state.model_checkpoint_path, *state.all_model_checkpoint_paths]
    if any(os.path.abspath(other) == os.path.abspath(path) for other in paths):
        raise RuntimeError(f"A checkpoint has the path of the state file, {path!r}; save it under another name.")
    message = CheckpointStateMessage(
        model_checkpoint_path=_relative(state.model_checkpoint_path, directory),
        all_model_checkpoint_paths=[_relative(other, directory) for other in state.all_model_checkpoint_paths],
        all_model_checkpoint_timestamps=state.all_model_checkpoint_timestamps,
        last_preserved_timestamp=state.last_preserved_timestamp,
    )
    storage.put(path, text_format.MessageToString(message, as_utf8=True).encode())


def get_checkpoint_state(
    checkpoint_dir: str | os.PathLike[str], latest_filename: str | None = None
) -> CheckpointState | None:
    """What the state file of a directory says, with paths joined to the directory.

    Returns:
        None where there is no state file; also, with a warning, where it cannot be understood.

    Raises:
        ValueError: it names no newest checkpoint.
    """
    path = os.path.join(os.fsdecode(checkpoint_dir), latest_filename or STATE_FILE)
    try:
        text = _content(path)
        # As in TensorFlow, the last of several values of one field counts.
        message = text_format.Merge(text, CheckpointStateMessage())
        if "\0" in message.model_checkpoint_path:
            raise ValueError("a path holds a zero byte")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, text_format.ParseError) as error:
        _logger.warning("The state file %r is ignored, because it cannot be understood: %s", path, error)
        return None
    if not message.model_checkpoint_path:
        raise ValueError(f"The state file {path!r} names no checkpoint; its model_checkpoint_path is missing.")
    return CheckpointState(
        _joined(message.model_checkpoint_path, path),
        tuple(_joined(other, path) for other in message.all_model_checkpoint_paths),
        tuple(message.all_model_checkpoint_timestamps),
        message.last_preserved_timestamp,
    )


def _content(path: str) -> str:
    # What is no file could keep us waiting, or go on for ever.
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f"{path!r} is no file")
    return Path(path).read_bytes().decode()


def latest_checkpoint(checkpoint_dir: str | os.PathLike[str], latest_filename: str | None = None) -> str | None:
    """The path of the newest checkpoint of a directory. TensorFlow's ``tf.train.latest_checkpoint``.

    Args:
        checkpoint_dir: the directory that checkpoints were saved in.
        latest_filename: the name of the state file, if it is not ``checkpoint``.

    Returns:
        A path for `Checkpoint.restore`, or None where there is no checkpoint, or where (as the log then says) the
        files of the newest are gone. Where the state file names a path that does not exist, as after a directory was
        moved whose state file has absolute paths, but the directory has a checkpoint of the same name, that one is
        meant, and the log says so; TensorFlow gives None then.

    Raises:
        ValueError: the state file names no checkpoint.

    Example:
        >>> import tempfile
        >>> from torch_trackckpt import Checkpoint, latest_checkpoint
        >>> directory = tempfile.mkdtemp()
        >>> latest_checkpoint(directory) is None
        True
        >>> path = Checkpoint().save(directory + "/ckpt")
        >>> latest_checkpoint(directory) == path
        True
    """
    state = get_checkpoint_state(checkpoint_dir, latest_filename)
    if state is None:
        return None
    directory = os.path.dirname(os.path.join(os.fsdecode(checkpoint_dir), latest_filename or STATE_FILE))
    path = state.model_checkpoint_path
    if _is_there(path, directory, latest_filename):
        return path
    # The path may be another system's. One that ends in a separator is a prefix without a name.
    name = re.split(r"[/\\]", path)[-1]
    moved = os.path.join(directory, "" if name == "." else name)
    if moved != path and _is_there(moved, directory, latest_filename):
        _logger.warning(
            "The state file of %r names %r, which is gone; the checkpoint of the same name beside it is taken.",
            os.fsdecode(checkpoint_dir),
            path,
        )
        return moved
    _logger.error("The state file of %r names %r, but there is no such checkpoint.", os.fsdecode(checkpoint_dir), path)
    return None


def _is_there(path: str, directory: str, latest_filename: str | None) -> bool:
    """Whether there is a checkpoint at a path: the state file itself is none, even where the two share a name."""
    is_state_file = os.path.realpath(path) == os.path.realpath(os.path.join(directory, latest_filename or STATE_FILE))
    return os.path.exists(index_name(path)) if is_state_file else checkpoint_exists(path)


def _relative(path: str, directory: str) -> str:
    return os.path.relpath(path, directory or ".")


def _joined(path: str, state_path: str) -> str:
    return path if os.path.isabs(path) else os.path.join(os.path.dirname(state_path), path)
