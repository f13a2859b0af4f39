// The records of a V1 file, which is a table: under the empty key what the file holds, and under slice keys
// (slice.h) the values of the stored slices. Tensors that are stored whole are one slice.
//
//    SavedTensorSlices    { 1 meta SavedTensorSliceMeta | 2 data SavedSlice }   a record has one of the two
//    SavedTensorSliceMeta { 1 repeated tensor SavedSliceMeta | 2 versions VersionDef (version.h) }
//    SavedSliceMeta       { 1 name | 2 shape TensorShapeProto (entry.h) | 3 type enum
//                           4 repeated slice TensorSliceProto (slice.h) }
//    SavedSlice           { 1 name | 2 slice | 3 data TensorProto }
//    TensorProto          one repeated field, in row-major order; which one it is depends on the dtype:
//       5 float_val     float32                    10 int64_val     int64
//       6 double_val    float64                    11 bool_val      bool
//       7 int_val       integers of up to 32 bits  12 dcomplex_val  complex128: real, imaginary double
//                       but uint32                 13 half_val      half, bfloat16: their 16 bits
//       8 string_val    string                     16 uint32_val    uint32
//       9 scomplex_val  complex64: real,           17 uint64_val    uint64
//                       imaginary float
//
// Floats are fixed-width, integers are varints whose low bits count. Numbers are packed into one field or more, or
// have a field each. The message's own dtype, shape and tensor_content are not used.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/entry.h"
#include "bundle/version.h"
#include "encoding/wire.h"

namespace trackckpt {

// What a file says of itself.
struct SavedMeta {
  Version version;
  std::vector<BundleEntry> tensors;  // with key, dtype, shape and the slices in the file

  // False if the record is malformed or has no meta message.
  bool DecodeFrom(std::string_view record);
};

// Where a TensorProto has the elements of a dtype.
struct ValueField {
  uint32_t number = 0;
  WireType type = WireType::kVarint;  // of one value
  uint32_t width = 0;                 // of one value in memory; 0 for strings
  uint32_t values_per_element = 1;

  // Nothing for dtypes that these files do not hold.
  static std::optional<ValueField> Of(int32_t dtype);
};

// Goes through the elements of a stored slice. The record stays with the caller and outlives this.
class SavedValues {
 public:
  SavedValues(std::string_view record, const ValueField& field) : field_(field), record_(record) {}
  SavedValues(const SavedValues&) = delete;

  // How many elements there are from here on; goes to the end. Nothing if the record is malformed.
  std::optional<uint64_t> Count();

  // Take the next `n` elements, which must not be strings. False if that many are not left.
  bool Read(uint64_t n, char* destination);
  bool Skip(uint64_t n);
  // Takes the next string. False if there is none left.
  bool NextString(std::string_view* value);

 private:
  bool NextField();
  bool NextTensor();
  bool NextSlice();
  bool IsValue() const;
  bool CountField(uint64_t* count) const;
  bool Take(uint64_t num_values, char* destination);
  std::string_view CurrentField();

  ValueField field_;
  WireReader record_;
  WireReader slice_{std::string_view()};
  WireReader tensor_{std::string_view()};
  std::string_view rest_;  // what is left of the current field
  std::string unpacked_;   // the current field where it is not packed
};

}  // namespace trackckpt
