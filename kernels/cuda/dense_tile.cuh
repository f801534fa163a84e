// Products of a tile of 16 rows with 32 others, by one warp: on tensor cores for 16-bit types, FFMA for
// float32. What the forward pass of dense float32 layers does instead is in split_tile.cuh.
#pragma once
#include "attention_row.cuh"

namespace pft::cuda {

constexpr int kTileRows = 16;
constexpr int kGroup = 32;        // others that a warp takes at a time
constexpr int kColumnBlock = 64;  // output columns a block accumulates at a time

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

// f(row, column, sum_e rows[row][e] * others[column][e]) for the 16 x 32 products, each from the lane that
// holds it: the same lane for the same place in every call. Both operands zero-padded to `units`.
template <class T, class F>
__device__ __forceinline__ void tile_dot(View<const T> rows, View<const T> others, int pitch, int units,
                                         F f) {
  const int lane = int(threadIdx.x) % 32;
  if constexpr (kTensorCores<T>) {
    float d[4][4] = {};
    tile_products<T>(d, rows, others, pitch, units);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) f(lane / 4 + i / 2 * 8, n * 8 + lane % 4 * 2 + i % 2, d[n][i]);
    }
  } else {
    float d[kTileRows] = {};
    const View<const T> mine = others + lane * pitch;
    for (int u = 0; u < units; ++u) {
      const float4 y = load_as<float4>(mine + u * 4);
#pragma unroll
      for (int r = 0; r < kTileRows; ++r) {
        const float4 x = load_as<float4>(rows + r * pitch + u * 4);
        d[r] = fmaf(x.x, y.x, fmaf(x.y, y.y, fmaf(x.z, y.z, fmaf(x.w, y.w, d[r]))));
      }
    }
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) f(r, lane, d[r]);
  }
}

// A 16 x 64 accumulator spread over a warp.
template <class T>
struct TileSum {
  // 16-bit: eight mma tiles of 16 x 8. float32: a lane has four rows x four columns, twice.
  float d[8][4] = {};
};

// A power of two near x > 0 and its inverse, both normal numbers.
struct PowerOfTwo {
  float value, inverse;
};
__device__ __forceinline__ PowerOfTwo power_below(float x) {
  uint32_t exponent = __float_as_uint(x) >> 23;
  exponent = exponent < 1 ? 1 : exponent > 253 ? 253 : exponent;
  return {__uint_as_float(exponent << 23), __uint_as_float((254 - exponent) << 23)};
}

// sum += weights[16 x 32] * values[32 x columns], weights float32. On tensor cores a weight enters as two
// 16-bit parts, scaled by its row's largest (float16 has no small numbers), so that it loses no more than
// float32 accumulation does. Fewer weights than 16 rows (a power of two) are read again for the rows beyond.
template <class T>
__device__ __forceinline__ void tile_accumulate(TileSum<T>& sum, View<const float> weights, int weights_pitch,
                                                View<const T> values, int pitch, int units,
                                                int weight_rows = kTileRows) {
  const int lane = int(threadIdx.x) % 32;
  if constexpr (kTensorCores<T>) {
    constexpr int kSteps = kGroup / 16;
    const int g = lane / 4, t = lane % 4;
    float2 w[kSteps][4];  // as the fragments want them: rows g and g+8 alternating
    float largest[2] = {0.f, 0.f};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        w[step][i] = load_as<float2>(weights + ((g + i % 2 * 8) & (weight_rows - 1)) * weights_pitch +
                                     step * 16 + i / 2 * 8 + 2 * t);
        largest[i % 2] = fmaxf(largest[i % 2], fmaxf(fabsf(w[step][i].x), fabsf(w[step][i].y)));
      }
    }
    PowerOfTwo scale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x = largest[half];
      x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
      x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
      scale[half] = power_below(x);
    }
    TileSum<T> here;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t high[4], low[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float x = w[step][i].x * scale[i % 2].inverse, y = w[step][i].y * scale[i % 2].inverse;
        high[i] = pack_pair(x, y, T{});
        const float2 rounded = unpack_pair(high[i], T{});
        low[i] = pack_pair(x - rounded.x, y - rounded.y, T{});
      }
      const View<const T> row = values + (step * 16 + lane / 8 % 2 * 8 + lane % 8) * pitch + lane / 16 * 8;
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        if (pair * 2 < units) {
          uint32_t b[4];
          ldmatrix_x4<true>(b, row + pair * 16);
          const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
          mma_m16n8k16<T>(here.d[2 * pair], high, left);
          mma_m16n8k16<T>(here.d[2 * pair], low, left);
          mma_m16n8k16<T>(here.d[2 * pair + 1], high, right);
          mma_m16n8k16<T>(here.d[2 * pair + 1], low, right);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum.d[n][i] = fmaf(here.d[n][i], scale[i / 2].value, sum.d[n][i]);
    }
  } else {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int item = lane + 32 * part, quad = item / units, unit = item % units;
      if (quad >= 4) continue;
      for (int j = 0; j < kGroup; j += 4) {
        float4 w[4];
#pragma unroll
        for (int r = 0; r < 4; ++r)
          w[r] = load_as<float4>(weights + ((4 * quad + r) & (weight_rows - 1)) * weights_pitch + j);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float4 y = load_as<float4>(values + (j + i) * pitch + unit * 4);
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const float x = i == 0 ? w[r].x : i == 1 ? w[r].y : i == 2 ? w[r].z : w[r].w;
            float (&d)[4] = sum.d[4 * part + r];
            d[0] = fmaf(x, y.x, d[0]);
            d[1] = fmaf(x, y.y, d[1]);
            d[2] = fmaf(x, y.z, d[2]);
            d[3] = fmaf(x, y.w, d[3]);
          }
        }
      }
    }
  }
}

// f(row, column, value) for this lane's part of the accumulator.
template <class T, class F>
__device__ __forceinline__ void for_each_sum(const TileSum<T>& sum, int units, F f) {
  const int lane = int(threadIdx.x) % 32;
  if constexpr (kTensorCores<T>) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      if (n >= units) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) f(lane / 4 + i / 2 * 8, n * 8 + lane % 4 * 2 + i % 2, sum.d[n][i]);
    }
  } else {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int item = lane + 32 * part, quad = item / units, unit = item % units;
      if (quad >= 4) continue;
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int e = 0; e < 4; ++e) f(4 * quad + r, unit * 4 + e, sum.d[4 * part + r][e]);
      }
    }
  }
}

// Floats of scratch memory that reduce_tiles needs for a block of `warps`.
template <class T>
__host__ __device__ constexpr int64_t reduction_scratch(int warps, int64_t columns) {
  return int64_t(warps) / 2 * kTileRows * tile_units<T>(columns) * kPerUnit<T>;
}

// Adds the warps' accumulators, always in the same order, and calls f(row, column, sum). For all threads of
// the block, whose number of warps must be even.
template <class T, class F>
__device__ __forceinline__ void reduce_tiles(const TileSum<T>& sum, View<float> scratch, int units,
                                             int columns, F f) {
  const int width = units * kPerUnit<T>, warps = int(blockDim.x) / 32, warp = int(threadIdx.x) / 32;
  const int half = warps / 2;  // half the scratch: the second half of the warps goes first
  if (warp >= half) {
    for_each_sum(sum, units, [&](int row, int col, float value) {
      scratch[((warp - half) * kTileRows + row) * width + col] = value;
    });
  }
  __syncthreads();
  if (warp < half) {
    for_each_sum(sum, units, [&](int row, int col, float value) {
      scratch[(warp * kTileRows + row) * width + col] += value;
    });
  }
  __syncthreads();
  for (int e = int(threadIdx.x); e < kTileRows * columns; e += int(blockDim.x)) {
    const int row = e / columns, col = e % columns;
    float total = 0.f;
    for (int w = 0; w < half; ++w) total += scratch[(w * kTileRows + row) * width + col];
    f(row, col, total);
  }
  __syncthreads();
}

}  // namespace pft::cuda
