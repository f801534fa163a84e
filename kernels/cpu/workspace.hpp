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

// sddmm, spmm and spmm_transpose: the window-head's gathered rows, and one row of the index as offsets into
// them.
struct SparseBuffers {
  float* rows;
  int32_t* offsets;
};

inline int64_t carve(const SparseShape& shape, void* base, SparseBuffers* out) {
  Arena arena(base);
  out->rows = arena.take<float>(shape.keys * padded(shape.head_dim));
  out->offsets = arena.take<int32_t>(padded(shape.kept));
  return arena.used();
}

}  // namespace
}  // namespace pft::cpu
