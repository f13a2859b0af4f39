#include "io/parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace trackckpt {

namespace {

class Queue {
 public:
  Queue(size_t count, const std::function<void(size_t)>& work) : count_(count), work_(work) {}

  // Takes pieces until there are none left or one has failed.
  void Run() {
    try {
      for (size_t next = next_++; next < count_; next = next_++) work_(next);
    } catch (...) {
      next_ = count_;
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
    }
  }

  void RethrowFailure() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  const size_t count_;
  const std::function<void(size_t)>& work_;
  std::atomic<size_t> next_{0};
  std::mutex mutex_;
  std::exception_ptr failure_;
};

}  // namespace

void ParallelFor(size_t num_threads, size_t count, const std::function<void(size_t)>& work) {
  Queue queue(count, work);
  std::vector<std::thread> helpers;
  const size_t num_helpers = std::min(num_threads, count) - (num_threads > 0 && count > 0 ? 1 : 0);
  helpers.reserve(num_helpers);
  try {
    for (size_t i = 0; i < num_helpers; ++i) helpers.emplace_back([&queue] { queue.Run(); });
  } catch (const std::system_error&) {
    // The system gives no more threads: those that there are do the work.
  } catch (const std::bad_alloc&) {
    // No memory for one more is no reason either.
  }
  queue.Run();
  for (std::thread& helper : helpers) helper.join();
  queue.RethrowFailure();
}

}  // namespace trackckpt
