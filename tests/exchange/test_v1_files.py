"""Files of the older format, as TensorFlow writes them, are read bit for bit."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from torch_trackckpt._native import V1Reader

from .conftest import TensorFlow, Value

SIZES = {"float32": 4, "float64": 8, "int32": 4, "uint8": 1, "int16": 2, "int8": 1, "complex64": 8, "int64": 8}
SIZES |= {"bool": 1, "uint16": 2, "complex128": 16, "float16": 2}
SHAPES: list[tuple[int, ...]] = [(), (1,), (300,), (2, 3, 4), (0, 3), (70_000,)]


def value_of(dtype: str, shape: tuple[int, ...], seed: int) -> Value:
    """A value of arbitrary bits."""
    data = random.Random(seed).randbytes(int(np.prod(shape, dtype=int)) * SIZES[dtype])
    return Value(dtype, shape, bytes(byte & 1 for byte in data) if dtype == "bool" else data)


def read(reader: V1Reader, key: str, size: int) -> bytes:
    memory = np.empty(size + 1, np.uint8)
    reader.read([(key.encode(), memory.ctypes.data, size)])
    return memory[:size].tobytes()


@pytest.mark.parametrize("dtype", SIZES)
def test_tensors_of_any_shape_are_read(tensorflow: TensorFlow, tmp_path: Path, dtype: str) -> None:
    """C380"""
    values = {f"layer/{number}é": value_of(dtype, shape, number) for number, shape in enumerate(SHAPES)}
    tensorflow.save_v1(tmp_path / "model.ckpt", list(values.items()))
    reader = V1Reader([str(tmp_path / "model.ckpt")])
    assert [(found.key.decode(), found.shape) for found in reader.entries()] == [
        (key, value.shape) for key, value in values.items()
    ]
    for key, value in values.items():
        assert read(reader, key, len(value.data)) == value.data


def test_strings_are_read(tensorflow: TensorFlow, tmp_path: Path) -> None:
    """C380"""
    words = [random.Random(number).randbytes(number * number) for number in range(60)]
    tensorflow.save_v1(tmp_path / "model.ckpt", [("words", Value("string", (6, 10), words))])
    assert V1Reader([str(tmp_path / "model.ckpt")]).read_strings(b"words") == words


def test_slices_in_several_files_make_up_the_tensor(tensorflow: TensorFlow, tmp_path: Path) -> None:
    """C380"""
    shape = (100, 70)
    whole = np.frombuffer(random.Random(0).randbytes(100 * 70 * 8), np.int64).reshape(shape)
    boxes = [(0, 30, 0, 70), (30, 70, 0, 65), (30, 70, 65, 5)]
    paths = []
    for number, (row, rows, column, columns) in enumerate(boxes):
        part = whole[row : row + rows, column : column + columns]
        text = f"100 70 {row},{rows}:" + ("-" if columns == 70 else f"{column},{columns}")
        paths.append(str(tmp_path / f"model.ckpt-{number:05d}-of-00003"))
        tensorflow.save_v1(Path(paths[-1]), [("x", Value("int64", part.shape, part.tobytes()))], [text])
    reader = V1Reader(paths)
    (found,) = reader.entries()
    assert (found.shape, found.slices) == (shape, (((0, 30), (0, -1)), ((30, 70), (0, 65)), ((30, 70), (65, 5))))
    assert read(reader, "x", whole.nbytes) == whole.tobytes()
    memory = np.empty((40, 9), np.int64)
    reader.read_slice(b"x", ((20, 40), (60, 9)), memory.ctypes.data, memory.nbytes, verify=True)
    assert memory.tobytes() == whole[20:60, 60:69].tobytes()
