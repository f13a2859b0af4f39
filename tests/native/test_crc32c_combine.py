"""CRC-32C of a concatenation, from the checksums of its parts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_trackckpt import _native

CHECKSUMS = st.integers(0, 2**32 - 1)
SIZES = st.one_of(st.integers(0, 2**12), st.integers(0, 2**40), st.sampled_from([2**k for k in range(63)]))
POLYNOMIAL = 0x1_1EDC_6F41


def product(a: int, b: int) -> int:
    """The product of two polynomials modulo that of CRC-32C, bit n being the coefficient of x^n."""
    result = 0
    while b:
        if b & 1:
            result ^= a
        a <<= 1
        if a >> 32:
            a ^= POLYNOMIAL
        b >>= 1
    return result


def over_zeros(crc: int, size: int) -> int:
    """The checksum after `size` more zero bytes: the register, which is the inverse of it, times x^(8 * size)."""
    result, factor, exponent = int(f"{crc ^ 0xFFFF_FFFF:032b}"[::-1], 2), 2, 8 * size
    while exponent:
        if exponent & 1:
            result = product(result, factor)
        factor = product(factor, factor)
        exponent >>= 1
    return int(f"{result:032b}"[::-1], 2) ^ 0xFFFF_FFFF


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_the_checksums_of_two_parts_make_that_of_the_whole(a: bytes, b: bytes) -> None:
    assert _native.crc32c_combine(_native.crc32c(a), _native.crc32c(b), len(b)) == _native.crc32c(a + b)


@pytest.mark.parametrize("chunk", [1, 64, 1000, 4096, 65_536, 1 << 20])
def test_the_checksums_of_chunks_make_that_of_a_tensor(chunk: int) -> None:
    tensor = memoryview(bytes(range(251)) * 10_000)[: 2500 * min(chunk, 1000) + 17]
    crc = 0
    for begin in range(0, len(tensor), chunk):
        part = tensor[begin : begin + chunk]
        crc = _native.crc32c_combine(crc, _native.crc32c(part), len(part))
    assert crc == _native.crc32c(tensor)


@given(CHECKSUMS)
def test_nothing_after_changes_nothing(crc: int) -> None:
    assert _native.crc32c_combine(crc, _native.crc32c(b""), 0) == crc


@given(CHECKSUMS, SIZES)
def test_nothing_before_changes_nothing(crc: int, size: int) -> None:
    assert _native.crc32c_combine(_native.crc32c(b""), crc, size) == crc


@given(CHECKSUMS, CHECKSUMS, CHECKSUMS, SIZES, SIZES)
def test_it_does_not_matter_which_parts_are_combined_first(a: int, b: int, c: int, size_b: int, size_c: int) -> None:
    combine = _native.crc32c_combine
    assert combine(combine(a, b, size_b), c, size_c) == combine(a, combine(b, c, size_c), size_b + size_c)


@given(CHECKSUMS, st.integers(0, 5000))
def test_zeros_combine_as_they_extend(crc: int, size: int) -> None:
    zeros = bytes(size)
    assert _native.crc32c_combine(crc, _native.crc32c(zeros), size) == _native.crc32c(zeros, crc)


@given(CHECKSUMS, st.one_of(SIZES, st.integers(0, 2**64 - 1)))
def test_a_tensor_of_any_size_combines(crc: int, size: int) -> None:
    """Zeros, the one content whose checksum is known at any size."""
    assert _native.crc32c_combine(crc, over_zeros(0, size), size) == over_zeros(crc, size)


def test_doubling_reaches_a_tebibyte() -> None:
    crc = _native.crc32c(bytes(1 << 20))
    for power in range(20, 40):
        crc = _native.crc32c_combine(crc, crc, 1 << power)
    assert crc == over_zeros(0, 1 << 40)


@pytest.mark.parametrize("size", [-1, 2**64])
def test_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(TypeError, match="crc32c_combine"):
        _native.crc32c_combine(0, 0, size)
