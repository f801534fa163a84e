// What the backward pass of a dense layer does on tensor cores beside the forward pass's tiles: products of
// rows that a warp keeps, and sums of gradients.
#pragma once
#include "logit_terms.cuh"

namespace pft::cuda {

// A warp's 16 rows of an array, the left operand of all its products. 16-bit types: fragments of the first
// kHeld steps of 16 channels stay in registers.
template <class T>
struct OwnRows {
  static constexpr int kHeld = 3;
  uint32_t held[kHeld][4];
  View<const T> rows;

  __device__ __forceinline__ void load(View<const T> array, int row0, int, int dim) {
    const int lane = int(threadIdx.x) % 32, units = tile_units<T>(dim);
    rows = array + ((row0 + lane % 16) * tile_pitch<T>(dim) + lane / 16 * 8);
#pragma unroll
    for (int step = 0; step < kHeld; ++step) {
      if (2 * step < units) ldmatrix_x4<false>(held[step], rows + step * 16);
    }
  }

  __device__ __forceinline__ void products(LaneProducts<T>& s, View<const T> others, int other0, int,
                                           int dim) const {
    const int lane = int(threadIdx.x) % 32, pitch = tile_pitch<T>(dim), units = tile_units<T>(dim);
    const View<const T> at = others + ((other0 + lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 8);
    float d[4][4] = {};
#pragma unroll
    for (int step = 0; step < kHeld; ++step) {
      if (16 * step + 8 < dim) {
        multiply(d, held[step], at + step * 16, pitch);
      } else if (16 * step < dim) {
        multiply_last(d, held[step], others + ((other0 + lane) * pitch + step * 16));
      }
    }
#pragma unroll 1
    for (int step = kHeld; 2 * step < units; ++step) {
      uint32_t a[4];
      ldmatrix_x4<false>(a, rows + step * 16);
      multiply(d, a, at + step * 16, pitch);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int c = 0; c < 8; ++c) s[r][c] = d[c / 2][2 * r + c % 2];
    }
  }

 private:
  __device__ __forceinline__ static void multiply(float (&d)[4][4], const uint32_t (&a)[4], View<const T> at,
                                                  int pitch) {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      uint32_t b[4];
      ldmatrix_x4<false>(b, at + pair * 16 * pitch);
      const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
      mma_m16n8k16<T>(d[2 * pair], a, left);
      mma_m16n8k16<T>(d[2 * pair + 1], a, right);
    }
  }
  // Eight channels that are left of an odd number of eights: one load for all 32 others.
  __device__ __forceinline__ static void multiply_last(float (&d)[4][4], const uint32_t (&a)[4],
                                                       View<const T> at) {
    uint32_t b[4];
    ldmatrix_x4<false>(b, at);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const uint32_t half[2] = {b[n], 0};
      mma_m16n8k16<T>(d[n], a, half);
    }
  }
};

template <>
struct OwnRows<Split> {  // three parts of a row are too many for registers
  View<const bf16_t> rows;
  int row0 = 0, room = 0;

  __device__ __forceinline__ void load(View<const bf16_t> array, int row, int rows_of_array, int) {
    rows = array, row0 = row, room = rows_of_array;
  }
  __device__ __forceinline__ void products(LaneProducts<Split>& s, View<const bf16_t> others, int other0,
                                           int other_room, int dim) const {
    lane_products<Split>(s, rows, row0, room, others, other0, other_room, dim);
  }
};

// Sums of 16 rows x kChunk columns of a gradient.
template <class T>
struct GradientSum {
  float sum[kChunk / 8][4] = {};

  __device__ __forceinline__ float& cell(int r, int c) { return sum[c / 2][2 * r + c % 2]; }
  __device__ __forceinline__ void scale(int r, float factor) {
#pragma unroll
    for (int c = 0; c < kChunk / 4; ++c) cell(r, c) *= factor;
  }

  // += weights * columns [col0, col0 + cols) of kGroup rows of a staged array, from `row` on.
  __device__ __forceinline__ void add(const LaneProducts<T>& w, View<const T> array, int row, int, int dim,
                                      int col0, int cols) {
    const int lane = int(threadIdx.x) % 32, pitch = tile_pitch<T>(dim);
    const View<const T> from = array + (row * pitch + col0);
    const View<const T> pairs = from + ((lane / 8 % 2 * 8 + lane % 8) * pitch + lane / 16 * 8),
                        last = from + lane * pitch;
    uint32_t weights[2][4];
#pragma unroll
    for (int step = 0; step < 2; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int c = 4 * step + i / 2 * 2;
        weights[step][i] = pack_pair(w[i % 2][c], w[i % 2][c + 1], T{});
      }
    }
#pragma unroll
    for (int n = 0; n < kChunk / 8; n += 2) {
      uint32_t b[4];
      if (n + 1 < kChunk / 8 && n * 8 + 8 < cols) {
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          ldmatrix_x4<true>(b, pairs + (step * 16 * pitch + n * 8));
          const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
          mma_m16n8k16<T>(sum[n], weights[step], left);
          mma_m16n8k16<T>(sum[n + 1], weights[step], right);
        }
      } else if (n * 8 < cols) {  // one tile of eight columns: one load for all 32 rows
        ldmatrix_x4<true>(b, last + n * 8);
        const uint32_t upper[2] = {b[0], b[1]}, lower[2] = {b[2], b[3]};
        mma_m16n8k16<T>(sum[n], weights[0], upper);
        mma_m16n8k16<T>(sum[n], weights[1], lower);
      }
    }
  }
  __device__ __forceinline__ void finish() {}
};

template <>
struct GradientSum<Split> {
  WeightedSums<Split> parts;
  LaneSums<Split> sum;

  __device__ __forceinline__ float& cell(int r, int c) { return sum[c / 2][2 * r + c % 2]; }
  __device__ __forceinline__ void add(const LaneProducts<Split>& w, View<const bf16_t> array, int row,
                                      int room, int, int col0, int cols) {
    add_weighted<Split>(parts, w, array + (col0 * kSplitParts * room + row * kChunk), room,
                        cols < kChunk ? cols : kChunk);
  }
  __device__ __forceinline__ void finish() { parts.join(sum); }
};

// Weights are at most 1; float16 takes them as 2^13 times what they are, so that it loses 2^-38 of one at
// most. There is room for those beyond 1 that rounding of huge logits makes.
template <class T>
constexpr float kGradientExponent = 0.f;
template <>
constexpr float kGradientExponent<half_t> = 13.f;
template <class T>
constexpr float kGradientUnit = kGradientExponent<T> > 0.f ? 0x1p-13f : 1.f;

// Gradients of logits have any size. float16 takes those of a row times a power of two that leaves the
// largest so far, and all down to 2^-22 of it, normal numbers; it changes where the largest outgrows it 64
// times.
template <class T>
struct RowScale {
  __device__ __forceinline__ void fit(GradientSum<T>&, LaneProducts<T>&) {}
  __device__ __forceinline__ float inverse(int) const { return 1.f; }
};
template <>
struct RowScale<half_t> {
  float most[2] = {-1.f, -1.f}, factor[2] = {1.f, 1.f};

  __device__ __forceinline__ void fit(GradientSum<half_t>& sums, LaneProducts<half_t>& x) {
    float largest[2];
    bool grows = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      largest[r] = fabsf(x[r][0]);
#pragma unroll
      for (int c = 1; c < 8; ++c) largest[r] = fmaxf(largest[r], fabsf(x[r][c]));
      grows |= largest[r] > most[r];
    }
    if (__any_sync(kFullWarp, grows)) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float size = LaneTile<half_t>::row_max(largest[r]);
        if (!(size > most[r])) continue;
        const PowerOfTwo power = power_below(fmaxf(size, 0x1p-100f));
        const float before = factor[r];
        most[r] = 64.f * power.value;
        factor[r] = 256.f * power.inverse;
        sums.scale(r, factor[r] / before);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int c = 0; c < 8; ++c) x[r][c] *= factor[r];
    }
  }
  __device__ __forceinline__ float inverse(int r) const { return 1.f / factor[r]; }
};

}  // namespace pft::cuda
