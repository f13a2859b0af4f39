"""What the rules say of modules; Keras itself is asked in test_layers_against_keras."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torch_trackckpt.interop.keras import (
    KerasArray,
    KerasBatchNorm1d,
    KerasBatchNorm2d,
    KerasNormalization,
    LayerForm,
    Piece,
    dense_after_flatten,
    register_keras_layer,
)
from torch_trackckpt.interop.keras.bound import BoundVariable
from torch_trackckpt.interop.keras.composition import form_of, parts_of_saved
from torch_trackckpt.interop.keras.edges import edges_of
from torch_trackckpt.interop.keras.layers.sonnet import sonnet_form
from torch_trackckpt.interop.keras.registry import StoredShapes, parts_of, rule_for

SIZE = st.integers(1, 4)


def linear_with_heads(inputs: int, heads: int, width: int, more: int) -> tuple[nn.Module, StoredShapes]:
    return nn.Linear(inputs, heads * width), {"kernel": (inputs, heads, width), "bias": (heads, width)}


def linear_of_heads(outputs: int, heads: int, width: int, more: int) -> tuple[nn.Module, StoredShapes]:
    return nn.Linear(heads * width, outputs), {"kernel": (heads, width, outputs), "bias": (outputs,)}


def depthwise(channels: int, multiplier: int, height: int, width: int) -> tuple[nn.Module, StoredShapes]:
    module = nn.Conv2d(channels, channels * multiplier, (height, width), groups=channels)
    return module, {"kernel": (height, width, channels, multiplier), "bias": (channels * multiplier,)}


def channels_first_norm(channels: int, height: int, width: int, more: int) -> tuple[nn.Module, StoredShapes]:
    shape = (height, width, channels)
    return nn.LayerNorm((channels, height, width)), {"gamma": shape, "beta": shape}


def stacked(inputs: int, size: int, layers: int, more: int) -> tuple[nn.Module, StoredShapes]:
    return nn.GRU(inputs, size, layers), {"cell/cells/0/kernel": (inputs, 3 * size), "cell/cells/0/bias": (2, 3 * size)}


MAKERS: Sequence[Callable[[int, int, int, int], tuple[nn.Module, StoredShapes | None]]] = (
    lambda a, b, c, d: (nn.Linear(a, b), None),
    linear_with_heads,
    linear_of_heads,
    lambda a, b, c, d: (nn.Embedding(a, b), None),
    lambda a, b, c, d: (nn.Conv1d(a, b, c), None),
    lambda a, b, c, d: (nn.Conv2d(a, b, (c, d)), None),
    lambda a, b, c, d: (nn.Conv2d(2 * a, 2 * b, (c, d), groups=2), None),
    lambda a, b, c, d: (nn.Conv3d(a, b, (c, d, 2)), None),
    depthwise,
    lambda a, b, c, d: (nn.ConvTranspose1d(a, b, c), None),
    lambda a, b, c, d: (nn.ConvTranspose2d(a, b, (c, d)), None),
    lambda a, b, c, d: (nn.ConvTranspose3d(a, b, (c, d, 2)), None),
    lambda a, b, c, d: (nn.BatchNorm2d(a), None),
    channels_first_norm,
    lambda a, b, c, d: (nn.GroupNorm(a, a * b), None),
    lambda a, b, c, d: (nn.RMSNorm((a, b)), None),
    lambda a, b, c, d: (nn.PReLU(a), {"alpha": (1, 1, a)}),
    lambda a, b, c, d: (nn.LSTM(a, b, bidirectional=True), None),
    lambda a, b, c, d: (nn.GRU(a, b, bidirectional=True), None),
    lambda a, b, c, d: (nn.RNN(a, b), None),
    stacked,
    lambda a, b, c, d: (nn.GRUCell(a, b), None),
    lambda a, b, c, d: (nn.MultiheadAttention(a * b, a), None),
    lambda a, b, c, d: (nn.MultiheadAttention(a * b, a, kdim=c, vdim=d), None),
    lambda a, b, c, d: (KerasNormalization([a]), None),
)


def bits(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Any 32 bits at all, among them NaNs of all kinds."""
    return torch.randint(-(2**31), 2**31, tuple(shape), generator=generator, dtype=torch.int32)


@settings(deadline=None, derandomize=True, database=None)
@given(maker=st.sampled_from(MAKERS), sizes=st.tuples(SIZE, SIZE, SIZE, SIZE), seed=st.integers(0, 2**32))
def test_every_layout_comes_back_bit_for_bit_from_either_side(
    maker: Callable[[int, int, int, int], tuple[nn.Module, StoredShapes | None]],
    sizes: tuple[int, int, int, int],
    seed: int,
) -> None:
    module, stored = maker(*sizes)
    generator = torch.Generator().manual_seed(seed)

    form = form_of(module, stored)

    assert form is not None
    assert form.refused is None
    for name, array in form.variables.items():
        variable = BoundVariable(module, "", array, form.keras, name)
        pieces = [bits(piece.of(variable.tensor(piece.name)).shape, generator) for piece in array.pieces]
        keras = array.transform.to_keras(pieces)
        assert keras.shape == array.shape
        back = array.transform.to_torch(keras)
        assert [piece.tolist() for piece in back] == [piece.tolist() for piece in pieces]
        other = bits(array.shape, generator)
        assert torch.equal(array.transform.to_keras(array.transform.to_torch(other)), other)


@settings(deadline=None, derandomize=True, database=None)
@given(
    feature_map=st.lists(SIZE, min_size=2, max_size=4), outputs=SIZE, seed=st.integers(0, 2**32), sonnet=st.booleans()
)
def test_a_dense_layer_behind_flatten_computes_the_same_of_a_map_with_channels_first(
    feature_map: list[int], outputs: int, seed: int, sonnet: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(-9, 9, (2, *feature_map), generator=generator, dtype=torch.float64)
    flat = image.flatten(1)
    kernel = torch.randint(-9, 9, (flat.shape[1], outputs), generator=generator, dtype=torch.float64)
    module = nn.Linear(flat.shape[1], outputs, bias=False, dtype=torch.float64)
    name = "w" if sonnet else "kernel"

    form = form_of(module, {name: tuple(kernel.shape)}, dense_after_flatten(feature_map))

    assert form is not None
    BoundVariable(module, "", form.variables[name], form.keras, name).assign(kernel)
    assert torch.equal(module(image.movedim(-1, 1).flatten(1)), flat @ kernel)


def test_a_feature_map_of_another_size_is_an_error_that_names_both_sizes() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3, 4\] has 24 elements, but the Linear behind it has 25 inputs"):
        form_of(nn.Linear(25, 2), None, dense_after_flatten((2, 3, 4)))


@pytest.mark.parametrize(
    "module", [nn.Linear(3, 4), nn.Conv2d(3, 4, 2), nn.ConvTranspose2d(3, 4, 2), nn.Embedding(3, 4), nn.LSTM(3, 4)]
)
def test_most_layouts_are_views_of_the_modules_own_memory(module: nn.Module) -> None:
    form = form_of(module)

    assert form is not None
    for array in form.variables.values():
        tensor = module.get_parameter(array.pieces[0].name).detach()
        assert array.transform.to_keras([tensor]).data_ptr() == tensor.data_ptr()


def test_rows_of_a_fused_projection_are_views_as_well() -> None:
    module = nn.MultiheadAttention(8, 2)

    array = form_of(module).variables["value_dense/kernel"]  # type: ignore[union-attr]

    weight = module.in_proj_weight.detach()
    assert array.transform.to_keras([array.pieces[0].of(weight)]).data_ptr() == weight[16:].data_ptr()


def test_a_module_of_several_layers_is_as_many_layers_of_keras() -> None:
    module = nn.LSTM(3, 4, 2, bidirectional=True)

    parts = parts_of(module)

    assert [part.name for part in parts] == ["l0", "l1"]
    form = parts[1].rule(module, None)
    assert form is not None
    assert form.keras == "Bidirectional(LSTM)"
    assert form.variables["backward_layer/cell/kernel"].pieces == (Piece("weight_ih_l1_reverse"),)
    assert form.variables["backward_layer/cell/kernel"].shape == (8, 16)
    assert form_of(module) is None
    assert parts_of(nn.LSTM(3, 4)) == ()
    assert parts_of(nn.Linear(3, 4)) == ()


def test_a_module_that_is_no_layer_has_no_form() -> None:
    assert rule_for(nn.ReLU()) is None
    assert form_of(nn.ReLU(), {"kernel": (3, 4)}) is None


def test_variables_that_keras_left_out_have_the_value_that_takes_their_place() -> None:
    form = form_of(nn.BatchNorm1d(3), {"moving_mean": (3,), "moving_variance": (3,)})

    assert form is not None
    assert {name: array.absent for name, array in form.variables.items()} == {
        "gamma": 1.0,
        "beta": 0.0,
        "moving_mean": None,
        "moving_variance": None,
    }
    assert form.left_alone == ("num_batches_tracked",)


def test_a_subclass_follows_the_rule_of_torch_until_it_has_one_of_its_own() -> None:
    class Tall(nn.Linear):
        pass

    assert form_of(Tall(3, 4)).keras == "Dense"  # type: ignore[union-attr]

    def tall(module: Tall, stored: StoredShapes | None) -> LayerForm:
        return LayerForm("Tall", {"w": KerasArray((Piece("weight"),), tuple(module.weight.shape))})

    register_keras_layer(Tall, tall)

    assert form_of(Tall(3, 4), {"w": (4, 3)}).keras == "Tall"  # type: ignore[union-attr]
    assert form_of(nn.Linear(3, 4)).keras == "Dense"  # type: ignore[union-attr]


def test_shapes_tell_a_depthwise_convolution_from_one_with_groups() -> None:
    module = nn.Conv2d(4, 8, 3, groups=4)

    def keras(stored: StoredShapes | None) -> str:
        form = form_of(module, stored)
        assert form is not None
        return form.keras

    assert keras(None) == "DepthwiseConv2D"
    assert keras({"kernel": (3, 3, 4, 2)}) == "DepthwiseConv2D"
    assert keras({"depthwise_kernel": (3, 3, 4, 2)}) == "DepthwiseConv2D"
    assert keras({"kernel": (3, 3, 1, 8)}) == "Conv2D"


def test_axes_of_one_size_are_reported_because_their_order_cannot_be_seen() -> None:
    same = form_of(nn.LayerNorm((4, 4)), {"gamma": (4, 4), "beta": (4, 4)})
    other = form_of(nn.LayerNorm((3, 4)), {"gamma": (4, 3), "beta": (4, 3)})

    assert same is not None
    assert "all of one size" in same.inexact["weight"]
    assert other is not None
    assert other.inexact == {}


def test_what_a_checkpoint_does_not_tell_of_a_layer_is_reported() -> None:
    gru = form_of(nn.GRU(3, 4, bias=False), {"cell/kernel": (3, 12), "cell/recurrent_kernel": (4, 12)})
    norm = form_of(nn.LayerNorm(3), {"gamma": (3,)})
    spectral = form_of(nn.Conv1d(3, 4, 2), {"kernel": (2, 3, 4), "layer/bias": (4,), "vector_u": (1, 4)})

    assert gru is not None
    assert "reset_after=True" in gru.inexact[""]
    assert norm is not None
    assert "rms_scaling=True" in norm.inexact["weight"]
    assert spectral is not None
    assert "exact in inference" in spectral.inexact["weight"]
    assert list(spectral.variables) == ["kernel", "layer/bias"]
    assert spectral.foreign == {"vector_u": None}


def test_a_batch_norm_is_reported_unless_it_is_trained_on_as_kerass() -> None:
    assert "n / (n - 1)" in form_of(nn.SyncBatchNorm(3)).inexact["running_var"]  # type: ignore[union-attr]
    assert form_of(KerasBatchNorm2d(3)).inexact == {}  # type: ignore[union-attr]


def test_a_wrapped_layer_of_several_has_parts_below_its_wrapper() -> None:
    parts = parts_of_saved(["layer/depthwise_kernel", "layer/pointwise_kernel"])

    assert parts == {
        "depthwise": {"kernel": "layer/depthwise_kernel"},
        "pointwise": {"kernel": "layer/pointwise_kernel"},
    }
    assert parts_of_saved(["kernel", "bias"]) == {}
    assert list(parts_of_saved([f"{part}_dense/kernel" for part in ("query", "key", "value", "output")])) == [
        "query",
        "key",
        "value",
        "output",
    ]


def test_each_generation_has_its_own_spelling() -> None:
    assert edges_of("keras3", "Dense", "kernel") == ("_kernel",)
    assert edges_of("keras3", "DepthwiseConv2D", "kernel") == ("kernel",)
    assert edges_of("keras3", "LSTM", "cell/kernel") == ("cell", "kernel")
    assert edges_of("tf_keras", "Dense", "kernel") == ("kernel",)
    assert edges_of("tf_keras", "DepthwiseConv2D", "kernel") == ("depthwise_kernel",)
    assert edges_of("sonnet", "BatchNorm", "moving_mean/hidden") == ("moving_mean", "_hidden")


def test_sonnets_average_goes_on_from_what_torch_has() -> None:
    module = nn.BatchNorm1d(3)
    module.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))  # type: ignore[union-attr]
    form = sonnet_form(module, rule_for(module), None)  # type: ignore[arg-type]
    assert form is not None
    made = {name: make(module) for name, make in form.foreign.items() if make is not None}
    hidden, counter, decay = made["moving_mean/hidden"], made["moving_mean/counter"], 0.999

    # As Sonnet computes its next average.
    value = torch.tensor([[2.0, 2.0, 2.0]])
    hidden = hidden - (hidden - value) * (1 - decay)
    average = hidden / (1 - decay ** (int(counter) + 1))

    torch.testing.assert_close(average, torch.tensor([[1.001, 2.0, 2.999]]))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_batch_norm_of_keras_differs_from_torchs_in_the_running_variance_alone(momentum: float | None) -> None:
    ours, theirs = KerasBatchNorm1d(3, momentum=momentum), nn.BatchNorm1d(3, momentum=momentum)
    generator = torch.Generator().manual_seed(0)

    for _ in range(3):
        batch = torch.randn(5, 3, generator=generator)
        torch.testing.assert_close(ours(batch), theirs(batch))

    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    assert torch.equal(ours.num_batches_tracked, theirs.num_batches_tracked)  # type: ignore[arg-type]
    start = 0.0 if momentum is None else 0.9**3
    torch.testing.assert_close(ours.running_var - start, (theirs.running_var - start) * 4 / 5)  # type: ignore[operator]
    assert torch.equal(ours.eval()(batch), nn.functional.batch_norm(batch, ours.running_mean, ours.running_var))


def test_a_batch_norm_of_keras_is_differentiated_as_torchs() -> None:
    batch = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    gradients = []
    for module in (KerasBatchNorm1d(3), nn.BatchNorm1d(3)):
        given = batch.clone().requires_grad_()
        (module(given) ** 3).sum().backward()
        gradients.append(given.grad)

    torch.testing.assert_close(*gradients)
