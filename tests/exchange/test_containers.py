"""Containers: the same program makes the same tree here and in TensorFlow, or is refused by both."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_trackckpt import AutoTrackable, Checkpoint, NoDependency, list_variables

from .conftest import TensorFlow, tensorflow_worker

Pair = namedtuple("Pair", ["x", "y"])

SAVED = [
    "root.l = [value(1.0), 3, 'text', value(2.0)]",
    "root.l = [value(1.0), [value(2.0), {'k': [value(3.0)]}]]",
    "root.l = []; root.l.append(value(1.0)); root.l.extend([value(2.0)]); root.l += [[value(3.0)]]",
    "root.l = [1, value(1.0)]; root.l *= 2",
    "root.l = [1, 2]; root.l.insert(0, 0); root.l.pop(); root.l.sort(); root.l[0] = 5; root.l.append(value(1.0))",
    "root.l = [1, 2, 3, 4]; root.l[:] = 2, 8, 9, 0; root.l[2:] = 1, 2, 3; root.l.append(value(1.0))",
    "root.l = [1, 2]; root.l[0] = value(1.0)",
    "root.d = {'b': value(1.0), 'a': value(2.0)}; root.d['c'] = value(3.0); root.d['a'] = value(4.0)",
    "root.d = {'a': value(1.0), 'b': 2}; del root.d['a']; del root.d['b']; root.d['a'] = value(1.0)",
    "root.d = {1: 2, 'a': value(1.0)}; root.d[2] = 3; del root.d[1]; root.d[4] = (1, 2)",
    "root.d = {}; root.d[1] = NoDependency([3]); root.d['a'] = NoDependency(thing()); root.d['b'] = value(1.0)",
    "root.l = [[]]; root.l[0].append(NoDependency([])); root.l[0][-1].append(value(5.0)); root.l.append(value(1.0))",
    "root.t = (value(1.0), (2, [value(3.0)])); root.t[1][1].append(value(4.0))",
    "root.p = Pair(value(1.0), [value(2.0)])",
    "root.s = (root, [root]); root.x = value(1.0)",
    "root.l = NoDependency([value(1.0)]); root.l.insert(0, 2); root.x = value(2.0)",
    "root.l = [value(1.0)]; root.l.insert(0, 1); root.l = list(root.l)",
    "root.a = [value(1.0)]; root.b = root.a; root.c = [root.a[0]]",
    "root.a = thing(); root.a.b = thing(); root.a.b.a = root.a; root.a.b.x = value(1.0); root.me = root",
]

REFUSED = [
    "root.l = [value(1.0)]; root.l.insert(0, 1)",
    "root.l = []; root.l.insert(0, thing())",
    "root.l = [1, value(1.0)]; root.l.pop()",
    "root.l = [1, value(1.0)]; root.l.pop(0)",
    "root.l = [1, [4]]; root.l.remove(1)",
    "root.l = [1, 2, [4]]; del root.l[0]",
    "root.l = [1, 2, [4]]; del root.l[1:2]",
    "root.l = [1, value(1.0)]; root.l.reverse()",
    "root.l = [[1], [2]]; root.l.sort()",
    "root.l = [1, value(1.0)]; root.l[1] = 2",
    "root.l = [1, value(1.0)]; root.l[1] = value(2.0)",
    "root.l = [1, value(1.0), value(2.0)]; root.l[:] = 2, 8, root.l[2]",
    "root.l = [1, [4]]; root.l *= -1",
    "root.l = [1, [4]]; root.l.clear()",
    "root.l = [[1, value(1.0)]]; root.l[0][1] = 2; root.x = value(1.0)",
    "held = [value(1.0)]; root.l = held; held.append(value(2.0))",
    "held = [[1.0]]; root.l = held; held.append(1.0)",
    "import copy; root.m = [value(1.0)]; root.m.insert(0, 1); root.l = copy.copy(root.m); root.m = []",
    "import copy; held = [[1.0]]; root.m = held; held.append(1); root.l = copy.deepcopy(root.m); root.m = 1",
    "root.d = {}; root.d[1] = [1]",
    "root.d = {1: value(1.0)}",
    "root.d = {'a': []}; root.d.pop('a')",
    "root.d = {'a': value(1.0)}; root.d.popitem()",
    "root.d = {'a': value(1.0)}; root.d.clear()",
    "held = {}; root.d = held; held['a'] = []",
]

# What TensorFlow refuses although every tracked element is under its name.
REFUSED_THERE_ALONE = [
    "root.l = [value(1.0), 2]; root.l.pop()",
    "root.l = [value(1.0), 2]; del root.l[1]",
    "root.l = [value(1.0)]; root.l[0] = root.l[0]",
    "held = []; root.l = held; held.append(0.5)",
    "root.d = {'a': value(1.0), 'b': 2}; root.d.pop('b')",
    "root.d = {}; root.d.setdefault('a', 1)",
]


class ContainersTensorFlow(TensorFlow):
    """TensorFlow that executes programs."""

    def write_program(self, prefix: Path, program: str) -> str | None:
        """Writes what a program made of `root`; the text of the error where it is refused."""
        error: str | None = self._worker.call("write_program", prefix=str(prefix), program=program)
        return error

    def read_program(self, path: Path, program: str, result: str) -> list[float]:
        """Values of `root` after the program and a restore."""
        values: list[float] = self._worker.call("read_program", path=str(path), program=program, result=result)
        return values


@pytest.fixture(scope="module")
def tensorflow() -> Iterator[ContainersTensorFlow]:
    with tensorflow_worker("container_functions.py") as worker:
        yield ContainersTensorFlow(worker)


def root_of(program: str) -> AutoTrackable:
    root = AutoTrackable()
    names: dict[str, Any] = {"root": root, "thing": AutoTrackable, "value": torch.tensor}
    exec(program, names | {"NoDependency": NoDependency, "Pair": Pair})
    return root


def keys(prefix: Path) -> list[str]:
    return [key for key, _ in list_variables(prefix)]


@pytest.mark.parametrize("program", SAVED)
def test_the_same_program_saves_the_same_keys(program: str, tensorflow: ContainersTensorFlow, tmp_path: Path) -> None:
    """C172, C173, C174, C177, C179, C184, C185, C187, C191, C192, C194, C197, C199, C203, C204"""
    assert tensorflow.write_program(tmp_path / "theirs", program) is None
    Checkpoint(root_of(program)).write(tmp_path / "ours")
    assert keys(tmp_path / "ours") == keys(tmp_path / "theirs") != []


@pytest.mark.parametrize("program", REFUSED)
def test_what_tensorflow_refuses_is_refused(program: str, tensorflow: ContainersTensorFlow, tmp_path: Path) -> None:
    """C176, C178, C180, C181, C182, C183, C186, C188, C189"""
    theirs = tensorflow.write_program(tmp_path / "theirs", program)
    assert theirs is not None
    assert "Unable to save" in theirs
    with pytest.raises(ValueError, match="cannot be saved") as caught:
        Checkpoint(root_of(program)).write(tmp_path / "ours")
    for words in ("modified outside the wrapper", "non-string key"):
        if words in theirs and "pop" not in program and "clear" not in program:
            assert words in str(caught.value)


@pytest.mark.parametrize("program", REFUSED_THERE_ALONE)
def test_what_loses_no_name_is_saved_here(program: str, tensorflow: ContainersTensorFlow, tmp_path: Path) -> None:
    """C177: a choice; a list of losses never gets in the way."""
    assert tensorflow.write_program(tmp_path / "theirs", program) is not None
    Checkpoint(root_of(program)).write(tmp_path / "ours")


@pytest.mark.parametrize(
    ("program", "result"),
    [
        ("root.p = Pair(value({}), [value({})])", "[root.p.x, root.p[1][0]]"),
        ("root.l = [1, value({})]; root.l.append((value({}), 2))", "[root.l[1], root.l[2][0]]"),
        ("root.d = {{'a': [value({})]}}; root.d['b'] = value({})", "[root.d['a'][0], root.d['b']]"),
    ],
)
def test_each_reads_the_containers_of_the_other(
    program: str, result: str, tensorflow: ContainersTensorFlow, tmp_path: Path
) -> None:
    """C172, C185, C192"""
    saved, fresh = program.format(1.0, 2.0), program.format(0.0, 0.0)
    Checkpoint(root_of(saved)).write(tmp_path / "ours")
    assert tensorflow.read_program(tmp_path / "ours", fresh, result) == [1.0, 2.0]
    tensorflow.write_program(tmp_path / "theirs", saved)
    root = root_of(fresh)
    Checkpoint(root).read(tmp_path / "theirs").assert_consumed()
    assert [float(tensor) for tensor in eval(result, {"root": root})] == [1.0, 2.0]
