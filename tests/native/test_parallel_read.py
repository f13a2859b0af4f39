"""Many values at once by several threads: bit for bit what one thread reads, and exact about what it has touched."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native import crafted

from torch_trackckpt._native import BundleReader
from torch_trackckpt.errors import DataLossError

MIB = 1 << 20
FILL = 0xA5
Memory = np.ndarray[tuple[int], np.dtype[np.uint8]]


def content(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def write(prefix: Path, sizes: list[int]) -> dict[bytes, bytes]:
    values = {b"value/%06d" % i: content(size, i) for i, size in enumerate(sizes)}
    crafted.write_bundle(prefix, [(key, crafted.UINT8, (len(value),), value) for key, value in values.items()])
    return values


def offset_of(reader: BundleReader, key: bytes) -> int:
    found = reader.find(key)
    assert found is not None
    return found.offset


def memory_for(values: dict[bytes, bytes], shift: int = 0) -> dict[bytes, Memory]:
    """Memory that begins `shift` bytes behind an aligned address, with a byte more on either side."""
    return {key: np.full(shift + len(value) + 1, FILL, np.uint8)[shift:] for key, value in values.items()}


def requests_for(memory: dict[bytes, Memory]) -> list[tuple[bytes, int, int]]:
    return [(key, array.ctypes.data, array.nbytes - 1) for key, array in memory.items()]


def is_untouched(array: Memory) -> bool:
    return bool((array == FILL).all())


def is_read(array: Memory, value: bytes) -> bool:
    return array[:-1].tobytes() == value and array[-1] == FILL


@settings(max_examples=40)
@given(
    st.lists(st.one_of(st.integers(0, 300), st.integers(200_000, 300_000), st.integers(MIB - 2, 2 * MIB)), max_size=12),
    st.integers(1, 4),
    st.integers(0, 7),
    st.randoms(use_true_random=False),
)
def test_values_of_any_size_arrive_at_any_address_by_any_number_of_threads(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], num_threads: int, shift: int, random: object
) -> None:
    prefix = tmp_path_factory.mktemp("bundle") / "ckpt"
    values = write(prefix, sizes)
    keys = list(values)
    random.shuffle(keys)  # type: ignore[attr-defined]
    memory = memory_for({key: values[key] for key in keys}, shift)
    reader = crafted.open_reader(prefix)
    reader.read(requests_for(memory), num_threads=num_threads)
    assert all(is_read(memory[key], value) for key, value in values.items())
    reader.verify(keys, num_threads=num_threads)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("size", [MIB, MIB + 1, 2 * MIB - 1, 2 * MIB, 8 * MIB + 3, 65 * MIB])
def test_a_large_value_is_the_same_however_it_is_cut(prefix: Path, size: int, num_threads: int) -> None:
    values = write(prefix, [5, size, 7])
    memory = memory_for(values, 1)
    crafted.open_reader(prefix).read(requests_for(memory), num_threads=num_threads)
    assert all(is_read(memory[key], value) for key, value in values.items())


@pytest.mark.parametrize("num_threads", [1, 2, 4])
@pytest.mark.parametrize("position", [0, MIB, 5 * MIB + 11, 9 * MIB - 1])
def test_damage_in_any_chunk_of_a_large_value_is_found(prefix: Path, position: int, num_threads: int) -> None:
    """C382"""
    values = write(prefix, [3, 9 * MIB, 3])
    reader = crafted.open_reader(prefix)
    crafted.flip(crafted.data_file(prefix), offset_of(reader, b"value/000001") + position)
    memory = memory_for(values)
    with pytest.raises(DataLossError, match=r"Checksum does not match: key value/000001.*size 9437184") as caught:
        reader.read(requests_for(memory), num_threads=num_threads)
    touched = getattr(caught.value, "touched", None)
    assert touched == [i for i, array in enumerate(memory.values()) if not is_untouched(array)]
    assert 1 in touched
    with pytest.raises(DataLossError, match="key value/000001"):
        reader.verify(list(values), num_threads=num_threads)


@pytest.mark.parametrize("num_threads", [1, 2, 4])
@pytest.mark.parametrize("damaged", [0, 17, 150, 299])
def test_when_one_of_many_is_damaged_it_is_told_exactly_which_memory_has_changed(
    prefix: Path, damaged: int, num_threads: int
) -> None:
    """C382, C392"""
    values = write(prefix, [1000 + 61 * i for i in range(300)])
    reader = crafted.open_reader(prefix)
    crafted.flip(crafted.data_file(prefix), offset_of(reader, b"value/%06d" % damaged))
    memory = memory_for(values)
    with pytest.raises(DataLossError, match=f"key value/{damaged:06}") as caught:
        reader.read(requests_for(memory), num_threads=num_threads)
    changed = [i for i, array in enumerate(memory.values()) if not is_untouched(array)]
    assert getattr(caught.value, "touched", None) == changed
    assert damaged not in changed
    for i in changed:
        key = b"value/%06d" % i
        assert is_read(memory[key], values[key])


@pytest.mark.parametrize("num_threads", [1, 3])
def test_memory_that_several_requests_share_has_the_value_of_the_last(prefix: Path, num_threads: int) -> None:
    values = write(prefix, [3 * MIB, 3 * MIB, 100, 100])
    large, small = np.zeros(3 * MIB, np.uint8), np.zeros(150, np.uint8)
    keys = [b"value/000001", b"value/000000", b"value/000003", b"value/000002"]
    crafted.open_reader(prefix).read(
        [
            (keys[0], large.ctypes.data, large.nbytes),
            (keys[1], large.ctypes.data, large.nbytes),
            (keys[2], small.ctypes.data, 100),
            (keys[3], small.ctypes.data + 50, 100),
        ],
        num_threads=num_threads,
    )
    assert large.tobytes() == values[keys[1]]
    assert small.tobytes() == values[keys[2]][:50] + values[keys[3]]


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_numbers_of_either_byte_order_and_tensors_in_slices_are_read_together(
    prefix: Path, byteorder: crafted.ByteOrder, num_threads: int
) -> None:
    """C372, C376"""
    rng = np.random.default_rng(0)
    arrays = {b"small": rng.random(100), b"large": rng.random(3 * MIB // 8), b"cut": rng.random((600, 700))}
    bundle = crafted.Bundle(byteorder)
    bundle.add_array(b"small", 2, arrays[b"small"])
    bundle.add_slices(b"cut", 2, arrays[b"cut"], [((0, 600), (0, 300)), ((0, 600), (300, 400))])
    bundle.add_array(b"large", 2, arrays[b"large"])
    reader = bundle.write(prefix)
    memory = {key: np.zeros_like(array) for key, array in arrays.items()}
    requests = [(key, array.ctypes.data, array.nbytes) for key, array in memory.items()]
    reader.read(requests, num_threads=num_threads)
    assert all(np.array_equal(memory[key], array) for key, array in arrays.items())
    reader.verify(list(arrays), num_threads=num_threads)


@pytest.mark.parametrize("num_threads", [1, 4])
def test_a_file_that_ends_too_early_while_it_is_read_is_damage(prefix: Path, num_threads: int) -> None:
    """C384"""
    values = write(prefix, [100, 4 * MIB])
    reader = crafted.open_reader(prefix)
    crafted.cut(crafted.data_file(prefix), 2 * MIB)
    memory = memory_for(values)
    with pytest.raises(DataLossError, match="key value/000001 lies at offset 100"):
        reader.read(requests_for(memory), num_threads=num_threads)
    assert all(is_untouched(array) for array in memory.values())
