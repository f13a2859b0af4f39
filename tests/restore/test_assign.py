"""Values into live tensors: in place, bit for bit, all or nothing."""

import os
from collections.abc import Callable, Mapping

import planned
import pytest
import torch
from checkpoints import walk
from stored_dtypes import DTYPES
from torch import nn

from torch_trackckpt import Checkpoint, CheckpointOptions, Trackable
from torch_trackckpt.bundle.dtypes import data_type_of_number
from torch_trackckpt.bundle.reader import StoredTensor
from torch_trackckpt.errors import DataLossError, MismatchError, RestoreError, UnsupportedValueError
from torch_trackckpt.restore import assign
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY, Resolve, Value

Damage = Callable[[str, str], None]

MIB = 1 << 20
FAST = CheckpointOptions(durable=False)
BEFORE = CheckpointOptions(verify="before")


def key(name: str) -> str:
    return f"{name}/.ATTRIBUTES/VARIABLE_VALUE"


def as_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


class Meter(Trackable):
    """A number that is no tensor: it takes its value over by itself."""

    total = 0.0

    def _serialize_to_tensors(self) -> Mapping[str, Value]:
        return {"total": torch.tensor(self.total)}

    def _restore_from_tensors(self, values: Mapping[str, Value]) -> None:
        self.total = float(torch.as_tensor(values["total"]))


# ------------------------------------------------------------------------------------------ destinations

SOURCE = torch.arange(1.0, 25.0).reshape(2, 3, 2, 2)

DESTINATIONS: dict[str, Callable[[], torch.Tensor]] = {
    "contiguous": lambda: torch.zeros(2, 3, 2, 2),
    "transposed": lambda: torch.zeros(2, 2, 3, 2).transpose(1, 2),
    "channels_last": lambda: torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last),
    "every other": lambda: torch.zeros(2, 3, 2, 4)[..., ::2],
    "part of a larger one": lambda: torch.zeros(5, 3, 2, 2)[2:4],
    "requiring grad": lambda: torch.zeros(2, 3, 2, 2, requires_grad=True),
    "parameter, channels_last": lambda: nn.Parameter(torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last)),
    "data of a parameter": lambda: nn.Parameter(torch.zeros(2, 3, 2, 2)).data,
}


@pytest.mark.parametrize("kind", list(DESTINATIONS))
def test_a_value_goes_into_a_tensor_of_any_layout_which_stays_what_it_is(prefix: str, kind: str) -> None:
    """C044, C056, C057"""
    Checkpoint(x=SOURCE).write(prefix)
    live = DESTINATIONS[kind]()
    before = (live.data_ptr(), live.stride(), live.requires_grad, live.is_leaf, live.grad_fn, live.device)
    Checkpoint(x=live).read(prefix).assert_consumed()
    assert torch.equal(live, SOURCE)
    assert (live.data_ptr(), live.stride(), live.requires_grad, live.is_leaf, live.grad_fn, live.device) == before


def test_what_lies_around_a_view_is_left_alone(prefix: str) -> None:
    """C044"""
    Checkpoint(x=torch.ones(2), y=torch.ones(2)).write(prefix)
    rows, whole = torch.zeros(4), torch.zeros(4)
    Checkpoint(x=rows[1:3], y=whole[::2]).read(prefix).assert_consumed()
    assert torch.equal(rows, torch.tensor([0.0, 1.0, 1.0, 0.0]))
    assert torch.equal(whole, torch.tensor([1.0, 0.0, 1.0, 0.0]))


def test_a_conjugate_view_shows_the_stored_values(prefix: str) -> None:
    """C044"""
    value = torch.tensor([1 + 2j, 3 - 4j])
    Checkpoint(x=value, y=value.imag, z=value.imag[:1]).write(prefix)
    x, y, z = torch.zeros(2, dtype=value.dtype), torch.zeros(2, dtype=value.dtype), torch.zeros(1, dtype=value.dtype)
    Checkpoint(x=x.conj(), y=y.conj().imag, z=z.conj().imag).read(prefix).assert_consumed()
    assert torch.equal(x, value.conj().resolve_conj())
    assert torch.equal(y.imag, -value.imag)
    assert torch.equal(z.imag, -value.imag[:1])


def test_a_value_goes_to_the_device_of_the_live_tensor(prefix: str, device: torch.device) -> None:
    """C057"""
    Checkpoint(x=SOURCE, y=SOURCE.clone()).write(prefix)
    x = torch.zeros(2, 3, 2, 2, device=device)
    y = torch.zeros(2, 3, 2, 2, device=device).to(memory_format=torch.channels_last)
    Checkpoint(x=x, y=y).read(prefix).assert_consumed()
    assert x.device.type == y.device.type == device.type
    assert torch.equal(x.cpu(), SOURCE)
    assert torch.equal(y.cpu(), SOURCE)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_value_of_any_dtype_keeps_its_bits_on_the_way_into_a_strided_tensor(prefix: str, dtype: torch.dtype) -> None:
    """C356"""
    high = 2 if dtype == torch.bool else 256
    bits = torch.randint(0, high, (12 * dtype.itemsize,), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    value = bits.view(dtype).reshape(3, 4)
    Checkpoint(x=value).write(prefix)
    live = torch.zeros(4, 3, dtype=dtype).t()
    Checkpoint(x=live).read(prefix).assert_consumed()
    assert as_bytes(live) == as_bytes(value)


@pytest.mark.parametrize("step", [1, 2], ids=["contiguous", "strided"])
def test_an_inference_tensor_takes_its_value(prefix: str, step: int) -> None:
    """C071"""
    Checkpoint(x=torch.arange(3.0)).write(prefix)
    with torch.inference_mode():
        live = torch.zeros(3 * step)[::step]
    Checkpoint(x=live).read(prefix).assert_consumed()
    assert torch.equal(live, torch.arange(3.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(2, 1).expand(2, 3),
        lambda: torch.zeros(2, 3).to_sparse(),
        lambda: torch.nested.as_nested_tensor(torch.zeros(2, 3), layout=torch.strided),
    ],
    ids=["expanded", "sparse", "nested"],
)
def test_a_tensor_that_cannot_take_values_is_named_before_anything_changes(
    prefix: str, make: Callable[[], torch.Tensor]
) -> None:
    """C068"""
    written = Meter()
    written.total = 2.5
    Checkpoint(a=torch.ones(2), m=written, x=torch.rand(2, 3), z=torch.ones(2)).write(prefix)
    a, z, meter = torch.zeros(2), torch.zeros(4)[::2], Meter()
    with pytest.raises(MismatchError, match=r"\(root\)\.x"):
        Checkpoint(a=a, m=meter, x=make(), z=z).read(prefix)
    assert not a.any()
    assert not z.any()
    assert meter.total == 0.0


def test_autograd_notices_that_a_saved_tensor_was_overwritten(prefix: str) -> None:
    """C056"""
    for live in (torch.ones(2, requires_grad=True), torch.ones(4)[::2].requires_grad_()):
        Checkpoint(x=torch.ones(2)).write(prefix)
        loss = (live * live).sum()
        Checkpoint(x=live).read(prefix)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        (live * live).sum().backward()
        assert live.grad is not None


def test_gradients_are_left_alone(prefix: str) -> None:
    """C056"""
    live = torch.zeros(2, requires_grad=True)
    live.sum().backward()
    Checkpoint(x=torch.ones(2)).write(prefix)
    Checkpoint(x=live).read(prefix)
    assert torch.equal(live.grad, torch.ones(2))


def test_more_strided_values_than_fit_into_the_staging_memory_all_arrive(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assign, "STAGING_BYTES", 100)
    sizes = [1, 10, 30, 2, 0, 20, 5]
    Checkpoint(x=[torch.full((size,), float(size)) for size in sizes]).write(prefix)
    live = [torch.zeros(2 * size)[::2] for size in sizes]
    Checkpoint(x=live).read(prefix).assert_consumed()
    assert all(torch.equal(tensor, torch.full((size,), float(size))) for tensor, size in zip(live, sizes, strict=True))


# ------------------------------------------------------------------------------------------- conflicts


@pytest.mark.parametrize(
    ("stored", "live"),
    [((), (1,)), ((1,), ()), ((6,), (2, 3)), ((2, 3), (3, 2)), ((0,), (0, 1)), ((2, 1), (2, 3))],
)
def test_another_shape_is_a_conflict_that_names_both(
    prefix: str, stored: tuple[int, ...], live: tuple[int, ...]
) -> None:
    """C065, C066"""
    Checkpoint(x=torch.ones(stored)).write(prefix)
    tensor = torch.zeros(live)
    with pytest.raises(ValueError, match="incompatible tensor with shape") as caught:
        Checkpoint(x=tensor).read(prefix)
    assert f"with shape {list(stored)} when attempting to restore a tensor with shape {list(live)}" in str(caught.value)
    assert not tensor.any()


@pytest.mark.parametrize(
    ("stored", "live"),
    [
        (torch.float32, torch.float64),
        (torch.int32, torch.float32),
        (torch.bfloat16, torch.float16),
        (torch.uint8, torch.bool),
        (torch.float8_e4m3fn, torch.float8_e4m3fnuz),
    ],
    ids=str,
)
def test_another_dtype_is_a_conflict_that_names_both(prefix: str, stored: torch.dtype, live: torch.dtype) -> None:
    """C067"""
    Checkpoint(x=torch.zeros(2, dtype=stored)).write(prefix)
    names = [str(dtype).removeprefix("torch.") for dtype in (live, stored)]
    with pytest.raises(MismatchError, match=rf"expected dtype {names[0]} does not equal original dtype {names[1]}$"):
        Checkpoint(x=torch.zeros(2, dtype=live)).read(prefix)


@pytest.mark.parametrize(("name", "torch_dtype"), [("qint8", torch.int8), ("uint4", torch.uint8)])
def test_a_stored_type_without_a_twin_is_never_taken_for_the_type_it_is_handed_out_as(
    name: str, torch_dtype: torch.dtype
) -> None:
    """C067"""
    number = {"qint8": 11, "uint4": 30}[name]
    stored = StoredTensor("key", data_type_of_number(number), (2,), 2)
    item = assign._InPlace(stored, "(root).x", torch.zeros(2, dtype=torch_dtype))
    assert list(assign._conflicts(item)) == [
        f"(root).x: tensor_name = key; expected dtype {str(torch_dtype).removeprefix('torch.')} "
        f"does not equal original dtype {name}"
    ]


def test_a_conflict_in_a_slot_is_listed_with_the_others(prefix: str) -> None:
    """C068"""

    def made(num_features: int, slot_shape: tuple[int, ...]) -> Checkpoint:
        weight = nn.Parameter(torch.zeros(num_features))
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        optimizer.state[weight]["momentum_buffer"] = torch.zeros(slot_shape)
        return Checkpoint(w=weight, optimizer=optimizer)

    made(2, (2,)).write(prefix)
    live = made(3, (3,))
    live.optimizer.param_groups[0]["lr"] = 0.5
    with pytest.raises(MismatchError) as caught:
        live.read(prefix)
    assert "(root).w: received incompatible" in str(caught.value)
    assert "(root).optimizer's state 'momentum_buffer' for (root).w: received incompatible" in str(caught.value)
    assert live.optimizer.param_groups[0]["lr"] == 0.5


def test_a_state_that_cannot_be_decoded_is_an_error_before_anything_changes(prefix: str) -> None:
    """C068"""

    class Picky(Trackable):
        def _serialize_to_tensors(self) -> Mapping[str, Value]:
            return {"level": torch.tensor(9)}

        def _prepare_restore(self, values: Mapping[str, Value], resolve: Resolve) -> Callable[[], None]:
            raise MismatchError("the level is too high.")

    Checkpoint(a=torch.ones(2), p=Picky()).write(prefix)
    a = torch.zeros(2)
    with pytest.raises(
        MismatchError,
        match=rf"^\(root\)\.p cannot be restored from '{prefix}'; nothing has been assigned: the level is too high\.$",
    ):
        Checkpoint(a=a, p=Picky()).read(prefix)
    assert not a.any()


# ---------------------------------------------------------------------------------------------- damage


def large_and_small(value: float) -> dict[str, torch.Tensor]:
    """Over 64 MiB in all, in values small and large."""
    sizes = {"a": 4, "b": 40 * MIB // 4, "c": 25 * MIB // 4, "d": 4}
    return {name: torch.full((size,), value) for name, size in sizes.items()}


def test_damage_in_a_large_checkpoint_names_every_value_that_was_overwritten(prefix: str, damage: Damage) -> None:
    """C382, C392"""
    Checkpoint(**large_and_small(1.0)).write(prefix, CheckpointOptions(durable=False, num_threads=1))
    damage(prefix, key("c"))
    live = large_and_small(0.0)
    with pytest.raises(DataLossError) as caught:
        Checkpoint(**live).read(prefix, CheckpointOptions(num_threads=1))
    first, *lines = str(caught.value).splitlines()
    assert first.startswith(f"Checksum does not match: key {key('c')}, file {prefix}.data-00000-of-00001, offset ")
    assert "These had been overwritten before the damage was found" in lines[0]
    assert "CheckpointOptions(verify='before')" in lines[0]
    named = {line.strip().removeprefix("(root).") for line in lines[1:]}
    assert {name for name, tensor in live.items() if tensor.any()} <= named
    assert {"a", "b"} <= named
    assert not live["d"].any()
    assert "d" not in named


def test_several_threads_name_no_less_than_what_they_have_overwritten(prefix: str, damage: Damage) -> None:
    """C392: which values that are depends on how far each thread has come."""
    Checkpoint(**large_and_small(1.0)).write(prefix, FAST)
    damage(prefix, key("c"))
    live = large_and_small(0.0)
    with pytest.raises(DataLossError) as caught:
        Checkpoint(**live).read(prefix, CheckpointOptions(num_threads=4))
    named = {line.strip().removeprefix("(root).") for line in str(caught.value).splitlines()[2:]}
    assert {name for name, tensor in live.items() if tensor.any()} <= named


def test_verifying_before_changes_nothing_in_a_large_checkpoint(prefix: str, damage: Damage) -> None:
    """C382, C392"""
    Checkpoint(**large_and_small(1.0)).write(prefix, FAST)
    damage(prefix, key("d"))
    live = large_and_small(0.0)
    with pytest.raises(DataLossError, match=rf"^Checksum does not match: key {key('d')}, [^\n]*$"):
        Checkpoint(**live).read(prefix, BEFORE)
    assert not any(tensor.any() for tensor in live.values())


@pytest.mark.parametrize("verify", ["during", "before"])
def test_a_sound_large_checkpoint_is_restored_either_way(prefix: str, verify: str) -> None:
    """C382"""
    written = large_and_small(1.0)
    Checkpoint(**written).write(prefix, FAST)
    live = large_and_small(0.0)
    Checkpoint(**live).read(prefix, CheckpointOptions(verify=verify)).assert_consumed()
    assert all(torch.equal(tensor, written[name]) for name, tensor in live.items())


@pytest.fixture
def without_small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of any size counts as a large one."""
    monkeypatch.setattr(assign, "VERIFIED_BEFORE_BYTES", -1)


@pytest.mark.usefixtures("without_small_limit")
def test_an_object_that_took_its_value_over_by_itself_is_among_the_overwritten(prefix: str, damage: Damage) -> None:
    """C392"""
    written, meter = Meter(), Meter()
    written.total = 2.5
    Checkpoint(a=torch.ones(4), m=written).write(prefix)
    damage(prefix, key("a"))
    with pytest.raises(DataLossError, match=r"\(root\)\.m"):
        Checkpoint(a=torch.zeros(4), m=meter).read(prefix)
    assert meter.total == 2.5


@pytest.mark.usefixtures("without_small_limit")
def test_damage_in_the_first_value_leaves_everything_as_it_was_and_names_nothing(prefix: str, damage: Damage) -> None:
    """C392"""
    Checkpoint(a=torch.ones(4), b=torch.ones(4)).write(prefix)
    damage(prefix, key("a"))
    a, b = torch.zeros(4), torch.zeros(4)
    with pytest.raises(DataLossError, match=rf"^Checksum does not match: key {key('a')}[^\n]*$"):
        Checkpoint(a=a, b=b).read(prefix)
    assert not a.any()
    assert not b.any()


@pytest.mark.usefixtures("without_small_limit")
def test_a_value_of_one_chunk_is_never_half_written(prefix: str, damage: Damage) -> None:
    """C392"""
    Checkpoint(a=torch.ones(4), b=torch.ones(MIB // 4), c=torch.ones(4)).write(prefix)
    damage(prefix, key("b"))
    live = {"a": torch.zeros(4), "b": torch.zeros(MIB // 4), "c": torch.zeros(4)}
    with pytest.raises(DataLossError) as caught:
        # With several threads the last value may be there before the damage is found.
        Checkpoint(**live).read(prefix, CheckpointOptions(num_threads=1))
    assert [line.strip() for line in str(caught.value).splitlines()[2:]] == ["(root).a"]
    assert torch.equal(live["a"], torch.ones(4))
    assert not live["b"].any()
    assert not live["c"].any()


@pytest.mark.usefixtures("without_small_limit")
def test_a_damaged_value_that_was_staged_is_not_among_the_overwritten(prefix: str, damage: Damage) -> None:
    """C392"""
    Checkpoint(a=torch.ones(4), b=torch.ones(2 * MIB // 4), c=torch.ones(4)).write(prefix)
    damage(prefix, key("b"))
    live = {"a": torch.zeros(4), "b": torch.zeros(2 * MIB // 2)[::2], "c": torch.zeros(8)[::2]}
    with pytest.raises(DataLossError) as caught:
        Checkpoint(**live).read(prefix, CheckpointOptions(num_threads=1))
    assert [line.strip() for line in str(caught.value).splitlines()[2:]] == ["(root).a"]
    assert not live["b"].any()
    assert not live["c"].any()


@pytest.mark.usefixtures("without_small_limit")
def test_a_value_beyond_the_end_of_the_file_is_noticed_before_anything_changes(prefix: str) -> None:
    """C384"""
    record = walk({"a": torch.ones(4), "b": torch.ones(4)}).values[-1].value
    planned.publish(prefix, {OBJECT_GRAPH_KEY: record, key("a"): torch.ones(4), key("b"): torch.ones(4)})
    status = Checkpoint(a=torch.zeros(4), b=torch.zeros(4)).read(prefix)
    assert status.assert_consumed() is status
    data = f"{prefix}.data-00000-of-00001"
    os.truncate(data, os.path.getsize(data) - 1)
    a, b = torch.zeros(4), torch.zeros(8)[::2]
    with pytest.raises(DataLossError, match=rf"key {key('b')} lies at offset .*, but the file has"):
        Checkpoint(a=a, b=b).read(prefix)
    assert not a.any()
    assert not b.any()


@pytest.mark.usefixtures("without_small_limit")
def test_an_overwritten_tensor_is_known_to_autograd_even_when_the_restore_failed(prefix: str, damage: Damage) -> None:
    """C056, C392: what had been overwritten may not go into a backward pass unnoticed."""
    Checkpoint(a=torch.ones(4), b=torch.ones(4)).write(prefix)
    damage(prefix, key("b"))
    a, b = torch.zeros(4, requires_grad=True), torch.zeros(4)
    loss = (a * a).sum()
    with pytest.raises(DataLossError, match=r"\(root\)\.a"):
        Checkpoint(a=a, b=b).read(prefix)
    assert torch.equal(a, torch.ones(4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --------------------------------------------------------------------------------- tensors without memory


def released() -> torch.Tensor:
    tensor = torch.zeros(4)
    tensor.untyped_storage().resize_(0)
    return tensor


def view_of_released() -> torch.Tensor:
    tensor = torch.zeros(8)
    view = tensor[4:]
    tensor.untyped_storage().resize_(0)
    return view


class Wrapped(torch.Tensor):
    """A tensor whose values lie elsewhere, as those of distributed and quantised tensors do."""

    @staticmethod
    def __new__(cls) -> "Wrapped":
        wrapped: Wrapped = torch.Tensor._make_wrapper_subclass(cls, (4,), dtype=torch.float32)  # type: ignore[attr-defined]
        return wrapped

    @classmethod
    def __torch_dispatch__(cls, func: object, types: object, args: object = (), kwargs: object = None) -> object:
        raise NotImplementedError(f"{func} is never to be called")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (released, "memory has been released"),
        (view_of_released, "memory has been released"),
        (lambda: torch._efficientzerotensor(4), "memory has been released"),
        (Wrapped, "subclass Wrapped does not hold its values"),
    ],
    ids=["released", "view of released", "zero tensor", "wrapper"],
)
def test_a_tensor_without_memory_of_its_own_is_refused_in_both_directions(
    prefix: str, make: Callable[[], torch.Tensor], reason: str
) -> None:
    """C369"""
    Checkpoint(x=torch.ones(4)).write(prefix, FAST)
    with pytest.raises(MismatchError, match=rf"\(root\)\.x: .*{reason}"):
        Checkpoint(x=make()).read(prefix)
    with pytest.raises(UnsupportedValueError, match=rf"x/.ATTRIBUTES/VARIABLE_VALUE: .*{reason}"):
        Checkpoint(x=make()).write(prefix, FAST)


def test_an_object_that_refuses_its_state_is_named_with_what_had_changed_before(prefix: str) -> None:
    """C068"""

    class State:
        def __init__(self, value: int, fails: bool = False) -> None:
            self.value, self.fails = value, fails

        def state_dict(self) -> dict[str, int]:
            return {"value": self.value}

        def load_state_dict(self, state: dict[str, int]) -> None:
            if self.fails:
                raise RuntimeError("size mismatch")
            self.value = state["value"]

    Checkpoint(a=State(1), b=State(2), c=State(3), x=torch.ones(1)).write(prefix, FAST)
    a, c, x = State(0), State(0), torch.zeros(1)

    with pytest.raises(RestoreError, match=r"\(root\)\.b did not take its state.*size mismatch") as error:
        Checkpoint(a=a, b=State(0, fails=True), c=c, x=x).read(prefix)

    assert "These have: (root).a" in str(error.value)
    assert isinstance(error.value.__cause__, RuntimeError)
    assert (a.value, c.value, x.item()) == (1, 0, 0)
