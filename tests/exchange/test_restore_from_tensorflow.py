"""The package restores what TensorFlow saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from stored_dtypes import DTYPES
from torch import nn

from torch_trackckpt import Checkpoint

from .conftest import TensorFlow

# TensorFlow has no variables of the two float8 kinds that end in "uz".
VARIABLE_DTYPES = [dtype for dtype in DTYPES if not str(dtype).endswith("uz")]


def tree_of(module: nn.Module) -> SimpleNamespace:
    """Objects for TensorFlow of the same names and values."""
    tensors = {name: tensor for name, tensor in {**module._parameters, **module._buffers}.items() if tensor is not None}
    return SimpleNamespace(**tensors, **{name: tree_of(child) for name, child in module._modules.items() if child})


def zero(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.zero_()
    return module


@pytest.mark.parametrize("dtype", VARIABLE_DTYPES, ids=str)
def test_a_variable_of_every_dtype_is_restored(tensorflow: TensorFlow, prefix: Path, dtype: torch.dtype) -> None:
    """C356, C397"""
    saved = torch.tensor([[1, 0, 1]]).to(dtype)
    path = tensorflow.save(prefix, x=saved, scalar=saved[0, 0])
    x, scalar = torch.zeros(1, 3, dtype=dtype), torch.zeros((), dtype=dtype)
    Checkpoint(x=x, scalar=scalar).restore(path).assert_consumed()
    assert torch.equal(x.view(-1).view(torch.uint8), saved.view(-1).view(torch.uint8))
    assert torch.equal(scalar.view(-1).view(torch.uint8), saved[0, :1].view(torch.uint8))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 4), (1, 1, 1)], ids=str)
def test_empty_and_odd_shapes_are_restored(tensorflow: TensorFlow, prefix: Path, shape: tuple[int, ...]) -> None:
    """C357, C397"""
    path = tensorflow.save(prefix, x=torch.ones(shape))
    x = torch.zeros(shape)
    Checkpoint(x=x).restore(path).assert_consumed()
    assert torch.equal(x, torch.ones(shape))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(3, 2),
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2))),
        lambda: nn.ModuleList([nn.PReLU(), nn.PReLU(2)]),
        lambda: nn.ModuleDict({"a/b": nn.PReLU(), "é": nn.PReLU(3)}),
        lambda: nn.LSTM(3, 2, num_layers=2),
    ],
    ids=["linear", "sequential", "list", "dict", "lstm"],
)
def test_modules_are_restored_by_name(tensorflow: TensorFlow, prefix: Path, make: Callable[[], nn.Module]) -> None:
    """C397"""
    saved, module = make(), zero(make())
    path = tensorflow.save(prefix, model=tree_of(saved))
    Checkpoint(model=module).restore(path).assert_consumed()
    assert [n for n, tensor in saved.state_dict().items() if not torch.equal(module.state_dict()[n], tensor)] == []


def test_a_root_is_restored_into_a_root_module(tensorflow: TensorFlow, prefix: Path) -> None:
    """C043, C397"""
    saved, module = nn.Linear(3, 2), zero(nn.Linear(3, 2))
    path = tensorflow.save(prefix, tree_of(saved), times=2)
    checkpoint = Checkpoint(module)
    checkpoint.restore(path).assert_consumed()
    assert torch.equal(module.weight, saved.weight)
    assert int(checkpoint.save_counter) == 2


def test_a_root_with_keywords_is_restored_into_the_like(tensorflow: TensorFlow, prefix: Path) -> None:
    """C029, C397"""
    saved, module = nn.Linear(3, 2), zero(nn.Linear(3, 2))
    path = tensorflow.save(prefix, tree_of(saved), extra=torch.tensor(4), more=[torch.tensor(5)])
    extra, more = torch.tensor(0), torch.tensor(0)
    Checkpoint(module, extra=extra, more=[more]).restore(path).assert_consumed()
    assert torch.equal(module.bias, saved.bias)
    assert (extra, more) == (4, 5)


def test_a_root_with_keywords_is_restored_into_keywords_alone(tensorflow: TensorFlow, prefix: Path) -> None:
    """C031, C397"""
    path = tensorflow.save(prefix, SimpleNamespace(v=torch.tensor(1.0)), w=torch.tensor(2.0))
    v, w = torch.tensor(0.0), torch.tensor(0.0)
    Checkpoint(v=v, w=w).restore(path).assert_consumed()
    assert (v, w) == (1, 2)


def test_lists_dicts_and_shared_objects_are_restored(tensorflow: TensorFlow, prefix: Path) -> None:
    """C004, C005, C023, C037, C397"""
    shared = SimpleNamespace(weight=torch.tensor([1.0, 2.0]))
    path = tensorflow.save(
        prefix,
        items=[torch.tensor(3), [shared]],
        table={"a/b": torch.tensor(4), "c.d": {".ATTRIBUTES": torch.tensor(5)}},
        shared=shared,
    )
    module = zero(nn.ParameterDict({"weight": torch.zeros(2)}))
    three, four, five = torch.tensor(0), torch.tensor(0), torch.tensor(0)
    Checkpoint(items=[three, [module]], table={"a/b": four, "c.d": {".ATTRIBUTES": five}}, shared=module).restore(
        path
    ).assert_consumed()
    assert (three, four, five, module["weight"].tolist()) == (3, 4, 5, [1.0, 2.0])


def test_what_tensorflow_wrote_without_a_number_is_read(tensorflow: TensorFlow, prefix: Path) -> None:
    """C046, C397"""
    path = tensorflow.write(prefix, x=torch.tensor(6.0))
    x = torch.tensor(0.0)
    Checkpoint(x=x).read(path).assert_consumed()
    assert x == 6


def test_the_counter_of_tensorflow_goes_on(tensorflow: TensorFlow, prefix: Path) -> None:
    """C041, C397"""
    path = tensorflow.save(prefix, x=torch.tensor(1.0), times=3)
    checkpoint = Checkpoint(x=torch.tensor(0.0))
    checkpoint.restore(path).assert_consumed()
    assert checkpoint.save(prefix) == f"{prefix}-4"
    assert tensorflow.restore(f"{prefix}-4", ["assert_consumed"], x=torch.tensor(0.0)) == 4


def test_what_the_program_lacks_is_named(tensorflow: TensorFlow, prefix: Path) -> None:
    """C397"""
    path = tensorflow.save(prefix, model=tree_of(nn.Linear(2, 2)))
    status = Checkpoint(model=nn.Linear(2, 2, bias=False)).restore(path)
    with pytest.raises(AssertionError, match=r"Unresolved object in checkpoint .*: \(root\)\.model\.bias\. "):
        status.assert_consumed()
