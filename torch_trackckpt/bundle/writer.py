"""Writes a bundle: thin over the native writer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch

from torch_trackckpt import _native
from torch_trackckpt.bundle.dtypes import DataType, data_type_of_torch
from torch_trackckpt.bundle.memory import row_major
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.errors import UnsupportedValueError
from torch_trackckpt.storage.base import Upload

__all__ = ["BundleWriter"]

_Column = np.ndarray[Any, np.dtype[np.int64]]
_Result = TypeVar("_Result")


class BundleWriter:
    """Writes tensors, in the order given, into data files and their index.

    As a context manager it finishes at the end of the block, or removes all files when the block raised. Several
    threads may write at once, each to a shard of its own. After an error nothing can be added any more; what other
    threads are writing ends soon. A key that was added before is found by `finish`.

    Args:
        data_paths: the data files to create, one for each shard; or the only one.
        index_path: the index to create. None of the files may exist.
        durable: whether `finish` waits until the disk has every byte.
        uploads: what becomes of the data files where they are no files of this machine; one for each path. The index
            is not written then, but is `index` after `finish`.
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

    def __init__(
        self,
        data_paths: str | Sequence[str],
        index_path: str,
        *,
        durable: bool = True,
        uploads: Sequence[Upload] | None = None,
        alignment: int = 1,
    ) -> None:
        paths = [data_paths] if isinstance(data_paths, str) else list(data_paths)
        self._uploads = uploads or ()
        self._unfinished = dict(enumerate(self._uploads))
        self.index = b""
        self._writer = _native.BundleWriter(
            paths,
            index_path,
            durable=durable,
            alignment=alignment,
            next_parts=None if uploads is None else [_weakly(upload.next_part) for upload in uploads],
            take_index=_weakly(self._take_index),
        )

    def _take_index(self, content: bytes) -> None:
        self.index = content

    def expect(self, num_bytes: int, *, shard: int = 0) -> None:
        """Says that at least so many bytes will be added, so that the disk has one place for all of them."""
        self._writer.expect(shard, num_bytes)

    def add(self, key: str | bytes, tensor: torch.Tensor, dtype: DataType | None = None, *, shard: int = 0) -> None:
        """Appends one tensor.

        Args:
            key: its name in the bundle; text is stored as UTF-8.
            tensor: any strided tensor of a dtype that the format has; its values go to the file in row-major order.
            dtype: the stored type, where the tensor holds the elements of a type without a torch twin.
            shard: the data file.

        Raises:
            UnsupportedValueError: the format has no such dtype, or the tensor is not of the one that holds the elements
                of ``dtype``.
        """
        self.add_all([(key, tensor, dtype or data_type_of_torch(tensor.dtype))], shard=shard)

    def add_all(self, tensors: Iterable[tuple[str | bytes, torch.Tensor, DataType]], *, shard: int = 0) -> None:
        """Appends some tensors of any kind by one call into native code."""
        # The contiguous tensors are held by the list until the native call has returned.
        held = [(key, _stored_elements(tensor, dtype), dtype) for key, tensor, dtype in tensors]
        self._writer.add(
            shard,
            [
                (_encoded(key), dtype.number, tuple(tensor.shape), tensor.data_ptr(), tensor.nbytes)
                for key, tensor, dtype in held
            ],
        )

    def add_rows(self, keys: list[str], table: _native.TensorTable, rows: _Column, *, shard: int = 0) -> None:
        """Appends plain rows of a table, whose keys are in a column beside it; nothing is done for each in Python.

        Raises:
            ValueError: one of the rows is not plain, or not there.
        """
        self._writer.add_rows(shard, keys, table, rows)

    def add_parts(
        self,
        keys: list[str],
        table: _native.TensorTable,
        rows: _Column,
        begins: _Column,
        sizes: _Column,
        addresses: _Column,
        *,
        shard: int = 0,
    ) -> None:
        """Appends parts of rows of a table that lie in other memory than the table says.

        Args:
            keys: those of all rows of the table.
            table: what the rows are.
            rows: the row of each part. Those of one row follow each other from front to back, in one call or several.
            begins, sizes: which bytes of the row.
            addresses: where they are.
            shard: the data file.

        Raises:
            ValueError: a part does not follow the one before it.
        """
        self._writer.add_parts(shard, keys, table, rows, begins, sizes, addresses)

    def add_slice(
        self,
        key: str | bytes,
        tensor: torch.Tensor,
        part: TensorSlice,
        dtype: DataType | None = None,
        *,
        shard: int = 0,
    ) -> None:
        """Appends a part of a tensor, which has the key as a whole; the other parts may be in other bundles.

        Raises:
            UnsupportedValueError: the format has no such dtype.
            ValueError: the tensor has not the shape of the part, or earlier parts belong to another shape or dtype.
        """
        _check_shape(tuple(tensor.shape), part)
        stored = dtype or data_type_of_torch(tensor.dtype)
        held = _stored_elements(tensor, stored)
        self._writer.add_slice(
            shard, _encoded(key), stored.number, part.full_shape, part.extents, held.data_ptr(), held.nbytes
        )

    def add_strings(
        self,
        key: str | bytes,
        value: bytes | np.ndarray[Any, np.dtype[np.object_]],
        part: TensorSlice | None = None,
        *,
        shard: int = 0,
    ) -> None:
        """Appends a string tensor, a scalar or an array of ``bytes`` objects; or a part of one, as `add_slice`."""
        array = np.array(value, dtype=object) if isinstance(value, bytes) else value
        elements = array.ravel().tolist()
        if part is None:
            self._writer.add_strings(shard, _encoded(key), array.shape, elements)
        else:
            _check_shape(array.shape, part)
            self._writer.add_strings_slice(shard, _encoded(key), part.full_shape, part.extents, elements)

    def finish_shard(self, shard: int) -> None:
        """Completes one data file: it is closed, and on the disk where that was asked for.

        Raises:
            WriterClosedError: the writer has finished before, or failed.
        """
        self._writer.finish_shard(shard)
        if shard in self._unfinished:
            self._unfinished[shard].finish()
            del self._unfinished[shard]

    def finish(self) -> None:
        """Completes all files.

        Raises:
            DuplicateKeyError: a key was added twice.
            WriterClosedError: the writer has finished before, or failed.
        """
        for shard in list(self._unfinished):
            self.finish_shard(shard)
        self._writer.finish()
        self._uploads = ()

    def abandon(self) -> None:
        """Removes all files, unless they are complete; what other threads are writing ends soon."""
        self._writer.abandon()
        for upload in self._uploads:
            upload.abort()

    def __enter__(self) -> BundleWriter:
        return self

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.finish()
        finally:
            self.abandon()


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


def _weakly(method: Callable[..., _Result]) -> Callable[..., _Result]:
    """The method, for the native writer to call. The garbage collector does not see what that holds, so it must not
    hold what leads back to it: neither its own Python object, nor an upload that failed, whose error has the frames."""
    reference = weakref.WeakMethod(method)

    def call(*arguments: Any) -> _Result:
        alive = reference()
        assert alive is not None, "who calls the native writer holds this one, and all uploads"
        return alive(*arguments)

    return call


def _encoded(key: str | bytes) -> bytes:
    return key if isinstance(key, bytes) else key.encode()
