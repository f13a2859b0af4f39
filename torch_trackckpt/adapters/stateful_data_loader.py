"""torchdata's StatefulDataLoader as a node.

The python state is ``{"num_workers": 2, "state": what state_dict() returns, "order": of generators and epochs}``. The
loader's own ``state_dict`` and ``load_state_dict`` are not enough to continue the training bit for bit:

- Before the first batch, ``state_dict`` begins an epoch, draws random numbers and starts workers. It is not called
  then: the state of such a loader is None.
- The first epoch after ``load_state_dict`` draws a seed for workers once more, from the loader's generator or the
  process's, so that all random numbers after it are others. Here the epoch is begun while the state is restored,
  and afterwards the generators are what they were.
- The order of a sampler of PyTorch that draws random numbers, and does not say how far it is, is lost in the middle
  of an epoch. Such a loader is not saved then.
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from torch_trackckpt.adapters.data_order import DataOrder, has_own_state, kept_process_random_state
from torch_trackckpt.adapters.registry import register_adapter
from torch_trackckpt.adapters.state_node import StateNode
from torch_trackckpt.errors import DataLossError, MismatchError, UnsupportedValueError
from torch_trackckpt.trackable import Prepared

__all__ = ["StatefulDataLoaderAdapter"]


class StatefulDataLoaderAdapter(StateNode):
    """A loader that knows how far it is."""

    def __init__(self, loader: Any) -> None:
        super().__init__(
            loader,
            None,
            capture=lambda path_of: _capture(loader),
            prepare=lambda stored, resolve: _prepare(loader, stored),
        )
        self.adapted = loader


def _capture(loader: Any) -> dict[str, Any]:
    # There is no public way to ask whether an epoch has begun.
    state = loader.next_iter_state if loader._iterator is None else loader.state_dict()
    if state is not None and not state["_iterator_finished"]:
        _refuse_lost_order(loader)
    return {
        "num_workers": loader.num_workers,
        "state": state,
        "order": DataOrder(loader, is_all=False).state(),
    }


def _refuse_lost_order(loader: Any) -> None:
    for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
        is_random = isinstance(sampler, (RandomSampler, SubsetRandomSampler, WeightedRandomSampler))
        if is_random and not has_own_state(sampler):
            name = type(sampler).__name__
            raise UnsupportedValueError(
                f"it is in the middle of an epoch whose order its sampler, a {name} without a state, does not know any "
                "more, so that other batches would follow after a restore. Use shuffle=True or a sampler that has "
                "state_dict and load_state_dict, or a torch.utils.data.DataLoader in a "
                "torch_trackckpt.data.ResumableLoader, which takes every sampler."
            )


def _prepare(loader: Any, stored: Any) -> Prepared:
    if not isinstance(stored, dict) or stored.keys() != {"num_workers", "state", "order"}:
        raise DataLossError("The stored state of a StatefulDataLoader does not have the expected form.")
    if stored["state"] is not None and stored["num_workers"] != loader.num_workers:
        raise MismatchError(
            f"the checkpoint holds the state of a StatefulDataLoader with num_workers={stored['num_workers']}, but the "
            f"live one has num_workers={loader.num_workers}; torchdata keeps a state for each worker, so "
            "restore with as many workers, or leave the loader out."
        )
    order = DataOrder(loader, is_all=False)
    order.check(stored["order"])

    def assign() -> None:
        # The epoch of a sampler has to be there before the loader's epoch begins.
        order.set(stored["order"])
        loader.next_iter_state = None
        with kept_process_random_state():
            loader.load_state_dict(stored["state"] or {})
            if stored["state"] is not None:
                loader.state_dict()  # begins the epoch
        order.set(stored["order"])

    return Prepared(assign)


register_adapter("torchdata.stateful_dataloader.stateful_dataloader.StatefulDataLoader", StatefulDataLoaderAdapter)
