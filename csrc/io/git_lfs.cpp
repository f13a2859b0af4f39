#include "io/git_lfs.h"

#include <string>
#include <string_view>

namespace trackckpt {

namespace {

constexpr std::string_view kFirstLine = "version https://git-lfs.github.com/spec/v1";

}  // namespace

bool IsGitLfsPointer(const ReadableFile& file) {
  if (file.size() < kFirstLine.size()) return false;
  std::string begin(kFirstLine.size(), '\0');
  file.Read(0, begin.data(), begin.size());
  return begin == kFirstLine;
}

}  // namespace trackckpt
