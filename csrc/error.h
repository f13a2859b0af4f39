// The exceptions of the core. bindings.cpp maps each kind to one Python class; nothing else looks at the
// kind.
#pragma once

#include <cerrno>
#include <stdexcept>
#include <string>
#include <system_error>

namespace trackckpt {

enum class ErrorKind {
  kNotFound,           // no file of the checkpoint at a path; always a FileError
  kKeyNotFound,        // the checkpoint does not hold a key
  kDataLoss,           // damaged, cut or contradictory files
  kUnsupportedFormat,  // sound files of a kind that is not read
  kInvalidArgument,    // the caller's mistake
  kDuplicateKey,       // one key given twice to a writer
  kWriterClosed,       // a writer used after it finished or failed
  kSystem,             // the operating system refused; always a FileError
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}

  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

// A refusal of the operating system: what() is its text, without the path.
class FileError : public Error {
 public:
  FileError(ErrorKind kind, int code, std::string path, const std::string& remark = "")
      : Error(kind, std::generic_category().message(code) + remark), code_(code), path_(std::move(path)) {}

  int code() const { return code_; }
  const std::string& path() const { return path_; }

 private:
  int code_;
  std::string path_;
};

}  // namespace trackckpt
