"""TensorFlow's reader and ours say the same of the same files."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_dtypes import DTYPES

from torch_trackckpt import CheckpointReader
from torch_trackckpt.bundle.dtypes import data_type_of_name
from torch_trackckpt.bundle.writer import BundleWriter

from .conftest import HERE, TensorFlow, Value, Worker

GOLDEN = HERE.parent / "golden"
SMALL = {"int4": 8, "uint4": 16, "int2": 2, "uint2": 4, "float4_e2m1fn": 16}
WITHOUT_TWIN = ["qint8", "quint8", "qint16", "quint16", "qint32", "float8_e4m3b11fnuz", *SMALL]
NAMES = [*(str(dtype).removeprefix("torch.") for dtype in DTYPES), *WITHOUT_TWIN, "string"]


@pytest.fixture(scope="module")
def reader_of_tensorflow(tensorflow: TensorFlow) -> Iterator[Worker]:
    """A worker with functions of its own; only where TensorFlow is installed."""
    worker = Worker(HERE / "reading_functions.py")
    yield worker
    worker.close()


def write(prefix: Path, values: Mapping[str, tuple[str, tuple[int, ...], int]], alignment: int) -> None:
    """Values of a type, a shape and a seed each."""
    with BundleWriter(f"{prefix}.data-00000-of-00001", f"{prefix}.index", durable=False, alignment=alignment) as writer:
        for key, (name, shape, seed) in values.items():
            rng = random.Random(seed)
            count = int(np.prod(shape, dtype=int))
            if name == "string":
                array = np.empty(count, dtype=object)
                array[:] = [rng.randbytes(rng.randint(0, 5)) for _ in range(count)]
                writer.add_strings(key, array.reshape(shape))
                continue
            dtype = data_type_of_name(name).torch_dtype
            assert dtype is not None
            top = 2 if name == "bool" else min(SMALL.get(name, 256), 256)
            data = bytes(rng.randrange(top) for _ in range(count * dtype.itemsize))
            tensor = torch.empty(shape, dtype=dtype)
            tensor.view(-1).view(torch.uint8).numpy()[:] = np.frombuffer(data, np.uint8)
            writer.add(key, tensor, data_type_of_name(name))


def described(path: str | Path, asked: list[str]) -> dict[str, Any]:
    """What our reader says, in the form of the worker."""
    reader = CheckpointReader(path)
    return {
        "shapes": reader.get_variable_to_shape_map(),
        "dtypes": {key: dtype.name for key, dtype in reader.get_variable_to_dtype_map().items()},
        "has": [reader.has_tensor(key) for key in asked],
        "debug": sorted(reader.debug_string().splitlines()),
    }


KEYS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
VALUES = st.tuples(st.sampled_from(NAMES), SHAPES, st.integers(0, 1 << 32))


@given(
    values=st.dictionaries(KEYS, VALUES, min_size=1, max_size=12),
    absent=st.lists(KEYS, max_size=3),
    alignment=st.sampled_from([1, 1, 2, 64]),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_both_readers_list_the_same(
    reader_of_tensorflow: Worker,
    values: dict[str, tuple[str, tuple[int, ...], int]],
    absent: list[str],
    alignment: int,
) -> None:
    """C351, C356, C365"""
    asked = [*values, *absent]
    with TemporaryDirectory() as folder:
        prefix = Path(folder) / "ckpt"
        write(prefix, values, alignment)
        theirs = reader_of_tensorflow.call("describe", path=str(prefix), keys=asked)
        assert described(prefix, asked) == theirs


@pytest.mark.parametrize("alignment", [1, 8, 4096])
def test_tensorflow_reads_every_type_that_the_writer_takes(
    tensorflow: TensorFlow, prefix: Path, alignment: int
) -> None:
    """C356, C365: values aligned or not."""
    values = {f"{name}/{shape}": (name, shape, 7) for name in NAMES for shape in [(), (3,), (0, 2)]}
    write(prefix, values, alignment)
    ours = CheckpointReader(prefix)
    theirs = tensorflow.read_all(prefix)
    assert theirs.keys() == set(ours)
    for key, value in theirs.items():
        name, shape, _ = values[key]
        assert (value.dtype, value.shape) == (name, shape)
        if shape == () and name == "string":
            continue  # of which TensorFlow loses zeros at the end: see below
        mine = ours.get_tensor(key)
        if isinstance(mine, torch.Tensor):
            own = Value.of(mine).data
            assert isinstance(own, bytes)
            assert isinstance(value.data, bytes)
            mask = {"int4": 15, "int2": 3}.get(name, 255)  # ours has extended the sign
            assert bytes(byte & mask for byte in value.data) == bytes(byte & mask for byte in own), key
        else:
            assert value.data == Value.of(mine).data


@pytest.mark.parametrize("text", [b"\0", b"ends\0\0", b"a\0b\0", b"\0\0\0", b"plain", b""])
def test_a_scalar_string_that_ends_in_nul_is_exact_in_ours(tensorflow: TensorFlow, prefix: Path, text: bytes) -> None:
    """C352, C358: whatever becomes of it on its way through NumPy."""
    matrix = Value("string", (1, 2), [text, b"\0"])
    tensorflow.save_tensors(prefix, [("scalar", Value("string", (), [text])), ("matrix", matrix)])
    reader = CheckpointReader(prefix)
    assert reader.get_tensor("scalar") == text
    assert Value.of(reader.get_tensor("matrix")) == matrix
    assert reader["matrix"][0, 0] == text


@pytest.mark.parametrize(
    "name", ["v2_dtypes/ckpt", "v2_shapes/ckpt", "v2_strings/ckpt", "v1_basic/model.ckpt", "v2_slices_merged/ckpt"]
)
def test_both_readers_say_the_same_of_the_golden_files(reader_of_tensorflow: Worker, name: str) -> None:
    """C351, C380"""
    asked = [*CheckpointReader(GOLDEN / name), "absent", "a", ""]
    asked = [key for key in asked if key and key.isprintable()]
    theirs = reader_of_tensorflow.call("describe", path=str(GOLDEN / name), keys=asked)
    ours = described(GOLDEN / name, asked)
    if "slices" in name:  # TensorFlow's lines are of the stored slices, under keys that are no text
        del ours["debug"], theirs["debug"]
    assert ours == theirs
