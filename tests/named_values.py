"""Values for the tests of restores by names and of late objects."""

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.restore.status import LoadStatus

ASSERTIONS = ["assert_consumed", "assert_existing_objects_matched", "assert_nontrivial_match"]


def write_named(prefix: str, values: Mapping[str, torch.Tensor | bytes]) -> str:
    """A bundle without an object graph."""
    with BundleWriter(f"{prefix}.data-00000-of-00001", f"{prefix}.index", durable=False) as writer:
        for name, value in values.items():
            writer.add_strings(name, value) if isinstance(value, bytes) else writer.add(name, value)
    return prefix


def scalar(value: float = 0.0) -> torch.Tensor:
    return torch.tensor(float(value))


def layer(weight: float = 0.0) -> nn.Module:
    """A module whose only variable is called `weight`."""
    return nn.ParameterDict({"weight": scalar(weight)})


def assert_each_raises(status: LoadStatus, pattern: str) -> None:
    for assertion in ASSERTIONS:
        with pytest.raises(AssertionError, match=pattern):
            getattr(status, assertion)()


def assert_all_pass(status: LoadStatus) -> None:
    for assertion in ASSERTIONS:
        assert getattr(status, assertion)() is status


def ones() -> torch.Tensor:
    return torch.ones(2)


def zeros() -> torch.Tensor:
    return torch.zeros(2)


def full(value: float) -> torch.Tensor:
    return torch.full((2,), value)


def is_restored(*tensors: torch.Tensor) -> bool:
    """Whether they are all ones, as they were saved."""
    return all(torch.equal(tensor, torch.ones_like(tensor)) for tensor in tensors)
