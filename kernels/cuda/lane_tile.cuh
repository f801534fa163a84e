// The two matrix products of attention with what lies between them in registers: a warp's query rows against
// kGroup keys, then those weights times the keys' values.
//
// 16-bit types: 16 rows, fragments of mma.sync; what comes out of one product goes into the next as it lies.
// float32: 32 rows, 8 x 4 products a lane by FFMA; weights change lanes through shared memory.
#pragma once
#include "dense_tile.cuh"

namespace pft::cuda {

template <class T>
struct LaneTile {
  static constexpr int kRows = 16, kLaneRows = 2, kLaneOthers = 8;  // of a warp; of a lane
  static constexpr int kColumns = 64, kLaneColumns = 16;            // of a sum
  static constexpr int kSumRows = 8, kSumCells = 4;

  __device__ static int lane() { return int(threadIdx.x) % 32; }
  __device__ static int row(int r) { return lane() / 4 + 8 * r; }
  __device__ static int other(int c) { return c / 2 * 8 + lane() % 4 * 2 + c % 2; }
  __device__ static int column(int c) { return other(c); }
  __device__ static float& cell(float (&sum)[8][4], int r, int c) { return sum[c / 2][2 * r + c % 2]; }
  // Over the lanes that share a row, the same bits in all of them.
  __device__ static float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
    return fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
  }
  __device__ static float row_sum(float x) {
    x += __shfl_xor_sync(kFullWarp, x, 1);
    return x + __shfl_xor_sync(kFullWarp, x, 2);
  }
};

// Rows of float32 tiles are cut into chunks of kChunk columns, so that their pitch is a constant: 11 units of
// 16 bytes. Values lie transposed, a row for each column.
constexpr int kChunk = 40, kChunkPitch = 44, kWeightsPitch = 40;

template <>
struct LaneTile<float> {
  static constexpr int kRows = 32, kLaneRows = 8, kLaneOthers = 4;
  static constexpr int kColumns = 40, kLaneColumns = 5;
  static constexpr int kSumRows = 8, kSumCells = 5;

  // Lanes 0 and 1 share their columns, 0 and 2 their row: of every 16 lanes' 16-byte reads two agree.
  __device__ static int lane_row() {
    const int lane = int(threadIdx.x) % 32;
    return (lane & 1) | (lane >> 2 & 2);
  }
  __device__ static int lane_column() {
    const int lane = int(threadIdx.x) % 32;
    return (lane >> 1 & 3) | (lane >> 2 & 4);
  }
  __device__ static int row(int r) { return lane_row() + 4 * r; }
  __device__ static int other(int c) { return lane_column() + 8 * c; }
  __device__ static int column(int c) { return lane_column() + 8 * c; }
  __device__ static float& cell(float (&sum)[8][5], int r, int c) { return sum[r][c]; }
  __device__ static float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
    x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 4));
    return fmaxf(x, __shfl_xor_sync(kFullWarp, x, 16));
  }
  __device__ static float row_sum(float x) {
    x += __shfl_xor_sync(kFullWarp, x, 2);
    x += __shfl_xor_sync(kFullWarp, x, 4);
    return x + __shfl_xor_sync(kFullWarp, x, 16);
  }
};

template <class T>
using LaneProducts = float[LaneTile<T>::kLaneRows][LaneTile<T>::kLaneOthers];
template <class T>
using LaneSums = float[LaneTile<T>::kSumRows][LaneTile<T>::kSumCells];

// d[r][c] += sum_e rows[4r][e] * others[8c][e] for the lane's rows and its first kUsed columns.
template <int kUsed, int kColumns>
__device__ __forceinline__ void register_tile(float (&d)[8][kColumns], View<const float> rows, int row_pitch,
                                              View<const float> others, int pitch, int units) {
  const View<const float> x = rows + LaneTile<float>::lane_row() * row_pitch;
  const View<const float> y = others + LaneTile<float>::lane_column() * pitch;
#pragma unroll 1
  for (int u = 0; u < units; ++u) {
    float4 b[kUsed];
#pragma unroll
    for (int c = 0; c < kUsed; ++c) b[c] = load_as<float4>(y + (8 * c * pitch + 4 * u));
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      const float4 a = load_as<float4>(x + (4 * r * row_pitch + 4 * u));
#pragma unroll
      for (int c = 0; c < kUsed; ++c)
        d[r][c] = fmaf(a.x, b[c].x, fmaf(a.y, b[c].y, fmaf(a.z, b[c].z, fmaf(a.w, b[c].w, d[r][c]))));
    }
  }
}

// Rows of T in shared memory as lane_products reads them; see kChunk for float32. Room for `room` rows, of
// which `padded` are written, those from `rows` on with zeros.
template <class T>
__device__ __forceinline__ void stage_lanes(View<T> to, int room, View<const T> from, int64_t stride_row,
                                            int rows, int padded, int dim, bool aligned) {
  if constexpr (kTensorCores<T>) {
    stage_tile<T>(to, tile_pitch<T>(dim), from, stride_row, rows, padded, 0, dim, tile_units<T>(dim),
                  aligned);
  } else {
    for (int col0 = 0; col0 < dim; col0 += kChunk) {
      const int cols = dim - col0 < kChunk ? dim - col0 : kChunk;
      stage_tile<T>(to + col0 / kChunk * room * kChunkPitch, kChunkPitch, from, stride_row, rows, padded,
                    col0, cols, units_of<T>(cols), aligned);
    }
  }
}

// Products of LaneTile<T>::kRows rows, from `row0` on, with kGroup others, from `other0` on; each array has
// room for so many rows.
template <class T>
__device__ __forceinline__ void lane_products(LaneProducts<T>& s, View<const T> rows, int row0, int row_room,
                                              View<const T> others, int other0, int other_room, int dim) {
  if constexpr (kTensorCores<T>) {
    const int pitch = tile_pitch<T>(dim);
    float d[4][4] = {};
    tile_products<T>(d, rows + row0 * pitch, others + other0 * pitch, pitch, tile_units<T>(dim));
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int c = 0; c < 8; ++c) s[r][c] = d[c / 2][2 * r + c % 2];
    }
  } else {
#pragma unroll
    for (int r = 0; r < 8; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) s[r][c] = 0.f;
    }
    for (int col0 = 0; col0 < dim; col0 += kChunk) {
      const int cols = dim - col0 < kChunk ? dim - col0 : kChunk, chunk = col0 / kChunk;
      register_tile<4>(s, rows + (chunk * row_room + row0) * kChunkPitch, kChunkPitch,
                       others + (chunk * other_room + other0) * kChunkPitch, kChunkPitch,
                       units_of<float>(cols));
    }
  }
}

// Weights and what they lack in 16 bits, as the left operand of the step-th 16 keys.
template <class T>
__device__ __forceinline__ void weight_parts(uint32_t (&high)[4], uint32_t (&low)[4], const float (&w)[2][8],
                                             int step) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int c = 4 * step + i / 2 * 2;
    const float x = w[i % 2][c], y = w[i % 2][c + 1];
    high[i] = pack_pair(x, y, T{});
    const float2 rounded = unpack_pair(high[i], T{});
    low[i] = pack_pair(x - rounded.x, y - rounded.y, T{});
  }
}

// sum += weights * values[kGroup x 8 tiles], values zero-padded to whole pairs of tiles.
template <class T>
__device__ __forceinline__ void add_weighted(LaneSums<T>& sum, const LaneProducts<T>& w, View<const T> values,
                                             int pitch, int tiles) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int step = 0; step < kGroup / 16; ++step) {
    uint32_t high[4], low[4];
    weight_parts<T>(high, low, w, step);
    const View<const T> row = values + (step * 16 + lane / 8 % 2 * 8 + lane % 8) * pitch + lane / 16 * 8;
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      if (pair * 2 < tiles) {
        uint32_t b[4];
        ldmatrix_x4<true>(b, row + pair * 16);
        const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
        mma_m16n8k16<T>(sum[2 * pair], high, left);
        mma_m16n8k16<T>(sum[2 * pair], low, left);
        if (pair * 2 + 1 < tiles) {
          mma_m16n8k16<T>(sum[2 * pair + 1], high, right);
          mma_m16n8k16<T>(sum[2 * pair + 1], low, right);
        }
      }
    }
  }
}

// float32 values of up to kKeys keys, a row for each of their columns: an odd number of 16-byte units.
template <int kKeys>
constexpr int kValuesPitch = kKeys + 4;

// Columns [col0, col0 + cols) of `rows` keys, zeros up to `padded` and up to as many columns as are used.
template <int kKeys>
__device__ __forceinline__ void stage_transposed(View<float> to, View<const float> from, int64_t stride_row,
                                                 int rows, int padded, int col0, int cols, bool aligned) {
  constexpr int kPitch = kValuesPitch<kKeys>;
  const int used = cols <= 16 ? 16 : kChunk;
  const bool whole = aligned && cols % 4 == 0;
  for (int e = int(threadIdx.x); e < kKeys * (used / 4); e += int(blockDim.x)) {
    const int row = e % kKeys, unit = e / kKeys;
    if (row >= padded) continue;
    const View<const float> source = from + (row * stride_row + col0);
    float4 x = make_float4(0.f, 0.f, 0.f, 0.f);
    if (row < rows && unit * 4 < cols) {
      if (whole) {
        x = load_as<float4>(source + unit * 4);
      } else {
        x.x = source[unit * 4];
        if (unit * 4 + 1 < cols) x.y = source[unit * 4 + 1];
        if (unit * 4 + 2 < cols) x.z = source[unit * 4 + 2];
        if (unit * 4 + 3 < cols) x.w = source[unit * 4 + 3];
      }
    }
    const View<float> at = to + (unit * 4 * kPitch + row);
    at[0] = x.x;
    at[kPitch] = x.y;
    at[2 * kPitch] = x.z;
    at[3 * kPitch] = x.w;
  }
}

// sum += weights * values, of `cols` columns, transposed; the weights pass through `scratch`, the warp's own.
template <int kKeys>
__device__ __forceinline__ void add_weighted(LaneSums<float>& sum, const LaneProducts<float>& w,
                                             View<float> scratch, View<const float> values, int cols) {
  __syncwarp();
#pragma unroll
  for (int r = 0; r < 8; ++r) {
#pragma unroll
    for (int c = 0; c < 4; ++c)
      scratch[LaneTile<float>::row(r) * kWeightsPitch + LaneTile<float>::other(c)] = w[r][c];
  }
  __syncwarp();
  if (cols <= 16) {
    register_tile<2>(sum, scratch, kWeightsPitch, values, kValuesPitch<kKeys>, kGroup / 4);
  } else {
    register_tile<5>(sum, scratch, kWeightsPitch, values, kValuesPitch<kKeys>, kGroup / 4);
  }
}

}  // namespace pft::cuda
