#include "table/format.h"

#include "encoding/coding.h"
#include "encoding/crc32c.h"
#include "error.h"

namespace trackckpt {

namespace {

constexpr size_t kMagicLength = 8;

// `block` includes the trailer.
void VerifyChecksum(std::string_view block, const std::string& path) {
  const std::string_view covered = block.substr(0, block.size() - 4);
  const uint32_t stored = DecodeFixed32(block.data() + covered.size());
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

void Footer::DecodeFrom(std::string_view input, const std::string& path) {
  if (DecodeFixed64(input.data() + kEncodedLength - kMagicLength) != kTableMagicNumber) {
    throw Error(ErrorKind::kDataLoss, "not an sstable (bad magic number): " + path);
  }
  if (!metaindex_handle.DecodeFrom(&input) || !index_handle.DecodeFrom(&input)) {
    throw Error(ErrorKind::kDataLoss, "bad block handle in footer: " + path);
  }
}

std::string EncodeBlockTrailer(std::string_view contents) {
  std::string trailer(1, static_cast<char>(BlockType::kStored));
  const uint32_t crc = Crc32cExtend(0, contents.data(), contents.size());
  PutFixed32(&trailer, MaskCrc(Crc32cExtend(crc, trailer.data(), trailer.size())));
  return trailer;
}

std::string_view ReadBlock(std::string_view file, const BlockHandle& handle, bool verify_checksum,
                           const std::string& path) {
  if (handle.offset > file.size() || handle.size > file.size() - handle.offset ||
      kBlockTrailerSize > file.size() - handle.offset - handle.size) {
    throw Error(ErrorKind::kDataLoss, "truncated block read: " + std::to_string(handle.size) +
                                          " bytes at offset " + std::to_string(handle.offset) +
                                          " of a file of " + std::to_string(file.size()) + " bytes: " + path);
  }
  const std::string_view block = file.substr(handle.offset, handle.size + kBlockTrailerSize);
  if (verify_checksum) VerifyChecksum(block, path);
  switch (static_cast<BlockType>(block[handle.size])) {
    case BlockType::kStored:
      return block.substr(0, handle.size);
    case BlockType::kSnappy:
      throw Error(ErrorKind::kUnsupportedFormat, "Snappy-compressed blocks are not supported: " + path);
  }
  throw Error(ErrorKind::kDataLoss, "bad block type: " + path);
}

}  // namespace trackckpt
