"""Writes one shard of a bundle: thin over the native writer."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

import numpy as np
import torch

from torch_trackckpt import _native
from torch_trackckpt.bundle.dtypes import DataType, data_type_of_torch
from torch_trackckpt.bundle.memory import row_major
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.errors import UnsupportedValueError

__all__ = ["BundleWriter"]


class BundleWriter:
    """Writes tensors, in the order given, into a data file and its index.

    As a context manager it finishes at the end of the block, or removes both files when the block raised.

    Args:
        data_path, index_path: the files to create; neither may exist.
        durable: whether `finish` waits until the disk has every byte.
        alignment: every tensor begins at a multiple of so many bytes. TensorFlow's own writer uses 1; with 64, say,
            `CheckpointReader.get_tensor` can map every value.

    Raises:
        FileExistsError: one of the files exists.
        OSError: the system refuses.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt.bundle.writer import BundleWriter
        >>> prefix = tempfile.mkdtemp() + "/t"
        >>> with BundleWriter(prefix + ".data-00000-of-00001", prefix + ".index", durable=False) as writer:
        ...     writer.add("x", torch.arange(3))
    """

    def __init__(self, data_path: str, index_path: str, *, durable: bool = True, alignment: int = 1) -> None:
        self._writer = _native.BundleWriter(data_path, index_path, durable=durable, alignment=alignment)

    def add(self, key: str | bytes, tensor: torch.Tensor, dtype: DataType | None = None) -> None:
        """Appends one tensor.

        Args:
            key: its name in the bundle; text is stored as UTF-8.
            tensor: any strided tensor of a dtype that the format has; its values go to the file in row-major order.
            dtype: the stored type, where the tensor holds the elements of a type without a torch twin.

        Raises:
            DuplicateKeyError: the key was added before.
            UnsupportedValueError: the format has no such dtype, or the tensor is not of the one that holds the elements
                of ``dtype``.
        """
        self.add_all([(key, tensor, dtype or data_type_of_torch(tensor.dtype))])

    def add_all(self, tensors: Iterable[tuple[str | bytes, torch.Tensor, DataType]]) -> None:
        """Appends many tensors by one call into native code."""
        # The contiguous tensors are held by the list until the native call has returned.
        held = [(key, _stored_elements(tensor, dtype), dtype) for key, tensor, dtype in tensors]
        self._writer.add(
            [
                (_encoded(key), dtype.number, tuple(tensor.shape), tensor.data_ptr(), tensor.nbytes)
                for key, tensor, dtype in held
            ]
        )

    def add_slice(
        self, key: str | bytes, tensor: torch.Tensor, part: TensorSlice, dtype: DataType | None = None
    ) -> None:
        """Appends a part of a tensor, which has the key as a whole; the other parts may be in other bundles.

        Raises:
            DuplicateKeyError: the part was added before.
            UnsupportedValueError: the format has no such dtype.
            ValueError: the tensor has not the shape of the part, or earlier parts belong to another shape or dtype.
        """
        _check_shape(tuple(tensor.shape), part)
        stored = dtype or data_type_of_torch(tensor.dtype)
        held = _stored_elements(tensor, stored)
        self._writer.add_slice(
            _encoded(key), stored.number, part.full_shape, part.extents, held.data_ptr(), held.nbytes
        )

    def add_strings(
        self, key: str | bytes, value: bytes | np.ndarray[Any, np.dtype[np.object_]], part: TensorSlice | None = None
    ) -> None:
        """Appends a string tensor, a scalar or an array of ``bytes`` objects; or a part of one, as `add_slice`."""
        array = np.array(value, dtype=object) if isinstance(value, bytes) else value
        elements = array.ravel().tolist()
        if part is None:
            self._writer.add_strings(_encoded(key), array.shape, elements)
        else:
            _check_shape(array.shape, part)
            self._writer.add_strings_slice(_encoded(key), part.full_shape, part.extents, elements)

    def finish(self) -> None:
        """Completes both files.

        Raises:
            WriterClosedError: the writer has finished before, or failed.
        """
        self._writer.finish()

    def __enter__(self) -> BundleWriter:
        return self

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            self._writer.abandon()


def _check_shape(shape: tuple[int, ...], part: TensorSlice) -> None:
    if shape != part.shape:
        raise ValueError(f"A value of shape {list(shape)} is not the part '{part}', whose shape is {list(part.shape)}.")


def _stored_elements(tensor: torch.Tensor, dtype: DataType) -> torch.Tensor:
    if tensor.dtype != dtype.torch_dtype:
        held = "not as tensors" if dtype.torch_dtype is None else f"in tensors of {dtype.torch_dtype}"
        raise UnsupportedValueError(f"Values of type {dtype} are given {held}, not of {tensor.dtype}.")
    elements = row_major(tensor)
    return _in_low_bits(elements, dtype) if dtype.low_bits else elements


def _in_low_bits(elements: torch.Tensor, dtype: DataType) -> torch.Tensor:
    shift = 8 - dtype.low_bits
    if not torch.equal((elements << shift) >> shift, elements):
        raise ValueError(f"A tensor holds values that {dtype}, of {dtype.low_bits} bits, cannot hold.")
    return elements.view(torch.uint8) & ((1 << dtype.low_bits) - 1)


def _encoded(key: str | bytes) -> bytes:
    return key if isinstance(key, bytes) else key.encode()
