"""Typed contract of the compiled core (csrc/bindings.cpp).

Tensor bytes cross as addresses; the caller keeps the memory alive until the call returns. Every call
that reads or writes files or computes checksums of large memory releases the interpreter lock.
Failures raise the classes of `torch_trackckpt.errors`, or ``OSError`` with ``errno`` and file name
where the operating system refused.
"""

from typing import final

def crc32c(data: bytes, crc: int = 0, implementation: str = "") -> int:
    """CRC-32C of `data`, continuing from `crc` (0 to start).

    An empty `implementation` takes the fastest; a name from `crc32c_implementations` forces that one.
    """

def crc32c_implementations() -> list[str]:
    """Names of the CRC-32C kernels that run on this processor, fastest first; the last is `portable`."""

@final
class BundleWriter:
    """Writes one shard: a data file, and the index table that names its tensors."""

    def __init__(self, data_path: str, index_path: str, *, durable: bool, block_size: int = 262144) -> None:
        """Creates both files; neither may exist. With `durable`, `finish` returns after fsync of both."""

    def add(self, tensors: list[tuple[bytes, int, tuple[int, ...], int, int]]) -> None:
        """Appends (key, DataType number, shape, address, size in bytes) in the given order.

        Raises `DuplicateKeyError` for a used key and ``ValueError`` for a size that contradicts dtype and
        shape; after any error the writer is failed, and every later call raises `WriterClosedError`.
        """

    def add_strings(self, key: bytes, shape: tuple[int, ...], values: list[bytes]) -> None:
        """Appends a string tensor, its elements in row-major order."""

    def finish(self) -> None:
        """Completes both files. A second call raises `WriterClosedError`."""

    def abandon(self) -> None:
        """Closes and removes the files of a writer that has not finished. Harmless otherwise."""

@final
class BundleEntry:
    """One record of the index: where a tensor lies and what it is."""

    @property
    def key(self) -> bytes: ...
    @property
    def dtype(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def shard_id(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def crc32c(self) -> int:
        """The masked checksum, as stored."""
    @property
    def num_slices(self) -> int:
        """Greater than 0 where the value lies under slice keys of its own."""

@final
class BundleReader:
    """Reads one bundle of any number of shards. No file stays open between calls."""

    def __init__(self, index_path: str, data_prefix: str, data_suffixes: tuple[str, ...] = ("",)) -> None:
        """Reads the whole index and checks its header.

        Shard s of n lies in the first existing file of ``<data_prefix>.data-<s>-of-<n><suffix>``, s and n
        as decimal numbers of at least five digits. Data files are not touched before a value is asked for.
        """

    @property
    def num_shards(self) -> int: ...
    def entries(self) -> list[BundleEntry]:
        """Every entry in key order, without the header."""

    def find(self, key: bytes) -> BundleEntry | None: ...
    def check(self, keys: list[bytes]) -> None:
        """Checks sizes against dtypes and shapes, and that every value lies inside its data file."""

    def verify(self, keys: list[bytes]) -> None:
        """Reads the values and checks their checksums; keeps nothing."""

    def read(self, requests: list[tuple[bytes, int, int]]) -> None:
        """Reads fixed-size values into memory: (key, address, size in bytes), checked on the way.

        A value of at most one chunk (1 MiB) is checked before its memory is touched; a larger one is read in
        place. On failure the exception's ``completed`` is the number of requests that were served, and its
        ``touched`` is true where the failing request's memory was already written to.
        """

    def read_strings(self, key: bytes) -> list[bytes]:
        """The elements of a string tensor in row-major order."""
