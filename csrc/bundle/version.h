// Which readers a file is meant for.
//
//    VersionDef { 1 producer int32 | 2 min_consumer int32 | 3 repeated bad_consumers int32 }
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace trackckpt {

// Files from before there were versions say nothing, which is producer 0.
struct Version {
  int32_t producer = 0;
  int32_t min_consumer = 0;
  std::vector<int32_t> bad_consumers;

  bool DecodeFrom(std::string_view message);
};

// Throws kUnsupportedFormat, naming `path`, if the file is not for this reader.
void CheckVersion(const Version& version, const std::string& path);

}  // namespace trackckpt
