"""A save that this process makes alone, in the same steps as one that all ranks make together (`save.joint`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from torch_trackckpt.bundle.memory import dtensor_types
from torch_trackckpt.distributed.dtensor import is_dtensor, parts_of
from torch_trackckpt.graph.walk import Snapshot
from torch_trackckpt.options import Progress
from torch_trackckpt.save.commit import commit, recover
from torch_trackckpt.save.publish import UploadedFiles
from torch_trackckpt.save.ranks import Rows
from torch_trackckpt.save.write import WrittenFiles
from torch_trackckpt.storage.base import Storage
from torch_trackckpt.trackable import Value

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["Publish", "Save", "SoloSave", "WriteFiles"]

WriteFiles = Callable[[WrittenFiles | None], WrittenFiles | UploadedFiles]
"""Writes the files of a process, under given names or under usual ones."""


class Publish(Protocol):
    """What is to be done when there is the checkpoint."""

    def first(self) -> Any:
        """In the process that names it; returns what the others have to know, which can be JSON."""

    def after(self, known: Any) -> None:
        """In each of the others, with what that one has returned."""


class Save(Protocol):
    """One save, made alone or with others."""

    place: str
    """The prefix."""
    storage: Storage
    is_async: bool
    """Whether the program goes on before the files are there."""
    has_one_file: bool
    """Whether this process writes one data file, whatever the options say."""

    def telling(self) -> contextlib.AbstractContextManager[None]:
        """Tells the others of whatever goes wrong in the block."""

    def share(self, snapshot: Snapshot) -> Rows:
        """What of all that there is this process is to write."""

    def close(self) -> None:
        """To be called where the save will not be completed."""

    def watched(self, progress: Progress | None) -> Progress | None:
        """What is told of the progress, and may end the save."""

    def complete(self, write: WriteFiles, publish: Publish) -> None:
        """Makes the checkpoint.

        Args:
            write: writes the files of this process.
            publish: called when there is the checkpoint.
        """


class SoloSave:
    """A save without others.

    Args:
        place, storage, is_async: see `Save`.
    """

    has_one_file = False

    def __init__(self, place: str, storage: Storage, is_async: bool) -> None:
        self.place = place
        self.storage = storage
        self.is_async = is_async

    def telling(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def share(self, snapshot: Snapshot) -> Rows:
        # Classes are looked at, not each of very many values.
        if not dtensor_types(map(type, snapshot.values)):
            return Rows(snapshot.keys, snapshot.values, {})
        values = [_whole(value) if is_dtensor(value) else value for value in snapshot.values]
        wholes = {key: value for key, value in zip(snapshot.keys, snapshot.values, strict=True) if is_dtensor(value)}
        return Rows(snapshot.keys, values, {}, wholes)

    def close(self) -> None:
        pass

    def watched(self, progress: Progress | None) -> Progress | None:
        return progress

    def complete(self, write: WriteFiles, publish: Publish) -> None:
        recover(self.place, self.storage)
        commit(write(None), self.place, self.storage)
        publish.first()


def _whole(tensor: DTensor) -> Value:
    """What this process has of a tensor, if that is all of it; what is only a part is no value that can be planned."""
    parts = parts_of(tensor)
    return parts[0][1] if len(parts) == 1 and parts[0][0].is_whole else tensor
