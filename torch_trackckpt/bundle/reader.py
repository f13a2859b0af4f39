"""Reads the tensors of a checkpoint by their keys: thin over the native readers of the two formats."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from torch_trackckpt import _native
from torch_trackckpt.bundle.dtypes import STRING, VARIANT, DataType, data_type_of_number
from torch_trackckpt.bundle.file_names import NEXT, BundleFiles, V1Files, current_index, find_checkpoint
from torch_trackckpt.bundle.mapping import map_tensor
from torch_trackckpt.bundle.memory import PLAIN_TYPES
from torch_trackckpt.bundle.slices import Index, TensorSlice, resolve_index
from torch_trackckpt.bundle.threads import num_threads
from torch_trackckpt.bundle.verification import verify_values
from torch_trackckpt.errors import (
    CheckpointNotFoundError,
    DataLossError,
    TensorNotFoundError,
    UnsupportedFormatError,
)
from torch_trackckpt.storage.base import Ranges
from torch_trackckpt.storage.choice import storage_for

__all__ = ["CheckpointReader", "LazyTensor", "StoredTensor", "torch_tensor_like_stored"]

_MOST_ATTEMPTS = 20
"""How often opening is tried while files get other names. Each is gone within an instant."""

_UNCHECKED_BYTES = 1 << 20
"""Memory for values of up to this size is taken without asking first whether the file can hold them."""

_HUGE_PAGE_BYTES = 4 << 20
"""From this size on, new memory surely has room for a huge page (2 MiB, at a multiple of it)."""

T = TypeVar("T")

Strings = np.ndarray[Any, np.dtype[np.object_]]


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """What a checkpoint says of one value without reading it."""

    key: str
    dtype: DataType
    shape: tuple[int, ...]
    nbytes: int
    """Bytes of its elements; for strings and variants those in the data file, where one entry tells them, else 0."""


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A stored value that has not been read: what `CheckpointReader` yields when it is iterated.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import Checkpoint, CheckpointReader
        >>> reader = CheckpointReader(Checkpoint(x=torch.arange(6)).write(tempfile.mkdtemp() + "/ckpt"))
        >>> lazy = reader["x/.ATTRIBUTES/VARIABLE_VALUE"]
        >>> lazy.shape, lazy[2:4]
        ((6,), tensor([2, 3]))
    """

    stored: StoredTensor
    reader: CheckpointReader = dataclasses.field(repr=False)

    @property
    def key(self) -> str:
        """What it is stored under."""
        return self.stored.key

    @property
    def dtype(self) -> DataType:
        """The stored type."""
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored shape."""
        return self.stored.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the elements; see `StoredTensor`."""
        return self.stored.nbytes

    def read(self, *, mmap: bool = False) -> torch.Tensor | bytes | Strings:
        """The value, as `CheckpointReader.get_tensor` gives it."""
        return self.reader.get_tensor(self.key, mmap=mmap)

    def __getitem__(self, index: Index) -> torch.Tensor | bytes | Strings:
        """A part of the value; only what it needs is read, so that it is not always checked: see `get_tensor`."""
        # None asks `get_tensor` for the whole, but in brackets it would be a new axis, which no part has.
        return self.reader.get_tensor(self.key, (index,) if index is None else index)


class CheckpointReader(Mapping[str, LazyTensor]):
    """Reads single values of a checkpoint, whoever wrote it. TensorFlow's ``tf.train.CheckpointReader``.

    It takes both formats of TensorFlow: bundles, and the older files in which an index and the tensors are one table.
    Opening reads the index alone. No file stays open, and what is returned owns its memory unless a memory map was
    asked for. As a mapping it goes through the keys, in their byte order, and gives `LazyTensor` values.

    Args:
        file_prefix: the path of a checkpoint without ``.index``, as `Checkpoint.save` returned it (with
            ``.index`` it is accepted too). For the older format the path of its file, a pattern such as
            ``model.ckpt-?????-of-00003``, or what its files' names have in common before ``-00000-of-00003``. Or a
            URL of remote storage (``docs/remote.md``), from which the older format is not read.

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
        self._storage = storage_for(path)
        self._ranges: Ranges | None = None
        self._files: BundleFiles | V1Files
        self._bundle: _native.BundleReader | _native.V1Reader
        self._open(path)
        self.file_prefix = self._files.prefix

    def _open(self, path: str) -> None:
        """Opens the files, again while their names are changing."""
        for attempt in itertools.count(1):
            self._files = find_checkpoint(path)
            self._index = current_index(self._files.prefix)
            try:
                self._ranges = self._storage.ranges(self._files.prefix)
                # The index that was looked at has to be the one that is opened.
                if self._ranges is not None or find_checkpoint(path) == self._files:
                    self._bundle = _native_reader(self._files, self._ranges)
                    if self._is_current():
                        return
            except (CheckpointNotFoundError, DataLossError) as error:
                # What is read in several requests may be of two files, of which each is sound.
                is_torn = isinstance(error, CheckpointNotFoundError) or not self._is_current()
                if attempt == _MOST_ATTEMPTS or not is_torn:
                    raise

    # What is there.

    def has_tensor(self, key: str) -> bool:
        """Whether a value is stored under the key."""
        try:
            return self._bundle.find(_encoded(key)) is not None
        except TensorNotFoundError:
            return False

    def stored(self, key: str) -> StoredTensor:
        """What is stored under a key.

        Raises:
            TensorNotFoundError: nothing is.
        """
        return _described(self._find(key))

    def all_stored(self) -> list[StoredTensor]:
        """Everything that is stored, in the byte order of the keys. The slices of one tensor count as one."""
        return [_stored(*described) for described in self._bundle.tensors()]

    def stored_slices(self, key: str) -> list[TensorSlice]:
        """The parts in which a tensor is stored, in the order in which they were saved; none where it lies whole.

        Raises:
            TensorNotFoundError: nothing is stored under the key.
        """
        entry = self._find(key)
        return [TensorSlice(entry.shape, extents) for extents in entry.slices]

    def get_variable_to_shape_map(self) -> dict[str, list[int]]:
        """Every key with its shape."""
        return self._bundle.shapes()

    def get_variable_to_dtype_map(self) -> dict[str, DataType]:
        """Every key with its stored type; ``.torch_dtype`` of it is what `get_tensor` returns."""
        return {key: data_type_of_number(number) for key, number, _, _ in self._bundle.tensors()}

    def debug_string(self) -> str:
        """A line such as ``name (DT_FLOAT) [2,3]`` for each key."""
        return "".join(
            f"{stored.key} ({stored.dtype.enum_name}) [{','.join(map(str, stored.shape))}]\n"
            for stored in self.all_stored()
        )

    def __getitem__(self, key: str) -> LazyTensor:
        return LazyTensor(self.stored(key), self)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.has_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._bundle.keys())

    def __len__(self) -> int:
        return self._bundle.num_keys()

    # Two readers are equal only if they are the same: comparing every value would be a surprise.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.file_prefix!r})"

    # Values.

    def get_tensor(
        self, key: str, slice: Index | TensorSlice | str | None = None, *, verify: bool = False, mmap: bool = False
    ) -> torch.Tensor | bytes | Strings:
        """The value under a key, checked against its checksum, or a part of it.

        Args:
            key: what it is stored under.
            slice: a part, as an index (``np.s_[2:4, :]``) or in TensorFlow's notation (``"2,2:-"``). Only the bytes
                that it needs are read, and gaps of less than a page between them, however the tensor was cut when it
                was stored. (Strings, and records of the older format, are read whole.)
            verify: for a part, reads the stored values that it comes from whole, to check their checksums. Without
                it, damage in a part is found only where a whole stored value was needed: there is no checksum of less.
            mmap: asks for a tensor that is a view of the data file instead of a copy; for whole tensors. Its checksum
                is checked now, but the memory stays that of the file: it is dropped and read again as the system
                likes, and a file that is cut short later ends the process. Writing to the tensor does not change the
                file. Values that cannot be used as they lie in the file (strings, slices, swapped bytes, an address
                that is no multiple of the element size) are copied as without it.

        Returns:
            A CPU tensor of the stored shape and dtype (see `torch_trackckpt.bundle.dtypes` for stored types that
            torch lacks). A string scalar comes as ``bytes``, strings of other shapes as a NumPy array of ``bytes``.

        Raises:
            TensorNotFoundError: nothing is stored under the key.
            DataLossError: the value, or what the index says of it, is damaged; or slices of it are missing; or the
                checkpoint was replaced since it was opened.
            CheckpointNotFoundError: its data file is missing. Values in other files can be read.
            UnsupportedFormatError: its type cannot be read.
            ValueError, IndexError, TypeError: there is no such part.
            ValueError: ``mmap`` is set, and the checkpoint is on remote storage.
            OSError: remote storage does not answer.
        """
        if mmap and self._ranges is not None:
            raise ValueError(
                f"Only files of this machine can be mapped, and {self.file_prefix!r} is on remote storage."
            )
        if slice is not None and mmap:
            raise ValueError("Only whole tensors can be mapped; map the tensor and take the part of it.")
        if slice is not None:
            return self._part(key, slice, verify)
        entry = self._find(key)
        stored = _described(entry)
        if stored.dtype is STRING:
            with self._telling_of_replacement():
                return _shaped(key, self._bundle.read_strings(entry.key), stored.shape)
        if mmap and (mapped := self._unreplaced(lambda: self._mapped(entry, stored))) is not None:
            return mapped
        if stored.nbytes > _UNCHECKED_BYTES:
            self._check_room(entry, key, stored.nbytes)
            self.check([key])
        tensor = torch_tensor_like_stored(stored)
        self._read_into([(key, tensor)], num_threads())
        return _with_sign(tensor, stored.dtype)

    def get_variants(self, key: str) -> list[bytes]:
        """The elements of a variant tensor as the serialised ``VariantTensorDataProto`` messages that are stored.

        Variants hold objects of TensorFlow's own, such as lists of tensors; nothing here makes anything of them.

        Raises:
            TensorNotFoundError, DataLossError, CheckpointNotFoundError: as `get_tensor`.
            ValueError: the value is no variant.
        """
        entry = self._find(key)
        if data_type_of_number(entry.dtype) is not VARIANT or isinstance(self._bundle, _native.V1Reader):
            raise ValueError(f"{key} is no variant tensor but {data_type_of_number(entry.dtype)}; use get_tensor.")
        return self._bundle.read_variants(entry.key)

    def _plan(
        self,
        keys: list[str],
        table: _native.TensorTable,
        land: Sequence[int] = (),
        boxes: Sequence[tuple[int, tuple[int, ...], tuple[int, ...]]] = (),
    ) -> _native.RowPlan | None:
        """How the values of keys get into the plain rows of a table, and into memory of the caller's for those that
        land; None for the older format, which has no plans."""
        if isinstance(self._bundle, _native.V1Reader):
            return None
        with self._telling_of_replacement():
            return _native.RowPlan(self._bundle, keys, table, land, list(boxes))

    def _read_into(self, requests: Sequence[tuple[str, torch.Tensor]], num_threads: int) -> None:
        """Reads values straight into contiguous CPU tensors, which the caller has found to be of their dtype and shape.

        Raises:
            DataLossError: damage; its ``touched`` lists the requests whose tensors were, or may have been, written to.
        """
        with self._telling_of_replacement():
            self._bundle.read(
                [(_encoded(key), tensor.data_ptr(), tensor.nbytes) for key, tensor in requests], num_threads=num_threads
            )

    def _read_boxes(self, requests: Sequence[tuple[str, TensorSlice, torch.Tensor]], num_threads: int) -> None:
        """Reads parts of values into contiguous CPU tensors, which the caller has found to fit, as `get_tensor` does.

        Raises:
            DataLossError: damage that shows without a checksum, or in a value that was needed whole.
        """
        with self._telling_of_replacement():
            if isinstance(self._bundle, _native.V1Reader):
                for key, part, tensor in requests:
                    self._bundle.read_slice(_encoded(key), part.extents, tensor.data_ptr(), tensor.nbytes, verify=False)
                return
            boxes = [(row, part.full_shape, part.offset) for row, (_, part, _) in enumerate(requests)]
            table = _native.TensorTable([tensor for *_, tensor in requests], PLAIN_TYPES)
            _native.RowPlan(self._bundle, [key for key, *_ in requests], table, (), boxes).read(num_threads=num_threads)

    def _check_not_replaced(self) -> None:
        """To be called after reads that no checksum guards: what was read is of the files that were opened.

        Raises:
            DataLossError: it may be of others.
        """
        if not (self._names_hold() and self._is_current()):
            raise DataLossError(
                f"The checkpoint {self.file_prefix!r} was replaced, removed or renamed while it was being read; read "
                "it again."
            )

    def check(self, keys: Iterable[str]) -> None:
        """Checks without reading the values that each lies inside its file and has the size of its shape.

        Raises:
            DataLossError: a value does not.
            CheckpointNotFoundError: a data file is missing.
        """
        with self._telling_of_replacement():
            self._bundle.check([_encoded(key) for key in keys])

    def verify(self, keys: Iterable[str] | None = None, progress: Callable[[int, int], object] | None = None) -> None:
        """Reads values (all of them by default) and checks their checksums. Keeps nothing of them.

        Args:
            keys: which values.
            progress: called with the number of bytes that were checked and of all that will be, in steps of about
                64 MiB or one value.

        Raises:
            DataLossError: values are damaged; the text names the first hundred of them.
            CheckpointNotFoundError: a data file is missing, and nothing else is wrong.
            UnsupportedFormatError: values are of types that cannot be checked, and nothing else is wrong.
        """
        described = self.all_stored() if keys is None else [self.stored(key) for key in keys]
        values = [(stored.key, stored.nbytes) for stored in described]
        threads = num_threads()
        with self._telling_of_replacement():
            verify_values(
                values,
                lambda keys: self._bundle.verify([_encoded(key) for key in keys], num_threads=threads),
                self.file_prefix,
                progress,
            )

    def _find(self, key: str) -> _native.BundleEntry:
        entry = self._bundle.find(_encoded(key))
        if entry is None:
            raise TensorNotFoundError(f"Key {key} not found in checkpoint {self.file_prefix!r}.")
        return entry

    def _part(self, key: str, index: Index | TensorSlice | str, verify: bool) -> torch.Tensor | bytes | Strings:
        entry = self._find(key)
        stored = _described(entry)
        try:
            extents, shape = resolve_index(stored.shape, index)
        except (ValueError, IndexError, TypeError) as error:
            raise type(error)(f"{key}: {error}") from error
        part = dataclasses.replace(stored, shape=shape, nbytes=_nbytes(stored.dtype, shape))
        if stored.dtype is STRING:
            with self._telling_of_replacement():
                return _shaped(key, self._bundle.read_strings(entry.key, extents) if math.prod(shape) else [], shape)
        self._check_room(entry, key, part.nbytes)
        tensor = torch_tensor_like_stored(part)
        if tensor.numel():
            self._unreplaced(
                lambda: self._bundle.read_slice(entry.key, extents, tensor.data_ptr(), tensor.nbytes, verify=verify)
            )
        return _with_sign(tensor, stored.dtype)

    def _unreplaced(self, read: Callable[[], T]) -> T:
        """The result of a read that no checksum guards, of the very files that were opened."""
        with self._telling_of_replacement():
            for attempt in itertools.count(1):
                try:
                    result = read()
                except CheckpointNotFoundError:
                    # Files called `.next` get their final names one after the other.
                    if self._next_index() is None or attempt == _MOST_ATTEMPTS:
                        raise
                else:
                    if self._names_hold() and self._is_current():
                        return result
                if self._next_index() is None or not self._names_hold():
                    self._reopen()
        raise AssertionError("the loop ends by what it returns or raises")

    def _next_index(self) -> str | None:
        """The path of the index, if it was opened before it had its final name."""
        if isinstance(self._files, BundleFiles) and self._files.index.endswith(NEXT):
            return self._files.index
        return None

    def _names_hold(self) -> bool:
        """Whether files called `.next` are still this checkpoint's, and not those of the next one."""
        next_index = self._next_index()
        return next_index is None or self._storage.exists(next_index)

    def _reopen(self) -> None:
        opened = self._index
        self._open(self.file_prefix)
        if self._index != opened:
            self._index = opened
            raise DataLossError(f"What was read of {self.file_prefix!r} may be of another checkpoint.")

    def _is_current(self) -> bool:
        return isinstance(self._files, V1Files) or self._index == current_index(self._files.prefix)

    @contextlib.contextmanager
    def _telling_of_replacement(self) -> Iterator[None]:
        """Says of errors that come of it that the checkpoint was replaced."""
        try:
            yield
        except (DataLossError, CheckpointNotFoundError) as error:
            if self._is_current():
                raise
            replaced = DataLossError(
                f"The checkpoint {self.file_prefix!r} was replaced or removed after this reader had opened it; open it "
                "again."
            )
            # How far reading into tensors has got.
            vars(replaced).update(vars(error))
            raise replaced from error

    def _mapped(self, entry: _native.BundleEntry, stored: StoredTensor) -> torch.Tensor | None:
        """The value as a view of its file, checked; None where it cannot be used as it lies there."""
        place = self._place_to_map(entry, stored)
        if place is None:
            return None
        self._bundle.verify([entry.key])
        return map_tensor(*place, stored.shape)

    def _place_to_map(self, entry: _native.BundleEntry, stored: StoredTensor) -> tuple[str, int, torch.dtype] | None:
        """File, offset and dtype of a value that torch can use as it lies in the file."""
        bundle, dtype = self._bundle, stored.dtype.torch_dtype
        if 0 in stored.shape:
            return None
        if isinstance(bundle, _native.V1Reader) or entry.slices or dtype is None or stored.dtype.low_bits:
            return None
        if entry.offset % dtype.itemsize or (bundle.is_big_endian and dtype.itemsize > 1):
            return None
        return bundle.data_path(entry.shard_id), entry.offset, dtype

    def _check_room(self, entry: _native.BundleEntry, key: str, nbytes: int) -> None:
        """Refuses sizes that a damaged index made up, before memory is taken for them."""
        if nbytes <= _UNCHECKED_BYTES or nbytes <= self._most_bytes(entry):
            return
        self._bundle.check([entry.key])  # which can say better what is wrong
        raise DataLossError(
            f"{self.file_prefix!r} says that {nbytes} bytes belong to {key}, more than its files can hold; it is "
            "damaged, or parts of it are missing."
        )

    def _most_bytes(self, entry: _native.BundleEntry) -> int:
        """More than a value can have."""
        if isinstance(self._files, V1Files):
            # A byte of a compressed block stands for 22 at most, and as a varint that byte for a number of 8.
            return 22 * 8 * sum(os.path.getsize(path) for path in self._files.paths)
        assert isinstance(self._bundle, _native.BundleReader)
        size = (self._storage if self._ranges is None else self._ranges).size
        if not entry.slices:
            return size(self._bundle.data_path(entry.shard_id))
        # The files that there are: the header may tell of any number.
        return sum(map(size, self._storage.list(f"{self._files.prefix}.data-")))


def torch_tensor_like_stored(stored: StoredTensor) -> torch.Tensor:
    """A new CPU tensor that a stored value can be read into."""
    if stored.dtype.torch_dtype is None:
        hint = "; get_variants(key) gives what is stored" if stored.dtype is VARIANT else ""
        raise UnsupportedFormatError(f"{stored.key}: a value of type {stored.dtype} cannot be read as a tensor{hint}.")
    if math.prod(max(size, 1) for size in stored.shape) * stored.dtype.torch_dtype.itemsize >= 1 << 63:
        raise UnsupportedFormatError(f"{stored.key}: torch has no tensors of shape {list(stored.shape)}.")
    # The device is named because the caller may be inside `with torch.device(...)`.
    tensor = torch.empty(stored.shape, dtype=stored.dtype.torch_dtype, device="cpu")
    if tensor.nbytes >= _HUGE_PAGE_BYTES:
        _native.advise_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def _native_reader(files: BundleFiles | V1Files, ranges: Ranges | None) -> _native.BundleReader | _native.V1Reader:
    if isinstance(files, V1Files):
        return _native.V1Reader(list(files.paths))
    return _native.BundleReader(files.index, files.prefix, files.data_suffixes, ranges)


def _described(entry: _native.BundleEntry) -> StoredTensor:
    return _stored(entry.key.decode(errors="surrogateescape"), entry.dtype, entry.shape, entry.size)


def _stored(key: str, number: int, shape: tuple[int, ...], size: int) -> StoredTensor:
    dtype = data_type_of_number(number)
    return StoredTensor(key, dtype, shape, _nbytes(dtype, shape) or size)


def _nbytes(dtype: DataType, shape: tuple[int, ...]) -> int:
    return 0 if dtype.torch_dtype is None else dtype.torch_dtype.itemsize * math.prod(shape)


def _shaped(key: str, values: list[bytes], shape: tuple[int, ...]) -> bytes | Strings:
    if shape == ():
        return values[0]
    array = np.empty(len(values), dtype=object)
    array[:] = values
    try:
        return array.reshape(shape)
    except ValueError as error:
        raise UnsupportedFormatError(f"{key}: NumPy has no arrays of shape {list(shape)}: {error}.") from error


def _with_sign(tensor: torch.Tensor, dtype: DataType) -> torch.Tensor:
    """Extends the sign of values that are stored in the low bits of a byte, and clears the other bits."""
    if not dtype.low_bits:
        return tensor
    shift = 8 - dtype.low_bits
    return (tensor << shift) >> shift


def _encoded(key: str) -> bytes:
    try:
        return key.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise TensorNotFoundError(f"Key {key!r} not found: no bytes of a file are this text.") from error
