"""Tensors as nodes: whatever their memory is like, the values are exact and the live layout stays."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import paths, thing
from torch import nn

from torch_trackckpt import Checkpoint, CheckpointOptions
from torch_trackckpt.errors import MismatchError, UnsupportedValueError

VALUES = torch.arange(24.0).reshape(2, 3, 2, 2) - 7


class Tagged(torch.Tensor):
    """A subclass that holds its values itself."""


def windows() -> torch.Tensor:
    """Five elements of two rows that overlap."""
    return torch.zeros(5).as_strided((2, 3), (2, 1))


LAYOUTS: dict[str, Callable[[], torch.Tensor]] = {
    "contiguous": lambda: torch.zeros(2, 3, 2, 2),
    "transposed": lambda: torch.zeros(2, 2, 3, 2).permute(0, 2, 1, 3),
    "channels_last": lambda: torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last),
    "every other element": lambda: torch.zeros(4, 3, 2, 4)[::2, :, :, ::2],
    "with an offset": lambda: torch.zeros(30)[6:].view(2, 3, 2, 2),
    "a negative view": lambda: torch.zeros(2, 3, 2, 2, dtype=torch.complex64).conj().imag,
    "parameter": lambda: nn.Parameter(torch.zeros(2, 3, 2, 2)),
    "requires_grad, strided": lambda: torch.zeros(4, 3, 2, 2)[::2].requires_grad_(),
    "result of a computation": lambda: torch.zeros(2, 3, 2, 2, requires_grad=True) * 2,
    "a subclass": lambda: torch.zeros(2, 3, 2, 2).as_subclass(Tagged),
    "shared between processes": lambda: torch.zeros(2, 3, 2, 2).share_memory_(),
}


@pytest.mark.parametrize("live", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("saved", LAYOUTS.values(), ids=LAYOUTS)
def test_values_are_exact_and_the_live_layout_stays(
    saved: Callable[[], torch.Tensor], live: Callable[[], torch.Tensor], prefix: str
) -> None:
    source, target = saved(), live()
    with torch.no_grad():
        source.copy_(VALUES)
    before = (id(target), target.data_ptr(), target.stride(), target.requires_grad, type(target))
    Checkpoint(x=source).write(prefix)
    Checkpoint(x=target).read(prefix).assert_consumed()

    assert torch.equal(target.detach(), VALUES)
    assert before == (id(target), target.data_ptr(), target.stride(), target.requires_grad, type(target))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_pinned_tensor_stays_pinned(prefix: str) -> None:
    Checkpoint(x=VALUES.pin_memory()).write(prefix)
    live = torch.zeros(2, 3, 2, 2).pin_memory()
    Checkpoint(x=live).read(prefix).assert_consumed()
    assert live.is_pinned()
    assert torch.equal(live, VALUES)


# ------------------------------------------------------------------------------------------- shared memory


def test_a_tensor_that_two_objects_have_is_written_once(prefix: str) -> None:
    shared = nn.Parameter(torch.rand(3))
    net = nn.Module()
    net.weight = shared
    Checkpoint(net=net, other=thing(value=shared), third=[shared]).write(prefix)
    assert paths(prefix) == ["net/weight"]


def test_two_views_of_one_storage_stay_views_of_one_storage(prefix: str) -> None:
    source = torch.arange(10.0)
    Checkpoint(whole=source, part=source[2:5], turned=source.view(2, 5).t()).write(prefix)
    live = torch.zeros(10)
    views = {"whole": live, "part": live[2:5], "turned": live.view(2, 5).t()}
    Checkpoint(**views).read(prefix).assert_consumed()

    assert torch.equal(live, source)
    assert len({view.untyped_storage().data_ptr() for view in views.values()}) == 1
    live[2] = 77
    assert views["part"][0] == views["turned"][2, 0] == 77


def test_views_of_one_storage_are_restored_into_tensors_of_their_own(prefix: str) -> None:
    source = torch.arange(10.0)
    Checkpoint(whole=source, part=source[2:5]).write(prefix)
    whole, part = torch.zeros(10), torch.zeros(3)
    Checkpoint(whole=whole, part=part).read(prefix).assert_consumed()
    assert torch.equal(whole, source)
    assert torch.equal(part, source[2:5])


# --------------------------------------------------------------------------------------------- expanded


EXPANDED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "first dimension": lambda base: base[:1].expand(4, 3),
    "second dimension": lambda base: base[:, :1].expand(4, 3),
    "scalar": lambda base: base[0, 0].expand(4, 3),
}


@pytest.mark.parametrize("expand", EXPANDED.values(), ids=EXPANDED)
@pytest.mark.parametrize("verify", ["before", "during"])
def test_an_expanded_tensor_takes_values_that_agree_where_it_shares_memory(
    expand: Callable[[torch.Tensor], torch.Tensor], verify: Any, prefix: str
) -> None:
    source = expand(torch.rand(4, 3))
    Checkpoint(x=source).write(prefix)
    live = expand(torch.zeros(4, 3))
    strides = live.stride()
    Checkpoint(x=live).read(prefix, CheckpointOptions(verify=verify)).assert_consumed()
    assert torch.equal(live, source)
    assert live.stride() == strides

    Checkpoint(x=(dense := torch.zeros(4, 3))).read(prefix).assert_consumed()
    assert torch.equal(dense, source)


def test_nan_agrees_with_itself(prefix: str) -> None:
    Checkpoint(x=torch.full((3,), torch.nan)).write(prefix)
    live = torch.zeros(1).expand(3)
    Checkpoint(x=live).read(prefix).assert_consumed()
    assert live.isnan().all()


@pytest.mark.parametrize(
    "stored", [torch.arange(3.0), torch.tensor([0.0, -0.0, 0.0]), torch.ones(4), torch.ones(3).int()]
)
def test_values_that_an_expanded_tensor_cannot_take_are_refused_and_nothing_changes(
    stored: torch.Tensor, prefix: str
) -> None:
    Checkpoint(a=torch.ones(2), x=stored).write(prefix)
    a, live = torch.zeros(2), torch.zeros(1).expand(3)
    with pytest.raises(MismatchError, match=r"\(root\)\.x cannot be restored .*; nothing has been assigned"):
        Checkpoint(a=a, x=live).read(prefix)
    assert not a.any()
    assert not live.any()


def test_windows_that_overlap_take_values_that_agree_and_refuse_others(prefix: str) -> None:
    saved, live = windows(), windows()
    saved.copy_(torch.tensor([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]))
    Checkpoint(x=saved).write(prefix)
    Checkpoint(x=live).read(prefix).assert_consumed()
    assert torch.equal(live, saved)

    Checkpoint(x=torch.rand(2, 3)).write(prefix)
    with pytest.raises(MismatchError, match=r"\(root\)\.x .*overlaps itself"):
        Checkpoint(x=live).read(prefix)
    assert torch.equal(live, saved)


def test_an_expanded_tensor_made_under_inference_mode_takes_values(prefix: str) -> None:
    Checkpoint(x=torch.ones(3)).write(prefix)
    with torch.inference_mode():
        live = torch.zeros(1).expand(3)
    Checkpoint(x=live).read(prefix).assert_consumed()
    assert live.sum() == 3


# ------------------------------------------------------------------------------ subclasses made of tensors


class Scaled(torch.Tensor):
    """Integers and a scale: a quantised tensor in miniature."""

    codes: torch.Tensor
    scale: torch.Tensor
    note: object

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor, note: object = None) -> "Scaled":
        made: Scaled = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)  # type: ignore[attr-defined]
        made.codes, made.scale, made.note = codes, scale, note
        return made

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, object]]:
        return ["codes", "scale"], {"note": self.note}

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], context: Any, size: Any, stride: Any) -> "Scaled":
        return Scaled(inner["codes"], inner["scale"], context["note"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return Scaled(args[0].codes, args[0].scale, args[0].note)
        raise NotImplementedError(f"{func} is not part of these tests")


def scaled(seed: int, note: object = None) -> Scaled:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-128, 128, (4, 3), dtype=torch.int8, generator=generator)
    return Scaled(codes, torch.rand(4, 1, generator=generator), note)


def test_a_tensor_made_of_tensors_is_a_node_with_these_as_children(prefix: str) -> None:
    Checkpoint(q=scaled(1)).write(prefix)
    assert paths(prefix) == ["q", "q/codes", "q/scale"]


def test_the_inner_tensors_are_restored_in_place(prefix: str) -> None:
    saved, live = scaled(1), scaled(2)
    codes, scale = live.codes, live.scale
    Checkpoint(q=saved).write(prefix)
    Checkpoint(q=live).read(prefix).assert_consumed()
    assert (live.codes is codes, live.scale is scale) == (True, True)
    assert torch.equal(codes, saved.codes)
    assert torch.equal(scale, saved.scale)


def test_tensors_made_of_tensors_made_of_tensors(prefix: str) -> None:
    def nested(seed: int) -> Scaled:
        inner = scaled(seed)
        return Scaled(torch.full((4, 3), seed, dtype=torch.int8), inner)

    Checkpoint(q=nested(1)).write(prefix)
    assert paths(prefix) == ["q", "q/codes", "q/scale", "q/scale/codes", "q/scale/scale"]
    live = nested(2)
    Checkpoint(q=live).read(prefix).assert_consumed()
    assert torch.equal(live.scale.codes, scaled(1).codes)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("saved", "live"), [(scaled(1, "a"), scaled(2, "b")), (scaled(1, None), scaled(2, "b"))])
def test_inner_tensors_that_would_mean_something_else_are_refused_and_nothing_changes(
    saved: Scaled, live: Scaled, prefix: str
) -> None:
    Checkpoint(a=torch.ones(2), q=saved).write(prefix)
    a, before = torch.zeros(2), live.codes.clone()
    with pytest.raises(MismatchError, match=r"\(root\)\.q cannot be restored .* the note of the Scaled is 'b' here"):
        Checkpoint(a=a, q=live).read(prefix)
    assert not a.any()
    assert torch.equal(live.codes, before)


def test_a_meaning_that_cannot_be_compared_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedValueError, match=r"\(root\)\.q cannot be saved: the Scaled depends on note = <object"
    ):
        Checkpoint(q=scaled(1, object())).write(str(tmp_path / "ckpt"))
    assert list(tmp_path.iterdir()) == []


def test_a_quantised_model_is_not_mistaken_for_a_plain_one(prefix: str) -> None:
    Checkpoint(q=scaled(1)).write(prefix)
    live = torch.zeros(4, 3)
    status = Checkpoint(q=live).read(prefix)
    with pytest.raises(AssertionError, match=r"q"):
        status.assert_existing_objects_matched()
    with pytest.raises(AssertionError, match=r"codes"):
        status.assert_consumed()
    assert not live.any()


@dataclasses.dataclass
class Quantised:
    """One way in which torchao quantises a model."""

    config: str
    model: Callable[[], nn.Module] = lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))

    def make(self, seed: int) -> nn.Module:
        quantization = pytest.importorskip("torchao.quantization")
        torch.manual_seed(seed)
        model = self.model()
        quantization.quantize_(model, getattr(quantization, self.config)())
        return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "config",
    [
        "Int8WeightOnlyConfig",
        "Int8DynamicActivationInt8WeightConfig",
        "Float8WeightOnlyConfig",
        "IntxWeightOnlyConfig",
    ],
)
def test_a_model_quantised_by_torchao_comes_back_bit_for_bit(config: str, prefix: str) -> None:
    saved, live = Quantised(config).make(1), Quantised(config).make(2)
    x = torch.randn(3, 64)
    assert not torch.equal(saved(x), live(x))
    Checkpoint(model=saved).write(prefix)
    Checkpoint(model=live).read(prefix).assert_consumed()
    assert torch.equal(saved(x), live(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_model_quantised_in_another_way_is_a_mismatch(prefix: str) -> None:
    Checkpoint(model=Quantised("Int8WeightOnlyConfig").make(1)).write(prefix)
    with pytest.raises(MismatchError, match=r"\(root\)\.model\.\w+\.weight cannot be restored"):
        Checkpoint(model=Quantised("Int8DynamicActivationInt8WeightConfig").make(2)).read(prefix)
    with pytest.raises(MismatchError, match=r"model\.0\.weight\.qdata: .* expected dtype float8_e4m3fn"):
        Checkpoint(model=Quantised("Float8WeightOnlyConfig").make(2)).read(prefix)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    ],
    ids=["qint8", "sparse", "nested"],
)
def test_a_tensor_that_cannot_be_stored_is_refused_by_name(make: Callable[[], torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedValueError, match=r"x/\.ATTRIBUTES/VARIABLE_VALUE: a .*tensor cannot be stored"):
        Checkpoint(x=make()).write(str(tmp_path / "ckpt"))
    assert list(tmp_path.iterdir()) == []
