// How the targets cut up the bytes that they are given.
//
//    chunk: size (uint16, little-endian) | bytes, fewer where the input ends
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace trackckpt::fuzz {

class Input {
 public:
  Input(const uint8_t* data, size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}
  explicit Input(std::string_view bytes) : rest_(bytes) {}

  bool empty() const { return rest_.empty(); }
  std::string_view Rest() const { return rest_; }

  // 0 behind the end.
  uint8_t Byte() {
    const std::string_view bytes = Take(1);
    return bytes.empty() ? 0 : static_cast<uint8_t>(bytes[0]);
  }

  std::string_view Chunk() {
    const size_t low = Byte();
    return Take(low | size_t{Byte()} << 8);
  }

 private:
  std::string_view Take(size_t n) {
    const std::string_view bytes = rest_.substr(0, std::min(n, rest_.size()));
    rest_.remove_prefix(bytes.size());
    return bytes;
  }

  std::string_view rest_;
};

}  // namespace trackckpt::fuzz
