// Work on one row of the index: gather-dot (SDDMM), gather-add (SpMM), scatter-add (its transpose).
//
// `rows` is a packed window-head: 64-byte aligned rows of `ld` floats, zero behind the last column. `offsets`
// holds index * ld. NV is the number of vectors per row, or 0 for any number (rows longer than kMaxVectors
// vectors).
#pragma once
#include <stdint.h>

#include "pft/cpu.h"
#include "simd.hpp"

namespace pft::cpu::PFT_ISA {
namespace {

constexpr int kMaxVectors = 5;  // head_dim 40 in AVX2; 80, two dense layers' worth, in AVX-512

// dst[rows, ld] = src[rows, dim], zero-padded.
inline void pack_rows(const float* src, int64_t row_stride, int64_t rows, int64_t dim, float* dst,
                      int64_t ld) {
  const int64_t nv = vectors(dim);
  const int tail = last_lanes(dim);
  for (int64_t j = 0; j < rows; ++j, src += row_stride, dst += ld) {
    for (int64_t c = 0; c + 1 < nv; ++c) store(dst + c * kLanes, load(src + c * kLanes));
    store(dst + (nv - 1) * kLanes, load_n(src + (nv - 1) * kLanes, tail));
    for (int64_t e = nv * kLanes; e < ld; ++e) dst[e] = 0.0f;
  }
}

inline void copy_row(const float* src, int64_t n, float* dst) {
  const int64_t nv = vectors(n);
  for (int64_t c = 0; c + 1 < nv; ++c) store(dst + c * kLanes, load(src + c * kLanes));
  store_n(dst + (nv - 1) * kLanes, load_n(src + (nv - 1) * kLanes, last_lanes(n)), last_lanes(n));
}

// offsets[t] = index[row, t] * ld.
inline void stage_offsets(const ConstIndex& index, int64_t row, int64_t count, int64_t ld, int32_t* offsets) {
  const int32_t step = static_cast<int32_t>(ld);
  if (index.type == IndexType::kInt16) {
    const int16_t* src = static_cast<const int16_t*>(index.data) + row * count;
    for (int64_t t = 0; t < count; ++t) offsets[t] = src[t] * step;
  } else {
    const int32_t* src = static_cast<const int32_t*>(index.data) + row * count;
    for (int64_t t = 0; t < count; ++t) offsets[t] = src[t] * step;
  }
}

// out[t] = sum_e q[e] rows[offsets[t] + e], e < dim.
using GatherDot = void (*)(const float* q, int64_t dim, const float* rows, const int32_t* offsets,
                           int64_t count, float* out);

template <int NV>
void gather_dot(const float* q, int64_t dim, const float* rows, const int32_t* offsets, int64_t count,
                float* out) {
  const int nv = NV ? NV : static_cast<int>(vectors(dim));
  const int tail = last_lanes(dim);
  F qv[NV ? NV : 1];
  for (int c = 0; c < NV; ++c) qv[c] = c + 1 < NV ? load(q + c * kLanes) : load_n(q + c * kLanes, tail);
  int32_t last[kLanes];
  for (int64_t t = 0; t < count; t += kLanes) {
    const int64_t left = count - t;
    const int32_t* at = offsets + t;
    if (left < kLanes) {  // repeat the last entry; the masked store drops the copies
      for (int u = 0; u < kLanes; ++u) last[u] = at[u < left ? u : left - 1];
      at = last;
    }
    F acc[kLanes];
    if (NV) {
#pragma GCC unroll 16
      for (int u = 0; u < kLanes; ++u) {
        const float* row = rows + at[u];
        acc[u] = qv[0] * load(row);
#pragma GCC unroll 8
        for (int c = 1; c < NV; ++c) acc[u] = fma(qv[c], load(row + c * kLanes), acc[u]);
      }
    } else {
#pragma GCC unroll 16
      for (int u = 0; u < kLanes; ++u) acc[u] = set1(0.0f);
      for (int c = 0; c < nv; ++c) {
        const F qc = c + 1 < nv ? load(q + c * kLanes) : load_n(q + c * kLanes, tail);
#pragma GCC unroll 16
        for (int u = 0; u < kLanes; ++u) acc[u] = fma(qc, load(rows + at[u] + c * kLanes), acc[u]);
      }
    }
    if (left < kLanes)
      store_n(out + t, sums(acc), static_cast<int>(left));
    else
      store(out + t, sums(acc));
  }
}

// out[e] = scale * sum_t a[t] rows[offsets[t] + e], e < dim.
using GatherAdd = void (*)(const float* a, const float* rows, const int32_t* offsets, int64_t count,
                           float scale, int64_t dim, float* out);

template <int NV>
void gather_add(const float* a, const float* rows, const int32_t* offsets, int64_t count, float scale,
                int64_t dim, float* out) {
  constexpr int kSets = NV == 1   ? 8
                        : NV == 2 ? 4
                                  : 2;  // enough independent sums to hide the latency of an FMA
  F acc[kSets][NV];
  for (int s = 0; s < kSets; ++s)
    for (int c = 0; c < NV; ++c) acc[s][c] = set1(0.0f);
  int64_t t = 0;
  for (; t + kSets <= count; t += kSets) {
#pragma GCC unroll 8
    for (int s = 0; s < kSets; ++s) {
      const float* row = rows + offsets[t + s];
      const F w = set1(a[t + s]);
#pragma GCC unroll 8
      for (int c = 0; c < NV; ++c) acc[s][c] = fma(w, load(row + c * kLanes), acc[s][c]);
    }
  }
  for (; t < count; ++t) {
    const float* row = rows + offsets[t];
    const F w = set1(a[t]);
#pragma GCC unroll 8
    for (int c = 0; c < NV; ++c) acc[0][c] = fma(w, load(row + c * kLanes), acc[0][c]);
  }
#pragma GCC unroll 8
  for (int s = kSets / 2; s > 0; s /= 2)
    for (int u = 0; u < s; ++u)
      for (int c = 0; c < NV; ++c) acc[u][c] = acc[u][c] + acc[u + s][c];
  const F factor = set1(scale);
  for (int c = 0; c + 1 < NV; ++c) store(out + c * kLanes, acc[0][c] * factor);
  store_n(out + (NV - 1) * kLanes, acc[0][NV - 1] * factor, last_lanes(dim));
}

// Any number of vectors: slices of kMaxVectors vectors, each a pass over the index.
inline void gather_add_any(const float* a, const float* rows, const int32_t* offsets, int64_t count,
                           float scale, int64_t dim, float* out) {
  constexpr int64_t kSlice = 4 * kLanes;
  int64_t e = 0;
  for (; e + kSlice <= dim; e += kSlice) gather_add<4>(a, rows + e, offsets, count, scale, kSlice, out + e);
  for (; e < dim; e += kLanes)
    gather_add<1>(a, rows + e, offsets, count, scale, dim - e < kLanes ? dim - e : kLanes, out + e);
}

// rows[offsets[t] + e] += a[t] x[e], e < dim; the offsets are distinct.
using ScatterAdd = void (*)(const float* a, const float* x, int64_t dim, float* rows, const int32_t* offsets,
                            int64_t count);

template <int NV>
void scatter_add(const float* a, const float* x, int64_t dim, float* rows, const int32_t* offsets,
                 int64_t count) {
  F xv[NV];
  for (int c = 0; c < NV; ++c)
    xv[c] = c + 1 < NV ? load(x + c * kLanes) : load_n(x + c * kLanes, last_lanes(dim));
  for (int64_t t = 0; t < count; ++t) {
    float* row = rows + offsets[t];
    const F w = set1(a[t]);
#pragma GCC unroll 8
    for (int c = 0; c < NV; ++c) store(row + c * kLanes, fma(w, xv[c], load(row + c * kLanes)));
  }
}

inline void scatter_add_any(const float* a, const float* x, int64_t dim, float* rows, const int32_t* offsets,
                            int64_t count) {
  constexpr int64_t kSlice = 4 * kLanes;
  int64_t e = 0;
  for (; e + kSlice <= dim; e += kSlice) scatter_add<4>(a, x + e, kSlice, rows + e, offsets, count);
  for (; e < dim; e += kLanes)
    scatter_add<1>(a, x + e, dim - e < kLanes ? dim - e : kLanes, rows + e, offsets, count);
}

inline GatherDot pick_gather_dot(int64_t dim) {
  constexpr GatherDot table[kMaxVectors + 1] = {gather_dot<0>, gather_dot<1>, gather_dot<2>,
                                                gather_dot<3>, gather_dot<4>, gather_dot<5>};
  return vectors(dim) <= kMaxVectors ? table[vectors(dim)] : gather_dot<0>;
}

inline GatherAdd pick_gather_add(int64_t dim) {
  constexpr GatherAdd table[kMaxVectors + 1] = {gather_add_any, gather_add<1>, gather_add<2>,
                                                gather_add<3>,  gather_add<4>, gather_add<5>};
  return vectors(dim) <= kMaxVectors ? table[vectors(dim)] : gather_add_any;
}

inline ScatterAdd pick_scatter_add(int64_t dim) {
  constexpr ScatterAdd table[kMaxVectors + 1] = {scatter_add_any, scatter_add<1>, scatter_add<2>,
                                                 scatter_add<3>,  scatter_add<4>, scatter_add<5>};
  return vectors(dim) <= kMaxVectors ? table[vectors(dim)] : scatter_add_any;
}

}  // namespace
}  // namespace pft::cpu::PFT_ISA
