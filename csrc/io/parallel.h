// One piece of work after the other, on several threads.
#pragma once

#include <cstddef>
#include <functional>

namespace trackckpt {

// Calls work(0) ... work(count - 1), each once, on at most `num_threads` threads, of which the caller's is one.
// Whoever is free takes the next, in ascending order. The threads end before this returns: none outlives a call,
// so that a fork finds none. After an exception no further work is begun; the first is thrown when all is quiet.
void ParallelFor(size_t num_threads, size_t count, const std::function<void(size_t)>& work);

}  // namespace trackckpt
