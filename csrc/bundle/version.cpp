#include "bundle/version.h"

#include <algorithm>

#include "encoding/coding.h"
#include "encoding/wire.h"
#include "error.h"

namespace trackckpt {

namespace {

// The version of the formats, of bundles and of the older one, that is implemented here, as a consumer.
constexpr int32_t kConsumerVersion = 1;
constexpr int32_t kMinProducerVersion = 0;

int32_t Int32(uint64_t number) { return static_cast<int32_t>(number); }

bool DecodePacked(std::string_view values, std::vector<int32_t>* numbers) {
  while (!values.empty()) {
    uint64_t number;
    if (!GetVarint64(&values, &number)) return false;
    numbers->push_back(Int32(number));
  }
  return true;
}

Error Unsupported(const std::string& message) { return Error(ErrorKind::kUnsupportedFormat, message); }

}  // namespace

bool Version::DecodeFrom(std::string_view message) {
  WireReader reader(message);
  while (reader.Next()) {
    if (reader.Is(1, WireType::kVarint)) producer = Int32(reader.number());
    if (reader.Is(2, WireType::kVarint)) min_consumer = Int32(reader.number());
    if (reader.Is(3, WireType::kVarint)) bad_consumers.push_back(Int32(reader.number()));
    if (reader.Is(3, WireType::kBytes) && !DecodePacked(reader.bytes(), &bad_consumers)) return false;
  }
  return reader.ok();
}

void CheckVersion(const Version& version, const std::string& path) {
  if (version.producer < kMinProducerVersion) {
    throw Unsupported(path + ": written by a producer of version " + std::to_string(version.producer) +
                      ", below the oldest that is read, " + std::to_string(kMinProducerVersion));
  }
  if (version.min_consumer > kConsumerVersion) {
    throw Unsupported(path + ": needs a consumer of version " + std::to_string(version.min_consumer) +
                      " or later; this one has version " + std::to_string(kConsumerVersion));
  }
  const auto& bad = version.bad_consumers;
  if (std::find(bad.begin(), bad.end(), kConsumerVersion) != bad.end()) {
    throw Unsupported(path + ": must not be read by consumers of version " +
                      std::to_string(kConsumerVersion) + ", such as this one");
  }
}

}  // namespace trackckpt
