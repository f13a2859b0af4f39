"""Policies of the user's own: what they are given, what they may do, and what is refused before a file is made."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import witness
from checkpoints import X, names_in
from sharded import Words, contents, files

from torch_trackckpt import Checkpoint, CheckpointOptions, latest_checkpoint
from torch_trackckpt.bundle.dtypes import STRING, data_type_of_torch
from torch_trackckpt.errors import ShardingError
from torch_trackckpt.save.plan import make_plan
from torch_trackckpt.save.validate import validate_shards
from torch_trackckpt.sharding import (
    MaxShardSizePolicy,
    ShardableTensor,
    ShardByTaskPolicy,
    ShardingCallback,
    Shards,
)
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY, Value


class Callback(ShardingCallback):
    """A policy that is a function."""

    def __init__(self, function: Callable[[Sequence[ShardableTensor]], Any]) -> None:
        self.function = function

    @property
    def description(self) -> str:
        return "my own policy"

    def __call__(self, shardable_tensors: Sequence[ShardableTensor]) -> Shards:
        shards: Shards = self.function(shardable_tensors)
        return shards


def one_each(values: Sequence[ShardableTensor]) -> list[dict[str, dict[str, Any]]]:
    return [{value.checkpoint_key: {value.slice_spec: value.tensor}} for value in values]


def by(policy: ShardingCallback | Callable[..., Any]) -> CheckpointOptions:
    callback = policy if isinstance(policy, ShardingCallback) else Callback(policy)
    return CheckpointOptions(durable=False, experimental_sharding_callback=callback)


# ------------------------------------------------------------------------------------------ what they may do


def test_a_callback_may_put_each_value_into_a_file_of_its_own(prefix: str) -> None:
    """C297"""
    group = Checkpoint(x=torch.ones(2), words=Words(b"a", b"b"), empty=torch.zeros(0))
    path = group.save(prefix, by(one_each))
    stored = witness.read_bundle(path)
    assert sorted(tensor.shard_id for tensor in stored.values()) == [0, 1, 2, 3, 4]
    assert names_in(os.path.dirname(prefix)) == ["checkpoint", *files("ckpt-1", 5)]
    group.restore(path).assert_consumed()


def test_the_order_of_a_callback_is_the_order_of_the_files_and_in_them(prefix: str) -> None:
    """C297"""

    def backwards(values: Sequence[ShardableTensor]) -> Shards:
        shards = one_each(values)[::-1]
        return [shards[0] | shards[1], *shards[2:]]

    Checkpoint(a=torch.ones(2), b=torch.ones(2), c=torch.ones(2)).write(prefix, by(backwards))
    stored = {key.split("/")[0]: tensor for key, tensor in witness.read_bundle(prefix).items()}
    assert [(stored[name].shard_id, stored[name].offset > 0) for name in (OBJECT_GRAPH_KEY, *"cba")] == [
        (0, False),
        (0, True),
        (1, False),
        (2, False),
    ]


def test_a_callback_is_told_what_it_distributes(prefix: str) -> None:
    """C297"""
    told: list[ShardableTensor] = []
    tensor = torch.ones(2, 3, dtype=torch.float16)
    options = by(lambda values: told.extend(values) or one_each(values))
    Checkpoint(w=Words(b"a", b"b"), x=tensor).write(prefix, options)
    assert [(t.checkpoint_key.split("/")[0], t.dtype.name, t.shape, t.slice_spec) for t in told] == [
        ("w", "string", (2,), ""),
        ("x", "float16", (2, 3), ""),
        (OBJECT_GRAPH_KEY, "string", (), ""),
    ]
    assert told[1].tensor is tensor
    assert {t.device for t in told} == {torch.device("cpu")}


def test_a_callback_may_be_written_as_a_generator(prefix: str) -> None:
    """C297"""
    Checkpoint(x=torch.ones(2)).write(prefix, by(lambda values: (shard for shard in one_each(values))))
    assert names_in(os.path.dirname(prefix)) == files("ckpt", 2)


def in_seconds(values: dict[str, Value], policy: Callable[[Sequence[ShardableTensor]], Any]) -> float:
    """The processor's time that a plan takes."""
    begin = time.process_time()
    assert len(make_plan(list(values), list(values.values()), Callback(policy)).shards) > 1000
    return time.process_time() - begin


def test_thousands_of_values_in_files_of_their_own_are_checked_in_passing() -> None:
    """C297: not every value with every file."""
    assert in_seconds({str(number): torch.zeros(1) for number in range(8000)}, one_each) < 5


def test_thousands_of_parts_of_one_value_are_checked_in_passing() -> None:
    """C297: not every part with every other."""

    def rows(values: Sequence[ShardableTensor]) -> list[dict[str, dict[str, Any]]]:
        tensor: Any = values[0].tensor
        return [{"x": {f"3000 {row},1": tensor[row : row + 1]}} for row in range(3000)]

    assert in_seconds({"x": torch.zeros(3000)}, rows) < 5


def failing_callback(values: Sequence[ShardableTensor]) -> Shards:
    raise KeyError("a fault of its own")


BAD_CALLBACKS: dict[str, Callable[[Sequence[ShardableTensor]], Any]] = {
    "dropping": lambda values: one_each(values)[1:],
    "dropping the object graph": lambda values: one_each(values)[:-1],
    "adding": lambda values: [*one_each(values), {"new": {"": torch.ones(1)}}],
    "duplicating": lambda values: [*one_each(values), *one_each(values[:1])],
    "reshaping": lambda values: [*one_each(values[1:]), {X: {"": values[0].tensor.reshape(2, 2)}}],  # type: ignore[union-attr]
    "retyping": lambda values: [*one_each(values[1:]), {X: {"": values[0].tensor.double()}}],  # type: ignore[union-attr]
    "making arrays": lambda values: [*one_each(values[1:]), {X: {"": values[0].tensor.numpy()}}],  # type: ignore[union-attr]
    "making lists": lambda values: [*one_each(values[1:]), {X: {"": values[0].tensor.tolist()}}],  # type: ignore[union-attr]
    "making nothing": lambda values: None,
    "leaving a file empty": lambda values: [*one_each(values), {}],
}


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("case", list(BAD_CALLBACKS))
def test_a_callback_that_loses_invents_or_changes_values_is_named_and_no_file_appears(
    tmp_path: Path, case: str, existing: bool
) -> None:
    """C296"""
    group = Checkpoint(x=torch.ones(4))
    if existing:
        group.write(tmp_path / "run" / "ckpt", by(MaxShardSizePolicy(8)))
    before = contents(tmp_path / "run") if existing else None
    with pytest.raises(ShardingError, match=re.escape("The sharding callback (my own policy)")) as raised:
        group.write(tmp_path / "run" / "ckpt", by(BAD_CALLBACKS[case]))
    assert isinstance(raised.value, RuntimeError)
    assert (contents(tmp_path / "run") if (tmp_path / "run").exists() else None) == before


def test_after_a_bad_callback_neither_state_file_nor_write_callbacks_know_of_the_save(tmp_path: Path) -> None:
    """C296"""
    group = Checkpoint(x=torch.ones(4))
    first = group.save(tmp_path / "ckpt")
    told: list[str] = []
    options = CheckpointOptions(
        experimental_sharding_callback=Callback(BAD_CALLBACKS["dropping"]), experimental_write_callbacks=[told.append]
    )
    with pytest.raises(ShardingError):
        group.save(tmp_path / "ckpt", options)
    assert told == []
    assert latest_checkpoint(tmp_path) == first
    assert names_in(tmp_path) == ["checkpoint", *files("ckpt-1", 1)]


def test_an_error_of_the_callback_comes_through_and_no_file_appears(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="a fault of its own"):
        Checkpoint(x=torch.ones(4)).write(tmp_path / "run" / "ckpt", by(failing_callback))
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("policy", [MaxShardSizePolicy, one_each, 100, "MaxShardSizePolicy", [ShardByTaskPolicy()]])
def test_an_option_that_is_no_sharding_callback_is_refused(policy: object) -> None:
    """C298"""
    with pytest.raises(ValueError, match=r"experimental_sharding_callback must be a .*ShardingCallback, not "):
        CheckpointOptions(experimental_sharding_callback=policy)  # type: ignore[arg-type]


def test_a_policy_derived_from_one_of_ours_is_checked_as_any_other(tmp_path: Path) -> None:
    """C296"""

    class Forgetful(MaxShardSizePolicy):
        def __call__(self, shardable_tensors: Sequence[ShardableTensor]) -> Shards:
            return super().__call__(shardable_tensors[1:])

    with pytest.raises(ShardingError, match="missing"):
        Checkpoint(x=torch.ones(4)).write(tmp_path / "ckpt", by(Forgetful(8)))
    assert names_in(tmp_path) == []


def test_shards_made_by_the_policy_pass_the_check_of_callbacks(prefix: str) -> None:
    """C296"""
    seen: list[tuple[Shards, Sequence[ShardableTensor]]] = []

    def policy(values: Sequence[ShardableTensor]) -> Shards:
        shards = MaxShardSizePolicy(24)(values)
        seen.append((shards, values))
        return shards

    Checkpoint(x=torch.randn(5, 7), e=torch.zeros(2, 0), w=Words(b"abc", b"")).write(prefix, by(policy))
    validate_shards(*seen[0], "the policy")


# ------------------------------------------------------------------------------------------ the check alone


def shardable(value: Value, key: str = "x", spec: str = "") -> ShardableTensor:
    dtype = data_type_of_torch(value.dtype) if isinstance(value, torch.Tensor) else STRING
    shape = () if isinstance(value, bytes) else tuple(value.shape)
    return ShardableTensor(value, dtype, shape, torch.device("cpu"), key, spec, key)


MATRIX, WORDS = torch.arange(6.0).reshape(2, 3), np.array([b"a", b"b"], dtype=object)
VALUES = [shardable(MATRIX, "x"), shardable(WORDS, "y"), shardable(b"s", "s")]
REST: dict[str, dict[str, Value]] = {"y": {"": WORDS}, "s": {"": b"s"}}


@pytest.mark.parametrize(
    "shards",
    [
        pytest.param([{"x": {"": MATRIX}, **REST}], id="one shard"),
        pytest.param(
            [{"s": {"": b"s"}}, {"y": {"": WORDS}}, {"x": {"": MATRIX}}], id="a shard for each, in another order"
        ),
        pytest.param([{"x": {"2 3 0,1:-": MATRIX[:1]}}, {"x": {"2 3 1,1:0,3": MATRIX[1:]}, **REST}], id="parts"),
        pytest.param(
            [{"x": {"2 3 -:0,1": MATRIX[:, :1], "2 3 -:1,2": MATRIX[:, 1:]}, **REST}], id="parts in one shard"
        ),
        pytest.param(
            [{"x": {"2 3 -:-": MATRIX}, "y": {"2 1,1": WORDS[1:], "2 0,1": WORDS[:1]}, "s": {"": b"s"}}], id="texts"
        ),
        pytest.param(({"x": {"": MATRIX}}, REST), id="a tuple"),
    ],
)
def test_shards_that_hold_everything_once_are_valid(shards: Shards) -> None:
    """C297"""
    validate_shards(shards, VALUES, "any")


INVALID: dict[str, tuple[Shards, str]] = {
    "dropped": ([REST], "1 values are missing .* x"),
    "nothing": ([], "3 values are missing"),
    "a key without parts": ([{"x": {}, **REST}], "x: parts of it are missing"),
    "dropped part": ([{"x": {"2 3 0,1:-": MATRIX[:1]}, **REST}], "x: parts of it are missing"),
    "added": ([{"x": {"": MATRIX}, "z": {"": MATRIX}, **REST}], "1 values that were not to be saved, the first is z"),
    "twice": ([{"x": {"": MATRIX}, **REST}, {"x": {"": MATRIX}}], "x: parts of it are there twice"),
    "whole and part": ([{"x": {"": MATRIX, "2 3 0,1:-": MATRIX[:1]}, **REST}], "x: parts of it are there twice"),
    "overlap": (
        [{"x": {"2 3 -:0,2": MATRIX[:, :2], "2 3 -:1,2": MATRIX[:, 1:]}, **REST}],
        "x: parts of it are there twice",
    ),
    "one for another": (
        [{"x": {"2 3 0,1:-": MATRIX[:1], "2 3 0,1:0,3": MATRIX[:1]}, **REST}],
        "x: parts of it are there twice",
    ),
    "reshaped": ([{"x": {"": MATRIX.reshape(3, 2)}, **REST}], r"x: a value of shape \[3, 2\]"),
    "flattened strings": ([{"x": {"": MATRIX}, "y": {"": WORDS[:1]}, "s": {"": b"s"}}], r"y: a value of shape \[1\]"),
    "reshaped with its text": ([{"x": {"3 2 -:-": MATRIX.reshape(3, 2)}, **REST}], r"x: '3 2 -:-' is no part"),
    "retyped": ([{"x": {"": MATRIX.double()}, **REST}], "x: its type was float32 and is float64"),
    "numpy": ([{"x": {"": MATRIX.numpy()}, **REST}], "x: "),
    "list": ([{"x": {"": MATRIX.tolist()}, **REST}], "x: "),  # type: ignore[dict-item]
    "number": ([{"x": {"": MATRIX}, "y": {"": WORDS}, "s": {"": 1}}], "s: "),  # type: ignore[dict-item]
    "None": ([{"x": {"": None}, **REST}], "x: "),  # type: ignore[dict-item]
    "text for bytes": ([{"x": {"": MATRIX}, "y": {"": np.array(["a", "b"], dtype=object)}, "s": {"": b"s"}}], "y: "),
    "sparse": ([{"x": {"": MATRIX.to_sparse()}, **REST}], "x: "),
    "meta": ([{"x": {"": MATRIX.to("meta")}, **REST}], "x: "),
    "tensor for string": (
        [{"x": {"": MATRIX}, "y": {"": WORDS}, "s": {"": torch.tensor(1)}}],
        "s: its type was string",
    ),
    "no slice": ([{"x": {"first": MATRIX}, **REST}], "'first' is no slice"),
    "outside": ([{"x": {"2 3 1,2:-": MATRIX}, **REST}], "no part 1,2 lies in a dimension of 2"),
    "empty shard": ([{"x": {"": MATRIX}, **REST}, {}], "a shard holds nothing"),
    "shard of keys without parts": ([{"x": {"": MATRIX}, **REST}, {"x": {}}], "a shard holds nothing"),
    "no shards": (None, ""),  # type: ignore[dict-item]
    "keys alone": ([["x", "y", "s"]], ""),  # type: ignore[list-item]
    "no parts": ([{"x": MATRIX, **REST}], ""),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("case", list(INVALID))
def test_any_other_shards_are_refused_with_the_description_of_the_callback(case: str) -> None:
    """C296"""
    shards, complaint = INVALID[case]
    with pytest.raises(
        ShardingError, match=rf"^The sharding callback \(for a test\) made no valid shards: .*{complaint}"
    ):
        validate_shards(shards, VALUES, "for a test")


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([{"": torch.zeros(2, 0)}, {"2 0 0,2:-": torch.zeros(2, 0)}], id="twice in other words"),
        pytest.param([{"2 0 0,1:-": torch.zeros(1, 0)}], id="a part of it"),
    ],
)
def test_a_tensor_without_elements_is_there_once_and_whole(parts: list[dict[str, Value]]) -> None:
    """C291, C296"""
    with pytest.raises(ShardingError, match="x: parts of it are"):
        validate_shards([{"x": part} for part in parts], [shardable(torch.zeros(2, 0), "x")], "for a test")


def test_a_part_of_a_slice_is_checked_against_the_slice() -> None:
    """C288, C296"""
    given = [shardable(MATRIX, "x", "4 3 2,2:-")]
    validate_shards([{"x": {"4 3 2,1:-": MATRIX[:1], "4 3 3,1:-": MATRIX[1:]}}], given, "for a test")
    with pytest.raises(ShardingError, match="for a test"):
        validate_shards([{"x": {"4 3 0,2:-": MATRIX}}], given, "for a test")
    with pytest.raises(ShardingError, match="for a test"):
        validate_shards([{"x": {"": torch.zeros(4, 3)}}], given, "for a test")
