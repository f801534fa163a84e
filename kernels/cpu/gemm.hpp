// A small matrix product, C[m, n] = A[m, k] B[k, n], blocked for registers. B is packed in panels of
// kTileVecs vectors of columns (the last panel has fewer): a panel is contiguous, [k][columns of the panel],
// so that it streams, and rows 4096 bytes apart do not compete for the same few cache lines.
#pragma once
#include <stdint.h>

#include "simd.hpp"

namespace pft::cpu::PFT_ISA {
namespace {

constexpr int64_t kPanel = kTileVecs * kLanes;

inline int64_t panel_columns(int64_t n, int64_t first) {
  const int64_t left = vectors(n) * kLanes - first;
  return left < kPanel ? left : kPanel;
}

// B = src[k, n].
template <typename T>
void pack_panels(const T* src, int64_t row_stride, int64_t k, int64_t n, float* dst) {
  for (int64_t first = 0; first < n; first += kPanel) {
    const int64_t columns = panel_columns(n, first);
    for (int64_t e = 0; e < k; ++e, dst += columns)
      for (int64_t c = 0; c < columns; c += kLanes) {
        const T* from = src + e * row_stride + first + c;
        const int64_t left = n - first - c;
        store(dst + c, left >= kLanes ? load(from) : load_n(from, static_cast<int>(left)));
      }
  }
}

inline void pack_panels(const ConstRows& src, int64_t k, int64_t n, float* dst) {
  as_elements(src, [&](auto from) { pack_panels(from, src.stride, k, n, dst); });
}

// dst[e * stride] = row[e], e < n.
inline void spread(const float* row, int64_t n, float* dst, int64_t stride) {
  for (int64_t e = 0; e < n; ++e) dst[e * stride] = row[e];
}
template <typename T>
void spread(const T* row, int64_t n, float* dst, int64_t stride) {
  float lanes[kLanes];
  int64_t e = 0;
  for (; e + kLanes <= n; e += kLanes) {
    store(lanes, load(row + e));
    spread(lanes, kLanes, dst + e * stride, stride);
  }
  if (e == n) return;
  store(lanes, load_n(row + e, static_cast<int>(n - e)));
  spread(lanes, n - e, dst + e * stride, stride);
}

// B = transpose of src[n, k].
template <typename T>
void pack_panels_transposed(const T* src, int64_t row_stride, int64_t n, int64_t k, float* dst) {
  for (int64_t first = 0; first < n; first += kPanel) {
    const int64_t columns = panel_columns(n, first);
    for (int64_t j = 0; j < columns; ++j) {
      if (first + j < n)
        spread(src + (first + j) * row_stride, k, dst + j, columns);
      else
        for (int64_t e = 0; e < k; ++e) dst[e * columns + j] = 0.0f;
    }
    dst += columns * k;
  }
}
inline void pack_panels_transposed(const ConstRows& src, int64_t n, int64_t k, float* dst) {
  as_elements(src, [&](auto from) { pack_panels_transposed(from, src.stride, n, k, dst); });
}

template <int kRows, int Vecs>
void tile(int64_t k, const float* a, int64_t a_row, int64_t a_k, const float* b, float* c, int64_t ldc,
          bool accumulate) {
  F acc[kRows][Vecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vecs; ++v) acc[r][v] = set1(0.0f);
  for (int64_t e = 0; e < k; ++e, a += a_k, b += Vecs * kLanes) {
    F bv[Vecs];
#pragma GCC unroll 4
    for (int v = 0; v < Vecs; ++v) bv[v] = load(b + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F x = set1(a[r * a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < Vecs; ++v) acc[r][v] = fma(x, bv[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vecs; ++v) {
      float* to = c + r * ldc + v * kLanes;
      store(to, accumulate ? load(to) + acc[r][v] : acc[r][v]);
    }
}

template <int Vecs>
void panel_rows(int64_t m, int64_t k, const float* a, int64_t a_row, int64_t a_k, const float* b, float* c,
                int64_t ldc, bool accumulate) {
  int64_t i = 0;
  for (; i + kTileRows <= m; i += kTileRows)
    tile<kTileRows, Vecs>(k, a + i * a_row, a_row, a_k, b, c + i * ldc, ldc, accumulate);
  for (; i < m; ++i) tile<1, Vecs>(k, a + i * a_row, a_row, a_k, b, c + i * ldc, ldc, accumulate);
}

// Longer sums are made of partial sums of this many terms, which keeps the rounding error of a sum of 1024
// small.
constexpr int64_t kPartialSum = 128;

// A(i, e) = a[i * a_row + e * a_k]; C has room for whole vectors of columns.
inline void gemm(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_row, int64_t a_k,
                 const float* panels, float* c, int64_t ldc, bool accumulate) {
  for (int64_t first = 0; first < n; first += kPanel) {
    const int64_t columns = panel_columns(n, first);
    const int64_t vecs = columns / kLanes;
    for (int64_t e = 0; e < k; e += kPartialSum, panels += kPartialSum * columns) {
      const int64_t terms = k - e < kPartialSum ? k - e : kPartialSum;
      const float* from = a + e * a_k;
      const bool add = accumulate || e > 0;
      if (vecs == 1) panel_rows<1>(m, terms, from, a_row, a_k, panels, c + first, ldc, add);
      if (vecs == 2) panel_rows<2>(m, terms, from, a_row, a_k, panels, c + first, ldc, add);
      if (vecs == 3) panel_rows<3>(m, terms, from, a_row, a_k, panels, c + first, ldc, add);
    }
    panels -= ((k + kPartialSum - 1) / kPartialSum * kPartialSum - k) * columns;
  }
}
static_assert(kTileVecs <= 3, "gemm() knows panels of up to three vectors");

}  // namespace
}  // namespace pft::cpu::PFT_ISA
