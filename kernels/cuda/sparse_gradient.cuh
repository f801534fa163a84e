// Gradient of a sparse layer's logits, a row at a time, however the logits were made.
//
// G_t = A_t (dA_t - delta), dA zero off the kept entries; plus grad_logits on the kept entries, minus their
// sum on the row's first maximum, as the logits handed on are relative to it.
#pragma once
#include "sparse_logits.cuh"

namespace pft::cuda {

// What G is made of beside the logits and A's gradient, and where it goes.
struct LogitGradients {
  View<const float> grad_logits, lse, delta;
  IndexView new_index;
  View<float> g, a_kept;
  int kept;
};
inline LogitGradients logit_gradients(const SparseGradients& grads) {
  return {View<const float>(grads.grad_logits),
          View<const float>(grads.lse),
          View<const float>(grads.delta),
          index_view({grads.new_index, grads.new_index_wide}),
          View<float>(grads.g),
          View<float>(grads.a_kept),
          int(grads.kept)};
}

template <class T>
struct BackwardArgs : LogitGradients {
  Layer<T> layer;
  SparsePlan plan;
  View<const float> grad_a;
};

// The slot of candidate key `key` (of lane t0 + lane) among the kept entries, or -1. The kept entries are a
// subsequence of the candidates, so those of 32 candidates are among the next 32 kept ones; both ascend, so a
// lane finds its own by halving.
template <class Args>
__device__ __forceinline__ int slot_of(const Args& a, int64_t row, int t, int key, int* next, int lane) {
  if (!a.new_index) return t;
  const int coming = *next + lane < a.kept ? a.new_index[row * a.kept + *next + lane] : 0x7fffffff;
  int below = 0;  // of the next ones
#pragma unroll
  for (int step = 16; step; step /= 2) {
    if (__shfl_sync(kFullWarp, coming, below + step - 1) < key) below += step;
  }
  const int slot = __shfl_sync(kFullWarp, coming, below) == key ? *next + below : -1;
  *next += __popc(__ballot_sync(kFullWarp, slot >= 0));
  return slot;
}

template <class T>
__device__ void gradient_row(const BackwardArgs<T>& a, int64_t row, View<const float> z, int lane) {
  const int candidates = a.layer.candidates;
  const float lse = a.lse[row], delta = a.delta ? float(a.delta[row]) : 0.f;
  float max = -INFINITY;
  for (int t = lane; t < candidates; t += 32) max = fmaxf(max, z[t]);
  const int top = first_maximum(z, candidates, warp_max(max), lane);
  float handed_on = 0.f;
  if (a.grad_logits) {
    for (int t = lane; t < a.kept; t += 32) handed_on += a.grad_logits[row * a.kept + t];
    handed_on = warp_sum(handed_on);
  }
  int next = 0;
  for (int t0 = 0; t0 < candidates; t0 += 32) {
    const int t = t0 + lane;
    const int key = t < candidates ? a.layer.index[row * candidates + t] : -1;
    const int slot = slot_of(a, row, t, key, &next, lane);
    if (t >= candidates) continue;
    const float weight = expf(z[t] - lse);
    float g = -weight * delta;
    if (slot >= 0) {
      g = weight * (a.grad_a[row * a.kept + slot] - delta);
      a.a_kept[row * a.kept + slot] = weight;
      if (a.grad_logits) g += a.grad_logits[row * a.kept + slot];
    }
    if (t == top) g -= handed_on;
    a.g[row * candidates + t] = g;
  }
}

}  // namespace pft::cuda
