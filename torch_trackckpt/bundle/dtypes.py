"""torch dtypes and the DataType numbers of the file format.

Eleven stored types of numbers have no torch twin. Their bytes are never taken for another type's values silently:
`DataType.name` always says what is stored, and `DataType.torch_dtype` is then the dtype that a reader hands out:

* quantised integers (``qint8``, ...) as the integers they are made of;
* ``int4``, ``uint4``, ``int2``, ``uint2`` as ``int8`` or ``uint8``, sign-extended from the stored low bits;
* ``float8_e4m3b11fnuz`` and ``float4_e2m1fn`` as their codes in ``uint8``.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

import torch

from torch_trackckpt.errors import UnsupportedValueError

__all__ = ["STRING", "VARIANT", "DataType", "data_type_of_name", "data_type_of_number", "data_type_of_torch"]


@dataclasses.dataclass(frozen=True)
class DataType:
    """A type of the file format."""

    number: int
    """The value of TensorFlow's DataType enum."""
    name: str
    """TensorFlow's name, such as ``float32`` or ``qint8``."""
    torch_dtype: torch.dtype | None
    """The dtype of a tensor that is read from it; None for strings and opaque types."""
    is_twin: bool = True
    """Whether ``torch_dtype`` is the same type; if not, the values are handed out as the module says."""
    low_bits: int = 0
    """For a type below 8 bits: how many low bits of each byte hold the value; the others mean nothing."""

    @property
    def enum_name(self) -> str:
        """The name in TensorFlow's enum, such as ``DT_FLOAT``."""
        return "DT_" + _ENUM_NAMES.get(self.name, self.name.upper())

    def __str__(self) -> str:
        return self.name


_ENUM_NAMES = MappingProxyType({"float32": "FLOAT", "float64": "DOUBLE", "float16": "HALF"})

STRING = DataType(7, "string", None)
VARIANT = DataType(21, "variant", None, is_twin=False)

_ALL = (
    DataType(1, "float32", torch.float32),
    DataType(2, "float64", torch.float64),
    DataType(3, "int32", torch.int32),
    DataType(4, "uint8", torch.uint8),
    DataType(5, "int16", torch.int16),
    DataType(6, "int8", torch.int8),
    STRING,
    DataType(8, "complex64", torch.complex64),
    DataType(9, "int64", torch.int64),
    DataType(10, "bool", torch.bool),
    DataType(11, "qint8", torch.int8, is_twin=False),
    DataType(12, "quint8", torch.uint8, is_twin=False),
    DataType(13, "qint32", torch.int32, is_twin=False),
    DataType(14, "bfloat16", torch.bfloat16),
    DataType(15, "qint16", torch.int16, is_twin=False),
    DataType(16, "quint16", torch.uint16, is_twin=False),
    DataType(17, "uint16", torch.uint16),
    DataType(18, "complex128", torch.complex128),
    DataType(19, "float16", torch.float16),
    DataType(20, "resource", None, is_twin=False),
    VARIANT,
    DataType(22, "uint32", torch.uint32),
    DataType(23, "uint64", torch.uint64),
    DataType(24, "float8_e5m2", torch.float8_e5m2),
    DataType(25, "float8_e4m3fn", torch.float8_e4m3fn),
    DataType(26, "float8_e4m3fnuz", torch.float8_e4m3fnuz),
    DataType(27, "float8_e4m3b11fnuz", torch.uint8, is_twin=False),
    DataType(28, "float8_e5m2fnuz", torch.float8_e5m2fnuz),
    DataType(29, "int4", torch.int8, is_twin=False, low_bits=4),
    DataType(30, "uint4", torch.uint8, is_twin=False, low_bits=4),
    DataType(31, "int2", torch.int8, is_twin=False, low_bits=2),
    DataType(32, "uint2", torch.uint8, is_twin=False, low_bits=2),
    DataType(33, "float4_e2m1fn", torch.uint8, is_twin=False, low_bits=4),
)

_BY_NUMBER = MappingProxyType({data_type.number: data_type for data_type in _ALL})
_BY_TORCH = MappingProxyType({d.torch_dtype: d for d in _ALL if d.torch_dtype is not None and d.is_twin})


_BY_NAME = MappingProxyType({data_type.name: data_type for data_type in _ALL})


def data_type_of_number(number: int) -> DataType:
    """The type with a DataType number; for a number that is not known here, one whose values cannot be read."""
    return _BY_NUMBER.get(number) or DataType(number, f"unknown_{number}", None, is_twin=False)


def data_type_of_name(name: str) -> DataType:
    """The type with TensorFlow's name, such as ``int4``.

    Raises:
        ValueError: no type has the name.

    Example:
        >>> from torch_trackckpt.bundle.dtypes import data_type_of_name
        >>> data_type_of_name("int4").torch_dtype
        torch.int8
    """
    if name not in _BY_NAME:
        raise ValueError(f"{name!r} is no type of the file format; these are: {', '.join(_BY_NAME)}.")
    return _BY_NAME[name]


def data_type_of_torch(dtype: torch.dtype) -> DataType:
    """The type that stores a torch dtype.

    Raises:
        UnsupportedValueError: the file format has no such type.
    """
    if dtype not in _BY_TORCH:
        raise UnsupportedValueError(
            f"{dtype} has no counterpart in the file format; convert the tensor to one of "
            f"{', '.join(str(known).removeprefix('torch.') for known in _BY_TORCH)}."
        )
    return _BY_TORCH[dtype]
