// Logits of the listed candidates picked from tiles of all products, 16-bit types: what forward and backward
// of a sparse layer have in common where there are many candidates. By counts a tile costs the same however
// many there are, and a gather as much as there are.
#pragma once
#include "key_tiles.cuh"
#include "sparse_logits.cuh"

namespace pft::cuda {

template <class T>
struct TiledMemory : BiasMemory {
  ProductTiles<T> products;

  __device__ TiledMemory(SharedMemory& shared, const Layer<T>& a, const SparsePlan& plan)
      : products(shared, int(blockDim.x) / 32) {
    code = shared.take<int>(a.bias ? a.keys : 0);
    bias = shared.take<float>(plan.bias_shared ? table_rows(a.window_size) : 0);
  }
};

// Calls finish(i, z) in the row's warp for every row of [first, last). A row's logits take the place of its
// products: candidates ascend, so that those still to be read lie beyond those already written.
template <class T, class Finish>
__device__ __forceinline__ void for_each_tiled_row(const Layer<T>& a, const SparsePlan& plan,
                                                   const TiledMemory<T>& memory, int64_t b, int first,
                                                   int last, Finish finish) {
  const int lane = int(threadIdx.x) % 32;
  for_each_product_row<T>(
      memory.products, a.q, a.k, b, a.keys, a.dim_qk, first, last, [&](int i, View<float> z) {
        const int64_t entries = (b * a.queries + i) * a.candidates;
#pragma unroll 1  // more costs registers, which hold the keys
        for (int t0 = 0; t0 < a.candidates; t0 += 32) {
          const int t = t0 + lane;
          float logit = 0.f;
          if (t < a.candidates) {
            const int key = a.index[entries + t];
            logit = fmaf(a.scale, z[key], added_terms(a, memory, plan.bias_shared, b, i, key, entries + t));
          }
          __syncwarp();
          if (t < a.candidates) z[t] = logit;
        }
        __syncwarp();
        finish(i, View<const float>(z));
      });
}

// Chooses warps, splits and where the table lies. Where `row_numbers`, a number for each of the block's rows
// comes after all else: addresses that the compiler knows take no registers. Later, in the tiles' place,
// `later_bytes(warps)` are needed. False where that does not fit.
template <class T, class Later>
bool plan_tiles(const AttentionShape& s, bool bias, bool row_numbers, Later later_bytes, SparsePlan* plan) {
  const int64_t limit = shared_memory_limit();
  if (!ProductTiles<T>::fit(s.keys, s.dim_qk)) return false;
  plan->warps = int(ceil_div(s.keys, kWarpKeys));
  plan->splits = row_splits(s.windows * s.heads, s.queries, 64);
  const int64_t numbers = row_numbers ? round_up(ceil_div(s.queries, plan->splits) * 4, 16) : 0;
  const int64_t table = bias ? round_up(int64_t(table_rows(int(s.window_size))) * 4, 16) : 0;
  const int64_t logits = ProductTiles<T>::bytes(plan->warps) + (bias ? round_up(s.keys * 4, 16) : 0);
  plan->bias_shared = bias && numbers + logits + table <= limit;
  const int64_t sooner = logits + (plan->bias_shared ? table : 0);
  const int64_t later = later_bytes(plan->warps);
  plan->row_numbers_at = sooner > later ? sooner : later;
  plan->shared_bytes = plan->row_numbers_at + numbers;
  return plan->shared_bytes <= limit;
}

}  // namespace pft::cuda
