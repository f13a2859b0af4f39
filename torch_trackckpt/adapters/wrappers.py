"""Wrappers have no node of their own: wrapping or unwrapping between save and restore changes nothing.

No key ever holds ``module``, ``_orig_mod`` or the like. A wrapper of one's own joins them with one line, such as
``register_adapter(MyWrapper, lambda wrapper: adapt(wrapper.inner))``. `AveragedModel` alone has something to add to
what it wraps: ``n_averaged``, which is a child beside those of the averaged model.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from torch_trackckpt.adapters.module import ModuleAdapter
from torch_trackckpt.adapters.registry import adapt, register_adapter
from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.trackable import Trackable, Value, Waiting

__all__ = ["AveragedModelAdapter"]


class AveragedModelAdapter(ModuleAdapter):
    """The averaged model, and how many models it is the average of."""

    def __init__(self, averaged: AveragedModel, inside: ModuleAdapter) -> None:
        super().__init__(inside.adapted)
        self._averaged = averaged
        self._inside = inside

    def _identity(self) -> Hashable:
        return id(self._averaged)

    def _owner(self) -> tuple[Any, Hashable]:
        return self._averaged, None

    def _trackable_children(self) -> Mapping[str, object]:
        return {**self._inside._trackable_children(), **_registered(self._averaged)}

    def _lookup_dependency(self, name: str) -> object | None:
        found = _registered(self._averaged).get(name, self._inside._lookup_dependency(name))
        # The first checkpoints of this package have the averaged model below its name in the wrapper.
        return self._averaged.module if found is None and name == "module" else found

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        return self._inside._serialize_to_tensors()

    def _attribute_names(self) -> tuple[str, ...]:
        return self._inside._attribute_names()

    def _postponed(self, stored_names: Collection[str]) -> Collection[str]:
        return self._inside._postponed(stored_names)

    def _waiting(self) -> Waiting | None:
        return self._inside._waiting()


def _registered(module: nn.Module) -> dict[str, object]:
    """A module's own parameters and buffers."""
    return {
        name: tensor for name, tensor in (*module._parameters.items(), *module._buffers.items()) if tensor is not None
    }


def _adapt_averaged(averaged: AveragedModel) -> Trackable:
    inside = adapt(averaged.module)
    if isinstance(inside, ModuleAdapter) and not _registered(averaged).keys() & inside._trackable_children().keys():
        return AveragedModelAdapter(averaged, inside)
    # A name can lead to one object only: the average of an average keeps its node.
    return ModuleAdapter(averaged)


def _adapt_parallel(wrapper: Any) -> Trackable | None:
    # A user's subclass may have tensors of its own.
    return ModuleAdapter(wrapper) if _registered(wrapper) else adapt(wrapper.module)


def _refuse_flat_parameters(wrapper: Any) -> Trackable | None:
    """FSDP1 has many parameters in one, of which each process has a part without a shape of its own."""
    raise UnsupportedValueError(
        "FullyShardedDataParallel (FSDP1) keeps its parameters flattened, so that they have neither names nor shapes "
        "of their own. Use fully_shard (FSDP2), whose checkpoints go to any number of processes. To take a training "
        "along, load what torch.distributed.checkpoint.state_dict.get_model_state_dict gives for this module into a "
        "module of FSDP2 by set_model_state_dict, and save that."
    )


def _inside(name: str) -> Any:
    """An adapter that hands on to the attribute of this name."""
    return lambda wrapper: adapt(getattr(wrapper, name))


register_adapter(nn.DataParallel, _adapt_parallel)
register_adapter(DistributedDataParallel, _adapt_parallel)
register_adapter(AveragedModel, _adapt_averaged)
# Not imported for this: some take seconds to load, the others are of packages that may be absent.
register_adapter("torch._dynamo.eval_frame.OptimizedModule", _inside("_orig_mod"))
register_adapter(
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper",
    _inside("_checkpoint_wrapped_module"),
)
register_adapter("torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel", _refuse_flat_parameters)
for _fabric in ("lightning.fabric.wrappers", "lightning_fabric.wrappers"):
    register_adapter(f"{_fabric}._FabricModule", _inside("module"))
    register_adapter(f"{_fabric}._FabricOptimizer", _inside("optimizer"))
register_adapter("accelerate.optimizer.AcceleratedOptimizer", _inside("optimizer"))
register_adapter("accelerate.scheduler.AcceleratedScheduler", _inside("scheduler"))
