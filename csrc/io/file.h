// Local files that close themselves. Every failure names the path.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace trackckpt {

// Owns an open file descriptor.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.Release()) {}
  FileDescriptor& operator=(FileDescriptor&& other) = delete;
  ~FileDescriptor();

  int get() const { return fd_; }
  // Gives up ownership.
  int Release();

 private:
  int fd_;
};

// A new file, written from front to end.
class WritableFile {
 public:
  // Throws if there is already something at `path`.
  explicit WritableFile(std::string path);

  const std::string& path() const { return path_; }

  // Queues bytes without copying them: they must stay as they are until Flush returns. Writes by itself
  // whenever enough has gathered.
  void Append(const void* data, size_t n);
  void Flush();
  // Flushes and waits until the bytes are on the device.
  void Sync();
  // Flushes and closes.
  void Close();
  // Closes and removes the file, whatever has become of it.
  void Discard();

 private:
  // Takes what has been written off the front of the queue.
  void Consume(size_t written);

  std::string path_;
  FileDescriptor fd_;
  std::vector<iovec> queue_;
  size_t queue_begin_ = 0;  // entries before it have been written
  size_t queued_bytes_ = 0;
};

// What is different when a file was replaced or written to.
struct FileState {
  dev_t device = 0;
  ino_t inode = 0;
  uint64_t size = 0;
  int64_t modified_seconds = 0;
  int64_t modified_nanoseconds = 0;

  bool operator==(const FileState& other) const;
};

class ReadableFile {
 public:
  // Throws, without waiting, if what is at `path` is no regular file.
  explicit ReadableFile(std::string path);

  const std::string& path() const { return path_; }
  uint64_t size() const { return state_.size; }
  int descriptor() const { return fd_.get(); }
  // As it was when the file was opened.
  const FileState& state() const { return state_; }

  // Reads exactly `n` bytes, or throws. Any number of threads may read at once.
  void Read(uint64_t offset, void* destination, size_t n) const;

 private:
  std::string path_;
  FileDescriptor fd_;
  FileState state_;
};

}  // namespace trackckpt
