"""The same objects of the same names give the same files, object graph and all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from torch_trackckpt import Checkpoint

from .conftest import TensorFlow, Text


def files_at(prefix: str) -> dict[str, bytes]:
    path = Path(prefix)
    return {file.name.removeprefix(path.name): file.read_bytes() for file in path.parent.glob(path.name + ".*")}


def shared_parts() -> dict[str, object]:
    part, tensor = {"x": torch.tensor(1)}, torch.tensor(2.0)
    return {"z": tensor, "a": [tensor, {"deep": tensor}], "b": {"t": tensor, "part": part}}


TREES: dict[str, Callable[[], dict[str, object]]] = {
    "nothing": lambda: {},
    "variables": lambda: {"w": torch.ones(2, 3), "b": torch.tensor(2, dtype=torch.int64), "a": torch.tensor(True)},
    "names_to_escape": lambda: {"a/b": torch.tensor(1), "a.b": torch.tensor(2), ".S": torch.tensor(3), "é": torch.ones(1)},
    "lists": lambda: {"l": [torch.tensor(1), [torch.tensor(2.0), torch.tensor(3)], []]},
    "dicts": lambda: {"d": {"z": torch.tensor(1), "a": {"c/d": torch.tensor(2), "é": torch.tensor(3)}, "n": {}}},
    "ten_and_more": lambda: {"l": [torch.tensor(n) for n in range(12)]},
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


def test_numbered_checkpoints_are_written_as_tensorflow_writes_them(tensorflow: TensorFlow, tmp_path: Path) -> None:
    """C018, C040, C361"""
    checkpoint = Checkpoint(x=torch.ones(2))
    checkpoint.save(tmp_path / "ours")
    ours = checkpoint.save(tmp_path / "ours")
    theirs = tensorflow.save(tmp_path / "theirs", x=torch.ones(2), times=2)
    assert files_at(ours) == files_at(theirs)


def as_tree(module: nn.Module) -> SimpleNamespace:
    tensors = {**module._parameters, **module._buffers}
    return SimpleNamespace(**tensors, **{name: as_tree(child) for name, child in module._modules.items()})


def make_module() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))


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
