// The entry points of one instruction set: one window-head (or one group of them) of each op.
#pragma once
#include "pft/cpu.h"
#include "required_flags.hpp"

// All entry points: SPARSE(name, ...) for each op over an index, ITEM(result, name, arguments...) for the
// others.
#define PFT_CPU_ITEMS(SPARSE, ITEM)                                                                      \
  PFT_CPU_SPARSE_OPS(SPARSE)                                                                             \
  ITEM(void, depthwise_item, const DepthwiseArgs& args, int64_t item, void* workspace)                   \
  ITEM(void, attention_forward_item, const AttentionForwardArgs& args, int64_t item, void* workspace,    \
       double* phase_seconds)                                                                            \
  ITEM(void, attention_backward_item, const AttentionBackwardArgs& args, int64_t item, void* workspace,  \
       float* grad_bias)                                                                                 \
  ITEM(bool, index_rows_item, const IndexRowsArgs& args, int64_t first, int64_t rows, int16_t* last_row) \
  ITEM(int64_t, peak_fma_flops, int64_t rounds)                                                          \
  ITEM(int64_t, peak_load_bytes, const float* block, int64_t floats, int64_t rounds)                     \
  ITEM(int64_t, peak_gather_bytes, const float* block, int64_t floats, int64_t rows)

#define PFT_CPU_DECLARE_SPARSE(name, ...) \
  void name##_item(const SparseArgs& args, int64_t item, void* workspace);
#define PFT_CPU_DECLARE_ITEM(result, name, ...) result name(__VA_ARGS__);
#define PFT_CPU_DECLARE_ITEMS(isa)                            \
  namespace pft::cpu::isa {                                   \
  PFT_CPU_ITEMS(PFT_CPU_DECLARE_SPARSE, PFT_CPU_DECLARE_ITEM) \
  }

#ifdef PFT_ISA
PFT_CPU_DECLARE_ITEMS(PFT_ISA)
#endif

namespace pft::cpu {
// What one owner computes of an image. So small that a strip of a PFT image has work for many cores, so large
// that the rows and columns read twice stay few.
constexpr int64_t kDepthwiseColumns = 16;
constexpr int64_t kDepthwiseRows = 8;

// A monotonic clock; compiled with the baseline, for use in the kernels' phase timing.
double seconds_now();
}  // namespace pft::cpu
