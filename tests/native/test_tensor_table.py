"""Tensors as memory: which of them are plain, how large they are, and whether they have changed."""

import pytest
import torch
from stored_dtypes import DTYPES

from torch_trackckpt import _native

TYPES = (torch.Tensor, torch.nn.Parameter)


def table(*values: object) -> _native.TensorTable:
    return _native.TensorTable(list(values), TYPES)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_contiguous_tensor_of_every_stored_type_is_plain(dtype: torch.dtype) -> None:
    tensor = torch.zeros(3, 5, dtype=dtype)
    assert table(tensor).others() == []
    assert table(tensor).sizes() == [tensor.nbytes]


@pytest.mark.parametrize("dtype", [torch.int1, torch.int4, torch.int7, torch.uint1, torch.uint4, torch.uint7])
def test_an_integer_of_less_than_eight_bits_is_not_taken_for_one_of_eight(dtype: torch.dtype) -> None:
    tensor = torch.zeros(3, dtype=torch.uint8)
    assert table(tensor, tensor.view(dtype), tensor.view(torch.int8), tensor.view(dtype)).others() == [1, 3]


def test_parameters_slices_scalars_and_empty_tensors_are_plain() -> None:
    values = torch.rand(4, 4)
    rows = [torch.nn.Parameter(values), values[1:], torch.tensor(1.0), torch.empty(0, 3), torch.nn.Buffer(values)]
    assert table(*rows).others() == []
    assert table(*rows).nbytes == sum(tensor.nbytes for tensor in rows)


class Subclass(torch.Tensor):
    pass


def _imaginary_part_of_a_conjugate() -> torch.Tensor:
    return torch.rand(3, dtype=torch.complex64).conj().imag


@pytest.mark.parametrize(
    "value",
    [
        torch.rand(4, 4).t(),
        torch.rand(4).to("meta"),
        torch.rand(4).to_sparse(),
        torch.rand(3, dtype=torch.complex64).conj(),
        _imaginary_part_of_a_conjugate(),
        torch._efficientzerotensor(3),
        torch.rand(4).as_subclass(Subclass),
        b"bytes",
        None,
    ],
    ids=["transposed", "meta", "sparse", "conjugate", "negative", "zero", "subclass", "bytes", "none"],
)
def test_what_has_no_memory_that_a_file_could_hold_is_not_plain(value: object) -> None:
    found = table(torch.rand(2), value)
    assert found.others() == [1]
    assert found.sizes() == [8, 0]


def test_a_tensor_whose_memory_was_released_is_not_plain() -> None:
    tensor = torch.rand(4)
    tensor.untyped_storage().resize_(0)
    assert table(tensor).others() == [0]


def test_changes_in_place_are_noticed_of_plain_tensors_and_others() -> None:
    first, second, other = torch.rand(3), torch.rand(3), torch.rand(4, 4).t()
    found = table(first, second, b"bytes", other)
    assert found.changed() == []
    second.add_(1)
    other.add_(1)
    assert found.changed() == [1, 3]


def test_an_inference_tensor_has_no_version_and_never_counts_as_changed() -> None:
    with torch.inference_mode():
        tensor = torch.rand(3)
        found = table(tensor)
        tensor.add_(1)
    assert found.changed() == []
    assert found.others() == []


def test_the_table_keeps_the_tensors_alive() -> None:
    found = table(*[torch.full((1000,), float(index)) for index in range(50)])
    assert found.nbytes == 50 * 4000
    assert found.changed() == []


def test_tensors_with_other_memory_or_another_shape_have_moved() -> None:
    values = [torch.zeros(4), torch.nn.Parameter(torch.zeros(4)), torch.zeros(4), torch.zeros(4), torch.zeros(4)[::2]]
    rows = table(*values)
    assert rows.moved() == []
    values[0].fill_(1)
    assert rows.moved() == []
    values[1].data = torch.zeros(4)
    values[2].resize_(2)
    values[4].resize_(3)
    assert rows.moved() == [1, 2]


def test_inference_tensors_and_what_is_no_tensor_have_no_version() -> None:
    with torch.inference_mode():
        inference = torch.zeros(2)
    assert table(torch.zeros(2), inference, None, torch.zeros(4)[::2]).unversioned() == [1, 2]


class Foreign:
    """Has an attribute of torch's name, with another meaning."""

    def __init__(self, version: object) -> None:
        self._version = version


@pytest.mark.parametrize("version", ["1.2", None, 1 << 70])
def test_a_version_that_is_no_number_is_none(version: object) -> None:
    found = table(Foreign(version), torch.ones(1))
    assert found.others() == [0]
    assert found.unversioned() == [0]
    assert found.changed() == []


def test_a_foreign_attribute_of_the_exchange_s_name_tells_nothing() -> None:
    class Odd(torch.Tensor):
        __dlpack_c_exchange_api__ = 123

    assert _native.TensorTable([torch.ones(1).as_subclass(Odd)], (Odd,)).others() == [0]


def test_a_tensor_that_has_moved_has_changed() -> None:
    live = torch.ones(3)
    found = table(live, torch.ones(2))
    live.data = torch.ones(3)
    assert found.changed() == [0]


def test_the_code_of_a_mode_may_change_what_is_asked_about() -> None:
    live = torch.ones(3)

    class Changing(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: object, types: object, args: tuple = (), kwargs: object = None) -> object:
            live.resize_(7)
            return func(*args)  # type: ignore[operator]

    with Changing():
        found = table(live)
    assert found.sizes() == [12]
