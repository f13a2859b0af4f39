"""How ranks that do the same find together, whatever each has done before.

    rank 0        announces a session under its purpose, takes it back when all have come
    every other   comes to the session that is announced for its purpose, however early or late it is

Ranks count nothing, so that nothing can be off by one: who saved alone, or left out a save, is found at the next one to
which all come. A rank that gives up before all have come leaves word for those who are still to come, and each of these
raises once, at once. Only where rank 0 is interrupted in what nobody else has come to, it is as if it had never begun.

    trackckpt/at/<purpose>         what is announced, and whom it is too late for, as JSON
    trackckpt/waits/<rank>/<way>   for which purpose a rank has waited for a second
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterable
from typing import Any

from torch_trackckpt.distributed.store import Store, peek

__all__ = ["Meeting", "MissedError"]


class MissedError(Exception):
    """What this rank has come to, the others have given up before."""


class Meeting:
    """One rank's way to the others. Made in the thread that goes it.

    Args:
        store: what the ranks share.
        rank: that of this process.
        purpose: what to do together.
    """

    def __init__(self, store: Store, rank: int, purpose: str) -> None:
        self._store = store
        self._rank = rank
        self._purpose = purpose
        self._key = f"trackckpt/at/{purpose}"
        # What several threads do at a time is in another order on each rank, and none of it is a contradiction.
        is_main = threading.current_thread() is threading.main_thread()
        self._way = "main" if is_main else "other"
        self._ticket = secrets.token_hex(4)
        self._is_posted = False
        self._been: set[str] = set()

    # Rank 0.

    def announce(self, name: str) -> None:
        """Opens a session of that name.

        Raises:
            MissedError: the others have given it up before.
        """

        def announce(state: dict[str, Any]) -> None:
            state["session"] = name

        self._change(announce)

    def is_complete(self) -> None:
        """All have come."""
        self._store.delete_key(self._key)

    def leave(self, absent: Iterable[int], reason: str) -> None:
        """Rank 0 has given up. Those who have not come are told so, if they ever come."""
        missed = dict.fromkeys(map(str, absent), reason)
        if not missed:
            self._store.delete_key(self._key)
            return

        def leave(state: dict[str, Any]) -> None:
            state["session"] = None
            state["missed"].update(missed)

        self._change(leave, is_for_me=False)

    # Every other rank.

    def announced(self) -> str | None:
        """The name of the session to come to, as soon as there is one.

        Raises:
            MissedError: the others have given it up before.
        """
        text = peek(self._store, self._key)
        if text is None:
            return None
        state = json.loads(text)
        if str(self._rank) in state["missed"]:
            self._change(lambda state: None)
        name: str | None = state["session"]
        return None if name in self._been else name

    def has_been_at(self, name: str) -> None:
        """This rank has come to that session, and left it, before; so it waits for another."""
        self._been.add(name)

    def give_up(self, size: int, reason: str) -> bool:
        """Tells all others that this rank does not wait for rank 0 any more.

        Returns:
            Whether that is so: rank 0 may have come meanwhile.

        Raises:
            MissedError: another rank has given up before.
        """
        has_come = False

        def give_up(state: dict[str, Any]) -> None:
            nonlocal has_come
            has_come = state["session"] not in (None, *self._been)
            if not has_come:
                state["missed"].update({str(rank): reason for rank in range(size) if rank != self._rank})

        self._change(give_up)
        return not has_come

    # All.

    def forget(self) -> None:
        """Takes back the word that this rank has left: all have met since, so that nobody is late any more."""
        if peek(self._store, self._key) is not None:
            self._change(lambda state: state["missed"].clear(), is_for_me=False)

    def find_contradiction(self, ranks: Iterable[int]) -> str | None:
        """What to say if one of the ranks that this one waits for waits for this one as well, but for something else.

        Both raise then: who sees it first tells the other. To be called now and then by a rank that has waited long
        enough for it to matter.
        """
        self._post(None)
        for rank in ranks:
            text = peek(self._store, self._waits(rank))
            if text is None:
                continue
            purpose, ticket, against = json.loads(text)
            if against == self._ticket or (against is None and purpose != self._purpose):
                self._post(ticket)
                return (
                    f"Rank {rank} does something else than rank {self._rank}: {purpose}; rank {self._rank}: "
                    f"{self._purpose}. Saving is done by all ranks together, in the same order and under the same path."
                )
        return None

    def stop_waiting(self) -> None:
        """This rank waits no more, except that who was told that both do different things is still to read it."""
        if self._is_posted:
            self._is_posted = False
            self._store.delete_key(self._waits(self._rank))

    def _post(self, against: str | None) -> None:
        self._store.set(self._waits(self._rank), json.dumps([self._purpose, self._ticket, against]))
        self._is_posted = against is None

    def _waits(self, rank: int) -> str:
        return f"trackckpt/waits/{rank}/{self._way}"

    def _change(self, change: Callable[[dict[str, Any]], None], *, is_for_me: bool = True) -> None:
        """Changes what is announced in one step, or takes, and raises, what was left for this rank."""
        before = ""
        while True:
            state: dict[str, Any] = json.loads(before) if before else {"session": None, "missed": {}}
            reason = state["missed"].pop(str(self._rank), None) if is_for_me else None
            if reason is None:
                change(state)
            after = json.dumps(state)
            found = self._store.compare_set(self._key, before, after).decode()
            if found == after:
                if reason is not None:
                    raise MissedError(f"{reason} Rank {self._rank} was not waited for, or has waited in vain as well.")
                return
            # A key that is gone is answered with what was expected of it.
            before = "" if found == before else found
