"""Which values can be written, and in which order."""

import warnings
from collections.abc import Callable

import numpy as np
import planned
import pytest
import torch

from torch_trackckpt.bundle.reader import CheckpointReader
from torch_trackckpt.errors import UnsupportedValueError


def test_one_shard_holds_every_value_in_the_given_order() -> None:
    """C360"""
    plan = planned.plan({"b": torch.zeros(1), "a": b"text", "c": torch.zeros(1)})
    assert [[plan.keys[row] for row in rows] for rows in plan.shards] == [["b", "a", "c"]]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (torch.zeros(1, dtype=torch.bfloat16), "bfloat16"),
        (torch.zeros(1, dtype=torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.zeros(1, dtype=torch.uint64), "uint64"),
        (torch.zeros(1, dtype=torch.complex128), "complex128"),
        (b"text", "string"),
        (np.array([b"a", b"b"], dtype=object), "string"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_value_has_the_type_that_stores_it(prefix: str, value: torch.Tensor | bytes, name: str) -> None:
    """C356, C358"""
    planned.publish(prefix, {"x": value})
    assert CheckpointReader(prefix).stored("x").dtype.name == name


def subclassed() -> torch.Tensor:
    class Wrapper(torch.Tensor):
        @classmethod
        def __torch_dispatch__(
            cls, func: object, types: object, args: tuple = (), kwargs: dict | None = None
        ) -> object:
            raise AssertionError("the values are elsewhere")

    return torch.Tensor._make_wrapper_subclass(Wrapper, (2,))


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Such tensors are on their way out of torch.
        return torch._empty_affine_quantized([2], scale=1.0, zero_point=0, dtype=torch.qint8)


UNWRITABLE: dict[str, tuple[Callable[[], object], str]] = {
    "meta": (lambda: torch.zeros(2, device="meta"), "meta device"),
    "sparse": (lambda: torch.eye(2).to_sparse(), r"torch\.sparse_coo tensor .*to_dense"),
    "nested": (lambda: torch.nested.nested_tensor([torch.zeros(1)], layout=torch.jagged), "nested tensor"),
    "quantized": (quantized, "quantized tensor .*int_repr"),
    "subclass": (subclassed, "subclass Wrapper .*register an adapter"),
    "complex32": (
        lambda: torch.zeros(2, dtype=torch.int32).view(torch.complex32),
        "complex32 has no counterpart .*float32",
    ),
    "text": (lambda: "text", "must be a torch.Tensor, bytes, or a NumPy object array of bytes, not str"),
    "array": (lambda: np.zeros(2), "not ndarray"),
    "array of text": (lambda: np.array(["text"], dtype=object), "not ndarray"),
    "number": (lambda: 3.5, "not float"),
}


@pytest.mark.parametrize("kind", list(UNWRITABLE))
def test_what_cannot_be_written_is_refused_by_key_and_reason(kind: str) -> None:
    """C369"""
    make, reason = UNWRITABLE[kind]
    with pytest.raises(UnsupportedValueError, match=rf"^model/x/\.ATTRIBUTES/v: .*{reason}"):
        planned.plan({"fine": torch.zeros(1), "model/x/.ATTRIBUTES/v": make()})  # type: ignore[dict-item]
