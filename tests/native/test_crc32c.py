"""CRC-32C: known values, and every kernel of this processor against the plain ones, at any address and length."""

import ctypes
import mmap
import random

import numpy as np
import pytest
import witness
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trackckpt import _native

KERNELS = _native.crc32c_implementations()
KNOWN = {
    b"": 0x00000000,
    b"123456789": 0xE3069283,
    bytes(32): 0x8A9136AA,
    b"\xff" * 32: 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
    bytes(reversed(range(32))): 0x113FDB5C,
}
MEMORY = random.Random(362).randbytes(50_000)

# Lengths at which kernels change their way: blocks of 64 bytes, one, two or four at once; three streams of 256
# bytes, and of 4096.
TURNS = [64, 128, 192, 256, 320, 384, 512, 576, 768, 1024, 1536, 12288, 12288 + 768, 2 * 12288]


def at(offset: int, length: int) -> memoryview:
    """`length` bytes of `MEMORY`, which itself begins at some address divisible by 16."""
    return memoryview(MEMORY)[offset : offset + length]


@pytest.mark.parametrize("kernel", ["", *KERNELS])
@pytest.mark.parametrize("data", KNOWN, ids=["empty", "digits", "zeros", "ones", "ascending", "descending"])
def test_every_kernel_gives_the_known_checksums(kernel: str, data: bytes) -> None:
    """C362"""
    assert _native.crc32c(data, 0, kernel) == KNOWN[data]


@pytest.mark.parametrize("data", KNOWN)
def test_the_witness_gives_the_known_checksums(data: bytes) -> None:
    assert witness.crc32c(data) == KNOWN[data]


def test_the_last_kernel_is_the_portable_one_and_names_do_not_repeat() -> None:
    assert KERNELS[-1] == "portable"
    assert len(set(KERNELS)) == len(KERNELS)


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="abacus"):
        _native.crc32c(b"data", 0, "abacus")


def test_what_is_not_one_piece_of_bytes_is_refused() -> None:
    with pytest.raises(TypeError, match="str"):
        _native.crc32c("text")  # type: ignore[arg-type]
    with pytest.raises(BufferError, match="contiguous"):
        _native.crc32c(memoryview(b"every second")[::2])


def test_the_bytes_of_any_buffer_are_taken() -> None:
    numbers = np.arange(600, dtype=np.float32)
    assert _native.crc32c(numbers) == _native.crc32c(bytearray(numbers.tobytes())) == witness.crc32c(numbers.tobytes())


@given(st.binary(max_size=600), st.integers(0, 2**32 - 1))
def test_the_portable_kernel_equals_the_witness_from_any_start(data: bytes, start: int) -> None:
    assert _native.crc32c(data, start, "portable") == witness.crc32c(data, start)


def test_the_portable_kernel_equals_the_witness_at_every_short_length() -> None:
    for length in range(1101):
        assert _native.crc32c(at(length % 64, length), length, "portable") == witness.crc32c(
            at(length % 64, length), length
        )


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_equals_the_portable_one_at_every_short_length(kernel: str) -> None:
    for length in range(1101):
        data = at(length * 7 % 64, length)
        assert _native.crc32c(data, length, kernel) == _native.crc32c(data, length, "portable"), length


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("turn", TURNS)
def test_every_kernel_equals_the_portable_one_where_it_changes_its_way(kernel: str, turn: int) -> None:
    for length in range(turn - 17, turn + 18):
        for offset in (0, 1, 15, 31, 48, 63):
            data = at(offset, length)
            assert _native.crc32c(data, 1, kernel) == _native.crc32c(data, 1, "portable"), (offset, length)


@pytest.mark.parametrize("kernel", KERNELS)
@given(
    offset=st.integers(0, 130),
    length=st.one_of(st.integers(0, 300), st.integers(0, 49_000)),
    start=st.integers(0, 2**32 - 1),
)
def test_every_kernel_equals_the_portable_one_at_any_address(kernel: str, offset: int, length: int, start: int) -> None:
    data = at(offset, length)
    assert _native.crc32c(data, start, kernel) == _native.crc32c(data, start, "portable")


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_kernel_touches_memory_beside_the_data(kernel: str) -> None:
    """The pages before and after cannot be read: a kernel that does so ends the process."""
    page, unreadable = mmap.PAGESIZE, 0
    memory = np.frombuffer(mmap.mmap(-1, 3 * page), np.uint8)
    memory[:] = np.resize(np.frombuffer(MEMORY, np.uint8), 3 * page)
    protect = ctypes.CDLL(None).mprotect
    for closed in (0, 2 * page):
        assert protect(ctypes.c_void_p(memory.ctypes.data + closed), ctypes.c_size_t(page), unreadable) == 0
    for length in [*range(600), page - 1, page]:
        for begin in (page, 2 * page - length):
            data = memory[begin : begin + length]
            assert _native.crc32c(data, 0, kernel) == _native.crc32c(data.tobytes(), 0, "portable")


@pytest.mark.parametrize("kernel", KERNELS)
@given(
    seed=st.binary(min_size=1, max_size=64),
    length=st.one_of(st.integers(0, 300), st.integers(0, 200_000)),
    start=st.integers(0, 2**32 - 1),
)
def test_every_kernel_equals_the_portable_one(kernel: str, seed: bytes, length: int, start: int) -> None:
    data = (seed * (length // len(seed) + 1))[:length]
    assert _native.crc32c(data, start, kernel) == _native.crc32c(data, start, "portable")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("length", [100, 1100, 2 * 12288])
def test_a_checksum_in_two_steps_is_that_in_one(kernel: str, length: int) -> None:
    whole = _native.crc32c(at(3, length), 7, "portable")
    for cut in [*range(min(length, 1100) + 1), *range(max(0, length - 1100), length + 1)]:
        first = _native.crc32c(at(3, cut), 7, kernel)
        assert _native.crc32c(at(3 + cut, length - cut), first, kernel) == whole, cut


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=50)
@given(data=st.binary(max_size=5000), cuts=st.lists(st.integers(0, 5000), max_size=4))
def test_a_checksum_continues_over_any_pieces(kernel: str, data: bytes, cuts: list[int]) -> None:
    crc = 0
    ends = [*sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in zip([0, *ends], ends, strict=False):
        crc = _native.crc32c(data[start:end], crc, kernel)
    assert crc == _native.crc32c(data, 0, "portable")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("length", [1 << 16, (1 << 20) - 1, (1 << 20) + 1, (1 << 23) + 7])
def test_every_kernel_agrees_on_long_memory(kernel: str, length: int) -> None:
    data = (bytes(range(251)) * (length // 251 + 1))[:length]
    assert _native.crc32c(data, 0, kernel) == _native.crc32c(data, 0, "portable")
