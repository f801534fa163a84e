// The entry points of one instruction set: one window-head (or one group of them) of each op.
#pragma once
#include "pft/cpu.h"
#include "required_flags.hpp"

#define PFT_CPU_DECLARE_ITEMS(isa)                                                               \
  namespace pft::cpu::isa {                                                                      \
  void sddmm_item(const SddmmArgs& args, int64_t item, void* workspace);                         \
  void spmm_item(const SpmmArgs& args, int64_t item, void* workspace);                           \
  void spmm_transpose_item(const SpmmTransposeArgs& args, int64_t item, void* workspace);        \
  void row_reads_item(const RowReadsArgs& args, int64_t item, void* workspace);                  \
  void depthwise_item(const DepthwiseArgs& args, int64_t item, void* workspace);                 \
  void attention_forward_item(const AttentionForwardArgs& args, int64_t item, void* workspace,   \
                              double* phase_seconds);                                            \
  void attention_backward_item(const AttentionBackwardArgs& args, int64_t item, void* workspace, \
                               float* grad_bias);                                                \
  int64_t peak_fma_flops(int64_t rounds);                                                        \
  int64_t peak_load_bytes(const float* block, int64_t floats, int64_t rounds);                   \
  int64_t peak_gather_bytes(const float* block, int64_t floats, int64_t rows);                   \
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
