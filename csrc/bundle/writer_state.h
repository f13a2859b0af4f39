// Whether a writer still takes calls, as all of its threads know it.
#pragma once

#include <atomic>
#include <mutex>
#include <string>

namespace trackckpt {

class WriterState {
 public:
  // `path` names the writer in messages.
  explicit WriterState(std::string path) : path_(std::move(path)) {}

  // What is being written stops soon; the first reason stays.
  void Close(const std::string& reason);
  // Throws kWriterClosed. Costs nothing while the writer is open.
  void CheckOpen() const {
    if (is_closed_.load(std::memory_order_relaxed)) ThrowClosed();
  }

 private:
  [[noreturn]] void ThrowClosed() const;

  const std::string path_;
  std::atomic<bool> is_closed_{false};
  mutable std::mutex mutex_;
  std::string reason_;
};

}  // namespace trackckpt
