// Copies many pieces of memory, by any number of threads that may join at any time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace trackckpt {

struct CopyPiece {
  const char* from = nullptr;
  char* to = nullptr;
  size_t size = 0;
};

// The work is cut where the destination crosses a multiple of 2 MiB: no two threads fault in one huge page, small
// pieces are many to a chunk, and a large one is copied by several threads.
class MemoryCopy {
 public:
  // The pieces do not overlap; the memory outlives the copy.
  explicit MemoryCopy(std::vector<CopyPiece> pieces);

  // Copies what no other call has taken, by so many threads, of which the caller's is one; returns when everything
  // is there, whoever copied it.
  void Run(size_t num_threads);
  bool is_complete() const { return num_done_ == chunks_.size(); }

 private:
  struct Chunk {
    size_t first_piece;
    size_t end_piece;
  };

  bool CopyNext();

  std::vector<CopyPiece> pieces_;
  std::vector<Chunk> chunks_;
  std::atomic<size_t> next_{0};
  std::atomic<size_t> num_done_{0};
  std::mutex mutex_;
  std::condition_variable all_done_;
};

}  // namespace trackckpt
