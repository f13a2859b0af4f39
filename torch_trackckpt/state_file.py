"""The text file ``checkpoint``, which names the newest checkpoint of a directory and all that are kept.

It is a protobuf message in text form. Saving stores paths as relative to its directory, so that the directory can be
moved; others may have stored absolute ones.

    CheckpointState        1 model_checkpoint_path: string
                           2 all_model_checkpoint_paths: repeated string
                           3 all_model_checkpoint_timestamps: repeated double
                           4 last_preserved_timestamp: double

It is declared here under a package name and in a descriptor pool of our own, so that TensorFlow, which declares the
same message, can be imported into the same process before or after.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from torch_trackckpt.bundle.file_names import checkpoint_exists, index_name
from torch_trackckpt.bundle.reader import CheckpointReader
from torch_trackckpt.fallback import first_sound
from torch_trackckpt.storage import paths
from torch_trackckpt.storage.base import Storage
from torch_trackckpt.storage.choice import storage_for

__all__ = [
    "CheckpointState",
    "find_listed",
    "get_checkpoint_state",
    "latest_checkpoint",
    "update_checkpoint_state",
    "write_checkpoint_state",
]

STATE_FILE = "checkpoint"

_logger = logging.getLogger("torch_trackckpt")


def _declared() -> Any:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="torch_trackckpt/checkpoint_state.proto", package="torch_trackckpt", syntax="proto3"
    )
    declared = file.message_type.add(name="CheckpointState")
    for number, (name, label, kind) in enumerate(
        (
            ("model_checkpoint_path", field.LABEL_OPTIONAL, field.TYPE_STRING),
            ("all_model_checkpoint_paths", field.LABEL_REPEATED, field.TYPE_STRING),
            ("all_model_checkpoint_timestamps", field.LABEL_REPEATED, field.TYPE_DOUBLE),
            ("last_preserved_timestamp", field.LABEL_OPTIONAL, field.TYPE_DOUBLE),
        ),
        start=1,
    ):
        declared.field.add(name=name, number=number, label=label, type=kind)
    messages = message_factory.GetMessages([file], pool=descriptor_pool.DescriptorPool())
    return messages["torch_trackckpt.CheckpointState"]


_CheckpointStateMessage = _declared()


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

    def newest_first(self) -> list[str]:
        """Every checkpoint, once: the newest, then the others from the youngest to the oldest."""
        return list(dict.fromkeys([self.model_checkpoint_path, *reversed(self.all_model_checkpoint_paths)]))


def write_checkpoint_state(directory: str, state: CheckpointState, storage: Storage) -> None:
    """Replaces the state file of a directory; paths are stored as relative to it.

    Raises:
        RuntimeError: a checkpoint has the path of the state file itself.
    """
    stored = dataclasses.replace(
        state,
        model_checkpoint_path=_relative(state.model_checkpoint_path, directory),
        all_model_checkpoint_paths=tuple(_relative(path, directory) for path in state.all_model_checkpoint_paths),
    )
    _put(paths.joined(directory, STATE_FILE), stored, storage)


def update_checkpoint_state(
    save_dir: str | os.PathLike[str],
    model_checkpoint_path: str | os.PathLike[str],
    all_model_checkpoint_paths: Sequence[str | os.PathLike[str]] | None = None,
    latest_filename: str | None = None,
    all_model_checkpoint_timestamps: Sequence[float] | None = None,
    last_preserved_timestamp: float | None = None,
) -> None:
    """Writes a state file by hand. TensorFlow's ``tf.compat.v1.train.update_checkpoint_state``.

    `Checkpoint.save` and `CheckpointManager` do this themselves, and store paths that are relative to the directory.
    Here they are stored as given; only where the directory and a path are both relative, the path becomes relative to
    the directory. The file is replaced in one step, and nothing that is passed is changed.

    Args:
        save_dir: the directory of the state file.
        model_checkpoint_path: the newest checkpoint.
        all_model_checkpoint_paths: every checkpoint, oldest first. The newest is added unless it is the last.
        latest_filename: the name of the state file, if it is not ``checkpoint``.
        all_model_checkpoint_timestamps: when each was made, in seconds since 1970.
        last_preserved_timestamp: when the last one that is kept for good was made, in seconds since 1970.

    Raises:
        ValueError: there is not one time for each path.
        RuntimeError: a checkpoint has the path of the state file itself.
        OSError: the system refuses; the previous state file is as before.

    Example:
        >>> import tempfile
        >>> from torch_trackckpt import Checkpoint, latest_checkpoint, update_checkpoint_state
        >>> directory = tempfile.mkdtemp()
        >>> path = Checkpoint().write(directory + "/best")
        >>> update_checkpoint_state(directory, path)
        >>> latest_checkpoint(directory) == path
        True
    """
    directory = os.fsdecode(save_dir)
    newest = os.fsdecode(model_checkpoint_path)
    listed = [os.fsdecode(path) for path in all_model_checkpoint_paths or ()]
    if listed[-1:] != [newest]:
        listed.append(newest)
    timestamps = tuple(all_model_checkpoint_timestamps or ())
    if timestamps and len(timestamps) != len(listed):
        raise ValueError(
            f"There are {len(timestamps)} all_model_checkpoint_timestamps for {len(listed)} checkpoints, the newest "
            f"included; pass one for each of {listed}."
        )
    stored = [path if os.path.isabs(directory) else _relative_unless_absolute(path, directory) for path in listed]
    _put(
        paths.joined(directory, latest_filename or STATE_FILE),
        CheckpointState(stored[-1], tuple(stored), timestamps, last_preserved_timestamp or 0.0),
        storage_for(directory),
    )


def _put(path: str, stored: CheckpointState, storage: Storage) -> None:
    """Replaces a state file; paths are as they are to be stored."""
    if any(
        paths.absolute(_joined(other, path)) == paths.absolute(path)
        for other in (stored.model_checkpoint_path, *stored.all_model_checkpoint_paths)
    ):
        raise RuntimeError(f"A checkpoint has the path of the state file, {path!r}; save it under another name.")
    message = _CheckpointStateMessage(**dataclasses.asdict(stored))
    storage.put(path, text_format.MessageToString(message, as_utf8=True).encode())


def get_checkpoint_state(
    checkpoint_dir: str | os.PathLike[str], latest_filename: str | None = None
) -> CheckpointState | None:
    """What the state file of a directory says, with paths joined to the directory. TensorFlow's
    ``tf.train.get_checkpoint_state``.

    Args:
        checkpoint_dir: the directory that checkpoints were saved in.
        latest_filename: the name of the state file, if it is not ``checkpoint``.

    Returns:
        None where there is no state file; also, with a warning, where it cannot be understood.

    Raises:
        ValueError: it names no newest checkpoint.

    Example:
        >>> import tempfile
        >>> from torch_trackckpt import Checkpoint, get_checkpoint_state
        >>> directory = tempfile.mkdtemp()
        >>> path = Checkpoint().save(directory + "/ckpt")
        >>> get_checkpoint_state(directory).all_model_checkpoint_paths == (path,)
        True
    """
    path = paths.joined(os.fsdecode(checkpoint_dir), latest_filename or STATE_FILE)
    try:
        text = storage_for(path).get(path).decode()
        # As in TensorFlow, the last of several values of one field counts.
        message = text_format.Merge(text, _CheckpointStateMessage())
        if "\0" in message.model_checkpoint_path:
            raise ValueError("a path holds a zero byte")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, text_format.ParseError) as error:
        # A file of this machine is as it is; remote storage may answer the next time.
        if isinstance(error, OSError) and paths.is_url(path):
            raise
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


def latest_checkpoint(
    checkpoint_dir: str | os.PathLike[str], latest_filename: str | None = None, *, verify: bool = False
) -> str | None:
    """The path of the newest checkpoint of a directory. TensorFlow's ``tf.train.latest_checkpoint``.

    Args:
        checkpoint_dir: the directory that checkpoints were saved in.
        latest_filename: the name of the state file, if it is not ``checkpoint``.
        verify: whether to read the checkpoint and check every checksum. Where it is damaged or not there, the next
            older one that the state file lists is tried, and the log says which were passed over and why. TensorFlow
            has no such check.

    Returns:
        A path for `Checkpoint.restore`, or None where there is no checkpoint, or where (as the log then says) the
        files of the newest are gone. Where the state file names a path that does not exist, as after a directory was
        moved whose state file has absolute paths, but the directory has a checkpoint of the same name, that one is
        meant, and the log says so; TensorFlow gives None then.

    Raises:
        ValueError: the state file names no checkpoint.
        CheckpointNotFoundError, DataLossError: with ``verify``, if no checkpoint that the state file lists is sound.

    Example:
        >>> import tempfile
        >>> from torch_trackckpt import Checkpoint, latest_checkpoint
        >>> directory = tempfile.mkdtemp()
        >>> latest_checkpoint(directory) is None
        True
        >>> path = Checkpoint().save(directory + "/ckpt")
        >>> latest_checkpoint(directory) == latest_checkpoint(directory, verify=True) == path
        True
    """
    state = get_checkpoint_state(checkpoint_dir, latest_filename)
    if state is None:
        return None
    if verify:
        listed = (find_listed(path, checkpoint_dir, latest_filename) or path for path in state.newest_first())
        return first_sound(listed, lambda path: CheckpointReader(path).verify())
    found = find_listed(state.model_checkpoint_path, checkpoint_dir, latest_filename)
    if found is None:
        _logger.error(
            "The state file of %r names %r, but there is no such checkpoint.",
            os.fsdecode(checkpoint_dir),
            state.model_checkpoint_path,
        )
    return found


def find_listed(path: str, checkpoint_dir: str | os.PathLike[str], latest_filename: str | None = None) -> str | None:
    """Where a checkpoint is that the state file of a directory lists; see `latest_checkpoint`. None: nowhere."""
    directory = paths.directory(paths.joined(os.fsdecode(checkpoint_dir), latest_filename or STATE_FILE))
    # A directory of this machine whose state file names a URL is as a rule a copy of what is behind it.
    is_copy = paths.is_url(path) and not paths.is_url(directory)
    if not is_copy and _is_there(path, directory, latest_filename):
        return path
    # The path may be another system's. One that ends in a separator is a prefix without a name.
    name = re.split(r"[/\\]", path)[-1]
    moved = paths.joined(directory, "" if name == "." else name)
    if moved != path and _is_there(moved, directory, latest_filename):
        _logger.warning(
            "The state file of %r names %r, which is %s; the checkpoint of the same name beside it is taken.",
            os.fsdecode(checkpoint_dir),
            path,
            "on remote storage" if is_copy else "gone",
        )
        return moved
    return path if is_copy and _is_there(path, directory, latest_filename) else None


def _is_there(path: str, directory: str, latest_filename: str | None) -> bool:
    """Whether there is a checkpoint at a path: the state file itself is none, even where the two share a name."""
    is_state_file = paths.same(path, paths.joined(directory, latest_filename or STATE_FILE))
    return storage_for(path).exists(index_name(path)) if is_state_file else checkpoint_exists(path)


def _relative(path: str, directory: str) -> str:
    return paths.relative(path, directory)


def _relative_unless_absolute(path: str, directory: str) -> str:
    return path if paths.is_absolute(path) else _relative(path, directory)


def _joined(path: str, state_path: str) -> str:
    return path if paths.is_absolute(path) else paths.joined(paths.directory(state_path), path)
