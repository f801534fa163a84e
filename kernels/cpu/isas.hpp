// The compiled instruction sets, and which one is in use.
#pragma once
#include "items.hpp"

namespace pft::cpu {

struct Kernels {
  const char* name;
  bool (*supported)();
  void (*sddmm)(const SddmmArgs&, int64_t, void*);
  void (*spmm)(const SpmmArgs&, int64_t, void*);
  void (*spmm_transpose)(const SpmmTransposeArgs&, int64_t, void*);
  void (*row_reads)(const RowReadsArgs&, int64_t, void*);
  void (*depthwise)(const DepthwiseArgs&, int64_t, void*);
  void (*attention_forward)(const AttentionForwardArgs&, int64_t, void*, double*);
  void (*attention_backward)(const AttentionBackwardArgs&, int64_t, void*, float*);
  bool (*index_rows)(const IndexRowsArgs&, int64_t, int64_t);
  int64_t (*peak_fma_flops)(int64_t);
  int64_t (*peak_load_bytes)(const float*, int64_t, int64_t);
  int64_t (*peak_gather_bytes)(const float*, int64_t, int64_t);
};

// Chosen once, at the first call. Throws std::runtime_error for a PFT_CPU_ISA that cannot be used.
const Kernels& kernels();

}  // namespace pft::cpu
