// The element types that kernels take: float32, bfloat16, float16. All arithmetic is float32. Rows become
// float32 as they are packed, and results become elements as they are written, so only what reads or writes
// the caller's memory is a template over the type; it comes here as rows of a type known at run time.
#pragma once
#include <stdint.h>

#include "pft/cpu.h"

namespace pft::cpu::PFT_ISA {
namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The lanes of x (F: floats, I: int32) rounded to bfloat16, in the low half of each lane; a NaN stays one.
template <typename F, typename I>
inline I bfloat16_bits(F x) {
  const I bits = reinterpret_cast<I>(x), high = bits >> 16 & 0xffff;
  const I rounded = (bits + 0x7fff + (high & 1)) >> 16 & 0xffff;
  return x == x ? rounded : high | 0x40;
}

inline int64_t element_bytes(Element type) { return type == Element::kFloat32 ? 4 : 2; }

// Rows of `stride` elements in the caller's memory.
struct ConstRows {
  const void* data;
  int64_t stride;
  Element type;
};
struct Rows {
  void* data;
  int64_t stride;
  Element type;
};

inline ConstRows from_row(const ConstRows& rows, int64_t row) {
  const char* data = static_cast<const char*>(rows.data);
  return {data + row * rows.stride * element_bytes(rows.type), rows.stride, rows.type};
}
inline Rows from_row(const Rows& rows, int64_t row) {
  char* data = static_cast<char*>(rows.data);
  return {data + row * rows.stride * element_bytes(rows.type), rows.stride, rows.type};
}

// f(pointer to the elements), the pointer of their own type.
template <typename Function>
inline void as_elements(const ConstRows& rows, const Function& f) {
  if (rows.type == Element::kFloat32) return f(static_cast<const float*>(rows.data));
  if (rows.type == Element::kBFloat16) return f(static_cast<const BFloat16*>(rows.data));
  f(static_cast<const Float16*>(rows.data));
}
template <typename Function>
inline void as_elements(const Rows& rows, const Function& f) {
  if (rows.type == Element::kFloat32) return f(static_cast<float*>(rows.data));
  if (rows.type == Element::kBFloat16) return f(static_cast<BFloat16*>(rows.data));
  f(static_cast<Float16*>(rows.data));
}

// The rows of one window-head. (Matrices::at is an inline function of a shared header, which simd.hpp's rules
// forbid here.)
inline ConstRows item_rows(const Matrices<const void>& m, Element type, int64_t window, int64_t head) {
  const int64_t at = (window * m.stride_window + head * m.stride_head) * element_bytes(type);
  return {static_cast<const char*>(m.data) + at, m.stride_row, type};
}
inline Rows item_rows(const Matrices<void>& m, Element type, int64_t window, int64_t head) {
  const int64_t at = (window * m.stride_window + head * m.stride_head) * element_bytes(type);
  return {static_cast<char*>(m.data) + at, m.stride_row, type};
}

}  // namespace
}  // namespace pft::cpu::PFT_ISA
