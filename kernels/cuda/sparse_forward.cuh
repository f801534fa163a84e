// Forward of a sparse layer, however its products are made: arguments, and what happens to a finished row of
// logits.
#pragma once
#include "sparse_logits.cuh"

namespace pft::cuda {

template <class T>
struct ForwardArgs {
  Layer<T> layer;
  SparsePlan plan;
  Strided<T> out;
  IndexOut new_index;
  IndexView kept_index;  // what the second phase reads: the new one, or the old one where nothing is selected
  View<float> new_logits, lse;
};

// Statistics and selection of a row of logits; `row` is how its warp goes through it.
template <class T, class Row>
__device__ __forceinline__ void finish_row(const ForwardArgs<T>& a, int64_t at, const Row& row,
                                           View<float> shift) {
  const int candidates = a.layer.candidates, topk = a.layer.topk;
  const RowStatistics stats = statistics_of(row);
  if (row.lane == 0) {
    a.lse[at] = stats.lse;
    *shift = stats.max - stats.lse;
  }
  if (topk == candidates) {
    row.each([&](int t, float z) {
      if (t < candidates) a.new_logits[at * topk + t] = z - stats.max;
    });
    return;
  }
  select_of(row, threshold_of(row, topk, stats), [&](int t, float z, int slot) {
    if (slot < 0 || t >= candidates) return;
    a.new_index.store(at * topk + slot, a.layer.index[at * candidates + t]);
    a.new_logits[at * topk + slot] = z - stats.max;
  });
}

template <class T>
ForwardArgs<T> forward_args(const AttentionInputs& in, const AttentionOutputs& out) {
  return {layer_of<T>(in),
          {},
          strided<T>(out.out.m, in.shape.heads, in.shape.dim_v),
          index_out(out.new_index, out.index_wide),
          index_view(out.new_index ? Index{out.new_index, out.index_wide} : in.index),
          View<float>(out.new_logits),
          View<float>(out.lse)};
}

}  // namespace pft::cuda
