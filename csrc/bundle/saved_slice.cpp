#include "bundle/saved_slice.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "encoding/coding.h"

// Values go to memory as they lie in the file.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "big-endian machines are not supported");

namespace trackckpt {

namespace {

constexpr uint32_t kBoolVal = 11;

bool DecodeTensor(std::string_view message, BundleEntry* entry) {
  WireReader reader(message);
  while (reader.Next()) {
    if (reader.Is(1, WireType::kBytes)) entry->key = reader.bytes();
    if (reader.Is(2, WireType::kBytes) && !DecodeShape(reader.bytes(), entry)) return false;
    if (reader.Is(3, WireType::kVarint)) entry->dtype = static_cast<int32_t>(reader.number());
    if (reader.Is(4, WireType::kBytes) && !entry->slices.emplace_back().DecodeFrom(reader.bytes()))
      return false;
  }
  return reader.ok();
}

bool DecodeMeta(std::string_view message, SavedMeta* meta) {
  WireReader reader(message);
  while (reader.Next()) {
    if (reader.Is(1, WireType::kBytes)) {
      BundleEntry tensor;
      if (!DecodeTensor(reader.bytes(), &tensor)) return false;
      if (!tensor.slices.empty()) meta->tensors.push_back(std::move(tensor));  // else nothing of it is stored
    }
    if (reader.Is(2, WireType::kBytes) && !meta->version.DecodeFrom(reader.bytes())) return false;
  }
  return reader.ok();
}

// Takes at most `limit` varints off the front of `packed`, and stores each as T unless there is no destination.
// Sets `taken` to their number. False if one is malformed.
template <typename T>
bool TakeVarints(std::string_view* packed, uint64_t limit, char* destination, uint64_t* taken) {
  for (*taken = 0; *taken < limit && !packed->empty(); ++*taken) {
    uint64_t number;
    if (!GetVarint64(packed, &number)) return false;
    if (destination == nullptr) continue;
    const T value = static_cast<T>(number);
    std::memcpy(destination + *taken * sizeof(T), &value, sizeof(T));
  }
  return true;
}

// As TakeVarints, for values that are stored as they are in the memory of a little-endian machine.
bool TakeFixed(uint32_t width, std::string_view* packed, uint64_t limit, char* destination, uint64_t* taken) {
  *taken = std::min<uint64_t>(limit, packed->size() / width);
  if (destination != nullptr) std::memcpy(destination, packed->data(), *taken * width);
  packed->remove_prefix(*taken * width);
  return limit == *taken || packed->empty();
}

bool TakePacked(const ValueField& field, std::string_view* packed, uint64_t limit, char* destination,
                uint64_t* taken) {
  if (field.type != WireType::kVarint) return TakeFixed(field.width, packed, limit, destination, taken);
  if (field.number == kBoolVal) return TakeVarints<bool>(packed, limit, destination, taken);
  switch (field.width) {
    case 1:
      return TakeVarints<uint8_t>(packed, limit, destination, taken);
    case 2:
      return TakeVarints<uint16_t>(packed, limit, destination, taken);
    case 4:
      return TakeVarints<uint32_t>(packed, limit, destination, taken);
    default:
      return TakeVarints<uint64_t>(packed, limit, destination, taken);
  }
}

}  // namespace

bool SavedMeta::DecodeFrom(std::string_view record) {
  bool has_meta = false;
  WireReader reader(record);
  while (reader.Next()) {
    if (!reader.Is(1, WireType::kBytes)) continue;
    has_meta = true;
    if (!DecodeMeta(reader.bytes(), this)) return false;
  }
  return reader.ok() && has_meta;
}

std::optional<ValueField> ValueField::Of(int32_t dtype) {
  switch (dtype) {
    case 1:  // float32
      return ValueField{5, WireType::kFixed32, 4, 1};
    case 2:  // float64
      return ValueField{6, WireType::kFixed64, 8, 1};
    case 3:   // int32
    case 13:  // qint32
      return ValueField{7, WireType::kVarint, 4, 1};
    case 5:   // int16
    case 15:  // qint16
    case 16:  // quint16
    case 17:  // uint16
      return ValueField{7, WireType::kVarint, 2, 1};
    case 4:   // uint8
    case 6:   // int8
    case 11:  // qint8
    case 12:  // quint8
      return ValueField{7, WireType::kVarint, 1, 1};
    case 7:  // string
      return ValueField{8, WireType::kBytes, 0, 1};
    case 8:  // complex64
      return ValueField{9, WireType::kFixed32, 4, 2};
    case 9:  // int64
      return ValueField{10, WireType::kVarint, 8, 1};
    case 10:  // bool
      return ValueField{kBoolVal, WireType::kVarint, 1, 1};
    case 18:  // complex128
      return ValueField{12, WireType::kFixed64, 8, 2};
    case 14:  // bfloat16
    case 19:  // half
      return ValueField{13, WireType::kVarint, 2, 1};
    case 22:  // uint32
      return ValueField{16, WireType::kVarint, 4, 1};
    case 23:  // uint64
      return ValueField{17, WireType::kVarint, 8, 1};
    default:
      return std::nullopt;
  }
}

std::optional<uint64_t> SavedValues::Count() {
  uint64_t num_values = 0;
  while (NextField()) {
    if (!CountField(&num_values)) return std::nullopt;
  }
  const bool is_sound = record_.ok() && slice_.ok() && tensor_.ok();
  if (!is_sound || num_values % field_.values_per_element != 0) return std::nullopt;
  return num_values / field_.values_per_element;
}

bool SavedValues::Read(uint64_t n, char* destination) {
  return Take(n * field_.values_per_element, destination);
}

bool SavedValues::Skip(uint64_t n) { return Take(n * field_.values_per_element, nullptr); }

bool SavedValues::NextString(std::string_view* value) {
  if (!NextField()) return false;
  *value = tensor_.bytes();
  return true;
}

// To the next field with values. False at the end of the record, and where it is malformed. Messages in several
// parts count as one, as in libprotobuf.
bool SavedValues::NextField() {
  while (true) {
    while (tensor_.Next()) {
      if (IsValue()) return true;
    }
    if (!tensor_.ok() || !NextTensor()) return false;
  }
}

bool SavedValues::NextTensor() {
  while (true) {
    while (slice_.Next()) {
      if (!slice_.Is(3, WireType::kBytes)) continue;
      tensor_ = WireReader(slice_.bytes());
      return true;
    }
    if (!slice_.ok() || !NextSlice()) return false;
  }
}

bool SavedValues::NextSlice() {
  while (record_.Next()) {
    if (!record_.Is(2, WireType::kBytes)) continue;
    slice_ = WireReader(record_.bytes());
    return true;
  }
  return false;
}

bool SavedValues::IsValue() const {
  return tensor_.Is(field_.number, field_.type) || tensor_.Is(field_.number, WireType::kBytes);
}

// Adds the number of values in the current field.
bool SavedValues::CountField(uint64_t* count) const {
  const bool is_packed = field_.type != WireType::kBytes && tensor_.Is(field_.number, WireType::kBytes);
  uint64_t num_values = 1;
  std::string_view packed = tensor_.bytes();
  if (is_packed && !TakePacked(field_, &packed, packed.size(), nullptr, &num_values)) return false;
  *count += num_values;
  return true;
}

bool SavedValues::Take(uint64_t num_values, char* destination) {
  while (num_values > 0) {
    if (rest_.empty()) {
      if (!NextField()) return false;
      rest_ = CurrentField();
      continue;
    }
    uint64_t taken;
    if (!TakePacked(field_, &rest_, num_values, destination, &taken)) return false;
    num_values -= taken;
    if (destination != nullptr) destination += taken * field_.width;
  }
  return true;
}

// The current field as if it were packed.
std::string_view SavedValues::CurrentField() {
  if (tensor_.Is(field_.number, WireType::kBytes)) return tensor_.bytes();
  unpacked_.clear();
  switch (field_.type) {
    case WireType::kFixed32:
      PutFixed32(&unpacked_, static_cast<uint32_t>(tensor_.number()));
      break;
    case WireType::kFixed64:
      PutFixed64(&unpacked_, tensor_.number());
      break;
    default:
      PutVarint64(&unpacked_, tensor_.number());
  }
  return unpacked_;
}

}  // namespace trackckpt
