"""The choices a caller has when saving and restoring."""

from __future__ import annotations

import abc
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch_trackckpt.bundle.threads import num_threads
from torch_trackckpt.sharding import ShardingCallback

__all__ = ["Books", "CheckpointOptions", "Progress"]

_MOST_THREADS = 1024

Resplit = Callable[[Sequence[Any], int, int], Any]
"""From the states of all ranks of the job that saved, and the rank and the number of ranks of this one, to the state of
this rank."""

Progress = Callable[[int, int], Any]
"""Is told the bytes that are done, and the bytes of all."""


class Books(abc.ABC):
    """A write callback that enters checkpoints in one process alone; the others follow it."""

    @abc.abstractmethod
    def __call__(self, path: str) -> Any:
        """Enters a checkpoint; returns what the other processes have to know, which can be JSON."""

    @abc.abstractmethod
    def follow(self, known: Any) -> None:
        """Takes over what another process has entered."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """Options of `Checkpoint.save`, `write`, `read` and `restore`; never changed by them.

    The names that start with ``experimental_`` are TensorFlow's, the others are ours.

    Raises:
        ValueError: for an unknown ``verify`` or ``async_copy``, a write callback that cannot be called with the path
            alone, a sharding callback that is none, no thread or more than 1024, a negative number of bytes, or a
            ``progress`` that cannot be called.
        TypeError: for an option that does not exist.

    Example:
        >>> from torch_trackckpt import CheckpointOptions
        >>> CheckpointOptions(durable=False).durable
        False
    """

    durable: bool = True
    """Wait until the disk has every byte before a file gets its name. False skips each fsync: faster, and
    safe against a crash of the process but not of the machine."""

    verify: Literal["during", "before"] = "during"
    """When a restore checks the checksums of what it reads. ``"before"``: all of them before the first live
    value changes. ``"during"``: on the way, in one pass over the data; a checkpoint of up to 64 MiB is checked
    before even so, and damage in a larger one raises an error that names the values already overwritten. Of a tensor
    that several processes have between them (a ``DTensor``), each reads its own part, and there is no checksum of less
    than a stored slice: slices that a process needs whole are checked as all values are, others only with ``"before"``,
    for which each process reads them whole."""

    experimental_skip_slot_variables: bool = False
    """Restore only: optimizer slot variables are neither restored nor asked for by the assertions."""

    experimental_write_callbacks: Sequence[Callable[..., Any]] = ()
    """Called in order when the files of a save are complete and before the state file names them; each takes
    either nothing or the path."""

    experimental_sharding_callback: ShardingCallback | None = None
    """Saving only: which values share a data file; see `torch_trackckpt.sharding`. None is one data file, and for a
    checkpoint of 32 MiB and more up to one for each thread that writes, of at least 16 MiB each; `ShardByTaskPolicy`
    is always one."""

    num_threads: int | None = None
    """How many threads write or read at once. None: as many as processors this process may use
    (``os.sched_getaffinity``), at most 8."""

    name_map: Callable[[str], str] | Mapping[str, str] | None = None
    """Restoring a checkpoint without an object graph: from the name that a value has in the program, such as
    ``fc.weight``, to its name in the file, such as ``dense/kernel``. A mapping leaves names that it does not have as
    they are. Slot variables are asked for as ``fc.weight/exp_avg``."""

    experimental_enable_async_checkpoint: bool = False
    """Saving only: `save` and `write` return as soon as they have copied the values, and a thread writes them. The
    memory for the copy, as much as the checkpoint, is kept by the `Checkpoint` for the next one."""

    enable_async: bool = False
    """The same as ``experimental_enable_async_checkpoint``; `is_async` tells whether either is set."""

    async_copy: Literal["first", "overlapped"] = "first"
    """Asynchronous saving only: when the values are copied. ``"first"``: before the call returns. ``"overlapped"``: the
    call returns within milliseconds; parameters and slot variables of tracked optimizers are copied while the program
    goes forward and backward, and their next ``step()`` waits for the rest. ``docs/saving.md`` says what must not be
    done until then."""

    device_snapshot_bytes: int = 0
    """Asynchronous saving only: how much memory of each CUDA device a copy of the values may take. Where they fit, and
    so much is free, they are copied on the device, and the call returns at once, whatever ``async_copy`` says; the
    memory is free again when the files are complete."""

    page_locked_bytes: int | None = None
    """Values on CUDA devices only: how much memory of the host may be page-locked for their way from and to the
    devices, which nobody else can use then. None: 256 MiB for blocks that are used in turn, and for the copies of an
    asynchronous save as much as they take. A number is for both together, but for one block: copies that are larger
    are made in ordinary memory, which takes longer."""

    all_ranks: bool = True
    """Where torch.distributed was initialised: whether all processes save one checkpoint together, each its part, so
    that all have to call; False for this process alone, with what it has."""

    rank_silence_seconds: float = 20.0
    """How long another process may give no sign of life before a save is given up. It gives one every second, whatever
    it does, as long as it lives; this is no bound for how long a save takes."""

    resplit: Mapping[type, Resplit] = dataclasses.field(default_factory=dict)
    """Where a job restores what one of another number of processes saved: for classes of objects whose state each
    process has for itself (random numbers, data loaders), functions of the states of all ranks that saved, the rank of
    this process and the number of processes, to the state that it takes. Without one for its class, such an object is
    refused."""

    progress: Progress | None = None
    """Called during a save or restore with the bytes that are done and the bytes of all values, at least once and the
    last time with both equal; about every 64 MiB, or after each value where one is larger. An asynchronous save calls
    it in its own thread; otherwise it is called in the caller's. What it raises ends the save or restore."""

    warn_of_lost_values: bool = True
    """Saving only: the first save of a `Checkpoint` logs a warning where tracked objects have plain numbers or tensors
    that no checkpoint will hold, and names them. False has it say nothing."""

    experimental_io_device: Any = None
    """Accepted for TensorFlow's sake; it has no effect."""

    def __post_init__(self) -> None:
        if self.verify not in ("during", "before"):
            raise ValueError(f"verify must be 'during' or 'before', not {self.verify!r}.")
        if self.async_copy not in ("first", "overlapped"):
            raise ValueError(f"async_copy must be 'first' or 'overlapped', not {self.async_copy!r}.")
        count = self.num_threads
        if count is not None and (type(count) is not int or not 1 <= count <= _MOST_THREADS):
            raise ValueError(f"num_threads must be None or a number from 1 to {_MOST_THREADS}, not {count!r}.")
        if type(self.device_snapshot_bytes) is not int or self.device_snapshot_bytes < 0:
            raise ValueError(f"device_snapshot_bytes must be a number of bytes, not {self.device_snapshot_bytes!r}.")
        locked = self.page_locked_bytes
        if locked is not None and (type(locked) is not int or locked < 0):
            raise ValueError(f"page_locked_bytes must be None or a number of bytes, not {locked!r}.")
        if not self.rank_silence_seconds > 0:
            raise ValueError(f"rank_silence_seconds must be positive, not {self.rank_silence_seconds!r}.")
        if self.progress is not None and not callable(self.progress):
            raise ValueError(f"progress must be a function of two numbers of bytes, not {self.progress!r}.")
        # A copy, so that a list that the caller goes on changing does not change what was checked.
        object.__setattr__(self, "experimental_write_callbacks", tuple(self.experimental_write_callbacks))
        sharding = self.experimental_sharding_callback
        if sharding is not None and not isinstance(sharding, ShardingCallback):
            raise ValueError(
                f"experimental_sharding_callback must be a torch_trackckpt.sharding.ShardingCallback, not {sharding!r}."
            )
        for callback in self.experimental_write_callbacks:
            if not _takes_path_or_nothing(callback):
                raise ValueError(
                    "A write callback takes no argument or the path alone, but the parameters of "
                    f"{callback!r} are {inspect.signature(callback)}."
                )

    @property
    def is_async(self) -> bool:
        """Whether saves are asynchronous, by either name of the option."""
        return self.enable_async or self.experimental_enable_async_checkpoint

    @property
    def thread_count(self) -> int:
        """How many threads write or read at once: `num_threads`, or what None stands for."""
        return num_threads(self.num_threads)

    def name_in_file(self, name: str) -> str:
        """What `name_map` makes of a name."""
        if self.name_map is None:
            return name
        return self.name_map.get(name, name) if isinstance(self.name_map, Mapping) else self.name_map(name)

    def run_write_callbacks(self, path: str, known: Sequence[Any] | None = None) -> list[Any]:
        """Calls each write callback with what it takes.

        Args:
            path: the checkpoint.
            known: what this has returned in the process that names checkpoints; None where it is this one.

        Returns:
            What the callbacks that are `Books` have the other processes know.
        """
        to_follow = None if known is None else iter(known)
        found = []
        for callback in self.experimental_write_callbacks:
            if not isinstance(callback, Books):
                callback(path) if inspect.signature(callback).parameters else callback()
            elif to_follow is None:
                found.append(callback(path))
            else:
                callback.follow(next(to_follow))
        return found


def _takes_path_or_nothing(callback: Callable[..., Any]) -> bool:
    parameters = inspect.signature(callback).parameters.values()
    is_keyword = any(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in parameters)
    return len(parameters) <= 1 and not is_keyword
