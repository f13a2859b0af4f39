#include "io/memory_copy.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "io/parallel.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace trackckpt {

namespace {

constexpr size_t kChunkBytes = 2 << 20;

#if defined(__SSE2__)

// Below, what was copied may still be of use in the cache, and the cost of the start shows.
constexpr size_t kStreamBytes = 64 << 10;

// Past the cache: nobody looks at a copy soon. That saves the processor reading what it overwrites, a third of the
// traffic, and leaves the program its cache.
void Stream(char* to, const char* from, size_t n) {
  const size_t head = -reinterpret_cast<uintptr_t>(to) & 63;
  std::memcpy(to, from, head);
  to += head;
  from += head;
  n -= head;
  for (; n >= 64; n -= 64, to += 64, from += 64) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16));
    const __m128i c = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 32));
    const __m128i d = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 48));
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), a);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 16), b);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 32), c);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 48), d);
  }
  // Streamed bytes are in no order with others before this.
  _mm_sfence();
  std::memcpy(to, from, n);
}

void Copy(const CopyPiece& piece) {
  if (piece.size >= kStreamBytes) {
    Stream(piece.to, piece.from, piece.size);
  } else {
    std::memcpy(piece.to, piece.from, piece.size);
  }
}

#else

void Copy(const CopyPiece& piece) { std::memcpy(piece.to, piece.from, piece.size); }

#endif

size_t Window(const char* to) { return reinterpret_cast<uintptr_t>(to) / kChunkBytes; }

}  // namespace

MemoryCopy::MemoryCopy(std::vector<CopyPiece> pieces) {
  for (CopyPiece piece : pieces) {
    while (piece.size > 0) {
      const size_t in_window = kChunkBytes - reinterpret_cast<uintptr_t>(piece.to) % kChunkBytes;
      const size_t n = std::min(piece.size, in_window);
      if (pieces_.empty() || Window(pieces_.back().to) != Window(piece.to)) {
        chunks_.push_back({pieces_.size(), pieces_.size()});
      }
      pieces_.push_back({piece.from, piece.to, n});
      chunks_.back().end_piece = pieces_.size();
      piece.from += n;
      piece.to += n;
      piece.size -= n;
    }
  }
}

void MemoryCopy::Run(size_t num_threads) {
  num_threads = std::max<size_t>(num_threads, 1);
  ParallelFor(num_threads, std::min(num_threads, chunks_.size()), [this](size_t) {
    while (CopyNext()) {
    }
  });
  std::unique_lock<std::mutex> lock(mutex_);
  all_done_.wait(lock, [this] { return is_complete(); });
}

bool MemoryCopy::CopyNext() {
  const size_t number = next_++;
  if (number >= chunks_.size()) return false;
  for (size_t i = chunks_[number].first_piece; i < chunks_[number].end_piece; ++i) Copy(pieces_[i]);
  if (++num_done_ == chunks_.size()) {
    const std::lock_guard<std::mutex> lock(mutex_);
    all_done_.notify_all();
  }
  return true;
}

}  // namespace trackckpt
