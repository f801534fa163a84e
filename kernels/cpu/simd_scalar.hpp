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
inline float as_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t as_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float widened(BFloat16 x) { return as_float(static_cast<uint32_t>(x.bits) << 16); }
// Exponents of float32 begin 112 lower. Nothing here is a denormal float32, which a process may have switched
// off.
inline float widened(Float16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, rest = (x.bits & 0x7fffu) << 13;
  if (rest >= 0x7c00u << 13) return as_float(sign | 0x7f800000u | rest);  // infinity, NaN
  if (rest >= 0x0400u << 13) return as_float(sign | (rest + (112u << 23)));
  const float size = as_float(rest + (113u << 23)) - as_float(113u << 23);  // a denormal float16
  return as_float(sign | as_bits(size));
}
inline BFloat16 narrowed(BFloat16, float x) {
  const uint32_t bits = as_bits(x);
  if (x != x) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
inline Float16 narrowed(Float16, float x) {
  const uint32_t bits = as_bits(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  uint32_t made;
  if (x != x) {
    made = 0x7e00u;
  } else if (size >= 143u << 23) {  // 2^16 and more
    made = 0x7c00u;
  } else if (size < 113u << 23) {  // a denormal float16: the sum rounds at its last bit, 2^-24
    made = as_bits(as_float(size) + 0.5f) - as_bits(0.5f);
  } else {  // a carry into the exponent is right, up to infinity
    made = (size - (112u << 23) + 0xfffu + (size >> 13 & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(sign | made)};
}
template <typename T>
F load(const T* p) {
  return F{widened(p[0]), widened(p[1]), widened(p[2]), widened(p[3])};
}
template <typename T>
F load_n(const T* p, int n) {
  F x{};
  for (int u = 0; u < n; ++u) x[u] = widened(p[u]);
  return x;
}
template <typename T>
void store(T* p, F x) {
  for (int u = 0; u < kLanes; ++u) p[u] = narrowed(T{}, x[u]);
}
template <typename T>
void store_n(T* p, F x, int n) {
  for (int u = 0; u < n; ++u) p[u] = narrowed(T{}, x[u]);
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
