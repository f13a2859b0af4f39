"""Ranks that do the same find together, whatever each has done or left out before."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist
from distributed.test_group import PATIENCE_SECONDS, SILENCE_SECONDS, together

from torch_trackckpt.distributed import group as group_module
from torch_trackckpt.distributed import life
from torch_trackckpt.distributed.group import Group, Session
from torch_trackckpt.errors import RankError


@pytest.fixture(autouse=True)
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_module, "_LOOK_SECONDS", 0.05)


def save(group: Group, purpose: str, work: Callable[[], Any] = lambda: None, silence: float = SILENCE_SECONDS) -> Any:
    """One session, as a save has it; returns what all have said."""
    session = group.session(purpose, silence)
    try:
        said = session.agree(work, list)
    finally:
        session.close()
    return said


def interrupted() -> None:
    raise KeyboardInterrupt


def full() -> None:
    raise OSError("no space")


@pytest.mark.parametrize("alone", [0, 1, 2])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_save_that_one_rank_began_alone_and_was_interrupted_in_is_as_if_it_had_never_begun(
    alone: int, first: int
) -> None:
    barrier = threading.Barrier(3)

    def act(group: Group, rank: int) -> Any:
        if rank == alone:
            with pytest.raises(KeyboardInterrupt):
                save(group, "x", interrupted)
        barrier.wait()
        if rank != first:
            time.sleep(0.2)
        return [save(group, purpose, lambda: rank) for purpose in ("x", "x", "y")]

    assert together(3, act) == [[[0, 1, 2]] * 3] * 3


def test_a_wait_for_the_others_may_be_interrupted_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    barrier = threading.Barrier(2)
    sleep, alone = time.sleep, threading.local()

    def sleep_or_interrupt(seconds: float) -> None:
        if getattr(alone, "is_here", False):
            raise KeyboardInterrupt
        sleep(seconds)

    monkeypatch.setattr(group_module.time, "sleep", sleep_or_interrupt)

    def act(group: Group, rank: int) -> Any:
        for lone in range(2):
            if rank == lone:
                alone.is_here = True
                with pytest.raises(KeyboardInterrupt):
                    save(group, "x")
                alone.is_here = False
            barrier.wait()
        return save(group, "x", lambda: rank)

    assert together(2, act) == [[0, 1]] * 2


def test_groups_may_be_made_in_any_order_and_number() -> None:
    store = dist.HashStore()

    def act(first: Group, rank: int) -> Any:
        more = [Group(store, rank, 2) for _ in range(3 if rank == 0 else 1)]
        groups = [first, more[-1]] if rank == 0 else [more[-1], first]
        found = [save(group, purpose, lambda: rank) for purpose, group in zip("ab", groups, strict=True)]
        for group in more:
            group._heart.stop()
        return found

    assert together(2, act, store) == [[[0, 1]] * 2] * 2


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("skipping", [0, 1])
def test_a_rank_that_left_out_a_save_is_found_again_and_no_two_saves_become_one(size: int, skipping: int) -> None:
    def act(group: Group, rank: int) -> Any:
        found = {}
        for step in range(8):
            if rank == skipping and step == 2:
                continue
            try:
                found[step] = save(group, f"step {step}", lambda step=step: step)
            except RankError:
                found[step] = None
        return found

    outcomes = together(size, act)
    for found in outcomes:
        good = [step for step, said in found.items() if said is not None]
        # The one that was left out fails, and at most the two after it.
        assert set(good) >= {0, 1, 5, 6, 7}
        assert 2 not in good
        assert all(found[step] == [step] * size for step in good)
        assert good == [step for step, said in outcomes[0].items() if said is not None]


def test_two_that_do_different_things_both_raise_and_say_what() -> None:
    barrier = threading.Barrier(2)

    def act(group: Group, rank: int) -> Any:
        with pytest.raises(RankError) as raised:
            save(group, f"save {rank}")
        barrier.wait()
        return str(raised.value), save(group, "the next", lambda: rank)

    for text, after in together(2, act):
        assert "save 0" in text
        assert "save 1" in text
        assert after == [0, 1]


@pytest.mark.parametrize("silent", [0, 1, 2])
def test_a_rank_that_comes_when_it_was_given_up_raises_at_once(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "_BEAT_SECONDS", 0.1)
    store = dist.HashStore()
    barrier = threading.Barrier(3)

    def act(group: Group, rank: int) -> Any:
        save(group, "before")
        if rank == silent:
            group._heart.stop()
            barrier.wait()
            group = Group(store, rank, 3)
        with pytest.raises(RankError) as raised:
            save(group, "x", silence=0.9)
        if rank != silent:
            barrier.wait()
        barrier.wait()
        found = save(group, "x", lambda: rank), save(group, "y", lambda: rank)
        group._heart.stop()
        return str(raised.value), *found

    for rank, (text, *after) in enumerate(together(3, act, store)):
        assert f"rank {silent} gave no sign of life for 0.9 seconds" in text
        assert rank != silent or f"Rank {rank} was not waited for" in text
        assert after == [[0, 1, 2]] * 2


def test_who_comes_late_to_what_another_was_interrupted_in_raises_at_once_if_it_was_not_alone() -> None:
    barrier = threading.Barrier(3)
    has_come = threading.Event()

    def act(group: Group, rank: int) -> Any:
        def wait_for_rank_1() -> None:
            if rank == 0:
                assert has_come.wait(PATIENCE_SECONDS)
                time.sleep(0.2)
                raise KeyboardInterrupt

        if rank == 2:
            barrier.wait()
        if rank == 1:
            has_come.set()
        with pytest.raises((KeyboardInterrupt, RankError)) as raised:
            save(group, "x", wait_for_rank_1)
        if rank != 2:
            barrier.wait()
        barrier.wait()
        return type(raised.value), save(group, "x", lambda: rank)

    kinds, after = zip(*together(3, act), strict=True)
    assert kinds == (KeyboardInterrupt, RankError, RankError)
    assert after == ([0, 1, 2],) * 3


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_who_comes_late_to_what_another_failed_in_raises_at_once_and_may_try_again(failing: int) -> None:
    def act(group: Group, rank: int) -> Any:
        texts = []
        for attempt in range(3):
            if rank == 2 and attempt == 0:
                time.sleep(0.5)

            def work(attempt: int = attempt) -> int:
                if rank == failing and attempt < 2:
                    raise OSError(f"attempt {attempt}")
                return attempt

            try:
                return texts, save(group, "x", work)
            except (OSError, RankError) as error:
                texts.append(str(error))
        return texts

    for texts, said in together(3, act):
        assert [text[-9:] for text in texts] == ["attempt 0", "attempt 1"]
        assert said == [2, 2, 2]


def test_rank_0_does_not_leave_before_the_others_have_heard_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []
    hear = Session._hear_decision

    def hear_late(self: Session, stage: int) -> Any:
        time.sleep(0.5)
        found = hear(self, stage)
        heard.append(self.rank)
        return found

    monkeypatch.setattr(Session, "_hear_decision", hear_late)

    def act(group: Group, rank: int) -> Any:
        save(group, "x")
        return sorted(heard)

    assert together(3, act)[0] == [1, 2]


def test_rank_0_does_not_wait_for_ever_for_one_that_has_died_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def act(group: Group, rank: int) -> Any:
        session = group.session("x", 0.3)
        said = session.agree(lambda: rank, list)
        if rank == 0:
            session.close()
        return said

    assert together(2, act) == [[0, 1]] * 2


class Counting:
    """A store that counts what each rank asks of it, except for looks that may be many."""

    def __init__(self, store: Any, counts: collections.Counter[str]) -> None:
        self._store = store
        self._counts = counts

    def __getattr__(self, name: str) -> Any:
        def ask(*arguments: Any) -> Any:
            is_look = name == "check" or (name == "compare_set" and arguments[1] == "?")
            if not is_look and "alive" not in arguments[0] and not (name == "add" and arguments[1] == 0):
                self._counts[name] += 1
            return getattr(self._store, name)(*arguments)

        if name == "clone":
            raise AttributeError(name)
        return ask


@pytest.mark.parametrize("size", [2, 6])
def test_a_session_asks_little_of_the_store_however_many_ranks_there_are(size: int) -> None:
    store = dist.HashStore()
    counts = [collections.Counter[str]() for _ in range(size)]

    def act(_: Group, rank: int) -> None:
        group = Group(Counting(store, counts[rank]), rank, size)  # type: ignore[arg-type]
        save(group, "x", lambda: rank)
        group._heart.stop()

    together(size, act, store)
    assert counts[0] == {"compare_set": 1, "multi_get": 1, "set": 1, "delete_key": 3}
    assert counts[1:] == [{"compare_set": 1, "delete_key": 1, "add": 1}] * (size - 1)


def test_sessions_that_follow_each_other_have_one_connection() -> None:
    made: list[int] = []

    class Cloned:
        def __init__(self, store: Any, rank: int) -> None:
            self._store = store
            self._rank = rank

        def clone(self) -> Cloned:
            made.append(self._rank)
            return self

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

    store = dist.HashStore()

    def act(_: Group, rank: int) -> None:
        group = Group(Cloned(store, rank), rank, 2)
        for _ in range(5):
            save(group, "x")
        group._heart.stop()

    together(2, act, store)
    # One is for the life signs.
    assert sorted(made) == [0, 0, 1, 1]


def test_sessions_that_failed_leave_nothing_behind_after_the_next_that_did_not() -> None:
    store = dist.HashStore()

    def act(group: Group, rank: int) -> None:
        for failing in (0, 1, 0, 1):
            with pytest.raises((OSError, RankError)):
                save(group, "x", full if rank == failing else lambda: None)
        save(group, "x")

    together(2, act, store)
    # The life signs.
    assert store.num_keys() == 2
