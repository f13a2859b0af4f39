"""A thread of its own completes a save; who waits gets its error, and the interpreter waits as well."""

import functools
import gc
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable

import pytest

from torch_trackckpt.save.pending import PendingSave, can_be_pending

PATIENCE_SECONDS = 60


def started(path: str, complete: Callable[[], None]) -> PendingSave:
    pending = PendingSave(path, complete)
    pending.start()
    return pending


def test_a_pending_save_is_completed_by_a_thread_that_the_interpreter_waits_for() -> None:
    """C327, C330"""
    threads: list[threading.Thread] = []
    pending = started("ckpt-1", lambda: threads.append(threading.current_thread()))
    pending.wait()
    assert threads[0] is not threading.current_thread()
    assert not threads[0].daemon
    assert threads[0].name == "save ckpt-1"


def test_making_one_does_not_wait_for_it_but_waiting_does() -> None:
    gate = threading.Event()
    done: list[str] = []

    def complete() -> None:
        assert gate.wait(PATIENCE_SECONDS)
        done.append("done")

    pending = started("ckpt-1", complete)
    assert done == []
    gate.set()
    pending.wait()
    assert done == ["done"]


def test_an_error_is_raised_once_with_the_path_and_logged_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """C320, C321"""
    failure = OSError("no space")

    def fail() -> None:
        raise failure

    pending = started("run/ckpt-7", fail)
    pending.join()
    assert "The asynchronous save to 'run/ckpt-7' failed." in caplog.text
    assert "no space" in caplog.text
    with pytest.raises(OSError, match="no space") as raised:
        pending.wait()
    assert raised.value is failure
    if sys.version_info >= (3, 11):
        assert failure.__notes__ == ["This comes from the asynchronous save to 'run/ckpt-7'."]
    pending.wait()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_exit_asked_for_in_the_thread_reaches_who_waits(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(error), caplog.at_level(logging.CRITICAL):
        started("ckpt-1", fail).wait()


def test_an_error_is_raised_to_one_of_several_that_wait(caplog: pytest.LogCaptureFixture) -> None:
    """C320"""
    gate = threading.Event()

    def fail() -> None:
        assert gate.wait(PATIENCE_SECONDS)
        raise OSError("no space")

    pending = started("ckpt-1", fail)
    outcomes: list[str] = []

    def wait() -> None:
        try:
            pending.wait()
        except OSError as error:
            outcomes.append(str(error))
        else:
            outcomes.append("nothing")

    waiting = [threading.Thread(target=wait) for _ in range(5)]
    for thread in waiting:
        thread.start()
    gate.set()
    for thread in waiting:
        thread.join()
    assert sorted(outcomes) == ["no space", *["nothing"] * 4]


def test_it_knows_its_own_thread() -> None:
    answers: list[bool] = []
    gate = threading.Event()

    def complete() -> None:
        assert gate.wait(PATIENCE_SECONDS)
        answers.append(pending.is_this_thread)

    pending = started("ckpt-1", complete)
    gate.set()
    pending.wait()
    assert answers == [True]
    assert not pending.is_this_thread


def test_no_save_is_left_to_a_thread_once_the_interpreter_exits() -> None:
    assert can_be_pending()
    program = """
import atexit
from torch_trackckpt.save.pending import can_be_pending
atexit.register(lambda: print(can_be_pending()))
print(can_be_pending())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_a_failed_save_keeps_nothing_that_it_worked_with() -> None:
    class Copies:
        """As large as a checkpoint."""

    copies: Copies | None = Copies()
    alive = weakref.ref(copies)

    def fail(copies: object) -> None:
        raise OSError("no space")

    pending = started("ckpt-1", functools.partial(fail, copies))
    copies = None
    pending._thread.join()
    gc.collect()
    assert alive() is None
    with pytest.raises(OSError, match="no space"):
        pending.wait()
