"""The same tensors in the same order give the same files, whoever writes them; TensorFlow reads ours."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_dtypes import DTYPES
from witness import table_blocks

from torch_trackckpt import Checkpoint, Trackable
from torch_trackckpt.bundle.writer import BundleWriter

from .conftest import TensorFlow, Value

KEY = "x/.ATTRIBUTES/VARIABLE_VALUE"


def tensor_of(dtype: torch.dtype, shape: Sequence[int], seed: int = 0) -> torch.Tensor:
    """A tensor of arbitrary bits, NaNs and infinities among them."""
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    data = random.Random(seed).randbytes(nbytes)
    if dtype is torch.bool:
        data = bytes(byte & 1 for byte in data)
    return Value(str(dtype).removeprefix("torch."), tuple(shape), data).tensor()


def write_ours(prefix: Path, values: Sequence[tuple[str, Value]]) -> None:
    with BundleWriter(f"{prefix}.data-00000-of-00001", f"{prefix}.index", durable=False) as writer:
        for key, value in values:
            if isinstance(value.data, bytes):
                writer.add(key, value.tensor())
            else:
                strings = np.empty(len(value.data), dtype=object)
                strings[:] = value.data
                writer.add_strings(key, strings.reshape(value.shape))


def files_at(prefix: Path) -> dict[str, bytes]:
    return {path.name.removeprefix(prefix.name): path.read_bytes() for path in prefix.parent.glob(prefix.name + ".*")}


def assert_same_files(tensorflow: TensorFlow, directory: Path, values: Sequence[tuple[str, Value]]) -> None:
    write_ours(directory / "ours", values)
    tensorflow.save_tensors(directory / "theirs", values)
    ours, theirs = files_at(directory / "ours"), files_at(directory / "theirs")
    assert theirs.keys() == {".index", ".data-00000-of-00001"}
    assert ours == theirs


# ------------------------------------------------------------------------------------------ TensorFlow reads ours


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensorflow_reads_every_dtype_bit_for_bit(tensorflow: TensorFlow, prefix: Path, dtype: torch.dtype) -> None:
    """C356, C395"""
    tensor = tensor_of(dtype, [7, 5])
    path = Checkpoint(x=tensor).write(prefix)
    assert tensorflow.read_one(path, KEY) == Value.of(tensor)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 1618), (16, 0, 18), (1, 1, 1, 1, 1, 1, 1, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex128], ids=str)
def test_tensorflow_reads_scalars_empty_and_deep_shapes(
    tensorflow: TensorFlow, prefix: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """C357, C395"""
    tensor = tensor_of(dtype, shape)
    path = Checkpoint(x=tensor).write(prefix)
    assert tensorflow.read_one(path, KEY) == Value.of(tensor)


@pytest.mark.parametrize(
    "layout",
    [
        torch.arange(6.0).reshape(2, 3).T,
        torch.arange(3.0).expand(4, 3),
        torch.arange(10.0)[1::3],
        torch.tensor([1 + 2j, 3 - 4j]).conj(),
        torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    ],
    ids=["transposed", "expanded", "strided", "conjugate", "channels_last"],
)
def test_tensorflow_reads_the_row_major_values_of_any_layout(
    tensorflow: TensorFlow, prefix: Path, layout: torch.Tensor
) -> None:
    """C026, C395"""
    path = Checkpoint(x=layout).write(prefix)
    assert tensorflow.read_one(path, KEY) == Value.of(torch.tensor(layout.tolist()))


class Words(Trackable):
    """A trackable whose value is given."""

    def __init__(self, value: bytes | np.ndarray[Any, np.dtype[np.object_]]) -> None:
        self.value = value

    def _serialize_to_tensors(self) -> Mapping[str, bytes | np.ndarray[Any, np.dtype[np.object_]]]:
        return {"words": self.value}


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"plain",
        b"\x00",
        b"ends with\x00\x00",
        b"\xff\xfe no UTF-8 \x80",
        "ünïcødé ✓".encode(),
        bytes(range(256)) * 300,
        np.array([[b"a", b""], [b"\x00b\x00", b"\xff" * 300]], dtype=object),
        np.empty((0, 3), dtype=object),
    ],
    ids=["empty", "plain", "nul", "trailing_nul", "no_utf8", "utf8", "long", "matrix", "no_strings"],
)
def test_tensorflow_reads_strings_byte_for_byte(
    tensorflow: TensorFlow, prefix: Path, value: bytes | np.ndarray[Any, np.dtype[np.object_]]
) -> None:
    """C358, C395"""
    path = Checkpoint(x=Words(value)).write(prefix)
    assert tensorflow.read_one(path, "x/.ATTRIBUTES/words") == Value.of(value)


def test_tensorflow_lists_and_reads_everything_in_a_file(tensorflow: TensorFlow, prefix: Path) -> None:
    """C348, C395"""
    tensors = {str(dtype).removeprefix("torch."): tensor_of(dtype, [3], seed) for seed, dtype in enumerate(DTYPES)}
    path = Checkpoint(**tensors).save(prefix)
    found = tensorflow.read_all(path)
    graph = found.pop("_CHECKPOINTABLE_OBJECT_GRAPH")
    assert (graph.dtype, graph.shape) == ("string", ())
    expected = {f"{name}/.ATTRIBUTES/VARIABLE_VALUE": Value.of(tensor) for name, tensor in tensors.items()}
    assert found == expected | {"save_counter/.ATTRIBUTES/VARIABLE_VALUE": Value.of(torch.tensor(1))}


# ------------------------------------------------------------------------------------------ the same bytes

SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
STRINGS = SHAPES.flatmap(
    lambda shape: st.lists(
        st.binary(max_size=300), min_size=torch.Size(shape).numel(), max_size=torch.Size(shape).numel()
    ).map(lambda elements: Value("string", shape, elements))
)
NUMBERS = st.builds(
    lambda dtype, shape, seed: Value.of(tensor_of(dtype, shape, seed)),
    st.sampled_from(DTYPES),
    SHAPES,
    st.integers(0, 1 << 32),
)
KEYS = st.text(min_size=1, max_size=40)


@given(values=st.dictionaries(KEYS, NUMBERS | STRINGS, min_size=1, max_size=12))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_any_tensors_are_written_as_tensorflow_writes_them(tensorflow: TensorFlow, values: dict[str, Value]) -> None:
    """C028, C356, C357, C358, C360, C361"""
    with TemporaryDirectory() as directory:
        assert_same_files(tensorflow, Path(directory), list(values.items()))


@pytest.mark.parametrize("length", [20, 60, 150, 400])
def test_thousands_of_keys_are_written_as_tensorflow_writes_them(
    tensorflow: TensorFlow, tmp_path: Path, length: int
) -> None:
    """C361, C379"""
    rng = random.Random(length)
    count = 700_000 // (length + 20)
    parts = ["layer", "é", "ß/", "…", "😀", "a.b", "\x7f", "0", "1", "2"]
    similar = {"".join(rng.choices(parts, k=length // 4)) + f"{number:x}" for number in range(count // 4)}
    different = {f"{rng.getrandbits(4 * length):0{length}x}" for _ in range(count)}
    keys = sorted(similar | different)
    rng.shuffle(keys)
    values = [(key, Value.of(tensor_of(rng.choice(DTYPES), [rng.randint(0, 3)], n))) for n, key in enumerate(keys)]
    assert_same_files(tensorflow, tmp_path, values)
    assert len(table_blocks(tmp_path / "ours.index")) > 2


@pytest.mark.parametrize("length", [127, 128, 16_384, 262_144, 300_000])
def test_long_keys_are_written_as_tensorflow_writes_them(tensorflow: TensorFlow, tmp_path: Path, length: int) -> None:
    """C361, C379"""
    keys = ["k" * length, "k" * (length - 1), "k" * length + "\x00", "j", "k", "l", "ÿ" * (length // 2)]
    assert_same_files(tensorflow, tmp_path, [(key, Value.of(torch.tensor(n))) for n, key in enumerate(keys)])


def test_a_tensor_of_many_chunks_is_written_as_tensorflow_writes_it(tensorflow: TensorFlow, tmp_path: Path) -> None:
    """C361"""
    large = tensor_of(torch.float32, [3, 700_001])
    values = [("b", Value.of(torch.tensor(True))), ("a", Value.of(large)), ("c", Value("string", (), [b"x" * 999_999]))]
    assert_same_files(tensorflow, tmp_path, values)
