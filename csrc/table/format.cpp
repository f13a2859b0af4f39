#include "table/format.h"

#include "encoding/coding.h"
#include "encoding/crc32c.h"
#include "encoding/snappy.h"
#include "error.h"
#include "io/git_lfs.h"

namespace trackckpt {

namespace {

constexpr size_t kMagicLength = 8;

[[noreturn]] void ThrowNoTable(const std::string& what, const ReadableFile& file) {
  std::string message = what + ": " + file.path();
  if (IsGitLfsPointer(file)) message.append(": ").append(kGitLfsAdvice);
  throw Error(ErrorKind::kDataLoss, message);
}

void VerifyChecksum(std::string_view sealed, const std::string& path) {
  const std::string_view covered = sealed.substr(0, sealed.size() - 4);
  const uint32_t stored = DecodeFixed32(sealed.data() + covered.size());
  if (MaskCrc(Crc32cExtend(0, covered.data(), covered.size())) != stored) {
    throw Error(ErrorKind::kDataLoss, "block checksum mismatch: " + path);
  }
}

}  // namespace

void BlockHandle::EncodeTo(std::string* dst) const {
  PutVarint64(dst, offset);
  PutVarint64(dst, size);
}

bool BlockHandle::DecodeFrom(std::string_view* input) {
  return GetVarint64(input, &offset) && GetVarint64(input, &size);
}

void Footer::EncodeTo(std::string* dst) const {
  const size_t end = dst->size() + kEncodedLength;
  metaindex_handle.EncodeTo(dst);
  index_handle.EncodeTo(dst);
  dst->resize(end - kMagicLength);
  PutFixed64(dst, kTableMagicNumber);
}

bool Footer::DecodeFrom(std::string_view input) {
  return metaindex_handle.DecodeFrom(&input) && index_handle.DecodeFrom(&input);
}

std::string EncodeBlockTrailer(std::string_view contents) {
  std::string trailer(1, static_cast<char>(BlockType::kStored));
  const uint32_t crc = Crc32cExtend(0, contents.data(), contents.size());
  PutFixed32(&trailer, MaskCrc(Crc32cExtend(crc, trailer.data(), trailer.size())));
  return trailer;
}

Footer ReadFooter(const ReadableFile& file) {
  if (file.size() < Footer::kEncodedLength) {
    ThrowNoTable("file is too short to be an sstable (" + std::to_string(file.size()) + " bytes)", file);
  }
  std::string encoded(Footer::kEncodedLength, '\0');
  file.Read(file.size() - encoded.size(), encoded.data(), encoded.size());
  if (DecodeFixed64(encoded.data() + encoded.size() - kMagicLength) != kTableMagicNumber) {
    ThrowNoTable("not an sstable (bad magic number)", file);
  }
  Footer footer;
  if (!footer.DecodeFrom(encoded)) {
    throw Error(ErrorKind::kDataLoss, "bad block handle in footer: " + file.path());
  }
  return footer;
}

void CheckInside(const BlockHandle& handle, uint64_t file_size, const std::string& path) {
  if (handle.offset <= file_size && handle.size <= file_size - handle.offset &&
      kBlockTrailerSize <= file_size - handle.offset - handle.size) {
    return;
  }
  throw Error(ErrorKind::kDataLoss, "truncated block read: " + std::to_string(handle.size) +
                                        " bytes at offset " + std::to_string(handle.offset) +
                                        " of a file of " + std::to_string(file_size) + " bytes: " + path);
}

std::string_view OpenBlock(std::string_view sealed, const std::string& path, std::string* uncompressed) {
  VerifyChecksum(sealed, path);
  const std::string_view stored = sealed.substr(0, sealed.size() - kBlockTrailerSize);
  switch (static_cast<BlockType>(sealed[stored.size()])) {
    case BlockType::kStored:
      return stored;
    case BlockType::kSnappy:
      if (SnappyUncompress(stored, uncompressed)) return *uncompressed;
      throw Error(ErrorKind::kDataLoss, "corrupted compressed block contents: " + path);
  }
  throw Error(ErrorKind::kDataLoss, "bad block type: " + path);
}

}  // namespace trackckpt
