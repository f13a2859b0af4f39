// A stream of Snappy, as it is.

#include <string>

#include "encoding/snappy.h"
#include "fuzz/check.h"
#include "fuzz/input.h"

using namespace trackckpt;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view stream = fuzz::Input(data, size).Rest();
  std::string first, second = "what was there before";
  const bool is_sound = SnappyUncompress(stream, &first);
  FUZZ_CHECK(is_sound == SnappyUncompress(stream, &second));
  FUZZ_CHECK(!is_sound || (first == second && first.size() <= kMaxSnappyExpansion * size));
  return 0;
}
