#include "table/table_builder.h"

#include <algorithm>

namespace trackckpt {

namespace {

// An entry of this many block sizes is not added to a block that has been begun.
constexpr size_t kOverlyLargeBlockRatio = 2;

uint8_t ByteAt(std::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }

std::string Increment(std::string_view text, size_t i) {
  std::string result(text.substr(0, i + 1));
  ++result.back();
  return result;
}

// A short string s with a <= s < b. It could often be shorter; identity with TensorFlow needs this one.
std::string ShortestSeparator(std::string_view a, std::string_view b) {
  const size_t limit = std::min(a.size(), b.size());
  size_t i = 0;
  while (i < limit && a[i] == b[i]) ++i;
  const bool keep = i == limit || ByteAt(a, i) == 0xff || ByteAt(a, i) + 1 >= ByteAt(b, i);
  return keep ? std::string(a) : Increment(a, i);
}

// A short string s with a <= s.
std::string ShortSuccessor(std::string_view a) {
  const size_t i = a.find_first_not_of('\xff');
  return i == std::string_view::npos ? std::string(a) : Increment(a, i);
}

}  // namespace

void TableBuilder::Add(std::string_view key, std::string_view value) {
  if (key.size() + value.size() >= kOverlyLargeBlockRatio * block_size_) FlushDataBlock();
  if (pending_index_entry_) AddIndexEntry(ShortestSeparator(last_key_, key));
  last_key_.assign(key);
  data_block_.Add(key, value);
  if (data_block_.CurrentSizeEstimate() >= block_size_) FlushDataBlock();
}

void TableBuilder::Finish() {
  FlushDataBlock();
  Footer footer;
  BlockBuilder metaindex_block(kBlockRestartInterval);
  footer.metaindex_handle = WriteBlock(&metaindex_block);
  if (pending_index_entry_) AddIndexEntry(ShortSuccessor(last_key_));
  footer.index_handle = WriteBlock(&index_block_);
  WriteFooter(footer);
}

void TableBuilder::FlushDataBlock() {
  if (data_block_.empty()) return;
  pending_handle_ = WriteBlock(&data_block_);
  pending_index_entry_ = true;
}

void TableBuilder::AddIndexEntry(std::string_view separator) {
  std::string handle;
  pending_handle_.EncodeTo(&handle);
  index_block_.Add(separator, handle);
  pending_index_entry_ = false;
}

BlockHandle TableBuilder::WriteBlock(BlockBuilder* block) {
  const std::string_view contents = block->Finish();
  const std::string trailer = EncodeBlockTrailer(contents);
  sink_->Append(contents.data(), contents.size());
  sink_->Append(trailer.data(), trailer.size());
  const BlockHandle handle{offset_, contents.size()};
  offset_ += contents.size() + trailer.size();
  block->Reset();
  return handle;
}

void TableBuilder::WriteFooter(const Footer& footer) {
  std::string encoded;
  footer.EncodeTo(&encoded);
  sink_->Append(encoded.data(), encoded.size());
}

}  // namespace trackckpt
