#include "bundle/dtype.h"

#include <iterator>

namespace trackckpt {

namespace {

constexpr uint8_t kItemSizes[] = {
    0,   //  0 invalid
    4,   //  1 float32
    8,   //  2 float64
    4,   //  3 int32
    1,   //  4 uint8
    2,   //  5 int16
    1,   //  6 int8
    0,   //  7 string
    8,   //  8 complex64
    8,   //  9 int64
    1,   // 10 bool
    1,   // 11 qint8
    1,   // 12 quint8
    4,   // 13 qint32
    2,   // 14 bfloat16
    2,   // 15 qint16
    2,   // 16 quint16
    2,   // 17 uint16
    16,  // 18 complex128
    2,   // 19 half
    0,   // 20 resource
    0,   // 21 variant
    4,   // 22 uint32
    8,   // 23 uint64
    1,   // 24 float8_e5m2
    1,   // 25 float8_e4m3fn
    1,   // 26 float8_e4m3fnuz
    1,   // 27 float8_e4m3b11fnuz
    1,   // 28 float8_e5m2fnuz
    1,   // 29 int4
    1,   // 30 uint4
    1,   // 31 int2
    1,   // 32 uint2
    1,   // 33 float4_e2m1fn
};

}  // namespace

uint32_t ItemSize(int32_t dtype) {
  const bool is_known = dtype >= 0 && dtype < static_cast<int32_t>(std::size(kItemSizes));
  return is_known ? kItemSizes[dtype] : 0;
}

uint32_t ComponentSize(int32_t dtype) {
  const bool is_complex = dtype == kDtypeComplex64 || dtype == kDtypeComplex128;
  return is_complex ? ItemSize(dtype) / 2 : ItemSize(dtype);
}

}  // namespace trackckpt
