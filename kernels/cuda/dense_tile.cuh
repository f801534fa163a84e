// Products of a tile of 16 rows with 32 others, by one warp on tensor cores. What dense float32 layers do
// instead is in split_tile.cuh and lane_tile.cuh.
#pragma once
#include "attention_row.cuh"

namespace pft::cuda {

constexpr int kTileRows = 16;
constexpr int kGroup = 32;  // others that a warp takes at a time

// How a kernel multiplies is named by a type: that of the elements, or Split (split_tile.cuh).
template <class T>
constexpr bool kTensorCores = sizeof(T) == 2;
// Elements as they lie in device memory, and as a tile holds them in shared memory.
template <class T>
struct TileTypes {
  using Global = T;
  using Shared = T;
};
template <class T>
using GlobalType = typename TileTypes<T>::Global;
template <class T>
using SharedType = typename TileTypes<T>::Shared;

// 16-byte units of a row as the products read it: whole 16-element steps for the 16-bit types.
template <class T>
__host__ __device__ constexpr int tile_units(int64_t cols) {
  return kTensorCores<T> ? int(round_up(units_of<T>(cols), 2)) : units_of<T>(cols);
}
template <class T>
__host__ __device__ constexpr int tile_pitch(int64_t cols) {
  return (tile_units<T>(cols) | 1) * kPerUnit<T>;
}

// Products of 16 rows with 32 others by tensor cores, added to d as their fragments lie: d[n] holds columns
// 8n to 8n + 7. Both operands zero-padded to `units`.
template <class T>
__device__ __forceinline__ void tile_products(float (&d)[4][4], View<const T> rows, View<const T> others,
                                              int pitch, int units) {
  const int lane = int(threadIdx.x) % 32;
  const View<const T> a_row = rows + (lane % 16) * pitch + lane / 16 * 8;
  const View<const T> b_row = others + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 8;
  for (int step = 0; step < units / 2; ++step) {
    uint32_t a[4];
    ldmatrix_x4<false>(a, a_row + step * 16);
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      uint32_t b[4];
      ldmatrix_x4<false>(b, b_row + pair * 16 * pitch + step * 16);
      const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
      mma_m16n8k16<T>(d[2 * pair], a, low);
      mma_m16n8k16<T>(d[2 * pair + 1], a, high);
    }
  }
}

// A power of two near x > 0 and its inverse, both normal numbers.
struct PowerOfTwo {
  float value, inverse;
};
__device__ __forceinline__ PowerOfTwo power_below(float x) {
  uint32_t exponent = __float_as_uint(x) >> 23;
  exponent = exponent < 1 ? 1 : exponent > 253 ? 253 : exponent;
  return {__uint_as_float(exponent << 23), __uint_as_float((254 - exponent) << 23)};
}

}  // namespace pft::cuda
