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

// The labels of window-head b's pattern, if there are any.
template <class T>
__device__ View<const uint8_t> region_of(const Layer<T>& layer, int64_t b) {
  if (!layer.region) return layer.region;
  const unsigned window = unsigned(b) / unsigned(layer.heads);
  return layer.region + int64_t(window % unsigned(layer.patterns)) * layer.queries;
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

// A row of logits as a warp goes through it: lane l has the entries l, l + 32, ... In registers (kEach of
// them a lane) it is read once; entries beyond the last are minus infinity there.
template <int kEach>
struct RowInRegisters {
  float z[kEach];
  int count, lane;

  __device__ __forceinline__ RowInRegisters(View<const float> from, int count, int lane)
      : count(count), lane(lane) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) z[i] = lane + 32 * i < count ? float(from[lane + 32 * i]) : -INFINITY;
  }
  template <class F>
  __device__ __forceinline__ void each(F f) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) f(lane + 32 * i, z[i]);
  }
};
template <int kUnroll = 4>  // fewer take fewer registers
struct RowInMemory {
  View<const float> z;
  int count, lane;

  template <class F>
  __device__ __forceinline__ void each(F f) const {
#pragma unroll kUnroll
    for (int t = lane; t < lane + count; t += 32) f(t, t < count ? float(z[t]) : -INFINITY);
  }
};

// f(row), with as few registers as the row needs; rows too long for that stay in memory.
template <class F>
__device__ __forceinline__ void with_row(View<const float> z, int count, int lane, F f) {
  if (count <= 64) {
    f(RowInRegisters<2>(z, count, lane));
  } else if (count <= 256) {
    f(RowInRegisters<8>(z, count, lane));
  } else if (count <= 1024) {
    f(RowInRegisters<32>(z, count, lane));
  } else {
    f(RowInMemory<>{z, count, lane});
  }
}

// 2^(x log2 e): x <= 0, and what is below 2^-126 is zero.
constexpr float kLog2E = 1.44269504f;
__device__ __forceinline__ float exp_of_unit(float x) { return exp2_of_unit(x * kLog2E); }

// Every lane gets the same bits.
template <class Row>
__device__ __forceinline__ RowStatistics statistics_of(const Row& row) {
  float max = -INFINITY, sum = 0.f;
  row.each([&](int, float z) { max = fmaxf(max, z); });
  max = warp_max(max);
  row.each([&](int, float z) { sum += exp_of_unit(z - max); });
  return {max, max + logf(warp_sum(sum))};
}

// Of z[0, count), by one warp; for kernels that have no registers left to hold a row.
__device__ __forceinline__ RowStatistics row_statistics(View<const float> z, int count, int lane) {
  return statistics_of(RowInMemory<>{z, count, lane});
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

// Entries above `value` are kept, and the first `ties` of those equal to it; where it `separates`, all of
// those. NaN: no order to select by, the first `ties` entries are kept.
struct Threshold {
  float value;
  int ties;
  bool separates;
};

// Of rows of `count` logits of which `topk` are kept, taken for normally distributed: logf(count), how many
// standard deviations the topk-th largest lies above the mean, and what one entry more or less moves it, in
// standard deviations too.
struct NormalRank {
  float log_count, quantile, per_entry;

  __device__ __forceinline__ NormalRank(int count, int topk) {
    const float n = float(count);
    log_count = logf(n);
    quantile = 0.6f * logf((n - float(topk)) / float(topk));  // near the normal distribution's
    per_entry = 1.f / (0.4f * n * exp_of_unit(-0.5f * quantile * quantile));
  }
};

// The topk-th largest of the row, 0 < topk < count, or any value that separates topk entries from the rest:
// by counting what reaches a guess. The first guess takes the logits for normally distributed, by their mean
// and logsumexp; the next follow the counts, and from the seventh on every other one halves the ordered keys
// between the bounds, so that there are never more than 70: some four in rows of random logits. A row with
// NaN or plus infinity in it, or with nothing but minus infinity, has a NaN logsumexp, and with it a NaN
// result; its positions must still be valid, as the next layer follows them.
template <class Row>
__device__ __forceinline__ Threshold threshold_of(const Row& row, int topk, RowStatistics stats,
                                                  const NormalRank& rank) {
  if (is_nan(stats.lse)) return {stats.lse, topk, false};
  float sum = 0.f;
  row.each([&](int t, float z) { sum += t < row.count ? z : 0.f; });
  const float mean = warp_sum(sum) / float(row.count);
  const float spread = sqrtf(fmaxf(2.f * (stats.lse - rank.log_count - mean), 1e-6f));
  const float per_entry = spread * rank.per_entry;
  float guess = fmaf(spread, rank.quantile, mean);
  // at least topk entries are >= low, fewer than topk are > high; so many are
  uint32_t low = ordered_key(-INFINITY), high = ordered_key(stats.max);
  int at_low = 0, above_high = 0;
  bool low_counted = false, high_counted = false;
  for (int round = 1; low < high; ++round) {
    uint32_t middle = low + (high - low + 1) / 2;
    const uint32_t guessed = ordered_key(guess);  // of NaN: beyond all others
    if ((round < 7 || round % 2) && guessed > low && guessed <= high) middle = guessed;
    const float value = from_ordered_key(middle);
    int reach = 0;
    row.each([&](int, float z) { reach += z >= value; });
    reach = warp_sum(reach);
    if (reach == topk) return {value, topk, true};
    if (reach > topk) {
      low = middle, at_low = reach, low_counted = true;
    } else {
      high = middle - 1, above_high = reach, high_counted = true;
    }
    if (low_counted && high_counted) {
      const float from = from_ordered_key(low), to = from_ordered_key(high);
      guess = fmaf((to - from) / float(at_low - above_high), float(at_low - topk), from);
    } else {
      guess = fmaf(float(reach - topk), per_entry, value);
    }
  }
  const float value = from_ordered_key(low);
  int above = 0;
  row.each([&](int, float z) { above += z > value; });
  return {value, topk - warp_sum(above), false};
}

template <class Row>
__device__ __forceinline__ Threshold threshold_of(const Row& row, int topk, RowStatistics stats) {
  return threshold_of(row, topk, stats, NormalRank(row.count, topk));
}
__device__ __forceinline__ Threshold find_threshold(View<const float> z, int count, int topk,
                                                    RowStatistics stats, int lane) {
  return threshold_of(RowInMemory<>{z, count, lane}, topk, stats);
}

// Calls f(t, z, slot) for every entry of the row: its place among the kept ones, ascending in t, or -1. Of a
// row in registers also for those beyond the last, which are not kept.
template <class Row, class F>
__device__ __forceinline__ void select_of(const Row& row, Threshold threshold, F f) {
  const unsigned before = (1u << row.lane) - 1;
  int kept = 0;
  if (threshold.separates) {
    row.each([&](int t, float z) {
      const bool keep = z >= threshold.value;
      const unsigned all_kept = __ballot_sync(kFullWarp, keep);
      f(t, z, keep ? kept + __popc(all_kept & before) : -1);
      kept += __popc(all_kept);
    });
    return;
  }
  const bool unordered = is_nan(threshold.value);
  int ties = 0;
  row.each([&](int t, float z) {
    const bool tie = t < row.count && (unordered || z == threshold.value);
    const unsigned all_ties = __ballot_sync(kFullWarp, tie);
    const bool keep = z > threshold.value || (tie && ties + __popc(all_ties & before) < threshold.ties);
    const unsigned all_kept = __ballot_sync(kFullWarp, keep);
    f(t, z, keep ? kept + __popc(all_kept & before) : -1);
    kept += __popc(all_kept);
    ties += __popc(all_ties);
  });
}

// Calls f(t, slot) for every entry of z[0, count).
template <class F>
__device__ __forceinline__ void for_each_selected(View<const float> z, int count, Threshold threshold,
                                                  int lane, F f) {
  select_of(RowInMemory<>{z, count, lane}, threshold, [&](int t, float, int slot) {
    if (t < count) f(t, slot);
  });
}

// First position of the row's maximum.
__device__ __forceinline__ int first_maximum(View<const float> z, int count, float max, int lane) {
  int first = count;
  for (int t = lane; t < count && first == count; t += 32) {
    if (z[t] == max) first = t;
  }
  return warp_min(first);
}

// Where new index entries go: int16, or int32 if `wide`.
struct IndexOut {
  View<int16_t> data;
  bool wide;

  __device__ IndexOut from(int64_t i) const { return {data + (wide ? 2 * i : i), wide}; }
  __device__ void store(int64_t i, int value) const {
    const View<int16_t> at = data + (wide ? 2 * i : i);
    if (wide) {
      store_as(at, int32_t(value));
    } else {
      *at = int16_t(value);
    }
  }
};
inline IndexOut index_out(void* data, bool is_wide) {
  return {View<int16_t>(static_cast<int16_t*>(data)), is_wide};
}

}  // namespace pft::cuda
