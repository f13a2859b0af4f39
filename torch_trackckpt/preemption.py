"""Saving once more before the machine is taken away."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any, Protocol

__all__ = ["SaveOnSignal", "in_preemption_save_context", "preemption_save_context"]

_logger = logging.getLogger("torch_trackckpt")

# Never changed, only bound anew for the thread or task that enters the context.
_is_preempted: contextvars.ContextVar[bool] = contextvars.ContextVar("is_preempted", default=False)


@contextlib.contextmanager
def preemption_save_context() -> Iterator[None]:
    """Within it, in this thread, saves are the last ones before the process ends. TensorFlow's context of that name.

    A save that asks to be asynchronous waits for the one that is pending and is then synchronous, with a warning: the
    file exists when it returns. An error of the pending one does not stand in its way; it has been logged, and the
    next call outside of the context raises it.

    Example:
        >>> import logging, os, tempfile, torch
        >>> from torch_trackckpt import Checkpoint, CheckpointOptions, preemption_save_context
        >>> logging.getLogger("torch_trackckpt").setLevel(logging.ERROR)
        >>> checkpoint = Checkpoint(x=torch.zeros(2))
        >>> with preemption_save_context():
        ...     path = checkpoint.save(tempfile.mkdtemp() + "/ckpt", CheckpointOptions(enable_async=True))
        >>> os.path.exists(path + ".index")
        True
        >>> logging.getLogger("torch_trackckpt").setLevel(logging.NOTSET)
    """
    token = _is_preempted.set(True)
    try:
        yield
    finally:
        _is_preempted.reset(token)


def in_preemption_save_context() -> bool:
    """Whether a save of this thread is the last one before the process ends."""
    return _is_preempted.get()


class Saves(Protocol):
    """Something with a ``save`` that can be called with nothing: a manager of checkpoints."""

    @property
    def save(self) -> Callable[..., Any]:
        """Saves."""
        ...


class SaveOnSignal:
    """Saves at the next boundary between two steps after a signal has come, and says that it is time to stop.

    A signal comes in the middle of a step, when parameters and optimizer do not belong together; so it is only noted.
    The end of the ``with`` block is a boundary as well, unless an exception ends it. The save runs within
    `preemption_save_context`. Several processes that train together have to agree on a step by themselves.

    Args:
        saver: an object with ``save()``, such as a manager of checkpoints, or a function without arguments. A ``save``
            with a parameter ``check_interval`` gets False for it, so that no interval forbids this save.
        signals: which signals to wait for. Cluster schedulers send SIGTERM some time before they kill.
        exit_code: what the process is to exit with once it has saved (by SystemExit); None leaves the stopping to the
            caller.

    Raises:
        TypeError: the saver cannot be called so.

    Raises (when entered):
        RuntimeError: the caller is not the main thread, the only one that may handle signals; or a handler is in place
            that was not installed by Python and so could not be put back.

    Example:
        >>> import os, signal, tempfile, torch
        >>> from torch_trackckpt import Checkpoint, SaveOnSignal
        >>> step = torch.tensor(0)
        >>> checkpoint = Checkpoint(step=step)
        >>> prefix = tempfile.mkdtemp() + "/ckpt"
        >>> with SaveOnSignal(lambda: checkpoint.save(prefix)) as preemption:
        ...     while not preemption.step():
        ...         step += 1
        ...         if step == 3:
        ...             os.kill(os.getpid(), signal.SIGTERM)
        >>> int(step), os.path.exists(prefix + "-1.index")
        (3, True)
    """

    def __init__(
        self,
        saver: Saves | Callable[[], Any],
        signals: Sequence[signal.Signals] = (signal.SIGTERM,),
        *,
        exit_code: int | None = None,
    ) -> None:
        self._save = _last_save_of(saver)
        # Each once: what was in place before can be put back only as often.
        self._signals = tuple(dict.fromkeys(signals))
        self._exit_code = exit_code
        self._previous: dict[signal.Signals, Any] = {}
        self._received: int | None = None
        self._has_saved = False

    @property
    def should_stop(self) -> bool:
        """Whether a signal has come."""
        return self._received is not None

    def step(self) -> bool:
        """To be called between two steps: saves, once, if a signal has come.

        Returns:
            Whether one has come, and training should stop.

        Raises:
            SystemExit: if an exit code was given, after the save.
        """
        if self._received is None:
            return False
        if not self._has_saved:
            _logger.warning("%s has come; saving for the last time.", signal.Signals(self._received).name)
            with preemption_save_context():
                self._save()
            self._has_saved = True
        if self._exit_code is not None:
            raise SystemExit(self._exit_code)
        return True

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number

    def __enter__(self) -> SaveOnSignal:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("SaveOnSignal must be entered in the main thread: Python lets no other handle signals.")
        for number in self._signals:
            if signal.getsignal(number) is None:
                raise RuntimeError(
                    f"{number.name} has a handler that was not installed from Python, so it could not be put back; "
                    "choose another signal."
                )
        self._received, self._has_saved = None, False
        try:
            for number in self._signals:
                self._previous[number] = signal.signal(number, self._note)
        except BaseException:
            self._put_back()
            raise
        return self

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.step()
        finally:
            self._put_back()

    def _put_back(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())


def _last_save_of(saver: Saves | Callable[[], Any]) -> Callable[[], Any]:
    """The call that saves; one that could not be made is better refused now than when the signal has come."""
    save = getattr(saver, "save", saver)
    if not callable(save):
        raise TypeError(f"SaveOnSignal needs an object with save(), or a function, not {saver!r}.")
    parameters = inspect.signature(save)
    arguments = {"check_interval": False} if "check_interval" in parameters.parameters else {}
    try:
        parameters.bind(**arguments)
    except TypeError as error:
        raise TypeError(
            f"SaveOnSignal cannot call {save!r} without arguments ({error}); wrap it in a lambda."
        ) from error
    return functools.partial(save, **arguments)
