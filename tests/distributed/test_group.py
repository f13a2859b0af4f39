"""Ranks agree: what one says reaches all, and so does that one has failed, or has died."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist

from torch_trackckpt.distributed import group as group_module
from torch_trackckpt.distributed import life
from torch_trackckpt.distributed.group import Group, Session, find_group, rank_and_size
from torch_trackckpt.errors import RankError

PATIENCE_SECONDS = 60
SILENCE_SECONDS = 30.0


def together(size: int, act: Callable[[Group, int], Any], store: Any = None) -> list[Any]:
    """What a function returns, or raises, in each of several ranks, which are threads here."""
    store = store or dist.HashStore()
    found: list[Any] = [None] * size
    groups = [Group(store, rank, size) for rank in range(size)]

    def run(rank: int) -> None:
        try:
            found[rank] = act(groups[rank], rank)
        except BaseException as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    for group in groups:
        group._heart.stop()
    return found


def session_of(group: Group, purpose: str = "The save to 'x'") -> Session:
    return group.session(purpose, SILENCE_SECONDS)


def test_a_process_without_torch_distributed_is_alone() -> None:
    assert find_group() is None
    assert rank_and_size() == (0, 1)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_rank_0_hears_of_all_and_all_hear_what_it_decides(size: int) -> None:
    def act(group: Group, rank: int) -> Any:
        session = session_of(group)
        first = session.agree(lambda: {"rank": rank}, lambda said: [message["rank"] for message in said])
        second = session.agree(lambda: sum(first) + rank, max)
        session.close()
        return first, second

    assert together(size, act) == [(list(range(size)), sum(range(size)) + size - 1)] * size


def test_sessions_follow_each_other_and_leave_nothing_behind() -> None:
    store = dist.HashStore()

    def act(group: Group, rank: int) -> Any:
        decided = []
        for number in range(10):
            session = session_of(group, f"save {number}")
            decided.append(session.agree(lambda number=number: number * rank, sum))
            session.close()
        return decided

    assert together(2, act, store) == [list(range(10))] * 2
    # The life signs of both.
    assert store.num_keys() == 2


def test_groups_do_not_hear_each_other() -> None:
    store = dist.HashStore()
    first = together(2, lambda group, rank: session_of(group).agree(lambda: 1 + rank, sum), store)
    second = together(2, lambda group, rank: session_of(group).agree(lambda: 10 + rank, sum), store)
    assert (first, second) == ([3, 3], [21, 21])


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_what_goes_wrong_in_one_rank_is_raised_in_all_and_the_next_session_works(failing: int) -> None:
    def act(group: Group, rank: int) -> Any:
        def work() -> int:
            if rank == failing:
                raise OSError(28, "No space left on device", "/data/ckpt")
            return rank

        try:
            session_of(group).agree(work, sum)
        except (OSError, RankError) as error:
            return error, session_of(group, "the next").agree(lambda: rank, sum)
        return None

    for rank, (error, after) in enumerate(together(3, act)):
        assert after == 3
        if rank == failing:
            assert type(error) is OSError
        else:
            assert type(error) is RankError
            assert str(error) == (
                f"The save to 'x' was given up, because rank {failing} failed: OSError: [Errno 28] No space left on "
                "device: '/data/ckpt'"
            )


def test_what_goes_wrong_when_rank_0_decides_is_raised_in_all() -> None:
    def act(group: Group, rank: int) -> Any:
        session_of(group).agree(lambda: rank, lambda said: 1 // 0)

    first, *others = together(3, act)
    assert type(first) is ZeroDivisionError
    assert [str(error) for error in others] == [
        "The save to 'x' was given up, because rank 0 failed: ZeroDivisionError: integer division or modulo by zero"
    ] * 2


def test_what_goes_wrong_between_two_stages_is_told_to_those_who_wait_and_to_those_who_look() -> None:
    def act(group: Group, rank: int) -> Any:
        session = session_of(group)
        with session.telling():
            session.agree(lambda: rank)
            if rank == 1:
                raise ValueError("odd")
            if rank == 2:
                while True:
                    session.check()
                    time.sleep(0.01)
            session.agree(lambda: rank)

    found = together(3, act)
    assert [type(error) for error in found] == [RankError, ValueError, RankError]
    assert all("rank 1 failed: ValueError: odd" in str(error) for error in (found[0], found[2]))


def test_ranks_that_do_not_do_the_same_are_told_so() -> None:
    def act(group: Group, rank: int) -> Any:
        session_of(group, f"The save to 'ckpt-{rank}'").agree(lambda: rank)

    for error in together(2, act):
        assert type(error) is RankError
        assert "in the same order and under the same path" in str(error)
        assert "ckpt-0" in str(error)
        assert "ckpt-1" in str(error)


@pytest.mark.parametrize("silent", [0, 1])
def test_a_rank_that_gives_no_sign_of_life_is_not_waited_for(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_module, "_LOOK_SECONDS", 0.05)

    def act(group: Group, rank: int) -> Any:
        session = group.session("The save to 'x'", 0.4)
        session.agree(lambda: rank)
        if rank == silent:
            group._heart.stop()
            return None
        return session.agree(lambda: rank)

    found = together(2, act)
    assert type(found[1 - silent]) is RankError
    assert f"rank {silent} gave no sign of life for 0.4 seconds" in str(found[1 - silent])


def test_a_rank_that_lives_is_waited_for_however_long_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_module, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(life, "_BEAT_SECONDS", 0.1)

    def act(group: Group, rank: int) -> Any:
        session = group.session("The save to 'x'", 0.9)

        def work() -> int:
            if rank == 1:
                time.sleep(2)
            return rank

        return session.agree(work, sum)

    assert together(2, act) == [1, 1]


def test_a_rank_that_was_never_heard_of_may_be_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_module, "_LOOK_SECONDS", 0.05)

    def act(group: Group, rank: int) -> Any:
        if rank == 1:
            time.sleep(1)
        return group.session("The save to 'x'", 0.3).agree(lambda: rank, sum)

    assert together(2, act) == [1, 1]
    monkeypatch.setattr(life, "_JOIN_SECONDS", 0.5)
    store = dist.HashStore()
    group = Group(store, 0, 2)
    with pytest.raises(RankError, match="rank 1 gave no sign of life"):
        group.session("The save to 'x'", 0.3).agree(lambda: 0)
    group._heart.stop()


def test_a_store_that_does_not_answer_is_told_of() -> None:
    class Gone:
        def set(self, key: str, value: str) -> None:
            assert "alive" in key

        def compare_set(self, key: str, expected: str, desired: str) -> bytes:
            raise dist.DistNetworkError("connection reset")

    group = Group(Gone(), 1, 2)  # type: ignore[arg-type]
    with pytest.raises(RankError, match=r"the store of the process group does not answer: connection reset\. The pro"):
        session_of(group).agree(lambda: 1)
    group._heart.stop()


def test_a_forked_process_is_none_of_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(dist.HashStore(), 1, 2)
    monkeypatch.setattr(group, "_process", -1)
    with pytest.raises(RuntimeError, match="forked from rank 1"):
        session_of(group)


def test_a_group_that_nobody_has_any_more_gives_no_sign_of_life() -> None:
    group = Group(dist.HashStore(), 0, 2)
    session_of(group)
    heart = group._heart
    del group
    assert heart._stopped.wait(PATIENCE_SECONDS)


def test_a_heart_goes_on_when_the_store_did_not_take_a_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "_BEAT_SECONDS", 0.1)
    beats: list[str] = []

    class Shaky:
        def set(self, key: str, value: str) -> None:
            beats.append(value)
            if len(beats) == 2:
                raise dist.DistNetworkError("try again")

    group = Group(Shaky(), 1, 2)  # type: ignore[arg-type]
    session_of(group)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(beats) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    group._heart.stop()
    assert len(beats) >= 4


def test_long_messages_arrive_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_module, "_PIECE_CHARACTERS", 10)
    said = [list(range(30)), "short", {"text": "x" * 100}]

    def act(group: Group, rank: int, rounds: int) -> Any:
        for _ in range(rounds):
            session = session_of(group)
            heard = session.agree(lambda: said[rank], list)
            session.close()
        return heard

    counts = []
    for rounds in (4, 9):
        store = dist.HashStore()
        assert together(3, functools.partial(act, rounds=rounds), store) == [said] * 3
        counts.append(store.num_keys())
    assert counts[0] == counts[1]


def test_who_is_waited_for_is_told_after_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(group_module, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(group_module, "_TELL_SECONDS", 0.2)

    def act(group: Group, rank: int) -> Any:
        session = session_of(group)
        return session.agree(lambda: time.sleep(1) if rank == 1 else None)

    with caplog.at_level(logging.WARNING, logger="torch_trackckpt"):
        together(2, act)
    assert [record.getMessage().split(" for ")[1] for record in caplog.records] == ["rank 1"]
