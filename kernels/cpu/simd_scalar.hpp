// The vector abstraction without any instruction-set header: four lanes in the compiler's own vector type,
// which becomes SSE2, NEON or plain scalar code. Interface: simd.hpp.
#pragma once
#include <stdint.h>

namespace pft::cpu::PFT_ISA {
namespace {
namespace lanes4 {

constexpr int kLanes = 4;
constexpr int kTileRows = 4;
constexpr int kTileVecs = 2;
typedef float F __attribute__((vector_size(16)));
typedef int32_t I __attribute__((vector_size(16)));

inline F set1(float x) { return F{x, x, x, x}; }
inline F load(const float* p) { return F{p[0], p[1], p[2], p[3]}; }
inline F load_n(const float* p, int n) {
  F x{};
  for (int u = 0; u < n; ++u) x[u] = p[u];
  return x;
}
inline void store(float* p, F x) {
  for (int u = 0; u < kLanes; ++u) p[u] = x[u];
}
inline void store_n(float* p, F x, int n) {
  for (int u = 0; u < n; ++u) p[u] = x[u];
}
inline F fma(F a, F b, F c) { return a * b + c; }
inline F gather(const float* p, I at) { return F{p[at[0]], p[at[1]], p[at[2]], p[at[3]]}; }
inline float sum(F x) { return (x[0] + x[1]) + (x[2] + x[3]); }
inline int32_t sum(I x) { return (x[0] + x[1]) + (x[2] + x[3]); }
inline uint32_t bits(I mask) { return (mask[0] & 1u) | (mask[1] & 2u) | (mask[2] & 4u) | (mask[3] & 8u); }
inline uint32_t mask_gt(F a, F b) { return bits(a > b); }
inline uint32_t mask_ge(F a, F b) { return bits(a >= b); }
inline uint32_t mask_eq(F a, F b) { return bits(a == b); }
inline void compress(float* p, F x, uint32_t mask) {
  for (; mask; mask &= mask - 1) *p++ = x[__builtin_ctz(mask)];
}
inline void compress(int32_t* p, I x, uint32_t mask) {
  for (; mask; mask &= mask - 1) *p++ = x[__builtin_ctz(mask)];
}
inline F sums(const F (&acc)[kLanes]) { return F{sum(acc[0]), sum(acc[1]), sum(acc[2]), sum(acc[3])}; }

}  // namespace lanes4
}  // namespace
}  // namespace pft::cpu::PFT_ISA
