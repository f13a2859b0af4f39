// What a data file is written to, from front to back: a file of this machine, or parts that somebody takes away.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "io/byte_sink.h"
#include "io/file.h"

namespace trackckpt {

class Output : public ByteSink {
 public:
  const std::string& path() const { return path_; }

  // Says that at least so many bytes are going to come.
  virtual void Expect(uint64_t size) = 0;
  // All bytes are where they have to be when this returns; no more can come.
  virtual void Complete() = 0;
  // Leaves nothing, as far as this has made it.
  virtual void Discard() = 0;

 protected:
  explicit Output(std::string path) : path_(std::move(path)) {}

  const std::string path_;
};

// A file. It is made at once, and open from the first byte on until Complete.
class FileOutput : public Output {
 public:
  // Throws if there is already something at `path`. With `durable`, Complete waits for the disk.
  FileOutput(std::string path, bool durable);

  void Expect(uint64_t size) override;
  void Append(const void* data, size_t n) override { File().Append(data, n); }
  void Complete() override;
  void Discard() override;

 private:
  WritableFile& File();

  const bool durable_;
  std::optional<WritableFile> file_;
};

// Memory that somebody gives part by part, and takes back when it is full.
class PartOutput : public Output {
 public:
  struct Part {
    char* memory = nullptr;
    uint64_t size = 0;
  };
  // Takes the part that was given before, of which so many bytes are filled, and gives the next, unless it was the last.
  using NextPart = std::function<Part(uint64_t num_filled, bool is_last)>;

  // `path` is what messages call it.
  PartOutput(std::string path, NextPart next_part)
      : Output(std::move(path)), next_part_(std::move(next_part)) {}

  void Expect(uint64_t) override {}
  void Append(const void* data, size_t n) override;
  void Complete() override;
  void Discard() override { part_ = {}; }

 private:
  const NextPart next_part_;
  Part part_;
  uint64_t filled_ = 0;
};

// Memory, which is taken when it is complete.
class MemoryOutput : public Output {
 public:
  // `path` is what messages call it. `take` gets the bytes; it is called by Complete.
  using Take = std::function<void(std::string bytes)>;
  MemoryOutput(std::string path, Take take) : Output(std::move(path)), take_(std::move(take)) {}

  void Expect(uint64_t) override {}
  void Append(const void* data, size_t n) override { bytes_.append(static_cast<const char*>(data), n); }
  void Complete() override { take_(std::move(bytes_)); }
  void Discard() override { bytes_.clear(); }

 private:
  const Take take_;
  std::string bytes_;
};

}  // namespace trackckpt
