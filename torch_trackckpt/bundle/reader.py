"""Reads the tensors of a checkpoint by their keys: thin over the native reader."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from torch_trackckpt import _native
from torch_trackckpt.bundle.dtypes import STRING, DataType, data_type_of_number
from torch_trackckpt.bundle.file_names import find_bundle, index_name
from torch_trackckpt.errors import CheckpointNotFoundError, TensorNotFoundError, UnsupportedFormatError

__all__ = ["CheckpointReader", "StoredTensor", "torch_tensor_like_stored"]


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """What a checkpoint says of one value without reading it."""

    key: str
    dtype: DataType
    shape: tuple[int, ...]
    nbytes: int
    """Bytes in the data file; 0 where the value lies in slices."""


class CheckpointReader:
    """Reads single values of a checkpoint, whoever wrote it. TensorFlow's ``tf.train.CheckpointReader``.

    Opening reads the index alone. No file stays open, and what is returned owns its memory.

    Args:
        file_prefix: the path of a checkpoint without ``.index``, as `Checkpoint.save` returned it (with
            ``.index`` it is accepted too).

    Raises:
        CheckpointNotFoundError: there is no such checkpoint.
        DataLossError: its index is damaged.
        UnsupportedFormatError: it is of a version that is not read.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import Checkpoint, CheckpointReader
        >>> path = Checkpoint(x=torch.ones(2)).write(tempfile.mkdtemp() + "/ckpt")
        >>> CheckpointReader(path).get_tensor("x/.ATTRIBUTES/VARIABLE_VALUE")
        tensor([1., 1.])
    """

    def __init__(self, file_prefix: str | os.PathLike[str]) -> None:
        path = os.fsdecode(file_prefix)
        self.file_prefix = path if os.path.exists(index_name(path)) else path.removesuffix(".index")
        self._bundle = _open(self.file_prefix)

    def has_tensor(self, key: str) -> bool:
        """Whether a value is stored under the key."""
        return self._bundle.find(_encoded(key)) is not None

    def stored(self, key: str) -> StoredTensor:
        """What is stored under a key.

        Raises:
            TensorNotFoundError: nothing is.
        """
        entry = self._bundle.find(_encoded(key))
        if entry is None:
            raise TensorNotFoundError(f"Key {key} not found in checkpoint {self.file_prefix!r}.")
        return _described(entry)

    def all_stored(self) -> list[StoredTensor]:
        """Everything that is stored, in the byte order of the keys."""
        entries = self._bundle.entries()
        # The parts of a sliced tensor have entries of their own, under keys that begin with a zero byte.
        is_sliced = any(entry.slices for entry in entries)
        return [_described(entry) for entry in entries if not (is_sliced and entry.key.startswith(b"\0"))]

    def get_variable_to_shape_map(self) -> dict[str, list[int]]:
        """Every key with its shape."""
        return {stored.key: list(stored.shape) for stored in self.all_stored()}

    def get_variable_to_dtype_map(self) -> dict[str, DataType]:
        """Every key with its stored type; ``.torch_dtype`` of it is what `get_tensor` returns."""
        return {stored.key: stored.dtype for stored in self.all_stored()}

    def debug_string(self) -> str:
        """A line such as ``name (DT_FLOAT) [2,3]`` for each key."""
        return "".join(
            f"{stored.key} ({stored.dtype.enum_name}) [{','.join(map(str, stored.shape))}]\n"
            for stored in self.all_stored()
        )

    def get_tensor(self, key: str) -> torch.Tensor | bytes | np.ndarray[Any, np.dtype[np.object_]]:
        """The value under a key, checked against its checksum.

        Returns:
            A CPU tensor of the stored shape and dtype (see `torch_trackckpt.bundle.dtypes` for stored types that
            torch lacks). A string scalar comes as ``bytes``, strings of other shapes as a NumPy array of ``bytes``.

        Raises:
            TensorNotFoundError: nothing is stored under the key.
            DataLossError: the value, or what the index says of it, is damaged.
            CheckpointNotFoundError: its data file is missing.
            UnsupportedFormatError: its type cannot be read.
        """
        stored = self.stored(key)
        if stored.dtype is STRING:
            return self._strings(stored)
        tensor = torch_tensor_like_stored(stored)
        self.read_into([(key, tensor)])
        return _with_sign(tensor, stored.dtype)

    def read_into(self, requests: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Reads values straight into contiguous CPU tensors of their dtype and shape.

        Raises:
            DataLossError: damage; its ``completed`` tells how many tensors were filled before, its ``touched``
                whether the next one was written to.
        """
        self._bundle.read([(_encoded(key), tensor.data_ptr(), tensor.nbytes) for key, tensor in requests])

    def check(self, keys: Iterable[str]) -> None:
        """Checks without reading the values that each lies inside its file and has the size of its shape.

        Raises:
            DataLossError: a value does not.
            CheckpointNotFoundError: a data file is missing.
        """
        self._bundle.check([_encoded(key) for key in keys])

    def verify(self, keys: Iterable[str] | None = None) -> None:
        """Reads values (all of them by default) and checks their checksums.

        Raises:
            DataLossError: a value is damaged.
        """
        chosen = (stored.key for stored in self.all_stored()) if keys is None else keys
        self._bundle.verify([_encoded(key) for key in chosen])

    def _strings(self, stored: StoredTensor) -> bytes | np.ndarray[Any, np.dtype[np.object_]]:
        values = self._bundle.read_strings(_encoded(stored.key))
        if stored.shape == ():
            return values[0]
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array.reshape(stored.shape)


def torch_tensor_like_stored(stored: StoredTensor) -> torch.Tensor:
    """A new CPU tensor that a stored value can be read into."""
    if stored.dtype.torch_dtype is None:
        raise UnsupportedFormatError(f"{stored.key}: a value of type {stored.dtype} cannot be read as a tensor.")
    # The device is named because the caller may be inside `with torch.device(...)`.
    return torch.empty(stored.shape, dtype=stored.dtype.torch_dtype, device="cpu")


def _open(prefix: str) -> _native.BundleReader:
    files = find_bundle(prefix)
    try:
        return _native.BundleReader(files.index, files.prefix, files.data_suffixes)
    except CheckpointNotFoundError:
        # The index may have got its final name between the look and the opening.
        files = find_bundle(prefix)
        return _native.BundleReader(files.index, files.prefix, files.data_suffixes)


def _described(entry: _native.BundleEntry) -> StoredTensor:
    key = entry.key.decode(errors="surrogateescape")
    try:
        dtype = data_type_of_number(entry.dtype)
    except UnsupportedFormatError as error:
        raise UnsupportedFormatError(f"{key}: {error}") from error
    return StoredTensor(key, dtype, entry.shape, entry.size)


def _with_sign(tensor: torch.Tensor, dtype: DataType) -> torch.Tensor:
    """Extends the sign of values that are stored in the low bits of a byte."""
    if not dtype.sign_bits:
        return tensor
    shift = 8 - dtype.sign_bits
    return (tensor << shift) >> shift


def _encoded(key: str) -> bytes:
    return key.encode(errors="surrogateescape")
