// The k largest entries of a row, in the order of the row; of equal entries the first ones.
//
// No sort: a threshold t with exactly k entries >= t is looked for by counting. Rows next to each other have
// much the same distribution, so the search starts where it ended for the row before, at a distance from
// logsumexp; two or three counts usually suffice. The start only decides how long the search takes, never
// what it finds.
#pragma once
#include <stdint.h>

#include "math.hpp"

namespace pft::cpu::PFT_ISA {
namespace {

struct SearchStart {
  float distance = -1.0f;  // threshold minus logsumexp
  float density = 100.0f;  // entries per unit of z around the threshold
};

struct Threshold {
  float value;
  int64_t ties;  // how many of the entries equal to value to keep; -1: all
};

// Order of floats as order of int32; -0 directly below +0.
inline int32_t order_of(float x) {
  int32_t b;
  __builtin_memcpy(&b, &x, sizeof b);
  return b ^ ((b >> 31) & 0x7fffffff);
}
inline float float_of(int32_t order) {
  const int32_t b = order ^ ((order >> 31) & 0x7fffffff);
  float x;
  __builtin_memcpy(&x, &b, sizeof x);
  return x;
}

inline int64_t count_ge(const float* z, int64_t nv, float t) {
  const F limit = set1(t);
  I n0{}, n1{};
  int64_t c = 0;
  for (; c + 2 <= nv; c += 2) {
    n0 -= load(z + c * kLanes) >= limit;
    n1 -= load(z + (c + 1) * kLanes) >= limit;
  }
  if (c < nv) n0 -= load(z + c * kLanes) >= limit;
  return sum(n0 + n1);
}

// The `need`-th largest of the entries in [lo, hi), of which there are at most kFew.
constexpr int kFew = 32;
inline Threshold among_few(const float* z, int64_t nv, float lo, float hi, int64_t need) {
  float few[kFew + 2 * kLanes];
  int64_t n = 0;
  for (int64_t c = 0; c < nv; ++c) {
    const F x = load(z + c * kLanes);
    const uint32_t mask = mask_ge(x, set1(lo)) & ~mask_ge(x, set1(hi));
    compress(few + n, x, mask);
    n += __builtin_popcount(mask);
  }
  for (int64_t t = n; t < kFew + kLanes; ++t) few[t] = kMinusInfinity;
  // The rank of an entry is the number of larger ones; the least entry of a rank below `need` is wanted.
  constexpr int kVectors = (kFew + kLanes - 1) / kLanes;
  F x[kVectors];
  I rank[kVectors];
  for (int c = 0; c < kVectors; ++c) {
    x[c] = load(few + c * kLanes);
    rank[c] = I{};
  }
  for (int64_t t = 0; t < n; ++t)
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) rank[c] -= set1(few[t]) > x[c];
  F least = set1(-kMinusInfinity);
  const int32_t limit = static_cast<int32_t>(need);
#pragma GCC unroll 8
  for (int c = 0; c < kVectors; ++c) {
    const F candidate = rank[c] < limit ? x[c] : set1(-kMinusInfinity);
    least = candidate < least ? candidate : least;
  }
  const float value = -max_lane(-least);
  int64_t above = 0, equal = 0;
#pragma GCC unroll 8
  for (int c = 0; c < kVectors; ++c) {
    above += __builtin_popcount(mask_gt(x[c], set1(value)));
    equal += __builtin_popcount(mask_eq(x[c], set1(value)));
  }
  return {value, above + equal == need ? -1 : need - above};
}

// Requires a finite logsumexp (so no NaN and no plus infinity in the row) and 1 <= k <= entries.
inline Threshold find_threshold(const float* z, int64_t nv, int64_t k, float max, float lse,
                                SearchStart* start) {
  // Invariant: at least k entries are >= lo, fewer than k are >= hi.
  int32_t lo = order_of(kMinusInfinity), hi = order_of(max) + 1;
  int64_t lo_count = nv * kLanes, hi_count = 0;
  float t = lse + start->distance;
  float step = 0.0f;
  for (int round = 0; hi - static_cast<int64_t>(lo) > 1; ++round) {
    int32_t at = order_of(t);
    if (!(at > lo && at < hi) || round % 4 == 3)
      at = static_cast<int32_t>((static_cast<int64_t>(lo) + hi) >> 1);
    t = float_of(at);
    const int64_t n = count_ge(z, nv, t);
    if (n >= k) {
      lo = at;
      lo_count = n;
    } else {
      hi = at;
      hi_count = n;
    }
    if (n == k) {
      start->distance = t - lse;
      return {t, -1};
    }
    const float low = float_of(lo), high = float_of(hi);
    if (lo_count - hi_count <= kFew) {
      const Threshold found = among_few(z, nv, low, high, k - hi_count);
      start->distance = found.value - lse;
      if (high > low) start->density = static_cast<float>(lo_count - hi_count) / (high - low);
      return found;
    }
    if (round < 2) {  // past the k-th entry by half as much again, so that it lies between two counts
      step = 1.5f * static_cast<float>(n - k) / start->density;
      t = t + step;
    } else {
      t = low + (high - low) * static_cast<float>(lo_count - k) / static_cast<float>(lo_count - hi_count);
    }
  }
  const float value = float_of(lo);
  return {value, k - hi_count};
}

// Writes position (null: place in the row) and z - shift of each kept entry; both have room for kLanes more.
inline void compact(const float* z, int64_t nv, const int32_t* positions, Threshold threshold, float shift,
                    int32_t* kept, float* values) {
  I places;
  for (int u = 0; u < kLanes; ++u) places[u] = u;
  int64_t n = 0, ties = threshold.ties;
  for (int64_t c = 0; c < nv; ++c, places += kLanes) {
    const F x = load(z + c * kLanes);
    uint32_t mask = mask_ge(x, set1(threshold.value));
    if (ties >= 0) {
      uint32_t equal = mask_eq(x, set1(threshold.value));
      mask &= ~equal;
      for (; equal && ties > 0; equal &= equal - 1, --ties) mask |= equal & (0u - equal);
    }
    I at = places;
    if (positions) __builtin_memcpy(&at, positions + c * kLanes, sizeof at);
    compress(kept + n, at, mask);
    compress(values + n, x - set1(shift), mask);
    n += __builtin_popcount(mask);
  }
}

}  // namespace
}  // namespace pft::cpu::PFT_ISA
