// The part of DLPack's C interface, version 1.3, by which an array library tells where the memory of one of its
// arrays is. A type offers it in a capsule named "dlpack_exchange_api", as its attribute
// `__dlpack_c_exchange_api__`. torch does since 2.10.
#pragma once

#include <cstdint>

namespace trackckpt::dlpack {

constexpr uint32_t kMajorVersion = 1;
constexpr const char* kAttribute = "__dlpack_c_exchange_api__";
constexpr const char* kCapsuleName = "dlpack_exchange_api";

constexpr int32_t kCpu = 1, kCuda = 2;  // device types

enum TypeCode : uint8_t {
  kInt = 0,
  kUInt = 1,
  kFloat = 2,
  kBfloat = 4,
  kComplex = 5,
  kBool = 6,
  kFloat8E4m3fn = 10,
  kFloat8E4m3fnuz = 11,
  kFloat8E5m2 = 12,
  kFloat8E5m2fnuz = 13,
};

struct Device {
  int32_t type;
  int32_t id;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null where the elements are contiguous
  uint64_t byte_offset;
};

struct ExchangeApi {
  uint32_t major;
  uint32_t minor;
  ExchangeApi* previous;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  // Borrows: good until the object changes. Not 0 on failure, with a Python error set. May be null itself.
  int (*borrow)(void* object, void* tensor);
  void* current_stream;
};

}  // namespace trackckpt::dlpack
