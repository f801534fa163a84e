// Chooses the vector abstraction. Each kernel file is compiled once per instruction set with PFT_ISA set to
// its name.
//
// Rules for files compiled this way: everything with a body lives in an anonymous namespace, and no template
// or inline function of the standard library is used. Two copies of such a function, one with AVX-512 and one
// without, would be one function to the linker, and it might keep the wrong one.
//
// The widest vectors have no prefix. `row::` has those for gathered rows, of at most 8 lanes: head_dim 40 is
// 5 of them with nothing left over, and they never straddle a cache line.
//
// Interface, with F a vector of kLanes floats and I one of kLanes int32 (arithmetic and comparisons are the
// compiler's operators): set1; load, load_n (first n lanes, zeros after them), store, store_n, each for all
// element types, rounding to the nearest with ties to even; fma(a, b, c) = a * b + c, gather (lane u is
// p[at[u]]), sum (of the lanes), sums (of kLanes vectors at once), mask_gt/ge/eq (a bit per lane), compress.
#pragma once

#include "elements.hpp"
#include "required_flags.hpp"

#if PFT_ISA_ID == PFT_ISA_ID_avx512
#include "simd_avx512.hpp"
// First the above: it silences warnings of GCC's own header.
#include "simd_avx2.hpp"
#define PFT_VECTORS zmm
#define PFT_ROW_VECTORS ymm
#elif PFT_ISA_ID == PFT_ISA_ID_avx2
#include "simd_avx2.hpp"
#define PFT_VECTORS ymm
#define PFT_ROW_VECTORS ymm
#else
#include "simd_scalar.hpp"
#define PFT_VECTORS lanes4
#define PFT_ROW_VECTORS lanes4
#endif

namespace pft::cpu::PFT_ISA {
namespace {

using namespace PFT_VECTORS;
namespace row = PFT_ROW_VECTORS;

inline I load_int(const int32_t* p) {
  I x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
inline int64_t vectors(int64_t n) { return (n + kLanes - 1) / kLanes; }
// Lanes in use in the last vector of a row of n floats: 1 to kLanes.
inline int last_lanes(int64_t n) { return static_cast<int>(n - (vectors(n) - 1) * kLanes); }

}  // namespace
}  // namespace pft::cpu::PFT_ISA
