// What a target may and may not do with an input.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "error.h"

// Ends the process if a property does not hold, which is a finding.
#define FUZZ_CHECK(condition)                                                             \
  do {                                                                                    \
    if (!(condition)) {                                                                   \
      std::fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                       \
    }                                                                                     \
  } while (false)

namespace trackckpt::fuzz {

// Errors of the core are how it refuses input. Any other exception is a finding. Returns whether there was none.
template <typename Action>
bool Attempt(Action action) {
  try {
    action();
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace trackckpt::fuzz
