"""How the processes of a job agree on a save.

    every rank    works, and says what came of it, or how it failed
    rank 0        waits for all, decides, and says what was decided
    every rank    goes on with that, or raises

They talk through the key-value store that torch.distributed began with, over connections of our own, and not by
collectives: a rank that fails says so and leaves, whereas one that leaves a collective takes the process group with it.
Nothing here can come between the collectives of the training, in whatever thread it runs.

    trackckpt/<group>/<session>/<stage>/<rank>   what came of a rank's work
    trackckpt/<group>/<session>/<stage>/all      what was decided
    trackckpt/<group>/<session>/failed           that a rank has failed, for those who still work
    trackckpt/alive/<rank>                       changes about once a second for as long as the process lives
    trackckpt/groups/<rank>                      how many groups a rank has had; the n-th of one is that of each other

What is said is JSON. Who has said nothing yet is waited for as long as its process lives, however long that takes.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch.distributed as dist

from torch_trackckpt.errors import RankError

__all__ = ["Group", "Session", "Store", "find_group", "rank_and_size"]

_logger = logging.getLogger("torch_trackckpt")

Message = Any
"""What can be JSON."""

_BEAT_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.0002
_LONGEST_PAUSE_SECONDS = 0.02
_LOOK_SECONDS = 1.0
"""How often a rank that waits looks whether those that it waits for are alive."""

_MOST_STAGES = 5
"""How many stages a session has at most."""

_PIECE_CHARACTERS = 4 << 20
"""As much is said at once; a store takes no more than 8 MiB."""

_TELL_SECONDS = 60.0
"""After so long the log tells whom a rank waits for, because it may not be on its way."""

_JOIN_SECONDS = 600.0
"""How long a process is waited for of which nothing was ever heard: it may still be on its way to its first save."""


class Store(Protocol):
    """What is asked of ``torch.distributed.Store``."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...
    def delete_key(self, key: str, /) -> bool: ...
    def add(self, key: str, amount: int, /) -> int: ...
    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes: ...


def rank_and_size() -> tuple[int, int]:
    """Which process of how many this is; the first of one where torch.distributed was not initialised."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def find_group() -> Group | None:
    """The processes that this one saves together with; None where it is alone."""
    rank, size = rank_and_size()
    if size == 1:
        return None
    return Group(_default_store(), rank, size)


def _default_store() -> Store:
    # There is no public name for it; torch's own libraries ask for it like this.
    store: Store = dist.distributed_c10d._get_default_store()
    return store


class Group:
    """The processes of a job, for one purpose after the other: all of them make their groups in the same order.

    Args:
        store: what they share.
        rank, size: which of them this is, and how many there are.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store = store
        self.rank = rank
        self.size = size
        self._process = os.getpid()
        self._sessions = itertools.count(1)
        own = _connection(store)
        self._base = f"trackckpt/{own.add(f'trackckpt/groups/{rank}', 1)}"
        self._heart = _Heart(store, rank)
        weakref.finalize(self, self._heart.stop)

    def session(self, purpose: str, silence: float) -> Session:
        """A time in which all ranks do the same, as a collective: the n-th session of one is the n-th of each other.

        Args:
            purpose: what it is for; has to be the same on all ranks.
            silence: for how many seconds a rank may give no sign of life.

        Raises:
            RuntimeError: this process was forked from one of the group.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                f"A process that was forked from rank {self.rank} cannot save together with the others. Save in rank "
                f"{self.rank} itself."
            )
        self._heart.begin()
        return Session(self, next(self._sessions), purpose, silence)

    @property
    def is_current(self) -> bool:
        """Whether the processes are still those of torch.distributed, which may have been ended, or begun anew."""
        return rank_and_size() == (self.rank, self.size) and _default_store() is self._store


class Session:
    """One matter on which the ranks agree, in stages. Made by `Group.session`; may go on in another thread.

    Args:
        group: the processes.
        number: which of the group's sessions it is.
        purpose, silence: see `Group.session`.
    """

    def __init__(self, group: Group, number: int, purpose: str, silence: float) -> None:
        # The group's heart beats as long as there is the group.
        self._group = group
        self._store = _connection(group._store)
        self.rank = group.rank
        self.size = group.size
        self._purpose = purpose
        self._silence = silence
        self._base = f"{group._base}/{number}"
        self._older = f"{group._base}/{number - 2}"
        self._stages = itertools.count()
        self._is_open = True
        group._heart.num_sessions += 1

    @property
    def decides(self) -> bool:
        """Whether this rank is the one that decides."""
        return self.rank == 0

    def agree(
        self,
        work: Callable[[], Message],
        decide: Callable[[list[Message]], Message] = lambda messages: None,
    ) -> Message:
        """Works, and returns what was decided about the work of all.

        Args:
            work: what this rank does; returns what rank 0 has to know of it.
            decide: what rank 0 makes of it, from the messages of all ranks by rank; returns what all have to know.

        Raises:
            RankError: another rank has failed, or gives no sign of life.
            BaseException: what `work`, or on rank 0 `decide`, has raised here.
        """
        stage = f"{self._base}/{next(self._stages)}"
        with self.telling():
            message = work()
            with self._telling_of_lost_store():
                self._say(f"{stage}/{self.rank}", message)
                if not self.decides:
                    return self._hear(f"{stage}/all", by=0)
                self._wait([f"{stage}/{rank}" for rank in range(self.size)], range(self.size))
                messages = [self._hear(f"{stage}/{rank}", by=rank) for rank in range(self.size)]
            decided = decide(messages)
            with self._telling_of_lost_store():
                self._say(f"{stage}/all", decided)
        return decided

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Tells the others of whatever goes wrong in the block, so that nobody waits for this rank."""
        try:
            yield
        except BaseException as error:
            self._say_failed(error)
            raise

    def check(self) -> None:
        """Looks whether another rank has failed meanwhile, so that there is no use in going on.

        Raises:
            RankError: one has.
        """
        key = f"{self._base}/failed"
        with self._telling_of_lost_store():
            if self._store.check([key]):
                raise RankError(self._store.get(key).decode())

    def close(self) -> None:
        """To be called when the ranks have agreed, or will not; nobody may ask for what was said long ago any more."""
        if self._is_open:
            self._is_open = False
            self._group._heart.num_sessions -= 1
            if self.decides:
                self._forget_older()

    def _say(self, key: str, message: Message) -> None:
        text = json.dumps([self._purpose, message])
        pieces = [text[begin : begin + _PIECE_CHARACTERS] for begin in range(0, len(text), _PIECE_CHARACTERS)]
        for number, piece in enumerate(pieces[1:], 1):
            self._store.set(f"{key}/{number}", piece)
        # The first comes last: who finds it finds the others.
        self._store.set(key, f"{len(pieces)} {pieces[0]}")

    def _hear(self, key: str, by: int) -> Message:
        self._wait([key], [by])
        count, _, text = self._store.get(key).decode().partition(" ")
        pieces = [text, *(self._store.get(f"{key}/{number}").decode() for number in range(1, int(count)))]
        purpose, message = json.loads("".join(pieces))
        if purpose != self._purpose:
            raise RankError(
                f"Rank {by} does something else than rank {self.rank}: {purpose}; rank {self.rank}: {self._purpose}. "
                "Saving is done by all ranks together, in the same order and under the same path."
            )
        return message

    def _say_failed(self, error: BaseException) -> None:
        """Tells the others, unless it was they who told this rank; whoever is first is believed."""
        failed = str(error) if isinstance(error, RankError) else self._failed(self.rank, error)
        with contextlib.suppress(Exception):
            self._store.compare_set(f"{self._base}/failed", "", failed)

    def _failed(self, rank: int, error: BaseException) -> str:
        return f"{self._purpose} was given up, because rank {rank} failed: {type(error).__name__}: {error}"

    def _wait(self, keys: Sequence[str], ranks: Sequence[int]) -> None:
        """Waits until all keys are there, one by each of the ranks."""
        pulse = _Pulse(self._store, self._silence)
        pause = _FIRST_PAUSE_SECONDS
        begin = time.monotonic()
        next_look, has_told = begin + _LOOK_SECONDS, False
        while not self._store.check(list(keys)):
            self.check()
            time.sleep(pause)
            # Very many ranks must not keep the store busy with questions.
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS * max(1, self.size // 64))
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + _LOOK_SECONDS
                missing = [rank for key, rank in zip(keys, ranks, strict=True) if not self._store.check([key])]
                if lost := pulse.lost(missing):
                    raise RankError(f"{self._purpose} was given up, because {lost}.")
                if not has_told and time.monotonic() - begin > _TELL_SECONDS:
                    has_told = True
                    _logger.warning(
                        "%s: rank %d has waited for rank %s for %.0f seconds. All ranks have to come to it.",
                        self._purpose,
                        self.rank,
                        ", ".join(map(str, missing[:10])),
                        time.monotonic() - begin,
                    )

    @contextlib.contextmanager
    def _telling_of_lost_store(self) -> Iterator[None]:
        try:
            yield
        except dist.DistError as error:
            raise RankError(
                f"{self._purpose} was given up, because the store of the process group does not answer: {error}. The "
                "process that keeps it, which is that of rank 0 unless torchrun does, has probably died."
            ) from error

    def _forget_older(self) -> None:
        """Removes what was said in the session before the last, which nobody asks for any more."""
        with contextlib.suppress(Exception):
            for stage in range(_MOST_STAGES):
                for name in (*map(str, range(self.size)), "all"):
                    key = f"{self._older}/{stage}/{name}"
                    if self._store.delete_key(key):
                        pieces = (f"{key}/{number}" for number in itertools.count(1))
                        collections.deque(itertools.takewhile(self._store.delete_key, pieces), maxlen=0)
            self._store.delete_key(f"{self._older}/failed")


class _Pulse:
    """Which of the ranks that are waited for give no sign of life."""

    def __init__(self, store: Store, silence: float) -> None:
        self._store = store
        self._silence = silence
        self._begin = time.monotonic()
        self._last: dict[int, tuple[bytes | None, float]] = {}

    def lost(self, ranks: Sequence[int]) -> str | None:
        """What to say of those that are lost."""
        now = time.monotonic()
        lost = [rank for rank in ranks if now - self._heard(rank, now) > self._silence]
        if not lost:
            return None
        which = ", ".join(map(str, lost[:10])) + (", ..." if len(lost) > 10 else "")
        return (
            f"rank {which} gave no sign of life for {self._silence:g} seconds, so that its process has died or hangs "
            "(CheckpointOptions.rank_silence_seconds)"
        )

    def _heard(self, rank: int, now: float) -> float:
        key = f"trackckpt/alive/{rank}"
        beat = self._store.get(key) if self._store.check([key]) else None
        if beat is None:
            # It has not begun its first session yet, and may be anywhere on its way there.
            return now if now - self._begin < _JOIN_SECONDS else self._begin
        before, when = self._last.get(rank, (None, now))
        if beat != before:
            self._last[rank] = beat, now
            return now
        return when


class _Heart:
    """A thread that tells the others that this process lives.

    Args:
        store: what the ranks share.
        rank: that of this process.
    """

    def __init__(self, store: Store, rank: int) -> None:
        self._store = store
        self._own = _connection(store)
        self._key = f"trackckpt/alive/{rank}"
        self._stopped = threading.Event()
        self._has_begun = False
        self.num_sessions = 0
        """How many sessions are open; the thread of an asynchronous save goes on when the main thread is over."""

    def begin(self) -> None:
        """Begins to beat, if it does not yet."""
        if self._has_begun:
            return
        self._has_begun = True
        self._beat(0)
        threading.Thread(target=self._run, name="torch_trackckpt heart", daemon=False).start()

    def stop(self) -> None:
        """Beats no more."""
        self._stopped.set()

    def _run(self) -> None:
        # No daemon: Python would stop one within the call of the store, which ends in an abort. The interpreter waits
        # for this thread, which sees that the main thread is over.
        pauses = max(1, round(_BEAT_SECONDS / _PAUSE_SECONDS))
        for number in itertools.count(1):
            is_needed = self.num_sessions > 0 or threading.main_thread().is_alive()
            if self._stopped.wait(_PAUSE_SECONDS) or not is_needed:
                return
            if number % pauses == 0:
                self._beat(number)

    def _beat(self, number: int) -> None:
        try:
            self._own.set(self._key, f"{os.getpid()} {number}")
        except Exception:
            # The next may be heard again; where the store is gone for good, nobody is there to hear.
            with contextlib.suppress(Exception):
                self._own = _connection(self._store)


_PAUSE_SECONDS = 0.1
"""How long the interpreter waits for the thread at its exit, at most."""


def _connection(store: Store) -> Store:
    """The same store by a connection of our own, so that nobody has to wait for what another thread asks of it."""
    clone = getattr(store, "clone", None)
    if clone is None:
        return store
    try:
        cloned: Store = clone()
    except RuntimeError:
        # Some kinds of stores cannot.
        return store
    return cloned
