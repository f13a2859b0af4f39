#include "io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "error.h"

namespace trackckpt {

namespace {

// A copy of a small piece costs less than a system call for it; what has gathered is still in the cache.
constexpr size_t kSmallBytes = 64 << 10;
constexpr size_t kBufferBytes = 512 << 10;
// Large enough for a disk to write in one go, small enough that it has something to do soon.
constexpr uint64_t kWritebackBytes = 16 << 20;
constexpr ReadGrain kLocalGrain;

[[noreturn]] void ThrowErrno(const std::string& path) { throw FileError(ErrorKind::kSystem, errno, path); }

// Repeats a system call that a signal has interrupted.
template <typename Call>
auto Retry(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

int OpenForWriting(const std::string& path, int flags) {
  const int fd = Retry([&] { return open(path.c_str(), O_WRONLY | O_CLOEXEC | flags, 0666); });
  if (fd < 0) ThrowErrno(path);
  return fd;
}

int CreateFile(const std::string& path) { return OpenForWriting(path, O_CREAT | O_EXCL); }

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

void CreateEmptyFile(const std::string& path) { const FileDescriptor closing(CreateFile(path)); }

void RemoveFile(const std::string& path) { unlink(path.c_str()); }

WritableFile::WritableFile(std::string path, Opening opening)
    : path_(std::move(path)), fd_(opening == Opening::kNew ? CreateFile(path_) : OpenForWriting(path_, 0)) {}

// Without a place the writes that follow say so.
void WritableFile::Reserve(uint64_t n) {
  if (n > 0) fallocate(fd_.get(), FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(n));
}

void WritableFile::Append(const void* data, size_t n) {
  if (n > kSmallBytes) {
    Write(data, n);
    return;
  }
  if (n == 0) return;
  if (!buffer_) buffer_.reset(new char[kBufferBytes]);
  if (n > kBufferBytes - buffered_) Flush();
  std::memcpy(buffer_.get() + buffered_, data, n);
  buffered_ += n;
}

void WritableFile::Flush() { Write(nullptr, 0); }

void WritableFile::Write(const void* data, size_t n) {
  iovec parts[] = {{buffer_.get(), buffered_}, {const_cast<void*>(data), n}};
  while (parts[0].iov_len + parts[1].iov_len > 0) {
    const ssize_t result = Retry([&] { return writev(fd_.get(), parts, 2); });
    if (result < 0) ThrowErrno(path_);
    size_t taken = static_cast<size_t>(result);
    written_ += taken;
    for (iovec& part : parts) {
      const size_t of_part = std::min(taken, part.iov_len);
      part.iov_base = static_cast<char*>(part.iov_base) + of_part;
      part.iov_len -= of_part;
      taken -= of_part;
    }
  }
  buffered_ = 0;
  if (begins_early_ && written_ - begun_ >= kWritebackBytes) BeginWriteback();
}

// A hint, whose errors are of no interest: those of the disk are reported by Sync as well.
void WritableFile::BeginWriteback() {
  sync_file_range(fd_.get(), static_cast<off_t>(begun_), static_cast<off_t>(written_ - begun_),
                  SYNC_FILE_RANGE_WRITE);
  begun_ = written_;
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
  RemoveFile(path_);
}

bool FileState::operator==(const FileState& other) const {
  return device == other.device && inode == other.inode && size == other.size &&
         modified_seconds == other.modified_seconds && modified_nanoseconds == other.modified_nanoseconds;
}

LocalFile::LocalFile(std::string path)
    : ReadableFile(std::move(path)), fd_(OpenFile(this->path())), state_(StateOf(fd_.get(), this->path())) {}

const ReadGrain& LocalFile::grain() const { return kLocalGrain; }

void LocalFile::Read(uint64_t offset, void* destination, size_t n) const {
  char* p = static_cast<char*>(destination);
  while (n > 0) {
    const ssize_t got = Retry([&] { return pread(fd_.get(), p, n, static_cast<off_t>(offset)); });
    if (got < 0) ThrowErrno(path());
    if (got == 0) {
      throw Error(
          ErrorKind::kDataLoss,
          path() + ": Read less bytes than requested: the file ends at offset " + std::to_string(offset));
    }
    p += got;
    offset += static_cast<uint64_t>(got);
    n -= static_cast<size_t>(got);
  }
}

std::shared_ptr<const ReadableFile> LocalPlace::Open(const std::string& path) const {
  return std::make_shared<const LocalFile>(path);
}

const ReadGrain& LocalPlace::grain() const { return kLocalGrain; }

}  // namespace trackckpt
