"""What the threads of a CUDA kernel do, done by the processor: the same source, without a device."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trackckpt.devices.pieces import MAX_RANK, DeviceRows, Pieces, Window, windows

SOURCES = Path(__file__).parents[2] / "csrc"
COMPILER = shutil.which("c++")
FLAGS = [
    "-std=c++17",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fsanitize=undefined",
    "-fno-sanitize-recover=all",
    "-shared",
    "-fPIC",
]

HARNESS = """
#include <vector>
#include "cuda/tile_copy.h"
using namespace trackckpt::cuda;

// Every thread of every block, one after the other.
extern "C" void copy_all(const Piece* pieces, uint32_t num_pieces, const Layout* layouts, uint64_t packed,
                         int32_t unpack, uint32_t num_threads) {
  std::vector<uint32_t> first_tiles;
  uint32_t num_tiles = 0;
  for (uint32_t i = 0; i < num_pieces; ++i) {
    first_tiles.push_back(num_tiles);
    num_tiles += NumTiles(pieces[i]);
  }
  for (uint32_t tile = 0; tile < num_tiles; ++tile) {
    const uint32_t piece = PieceOfTile(first_tiles.data(), num_pieces, tile);
    for (uint32_t thread = 0; thread < num_threads; ++thread) {
      CopyTile({pieces + piece, tile - first_tiles[piece]}, layouts, packed,
               unpack ? Direction::kUnpack : Direction::kPack, thread, num_threads);
    }
  }
}
extern "C" uint32_t sizes(int32_t which) { return which ? sizeof(Layout) : sizeof(Piece); }
"""

pytestmark = pytest.mark.skipif(COMPILER is None or not SOURCES.exists(), reason="needs a C++ compiler and the sources")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    place = tmp_path_factory.mktemp("tiles")
    (place / "tiles.cpp").write_text(HARNESS)
    subprocess.run(
        [str(COMPILER), *FLAGS, f"-I{SOURCES}", "tiles.cpp", "-o", "tiles.so"],
        cwd=place,
        check=True,
    )
    return ctypes.CDLL(str(place / "tiles.so"))


def copy(library: ctypes.CDLL, window: Window, packed: int, *, unpack: bool, num_threads: int = 5) -> None:
    pieces = Pieces.of(window)
    described = np.zeros(
        len(pieces.offsets),
        dtype=[
            ("address", "u8"),
            ("begin", "u8"),
            ("size", "u8"),
            ("offset", "u8"),
            ("layout", "i4"),
            ("unused", "i4"),
        ],
    )
    described["address"], described["begin"] = pieces.addresses, pieces.begins
    described["size"], described["offset"] = pieces.sizes, pieces.offsets
    described["layout"] = pieces.layout_of
    layouts = np.zeros(
        len(pieces.layouts),
        dtype=[("rank", "i4"), ("item_size", "i4"), ("shape", "i8", MAX_RANK), ("strides", "i8", MAX_RANK)],
    )
    layouts["rank"], layouts["item_size"] = pieces.layouts[:, 0], pieces.layouts[:, 1]
    layouts["shape"] = pieces.layouts[:, 2 : 2 + MAX_RANK]
    layouts["strides"] = pieces.layouts[:, 2 + MAX_RANK :] * pieces.layouts[:, 1:2]
    assert library.sizes(0) == described.itemsize
    assert library.sizes(1) == layouts.itemsize
    library.copy_all(
        ctypes.c_void_p(described.ctypes.data),
        ctypes.c_uint32(len(described)),
        ctypes.c_void_p(layouts.ctypes.data),
        ctypes.c_uint64(packed),
        ctypes.c_int32(unpack),
        ctypes.c_uint32(num_threads),
    )


def rows_of(tensors: list[torch.Tensor]) -> DeviceRows:
    strides = {
        number: (tuple(tensor.shape), tuple(tensor.stride()))
        for number, tensor in enumerate(tensors)
        if not tensor.is_contiguous()
    }
    sizes = np.array([tensor.nbytes for tensor in tensors], dtype=np.int64)
    addresses = np.array([tensor.data_ptr() for tensor in tensors], dtype=np.int64)
    return DeviceRows(0, np.arange(len(tensors)), sizes, addresses, strides)


def row_major_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


TENSORS = {
    "bytes": lambda: torch.arange(100, dtype=torch.uint8),
    "an odd beginning": lambda: torch.arange(100, dtype=torch.uint8)[3:],
    "halves from an odd element on": lambda: torch.arange(60, dtype=torch.int16)[1:],
    "four bytes from an odd element on": lambda: torch.arange(60, dtype=torch.int32)[1:],
    "several tiles": lambda: torch.arange(10_000, dtype=torch.int64),
    "no elements": lambda: torch.empty(0, 3),
    "a scalar": lambda: torch.tensor(7.0),
    "transposed": lambda: torch.arange(600.0).reshape(20, 30).t(),
    "transposed, several tiles": lambda: torch.arange(12_000).reshape(100, 120).t(),
    "every third": lambda: torch.arange(100, dtype=torch.int16)[1::3],
    "channels last": lambda: torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "complex, transposed": lambda: torch.rand(5, 6, dtype=torch.complex128).t(),
    "expanded": lambda: torch.ones(1, 4).expand(3, 4),
    "eight dimensions": lambda: torch.arange(2**8, dtype=torch.uint8).reshape([2] * 8).permute(7, 0, 6, 1, 5, 2, 4, 3),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_of_every_kind_is_packed_in_row_major_order(name: str, library: ctypes.CDLL) -> None:
    tensors = [torch.ones(3), TENSORS[name](), torch.ones(5, dtype=torch.bool)]
    for window in windows(rows_of(tensors), 1 << 20):
        packed = np.zeros(1 << 20, dtype=np.uint8)
        copy(library, window, packed.ctypes.data, unpack=False)
        for number, offset in zip(window.rows.rows.tolist(), window.offsets.tolist(), strict=True):
            expected = row_major_bytes(tensors[number])
            assert packed[offset : offset + len(expected)].tobytes() == expected


@pytest.mark.parametrize("name", [name for name in TENSORS if name != "expanded"])
def test_what_was_packed_is_unpacked_to_where_it_was(name: str, library: ctypes.CDLL) -> None:
    source, target = TENSORS[name](), TENSORS[name]()
    target.zero_()
    for window, back in zip(windows(rows_of([source]), 4096), windows(rows_of([target]), 4096), strict=True):
        packed = np.zeros(4096 + 64, dtype=np.uint8)
        copy(library, window, packed.ctypes.data, unpack=False)
        copy(library, back, packed.ctypes.data, unpack=True)
    assert torch.equal(source, target)


@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    lines=st.integers(1, 20),
    num_threads=st.sampled_from([1, 3, 256]),
)
@settings(max_examples=60, deadline=None)
def test_any_order_of_dimensions_any_step_and_any_cut(
    shape: list[int], seed: int, lines: int, num_threads: int, library: ctypes.CDLL
) -> None:
    generator = np.random.default_rng(seed)
    dtype = [torch.uint8, torch.int16, torch.float32, torch.float64, torch.complex128][generator.integers(5)]
    steps = [int(step) for step in generator.integers(1, 3, len(shape))]
    whole = torch.rand([length * step for length, step in zip(shape, steps, strict=True)]).mul(100).to(dtype)
    tensor = whole[tuple(slice(None, None, step) for step in steps)].permute(
        *generator.permutation(len(shape)).tolist()
    )
    joined = bytearray()
    for window in windows(rows_of([tensor]), lines * 64):
        packed = np.zeros(lines * 64, dtype=np.uint8)
        copy(library, window, packed.ctypes.data, unpack=False, num_threads=num_threads)
        joined += packed[: window.num_bytes].tobytes()
    assert bytes(joined) == row_major_bytes(tensor)
