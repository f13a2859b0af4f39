// Builds the contents of one block: sorted entries, each sharing the start of its key with the one before.
//
//    block:   entry*, restart[0] .. restart[n-1] (uint32 each), n (uint32)
//    entry:   varint shared | varint non_shared | varint value_length | key[shared..] | value
//    restart: the offset of an entry with shared = 0. There is always one at 0, even in an empty block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace trackckpt {

class BlockBuilder {
 public:
  // The first of every `restart_interval` entries has its key in full.
  explicit BlockBuilder(int restart_interval) : restart_interval_(restart_interval) {}

  // `key` is greater than all keys before it.
  void Add(std::string_view key, std::string_view value);

  // Appends the restart points and returns the contents, valid until Reset.
  std::string_view Finish();
  void Reset();

  bool empty() const { return buffer_.empty(); }
  // The size of the contents if the block were finished now.
  size_t CurrentSizeEstimate() const;

 private:
  const int restart_interval_;
  std::string buffer_;
  std::vector<uint32_t> restarts_{0};
  int entries_since_restart_ = 0;
  std::string last_key_;
};

}  // namespace trackckpt
