#include "io/output.h"

#include <algorithm>
#include <cstring>

namespace trackckpt {

FileOutput::FileOutput(std::string path, bool durable) : Output(std::move(path)), durable_(durable) {
  CreateEmptyFile(path_);
}

// Memory has no use for it.
void FileOutput::Expect(uint64_t size) {
  if (durable_) File().Reserve(size);
}

void FileOutput::Complete() {
  if (durable_) File().Sync();
  if (file_) file_->Close();
}

void FileOutput::Discard() {
  file_.reset();
  RemoveFile(path_);
}

WritableFile& FileOutput::File() {
  if (!file_) {
    file_.emplace(path_, WritableFile::Opening::kEmpty);
    if (durable_) file_->BeginWritingEarly();
  }
  return *file_;
}

void PartOutput::Append(const void* data, size_t n) {
  const char* p = static_cast<const char*>(data);
  while (n > 0) {
    if (filled_ == part_.size) {
      part_ = next_part_(filled_, false);
      filled_ = 0;
    }
    const size_t taken = std::min<uint64_t>(n, part_.size - filled_);
    std::memcpy(part_.memory + filled_, p, taken);
    filled_ += taken;
    p += taken;
    n -= taken;
  }
}

void PartOutput::Complete() {
  next_part_(filled_, true);
  part_ = {};
  filled_ = 0;
}

}  // namespace trackckpt
