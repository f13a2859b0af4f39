"""Makes one checkpoint of several, without a look at their tensors: only entries of indexes are written anew."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from torch_trackckpt import _native
from torch_trackckpt.bundle.file_names import BundleFiles, data_name, find_checkpoint, index_name
from torch_trackckpt.errors import CheckpointNotFoundError, UnsupportedFormatError
from torch_trackckpt.save.commit import commit, recover
from torch_trackckpt.save.write import WrittenFiles, temporary_suffix
from torch_trackckpt.storage.base import Storage
from torch_trackckpt.storage.local import LocalStorage
from torch_trackckpt.storage.paths import is_url

__all__ = ["merge_checkpoints"]


def merge_checkpoints(
    checkpoint_prefixes: Iterable[str | os.PathLike[str]],
    destination_prefix: str | os.PathLike[str],
    delete_old_dirs: bool = True,
    allow_missing_files: bool = False,
    *,
    durable: bool = True,
) -> str:
    """Makes one checkpoint of several, each of which holds some of its tensors or slices. TensorFlow's
    ``MergeV2Checkpoints``.

    The data files get new names, in the order of the prefixes; no tensor is read or copied. The sources are gone
    afterwards. If anything fails, or the process dies, before the merged checkpoint is there, they are as before.

    Args:
        checkpoint_prefixes: the checkpoints to merge.
        destination_prefix: the path of the new one; what is there is replaced.
        delete_old_dirs: whether directories of sources are removed that are empty then, unless the destination is in
            them.
        allow_missing_files: whether a source without an index is passed over. One has to be there.
        durable: whether everything is on the disk before the new checkpoint has its name.

    Returns:
        The path of the new checkpoint.

    Raises:
        CheckpointNotFoundError: a source is missing.
        DuplicateKeyError: two sources hold the same tensor, or the same slice of one.
        ValueError: there is no source; byte order, version, or the shape or type of a sliced tensor differ; a source
            is named twice; or a path is a URL of remote storage.
        DataLossError: an index is damaged.
        OSError: the system refuses.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import list_variables, merge_checkpoints
        >>> from torch_trackckpt.bundle.writer import BundleWriter
        >>> prefix = tempfile.mkdtemp() + "/part"
        >>> for part in "01":
        ...     with BundleWriter(f"{prefix}{part}.data-00000-of-00001", f"{prefix}{part}.index") as writer:
        ...         writer.add("x" + part, torch.ones(2))
        >>> list_variables(merge_checkpoints([prefix + "0", prefix + "1"], prefix))
        [('x0', [2]), ('x1', [2])]
    """
    if isinstance(checkpoint_prefixes, str | bytes | os.PathLike):
        raise TypeError(f"checkpoint_prefixes must be several prefixes, not the one {checkpoint_prefixes!r}.")
    destination = os.fsdecode(destination_prefix)
    prefixes = [os.fsdecode(prefix) for prefix in checkpoint_prefixes]
    if remote := [path for path in (*prefixes, destination) if is_url(path)]:
        raise ValueError(f"Only checkpoints on this machine can be merged; {remote[0]!r} is on remote storage.")
    storage = LocalStorage(durable=durable)
    sources = _sources(prefixes, storage, allow_missing_files)
    storage.make_directory(os.path.dirname(destination))
    recover(destination, storage)
    commit(_linked(sources, destination, storage, durable=durable), destination, storage)
    for source in sources:
        _remove(source, destination, storage)
    if delete_old_dirs:
        _remove_empty_directories({os.path.dirname(source.prefix) for source in sources}, destination)
    return destination


def _sources(prefixes: list[str], storage: Storage, allow_missing_files: bool) -> list[BundleFiles]:
    if len({os.path.abspath(prefix) for prefix in prefixes}) != len(prefixes):
        raise ValueError(f"A checkpoint is to be merged with itself: {', '.join(prefixes)}.")
    sources = []
    for prefix in prefixes:
        try:
            find_checkpoint(prefix)
            recover(prefix, storage)
            files = find_checkpoint(prefix)
        except CheckpointNotFoundError:
            if not allow_missing_files:
                raise
            continue
        if not isinstance(files, BundleFiles):
            raise UnsupportedFormatError(f"{prefix!r} is of TensorFlow's older format, which cannot be merged.")
        sources.append(files)
    if not sources:
        raise ValueError("There is nothing to merge: no checkpoint is at any of the prefixes.")
    return sources


def _linked(sources: list[BundleFiles], destination: str, storage: Storage, *, durable: bool) -> WrittenFiles:
    """The files of the merged checkpoint under temporary names; data files have their old names as well."""
    index = index_name(destination)
    merged = index + temporary_suffix()
    made: list[str] = []
    try:
        old = _native.merge_indexes([source.index for source in sources], merged, durable=durable)
        made.append(merged)
        data = []
        for number, (position, shard, num_shards) in enumerate(old):
            final = data_name(destination, number, len(old))
            temporary = final + temporary_suffix()
            made.append(temporary)
            storage.link(_existing_data(sources[position], shard, num_shards), temporary)
            data.append((temporary, final))
    except BaseException:
        for path in made:
            storage.remove(path)
        raise
    return WrittenFiles(tuple(data), (merged, index))


def _existing_data(source: BundleFiles, shard: int, num_shards: int) -> str:
    names = [data_name(source.prefix, shard, num_shards) + suffix for suffix in source.data_suffixes]
    for name in names:
        if os.path.exists(name):
            return name
    raise CheckpointNotFoundError(f"The data file {names[-1]!r} of the checkpoint {source.prefix!r} is missing.")


def _remove(source: BundleFiles, destination: str, storage: Storage) -> None:
    """Removes a source's index first, so that what is left over after a crash is no checkpoint."""
    if _is_same(source.prefix, destination):
        return
    storage.remove(source.index)
    recover(source.prefix, storage)


def _is_same(prefix: str, other: str) -> bool:
    """Whether two prefixes name the same files; the directories may be links."""
    (directory, name), (others, its_name) = os.path.split(prefix), os.path.split(other)
    return name == its_name and os.path.samefile(directory or ".", others or ".")


def _remove_empty_directories(directories: set[str], destination: str) -> None:
    for directory in directories - {os.path.dirname(destination)}:
        with contextlib.suppress(OSError):
            os.rmdir(directory)
