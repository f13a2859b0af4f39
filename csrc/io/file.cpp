#include "io/file.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "error.h"

namespace trackckpt {

namespace {

constexpr size_t kFlushBytes = 1 << 20;
constexpr size_t kMaxQueued = IOV_MAX;

[[noreturn]] void ThrowErrno(const std::string& path) { throw FileError(ErrorKind::kSystem, errno, path); }

// Repeats a system call that a signal has interrupted.
template <typename Call>
auto Retry(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

int CreateFile(const std::string& path) {
  const int fd = Retry([&] { return open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); });
  if (fd < 0) ThrowErrno(path);
  return fd;
}

// Opening a named pipe would wait for someone who writes to it, were it not for O_NONBLOCK. Regular files are
// read as without it.
int OpenFile(const std::string& path) {
  const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  const int fd = Retry([&] { return open(path.c_str(), flags); });
  if (fd >= 0) return fd;
  if (errno == ENOENT) throw FileError(ErrorKind::kNotFound, ENOENT, path);
  ThrowErrno(path);
}

FileState StateOf(int fd, const std::string& path) {
  struct stat status;
  if (fstat(fd, &status) != 0) ThrowErrno(path);
  if (S_ISDIR(status.st_mode)) throw FileError(ErrorKind::kSystem, EISDIR, path);
  if (!S_ISREG(status.st_mode)) {
    throw Error(ErrorKind::kUnsupportedFormat, path + ": not a regular file, but a pipe or a device");
  }
  return {status.st_dev, status.st_ino, static_cast<uint64_t>(status.st_size), status.st_mtim.tv_sec,
          status.st_mtim.tv_nsec};
}

}  // namespace

FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0) close(fd_);
}

int FileDescriptor::Release() { return std::exchange(fd_, -1); }

WritableFile::WritableFile(std::string path) : path_(std::move(path)), fd_(CreateFile(path_)) {}

void WritableFile::Append(const void* data, size_t n) {
  if (n == 0) return;
  queue_.push_back({const_cast<void*>(data), n});
  queued_bytes_ += n;
  if (queued_bytes_ >= kFlushBytes || queue_.size() >= kMaxQueued) Flush();
}

void WritableFile::Flush() {
  while (queue_begin_ < queue_.size()) {
    const int count = static_cast<int>(queue_.size() - queue_begin_);
    const ssize_t written = Retry([&] { return writev(fd_.get(), &queue_[queue_begin_], count); });
    if (written < 0) ThrowErrno(path_);
    Consume(static_cast<size_t>(written));
  }
  queue_.clear();
  queue_begin_ = 0;
  queued_bytes_ = 0;
}

void WritableFile::Consume(size_t written) {
  while (written > 0) {
    iovec& front = queue_[queue_begin_];
    const size_t taken = std::min(written, front.iov_len);
    front.iov_base = static_cast<char*>(front.iov_base) + taken;
    front.iov_len -= taken;
    written -= taken;
    if (front.iov_len == 0) ++queue_begin_;
  }
}

void WritableFile::Sync() {
  Flush();
  if (Retry([&] { return fsync(fd_.get()); }) != 0) ThrowErrno(path_);
}

void WritableFile::Close() {
  Flush();
  // Linux has let go of the descriptor even where close reports EINTR, and the data is not affected by it.
  if (close(fd_.Release()) != 0 && errno != EINTR) ThrowErrno(path_);
}

void WritableFile::Discard() {
  const FileDescriptor closing(std::move(fd_));
  unlink(path_.c_str());
}

bool FileState::operator==(const FileState& other) const {
  return device == other.device && inode == other.inode && size == other.size &&
         modified_seconds == other.modified_seconds && modified_nanoseconds == other.modified_nanoseconds;
}

ReadableFile::ReadableFile(std::string path)
    : path_(std::move(path)), fd_(OpenFile(path_)), state_(StateOf(fd_.get(), path_)) {}

void ReadableFile::Read(uint64_t offset, void* destination, size_t n) const {
  char* p = static_cast<char*>(destination);
  while (n > 0) {
    const ssize_t got = Retry([&] { return pread(fd_.get(), p, n, static_cast<off_t>(offset)); });
    if (got < 0) ThrowErrno(path_);
    if (got == 0) {
      throw Error(ErrorKind::kDataLoss, path_ + ": Read less bytes than requested: the file ends at offset " +
                                            std::to_string(offset));
    }
    p += got;
    offset += static_cast<uint64_t>(got);
    n -= static_cast<size_t>(got);
  }
}

}  // namespace trackckpt
