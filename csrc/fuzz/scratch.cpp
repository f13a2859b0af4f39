#include "fuzz/scratch.h"

#include <cstdlib>
#include <filesystem>

#include "fuzz/check.h"
#include "io/file.h"

namespace trackckpt::fuzz {

namespace {

class Folder {
 public:
  Folder() : path_(std::filesystem::temp_directory_path() / "trackckpt-fuzz-XXXXXX") {
    FUZZ_CHECK(mkdtemp(path_.data()) != nullptr);
  }
  ~Folder() { std::filesystem::remove_all(path_); }

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace

std::string ScratchPath(const std::string& name) {
  static const Folder folder;
  return folder.path() + "/" + name;
}

std::string FreshPath(const std::string& name) {
  std::string path = ScratchPath(name);
  std::filesystem::remove(path);
  return path;
}

std::string WriteScratch(const std::string& name, std::string_view content) {
  const std::string path = FreshPath(name);
  WritableFile file(path);
  file.Append(content.data(), content.size());
  file.Close();
  return path;
}

}  // namespace trackckpt::fuzz
