"""Tensors whose values the format cannot hold are refused by name; views that hide their values are exact."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from stored_dtypes import DTYPES
from torch import nn

from torch_trackckpt import Checkpoint, CheckpointOptions, CheckpointReader
from torch_trackckpt.errors import TrackckptError, UnsupportedValueError
from torch_trackckpt.sharding import MaxShardSizePolicy, ShardByTaskPolicy

KEY = "x/.ATTRIBUTES/VARIABLE_VALUE"
CUT = CheckpointOptions(experimental_sharding_callback=MaxShardSizePolicy(24))

ALL_DTYPES = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)
WITHOUT_PLACE = [dtype for dtype in ALL_DTYPES if dtype not in DTYPES]


def empty(dtype: torch.dtype) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are experimental, others on their way out of torch
        return torch.empty(4, dtype=dtype)


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(4), 0.5, 0, torch.quint8)


def in_columns(layout: torch.layout) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their support is in beta
        return torch.eye(4).to_sparse(layout=layout, blocksize=(2, 2) if layout is torch.sparse_bsr else None)


VALUES: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "sparse COO": (lambda: torch.eye(4).to_sparse(), r"torch\.sparse_coo .*to_dense\(\)"),
    "sparse CSR": (lambda: in_columns(torch.sparse_csr), r"torch\.sparse_csr .*to_dense\(\)"),
    "sparse CSC": (lambda: in_columns(torch.sparse_csc), r"torch\.sparse_csc .*to_dense\(\)"),
    "sparse BSR": (lambda: in_columns(torch.sparse_bsr), r"torch\.sparse_bsr .*to_dense\(\)"),
    "nested, jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged),
        "nested tensor",
    ),
    "quantised": (quantized, "quantized tensor .*int_repr"),
    "meta": (lambda: torch.zeros(4, device="meta"), "meta device .*materialise"),
    "meta, empty": (lambda: torch.zeros(0, device="meta"), "meta device"),
    "released": (lambda: released(torch.ones(4)), "memory has been released"),
    "view of released": (lambda: view_of_released(), "memory has been released"),
    "zero tensor": (lambda: torch._efficientzerotensor((4,)), "memory has been released"),
} | {
    str(dtype): ((lambda dtype=dtype: empty(dtype)), str(dtype).removeprefix("torch."))
    for dtype in WITHOUT_PLACE
    if not str(dtype).startswith("torch.q")
}


def released(tensor: torch.Tensor) -> torch.Tensor:
    tensor.untyped_storage().resize_(0)
    return tensor


def view_of_released() -> torch.Tensor:
    """Its address is not 0, but the view's offset."""
    whole = torch.ones(8)
    view = whole[4:]
    released(whole)
    return view


def test_the_list_of_dtypes_without_a_place_has_those_that_matter() -> None:
    names = {str(dtype).removeprefix("torch.") for dtype in WITHOUT_PLACE}
    assert names >= {"complex32", "float8_e8m0fnu", "float4_e2m1fn_x2", "qint8", "quint8", "uint4", "int4", "bits8"}


@pytest.mark.parametrize("save", ["write", "save"])
@pytest.mark.parametrize(
    "policy", [None, MaxShardSizePolicy(24), ShardByTaskPolicy()], ids=lambda policy: type(policy).__name__
)
@pytest.mark.parametrize("kind", VALUES)
def test_a_value_that_cannot_be_stored_is_refused_by_key_before_a_file_exists(
    tmp_path: Path, kind: str, policy: MaxShardSizePolicy | ShardByTaskPolicy | None, save: str
) -> None:
    """C369"""
    make, reason = VALUES[kind]
    checkpoint = Checkpoint(fine=torch.ones(100), x=make())
    options = CheckpointOptions(experimental_sharding_callback=policy)
    with pytest.raises(UnsupportedValueError, match=rf"^{KEY}: .*{reason}"):
        getattr(checkpoint, save)(tmp_path / "run" / "ckpt", options=options)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("dtype", [d for d in WITHOUT_PLACE if str(d).startswith("torch.q")], ids=str)
def test_every_quantised_dtype_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    """C369"""
    with pytest.raises(UnsupportedValueError, match=rf"^{KEY}: "):
        Checkpoint(x=empty(dtype)).write(tmp_path / "ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_value_deep_in_a_module_is_named_by_its_path_and_costs_no_earlier_checkpoint(tmp_path: Path) -> None:
    """C369, C393"""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    checkpoint = Checkpoint(model=model)
    path = checkpoint.write(tmp_path / "ckpt")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    model[1].register_buffer("odd", torch.eye(2).to_sparse())
    with pytest.raises(UnsupportedValueError, match=r"^model/1/odd/.*sparse_coo"):
        checkpoint.write(path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", ["sparse COO", "torch.complex32", "torch.float8_e8m0fnu"])
def test_a_value_of_that_kind_takes_nothing_either(tmp_path: Path, kind: str) -> None:
    """C369, C392"""
    path = Checkpoint(x=torch.ones(4), y=torch.ones(2)).write(tmp_path / "ckpt")
    other = torch.zeros(2)
    with pytest.raises(TrackckptError, match="x"):
        Checkpoint(x=VALUES[kind][0](), y=other).read(path)
    assert not other.any()


# ---------------------------------------------------------------------------------------- views that hide


COMPLEX = torch.complex(torch.arange(24.0), -torch.arange(24.0) / 3 + 1).reshape(4, 6)
COMPLEX[0, 0] = complex(float("nan"), -0.0)

VIEWS: dict[str, tuple[torch.Tensor, np.ndarray]] = {
    "conj": (COMPLEX.conj(), COMPLEX.numpy().conj()),
    "conj, transposed": (COMPLEX.mH, np.ascontiguousarray(COMPLEX.numpy().conj().T)),
    "conj, part": (COMPLEX.conj()[1:3, ::2], COMPLEX.numpy().conj()[1:3, ::2]),
    "conj, double": (COMPLEX.to(torch.complex128).conj(), COMPLEX.numpy().astype("c16").conj()),
    "neg": (COMPLEX.conj().imag, np.negative(COMPLEX.numpy().imag)),
    "neg, part": (COMPLEX.conj().imag[:, 1:4], np.negative(COMPLEX.numpy().imag)[:, 1:4]),
    # Without the NaN: torch negates the sign of a complex one or not, as its vectors fall.
    "conj and neg": (torch._neg_view(COMPLEX[1:].conj()), np.negative(COMPLEX.numpy()[1:].conj())),
    "conj, scalar": (COMPLEX[1, 1].conj(), COMPLEX.numpy()[1, 1].conj()),
    "conj, empty": (COMPLEX[:0].conj(), COMPLEX.numpy()[:0]),
}


@pytest.mark.parametrize("options", [CheckpointOptions(), CUT], ids=["one file", "cut"])
@pytest.mark.parametrize("kind", VIEWS)
def test_a_view_with_a_sign_in_its_flags_is_stored_as_its_values(
    tmp_path: Path, kind: str, options: CheckpointOptions
) -> None:
    """C026, C369: also where it is cut into slices."""
    view, expected = VIEWS[kind]
    assert view.is_conj() or view.is_neg()
    path = Checkpoint(x=view).write(tmp_path / "ckpt", options)
    reader = CheckpointReader(path)
    stored = reader.get_tensor(KEY)
    assert isinstance(stored, torch.Tensor)
    assert not stored.is_conj()
    assert not stored.is_neg()
    assert (stored.dtype, tuple(stored.shape)) == (view.dtype, expected.shape)
    assert stored.numpy().tobytes() == np.ascontiguousarray(expected).tobytes()
    assert bool(reader.stored_slices(KEY)) is (options is CUT and view.nbytes > 24)
    assert view.is_conj() or view.is_neg()  # it is left as it was
