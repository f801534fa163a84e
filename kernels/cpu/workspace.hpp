// How a thread's slice of the workspace is divided. The same function measures and carves, so that they
// cannot differ. Padding is that of the widest instruction set, so that a size does not depend on the one in
// use.
#pragma once
#include <stdint.h>

#include "pft/cpu.h"

namespace pft::cpu {
namespace {

constexpr int64_t kPadFloats = 16;  // one cache line, one AVX-512 vector

inline int64_t padded(int64_t n) { return (n + kPadFloats - 1) / kPadFloats * kPadFloats; }

// Hands out 64-byte aligned pieces. With base 0 it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(reinterpret_cast<uintptr_t>(base)) {}
  template <typename T>
  T* take(int64_t count) {
    T* piece = base_ ? reinterpret_cast<T*>(base_ + static_cast<uintptr_t>(used_)) : nullptr;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  uintptr_t base_;
  int64_t used_ = 0;
};

// Rows of the index that are worked on together, see rows.hpp.
constexpr int64_t kSparseBlockRows = 64;

// sddmm, spmm, spmm_transpose and row_reads: the window-head's gathered rows, and a block of rows of the
// index and of the result or operand. Weights and logits are read and written where they are, but for 16-bit
// elements.
struct SparseBuffers {
  float* rows;
  int32_t* positions;
  float* block;
  float* entries;     // 16-bit elements: a block's weights or logits as float32
  int16_t* last_row;  // an unchecked index: see rows_distinct in index_rows.hpp
};

inline int64_t carve(const SparseShape& shape, Element element, void* base, SparseBuffers* out) {
  Arena arena(base);
  out->rows = arena.take<float>(shape.keys * padded(shape.head_dim));
  out->positions = arena.take<int32_t>(kSparseBlockRows * shape.kept);
  out->block = arena.take<float>(kSparseBlockRows * padded(shape.head_dim));
  out->entries = arena.take<float>(element == Element::kFloat32 ? 0 : kSparseBlockRows * padded(shape.kept));
  out->last_row = arena.take<int16_t>(shape.keys);
  return arena.used();
}

}  // namespace
}  // namespace pft::cpu
