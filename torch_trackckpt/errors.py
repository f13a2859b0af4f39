"""The exceptions of this package.

    TrackckptError
    |-- CheckpointNotFoundError   FileNotFoundError   no checkpoint, or no data file, at a path
    |-- TensorNotFoundError       KeyError            a key that the checkpoint does not hold
    |-- DataLossError             OSError             damaged, cut or contradictory files
    |-- UnsupportedFormatError    ValueError          sound files of a kind that is not read
    |-- MismatchError             ValueError          stored and live values do not fit together
    |-- UnsupportedValueError     TypeError           a live value that cannot be saved
    |   `-- UnsavableContainerError  ValueError       a list, dict or tuple whose elements have lost their names
    |-- RestoreError              RuntimeError        an object refused its stored state, half way
    |-- UninitializedError        RuntimeError        nothing gives a tensor on the meta device its values
    |-- ShardingError             RuntimeError        a sharding callback did not hand back what it got
    |-- RankError                 RuntimeError        another process of the job failed, or has died
    |-- ValueChangedError         RuntimeError        a value changed while it was being saved
    |-- StructureChangedError     RuntimeError        the object graph is not the one that was frozen
    |-- DuplicateKeyError         ValueError          one key given twice to a writer
    `-- WriterClosedError         RuntimeError        a writer used after it finished or failed

Failures of the operating system (a full disk, a missing permission) stay what they are: ``OSError``
with its ``errno`` and file name.
"""

__all__ = [
    "CheckpointNotFoundError",
    "DataLossError",
    "DuplicateKeyError",
    "MismatchError",
    "RankError",
    "RestoreError",
    "ShardingError",
    "StructureChangedError",
    "TensorNotFoundError",
    "TrackckptError",
    "UninitializedError",
    "UnsavableContainerError",
    "UnsupportedFormatError",
    "UnsupportedValueError",
    "ValueChangedError",
    "WriterClosedError",
]


class TrackckptError(Exception):
    """The base of every exception that this package defines."""


class CheckpointNotFoundError(TrackckptError, FileNotFoundError):
    """There is no checkpoint at the path, or one of its data files is missing."""


class TensorNotFoundError(TrackckptError, KeyError):
    """The checkpoint holds no value under this key."""

    # KeyError shows the repr of its argument, which would put a whole sentence in quotes.
    __str__ = Exception.__str__


class DataLossError(TrackckptError, OSError):
    """A file of the checkpoint is damaged: a checksum, a length or a structure is wrong."""

    overwritten: tuple[str, ...] = ()
    """Which live objects had been changed when a restore found the damage."""


class UnsupportedFormatError(TrackckptError, ValueError):
    """The files are sound but of a version or kind that this package does not read."""


class MismatchError(TrackckptError, ValueError):
    """Stored values and live objects do not fit together; nothing has been assigned."""


class UnsupportedValueError(TrackckptError, TypeError):
    """A live value cannot be saved; no file has been written."""


class UnsavableContainerError(UnsupportedValueError, ValueError):
    """The elements of a list, dict or tuple could not be found again under their names; no file has been written."""


class RestoreError(TrackckptError, RuntimeError):
    """An object raised while it took its stored state; the text names what had changed before."""


class UninitializedError(TrackckptError, RuntimeError):
    """A tensor on the meta device has no stored value, and its module cannot initialise it."""


class ShardingError(TrackckptError, RuntimeError):
    """A sharding callback lost, invented or changed values; no file has been written."""


class RankError(TrackckptError, RuntimeError):
    """Another process of the job failed in what all do together, or gives no sign of life; the text says which."""


class ValueChangedError(TrackckptError, RuntimeError):
    """A value changed while it was being saved; no checkpoint has been made."""


class StructureChangedError(TrackckptError, RuntimeError):
    """A frozen saver found other objects than it was made for; no file has been written."""


class DuplicateKeyError(TrackckptError, ValueError):
    """A key was added twice to one bundle."""


class WriterClosedError(TrackckptError, RuntimeError):
    """A bundle writer was used after it had finished or failed."""
