"""Sharded checkpoints: the same limit gives the same files, and either side reads those of the other."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_dtypes import DTYPES

from torch_trackckpt import Checkpoint, CheckpointOptions, CheckpointReader, Trackable, merge_checkpoints
from torch_trackckpt.sharding import MaxShardSizePolicy

from .conftest import TensorFlow, Value, _decoded, _encoded, tensorflow_worker

Strings = np.ndarray[Any, np.dtype[np.object_]]
Values = Mapping[str, torch.Tensor | Strings]
ATTRIBUTE = "/.ATTRIBUTES/VARIABLE_VALUE"
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


class Words(Trackable):
    """What a tf.Variable of strings is here."""

    def __init__(self, words: Strings) -> None:
        self.words = words

    def _serialize_to_tensors(self) -> Mapping[str, Strings]:
        return {"VARIABLE_VALUE": self.words}

    def _restore_from_tensors(self, values: Mapping[str, Any]) -> None:
        self.words = values["VARIABLE_VALUE"]


class ShardingTensorFlow(TensorFlow):
    """TensorFlow with a limit for its data files."""

    def write_sharded(self, prefix: Path, values: Values, limit: int) -> str:
        """Variables of these names and values below a tf.train.Checkpoint."""
        path: str = self._worker.call("write_sharded", prefix=str(prefix), tree=_tree(values), max_shard_size=limit)
        return path

    def read_into_zeros(self, path: str, values: Values) -> dict[str, Value]:
        """What variables of the same names and shapes hold after `tf.train.Checkpoint.read` and its assertion."""
        zeros = {name: _zeros_like(value) for name, value in values.items()}
        outcome = self._worker.call("read", path=path, tree=_tree(zeros), assertions=["assert_consumed"])
        return {name: _decoded(content) for name, content in zip(sorted(values), outcome["contents"], strict=True)}


def _tree(values: Values) -> dict[str, object]:
    names = sorted(values)
    objects = [{"kind": "variable", "name": name, "value": _encoded(Value.of(values[name]))} for name in names]
    return {"objects": objects, "root": None, "children": {name: number for number, name in enumerate(names)}}


def _zeros_like(value: torch.Tensor | Strings) -> torch.Tensor | Strings:
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else np.full(value.shape, b"", dtype=object)


@pytest.fixture(scope="module")
def tensorflow() -> Iterator[ShardingTensorFlow]:
    with tensorflow_worker("sharding_functions.py") as worker:
        yield ShardingTensorFlow(worker)


def write_ours(prefix: Path, values: Values, limit: int) -> str:
    children = {name: v if isinstance(v, torch.Tensor) else Words(v) for name, v in values.items()}
    policy = MaxShardSizePolicy(limit)
    options = CheckpointOptions(durable=False, experimental_sharding_callback=policy)
    return Checkpoint(**children).write(prefix, options)


def files_at(prefix: str) -> dict[str, bytes]:
    path = Path(prefix)
    return {file.name.removeprefix(path.name): file.read_bytes() for file in path.parent.glob(path.name + ".*")}


def values_of(values: Values) -> dict[str, Value]:
    return {name: Value.of(value) for name, value in values.items()}


def read_by_us(path: str) -> dict[str, Value]:
    reader = CheckpointReader(path)
    return {key.removesuffix(ATTRIBUTE): Value.of(reader.get_tensor(key)) for key in reader if key != GRAPH}


def strings(*elements: bytes) -> Strings:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def numbered(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return (torch.arange(math.prod(shape)) % 127).reshape(shape).to(dtype)


def least_limit(values: Values) -> int:
    """The smallest limit under which TensorFlow finds a cut for each value, and so ends."""
    least = 1
    for value in values.values():
        if value.shape and math.prod(value.shape):
            is_tensor = isinstance(value, torch.Tensor)
            size = value.element_size() if is_tensor else max(map(len, value))  # type: ignore[union-attr, call-overload]
            least = max(least, min(math.prod(value.shape) // n * size for n in value.shape))
    return least


# ------------------------------------------------------------------------------------------ the same bytes

BIG = {"big": numbered(torch.float32, 50, 20), "small": numbered(torch.int64, 10), "s": torch.tensor(1.5)}
CASES: dict[str, tuple[Values, list[int]]] = {
    "vectors": ({"a": numbered(torch.float32, 7), "b": numbered(torch.int32, 9)}, [4, 8, 10, 18, 28, 29, 64, 1000]),
    "matrices": (BIG, [80, 81, 200, 640, 1500, 4000, 4080, 4088, 5000]),
    "deep": (
        {"d": numbered(torch.int16, 3, 5, 2, 4), "e": numbered(torch.uint8, 4, 4, 4)},
        [48, 50, 77, 100, 239, 304],
    ),
    "scalars": ({name: torch.tensor(1 + 2j) for name in "abc"} | {"x": numbered(torch.uint8, 9)}, [1, 7, 8, 9, 15, 16]),
    "scalars in between": (
        {"a": numbered(torch.uint8, 6), "b": torch.tensor(1.0), "c": numbered(torch.uint8, 6)},
        [5, 6, 8],
    ),
    "strings whose sum fits": (
        {"w": strings(b"a" * 10, b"b"), "x": numbered(torch.uint8, 9)},
        [10, 11, 12, 15, 19, 20, 21],
    ),
    "strings after others": (
        {"a": numbered(torch.uint8, 9), "w": strings(b"a" * 6, b"b", b"c" * 3)},
        [7, 10, 15, 18, 20],
    ),
    "empty strings": ({"a": numbered(torch.uint8, 9), "w": strings(b"", b"", b"")}, [1, 3, 9, 10]),
    "one empty string": ({"w": strings(b""), "x": numbered(torch.uint8, 2)}, [1, 2]),
    "single elements": ({"a": numbered(torch.float64, 1, 1), "b": strings(b"word")}, [8, 9, 11, 12]),
    "scalar strings": ({"a": np.array(b"word", dtype=object), "b": numbered(torch.uint8, 2)}, [1, 3, 4, 5, 6]),
}


@pytest.mark.parametrize("case", CASES)
def test_values_are_cut_into_the_files_of_tensorflow(tensorflow: ShardingTensorFlow, tmp_path: Path, case: str) -> None:
    """C282, C283, C284, C285, C286, C287, C361"""
    values, limits = CASES[case]
    differing = []
    for limit in limits:
        assert limit >= least_limit(values)
        ours = write_ours(tmp_path / f"ours-{limit}", values, limit)
        theirs = tensorflow.write_sharded(tmp_path / f"theirs-{limit}", values, limit)
        if files_at(ours) != files_at(theirs):
            differing.append((limit, sorted(files_at(ours)), sorted(files_at(theirs))))
    assert differing == []


# TensorFlow has no variables of the other types.
VARIABLES = [dtype for dtype in DTYPES if not str(dtype).endswith("fnuz")]
SHAPES = st.lists(st.integers(1, 9), max_size=4).map(tuple)
TENSORS = st.builds(lambda dtype, shape: numbered(dtype, *shape), st.sampled_from(VARIABLES), SHAPES)
STRINGS = st.lists(st.binary(max_size=30), min_size=1, max_size=8).map(lambda elements: strings(*elements))


@given(
    values=st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), TENSORS | STRINGS, max_size=6),
    more=st.integers(0, 40) | st.integers(0, 3000),
)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_any_values_under_any_limit_are_cut_into_the_files_of_tensorflow(
    tensorflow: ShardingTensorFlow, values: dict[str, torch.Tensor | Strings], more: int
) -> None:
    """C282, C283, C284, C285, C286, C287, C361, C401"""
    limit = least_limit(values) + more
    with TemporaryDirectory() as directory:
        ours = write_ours(Path(directory, "ours"), values, limit)
        theirs = tensorflow.write_sharded(Path(directory, "theirs"), values, limit)
        assert files_at(ours) == files_at(theirs)
        assert read_by_us(theirs) == values_of(values)


# ------------------------------------------------------------------------------------------ either reads the other

# TensorFlow puts slices together for these types only.
ASSEMBLED = ["float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool", "complex64", "complex128"]
ASSEMBLED.append("bfloat16")


def one_of_each(*shape: int) -> dict[str, torch.Tensor]:
    return {name: numbered(getattr(torch, name), *shape) for name in ASSEMBLED}


@pytest.mark.parametrize("limit", [1, 5, 16, 64, 100, 1000])
def test_tensorflow_reads_and_restores_what_we_cut(tensorflow: ShardingTensorFlow, prefix: Path, limit: int) -> None:
    """C289, C292, C401: also below the limits with which TensorFlow itself would not end."""
    values = one_of_each(3, 5) | {"scalar": torch.tensor(2.5)}
    path = write_ours(prefix, values, limit)
    found = tensorflow.read_all(path)
    assert {key.removesuffix(ATTRIBUTE): value for key, value in found.items() if key != GRAPH} == values_of(values)
    assert tensorflow.read_into_zeros(path, values) == values_of(values)
    assert (f"float64{ATTRIBUTE}", [3, 5]) in tensorflow.list_variables(path)


def test_tensorflow_restores_a_part_of_what_we_cut(tensorflow: ShardingTensorFlow, prefix: Path) -> None:
    """C292, C401"""
    values = one_of_each(6, 7)
    path = write_ours(prefix, values, 50)
    assert tensorflow.read_one(path, f"int16{ATTRIBUTE}") == Value.of(values["int16"])
    os.unlink(f"{path}.data-00000-of-{len(files_at(path)) - 1:05d}")
    assert tensorflow.read_one(path, f"uint8{ATTRIBUTE}") == Value.of(values["uint8"])


def test_tensors_without_elements_are_kept_for_tensorflow(tensorflow: ShardingTensorFlow, prefix: Path) -> None:
    """C291: its own policy drops them."""
    values = {"empty": torch.zeros(0, 3), "strings": strings(), "x": numbered(torch.float32, 5)}
    path = write_ours(prefix, values, 8)
    assert tensorflow.read_into_zeros(path, values) == values_of(values)


def test_what_tensorflow_cut_is_restored_into_live_tensors(tensorflow: ShardingTensorFlow, prefix: Path) -> None:
    """C292, C293, C401"""
    values = one_of_each(4, 9) | {"half": numbered(torch.float16, 4, 9)}
    path = tensorflow.write_sharded(prefix, values | {"words": strings(b"a", b"", b"c" * 30)}, 70)
    live = {name: torch.zeros_like(tensor) for name, tensor in values.items()}
    words = Words(strings())
    Checkpoint(words=words, **live).read(path).assert_consumed()
    assert values_of(live) == values_of(values)
    assert words.words.tolist() == [b"a", b"", b"c" * 30]


def test_tensorflow_reads_what_we_merged_of_what_it_and_we_cut(tensorflow: ShardingTensorFlow, tmp_path: Path) -> None:
    """C366, C401"""
    values = one_of_each(4, 9)
    theirs = tensorflow.write_sharded(tmp_path / "theirs", values, 70)
    tensorflow.save_tensors(tmp_path / "more", [("more", Value.of(torch.ones(2)))])
    merge_checkpoints([str(tmp_path / "more"), theirs], tmp_path / "ckpt", durable=False)
    assert tensorflow.read_into_zeros(str(tmp_path / "ckpt"), values) == values_of(values)
    assert tensorflow.read_one(tmp_path / "ckpt", "more") == Value.of(torch.ones(2))
