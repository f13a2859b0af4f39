"""What is packed, what is copied by itself, and what stays as it is: the real code, over a runtime made of memcpy."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SOURCES = Path(__file__).parents[2] / "csrc"
COMPILER = shutil.which("c++")
MIB = 1 << 20

RUNTIME = """
#pragma once
#include <cstddef>
enum cudaError_t { cudaSuccess = 0 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
using cudaStream_t = void*;
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetLastError();
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind kind, cudaStream_t stream);
"""

HARNESS = """
#include <cstring>
#include <vector>
#include "cuda/pack.h"
#include "cuda/piece_copy.h"
#include "cuda/status.h"

using namespace trackckpt::cuda;

namespace { int num_copies = 0; int current = 0; }

cudaError_t cudaGetDevice(int* device) { *device = current; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) { current = device; return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return ""; }
const char* cudaGetErrorString(cudaError_t) { return ""; }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, n);
  ++num_copies;
  return cudaSuccess;
}

namespace trackckpt::cuda {
cudaError_t CopyRun(const PackedRun& run, Direction direction, uint32_t, cudaStream_t) {
  for (uint32_t tile = run.first_tile; tile < run.first_tile + run.num_tiles; ++tile) {
    const uint32_t piece = PieceOfTile(run.first_tiles, run.num_pieces, tile);
    const Tile part{run.pieces + piece, tile - run.first_tiles[piece]};
    for (uint32_t thread = 0; thread < 64; ++thread)
      CopyTile(part, run.layouts, run.packed, direction, thread, 64);
  }
  return cudaSuccess;
}
}  // namespace trackckpt::cuda

// how: 0 to the host, 1 from it, 2 a snapshot. Returns the number of copies.
extern "C" int copy(int how, const int64_t* columns, int64_t count, char* memory, uint64_t extra) {
  std::vector<Piece> pieces;
  for (int64_t i = 0; i < count; ++i) {
    Piece piece{};
    piece.address = static_cast<uint64_t>(columns[i]);
    piece.size = static_cast<uint64_t>(columns[count + i]);
    piece.offset = static_cast<uint64_t>(columns[2 * count + i]);
    piece.layout = kContiguous;
    pieces.push_back(piece);
  }
  const PieceCopy copy(0, pieces, {});
  std::vector<char> description(copy.description_bytes());
  // What was in the scratch memory before.
  std::vector<char> scratch(copy.least_scratch_bytes() + extra, '\\xee');
  const Scratch given{scratch.data(), scratch.size(), description.data()};
  num_copies = 0;
  if (how == 0) copy.ToHost(memory, given, nullptr);
  if (how == 1) copy.FromHost(memory, given, nullptr);
  if (how == 2) copy.Snapshot(memory, given, nullptr);
  return num_copies;
}
"""

HARNESS += """
// The current device meanwhile and afterwards, as two digits.
extern "C" int visit(int before, int device) {
  current = before;
  int meanwhile;
  {
    const OnDevice on_device(device);
    meanwhile = current;
  }
  return 10 * meanwhile + current;
}
"""

DRIVER = """
extern "C" int cuDevicePrimaryCtxGetState(int device, unsigned*, int* active) { *active = device == 3; return 0; }
"""

pytestmark = pytest.mark.skipif(COMPILER is None or not SOURCES.exists(), reason="needs a C++ compiler and the sources")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    place = tmp_path_factory.mktemp("copies")
    (place / "cuda_runtime_api.h").write_text(RUNTIME)
    (place / "copies.cpp").write_text(HARNESS)
    sources = ["copies.cpp", *(str(SOURCES / "cuda" / name) for name in ("piece_copy.cpp", "status.cpp"))]
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{place}", f"-I{SOURCES}"]
    subprocess.run([str(COMPILER), *flags, *sources, "-o", "copies.so"], cwd=place, check=True)
    return ctypes.CDLL(str(place / "copies.so"))


class Tensors:
    """Some tensors, of which chosen ones have their places in one memory."""

    def __init__(self, sizes: list[int], chosen: list[int]) -> None:
        generator = np.random.default_rng(0)
        self.sizes = sizes
        self.values = [generator.integers(0, 200, size, dtype=np.uint8) for size in sizes]
        spans = [-(-size // 64) * 64 for size in sizes]
        self.offsets = [sum(spans[:place]) for place in range(len(sizes))]
        self.memory = np.full(sum(spans) + 64, 0xAA, dtype=np.uint8)
        self.chosen = chosen

    def copy(self, library: ctypes.CDLL, how: int, extra: int = 1 << 20) -> int:
        columns = np.array(
            [
                [self.values[place].ctypes.data for place in self.chosen],
                [self.sizes[place] for place in self.chosen],
                [self.offsets[place] for place in self.chosen],
            ],
            dtype=np.int64,
        )
        found: int = library.copy(
            how,
            ctypes.c_void_p(columns.ctypes.data),
            ctypes.c_int64(len(self.chosen)),
            ctypes.c_void_p(self.memory.ctypes.data),
            ctypes.c_uint64(extra),
        )
        return found

    def in_memory(self, place: int) -> np.ndarray:
        return self.memory[self.offsets[place] : self.offsets[place] + self.sizes[place]]


@given(
    sizes=st.lists(st.sampled_from([0, 1, 63, 64, 100, 5000, 300_000, 600_000]), min_size=1, max_size=10),
    chosen=st.integers(0, 2**10 - 1),
    extra=st.sampled_from([0, 4096, 1 << 20]),
)
@settings(max_examples=100, deadline=None)
def test_what_is_not_meant_stays_as_it_is_whatever_lies_beside_it(
    sizes: list[int], chosen: int, extra: int, library: ctypes.CDLL
) -> None:
    tensors = Tensors(sizes, [place for place in range(len(sizes)) if chosen >> place & 1])
    tensors.copy(library, 0, extra)
    for place, value in enumerate(tensors.values):
        expected = value if place in tensors.chosen else np.full(sizes[place], 0xAA, dtype=np.uint8)
        assert np.array_equal(tensors.in_memory(place), expected)


@given(sizes=st.lists(st.sampled_from([1, 64, 100, 5000, 600_000]), min_size=1, max_size=10))
@settings(max_examples=30, deadline=None)
def test_what_comes_from_the_host_or_goes_to_a_snapshot_is_all_there(sizes: list[int], library: ctypes.CDLL) -> None:
    tensors = Tensors(sizes, list(range(len(sizes))))
    tensors.copy(library, 2)
    before = [value.copy() for value in tensors.values]
    for value in tensors.values:
        value[:] = 0
    tensors.copy(library, 1)
    assert all(np.array_equal(*pair) for pair in zip(before, tensors.values, strict=True))


def test_many_small_tensors_need_one_copy_and_large_ones_one_each(library: ctypes.CDLL) -> None:
    # One more is that of the description.
    assert Tensors([1000] * 500, list(range(500))).copy(library, 0) == 2
    assert Tensors([MIB, 2 * MIB], [0, 1]).copy(library, 0) == 2
    assert Tensors([1000] * 10 + [MIB] + [1000] * 10, list(range(21))).copy(library, 0) == 4
    assert Tensors([1000], [0]).copy(library, 0) == 1


def test_a_thread_goes_back_to_the_device_that_it_came_from_unless_the_process_has_not_used_that(
    library: ctypes.CDLL, tmp_path: Path
) -> None:
    """To begin with a device takes some hundred MiB of its memory."""
    assert library.visit(2, 2) == 22
    # Nothing tells which devices are in use.
    assert library.visit(3, 5) == 55
    (tmp_path / "driver.cpp").write_text(DRIVER)
    flags = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([str(COMPILER), *flags, "driver.cpp", "-o", "driver.so"], cwd=tmp_path, check=True)
    script = f"""
import ctypes
ctypes.CDLL({str(tmp_path / "driver.so")!r}, ctypes.RTLD_GLOBAL)
library = ctypes.CDLL({library._name!r})
print(library.visit(3, 5), library.visit(0, 5))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["53", "55"]
