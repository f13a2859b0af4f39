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

from torch_trackckpt import CheckpointReader
from torch_trackckpt.bundle.writer import BundleWriter

GOLDEN = Path(__file__).parents[1] / "golden"
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())
# Slices, merging, other byte orders, compression and the older format are not covered yet.
ONE_SHARD = (
    "v2_dtypes",
    "v2_shapes",
    "v2_strings",
    "v2_manykeys",
    "v2_order",
    "obj_module",
    "obj_kwargs",
    "obj_root_and_kwargs",
    "obj_adam_slots",
    "obj_keras3",
    "manager",
    "saved_model",
)
SEVERAL_SHARDS = ("v2_merge",)
VECTORS = {vector["name"]: vector for vector in MANIFEST["vectors"]}


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


@pytest.mark.parametrize("name", ONE_SHARD + SEVERAL_SHARDS)
def test_every_value_of_a_file_of_tensorflow_is_read_bit_for_bit(name: str) -> None:
    """C356, C357, C358."""
    reader = CheckpointReader(prefix_of(name))
    expected = VECTORS[name]["tensors"]

    for key, tensor in expected.items():
        assert sha256_of(reader, key) == tensor["sha256"], key
        assert list(reader.stored(key).shape) == tensor["shape"]
        assert reader.stored(key).dtype.name == tensor["dtype"]
        assert reader.stored(key).dtype.number == tensor["enum"]
    assert len(reader.all_stored()) == VECTORS[name].get("num_tensors", len(expected))


def test_all_of_seven_thousand_values_are_read_bit_for_bit() -> None:
    """C379."""
    reader = CheckpointReader(prefix_of("v2_manykeys"))
    digest = hashlib.sha256()

    for key in sorted(stored.key for stored in reader.all_stored()):
        digest.update(key.encode() + b"\0" + sha256_of(reader, key).encode())

    assert digest.hexdigest() == VECTORS["v2_manykeys"]["tensors_digest"]


@pytest.mark.parametrize("name", ONE_SHARD)
def test_writing_the_values_again_in_their_order_gives_the_same_files(name: str, tmp_path: Path) -> None:
    """C359, C360, C361, C362."""
    source = prefix_of(name)
    reader = CheckpointReader(source)
    # An empty value shares its offset with the value after it; in which order empty ones come does not matter.
    in_file_order = sorted(reader._bundle.entries(), key=lambda entry: (entry.offset, entry.size > 0))
    data, index = tmp_path / "ckpt.data-00000-of-00001", tmp_path / "ckpt.index"

    with BundleWriter(str(data), str(index), durable=False) as writer:
        for entry in in_file_order:
            value = reader.get_tensor(entry.key.decode())
            if isinstance(value, torch.Tensor):
                writer.add(entry.key, value, reader.stored(entry.key.decode()).dtype)
            else:
                writer.add_strings(entry.key, value)

    assert data.read_bytes() == Path(source + ".data-00000-of-00001").read_bytes()
    assert index.read_bytes() == Path(source + ".index").read_bytes()
