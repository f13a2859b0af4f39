"""Data loaders that go on in the middle of an epoch.

A ``torch.utils.data.DataLoader`` has no state. `ResumableLoader` gives it one: how many batches of the epoch have been
handed out, and what decided the order when the epoch began. To resume, the order is set back to that, the epoch
begins again, what was handed out is skipped, and the generators become again what they were when the checkpoint
was made:

    set the order    begin    skip `position` batches    draw `ahead` more    put the generators back    hand out
                              of indices (nothing is     which workers had
                              loaded), or of data        been given

"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset

from torch_trackckpt.adapters.data_order import (
    DataOrder,
    has_own_state,
    process_random_state,
    set_process_random_state,
)
from torch_trackckpt.adapters.registry import register_adapter
from torch_trackckpt.adapters.state_node import StateNode
from torch_trackckpt.errors import DataLossError, MismatchError
from torch_trackckpt.trackable import Prepared

__all__ = ["ResumableLoader"]

T = TypeVar("T", covariant=True)


_KEYS = {"epoch", "position", "are_workers_seeded", "order", "start", "ahead", "plan"}
"""Of a state."""


@dataclasses.dataclass
class _Epoch:
    """One pass over the data."""

    number: int
    start: dict[str, Any] | None = None
    """What decided its order when it began; None where it has not begun."""
    position: int = 0
    """How many batches were handed out."""
    is_over: bool = False


class ResumableLoader(Generic[T]):
    """A data loader that a checkpoint can resume in the middle of an epoch: the next batch is the right one.

    Iterate over it in place of the loader. It hands out what the loader hands out, and draws the random numbers that it
    draws; an epoch begins when its first batch is asked for. Its state holds how many batches of this epoch have
    been handed out (not those that workers have prepared), and the states of the generators, samplers and epochs that
    decide the order, as they were when the epoch began and as they are. Track `RNGState` beside it if anything is drawn
    from the generators of the process.

    After a restore, the next iteration is the rest of the epoch that was saved. With a data set that is asked by index,
    what was handed out is skipped without loading it; otherwise it is read over. An epoch that was left by ``break``
    goes on as well when it was saved afterwards; call `end_epoch` before the save where its rest is not wanted. An
    iteration that runs while a state is loaded goes on as it was; the state counts from the next one.

    With ``num_workers=0``, random numbers that the data set draws go on exactly. In workers they are seeded anew: those
    of items that were skipped are not drawn.

    Args:
        loader: a ``torch.utils.data.DataLoader``, or any object that yields the batches of one epoch each time it is
            iterated over. It should not be iterated over directly as well.

    Raises:
        TypeError: it has a state of its own, or can be iterated over only once.
        ValueError: its workers may deliver batches in any order (``in_order=False``).

    Example:
        >>> import tempfile, torch
        >>> from torch.utils.data import DataLoader
        >>> from torch_trackckpt import Checkpoint, RNGState
        >>> from torch_trackckpt.data import ResumableLoader
        >>> loader = ResumableLoader(DataLoader(range(6), batch_size=2, shuffle=True))
        >>> checkpoint = Checkpoint(loader=loader, rng=RNGState())
        >>> batches = iter(loader)
        >>> first = next(batches)
        >>> path = checkpoint.save(tempfile.mkdtemp() + "/ckpt")
        >>> rest = [batch.tolist() for batch in batches]

        In another process:

        >>> loader = ResumableLoader(DataLoader(range(6), batch_size=2, shuffle=True))
        >>> status = Checkpoint(loader=loader, rng=RNGState()).restore(path)
        >>> [batch.tolist() for batch in loader] == rest
        True
        >>> loader.epoch
        1
    """

    def __init__(self, loader: Iterable[T]) -> None:
        if has_own_state(loader):
            raise TypeError(
                f"ResumableLoader: a {type(loader).__name__} has state_dict and load_state_dict of its own; give it to "
                "the checkpoint itself."
            )
        if isinstance(loader, Iterator):
            raise TypeError(
                f"ResumableLoader: a {type(loader).__name__} can be iterated over only once; give the loader itself, "
                "or an object whose __iter__ begins a new epoch."
            )
        if isinstance(loader, DataLoader) and loader.num_workers > 0 and not loader.in_order:
            raise ValueError(
                "ResumableLoader: with in_order=False, batches come in the order in which workers finish them, so the "
                "number of batches does not tell which they were; use in_order=True."
            )
        self.loader = loader
        self._epoch = _Epoch(number=0)
        self._pending: dict[str, Any] | None = None
        """The state of an epoch that the next iteration resumes."""
        self._are_workers_seeded = False
        """Whether workers that outlive an epoch have got their seed; it is drawn once only."""

    @property
    def _order(self) -> DataOrder:
        # Made anew each time: one that is kept would go on with the parts of this loader in a copy of it.
        return DataOrder(self.loader, is_all=True)

    def __iter__(self) -> Iterator[T]:
        is_complete, stored, self._pending = self._is_complete, self._pending, None
        if stored is not None:
            # Another state may be loaded meanwhile, which puts another epoch in the place of this one.
            epoch = self._epoch = _Epoch(self._epoch.number, stored["start"], stored["position"])
            yield from self._hand_out(epoch, self._rest(stored))
            if epoch.position > stored["position"] or not is_complete:
                # Where `epoch` counts this one, because nobody knew that it had no more batches, it ends here.
                return
        epoch = self._epoch = _Epoch(self._epoch.number + (self._epoch.start is not None), self._start())
        yield from self._hand_out(epoch, self._begin(are_workers_seeded=self._are_workers_seeded))

    def __len__(self) -> int:
        """How many batches an epoch has; of the loader."""
        return len(self.loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        """Everything else is the loader's: ``dataset``, ``batch_size``, ``sampler`` and so on."""
        if name.startswith("_") or name == "loader":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")
        return getattr(self.loader, name)

    @property
    def epoch(self) -> int:
        """The number of the epoch that is being iterated over, or would be next: 0 at first.

        After a restore it is the epoch that is resumed; or, where all its batches (of a loader that knows how many they
        are) had been handed out, the one after it. A loop over ``range(loader.epoch, num_epochs)`` does the rest.
        """
        return self._epoch.number + (self._epoch.is_over or self._is_complete)

    @property
    def _is_complete(self) -> bool:
        """Whether every batch of the stored epoch had been handed out, as far as it can be known."""
        stored = self._pending
        return stored is not None and stored["position"] == stored["plan"].get("number of batches")

    @property
    def position(self) -> int:
        """How many batches of the epoch have been handed out; 0 between epochs."""
        return 0 if self._epoch.is_over else self._epoch.position

    def end_epoch(self) -> None:
        """Says that the rest of this epoch is not wanted: what is saved now resumes with the next one."""
        if self.position > 0:
            self._epoch = _Epoch(self._epoch.number + 1)
        self._pending = None

    # The state.

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration is, as Python values and tensors."""
        if self._pending is not None:
            return {**self._pending, "order": self._order.state()}
        return {
            "epoch": self.epoch,
            "position": self.position,
            "are_workers_seeded": self._are_workers_seeded,
            "order": self._order.state(),
            # Between two epochs it says nothing, but the state has the same tensors, as a frozen saver wants it.
            "start": self._epoch.start if self.position > 0 else self._start(),
            "ahead": self._num_ahead(),
            "plan": _plan(self.loader),
        }

    def _start(self) -> dict[str, Any]:
        """What decides the order of an epoch that begins now."""
        return {
            "process": process_random_state(),
            "order": self._order.state(),
            "are_workers_seeded": self._are_workers_seeded,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned, for the next iteration.

        Raises:
            MismatchError: in the middle of an epoch, the data set has another length, or batches another size, or the
                loader has samplers of another kind or other generators; nothing has changed.
            DataLossError: it is no such state.
        """
        self._check(state)
        self._epoch = _Epoch(state["epoch"], position=state["position"])
        self._are_workers_seeded = state["are_workers_seeded"]
        self._order.set(state["order"])
        self._pending = state if state["position"] > 0 else None

    def _check(self, state: Any) -> None:
        if not isinstance(state, dict) or state.keys() != _KEYS:
            raise DataLossError("The stored state of a ResumableLoader does not have the expected form.")
        self._order.check(state["order"])
        if state["position"] == 0:
            return
        stored, live = state["plan"], _plan(self.loader)
        if stored != live:
            differences = [
                f"{name} {stored.get(name)} (stored) and {live.get(name)} (live)"
                for name in sorted(stored.keys() | live.keys())
                if stored.get(name) != live.get(name)
            ]
            raise MismatchError(
                f"the checkpoint was made in epoch {state['epoch']} after {state['position']} batches, and the rest of "
                f"that epoch would be another one: {'; '.join(differences)}. Restore with the same data and batches, "
                "or call end_epoch() before saving, to resume with the next epoch."
            )

    def _num_ahead(self) -> int:
        """How many batches of indices are drawn before the first is handed out: those that workers get at once."""
        loader = self.loader
        if not isinstance(loader, DataLoader) or loader.num_workers == 0:
            return 0
        return loader.num_workers * (loader.prefetch_factor or 0)

    # Iterating.

    def _hand_out(self, epoch: _Epoch, batches: Iterator[T]) -> Iterator[T]:
        for batch in batches:
            epoch.position += 1
            yield batch
        epoch.is_over = True

    def _begin(self, *, are_workers_seeded: bool) -> Iterator[T]:
        """Begins an epoch of the loader itself."""
        loader = self.loader
        if not isinstance(loader, DataLoader) or not loader.persistent_workers:
            return iter(loader)
        self._are_workers_seeded = True
        with _unnoticed_seed(loader) if are_workers_seeded else contextlib.nullcontext():
            return iter(loader)

    def _rest(self, stored: dict[str, Any]) -> Iterator[T]:
        """Begins the stored epoch again, without the batches that were handed out."""
        process, order = process_random_state(), self._order.state()

        def put_back() -> None:
            set_process_random_state(process)
            self._order.set_after_iter(order)

        start = stored["start"]
        set_process_random_state(start["process"])
        self._order.set(start["order"])
        try:
            if isinstance(self.loader, DataLoader) and _skips_indices(self.loader):
                skip = _Skip(_index_sampler(self.loader), stored, put_back)
                return iter(_loader_of_rest(self.loader, skip, are_workers_seeded=start["are_workers_seeded"]))
            batches = self._begin(are_workers_seeded=start["are_workers_seeded"])
            _skip(batches, stored)
        except BaseException:
            put_back()
            raise
        put_back()
        return batches


class _ResumableLoaderNode(StateNode):
    """Checks a stored state before anything is restored."""

    def __init__(self, loader: ResumableLoader[Any]) -> None:
        super().__init__(
            loader,
            None,
            capture=lambda path_of: loader.state_dict(),
            prepare=lambda state, resolve: _prepare(loader, state),
        )


def _prepare(loader: ResumableLoader[Any], state: Any) -> Prepared:
    loader._check(state)
    return Prepared(lambda: loader.load_state_dict(state))


class _Skip:
    """The rest of the indices of an epoch.

    Args:
        sampler: yields all of them.
        stored: the state that tells how many were handed out, and how many more had been drawn for workers.
        put_back: called when as many are drawn as had been when the state was captured.
    """

    def __init__(self, sampler: Iterable[Any], stored: dict[str, Any], put_back: Callable[[], None]) -> None:
        self._sampler = sampler
        self._stored = stored
        self._put_back = put_back

    def __iter__(self) -> Iterator[Any]:
        # Not a generator function: what draws its random numbers when it is asked for an iterator has to do so now.
        return self._rest(iter(self._sampler))

    def _rest(self, indices: Iterator[Any]) -> Iterator[Any]:
        try:
            _skip(indices, self._stored)
            ahead = list(itertools.islice(indices, self._stored["ahead"]))
        finally:
            self._put_back()
        yield from ahead
        yield from indices


def _skip(items: Iterator[Any], stored: dict[str, Any]) -> None:
    num_skipped = sum(1 for _ in itertools.islice(items, stored["position"]))
    if num_skipped < stored["position"]:
        raise MismatchError(
            f"The checkpoint was made in epoch {stored['epoch']} after {stored['position']} batches, but the epoch has "
            f"only {num_skipped} when it is begun again: the data have changed, or a sampler or data set begins "
            "elsewhere than it did."
        )


def _skips_indices(loader: DataLoader[Any]) -> bool:
    """Whether the loader asks its data set by index, in the way of PyTorch's own."""
    return type(loader).__iter__ is DataLoader.__iter__ and not isinstance(loader.dataset, IterableDataset)


def _index_sampler(loader: DataLoader[Any]) -> Iterable[Any]:
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler


def _loader_of_rest(loader: DataLoader[T], skip: _Skip, *, are_workers_seeded: bool) -> DataLoader[T]:
    """A loader like another one, but with other indices."""
    indices: dict[str, Any] = (
        {"batch_size": None, "sampler": skip} if loader.batch_sampler is None else {"batch_sampler": skip}
    )
    return DataLoader(
        loader.dataset,
        **indices,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=_copy_of_generator(loader) if are_workers_seeded else loader.generator,
        prefetch_factor=loader.prefetch_factor,
        pin_memory_device=loader.pin_memory_device,
    )


@contextlib.contextmanager
def _unnoticed_seed(loader: DataLoader[Any]) -> Iterator[None]:
    """Inside, a loader that begins an epoch draws the seed of its workers from a copy of its generator."""
    generator = loader.generator
    loader.generator = _copy_of_generator(loader)
    try:
        yield
    finally:
        loader.generator = generator


def _copy_of_generator(loader: DataLoader[Any]) -> torch.Generator:
    generator: torch.Generator = loader.generator or torch.default_generator
    return generator.clone_state()


def _plan(loader: object) -> dict[str, Any]:
    """What has to be as it was in the middle of an epoch, for the number of batches to mean the same."""
    if not isinstance(loader, DataLoader):
        plan: dict[str, Any] = {"number of batches": _length(loader)}
    elif isinstance(loader.dataset, IterableDataset):
        # Its length is an estimate, and asking for it has the loader compare it with what comes.
        plan = {"batch size": loader.batch_size, "number of workers": loader.num_workers}
    else:
        plan = {
            "batch size": loader.batch_size,
            "length of the data set": _length(loader.dataset),
            "number of batches": _length(loader),
            "number of replicas": getattr(loader.sampler, "num_replicas", None),
            "sampler": _kind_of_sampler(loader),
        }
    return {name: value for name, value in plan.items() if value is not None}


def _kind_of_sampler(loader: DataLoader[Any]) -> str:
    """The class of the innermost sampler, from which the order comes."""
    sampler: Any = _index_sampler(loader)
    seen: set[int] = set()
    while (inner := getattr(sampler, "sampler", None)) is not None and id(inner) not in seen:
        seen.add(id(inner))
        sampler = inner
    return type(sampler).__name__


def _length(value: Any) -> int | None:
    try:
        return len(value)
    except (TypeError, NotImplementedError):
        return None


register_adapter(ResumableLoader, _ResumableLoaderNode)
