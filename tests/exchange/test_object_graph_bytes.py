"""The same objects of the same names give the same files, object graph and all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torch_trackckpt import Checkpoint, CheckpointOptions

from .conftest import TensorFlow, Text


def files_at(prefix: str) -> dict[str, bytes]:
    path = Path(prefix)
    return {file.name.removeprefix(path.name): file.read_bytes() for file in path.parent.glob(path.name + ".*")}


def shared_parts() -> dict[str, object]:
    part, tensor = {"x": torch.tensor(1)}, torch.tensor(2.0)
    return {"z": tensor, "a": [tensor, {"deep": tensor}], "b": {"t": tensor, "part": part}}


TREES: dict[str, Callable[[], dict[str, object]]] = {
    "nothing": dict,
    "variables": lambda: {"w": torch.ones(2, 3), "b": torch.tensor(2, dtype=torch.int64), "a": torch.tensor(True)},
    "names_to_escape": lambda: {n: torch.tensor(1) for n in ["a/b", "a.b", ".S", "é", ".ATTRIBUTES", "/a", "..", " "]},
    "lists": lambda: {"l": [torch.tensor(1), [torch.tensor(2.0), torch.tensor(3)], []]},
    "dicts": lambda: {"d": {"z": torch.tensor(1), "a": {"c/d": torch.tensor(2), "é": torch.tensor(3)}, "n": {}}},
    "hundreds": lambda: {"l": [torch.tensor(n) for n in range(300)]},
    "shared": shared_parts,
    "python_states": lambda: {"a": Text(b"\x00state\xff"), "b": torch.ones(2), "c": [Text(b""), torch.zeros(1)]},
}


@pytest.mark.parametrize("name", TREES)
def test_a_tree_is_written_as_tensorflow_writes_it(tensorflow: TensorFlow, tmp_path: Path, name: str) -> None:
    """C013, C014, C015, C016, C028, C361"""
    tree = TREES[name]()
    ours = files_at(Checkpoint(**tree).write(tmp_path / "ours"))
    again = files_at(Checkpoint(**tree).write(tmp_path / "again"))
    theirs = files_at(tensorflow.write(tmp_path / "theirs", **tree))
    assert theirs.keys() == {".index", ".data-00000-of-00001"}
    assert ours == again == theirs


# Names as TensorFlow lets its variables have: without a colon, and not ending in a slash.
NAMES = st.text("ab.é/S😀 ", min_size=1, max_size=5).filter(lambda name: not name.endswith("/"))
LEAVES = st.integers(0, 4)
NESTED = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=12
)


def with_leaves(nested: Any, leaves: list[object]) -> Any:
    """The nested lists and dicts with a leaf in place of each number; equal numbers share it."""
    if isinstance(nested, int):
        return leaves[nested]
    if isinstance(nested, list):
        return [with_leaves(element, leaves) for element in nested]
    return {name: with_leaves(child, leaves) for name, child in nested.items()}


@given(nested=st.dictionaries(NAMES, NESTED, max_size=4))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_any_tree_is_written_as_tensorflow_writes_it(tensorflow: TensorFlow, nested: dict[str, Any]) -> None:
    """C013, C014, C015, C016, C023, C361"""
    tree = with_leaves(nested, [torch.ones(2), torch.tensor(3), torch.zeros(0, 2), torch.tensor(True), Text(b"\xff")])
    with TemporaryDirectory() as directory:
        ours = files_at(Checkpoint(**tree).write(f"{directory}/ours"))
        theirs = files_at(tensorflow.write(Path(directory, "theirs"), **tree))
    assert ours == theirs


def test_numbered_checkpoints_are_written_as_tensorflow_writes_them(tensorflow: TensorFlow, tmp_path: Path) -> None:
    """C018, C040, C361"""
    checkpoint = Checkpoint(x=torch.ones(2))
    checkpoint.save(tmp_path / "ours")
    ours = checkpoint.save(tmp_path / "ours")
    theirs = tensorflow.save(tmp_path / "theirs", x=torch.ones(2), times=2)
    assert files_at(ours) == files_at(theirs)


def test_asynchronous_checkpoints_are_those_that_tensorflow_saves_at_once(
    tensorflow: TensorFlow, tmp_path: Path
) -> None:
    """C313, C322, C332: number, files and state file."""
    x = torch.ones(2)
    checkpoint = Checkpoint(x=x)
    for _ in range(2):
        ours = checkpoint.save(tmp_path / "ours" / "ckpt", CheckpointOptions(enable_async=True))
    x.zero_()
    checkpoint.sync()
    theirs = tensorflow.save(tmp_path / "theirs" / "ckpt", x=torch.ones(2), times=2)
    assert files_at(ours) == files_at(theirs)
    assert tensorflow.latest_checkpoint(tmp_path / "ours") == ours


def as_tree(module: nn.Module) -> SimpleNamespace:
    tensors = {**module._parameters, **module._buffers}
    return SimpleNamespace(**tensors, **{name: as_tree(child) for name, child in module._modules.items()})


def make_module() -> nn.Module:
    """All of it is of torch's first version, as there is nothing in TensorFlow's graph that tells of another."""
    norm = nn.LayerNorm(4)
    norm.register_buffer("running_mean", torch.randn(4))
    return nn.Sequential(nn.Linear(3, 4), norm, nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))


def test_a_module_is_written_as_tensorflow_writes_one(tensorflow: TensorFlow, tmp_path: Path) -> None:
    """C013, C015, C016, C361"""
    module = make_module()
    ours = Checkpoint(model=module, step=torch.tensor(3)).write(tmp_path / "ours")
    theirs = tensorflow.write(tmp_path / "theirs", model=as_tree(module), step=torch.tensor(3))
    assert files_at(ours) == files_at(theirs)


@pytest.mark.parametrize("children", [{}, {"a": torch.tensor(1), "z": torch.tensor(2)}], ids=["alone", "keywords"])
def test_a_root_module_is_written_as_tensorflow_writes_one(
    tensorflow: TensorFlow, tmp_path: Path, children: dict[str, torch.Tensor]
) -> None:
    """C002, C029, C043, C361"""
    module = make_module()
    ours = Checkpoint(module, **children).save(tmp_path / "ours")
    theirs = tensorflow.save(tmp_path / "theirs", as_tree(module), **children)
    assert files_at(ours) == files_at(theirs)
