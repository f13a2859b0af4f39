"""PyTorch's samplers as nodes.

    RandomSampler, SubsetRandomSampler, WeightedRandomSampler   <sampler>/generator, where it has one of its own
    BatchSampler                                                <sampler>/sampler
    DistributedSampler                                          python state {"epoch": 3, "seed": 0}

A sampler does not know how far it is within an epoch: the loader does. Without a generator its random numbers are the
process's (`RNGState`). The epoch and the seed of a DistributedSampler decide its permutation, and are restored; the
number of replicas, the rank, shuffling and the rest are how the program is set up, which may change between two runs.
A sampler whose class has ``state_dict`` and ``load_state_dict`` is saved by these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import BatchSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler

from torch_trackckpt.adapters.data_order import epoch_state, has_own_state, set_epoch_state
from torch_trackckpt.adapters.python_state import StateDictAdapter
from torch_trackckpt.adapters.registry import Adapter, register_adapter
from torch_trackckpt.adapters.state_node import StateNode
from torch_trackckpt.errors import DataLossError
from torch_trackckpt.trackable import Prepared, Trackable

__all__ = ["DistributedSamplerAdapter", "SamplerAdapter"]


class SamplerAdapter(Adapter):
    """A sampler that is as its generator is, or as the sampler inside of it."""

    def _trackable_children(self) -> Mapping[str, object]:
        children = {name: getattr(self.adapted, name, None) for name in ("generator", "sampler")}
        return {name: child for name, child in children.items() if child is not None}

    def _attribute_names(self) -> tuple[str, ...]:
        return ()


class DistributedSamplerAdapter(StateNode):
    """A sampler whose permutation follows from its seed and its epoch."""

    def __init__(self, sampler: DistributedSampler[Any]) -> None:
        super().__init__(
            sampler,
            None,
            capture=lambda path_of: epoch_state(sampler),
            prepare=lambda state, resolve: _prepare(sampler, state),
        )
        self.adapted = sampler


def _prepare(sampler: DistributedSampler[Any], state: Any) -> Prepared:
    if not isinstance(state, dict) or {name: type(value) for name, value in state.items()} != _FORM:
        raise DataLossError("The stored state of a DistributedSampler is not an epoch and a seed.")
    return Prepared(lambda: set_epoch_state(sampler, state))


_FORM = {"epoch": int, "seed": int}


def _adapt_sampler(sampler: Any) -> Trackable:
    if has_own_state(sampler):
        return StateDictAdapter(sampler)
    return DistributedSamplerAdapter(sampler) if isinstance(sampler, DistributedSampler) else SamplerAdapter(sampler)


register_adapter(RandomSampler, _adapt_sampler)
register_adapter(SubsetRandomSampler, _adapt_sampler)
register_adapter(WeightedRandomSampler, _adapt_sampler)
register_adapter(BatchSampler, _adapt_sampler)
register_adapter(DistributedSampler, _adapt_sampler)
register_adapter("torchdata.stateful_dataloader.sampler.RandomSampler", _adapt_sampler)
