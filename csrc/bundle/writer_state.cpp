#include "bundle/writer_state.h"

#include "error.h"

namespace trackckpt {

void WriterState::Close(const std::string& reason) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (reason_.empty()) reason_ = reason;
  is_closed_ = true;
}

void WriterState::ThrowClosed() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  throw Error(ErrorKind::kWriterClosed, "The writer of " + path_ + " is closed: " + reason_);
}

}  // namespace trackckpt
