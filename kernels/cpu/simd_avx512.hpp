// The vector abstraction on AVX-512 (F, BW, DQ, VL). Interface: simd.hpp.
#pragma once
// GCC 12 warns about its own undefined-vector intrinsics (PR105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#include <stdint.h>

namespace pft::cpu::PFT_ISA {
namespace {
namespace zmm {

constexpr int kLanes = 16;
constexpr int kTileRows = 8;  // 8 x 3 accumulators, 3 vectors of B, 1 broadcast: 28 of 32 registers
constexpr int kTileVecs = 3;
using F = __m512;
typedef int32_t I __attribute__((vector_size(64)));

inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline F set1(float x) { return _mm512_set1_ps(x); }
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline F load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
inline void store_n(float* p, F x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }
inline F widened(BFloat16, __m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
inline F widened(Float16, __m256i x) { return _mm512_cvtph_ps(x); }
inline __m256i narrowed(BFloat16, F x) {
  return _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(bfloat16_bits<F, I>(x)));
}
inline __m256i narrowed(Float16, F x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
template <typename T>
F load(const T* p) {
  return widened(T{}, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
template <typename T>
F load_n(const T* p, int n) {
  return widened(T{}, _mm256_maskz_loadu_epi16(first_lanes(n), p));
}
template <typename T>
void store(T* p, F x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrowed(T{}, x));
}
template <typename T>
void store_n(T* p, F x, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrowed(T{}, x));
}
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F gather(const float* p, I at) { return _mm512_i32gather_ps(reinterpret_cast<__m512i>(at), p, 4); }
inline float sum(F x) { return _mm512_reduce_add_ps(x); }
inline int32_t sum(I x) { return _mm512_reduce_add_epi32(reinterpret_cast<__m512i>(x)); }
inline uint32_t mask_gt(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline uint32_t mask_ge(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline uint32_t mask_eq(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }

// Register compress and a full store: the compress-to-memory instruction is microcoded on Zen 4 (over 100
// cycles). Writes up to kLanes elements past `p`, of which the first popcount(mask) count.
inline void compress(float* p, F x, uint32_t mask) {
  _mm512_storeu_ps(p, _mm512_maskz_compress_ps(static_cast<__mmask16>(mask), x));
}
inline void compress(int32_t* p, I x, uint32_t mask) {
  _mm512_storeu_si512(
      p, _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), reinterpret_cast<__m512i>(x)));
}

// Lane u of the result is the sum of the lanes of acc[u]: a transposition and its additions in one tree of 15
// steps.
inline F sums(const F (&acc)[kLanes]) {
  F s[8], t[4];
#pragma GCC unroll 8
  for (int u = 0; u < 8; ++u)
    s[u] = _mm512_add_ps(_mm512_unpacklo_ps(acc[2 * u], acc[2 * u + 1]),
                         _mm512_unpackhi_ps(acc[2 * u], acc[2 * u + 1]));
#pragma GCC unroll 4
  for (int u = 0; u < 4; ++u) {
    const __m512d x = _mm512_castps_pd(s[2 * u]), y = _mm512_castps_pd(s[2 * u + 1]);
    t[u] =
        _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  const F a = _mm512_add_ps(_mm512_shuffle_f32x4(t[0], t[1], 0x88), _mm512_shuffle_f32x4(t[0], t[1], 0xdd));
  const F b = _mm512_add_ps(_mm512_shuffle_f32x4(t[2], t[3], 0x88), _mm512_shuffle_f32x4(t[2], t[3], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

}  // namespace zmm
}  // namespace
}  // namespace pft::cpu::PFT_ISA
