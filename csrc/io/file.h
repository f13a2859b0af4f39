// Local files that close themselves. Every failure names the path.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "io/byte_sink.h"
#include "io/readable_file.h"

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

// Makes an empty file. Throws if there is already something at `path`.
void CreateEmptyFile(const std::string& path);

// Removes a file; one that is gone already is no error, and neither is one that cannot be removed.
void RemoveFile(const std::string& path);

// A file, written from front to end. Small pieces gather in a buffer; large ones go to the system as they lie in the
// caller's memory.
class WritableFile : public ByteSink {
 public:
  enum class Opening { kNew, kEmpty };  // kEmpty: an empty file that is there

  // Throws if there is already something at the path of a new file.
  explicit WritableFile(std::string path, Opening opening = Opening::kNew);

  const std::string& path() const { return path_; }

  // Has the disk begin with what is written while more is still to come. Sync then has less to wait for.
  void BeginWritingEarly() { begins_early_ = true; }

  // Has the file system find a place for so many bytes at once, in few pieces. A hint: nothing is there afterwards
  // that was not there before, and the file may become larger.
  void Reserve(uint64_t n);

  void Append(const void* data, size_t n) override;
  void Flush();
  // Flushes and waits until the bytes are on the device.
  void Sync();
  // Flushes and closes.
  void Close();
  // Closes and removes the file, whatever has become of it.
  void Discard();

 private:
  // Writes the buffer and then these bytes.
  void Write(const void* data, size_t n);
  void BeginWriteback();

  std::string path_;
  FileDescriptor fd_;
  std::unique_ptr<char[]> buffer_;
  size_t buffered_ = 0;
  bool begins_early_ = false;
  uint64_t written_ = 0;
  uint64_t begun_ = 0;  // bytes that the disk has been told of
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

class LocalFile : public ReadableFile {
 public:
  // Throws, without waiting, if what is at `path` is no regular file.
  explicit LocalFile(std::string path);

  uint64_t size() const override { return state_.size; }
  const ReadGrain& grain() const override;
  int descriptor() const { return fd_.get(); }
  // As it was when the file was opened.
  const FileState& state() const { return state_; }

  void Read(uint64_t offset, void* destination, size_t n) const override;

 private:
  FileDescriptor fd_;
  FileState state_;
};

// The files of this machine.
class LocalPlace : public FilePlace {
 public:
  std::shared_ptr<const ReadableFile> Open(const std::string& path) const override;
  const ReadGrain& grain() const override;
};

}  // namespace trackckpt
