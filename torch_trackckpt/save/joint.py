"""A save that all ranks make together.

    share      the ranks say what they have, and each learns what of it is its own to write
    (each)     plans, copies where the save is asynchronous, and writes one data file and an index of what it wrote
    complete   rank 0 makes one index of all, and publishes the checkpoint as if it had written it alone

Nothing of it has a name before every rank has written its part, and no tensor goes from one rank to another. All ranks
have to see the same file system.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from torch_trackckpt import _native
from torch_trackckpt.bundle.file_names import TEMPORARY, data_name, index_name
from torch_trackckpt.distributed.group import Session
from torch_trackckpt.errors import CheckpointNotFoundError
from torch_trackckpt.graph.keys import is_by_rank
from torch_trackckpt.graph.walk import Snapshot
from torch_trackckpt.options import Progress
from torch_trackckpt.save.commit import commit, recover
from torch_trackckpt.save.ranks import Offer, Rows, Shares
from torch_trackckpt.save.solo import WriteFiles
from torch_trackckpt.save.write import WrittenFiles
from torch_trackckpt.storage.base import Storage

__all__ = ["JointSave"]


class JointSave:
    """One save, on one of the ranks.

    Args:
        session: that of the save.
        place, storage, is_async: see `Save`.
        durable: whether the index is on the disk before it has its name.
    """

    has_one_file = True

    def __init__(self, session: Session, place: str, storage: Storage, is_async: bool, *, durable: bool) -> None:
        self._session = session
        self.place = place
        self.storage = storage
        self.is_async = is_async
        self._durable = durable
        self._token = ""

    def telling(self) -> contextlib.AbstractContextManager[None]:
        return self._session.telling()

    def share(self, snapshot: Snapshot) -> Rows:
        """What of all that there is this rank is to write.

        Raises:
            RankError: another rank has failed, or saves something else.
            UnsupportedValueError: ranks have different things under one name.
        """
        session, offer = self._session, Offer(snapshot)
        shares = Shares.heard(session.agree(offer.summary, lambda said: self._begin(Shares.summarised(said))))
        details: list[Any] = []
        if shares.need_details:
            first = shares

            def detail(said: list[Any]) -> Any:
                details.extend(said)
                return first.detailed(said).message()

            shares = Shares.heard(session.agree(lambda: offer.details(first, session.rank), detail))
        self._token = shares.token
        rows = shares.rows(offer, session.rank)
        return rows.followed_by(shares.of_all(offer, details)) if session.decides else rows

    def _begin(self, shares: Shares) -> dict[str, Any]:
        """What rank 0 does before anybody writes."""
        if self.place:
            self.storage.make_directory(os.path.dirname(self.place))
            recover(self.place, self.storage)
        return shares.message()

    def _files_of(self, rank: int) -> WrittenFiles:
        data = data_name(self.place, rank, self._session.size)
        index = index_name(self.place)
        return WrittenFiles(
            ((f"{data}{TEMPORARY}{self._token}", data),), (f"{index}{TEMPORARY}{self._token}_{rank}", index)
        )

    def watched(self, progress: Progress | None) -> Progress:
        def tell(done: int, total: int) -> None:
            self._session.check()
            if progress is not None:
                progress(done, total)

        return tell

    def complete(self, write: WriteFiles, publish: Callable[[bool], None]) -> None:
        """Has this rank write its files, and rank 0 make one checkpoint of those of all.

        Raises:
            RankError: another rank has failed. No rank has left a file.
            BaseException: what went wrong here.
        """
        session, files = self._session, self._files_of(self._session.rank)

        def make_one(said: list[Any]) -> None:
            try:
                commit(self._joined(), self.place, self.storage)
            except BaseException:
                # All ranks have written, and nobody else does here.
                with contextlib.suppress(OSError):
                    recover(self.place, self.storage)
                raise
            # Before anybody is told, so that nobody sees what is not the checkpoint's.
            for rank in range(session.size):
                self._remove(self._files_of(rank))
            publish(True)

        def write_mine() -> None:
            write(files)

        try:
            session.agree(write_mine, make_one)
        finally:
            self._remove(files)
            session.close()
        if not session.decides:
            publish(False)

    def _remove(self, files: WrittenFiles) -> None:
        """Removes what has not got a name of the checkpoint's."""
        for temporary, _ in (*files.data, files.index):
            self.storage.remove(temporary)

    def _joined(self) -> WrittenFiles:
        """The files of all ranks with one index."""
        parts = [self._files_of(rank) for rank in range(self._session.size)]
        index = index_name(self.place)
        joined = f"{index}{TEMPORARY}{self._token}"
        for rank, part in enumerate(parts):
            if not self.storage.exists(part.index[0]):
                raise CheckpointNotFoundError(
                    f"Rank 0 does not see what rank {rank} has written, {part.index[0]!r}. All ranks have to save to "
                    "one file system that they share."
                )
        suffix = f"{TEMPORARY}{self._token}"
        try:
            sources = _native.merge_indexes([part.index[0] for part in parts], joined, durable=self._durable)
            data = []
            # A rank that had nothing to write has no number among the files.
            for number, (rank, _, _) in enumerate(sources):
                final = data_name(self.place, number, len(sources))
                if parts[rank].data[0][0] != final + suffix:
                    self.storage.rename(parts[rank].data[0][0], final + suffix)
                data.append((final + suffix, final))
            self._check(_native.BundleReader(joined, self.place, (suffix,)))
        except BaseException:
            self.storage.remove(joined)
            raise
        return WrittenFiles(tuple(data), (joined, index))

    def _check(self, reader: _native.BundleReader) -> None:
        """Checks that every value lies in its file, and that parts make up the whole: nobody else looks at all of them.

        What each rank has for itself may lack those that do not have the object.
        """
        keys = reader.keys()
        reader.check([key.encode() for key in keys if not is_by_rank(key)])
