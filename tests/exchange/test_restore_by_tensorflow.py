"""TensorFlow's objects restore what the package saved."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from torch_trackckpt import Checkpoint, object_metadata

from .conftest import TensorFlow, Text, WorkerError

ALL_ASSERTIONS = ["assert_existing_objects_matched", "assert_consumed", "assert_nontrivial_match"]


def zeros_like(module: nn.Module) -> SimpleNamespace:
    """Objects for TensorFlow of the same names, whose values are zero."""
    tensors = {**module._parameters, **module._buffers}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items() if tensor is not None}
    return SimpleNamespace(**zeros, **{name: zeros_like(child) for name, child in module._modules.items() if child})


def values_of(tree: SimpleNamespace, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a tree under the names that `state_dict` gives them."""
    found: dict[str, torch.Tensor] = {}
    for name, child in vars(tree).items():
        found |= {prefix + name: child} if isinstance(child, torch.Tensor) else values_of(child, f"{prefix}{name}.")
    return found


def assert_equal(tree: SimpleNamespace, module: nn.Module) -> None:
    found, expected = values_of(tree), module.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


# ------------------------------------------------------------------------------------------ modules


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(3, 2),
        nn.Linear(3, 2, bias=False, dtype=torch.bfloat16),
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2))),
        nn.ModuleList([nn.PReLU(), nn.PReLU(2)]),
        nn.ModuleDict({"a/b": nn.PReLU(), "/": nn.PReLU(2), "é": nn.PReLU(3)}),
        nn.ParameterList([torch.tensor([1.5]), torch.tensor(-0.0)]),
        nn.MultiheadAttention(4, 2),
        nn.LSTM(3, 2, num_layers=2, dtype=torch.float64),
    ],
    ids=["linear", "no_bias", "sequential", "list", "dict", "parameters", "attention", "lstm"],
)
def test_a_module_is_restored_into_modules_of_the_same_names(
    tensorflow: TensorFlow, prefix: Path, module: nn.Module
) -> None:
    """C001, C006, C018, C021, C022, C396"""
    path = Checkpoint(model=module).save(prefix)
    model = zeros_like(module)
    assert tensorflow.restore(path, ALL_ASSERTIONS, model=model) == 1
    assert_equal(model, module)


@pytest.mark.parametrize("version", [2, 0, -1, 1 << 62])
def test_tensorflow_passes_over_the_version_of_a_module(tensorflow: TensorFlow, prefix: Path, version: int) -> None:
    """It is a field of our own in TensorFlow's message, no value that would have to be consumed."""
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    module[1]._version = version
    path = Checkpoint(model=module).save(prefix)
    versions = [node.module_version for node in object_metadata(path).nodes]
    assert [found for found in versions if found is not None] == [version]
    model = zeros_like(module)
    assert tensorflow.restore(path, ALL_ASSERTIONS, model=model) == 1
    assert_equal(model, module)


def test_a_root_module_is_restored_into_a_root(tensorflow: TensorFlow, prefix: Path) -> None:
    """C002, C043, C396"""
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    checkpoint = Checkpoint(module)
    checkpoint.save(prefix)
    path = checkpoint.save(prefix)
    model = zeros_like(module)
    assert tensorflow.restore(path, ALL_ASSERTIONS, model) == 2
    assert_equal(model, module)


def test_a_root_module_with_keywords_is_restored_into_the_like(tensorflow: TensorFlow, prefix: Path) -> None:
    """C029, C396"""
    module, extra = nn.Linear(2, 2), torch.tensor([3, 4])
    path = Checkpoint(module, extra=extra).save(prefix)
    model, found = zeros_like(module), torch.zeros(2, dtype=torch.int64)
    tensorflow.restore(path, ALL_ASSERTIONS, model, extra=found)
    assert_equal(model, module)
    assert torch.equal(found, extra)


def test_root_and_keyword_are_interchangeable_in_tensorflow(tensorflow: TensorFlow, prefix: Path) -> None:
    """C031, C396"""
    path = Checkpoint(nn.ParameterDict({"v": torch.tensor(1.0)}), w=torch.tensor(2.0)).save(prefix)
    v, w = torch.zeros(()), torch.zeros(())
    tensorflow.restore(path, ALL_ASSERTIONS, v=v, w=w)
    assert (v, w) == (1, 2)


def test_a_shared_module_is_restored_once(tensorflow: TensorFlow, prefix: Path) -> None:
    """C023, C396"""
    shared = nn.Linear(2, 2)
    path = Checkpoint(first=nn.ModuleDict({"inner": shared}), second=shared).save(prefix)
    found = zeros_like(shared)
    tensorflow.restore(path, ALL_ASSERTIONS, first=SimpleNamespace(inner=found), second=found)
    assert_equal(found, shared)


def test_tied_weights_are_one_variable(tensorflow: TensorFlow, prefix: Path) -> None:
    """C023, C396"""
    module = nn.ModuleDict({"encoder": nn.Linear(2, 2, bias=False), "decoder": nn.Linear(2, 2, bias=False)})
    module["decoder"].weight = module["encoder"].weight
    path = Checkpoint(model=module).save(prefix)
    weight = torch.zeros(2, 2)
    model = SimpleNamespace(encoder=SimpleNamespace(weight=weight), decoder=SimpleNamespace(weight=weight))
    tensorflow.restore(path, ALL_ASSERTIONS, model=model)
    assert torch.equal(weight, module["encoder"].weight)


def test_a_cycle_is_restored_into_a_cycle(tensorflow: TensorFlow, prefix: Path) -> None:
    """C023, C396"""
    ours = Checkpoint(x=torch.tensor(5))
    ours.me = ours
    path = ours.save(prefix)
    x = torch.tensor(0)
    tensorflow.restore(path, ["assert_existing_objects_matched", "assert_consumed"], x=x)
    assert x == 5


# ------------------------------------------------------------------------------------------ containers


def test_lists_and_dicts_are_restored_by_index_and_key(tensorflow: TensorFlow, prefix: Path) -> None:
    """C004, C005, C006, C037, C396"""
    # A name that ends in ".ATTRIBUTES" is not among them: TensorFlow cannot restore it from its own files either.
    names = ["a/b", "c.d", ".S", ".OPTIMIZER_SLOT", "é"]
    path = Checkpoint(
        items=[torch.tensor(1), [torch.tensor(2.5), nn.PReLU(3)]],
        table={name: {"..": torch.tensor(number)} for number, name in enumerate(names)},
    ).save(prefix)
    one, half, prelu = torch.tensor(0), torch.tensor(0.0), SimpleNamespace(weight=torch.zeros(3))
    found = [torch.tensor(-1) for _ in names]
    table = {name: {"..": tensor} for name, tensor in zip(names, found, strict=True)}
    tensorflow.restore(path, ALL_ASSERTIONS, items=[one, [half, prelu]], table=table)
    assert (one, half, prelu.weight.tolist()) == (1, 2.5, [0.25] * 3)
    assert torch.stack(found).tolist() == [0, 1, 2, 3, 4]


def test_what_write_wrote_is_read(tensorflow: TensorFlow, prefix: Path) -> None:
    """C019, C046, C396"""
    path = Checkpoint(x=torch.tensor([1.0, float("nan")])).write(prefix)
    x = torch.zeros(2)
    tensorflow.read(path, ALL_ASSERTIONS, x=x)
    assert x.numpy().tobytes() == torch.tensor([1.0, float("nan")]).numpy().tobytes()


def test_the_counter_goes_on_in_tensorflow_and_back(tensorflow: TensorFlow, prefix: Path) -> None:
    """C041, C396, C397"""
    ours = Checkpoint(x=torch.tensor(1.0))
    ours.save(prefix)
    second = ours.save(prefix)
    fourth = tensorflow.save(prefix, x=torch.tensor(0.0), times=2, after=second)
    assert fourth == f"{prefix}-4"
    ours.restore(fourth).assert_consumed()
    assert ours.save(prefix) == f"{prefix}-5"


# ------------------------------------------------------------------------------------------ partial matches


def test_a_model_is_restored_from_a_file_that_holds_an_optimizer_too(tensorflow: TensorFlow, prefix: Path) -> None:
    """C396"""
    module = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    path = Checkpoint(model=module, optimizer=optimizer).save(prefix)
    model = zeros_like(module)
    tensorflow.restore(path, ["expect_partial", "assert_existing_objects_matched"], model=model)
    assert_equal(model, module)


def test_tensorflow_names_the_object_that_it_lacks(tensorflow: TensorFlow, prefix: Path) -> None:
    """C396"""
    path = Checkpoint(model=nn.ModuleDict({"fc": nn.Linear(2, 2)})).save(prefix)
    model = SimpleNamespace(fc=SimpleNamespace(weight=torch.zeros(2, 2)))
    with pytest.raises(WorkerError, match=r"Unresolved object in checkpoint \(root\)\.model\.fc\.bias"):
        tensorflow.restore(path, ["assert_consumed"], model=model)


# ------------------------------------------------------------------------------------------ python state


@pytest.mark.parametrize("data", [b"", b'{"epoch": 3}', b"\x00a\x00", b"\xff\xfe", bytes(range(256)) * 99])
def test_python_state_is_restored_by_tensorflow(tensorflow: TensorFlow, prefix: Path, data: bytes) -> None:
    """C402"""
    path = Checkpoint(state=Text(data), nested=[Text(data + b"2")]).save(prefix)
    state, nested = Text(b"old"), Text(b"old")
    tensorflow.restore(path, ALL_ASSERTIONS, state=state, nested=[nested])
    assert (state.data, nested.data) == (data, data + b"2")


@pytest.mark.parametrize("data", [b"", b'{"epoch": 3}', b"\x00a\x00", b"\xff\xfe", bytes(range(256)) * 99])
def test_python_state_of_tensorflow_is_restored(tensorflow: TensorFlow, prefix: Path, data: bytes) -> None:
    """C402"""
    path = tensorflow.save(prefix, state=Text(data), nested=[Text(data + b"2")])
    state, nested = Text(b"old"), Text(b"old")
    Checkpoint(state=state, nested=[nested]).restore(path).assert_consumed()
    assert (state.data, nested.data) == (data, data + b"2")
