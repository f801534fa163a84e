// float16 and bfloat16 for the emulator: storage plus explicit conversions, rounding to nearest even like the
// GPU. Own types, so that the emulator needs no CUDA toolkit.
#pragma once
#include <cstdint>
#include <cstring>

#include "tally.h"

// How the emulator works, not what the kernel does: kept out of the ways that counters.h follows.
#ifdef PFT_EMU_COUNTED
#define PFT_EMU_OPAQUE __attribute__((noinline, no_sanitize_coverage))
#define PFT_EMU_PART __attribute__((always_inline))  // what opaque functions call
#else
#define PFT_EMU_OPAQUE
#define PFT_EMU_PART
#endif

namespace pft {

PFT_EMU_PART inline uint32_t float_bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
PFT_EMU_PART inline float bits_float(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

PFT_EMU_OPAQUE inline float half_bits_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24
    const float value = float(mantissa) * 5.9604644775390625e-8f;
    return sign ? -value : value;
  }
  if (exponent == 31) return bits_float(sign | 0x7f800000u | mantissa << 13);
  return bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

PFT_EMU_OPAQUE inline uint16_t float_to_half_bits(float x) {
  const uint32_t u = float_bits(x), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7fffu);   // NaN
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // >= 65520 rounds to infinity
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 aligns the subnormal grid, the FPU rounds to even
    const float aligned = bits_float(magnitude) + 0.5f;
    return uint16_t(sign | (float_bits(aligned) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23);
  return uint16_t(sign | rounded >> 13);
}

PFT_EMU_PART inline float bf16_bits_to_float(uint16_t h) { return bits_float(uint32_t(h) << 16); }

PFT_EMU_OPAQUE inline uint16_t float_to_bf16_bits(float x) {
  const uint32_t u = float_bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
  return uint16_t((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

struct half_t {
  uint16_t bits;
};
struct bf16_t {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(half_t x) {
  emu::count(emu::Op::convert);
  return half_bits_to_float(x.bits);
}
inline float to_float(bf16_t x) {
  emu::count(emu::Op::convert);
  return bf16_bits_to_float(x.bits);
}

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline half_t from_float<half_t>(float x) {
  emu::count(emu::Op::convert);
  return {float_to_half_bits(x)};
}
template <>
inline bf16_t from_float<bf16_t>(float x) {
  emu::count(emu::Op::convert);
  return {float_to_bf16_bits(x)};
}

}  // namespace pft
