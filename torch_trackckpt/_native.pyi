"""Typed contract of the compiled core (csrc/bindings.cpp, csrc/python).

Tensor bytes cross as addresses; the caller keeps the memory alive until the call returns. Every call
that reads or writes files or computes checksums of large memory releases the interpreter lock.
Failures raise the classes of `torch_trackckpt.errors`, or ``OSError`` with ``errno`` and file name
where the operating system refused.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, final

import numpy as np
from typing_extensions import Buffer

from torch_trackckpt.storage.base import Ranges

Extents = tuple[tuple[int, int], ...]
"""A part of a tensor: start and length in each dimension. Length -1, with start 0, is all of the dimension."""

def crc32c(data: Buffer, crc: int = 0, implementation: str = "") -> int:
    """CRC-32C of the bytes of `data`, which lie in one piece, continuing from `crc` (0 to start).

    An empty `implementation` takes the fastest; a name from `crc32c_implementations` forces that one.
    """

def crc32c_combine(crc_a: int, crc_b: int, size_b: int) -> int:
    """CRC-32C of A and B together, from those of A and of B and the number of bytes in B.

    So the parts of a tensor can be checksummed apart. Takes microseconds at most, whatever the size of B.
    """

def crc32c_implementations() -> list[str]:
    """Names of the CRC-32C kernels that run on this processor, fastest first; the last is `portable`."""

def advise_huge_pages(address: int, size: int) -> None:
    """Asks for huge pages in memory that was just allocated and not touched yet. Harmless where there are none."""

def map_file(path: str, offset: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """A part of a file as memory, mapped for as long as the array lives. No descriptor stays open.

    Nothing is read before it is used, and writing changes this process's own copy of the touched pages. Raises
    `DataLossError` where the file is shorter, and ``ValueError`` for a size of 0.
    """

@final
class BundleWriter:
    """Writes data files, one for each shard, and the index table that names the tensors in all of them.

    Calls for one shard take turns; calls for different shards may run at once. After an error in any of them the writer
    is failed: those that are under way end soon, and every later one raises `WriterClosedError`.
    """

    def __init__(
        self,
        data_paths: list[str],
        index_path: str,
        *,
        durable: bool,
        block_size: int = 262144,
        alignment: int = 1,
        next_parts: list[Callable[[int, bool], tuple[int, int] | None]] | None = None,
        take_index: Callable[[bytes], object] | None = None,
    ) -> None:
        """Creates all files; none may exist. With `durable`, they are synced by the calls that complete them.

        Behind each tensor the data file is filled with zeros up to a multiple of `alignment`. A data file is open only
        from its first tensor on until it is complete.

        With `next_parts`, one for each path, no file is made, and paths are what messages say. The bytes of a data file
        go into memory that its function returns as address and size; it is called with how many bytes of the part
        before are filled, and whether that was the last. `finish` calls `take_index` with the index.
        """

    def expect(self, shard: int, size: int) -> None:
        """Says that at least so many bytes will be added to a shard, so that a durable one lies in few pieces."""

    def add(self, shard: int, tensors: list[tuple[bytes, int, tuple[int, ...], int, int]]) -> None:
        """Appends (key, DataType number, shape, address, size in bytes) in the given order.

        Raises ``ValueError`` for a size that contradicts dtype and shape.
        """

    def add_rows(
        self, shard: int, keys: list[str], table: TensorTable, rows: np.ndarray[Any, np.dtype[np.int64]]
    ) -> None:
        """Appends rows of a table in the given order; ``keys`` has the key of every row of the table.

        Raises ``ValueError`` for a row that is not plain.
        """

    def add_parts(
        self,
        shard: int,
        keys: list[str],
        table: TensorTable,
        rows: np.ndarray[Any, np.dtype[np.int64]],
        begins: np.ndarray[Any, np.dtype[np.int64]],
        sizes: np.ndarray[Any, np.dtype[np.int64]],
        addresses: np.ndarray[Any, np.dtype[np.int64]],
    ) -> None:
        """Appends parts of rows, which lie at the given addresses instead of where the table says.

        The parts of a row follow each other from front to back, in one call or several; nothing else may be added
        before a row is complete. Raises ``ValueError`` otherwise.
        """

    def add_strings(self, shard: int, key: bytes, shape: tuple[int, ...], values: list[bytes]) -> None:
        """Appends a string tensor, its elements in row-major order."""

    def add_slice(
        self, shard: int, key: bytes, dtype: int, shape: tuple[int, ...], extents: Extents, address: int, size: int
    ) -> None:
        """Appends the part `extents` of the tensor `key`, whose full shape is `shape`; others may be in other shards.

        A part that is the whole tensor is stored as `add` does. Raises ``ValueError`` for extents outside of
        the shape and for a shape or dtype other than that of the tensor's earlier slices in the shard.
        """

    def add_strings_slice(
        self, shard: int, key: bytes, shape: tuple[int, ...], extents: Extents, values: list[bytes]
    ) -> None:
        """As `add_slice`, for strings: the elements of the part in row-major order."""

    def finish_shard(self, shard: int) -> None:
        """Completes one data file, which takes no more tensors."""

    def finish(self) -> None:
        """Completes all files, the index last. A second call raises `WriterClosedError`.

        Raises `DuplicateKeyError` for a key that was used twice, by a tensor or a slice of one, and ``ValueError``
        where slices of one tensor in several shards differ in its dtype or its shape.
        """

    def abandon(self) -> None:
        """Closes and removes the files of a writer that has not finished. Harmless otherwise."""

def merge_indexes(
    index_paths: list[str], merged_path: str, *, durable: bool, num_files: int | None = None
) -> list[tuple[int, int, int]]:
    """Writes one index for the bundles whose indexes are given; touches nothing else.

    Returns, for each data file of the merged bundle in order of its new shard number, the position of its index
    in `index_paths`, its old shard number and the old number of shards. Raises `DuplicateKeyError` for a key of
    two bundles, unless both hold slices of it, and ``ValueError`` for bundles that cannot be one (byte order,
    version, shape or dtype of a sliced tensor, or no bundle at all). On failure there is no merged file.

    With `num_files`, each bundle has one data file, which is known to have the number of its index among so many, and
    which stays in, whether anything lies in it or not.
    """

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
    def slices(self) -> tuple[Extents, ...]:
        """The stored slices; empty where the value lies whole in a data file."""

@final
class BundleReader:
    """Reads one bundle of any number of shards. No file stays open between calls."""

    def __init__(
        self,
        index_path: str,
        data_prefix: str,
        data_suffixes: tuple[str, ...] = ("",),
        files: Ranges | None = None,
    ) -> None:
        """Reads the whole index and checks its header.

        The files are of this machine, unless `files` has them. It is asked from several threads, while the reader holds
        no lock of Python's; an ``OSError`` of it comes out of the reader as one of the same number, path and text.

        Shard s of n lies in the first existing file of ``<data_prefix>.data-<s>-of-<n><suffix>``, s and n
        as decimal numbers of at least five digits. Data files are not touched before a value is asked for.
        """

    @property
    def num_shards(self) -> int: ...
    @property
    def is_big_endian(self) -> bool:
        """Whether multi-byte elements lie in the data files with their high byte first."""

    def data_path(self, shard_id: int) -> str:
        """The path of the data file of a shard. Raises `CheckpointNotFoundError` where it is missing."""

    def entries(self) -> list[BundleEntry]:
        """Every tensor in key order: without the header, and without the entries of single slices."""

    def tensors(self) -> list[tuple[str, int, tuple[int, ...], int]]:
        """Key, DataType number, shape and `BundleEntry.size` of every tensor, as `entries`; quicker for very many.

        Bytes of a key that are no UTF-8 are surrogates in the text.
        """

    def keys(self) -> list[str]:
        """The keys of `tensors`."""

    def num_keys(self) -> int:
        """How many there are."""

    def shapes(self) -> dict[str, list[int]]:
        """The shape of every tensor of `tensors` by its key, in their order."""

    def find(self, key: bytes) -> BundleEntry | None: ...
    def check(self, keys: list[bytes]) -> None:
        """Checks sizes against dtypes and shapes, that every value lies inside its data file, and that the
        slices of a sliced tensor make up the whole."""

    def verify(self, keys: list[bytes], *, num_threads: int = 1) -> None:
        """Reads the values and checks their checksums; keeps nothing, whatever their size."""

    def read(self, requests: list[tuple[bytes, int, int]], *, num_threads: int = 1) -> None:
        """Reads whole fixed-size values into memory: (key, address, size in bytes), checked on the way.

        Elements arrive in the byte order of this machine. A value of at most 1 MiB is checked before its memory is
        touched; a larger one, and one that lies in slices, is read in place. Where memory overlaps, the later request
        wins. On failure the exception's ``touched`` lists the requests whose memory was, or may have been, written to.
        """

    def read_slice(self, key: bytes, extents: Extents, address: int, size: int, *, verify: bool) -> None:
        """Reads a part of a fixed-size value into contiguous memory.

        Without `verify` only the bytes that are needed are read, with gaps of up to a page, and a checksum is
        checked only where everything that it covers was needed. With it, the stored values that hold the part
        are read whole and checked, before the memory is touched. Raises ``ValueError`` for extents outside of
        the shape.
        """

    def read_strings(self, key: bytes, extents: Extents | None = None) -> list[bytes]:
        """The elements of a string tensor, or of a part of it, in row-major order; checked."""

    def read_variants(self, key: bytes) -> list[bytes]:
        """The elements of a variant tensor as serialised VariantTensorDataProto messages; checked."""

@final
class V1Reader:
    """Reads the older format: one or more table files that hold the tensors themselves.

    The methods are those of `BundleReader`. `BundleEntry.size`, ``offset``, ``shard_id`` and ``crc32c`` are 0; a
    tensor that is stored whole has no slices.
    """

    def __init__(self, paths: list[str]) -> None:
        """Reads what the files say of their tensors, and unites it. The tensors stay on disk."""

    @property
    def num_shards(self) -> int:
        """The number of files."""

    def entries(self) -> list[BundleEntry]: ...
    def tensors(self) -> list[tuple[str, int, tuple[int, ...], int]]: ...
    def keys(self) -> list[str]: ...
    def num_keys(self) -> int: ...
    def shapes(self) -> dict[str, list[int]]: ...
    def find(self, key: bytes) -> BundleEntry | None: ...
    def check(self, keys: list[bytes]) -> None:
        """Checks that stored slices make up each tensor, and that their records exist."""

    def verify(self, keys: list[bytes], *, num_threads: int = 1) -> None: ...
    def read(self, requests: list[tuple[bytes, int, int]], *, num_threads: int = 1) -> None:
        """As in `BundleReader`; by one thread."""

    def read_slice(self, key: bytes, extents: Extents, address: int, size: int, *, verify: bool) -> None:
        """As in `BundleReader`; records that hold the part are always read whole and checked."""

    def read_strings(self, key: bytes, extents: Extents | None = None) -> list[bytes]: ...

@final
class TensorTable:
    """Tensors as memory: where the bytes of each lie, how many there are, of which type and shape.

    A row is plain where the object is a tensor of exactly one of the given types in contiguous CPU memory, whose bytes
    are what a file holds of it. With ``with_devices``, rows of such tensors on CUDA devices are known as well, with or
    without gaps between their elements. All objects are kept alive. Not to be used by several threads at once.
    """

    def __init__(self, values: list[Any], types: tuple[type, ...], with_devices: bool = False) -> None: ...
    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int:
        """The bytes of all plain rows, and of those on devices."""

    def others(self) -> list[int]:
        """The rows that are neither plain nor on a device, ascending."""

    def on_devices(self) -> tuple[list[int], list[int]]:
        """The rows of tensors on CUDA devices, ascending, and the number of the device of each."""

    def strided(self) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
        """The rows on devices that have gaps between their elements: row, shape, strides in elements."""

    def sizes(self) -> list[int]:
        """The bytes of each row; 0 for the others."""

    def addresses(self) -> list[int]:
        """Where each row begins; 0 for the others."""

    def value(self, row: int) -> Any: ...
    def relocated(
        self, addresses: np.ndarray[Any, np.dtype[np.int64]], others: list[int], replaced: list[Any], owner: object
    ) -> TensorTable:
        """The same rows in other memory, without the objects.

        Args:
            addresses: where copies of plain rows and of rows on devices lie, in memory of the processor; 0 for rows
                that stay where they are.
            others: further rows.
            replaced: tensors in their place.
            owner: kept alive by the new table.
        """

    def changed(self) -> list[int]:
        """The rows of tensors, plain or not, that torch knows to have changed since the table was made, and those that
        have moved."""

    def moved(self) -> list[int]:
        """The rows, but for the others, whose tensors have other memory, or another shape, than before."""

    def unversioned(self) -> list[int]:
        """The rows of objects without a version: inference tensors, and what is no tensor."""

def kinds_of(values: list[Any], types: tuple[type, ...]) -> tuple[bytes, list[int]]:
    """The types and shapes of tensors of exactly the given types, as bytes that are equal where all of these are, and
    the rows of which nothing is known: those of other objects, and of tensors with gaps in the processor's memory."""

@final
class TensorCopy:
    """Bytes of plain rows on their way to other memory; keeps both sides alive. Several threads may use it at once."""

    def __init__(
        self,
        table: TensorTable,
        rows: np.ndarray[Any, np.dtype[np.int64]],
        address: int,
        offsets: np.ndarray[Any, np.dtype[np.int64]],
        owner: object,
    ) -> None:
        """Row ``rows[i]`` goes to the address plus ``offsets[i]``, in memory that `owner` has."""

    def run(self, num_threads: int) -> None:
        """Copies what no other call has taken; returns when everything is there, whoever copied it."""

@final
class RowPlan:
    """Stored values and the plain rows of a table that they go to: found and compared first, then read.

    Calls from several threads take turns. Data files that were asked for stay open as long as the plan.
    """

    def __init__(
        self,
        reader: BundleReader,
        keys: list[str],
        table: TensorTable,
        land: Sequence[int] = (),
        boxes: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = ...,
    ) -> None:
        """Finds the value of ``keys[i]`` for row i, in one pass over the index where there are many.

        Args:
            land: rows, ascending, whose values `read_landing` puts into other memory; their type and shape are those of
                the table, wherever they are.
            boxes: for rows, ascending, that take a box of their value: row, shape of the stored tensor, start of the
                box in each dimension. Raises ``ValueError`` where that is no box of this shape.
        """

    @property
    def nbytes(self) -> int:
        """The bytes of the rows that fit."""

    def misfits(self) -> list[int]:
        """The rows in the plan whose key is not there, or holds another dtype or shape; with any, nothing is read."""

    def left_out(self) -> list[int]:
        """The rows that cannot land, because they take slices or a box of what is stored: they are not in the plan."""

    def check(self) -> None:
        """Checks that values lie inside of their files, as `BundleReader.check`."""

    def verify(self, *, num_threads: int, with_parts: bool = True) -> None:
        """Reads all values and checks their checksums. Stored values of which only a part is needed, which have no
        checksum of that, are read whole, or left out without `with_parts`."""

    def read(self, *, num_threads: int, max_bytes: int | None = None) -> int:
        """Reads the next values into their tensors, about `max_bytes` or all, as `BundleReader.read`.

        Of a value that is not needed whole, no more is read but gaps of less than a page, and nothing is checked.

        The caller has seen to it that no tensor was moved (`TensorTable.moved`). Returns the bytes that were read; 0
        when all are. After a failure nothing more is read.
        """

    def read_landing(
        self, *, num_threads: int, address: int, size: int
    ) -> tuple[int, list[int], list[int], list[int], list[int]]:
        """As `read`, with memory for those values that land, of at least 8 MiB; it reads no more than fits.

        Returns:
            The bytes that were read, and for each piece that has landed its row, its first byte in the row, its size,
            and its offset from the address, a multiple of 64. The pieces of a row come in order. The checksum of a row
            was checked when its last piece has landed.
        """

    def touched(self) -> list[int]:
        """The rows whose memory was, or may have been, written to; ascending."""

    def num_read(self) -> int:
        """The bytes of files that `read` and `read_landing` have read so far, with gaps between values."""

@final
class GraphRecord:
    """What is saved of an object graph; the same object for a graph that is equal to one that was saved before."""

    @property
    def record(self) -> bytes:
        """The serialised ``TrackableObjectGraph``."""

    @property
    def keys(self) -> list[str]:
        """The keys of all values in the order of the data file, with that of the record last. Not to be changed."""

@final
class LiveObjects:
    """The objects of a program, numbered breadth first, and the graph that they form.

    Tensors of exactly the given types are leaves, without a Python object for each; every other node is a trackable.
    All objects are kept alive. Not to be used by several threads at once.
    """

    def __init__(self, types: tuple[type, ...]) -> None: ...
    def add_root(self, trackable: object, identity: Hashable, is_module: bool) -> None:
        """Node 0."""

    def add_children(
        self,
        node: int,
        children: Mapping[str, object],
        adapt: Callable[[object], tuple[object, Hashable, bool] | None],
    ) -> None:
        """Adds all children of a node, and those that were not there before as new nodes.

        `adapt` is asked for those that are no leaves: for the trackable, its identity, and whether it stands for a
        module; None leaves the child out. Raises ``UnicodeEncodeError`` for a name that is no text.
        """

    def renumber(self) -> None:
        """Numbers all nodes breadth first, after children were added late."""

    def __len__(self) -> int: ...
    def next_trackable(self, node: int) -> int | None:
        """The first node from `node` on that is no leaf."""

    def leaves(self) -> tuple[list[int], list[Any]]:
        """The nodes that are leaves, and their tensors."""

    def trackables(self) -> list[tuple[int, Any]]:
        """Every node that is no leaf, with its trackable."""

    def is_tensor(self, node: int) -> bool: ...
    def object(self, node: int) -> Any:
        """The tensor of a leaf, or the trackable."""

    def identity(self, node: int) -> Hashable: ...
    def find(self, identity: Hashable) -> int | None:
        """The node of an object."""

    def find_all(self, objects: list[Any]) -> list[int]:
        """The nodes of objects whose identity is their address; -1 where there is none."""

    def names(self, node: int) -> tuple[str, ...]:
        """The names from the root, on the way of its first discovery."""

    def path(self, node: int) -> str: ...
    def full_name(self, node: int) -> str: ...
    def module_depth(self, node: int) -> int | None:
        """How many of its names lead to the outermost module above it."""

    def children(self, node: int) -> list[tuple[str, int]]: ...
    def collect(
        self,
        attributes: Sequence[tuple[int, str, Any] | tuple[int, str, Any, str]],
        versions: list[tuple[int, int]],
        slots: list[tuple[int, str, list[int], list[Any]]],
        known: GraphRecord | None,
    ) -> tuple[GraphRecord, list[Any]]:
        """What is saved, and the values that go with its keys.

        Args:
            attributes: node, name and value of what trackables own, by node; with a full name, if that is not the path.
            versions: node and version of modules, by node.
            slots: optimizer, name of the slot, variables and slots, by optimizer.
            known: returned where the graph is equal to that one's.
        """

    def has_same_objects(self, other: LiveObjects) -> bool:
        """Whether the very same objects are under the same names."""

def union_of_graphs(records: list[bytes], renamed: dict[str, str]) -> bytes:
    """The record of one object graph of several, in each of which some objects of a program are.

    Objects are the same where the same names lead to them, slots where they are the same optimizer's for the same
    variable. Keys that are in `renamed` are written as what they are there. Raises ``ValueError`` where two objects of
    one graph would be one, or one value has two keys, and `DataLossError` as `SavedGraph`.
    """

@final
class SavedGraph:
    """The object graph of a checkpoint, parsed from its record.

    Raises `DataLossError` where the record does not parse or refers to nodes that it does not have; the text is the end
    of a sentence about it.
    """

    def __init__(self, record: bytes) -> None: ...
    @property
    def record(self) -> bytes: ...
    def __len__(self) -> int: ...
    def children(self, node: int) -> tuple[tuple[int, str], ...]:
        """Node and local name of each."""

    def child(self, node: int, position: int) -> tuple[int, str]: ...
    def find_child(self, node: int, name: str) -> int | None:
        """The first child of a name."""

    def names(self, node: int) -> tuple[str, ...] | None:
        """The names that lead to a node on the shortest way from the root; None where children do not lead to it."""

    def slot_owner(self, node: int) -> tuple[int, int, str] | None:
        """Optimizer, variable and slot name, for a node that is a slot."""

    def attributes(self, node: int) -> tuple[tuple[str, str, str], ...]:
        """Name, full name and checkpoint key of each."""

    def slots(self, node: int) -> tuple[tuple[int, str, int], ...]:
        """Variable, name and slot of each."""

    def registered_saver(self, node: int) -> tuple[str, str] | None: ...
    def has_values(self, node: int) -> bool | None: ...
    def module_version(self, node: int) -> int | None: ...
    def nodes_with_slots(self) -> list[int]:
        """Every node that has slot variables."""

    def nodes_with_values(self) -> list[int]:
        """Every node that has attributes, or a saver of its own."""

@final
class PairedTensors:
    """Which nodes of a saved graph were bound, in which order; and which variables to which ordinary tensors.

    A variable is a node that owns one value of that name and nothing else. Tensors are kept alive until `release`.
    """

    def __init__(self, graph: SavedGraph, types: tuple[type, ...]) -> None: ...
    def pair(self, node: int, sources: tuple[object, ...]) -> list[int]:
        """Pairs the children of a node that are variables with the tensors of their names.

        Args:
            node: the parent.
            sources: where the names are looked up, in order: dicts, and lists or tuples for names that are numbers.

        Returns:
            The positions of the children that were not paired: those that are no variables, or are bound already, and
            those under whose names there is no tensor of exactly one of the types, in contiguous CPU memory, that was
            not paired before.
        """

    def mark(self, node: int) -> None:
        """Says that a node is bound to something else."""

    def claim(self, address: int) -> None:
        """Says that the tensor with an address (its ``id``) takes other values."""

    def __contains__(self, node: object) -> bool:
        """Whether a node is paired with a tensor."""

    def __len__(self) -> int:
        """How many are."""

    def order(self, node: int) -> int:
        """The place of a node in the order in which all were bound; -1 where it is not."""

    def has_taken(self, address: int) -> bool:
        """Whether a tensor was paired or claimed."""

    def tensor(self, node: int) -> Any:
        """None where the node is not paired, or the tensors were released."""

    def address(self, node: int) -> int: ...
    def place(self, node: int) -> tuple[int, str]:
        """The parent and the local name by which a node was paired."""

    def find_all(self, objects: list[Any]) -> list[int]:
        """The nodes that are paired with objects; -1 for those that are paired with none."""

    def nodes(self) -> list[int]:
        """Those that were paired, in this order; `keys` and `tensors` go with them."""

    def keys(self) -> list[str]: ...
    def tensors(self) -> list[Any]: ...
    def set_attribute(self, name: str, value: object) -> None:
        """Sets an attribute of each tensor."""

    def release(self) -> None:
        """Keeps the tensors alive no longer; everything but `tensor` and `tensors` stays."""
