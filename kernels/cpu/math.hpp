// Elementwise functions of vectors.
#pragma once
#include <stdint.h>

#include "simd.hpp"

namespace pft::cpu::PFT_ISA {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();

inline F max(F a, F b) { return a > b ? a : b; }

// e^x 2^-lowered to about 1 ulp for x <= 88.7; where the result would be subnormal, 0 (below -87.3 for
// lowered = 0); NaN stays NaN. x = n ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite's two-part ln 2), e^r by
// the polynomial of Cephes' expf. The lowering costs nothing: it is part of the exponent.
inline F exp(F x, int32_t lowered = 0) {
  const F limited = x > set1(88.7f) ? set1(88.7f) : x;
  const F magic =
      set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, found in the low bits of the sum
  const F shifted = fma(limited, set1(1.44269504088896341f), magic);
  const F n = shifted - magic;
  F r = fma(n, set1(-0.693359375f), limited);
  r = fma(n, set1(2.12194440e-4f), r);
  F p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r) + set1(1.0f);
  const I power = (reinterpret_cast<I>(shifted) << 23) + (0x3f800000 - (lowered << 23));
  const F result = p * reinterpret_cast<F>(power);
  return x < set1(-87.3f + 0.6931472f * static_cast<float>(lowered)) ? set1(0.0f) : result;
}

// Largest lane; a NaN may or may not show.
inline float max_lane(F x) {
  float lanes[kLanes];
  store(lanes, x);
  float m = lanes[0];
  for (int u = 1; u < kLanes; ++u) m = lanes[u] > m ? lanes[u] : m;
  return m;
}

// The functions below take rows of `nv` whole vectors; what lies behind the last entry is minus infinity.

inline float row_max(const float* z, int64_t nv) {
  F m0 = load(z), m1 = m0;
  int64_t c = 0;
  for (; c + 2 <= nv; c += 2) {
    m0 = max(load(z + c * kLanes), m0);
    m1 = max(load(z + (c + 1) * kLanes), m1);
  }
  if (c < nv) m0 = max(load(z + c * kLanes), m0);
  return max_lane(max(m0, m1));
}

// Sum of e^(z - shift) 2^-lowered; e receives the terms unless it is null.
inline float row_exp(const float* z, int64_t nv, float shift, float* e, int32_t lowered = 0) {
  F total = set1(0.0f);
  for (int64_t c = 0; c < nv; ++c) {
    const F x = exp(load(z + c * kLanes) - set1(shift), lowered);
    if (e) store(e + c * kLanes, x);
    total = total + x;
  }
  return sum(total);
}

// Fills the row up to a whole number of vectors.
inline void pad_row(float* z, int64_t n) {
  for (int64_t t = n; t < vectors(n) * kLanes; ++t) z[t] = kMinusInfinity;
}

// Largest magnitude of a row, NaN aside.
template <typename T>
float row_magnitude(const T* x, int64_t n) {
  F most = set1(0.0f);
  int64_t e = 0;
  for (; e + kLanes <= n; e += kLanes) most = max(max(load(x + e), -load(x + e)), most);
  if (e < n) {
    const F last = load_n(x + e, static_cast<int>(n - e));
    most = max(max(last, -last), most);
  }
  return max_lane(most);
}

template <typename T>
float dot(const float* a, const T* b, int64_t n) {
  F total = set1(0.0f);
  int64_t e = 0;
  for (; e + kLanes <= n; e += kLanes) total = fma(load(a + e), load(b + e), total);
  if (e < n) {
    const int tail = static_cast<int>(n - e);
    total = fma(load_n(a + e, tail), load_n(b + e, tail), total);
  }
  return sum(total);
}

}  // namespace
}  // namespace pft::cpu::PFT_ISA
