"""CRC-32C: known values, and every kernel of this processor against the plain ones.

A ``bytes`` object is always aligned; memory at odd addresses is the matter of `test_bundle_writer`.
"""

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


@given(st.binary(max_size=600), st.integers(0, 2**32 - 1))
def test_the_portable_kernel_equals_the_witness_from_any_start(data: bytes, start: int) -> None:
    assert _native.crc32c(data, start, "portable") == witness.crc32c(data, start)


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
