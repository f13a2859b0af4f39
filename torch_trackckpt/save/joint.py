"""A save that all ranks make together.

    share      the ranks say what they have, and each learns what of it is its own to write
    (each)     plans, copies where the save is asynchronous, and writes one data file and an index of what it wrote
    complete   rank 0 makes one index of all, and publishes the checkpoint as if it had written it alone

Nothing of it has a name before every rank has written its part, and no tensor goes from one rank to another. All ranks
have to see the same file system.
"""

from __future__ import annotations

import collections
import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch_trackckpt import _native
from torch_trackckpt.bundle.file_names import TEMPORARY, data_name, index_name
from torch_trackckpt.distributed.group import Session
from torch_trackckpt.errors import CheckpointNotFoundError, DataLossError
from torch_trackckpt.graph.walk import Snapshot
from torch_trackckpt.options import Progress
from torch_trackckpt.save.agreement import Agreement
from torch_trackckpt.save.commit import commit, recover
from torch_trackckpt.save.publish import UploadedFiles, free_number_of_shards
from torch_trackckpt.save.ranks import Rows, Shapes, Shares
from torch_trackckpt.save.solo import Publish, WriteFiles
from torch_trackckpt.save.write import WrittenFiles
from torch_trackckpt.storage.base import Ranges, Storage
from torch_trackckpt.storage.paths import directory

__all__ = ["JointSave"]

_FETCHES_AT_ONCE = 8
"""How many indexes come from remote storage at one time."""


class JointSave:
    """One save, on one of the ranks.

    Args:
        session: that of the save.
        place, storage, is_async: see `Save`.
        agreement: what the ranks have agreed on at the save before.
        durable: whether the index is on the disk before it has its name.
    """

    has_one_file = True

    def __init__(
        self,
        session: Session,
        place: str,
        storage: Storage,
        is_async: bool,
        agreement: Agreement,
        *,
        durable: bool,
    ) -> None:
        self._session = session
        self._agreement = agreement
        self.place = place
        self.storage = storage
        self.is_async = is_async
        self._durable = durable
        self._token = ""
        self._record = b""
        self._num_files = session.size

    def telling(self) -> contextlib.AbstractContextManager[None]:
        return self._session.telling()

    def share(self, snapshot: Snapshot) -> Rows:
        """What of all that there is this rank is to write.

        Raises:
            RankError: another rank has failed, or saves something else.
            UnsupportedValueError: ranks have different things under one name.
        """
        session, agreement = self._session, self._agreement
        offer = agreement.offer(snapshot, session.rank, session.size)
        begun = session.agree(lambda: agreement.summary(offer), self._begin)
        shares, self._token, self._num_files = agreement.heard(begun["shares"]), begun["token"], begun["files"]
        details: list[Any] = []
        shapes: Shapes = {}
        if shares.need_details:
            first = shares

            def detail(said: list[Any]) -> Any:
                details.extend(said)
                return agreement.detailed(first, said)

            told = session.agree(lambda: offer.details(first, session.rank), detail)
            shapes, shares = told["shapes"], Shares.heard(told["shares"]) if told["shares"] else first
        if begun["shares"] is not None:
            agreement.keep(self._token, shares)
        rows = agreement.rows(offer, shares, shapes, session.rank)
        if not session.decides:
            return rows
        of_all = agreement.of_all(offer, shares, details, shapes)
        self._record = of_all.record
        return rows.followed_by(of_all)

    def _begin(self, said: list[Any]) -> dict[str, Any]:
        """What rank 0 does before anybody writes."""
        shares = self._agreement.begun(said)
        num_files = self._session.size
        if self.place:
            self.storage.make_directory(directory(self.place))
            recover(self.place, self.storage)
            for part in self.storage.list(index_name(self.place) + TEMPORARY):
                self.storage.remove(part)
            if self.storage.is_remote:
                num_files = free_number_of_shards(self.place, num_files, self.storage)
        return {"shares": shares, "token": secrets.token_hex(8), "files": num_files}

    def close(self) -> None:
        self._session.close()

    def watched(self, progress: Progress | None) -> Progress:
        def tell(done: int, total: int) -> None:
            self._session.check()
            if progress is not None:
                progress(done, total)

        return tell

    def complete(self, write: WriteFiles, publish: Publish) -> None:
        """Has this rank write its files, and rank 0 make one checkpoint of those of all.

        Raises:
            RankError: another rank has failed. No rank has left a file.
            BaseException: what went wrong here.
        """
        session, files = self._session, self._files_of(self._session.rank)

        has_uploaded = may_be_published = False

        def write_mine() -> int:
            nonlocal has_uploaded
            written = write(files)
            if isinstance(written, UploadedFiles):
                has_uploaded = True
                self.storage.put(files.index[0], written.content)
                return written.data_bytes
            return 0

        def make_one(said: list[int]) -> Any:
            nonlocal may_be_published
            may_be_published = True
            parts = [self._files_of(rank) for rank in range(session.size)]
            try:
                with self._joined(parts, sum(said)) as joined:
                    commit(joined, self.place, self.storage)
            except BaseException:
                # All ranks have written, and nobody else does here.
                with contextlib.suppress(OSError):
                    recover(self.place, self.storage)
                raise
            # Before anybody is told, so that nobody sees what is not the checkpoint's.
            for part in parts:
                with contextlib.suppress(OSError):
                    self.storage.remove(part.index[0])
            return publish.first()

        try:
            known = session.agree(write_mine, make_one)
        except BaseException:
            # What was uploaded has its final name, and an index may stand for it by now, of which only rank 0 knows.
            # What stays, the next save removes.
            data = () if has_uploaded else files.data
            with contextlib.suppress(OSError):
                for temporary, _ in (*data, files.index):
                    self.storage.remove(temporary)
                if session.decides and self.storage.is_remote and not may_be_published:
                    recover(self.place, self.storage)
            raise
        try:
            # What goes wrong here is raised in all as well.
            session.agree(lambda: None if session.decides else publish.after(known))
        finally:
            session.close()

    def _files_of(self, rank: int) -> WrittenFiles:
        """The files that a rank writes; the data has its final name at once where files cannot be renamed."""
        data = [data_name(self.place, rank, self._num_files)]
        if rank == 0:
            # Where more of them are needed than there are ranks, they are empty.
            data += [
                data_name(self.place, number, self._num_files) for number in range(self._session.size, self._num_files)
            ]
        suffix = "" if self.storage.is_remote else self._suffix
        index = index_name(self.place)
        return WrittenFiles(tuple((final + suffix, final) for final in data), (f"{index}{self._suffix}_{rank}", index))

    @property
    def _suffix(self) -> str:
        return f"{TEMPORARY}{self._token}"

    @contextlib.contextmanager
    def _joined(self, parts: list[WrittenFiles], data_bytes: int) -> Iterator[WrittenFiles | UploadedFiles]:
        """The files of all ranks with one index."""
        index = index_name(self.place)
        data = tuple(pair for part in parts for pair in part.data)
        if not self.storage.is_remote:
            joined = index + self._suffix
            try:
                self._join([self._seen(part.index[0], rank) for rank, part in enumerate(parts)], joined, None)
                yield WrittenFiles(data, (joined, index))
            finally:
                self.storage.remove(joined)
            return
        with tempfile.TemporaryDirectory() as folder:
            indexes = [os.path.join(folder, f"{rank}.index") for rank in range(len(parts))]
            with ThreadPoolExecutor(_FETCHES_AT_ONCE) as pool:
                fetched = pool.map(
                    lambda pair: self._fetch(*pair), zip([part.index[0] for part in parts], indexes, strict=True)
                )
                collections.deque(fetched, maxlen=0)
            joined = os.path.join(folder, "all.index")
            self._join(indexes, joined, self.storage.ranges(self.place))
            with open(joined, "rb") as file:
                yield UploadedFiles(tuple(final for _, final in data), data_bytes, index, file.read())

    def _seen(self, path: str, rank: int) -> str:
        if not self.storage.exists(path):
            raise CheckpointNotFoundError(
                f"Rank 0 does not see what rank {rank} has written, {path!r}. All ranks have to save to one file "
                "system that they share, or to remote storage."
            )
        return path

    def _fetch(self, path: str, destination: str) -> None:
        with open(destination, "wb") as file:
            file.write(self.storage.get(path))

    def _join(self, indexes: list[str], joined: str, ranges: Ranges | None) -> None:
        """Makes one index of all, and checks that every value lies in its file and that parts make up the whole, which
        nobody else sees all of."""
        _native.merge_indexes(indexes, joined, durable=self._durable, num_files=self._num_files)
        suffix = "" if self.storage.is_remote else self._suffix
        known = None if ranges is None else _BesideLocal(ranges, joined)
        reader = _native.BundleReader(joined, self.place, (suffix,), known)
        keys = reader.keys()
        reader.check([key.encode() for key in keys])
        graph = _native.SavedGraph(self._record)
        named = {key for node in graph.nodes_with_values() for _, _, key in graph.attributes(node)}
        if missing := sorted(named.difference(keys)):
            raise DataLossError(
                f"No rank has written {len(missing)} of the values that the object graph names, the first is "
                f"{missing[0]}. This should not happen; please report it."
            )


class _BesideLocal:
    """Files of remote storage, and one of this machine.

    Args:
        ranges: the former.
        path: the latter.
    """

    def __init__(self, ranges: Ranges, path: str) -> None:
        self._ranges = ranges
        self._path = path
        self.request_bytes, self.gap_bytes, self.num_requests = (
            ranges.request_bytes,
            ranges.gap_bytes,
            ranges.num_requests,
        )

    def size(self, path: str) -> int:
        return os.path.getsize(path) if path == self._path else self._ranges.size(path)

    def read(self, path: str, offset: int, size: int) -> bytes:
        if path != self._path:
            return self._ranges.read(path, offset, size)
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)
