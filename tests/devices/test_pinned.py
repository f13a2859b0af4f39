"""Page-locked memory: used again, never more than the budget, and ordinary memory where there is none."""

from __future__ import annotations

import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_device import Memory

from torch_trackckpt.devices.pinned import PageableMemory, PinnedPool


class Driver:
    """Counts what it gives."""

    def __init__(self, limit: int = 1 << 40) -> None:
        self.given: list[int] = []
        self.limit = limit

    def __call__(self, num_bytes: int) -> Memory:
        if num_bytes > self.limit:
            raise RuntimeError("no more")
        self.given.append(num_bytes)
        return Memory(num_bytes)


def test_blocks_are_used_again() -> None:
    pool, driver = PinnedPool(1024), Driver()
    with pool.taking(2, 256, driver) as first:
        addresses = [block.address for block in first]
    with pool.taking(2, 256, driver) as second:
        assert sorted(block.address for block in second) == sorted(addresses)
    assert driver.given == [256, 256]
    assert pool.num_bytes == 512
    pool.release()
    assert pool.num_bytes == 0


def test_there_is_never_more_than_the_budget_but_for_one_block() -> None:
    pool, driver = PinnedPool(1024), Driver()
    with pool.taking(4, 256, driver):
        assert pool.num_bytes == 1024
    # Blocks of another size: those of the first go.
    with pool.taking(2, 512, driver) as blocks:
        assert len(blocks) == 2
        assert pool.num_bytes == 1024
    with pool.taking(2, 4096, driver) as blocks:
        assert [block.nbytes for block in blocks] == [4096]
        assert pool.num_bytes == 4096
    with pool.taking(1, 256, driver):
        assert pool.num_bytes <= 1024


def test_who_finds_no_room_waits_for_others() -> None:
    pool, driver = PinnedPool(1024), Driver()
    order: list[str] = []

    def second() -> None:
        with pool.taking(3, 256, driver):
            order.append("second")

    with pool.taking(4, 256, driver):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
    assert pool.num_bytes <= 1024


def test_who_finds_room_for_some_blocks_takes_those() -> None:
    pool, driver = PinnedPool(1024), Driver()
    found: list[int] = []

    def second() -> None:
        with pool.taking(3, 256, driver) as blocks:
            found.append(len(blocks))

    with pool.taking(3, 256, driver):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(60)
        assert found == [1]


def test_a_thread_does_not_wait_for_its_own_blocks() -> None:
    """A callback of a save may save, or restore."""
    pool, driver = PinnedPool(1024), Driver()
    with pool.taking(4, 256, driver), pool.taking(2, 256, driver) as blocks:
        assert len(blocks) == 1
    assert pool.num_bytes <= 1024


def test_blocks_come_back_when_the_block_raises() -> None:
    pool = PinnedPool(1024)
    with pytest.raises(ZeroDivisionError), pool.taking(4, 256, Driver()):
        raise ZeroDivisionError
    with pool.taking(4, 256, Driver()) as blocks:
        assert len(blocks) == 4


def test_ordinary_memory_serves_where_the_driver_refuses_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = PinnedPool(1024)
    with caplog.at_level(logging.WARNING, logger="torch_trackckpt"):
        with pool.taking(2, 256, Driver(limit=0)) as blocks:
            assert [type(block) for block in blocks] == [PageableMemory] * 2
        with pool.taking(1, 512, Driver(limit=0)) as (block,):
            assert (type(block), block.nbytes) == (PageableMemory, 512)
    (record,) = caplog.records
    assert "no page-locked memory" in record.getMessage()
    assert "no more" in record.getMessage()


def test_an_interrupt_at_the_wrong_moment_costs_no_budget() -> None:
    pool = PinnedPool(1024)
    with pool.taking(2, 512, Driver()):
        pass

    def interrupted(num_bytes: int) -> Memory:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), pool.taking(4, 256, interrupted):
        pass
    with pool.taking(4, 256, Driver()) as blocks:
        assert len(blocks) == 4


def test_what_is_kept_for_an_owner_is_there_until_other_memory_takes_its_place() -> None:
    pool, driver = PinnedPool(1024), Driver()
    assert pool.kept(0) is None
    first = pool.keep(0, 10_000, driver)
    pool.keep(1, 500, driver)
    assert pool.kept(0) is first
    assert pool.num_bytes == 10_500
    pool.keep(0, 20_000, driver)
    assert pool.num_bytes == 20_500
    pool.release()
    assert (pool.kept(0), pool.num_bytes) == (None, 0)


def test_a_bound_is_for_blocks_and_what_is_kept_together() -> None:
    pool, driver = PinnedPool(1024), Driver()
    pool.bound(1000)
    with pool.taking(3, 250, driver):
        # Beside blocks that are in use there is no room for it.
        assert isinstance(pool.keep(0, 500, driver), PageableMemory)
    assert pool.num_bytes == 750
    assert isinstance(pool.keep(0, 600, driver), Memory)
    assert pool.num_bytes == 850
    with pool.taking(3, 250, driver) as blocks:
        assert len(blocks) == 1
        assert pool.num_bytes == 850
    assert isinstance(pool.keep(1, 500, driver), PageableMemory)


def test_another_bound_gives_back_what_is_too_much_and_nothing_else() -> None:
    pool, driver = PinnedPool(1024), Driver()
    kept = pool.keep(0, 10_000, driver)
    pool.bound(20_000)
    pool.bound(10_000)
    pool.bound(None)
    assert pool.kept(0) is kept
    pool.bound(5000)
    assert (pool.kept(0), pool.num_bytes) == (None, 0)
    assert isinstance(pool.keep(0, 10_000, driver), PageableMemory)
    pool.bound(4000)
    assert pool.kept(0) is not None
    # There may be better memory now.
    pool.bound(None)
    assert pool.kept(0) is None
    assert isinstance(pool.keep(0, 10_000, driver), Memory)


def test_what_is_smaller_than_what_was_refused_is_asked_for_and_a_release_forgets_refusals() -> None:
    pool, driver = PinnedPool(1024), Driver(limit=1000)
    assert isinstance(pool.keep(0, 2000, driver), PageableMemory)
    assert isinstance(pool.keep(1, 900, driver), Memory)
    driver.limit = 5000
    assert isinstance(pool.keep(0, 2000, driver), PageableMemory)
    pool.release()
    assert isinstance(pool.keep(0, 2000, driver), Memory)


@given(
    st.lists(
        st.tuples(st.sampled_from(["keep", "take", "bound"]), st.integers(0, 2), st.sampled_from([100, 250, 900])),
        max_size=30,
    )
)
def test_there_is_never_more_than_the_bound_and_one_block(steps: list[tuple[str, int, int]]) -> None:
    pool, driver, bound = PinnedPool(1024), Driver(), 1000
    pool.bound(bound)
    for what, number, num_bytes in steps:
        if what == "keep":
            pool.keep(number, num_bytes, driver)
        elif what == "take":
            with pool.taking(1 + number, num_bytes, driver):
                assert pool.num_bytes <= bound + num_bytes
        else:
            bound = num_bytes
            pool.bound(bound)
        assert pool.num_bytes <= bound + 900
