"""Page-locked memory: used again, never more than the budget, and ordinary memory where there is none."""

from __future__ import annotations

import logging
import threading

import pytest
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
    with pool.taking(4, 256, driver), pool.taking(0, 256, driver):
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

    with pool.taking(2, 256, driver):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
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
