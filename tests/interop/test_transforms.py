"""Transforms move elements and lose none, so they go both ways bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trackckpt.interop import (
    AS_IS,
    CONV_1D,
    CONV_2D,
    CONV_3D,
    DEPTHWISE_2D,
    LOGITS_1X1,
    TRANSPOSED,
    WITHOUT_BACKGROUND,
    DenseAfterFlatten,
    Permuted,
    Sliced,
    Transform,
)

SIZES = st.integers(1, 5)
FORMATS = [torch.contiguous_format, torch.channels_last]


def shapes(rank: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[SIZES] * rank)


CASES: list[tuple[Transform, st.SearchStrategy[tuple[int, ...]]]] = [
    (AS_IS, shapes(3)),
    (TRANSPOSED, shapes(2)),
    (CONV_1D, shapes(3)),
    (CONV_2D, shapes(4)),
    (CONV_3D, shapes(5)),
    (Permuted((1, 2, 0)), shapes(3)),
    (DEPTHWISE_2D, shapes(4)),
    (LOGITS_1X1, shapes(2).map(lambda shape: (1, 1, *shape))),
    (DenseAfterFlatten(2, 3), shapes(2).map(lambda shape: (6 * shape[0], shape[1]))),
    (DenseAfterFlatten(2, 3).then(TRANSPOSED), shapes(2).map(lambda shape: (6 * shape[0], shape[1]))),
]


def bits(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Floats of arbitrary bits, NaN among them."""
    return torch.from_numpy(
        np.random.default_rng(seed).integers(-(2**31), 2**31, shape, np.int64).astype(np.int32)
    ).view(torch.float32)


def is_same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.shape == right.shape and torch.equal(
        left.contiguous().view(torch.int32), right.contiguous().view(torch.int32)
    )


@pytest.mark.parametrize(("transform", "stored_shapes"), CASES, ids=[transform.name for transform, _ in CASES])
@settings(deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_what_goes_to_torch_comes_back_bit_for_bit(
    transform: Transform, stored_shapes: st.SearchStrategy[tuple[int, ...]], data: st.DataObject, seed: int
) -> None:
    stored = bits(data.draw(stored_shapes), seed)
    value = transform.to_torch(stored).clone(memory_format=torch.contiguous_format)
    assert transform.torch_shape(stored.shape) == tuple(value.shape)
    assert is_same(transform.to_stored(value, stored.shape), stored)
    assert transform.is_two_way


@pytest.mark.parametrize(("transform", "stored_shapes"), CASES, ids=[transform.name for transform, _ in CASES])
@settings(deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32), memory_format=st.sampled_from(FORMATS))
def test_where_it_is_a_view_values_are_written_through_it(
    transform: Transform,
    stored_shapes: st.SearchStrategy[tuple[int, ...]],
    data: st.DataObject,
    seed: int,
    memory_format: torch.memory_format,
) -> None:
    stored = bits(data.draw(stored_shapes), seed)
    value = transform.to_torch(stored)
    if not transform.is_view:
        return
    live = torch.zeros(value.shape).to(memory_format=memory_format if value.dim() == 4 else torch.contiguous_format)
    transform.to_stored(live, stored.shape).copy_(stored)
    assert is_same(live, value)


def test_a_depthwise_kernel_keeps_the_multiples_of_a_channel_together() -> None:
    stored = torch.arange(12.0).reshape(1, 1, 4, 3)
    assert DEPTHWISE_2D.to_torch(stored).flatten().tolist() == list(range(12))


def test_the_background_class_is_the_first() -> None:
    both = LOGITS_1X1.then(WITHOUT_BACKGROUND)
    assert both.to_torch(torch.arange(6.0).reshape(1, 1, 2, 3)).tolist() == [[1, 4], [2, 5]]
    assert not both.is_two_way
    with pytest.raises(ValueError, match="no way back from without the background class"):
        both.to_stored(torch.zeros(2, 2), (1, 1, 2, 3))


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (TRANSPOSED, (3,)),
        (CONV_2D, (3, 3)),
        (DEPTHWISE_2D, (3, 3, 4)),
        (LOGITS_1X1, (3, 3, 4, 5)),
        (LOGITS_1X1, (4, 5)),
        (DenseAfterFlatten(2, 3), (7, 2)),
        (DenseAfterFlatten(2, 3), (6,)),
        (Sliced(0, 3, 5), (4,)),
        (WITHOUT_BACKGROUND, ()),
    ],
    ids=str,
)
def test_a_shape_that_a_transform_is_not_for_has_no_shape_in_torch(
    transform: Transform, shape: tuple[int, ...]
) -> None:
    if transform is LOGITS_1X1 and shape == (4, 5):
        assert transform.torch_shape(shape) == (5, 4)
    else:
        assert transform.torch_shape(shape) is None


def test_dimensions_are_named_once_each() -> None:
    with pytest.raises(ValueError, match=r"each dimension from 0 to 1 once, not \(0, 0\)"):
        Permuted((0, 0))
