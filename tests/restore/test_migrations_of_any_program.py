"""Modules that take over older versions, where they are wrapped, shared, scripted, frozen, or restored again."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from named_values import is_restored, ones, zeros
from torch import nn

from torch_trackckpt import Checkpoint, frozen_saver, object_metadata
from torch_trackckpt.errors import StructureChangedError

State = dict[str, Any]


class Part(nn.Module):
    """Its `weight` was called `w` in version 1."""

    _version = 2

    def __init__(self, *, is_old: bool = False) -> None:
        super().__init__()
        if is_old:
            self._version = 1
        self.register_parameter("w" if is_old else "weight", nn.Parameter(ones() if is_old else zeros()))

    def _load_from_state_dict(self, state_dict: State, prefix: str, local_metadata: State, *rest: Any) -> None:
        if local_metadata.get("version", 1) < 2 and prefix + "w" in state_dict:
            state_dict[prefix + "weight"] = state_dict.pop(prefix + "w")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class Counting(Part):
    """Has a state beside its tensors."""

    def __init__(self, *, is_old: bool = False) -> None:
        super().__init__(is_old=is_old)
        self.count = 0

    def get_extra_state(self) -> dict[str, Any]:
        return {"count": self.count, "tensor": torch.tensor(self.count)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        assert int(state["tensor"]) == state["count"]
        self.count = state["count"]


def move_block(state_dict: State, prefix: str, *rest: Any) -> None:
    for key in [key for key in state_dict if key.startswith(prefix + "block.")]:
        state_dict[prefix + "body." + key.removeprefix(prefix + "block.")] = state_dict.pop(key)


def test_an_extra_state_moves_with_its_module(prefix: str) -> None:
    old = Counting(is_old=True)
    old.count = 5
    path = Checkpoint(model=nn.ModuleDict({"block": old})).write(prefix)
    model = nn.ModuleDict({"body": Counting()})
    model._register_load_state_dict_pre_hook(move_block)

    Checkpoint(model=model).read(path).assert_consumed()

    assert is_restored(model["body"].weight)
    assert model["body"].count == 5


@pytest.mark.parametrize(
    "wrap",
    [lambda part: part, partial(torch.compile, backend="eager"), nn.DataParallel],
    ids=["plain", "compiled", "parallel"],
)
def test_wrappers_have_no_names(prefix: str, wrap: Any) -> None:
    path = Checkpoint(model=nn.ModuleDict({"block": Part(is_old=True)}), part=Part(is_old=True)).write(prefix)
    model = nn.ModuleDict({"body": wrap(Part())})
    model._register_load_state_dict_pre_hook(move_block)
    part = Part()

    Checkpoint(model=model, part=wrap(part)).read(path).assert_consumed()

    assert is_restored(part.weight, *model.parameters())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_a_scripted_part_keeps_its_names(prefix: str) -> None:
    path = Checkpoint(model=nn.ModuleDict({"block": Part(is_old=True), "line": nn.Linear(2, 1)})).write(prefix)
    line = torch.jit.script(nn.Linear(2, 1))
    model = nn.ModuleDict({"body": Part()})
    model.add_module("line", line)
    model._register_load_state_dict_pre_hook(move_block)

    Checkpoint(model=model).read(path).assert_consumed()

    assert is_restored(model["body"].weight)


def test_a_shared_module_is_restored_once_under_both_names(prefix: str) -> None:
    old, new = Part(is_old=True), Part()
    path = Checkpoint(model=nn.ModuleDict({"block": old, "more": old})).write(prefix)
    model = nn.ModuleDict({"body": new, "more": new})
    model._register_load_state_dict_pre_hook(move_block)

    Checkpoint(model=model).read(path).assert_consumed()

    assert is_restored(new.weight)


def test_inference_mode_makes_no_difference(prefix: str) -> None:
    path = Checkpoint(part=Part(is_old=True)).write(prefix)
    with torch.inference_mode():
        part, late = Part(), Checkpoint()
        Checkpoint(part=part).read(path).assert_consumed()
        late.read(path)
    late.part = Part()

    assert is_restored(part.weight, late.part.weight)
    late.part.weight.sum().backward()


def test_what_waits_in_a_module_is_not_asked_for_another_checkpoint(prefix: str) -> None:
    first = Checkpoint(part=Part(is_old=True))
    first.part.late = nn.Parameter(ones())
    first = first.write(f"{prefix}-1")
    second = Checkpoint(part=Part(is_old=True)).write(f"{prefix}-2")
    part = Part()
    checkpoint = Checkpoint(part=part)
    status = checkpoint.read(first)
    assert len(part._load_state_dict_pre_hooks) == 1

    checkpoint.read(second).assert_consumed()
    part.late = nn.Parameter(zeros())

    assert is_restored(part.late)
    status.assert_consumed()


def test_of_restores_that_wait_for_the_same_the_last_is_kept(prefix: str) -> None:
    old = Part(is_old=True)
    old.late = nn.Parameter(ones())
    path = Checkpoint(part=old).write(prefix)
    part = Part()
    checkpoint = Checkpoint(part=part)

    restorations = [weakref.ref(checkpoint.read(path).expect_partial()._restoration) for _ in range(3)]
    gc.collect()

    assert [reference() is not None for reference in restorations] == [False, False, True]


def test_a_module_and_what_is_stored_of_it_are_not_kept_alive(prefix: str) -> None:
    path = Checkpoint(part=Part(is_old=True)).write(prefix)
    checkpoint = Checkpoint(part=Part())
    restoration = checkpoint.read(path)._restoration
    reference = weakref.ref(checkpoint.part)

    del checkpoint
    gc.collect()

    assert reference() is None
    assert restoration.restored


def test_a_frozen_saver_writes_the_version_of_now(prefix: str) -> None:
    part = Part()
    saver = frozen_saver(Checkpoint(part=part))
    part._version = 3

    nodes = object_metadata(saver.save(prefix)).nodes

    assert [node.module_version for node in nodes if node.module_version] == [3]
    part.more = nn.Parameter(zeros())
    with pytest.raises(StructureChangedError):
        saver.save(prefix)


def test_no_compiler_is_loaded_for_it(prefix: str) -> None:
    """Which takes seconds."""
    norm = nn.BatchNorm1d(2)
    norm._version = 1
    path = Checkpoint(norm=norm).write(prefix)
    program = f"""
import sys
from torch import nn
from torch_trackckpt import Checkpoint
Checkpoint(norm=nn.BatchNorm1d(2)).read({path!r}).assert_consumed()
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
