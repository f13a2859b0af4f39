"""How the processes of a job agree on a save.

    every rank    works, and says what came of it, or how it failed
    rank 0        waits for all, decides, and says what was decided
    every rank    goes on with that, or raises

They talk through the key-value store that torch.distributed began with, over connections of our own, and not by
collectives: a rank that fails says so and leaves, whereas one that leaves a collective takes the process group with it.
Nothing here can come between the collectives of the training, in whatever thread it runs.

    trackckpt/<session>/<stage>/<rank>   what came of a rank's work; rank 0 keeps its own
    trackckpt/<session>/<stage>/all      what was decided
    trackckpt/<session>/failed           that a rank has failed, for those who still work
    trackckpt/<session>/left             how many ranks have heard the last of it

A session is named by rank 0, and found by its purpose (`meeting`). It begins when all have come:

* Before, rank 0 leaves only if it is interrupted, or somebody it waits for is lost or does something else. If it has
  failed itself, or another has, it stays to tell those who come late; whoever is told leaves at once.
* Later, whoever fails says so and leaves, and the others learn of it where they wait or look.
* At the end rank 0 stays until the others have heard the end, since the store may live in its process.

Each rank removes what it has said: at the end, which no rank reaches before it was heard, or, where the session failed,
at the end of the next one that did not. What is said is JSON. Who has said nothing yet is waited for as long as its
process lives (`life`), however long that takes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch.distributed as dist

from torch_trackckpt.distributed.life import Heart, Pulse
from torch_trackckpt.distributed.meeting import Meeting, MissedError
from torch_trackckpt.distributed.store import Store, connection, peek
from torch_trackckpt.errors import RankError

__all__ = ["Group", "Session", "find_group", "rank_and_size"]

_logger = logging.getLogger("torch_trackckpt")

Message = Any
"""What can be JSON."""

_FIRST_PAUSE_SECONDS = 0.0002
_LONGEST_PAUSE_SECONDS = 0.02
_LOOK_SECONDS = 1.0
"""How often a rank that waits looks whether those that it waits for are alive, and whether they do the same."""

_PIECE_CHARACTERS = 4 << 20
"""As much is said at once; a store takes no more than 8 MiB."""

_TELL_SECONDS = 60.0
"""After so long the log tells whom a rank waits for, because it may not be on its way."""


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
    """The processes of a job, for one purpose after the other.

    Args:
        store: what they share.
        rank, size: which of them this is, and how many there are.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store = store
        self.rank = rank
        self.size = size
        self._process = os.getpid()
        self._heart = Heart(store, rank)
        weakref.finalize(self, self._heart.stop)
        self._idle: list[Store] = []
        """Connections that no session has now. To make one can take seconds, where names of hosts are slow to find."""
        self._remains: list[Callable[[], object]] = []
        """Remove what this rank has left of sessions that failed."""

    def session(self, purpose: str, silence: float) -> Session:
        """A time in which all ranks do the same, as a collective.

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
        return Session(self, purpose, silence)

    def _connection(self) -> Store:
        try:
            return self._idle.pop()
        except IndexError:
            return connection(self._store)

    @property
    def is_current(self) -> bool:
        """Whether the processes are still those of torch.distributed, which may have been ended, or begun anew."""
        return rank_and_size() == (self.rank, self.size) and _default_store() is self._store


class Session:
    """One matter on which the ranks agree, in stages. Made by `Group.session`; after the first stage, it may go on in
    another thread.

    Args:
        group: the processes.
        purpose, silence: see `Group.session`.
    """

    def __init__(self, group: Group, purpose: str, silence: float) -> None:
        # The group's heart beats as long as there is the group.
        self._group = group
        self._store = group._connection()
        self.rank = group.rank
        self.size = group.size
        self._purpose = purpose
        self._silence = silence
        self._meeting = Meeting(self._store, self.rank, purpose)
        self._name: str | None = None
        """What the keys begin with; known when rank 0 announces it, and when another comes to it."""
        self._has_begun = False
        """Whether all have come; on other ranks than 0, whether this one has."""
        self._has_given_up = False
        """Whether this rank has stopped waiting for somebody, so that it will not wait once more to tell of it."""
        self._num_stages = 0
        self._own = ""
        """What rank 0 says to itself."""
        self._said: list[str] = []
        """The keys that this rank is to remove."""
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
        with self.telling():
            stage, self._num_stages = self._num_stages, self._num_stages + 1
            message = work()
            with self._telling_of_lost_store():
                self._say(stage, message)
                if not self.decides:
                    return self._hear_decision(stage)
                messages = self._hear_all(stage)
            decided = decide(messages)
            with self._telling_of_lost_store():
                self._say(stage, decided, is_decision=True)
        return decided

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Tells the others of whatever goes wrong in the block, so that nobody waits for this rank."""
        try:
            if self.decides and self._name is None:
                # Before it works, so that nobody who comes has to wait for the name.
                with self._telling_of_lost_store():
                    self._announce()
            yield
        except BaseException as error:
            self._fail(error)
            raise

    def check(self) -> None:
        """Looks whether another rank has failed meanwhile, so that there is no use in going on.

        Raises:
            RankError: one has.
        """
        with self._telling_of_lost_store():
            if (failed := peek(self._store, f"{self._name}/failed")) is not None:
                raise RankError(failed)

    def close(self) -> None:
        """To be called when the ranks have agreed. Rank 0 waits until the others know of it."""
        if not self._is_open:
            return
        try:
            with contextlib.suppress(Exception):
                if not self.decides:
                    self._remove_said()
                    self._store.add(self._left, 1)
                elif self._all_have_left():
                    self._said.append(self._left)
                    self._remove_said()
                self._group._idle.append(self._store)
        finally:
            self._end()

    # Saying and hearing.

    def _say(self, stage: int, message: Message, *, is_decision: bool = False) -> None:
        text = _text(message)
        if is_decision:
            self._put(f"{self._name}/{stage}/all", text)
        elif self.decides:
            self._own = text
        elif self._has_begun:
            self._put(f"{self._name}/{stage}/{self.rank}", text)
        else:
            self._come(text)

    def _put(self, key: str, text: str, *, is_new: bool = False) -> bool:
        """Says something under a key, and returns whether it is there; false if it is to be new and is not."""
        pieces = [text[begin : begin + _PIECE_CHARACTERS] for begin in range(0, len(text), _PIECE_CHARACTERS)]
        keys = [key, *(f"{key}/{number}" for number in range(1, len(pieces)))]
        for name, piece in zip(keys[1:], pieces[1:], strict=True):
            self._store.set(name, piece)
        # The first comes last: who finds it finds the others.
        first = f"{len(pieces)} {pieces[0]}"
        if is_new and self._store.compare_set(key, "", first).decode() != first:
            return False
        if not is_new:
            self._store.set(key, first)
        self._said += keys
        return True

    def _heard(self, keys: Sequence[str], firsts: Sequence[str]) -> list[Message]:
        """What was said under keys, of which the first pieces are known."""
        messages = []
        for key, first in zip(keys, firsts, strict=True):
            count, _, text = first.partition(" ")
            if int(count) > 1:
                more = self._store.multi_get([f"{key}/{number}" for number in range(1, int(count))])
                text += "".join(piece.decode() for piece in more)
            _, failed, message = json.loads(text)
            if failed is not None:
                raise RankError(failed)
            messages.append(message)
        return messages

    def _hear_decision(self, stage: int) -> Message:
        key = f"{self._name}/{stage}/all"
        found: str | None = None

        def is_there() -> bool:
            nonlocal found
            found = peek(self._store, key)
            if found is None:
                self.check()
            return found is not None

        self._wait(is_there, lambda: [0])
        assert found is not None
        return self._heard([key], [found])[0]

    def _hear_all(self, stage: int) -> list[Message]:
        """On rank 0, what all have said."""
        keys = self._keys(stage)
        if self._has_begun:

            def are_there() -> bool:
                if self._store.check(keys):
                    return True
                self.check()
                return False

            self._wait(are_there, lambda: self._absent(stage))
        else:
            self._wait_for_all_to_come()
        firsts = [first.decode() for first in self._store.multi_get(keys)]
        (own,) = self._heard([""], [f"1 {self._own}"])
        return [own, *self._heard(keys, firsts)]

    def _keys(self, stage: int) -> list[str]:
        return [f"{self._name}/{stage}/{rank}" for rank in range(1, self.size)]

    def _absent(self, stage: int) -> list[int]:
        return [rank for rank, key in enumerate(self._keys(stage), 1) if not self._store.check([key])]

    # Coming and going.

    def _announce(self) -> None:
        # Known before it is announced, so that an interrupt in between is told of.
        self._name = f"trackckpt/{secrets.token_hex(8)}"
        try:
            self._meeting.announce(self._name)
        except MissedError as missed:
            self._name = None
            raise RankError(str(missed)) from None

    def _come(self, text: str) -> None:
        """Comes to the session that rank 0 announces, with something to say in its first stage."""
        while not self._has_begun:
            try:
                self._name = self._find()
            except MissedError as missed:
                self._has_given_up = True
                raise RankError(str(missed)) from None
            self._has_begun = self._put(f"{self._name}/0/{self.rank}", text, is_new=True)
            if not self._has_begun:
                self._meeting.has_been_at(self._name)
                self._name = None

    def _find(self) -> str:
        name: str | None = None

        def is_announced() -> bool:
            nonlocal name
            name = self._meeting.announced()
            return name is not None

        while name is None:
            try:
                self._wait(is_announced, lambda: [0], is_meeting=True)
            except RankError as error:
                if self._meeting.give_up(self.size, str(error)):
                    self._group._remains.append(self._meeting.forget)
                    raise
                # Rank 0 has come after all.
                self._has_given_up = False
        return name

    def _wait_for_all_to_come(self) -> None:
        keys = self._keys(0)
        self._wait(lambda: self._store.check(keys), lambda: self._absent(0), is_meeting=True)
        self._meeting.is_complete()
        self._has_begun = True

    def _fail(self, error: BaseException) -> None:
        """Tells the others, unless it was they who told this rank, and leaves."""
        if not self._is_open:
            return
        failed = str(error) if isinstance(error, RankError) else self._failed(self.rank, error)
        is_interrupt = not isinstance(error, Exception)
        try:
            with contextlib.suppress(Exception):
                if self.decides and self._name is not None:
                    self._fail_as_first(failed, is_interrupt)
                elif not self.decides:
                    self._fail_as_other(failed, is_interrupt)
        finally:
            self._group._remains.append(self._remove_keys)
            self._end()

    def _fail_as_other(self, failed: str, is_interrupt: bool) -> None:
        if not self._has_begun:
            # Who has not come waits for rank 0, to tell it, unless there is no use in that, or no time for it.
            marked = _text(None, failed)
            if self._name is not None:
                self._put(f"{self._name}/0/{self.rank}", marked, is_new=True)
            elif is_interrupt or self._has_given_up:
                return
            else:
                self._come(marked)
        self._put_failed(failed)
        # Rank 0 may have come to a good end before this rank failed.
        self._store.add(self._left, 1)

    def _fail_as_first(self, failed: str, is_interrupt: bool) -> None:
        self._put_failed(failed)
        self._said.append(self._left)
        if self._has_begun:
            return
        try:
            if not is_interrupt and not self._has_given_up:
                self._wait_for_all_to_come()
        except BaseException as meanwhile:
            is_interrupt = not isinstance(meanwhile, Exception)
            raise
        finally:
            if not self._has_begun:
                absent = self._absent(0)
                # What nobody else has come to may be something that nobody else was to come to.
                is_alone = is_interrupt and len(absent) == self.size - 1
                self._meeting.leave(() if is_alone else absent, failed)
                self._group._remains.append(self._meeting.forget)

    def _put_failed(self, failed: str) -> None:
        """Whoever is first is believed."""
        key = f"{self._name}/failed"
        if self._store.compare_set(key, "", failed).decode() == failed:
            self._said.append(key)

    def _failed(self, rank: int, error: BaseException) -> str:
        return f"{self._purpose} was given up, because rank {rank} failed: {type(error).__name__}: {error}"

    @property
    def _left(self) -> str:
        return f"{self._name}/left"

    def _all_have_left(self) -> bool:
        """Waits until the others have heard the end, unless one does not for too long: it may be dead."""
        pause = _FIRST_PAUSE_SECONDS
        end = time.monotonic() + self._silence
        while self._store.add(self._left, 0) < self.size - 1:
            if time.monotonic() > end:
                return False
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        return True

    def _remove_said(self) -> None:
        """All have heard it, and nobody is left in a session of this group that failed before."""
        remains, self._group._remains = self._group._remains, []
        for remove in (*remains, self._remove_keys):
            remove()

    def _remove_keys(self) -> None:
        for key in self._said:
            self._store.delete_key(key)

    def _end(self) -> None:
        self._is_open = False
        self._group._heart.num_sessions -= 1

    # Waiting.

    def _wait(
        self, is_there: Callable[[], bool], missing: Callable[[], Sequence[int]], *, is_meeting: bool = False
    ) -> None:
        """Waits until something is there, which comes from the ranks that are missing."""
        pulse = Pulse(self._store, self._silence)
        pause = _FIRST_PAUSE_SECONDS
        begin = time.monotonic()
        next_look, has_told = begin + _LOOK_SECONDS, False
        try:
            while not is_there():
                time.sleep(pause)
                # Very many ranks must not keep the store busy with questions.
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS * max(1, self.size // 64))
                if time.monotonic() < next_look:
                    continue
                next_look = time.monotonic() + _LOOK_SECONDS
                ranks = missing()
                if is_meeting and (contradiction := self._meeting.find_contradiction(ranks)):
                    self._has_given_up = True
                    raise RankError(contradiction)
                if lost := pulse.lost(ranks):
                    self._has_given_up = True
                    raise RankError(f"{self._purpose} was given up, because {lost}.")
                if not has_told and time.monotonic() - begin > _TELL_SECONDS:
                    has_told = True
                    self._tell_of_waiting(ranks, time.monotonic() - begin)
        finally:
            if is_meeting:
                self._meeting.stop_waiting()

    def _tell_of_waiting(self, ranks: Sequence[int], seconds: float) -> None:
        _logger.warning(
            "%s: rank %d has waited for rank %s for %.0f seconds. All ranks have to come to it.",
            self._purpose,
            self.rank,
            ", ".join(map(str, ranks[:10])),
            seconds,
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


def _text(message: Message, failed: str | None = None) -> str:
    # The ticket tells two that say the same apart.
    return json.dumps([secrets.token_hex(4), failed, message])
