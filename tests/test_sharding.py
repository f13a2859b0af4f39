"""Which part of which value a policy puts into which data file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trackckpt.bundle.dtypes import STRING, data_type_of_torch
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.save.validate import validate_shards
from torch_trackckpt.sharding import (
    MaxShardSizePolicy,
    ShardableTensor,
    ShardByTaskPolicy,
    ShardingCallback,
    Shards,
)
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY, Value

CPU = torch.device("cpu")


def shardable(value: Value, key: str = "x", spec: str = "") -> ShardableTensor:
    dtype = data_type_of_torch(value.dtype) if isinstance(value, torch.Tensor) else STRING
    shape = () if isinstance(value, bytes) else tuple(value.shape)
    return ShardableTensor(value, dtype, shape, CPU, key, spec, key)


def strings(*elements: bytes) -> np.ndarray[Any, np.dtype[np.object_]]:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def zeros(*shape: int) -> torch.Tensor:
    """A tensor of one byte for each element."""
    return torch.zeros(shape, dtype=torch.uint8)


def texts(shards: Shards) -> list[list[str]]:
    """For each shard, the key and the text of every part."""
    return [[f"{key} {spec}".strip() for key, parts in shard.items() for spec in parts] for shard in shards]


def cut(limit: int, *values: Value | ShardableTensor) -> list[list[str]]:
    """The shards that a limit gives; values without a key are called a, b and so on."""
    given = [v if isinstance(v, ShardableTensor) else shardable(v, chr(97 + i)) for i, v in enumerate(values)]
    return texts(MaxShardSizePolicy(limit)(given))


# ------------------------------------------------------------------------------------------- one data file


def test_by_task_everything_goes_whole_into_one_shard_in_its_order() -> None:
    """C281"""
    values = [shardable(zeros(3), "b"), shardable(b"text", "a"), shardable(zeros(0, 2), "c")]
    (shard,) = ShardByTaskPolicy()(values)
    assert list(shard) == ["b", "a", "c"]
    assert all(shard[value.checkpoint_key] == {"": value.tensor} for value in values)


# ---------------------------------------------------------------------------------------------- the boxes


@pytest.mark.parametrize(
    ("limit", "values", "expected"),
    [
        pytest.param(100, [zeros(5), zeros(2, 3)], [["a 5 0,5", "b 2 3 0,2:0,3"]], id="all fit"),
        pytest.param(5, [zeros(5)], [["a 5 0,5"]], id="fits exactly"),
        pytest.param(4, [zeros(10)], [["a 10 0,4"], ["a 10 4,3", "a 10 7,1"], ["a 10 8,2"]], id="even parts"),
        pytest.param(8, [zeros(6), zeros(6)], [["a 6 0,6", "b 6 0,2"], ["b 6 2,4"]], id="room is filled first"),
        pytest.param(6, [zeros(6), zeros(2)], [["a 6 0,6"], ["b 2 0,2"]], id="no room is left"),
        pytest.param(2, [zeros(4), zeros(1)], [["a 4 0,2"], ["a 4 2,2"], ["b 1 0,1"]], id="cuts end with a shard"),
        pytest.param(9, [zeros(3), torch.tensor(0)], [["a 3 0,3"], ["b"]], id="a scalar is never cut"),
    ],
)
def test_vectors_fill_the_open_shard_and_are_cut_into_the_fewest_parts(
    limit: int, values: Sequence[Value], expected: list[list[str]]
) -> None:
    """C282"""
    assert cut(limit, *values) == expected


@pytest.mark.parametrize(
    ("limit", "values", "expected"),
    [
        pytest.param(12, [zeros(4, 6)], [["a 4 6 0,2:0,6"], ["a 4 6 2,2:0,6"]], id="rows"),
        pytest.param(8, [zeros(2, 8)], [["a 2 8 0,1:0,8"], ["a 2 8 1,1:0,8"]], id="of equal axes the first"),
        pytest.param(
            4, [zeros(2, 6)], [["a 2 6 0,2:0,2"], ["a 2 6 0,1:2,4"], ["a 2 6 1,1:2,4"]], id="columns, then rows"
        ),
        pytest.param(6, [zeros(3, 4)], [["a 3 4 0,3:0,2"], ["a 3 4 0,3:2,2"]], id="fewest parts"),
        pytest.param(
            9,
            [zeros(4), zeros(3, 3)],
            [["a 4 0,4", "b 3 3 0,1:0,3", "b 3 3 1,2:0,1"], ["b 3 3 1,2:1,2"]],
            id="the end of one and the start of the next",
        ),
        pytest.param(
            10,
            [zeros(4), zeros(5, 2, 2)],
            [["a 4 0,4", "b 5 2 2 0,1:0,2:0,2"], ["b 5 2 2 1,2:0,2:0,2"], ["b 5 2 2 3,2:0,2:0,2"]],
            id="three axes",
        ),
    ],
)
def test_tensors_of_more_axes_are_cut_along_the_axis_of_the_fewest_parts(
    limit: int, values: Sequence[Value], expected: list[list[str]]
) -> None:
    """C283"""
    assert cut(limit, *values) == expected


@pytest.mark.parametrize(
    ("limit", "lengths"),
    [(8, [2, 2, 1]), (10, [2, 2, 1]), (11, [2, 2, 1]), (18, [3, 1, 1]), (19, [3, 1, 1]), (4, [1] * 5)],
)
def test_a_limit_between_two_elements_counts_whole_elements(limit: int, lengths: list[int]) -> None:
    """C284"""
    shards = MaxShardSizePolicy(limit)([shardable(torch.arange(5, dtype=torch.int32))])
    assert [value.tolist() for shard in shards for value in shard["x"].values()] == [
        list(range(sum(lengths[:i]), sum(lengths[: i + 1]))) for i in range(len(lengths))
    ]


def test_a_limit_may_be_written_as_1e9() -> None:
    values = [shardable(torch.arange(100), "a")]
    assert texts(MaxShardSizePolicy(1e2)(values)) == texts(MaxShardSizePolicy(100)(values))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [torch.zeros((), dtype=torch.float64), b"12345"], ids=["tensor", "string"])
def test_a_scalar_above_the_limit_gets_a_shard_of_its_own_behind_all_others_and_a_warning(
    caplog: pytest.LogCaptureFixture, value: Value
) -> None:
    """C285"""
    with caplog.at_level(logging.WARNING, "torch_trackckpt"):
        assert cut(4, zeros(2), value, zeros(2), value) == [["a 2 0,2", "c 2 0,2"], ["b"], ["d"]]
    assert [record.getMessage()[:1] for record in caplog.records] == ["b", "d"]
    assert all("larger than a shard of 4 bytes" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("limit", "elements", "expected"),
    [
        pytest.param(10, [b"ab"] * 5, [["a 5 0,5"]], id="fit"),
        pytest.param(5, [b"ab"] * 5, [["a 5 0,2"], ["a 5 2,2"], ["a 5 4,1"]], id="cut"),
        pytest.param(6, [b"abc", b"", b"d"], [["a 3 0,3"]], id="their sum fits"),
        pytest.param(3, [b"abc", b"", b"d"], [["a 3 0,1"], ["a 3 1,1"], ["a 3 2,1"]], id="each as the longest"),
        pytest.param(1, [b""] * 3, [["a 3 0,3"]], id="empty strings"),
    ],
)
def test_strings_are_cut_between_elements(limit: int, elements: list[bytes], expected: list[list[str]]) -> None:
    """C286: strings fit if their sum does; if it does not, each counts as much as the longest."""
    assert cut(limit, strings(*elements)) == expected


def test_strings_of_two_axes_are_cut_as_well() -> None:
    """C286"""
    assert cut(4, strings(*[b"ab"] * 6).reshape(3, 2)) == [["a 3 2 0,1:0,2"], ["a 3 2 1,1:0,2"], ["a 3 2 2,1:0,2"]]


@pytest.mark.parametrize("room", [0, 1])
def test_the_object_graph_joins_the_open_shard_whatever_its_size(room: int, caplog: pytest.LogCaptureFixture) -> None:
    """C287"""
    graph = shardable(b"x" * 1000, OBJECT_GRAPH_KEY)
    after = shardable(zeros(1), "b")
    assert cut(3 + room, zeros(3), graph, after) == (
        [["a 3 0,3", OBJECT_GRAPH_KEY, "b 1 0,1"]] if room else [["a 3 0,3", OBJECT_GRAPH_KEY], ["b 1 0,1"]]
    )
    assert caplog.records == []


def test_the_object_graph_alone_is_one_shard() -> None:
    """C287"""
    assert cut(1, shardable(b"x" * 1000, OBJECT_GRAPH_KEY)) == [[OBJECT_GRAPH_KEY]]


@pytest.mark.parametrize(
    ("limit", "shape", "spec", "expected"),
    [
        (100, (2, 6), "4 6 2,2:-", [["x 4 6 2,2:0,6"]]),
        (6, (2, 6), "4 6 2,2:0,6", [["x 4 6 2,1:0,6"], ["x 4 6 3,1:0,6"]]),
        (4, (2, 4), "5 9 3,2:5,4", [["x 5 9 3,1:5,4"], ["x 5 9 4,1:5,4"]]),
        (2, (4,), "10 6,4", [["x 10 6,2"], ["x 10 8,2"]]),
        (100, (4, 6), "4 6 -:-", [["x 4 6 0,4:0,6"]]),
    ],
)
def test_a_slice_is_cut_further_with_offsets_in_the_full_tensor(
    limit: int, shape: tuple[int, ...], spec: str, expected: list[list[str]]
) -> None:
    """C288"""
    tensor = torch.arange(np.prod(shape), dtype=torch.uint8).reshape(shape)
    shards = MaxShardSizePolicy(limit)([shardable(tensor, "x", spec)])
    assert texts(shards) == expected
    outer = TensorSlice.parse(spec)
    for text, value in [item for shard in shards for item in shard["x"].items()]:
        part = TensorSlice.parse(text)
        inner = tuple(slice(a - b, a - b + n) for a, b, n in zip(part.offset, outer.offset, part.shape, strict=True))
        assert torch.equal(value, tensor[inner])


@pytest.mark.parametrize(
    ("limit", "value", "num_shards"),
    [
        (10, torch.zeros(4, 4), 8),
        (4, torch.zeros(3, 5), 15),
        (4, torch.zeros(2, dtype=torch.float64), 2),
        (1, torch.zeros(2, 2, 2), 8),
        (3, strings(b"long", b"long"), 2),
    ],
)
def test_a_tensor_that_no_single_cut_makes_small_enough_is_cut_along_more_axes(
    limit: int, value: Value, num_shards: int
) -> None:
    """C289"""
    assert len(cut(limit, value)) == num_shards


def test_an_element_above_the_limit_does_not_close_the_open_shard(caplog: pytest.LogCaptureFixture) -> None:
    """C289"""
    with caplog.at_level(logging.WARNING, "torch_trackckpt"):
        assert cut(4, zeros(2), torch.zeros(1, dtype=torch.int64), zeros(2)) in (
            [["a 2 0,2", "c 2 0,2"], ["b 1 0,1"]],
            [["a 2 0,2"], ["c 2 0,2"], ["b 1 0,1"]],
        )
    assert len(caplog.records) == 1


@pytest.mark.parametrize("limit", [0, -1, -(1 << 40)])
def test_a_limit_that_is_not_positive_is_refused(limit: int) -> None:
    """C290"""
    with pytest.raises(ValueError, match=f"max_shard_size must be a positive number of bytes, not {limit}"):
        MaxShardSizePolicy(limit)


def test_tensors_without_elements_keep_their_place() -> None:
    """C291"""
    values = [zeros(4), zeros(0), zeros(3, 0), strings(), zeros(1)]
    assert cut(4, *values) == [["a 4 0,4", "b", "c", "d"], ["e 1 0,1"]]


@pytest.mark.parametrize("policy", [ShardByTaskPolicy(), MaxShardSizePolicy(1)])
def test_no_values_leave_nothing_to_store(policy: ShardingCallback) -> None:
    assert [shard for shard in policy([]) if shard] == []


# -------------------------------------------------------------------------------------------- any tensors

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
TENSORS = st.builds(
    lambda dtype, shape: torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype),
    st.sampled_from([torch.uint8, torch.int16, torch.float32, torch.float64, torch.complex128]),
    SHAPES,
)
STRINGS = SHAPES.flatmap(
    lambda shape: st.lists(
        st.binary(max_size=20), min_size=torch.Size(shape).numel(), max_size=torch.Size(shape).numel()
    ).map(lambda elements: strings(*elements).reshape(shape))
)


def nbytes_of(value: Value) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return len(value) if isinstance(value, bytes) else sum(map(len, value.ravel()))


def assert_tiled(value: Value, parts: list[tuple[str, Value]]) -> None:
    """The parts hold every element of the value, in its place, once."""
    if isinstance(value, bytes) or value.shape == ():
        assert parts == [("", value)]
        return
    covered = np.zeros(tuple(value.shape), dtype=int)
    for spec, part in parts:
        box = TensorSlice.parse(spec) if spec else TensorSlice.whole(tuple(value.shape))
        place = tuple(slice(start, start + length) for start, length in zip(box.offset, box.shape, strict=True))
        covered[place] += 1
        assert type(part) is type(value)
        assert part.dtype == value.dtype
        assert part.shape == value[place].shape
        assert part.tolist() == value[place].tolist()
    assert (covered == 1).all()
    assert len(parts) >= 1


@given(
    values=st.lists(TENSORS | STRINGS | st.binary(max_size=40), max_size=6),
    limit=st.integers(1, 100) | st.integers(1, 3000),
)
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_the_shards_tile_any_values_and_none_is_above_the_limit(values: list[Value], limit: int) -> None:
    """C282, C283, C285, C286, C289, C291"""
    shardables = [shardable(value, str(number)) for number, value in enumerate(values)]
    shards = MaxShardSizePolicy(limit)(shardables)
    for value in shardables:
        parts = [item for shard in shards for item in shard.get(value.checkpoint_key, {}).items()]
        assert_tiled(value.tensor, parts)
    for shard in shards:
        stored = [value for parts in shard.values() for value in parts.values()]
        assert stored
        is_single = len(stored) == 1 and (isinstance(stored[0], bytes) or np.prod(stored[0].shape) == 1)
        assert is_single or sum(map(nbytes_of, stored)) <= limit
    validate_shards(shards, shardables, "the policy itself")


@given(value=TENSORS.filter(lambda t: t.dim() > 0 and t.numel()), limit=st.integers(1, 300), data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_any_slice_is_cut_into_slices_that_tile_it(value: torch.Tensor, limit: int, data: st.DataObject) -> None:
    """C288"""
    before = [data.draw(st.integers(0, 3)) for _ in value.shape]
    full = tuple(b + n + data.draw(st.integers(0, 3)) for b, n in zip(before, value.shape, strict=True))
    outer = TensorSlice.box(full, tuple(before), tuple(value.shape))
    shards = MaxShardSizePolicy(limit)([shardable(value, "x", str(outer))])
    whole = torch.full(full, -1, dtype=torch.complex128)
    num_elements = 0
    for spec, part in [item for shard in shards for item in shard["x"].items()]:
        box = TensorSlice.parse(spec)
        assert box.full_shape == full
        whole[tuple(slice(a, a + n) for a, n in zip(box.offset, box.shape, strict=True))] = part.to(whole.dtype)
        num_elements += part.numel()
    assert num_elements == value.numel()
    place = tuple(slice(b, b + n) for b, n in zip(before, value.shape, strict=True))
    assert torch.equal(whole[place], value.to(whole.dtype))


# ------------------------------------------------------------------------------------------- equal policies


class Named(ShardingCallback):
    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def description(self) -> str:
        return self.name

    def __call__(self, shardable_tensors: Sequence[ShardableTensor]) -> Shards:
        return ShardByTaskPolicy()(shardable_tensors)


class NamedToo(Named):
    pass


def test_policies_are_equal_if_their_class_and_parameters_are() -> None:
    """C299"""
    makers: list[Callable[[], ShardingCallback]] = [
        ShardByTaskPolicy,
        lambda: MaxShardSizePolicy(10),
        lambda: MaxShardSizePolicy(11),
        lambda: Named("a"),
        lambda: Named("b"),
        lambda: NamedToo("a"),
    ]
    for i, first in enumerate(makers):
        for j, second in enumerate(makers):
            assert (first() == second()) is (i == j)
            assert (hash(first()) == hash(second())) is (i == j)
    assert MaxShardSizePolicy(1) != 1


def test_a_policy_that_keeps_a_list_can_be_hashed() -> None:
    """C299"""
    policies = []
    for name in ("a", "a", "b"):
        policies.append(Named(name))
        policies[-1].prefixes = [name]  # type: ignore[attr-defined]
    assert hash(policies[0]) == hash(policies[1])
    assert policies[0] == policies[1] != policies[2]


def test_a_callback_without_a_description_or_a_call_cannot_be_made() -> None:
    class Half(ShardingCallback):
        @property
        def description(self) -> str:
            return "half"

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]
