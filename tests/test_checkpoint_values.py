"""Every kind of value, in every context that torch knows, comes back bit for bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import witness
from checkpoints import X, thing, zero
from stored_dtypes import DTYPES
from torch import nn

from torch_trackckpt import (
    Checkpoint,
    list_variables,
)
from torch_trackckpt.trackable import OBJECT_GRAPH_KEY

# ----------------------------------------------------------------------------------- what values may be


def random_bytes_as(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Any bit pattern, NaNs with payloads included."""
    generator = torch.Generator().manual_seed(1)
    high = 2 if dtype == torch.bool else 256
    bits = torch.randint(0, high, (*shape, dtype.itemsize), dtype=torch.uint8, generator=generator)
    return bits.view(dtype).reshape(shape)


def as_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_stored_and_restored_bit_for_bit(prefix: str, dtype: torch.dtype) -> None:
    """C356, C362"""
    value = random_bytes_as(dtype, 3, 4)
    Checkpoint(x=value).write(prefix)
    stored = witness.read_bundle(prefix)[X]
    assert (stored.shape, stored.data) == ((3, 4), as_bytes(value))
    fresh = torch.zeros(3, 4, dtype=dtype)
    Checkpoint(x=fresh).read(prefix).assert_consumed()
    assert as_bytes(fresh) == as_bytes(value)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 1618), (16, 0, 18), (1, 1, 1, 1, 1, 1, 1, 2)], ids=str)
def test_every_shape_is_exact_and_empty_ones_take_no_bytes(prefix: str, shape: tuple[int, ...]) -> None:
    """C357"""
    Checkpoint(x=torch.ones(shape)).write(prefix)
    stored = witness.read_bundle(prefix)[X]
    assert (stored.shape, stored.size) == (shape, 4 * torch.ones(shape).numel())
    fresh = torch.zeros(shape)
    Checkpoint(x=fresh).read(prefix).assert_consumed()
    assert torch.equal(fresh, torch.ones(shape))


SOURCE = torch.arange(12.0).reshape(3, 4)
LAYOUTS: dict[str, torch.Tensor] = {
    "transposed": SOURCE.t(),
    "every other": SOURCE[:, ::2],
    "expanded": SOURCE[:, :1].expand(3, 4),
    "offset": SOURCE[1:],
    "channels_last": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "conjugate": torch.complex(SOURCE, SOURCE + 1).conj(),
    "negative": torch.complex(SOURCE, SOURCE + 1).conj().imag,
    "negative, contiguous": torch.complex(SOURCE, SOURCE + 1)[:1, :1].conj().imag,
    "requiring grad": SOURCE.clone().requires_grad_(),
    "result": SOURCE.clone().requires_grad_() * 2,
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_tensor_of_any_layout_is_stored_in_row_major_order_and_left_untouched(prefix: str, layout: str) -> None:
    """C026"""
    value = LAYOUTS[layout]
    before = (value.stride(), value._version, value.requires_grad, value.is_conj(), value.is_neg())
    Checkpoint(x=value).write(prefix)
    assert witness.read_bundle(prefix)[X].data == value.detach().resolve_conj().resolve_neg().numpy().tobytes("C")
    assert (value.stride(), value._version, value.requires_grad, value.is_conj(), value.is_neg()) == before


def test_a_tensor_of_a_device_is_stored_as_its_values(prefix: str, device: torch.device) -> None:
    """C026"""
    value = torch.arange(6.0, device=device).reshape(2, 3).t()
    Checkpoint(x=value).write(prefix)
    assert witness.read_bundle(prefix)[X].data == value.cpu().contiguous().numpy().tobytes()


def test_an_empty_checkpoint_is_an_index_and_the_graph(prefix: str) -> None:
    """C017, C368"""
    Checkpoint().write(prefix)
    assert list_variables(prefix) == [(OBJECT_GRAPH_KEY, [])]
    Checkpoint().read(prefix).assert_consumed()


def test_the_header_names_one_shard_little_endian_and_the_versions_of_tensorflow(prefix: str) -> None:
    """C359"""
    Checkpoint(x=torch.tensor(1)).write(prefix)
    key, header = witness.table_items(prefix + ".index")[0]
    assert (key, header) == (b"", b"\x08\x01\x1a\x02\x08\x01")


def test_entries_are_sorted_by_key_and_data_lies_in_the_order_of_the_graph(prefix: str) -> None:
    """C360"""
    Checkpoint(thing(z=zero(), a=zero())).write(prefix)
    stored = witness.read_bundle(prefix)
    assert list(stored) == sorted(stored)
    assert sorted(stored, key=lambda key: stored[key].offset) == [
        "z/.ATTRIBUTES/VARIABLE_VALUE",
        "a/.ATTRIBUTES/VARIABLE_VALUE",
        OBJECT_GRAPH_KEY,
    ]


# -------------------------------------------------------------------------------------------------- contexts

CONTEXTS: dict[str, Callable[[], object]] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "inference_mode off": lambda: torch.inference_mode(False),
    "meta device": lambda: torch.device("meta"),
    "cpu device": lambda: torch.device("cpu"),
}


def trained() -> Checkpoint:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    return Checkpoint(model=model, optimizer=optimizer, scheduler=scheduler)


def untrained() -> Checkpoint:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    return Checkpoint(model=model, optimizer=optimizer, scheduler=scheduler)


@pytest.mark.parametrize("context", list(CONTEXTS))
def test_saving_and_restoring_inside_a_context_gives_the_same_files_and_values(tmp_path: Path, context: str) -> None:
    """C071"""
    original, fresh = trained(), untrained()
    expected = original.save(tmp_path / "outside")
    original.save_counter.zero_()
    with CONTEXTS[context]():  # type: ignore[attr-defined]
        path = original.save(tmp_path / "inside")
        fresh.restore(path).assert_consumed()
    again = fresh.write(tmp_path / "again")
    for suffix in (".index", ".data-00000-of-00001"):
        assert Path(path + suffix).read_bytes() == Path(expected + suffix).read_bytes()
        assert Path(again + suffix).read_bytes() == Path(expected + suffix).read_bytes()


@pytest.mark.parametrize("context", list(CONTEXTS))
def test_after_a_restore_inside_a_context_training_and_saving_go_on_outside(tmp_path: Path, context: str) -> None:
    """C056, C071"""
    path = trained().save(tmp_path / "ckpt")
    fresh = untrained()
    with CONTEXTS[context]():  # type: ignore[attr-defined]
        fresh.restore(path).assert_consumed()
    fresh.model(torch.ones(3, 2)).sum().backward()
    fresh.optimizer.step()
    fresh.scheduler.step()
    assert fresh.save(tmp_path / "ckpt") == f"{tmp_path}/ckpt-2"
