// ldmatrix and mma.sync by the fragment layouts of the PTX ISA ("Matrix Fragments for mma.m16n8k8 /
// m16n8k16", "Warp-level matrix load instruction: ldmatrix"). With g = lane / 4 and t = lane % 4:
//   m16n8k16, 16-bit A (4 registers of 2): rows g and g+8 alternating, columns 2t,2t+1 then 2t+8,2t+9
//             16-bit B (2 registers of 2): rows (k) 2t,2t+1 then 2t+8,2t+9, column g
//   m16n8k8,  tf32 A: (g,t) (g+8,t) (g,t+4) (g+8,t+4); B: (t,g) (t+4,g)
//   C and D:  (g,2t) (g,2t+1) (g+8,2t) (g+8,2t+1), float32
//
// How they round is in no document. Measured on A100 and H100 (Fasi et al. 2021; Khattak and Mikaitis 2025;
// Xie et al. 2025): products are exact; eight or sixteen of them and the accumulator are aligned to the
// largest, cut off one or two bits below float32's last, added, and the sum is cut off to float32. Here it is
// eight at a time with one bit, the coarser of each, so that what holds here holds there.
#pragma once
#include "vocabulary.h"

namespace pft {

struct MmaOperands {
  uint32_t a[4], b[2];
};

PFT_EMU_PART inline float half_of(uint32_t pair, int which, half_t) {
  return half_bits_to_float(uint16_t(pair >> (16 * which)));
}
PFT_EMU_PART inline float half_of(uint32_t pair, int which, bf16_t) {
  return bf16_bits_to_float(uint16_t(pair >> (16 * which)));
}

PFT_EMU_PART inline double power_of_two(int exponent) {
  const uint64_t u = uint64_t(exponent + 1023) << 52;
  double x;
  std::memcpy(&x, &u, 8);
  return x;
}

// d + the sum of eight products, as the unit rounds it.
PFT_EMU_PART inline float add_aligned(float d, const float (&products)[8]) {
  uint32_t largest = float_bits(d) & 0x7fffffffu;
  for (const float p : products) {
    const uint32_t u = float_bits(p) & 0x7fffffffu;
    largest = largest < u ? u : largest;
  }
  if (largest >= 0x7f800000u) {  // infinity or NaN: as in any sum
    for (const float p : products) d += p;
    return d;
  }
  constexpr int kFraction = 24;
  const int exponent = largest < 0x00800000u ? -126 : int(largest >> 23) - 127;
  const double scale = power_of_two(kFraction - exponent);
  int32_t sum = int32_t(double(d) * scale);  // towards zero
  for (const float p : products) sum += int32_t(double(p) * scale);
  const uint32_t size = uint32_t(sum < 0 ? -sum : sum);
  const int beyond = size ? 8 - __builtin_clz(size) : 0;  // bits that float32 has no room for
  if (beyond > 0) sum = int32_t(size >> beyond << beyond) * (sum < 0 ? -1 : 1);
  return float(double(sum) * power_of_two(exponent - kFraction));
}

template <class T>
PFT_EMU_OPAQUE void add_products_k16(float (&d)[4], emu::Exchanged<MmaOperands> all) {
  const unsigned g = emu::thread->lane / 4, t = emu::thread->lane % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = g + 8 * (i / 2), column = 2 * t + i % 2;
    for (unsigned half = 0; half < 2; ++half) {
      float products[8];
      for (unsigned k = 0; k < 8; ++k) {
        const uint32_t pair_a = all[(row % 8) * 4 + k / 2].a[row / 8 + 2 * half];
        const uint32_t pair_b = all[column * 4 + k / 2].b[half];
        products[k] = half_of(pair_a, int(k % 2), T{}) * half_of(pair_b, int(k % 2), T{});
      }
      d[i] = add_aligned(d[i], products);
    }
  }
}

// d += A B, A row-major 16x16, B column-major 16x8, T = half_t or bf16_t.
template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const MmaOperands mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  add_products_k16<T>(d, emu::exchange(emu::kAll, emu::WarpOp::mma, mine));
}

PFT_EMU_OPAQUE inline uint32_t float_to_tf32(float x) {  // cvt.rna: nearest, ties away from zero
  const uint32_t u = float_bits(x);
  return (u & 0x7f800000u) == 0x7f800000u ? u : (u + 0x1000u) & ~0x1fffu;
}

PFT_EMU_OPAQUE inline void add_products_tf32(float (&d)[4], emu::Exchanged<MmaOperands> all) {
  const unsigned g = emu::thread->lane / 4, t = emu::thread->lane % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = g + 8 * (i / 2), column = 2 * t + i % 2;
    float products[8];
    for (unsigned k = 0; k < 8; ++k) {
      const uint32_t x = all[(row % 8) * 4 + k % 4].a[row / 8 + 2 * (k / 4)];
      const uint32_t y = all[column * 4 + k % 4].b[k / 4];
      products[k] = bits_float(x & ~0x1fffu) * bits_float(y & ~0x1fffu);  // the unit ignores the low 13 bits
    }
    d[i] = add_aligned(d[i], products);
  }
}

inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const MmaOperands mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  add_products_tf32(d, emu::exchange(emu::kAll, emu::WarpOp::mma, mine));
}

struct MatrixRow {
  uint32_t words[4];
};

template <bool kTransposed>
PFT_EMU_OPAQUE void distribute(uint32_t (&r)[4], emu::Exchanged<MatrixRow> all) {
  const unsigned g = emu::thread->lane / 4, t = emu::thread->lane % 4;
  for (unsigned m = 0; m < 4; ++m) {
    if (!kTransposed) {
      r[m] = all[m * 8 + g].words[t];
    } else {
      const uint32_t low = all[m * 8 + 2 * t].words[g / 2], high = all[m * 8 + 2 * t + 1].words[g / 2];
      r[m] = (low >> (16 * (g % 2)) & 0xffffu) | (high >> (16 * (g % 2)) & 0xffffu) << 16;
    }
  }
}

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l%8 of matrix l/8 (16 bytes,
// aligned).
template <bool kTransposed, class T>
void ldmatrix_x4(uint32_t (&r)[4], const View<T>& row) {
  static_assert(sizeof(T) == 2, "16-bit elements");
  const uint4 raw = load_as<uint4>(row, emu::Kind::ldmatrix);
  const MatrixRow mine{{raw.x, raw.y, raw.z, raw.w}};
  distribute<kTransposed>(r, emu::exchange(emu::kAll, emu::WarpOp::ldmatrix, mine));
}

}  // namespace pft
