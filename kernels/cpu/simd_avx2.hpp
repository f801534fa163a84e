// The vector abstraction on AVX2 and FMA, also the rows of AVX-512. Interface: simd.hpp.
#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace pft::cpu::PFT_ISA {
namespace {
namespace ymm {

constexpr int kLanes = 8;
constexpr int kTileRows = 4;  // 4 x 3 accumulators, 3 vectors of B, 1 broadcast: all 16 registers
constexpr int kTileVecs = 3;
using F = __m256;
typedef int32_t I __attribute__((vector_size(32)));

inline __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline F set1(float x) { return _mm256_set1_ps(x); }
inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline F load_n(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
inline void store(float* p, F x) { _mm256_storeu_ps(p, x); }
inline void store_n(float* p, F x, int n) { _mm256_maskstore_ps(p, first_lanes(n), x); }
inline F widened(BFloat16, __m128i x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
inline F widened(Float16, __m128i x) { return _mm256_cvtph_ps(x); }
inline __m128i narrowed(BFloat16, F x) {
  const __m256i y = reinterpret_cast<__m256i>(bfloat16_bits<F, I>(x));
  return _mm_packus_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
}
inline __m128i narrowed(Float16, F x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
template <typename T>
F load(const T* p) {
  return widened(T{}, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
template <typename T>
F load_n(const T* p, int n) {  // AVX2 has no masks for 16 bits
  T lanes[kLanes] = {};
  for (int u = 0; u < n; ++u) lanes[u] = p[u];
  return load(lanes);
}
template <typename T>
void store(T* p, F x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrowed(T{}, x));
}
template <typename T>
void store_n(T* p, F x, int n) {
  T lanes[kLanes];
  store(lanes, x);
  for (int u = 0; u < n; ++u) p[u] = lanes[u];
}
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F gather(const float* p, I at) { return _mm256_i32gather_ps(p, reinterpret_cast<__m256i>(at), 4); }
inline float sum(F x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
inline int32_t sum(I x) {
  const __m256i v = reinterpret_cast<__m256i>(x);
  __m128i y = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_shuffle_epi32(y, 0xb1)));
}
inline uint32_t bits(F mask) { return static_cast<uint32_t>(_mm256_movemask_ps(mask)); }
inline uint32_t mask_gt(F a, F b) { return bits(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
inline uint32_t mask_ge(F a, F b) { return bits(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
inline uint32_t mask_eq(F a, F b) { return bits(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }

// AVX2 has no compress instruction; one store per set bit.
inline void compress(float* p, F x, uint32_t mask) {
  float lanes[kLanes];
  store(lanes, x);
  for (; mask; mask &= mask - 1) *p++ = lanes[__builtin_ctz(mask)];
}
inline void compress(int32_t* p, I x, uint32_t mask) {
  for (; mask; mask &= mask - 1) *p++ = x[__builtin_ctz(mask)];
}

// Lane u of the result is the sum of the lanes of acc[u]: halves first, then pairs twice, each step one
// addition of two shuffles (hadd_ps would be the same additions, and more instructions).
inline F pairs(F x, F y) {
  return _mm256_add_ps(_mm256_shuffle_ps(x, y, 0x88), _mm256_shuffle_ps(x, y, 0xdd));
}
inline F sums(const F (&acc)[kLanes]) {
  F h[4];
#pragma GCC unroll 4
  for (int u = 0; u < 4; ++u)
    h[u] = _mm256_add_ps(_mm256_permute2f128_ps(acc[u], acc[u + 4], 0x20),
                         _mm256_permute2f128_ps(acc[u], acc[u + 4], 0x31));
  return pairs(pairs(h[0], h[1]), pairs(h[2], h[3]));
}

}  // namespace ymm
}  // namespace
}  // namespace pft::cpu::PFT_ISA
