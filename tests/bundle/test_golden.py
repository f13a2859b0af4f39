"""Files that TensorFlow wrote, read as torch tensors and written again from them."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import witness

from torch_trackckpt import CheckpointReader, merge_checkpoints
from torch_trackckpt.bundle.slices import TensorSlice
from torch_trackckpt.bundle.writer import BundleWriter

GOLDEN = Path(__file__).parents[1] / "golden"
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())
VECTORS = {vector["name"]: vector for vector in MANIFEST["vectors"]}
BUNDLES_OF_TENSORFLOW = [
    name for name, vector in VECTORS.items() if vector["format"] == "V2" and vector["origin"] == "tensorflow"
]
SLICE_READS = [
    (name, *request.rsplit(" @ ", 1), expected)
    for name, vector in VECTORS.items()
    for request, expected in vector.get("slice_reads", {}).items()
]


def prefix_of(name: str) -> str:
    return str(GOLDEN / VECTORS[name]["prefix"])


def canonical_bytes(value: torch.Tensor | bytes | np.ndarray[Any, Any], low_bits: int = 0) -> bytes:
    """The bytes that the manifest's checksums are made of."""
    if isinstance(value, torch.Tensor):
        if low_bits:
            value = value.view(torch.uint8) & ((1 << low_bits) - 1)
        return value.contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
    elements = [value] if isinstance(value, bytes) else value.ravel().tolist()
    return b"".join(struct.pack("<Q", len(element)) + element for element in elements)


def sha256_of(reader: CheckpointReader, key: str) -> str:
    low_bits = reader.stored(key).dtype.low_bits
    return hashlib.sha256(canonical_bytes(reader.get_tensor(key), low_bits)).hexdigest()


@pytest.mark.parametrize("name", VECTORS)
def test_every_value_of_a_file_of_tensorflow_is_read_bit_for_bit(name: str) -> None:
    """C356, C357, C358, C371, C376, C378, C380."""
    reader = CheckpointReader(prefix_of(name))
    expected = VECTORS[name]["tensors"]

    for key, tensor in expected.items():
        assert reader.stored(key).dtype.name == tensor["dtype"]
        assert list(reader.stored(key).shape) == tensor["shape"]
        if "sha256" in tensor:
            assert sha256_of(reader, key) == tensor["sha256"], key
        if "enum" in tensor:
            assert reader.stored(key).dtype.number == tensor["enum"]
    # TensorFlow cannot put every sliced tensor together, so those of this vector are not all in the manifest.
    assert len(reader) == (10 if name == "v2_slices" else VECTORS[name].get("num_tensors", len(expected)))


@pytest.mark.parametrize(("name", "key", "spec", "expected"), SLICE_READS, ids=lambda value: str(value)[:40])
def test_a_part_of_a_tensor_is_read_bit_for_bit(name: str, key: str, spec: str, expected: dict[str, Any]) -> None:
    """C372, C373."""
    reader = CheckpointReader(prefix_of(name))
    for part in (spec, spec.rsplit(" ", 1)[1], TensorSlice.parse(spec)):
        value = reader.get_tensor(key, part)
        assert isinstance(value, torch.Tensor)
        assert list(value.shape) == expected["shape"]
        assert hashlib.sha256(canonical_bytes(value)).hexdigest() == expected["sha256"]


def test_all_of_seven_thousand_values_are_read_bit_for_bit() -> None:
    """C379."""
    reader = CheckpointReader(prefix_of("v2_manykeys"))
    digest = hashlib.sha256()

    for key in sorted(stored.key for stored in reader.all_stored()):
        digest.update(key.encode() + b"\0" + sha256_of(reader, key).encode())

    assert digest.hexdigest() == VECTORS["v2_manykeys"]["tensors_digest"]


@pytest.mark.parametrize("name", BUNDLES_OF_TENSORFLOW)
def test_writing_the_values_again_in_their_order_gives_the_same_files(name: str, tmp_path: Path) -> None:
    """C359, C360, C361, C362, C366."""
    source = prefix_of(name)
    entries = witness.read_entries(source)
    num_shards = max(entry.shard_id for entry in entries.values() if not entry.slices) + 1
    parts = [str(tmp_path / f"part-{shard}") for shard in range(num_shards)]

    for shard, prefix in enumerate(parts):
        with BundleWriter(f"{prefix}.data-00000-of-00001", f"{prefix}.index", durable=False) as writer:
            write_shard(writer, CheckpointReader(source), entries, shard)
    written = merge_checkpoints(parts, tmp_path / "ckpt", durable=False)

    for suffix in (".index", *(f".data-{shard:05d}-of-{num_shards:05d}" for shard in range(num_shards))):
        assert Path(written + suffix).read_bytes() == Path(source + suffix).read_bytes(), suffix
    assert len(list(tmp_path.iterdir())) == num_shards + 1


def write_shard(writer: BundleWriter, reader: CheckpointReader, entries: dict[str, witness.Tensor], shard: int) -> None:
    """Writes what lies in one data file, in its order."""
    slices = {
        witness.slice_key(key.encode(errors="surrogateescape"), extents): (key, TensorSlice(entry.shape, extents))
        for key, entry in entries.items()
        for extents in entry.slices
    }
    stored = [(key, entry) for key, entry in entries.items() if not entry.slices and entry.shard_id == shard]
    # An empty value shares its offset with the value after it; in which order empty ones come does not matter.
    for raw, _ in sorted(stored, key=lambda item: (item[1].offset, item[1].size > 0)):
        raw_key = raw.encode(errors="surrogateescape")
        key, part = slices.get(raw_key, (raw, None))
        value = reader.get_tensor(key, part)
        if not isinstance(value, torch.Tensor):
            writer.add_strings(key.encode(errors="surrogateescape"), value, part)
        elif part is not None:
            writer.add_slice(key.encode(errors="surrogateescape"), value, part, reader.stored(key).dtype)
        else:
            writer.add(raw_key, value, reader.stored(key).dtype)
