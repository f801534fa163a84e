// What happens to one row of logits in one warp: statistics, selection, and the terms added to the products.
#pragma once
#include "device.cuh"

namespace pft::cuda {

// One layer's inputs as kernels get them.
template <class T>
struct Layer {
  Strided<const T> q, k, v;
  View<const float> bias;      // [(2 window_size - 1)^2, heads]
  View<const uint8_t> region;  // [patterns, queries]
  IndexView index;             // [batch, queries, candidates]
  View<const float> logits;
  int heads, queries, keys, dim_qk, dim_v, candidates, topk, window_size, patterns;
  float scale, region_penalty;
};

template <class T>
Layer<T> layer_of(const AttentionInputs& in) {
  const AttentionShape& s = in.shape;
  return {strided<const T>(in.q.m, s.heads, s.dim_qk),
          strided<const T>(in.k.m, s.heads, s.dim_qk),
          strided<const T>(in.v.m, s.heads, s.dim_v),
          View<const float>(in.bias),
          View<const uint8_t>(in.region),
          index_view(in.index),
          View<const float>(in.logits),
          int(s.heads),
          int(s.queries),
          int(s.keys),
          int(s.dim_qk),
          int(s.dim_v),
          int(s.candidates),
          int(s.topk < s.candidates ? s.topk : s.candidates),
          int(s.window_size),
          int(s.patterns),
          s.scale,
          s.region_penalty};
}

// Row of the bias table for a query and a key: linear in both, so each position has one number,
// position_code(i) = y * (2w - 1) + x, and the row is code(i) - code(j) + center.
__host__ __device__ constexpr int position_code(int position, int w) {
  return position / w * (2 * w - 1) + position % w;
}
__host__ __device__ constexpr int table_center(int w) { return 2 * w * (w - 1); }
__host__ __device__ constexpr int table_rows(int w) { return (2 * w - 1) * (2 * w - 1); }

struct RowStatistics {
  float max, lse;
};

// Of z[0, count), by one warp; every lane gets the same bits.
__device__ __forceinline__ RowStatistics row_statistics(View<const float> z, int count, int lane) {
  float max = -INFINITY;
  for (int t = lane; t < count; t += 32) max = fmaxf(max, z[t]);
  max = warp_max(max);
  float sum = 0.f;
  for (int t = lane; t < count; t += 32) sum += expf(z[t] - max);
  return {max, max + logf(warp_sum(sum))};
}

// Order of floats as order of unsigned integers.
__device__ __forceinline__ uint32_t ordered_key(float x) {
  const uint32_t u = __float_as_uint(x);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}
__device__ __forceinline__ float from_ordered_key(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ bool is_nan(float x) { return x != x; }

// Entries above `value` are kept, and the first `ties` of those equal to it. NaN: no order to select by, the
// first `ties` entries are kept.
struct Threshold {
  float value;
  int ties;
};

// The topk-th largest of z[0, count), 0 < topk < count, by bisection on the ordered key between the row's
// extremes. Ends as soon as some value separates topk entries from the rest: some ten rounds in a row without
// close ties, never more than 32. A row with NaN or plus infinity in it, or with nothing but minus infinity,
// has a NaN logsumexp, and with it a NaN result; its positions must still be valid, as the next layer follows
// them.
__device__ __forceinline__ Threshold find_threshold(View<const float> z, int count, int topk,
                                                    RowStatistics row, int lane) {
  if (is_nan(row.lse)) return {row.lse, topk};
  float low_value = INFINITY;
  for (int t = lane; t < count; t += 32) low_value = fminf(low_value, z[t]);
  uint32_t low = ordered_key(-warp_max(-low_value)), high = ordered_key(row.max);
  while (low < high) {  // at least topk entries are >= low, fewer than topk are > high
    const uint32_t middle = low + (high - low + 1) / 2;
    const float value = from_ordered_key(middle);
    int above = 0;
    for (int t = lane; t < count; t += 32) above += z[t] >= value;
    above = warp_sum(above);
    if (above == topk) return {value, topk};
    if (above > topk) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const float value = from_ordered_key(low);
  int above = 0;
  for (int t = lane; t < count; t += 32) above += z[t] > value;
  return {value, topk - warp_sum(above)};
}

// Calls f(t, slot) for every entry of the row: its place among the kept ones, ascending in t, or -1.
template <class F>
__device__ __forceinline__ void for_each_selected(View<const float> z, int count, Threshold threshold,
                                                  int lane, F f) {
  const unsigned before = (1u << lane) - 1;
  const bool unordered = is_nan(threshold.value);
  int kept = 0, ties = 0;
  for (int t0 = 0; t0 < count; t0 += 32) {
    const int t = t0 + lane;
    const float value = t < count ? float(z[t]) : -INFINITY;
    const bool tie = t < count && (unordered || value == threshold.value);
    const unsigned all_ties = __ballot_sync(kFullWarp, tie);
    const bool keep = value > threshold.value || (tie && ties + __popc(all_ties & before) < threshold.ties);
    const unsigned all_kept = __ballot_sync(kFullWarp, keep);
    if (t < count) f(t, keep ? kept + __popc(all_kept & before) : -1);
    kept += __popc(all_kept);
    ties += __popc(all_ties);
  }
}

// First position of the row's maximum.
__device__ __forceinline__ int first_maximum(View<const float> z, int count, float max, int lane) {
  int first = count;
  for (int t = lane; t < count && first == count; t += 32) {
    if (z[t] == max) first = t;
  }
  return warp_min(first);
}

// Where new index entries go.
struct IndexOut {
  View<int16_t> narrow;
  View<int32_t> wide;
  __device__ void store(int64_t i, int value) const {
    if (wide) {
      wide[i] = value;
    } else {
      narrow[i] = int16_t(value);
    }
  }
};
inline IndexOut index_out(void* data, bool is_wide) {
  return {View<int16_t>(static_cast<int16_t*>(is_wide ? nullptr : data)),
          View<int32_t>(static_cast<int32_t*>(is_wide ? data : nullptr))};
}

}  // namespace pft::cuda
