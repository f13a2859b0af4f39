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

__all__ = ["BundleWriter"]


class BundleWriter:
    """Writes tensors, in the order given, into a data file and its index.

    As a context manager it finishes at the end of the block, or removes both files when the block raised.

    Args:
        data_path, index_path: the files to create; neither may exist.
        durable: whether `finish` waits until the disk has every byte.

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

    def __init__(self, data_path: str, index_path: str, *, durable: bool = True) -> None:
        self._writer = _native.BundleWriter(data_path, index_path, durable=durable)

    def add(self, key: str | bytes, tensor: torch.Tensor, dtype: DataType | None = None) -> None:
        """Appends one tensor.

        Args:
            key: its name in the bundle; text is stored as UTF-8.
            tensor: any strided tensor of a dtype that the format has; its values go to the file in row-major order.
            dtype: the stored type, where the tensor holds the elements of a type without a torch twin.

        Raises:
            DuplicateKeyError: the key was added before.
            UnsupportedValueError: the format has no such dtype.
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

    def add_strings(self, key: str | bytes, value: bytes | np.ndarray[Any, np.dtype[np.object_]]) -> None:
        """Appends a string tensor: a scalar, or an array of ``bytes`` objects."""
        array = np.array(value, dtype=object) if isinstance(value, bytes) else value
        self._writer.add_strings(_encoded(key), array.shape, array.ravel().tolist())

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


def _stored_elements(tensor: torch.Tensor, dtype: DataType) -> torch.Tensor:
    elements = row_major(tensor)
    if dtype.sign_bits:
        elements = elements.view(torch.uint8) & ((1 << dtype.sign_bits) - 1)
    return elements


def _encoded(key: str | bytes) -> bytes:
    return key if isinstance(key, bytes) else key.encode()
