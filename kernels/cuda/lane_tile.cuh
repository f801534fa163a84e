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
  template <int kTiles>
  __device__ static float& cell(float (&sum)[kTiles][4], int r, int c) {
    return sum[c / 2][2 * r + c % 2];
  }
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

// Weights relative to a row's largest logit enter their product as 2^kWeightExponent times what they are:
// float16 takes them in two parts, and has no small numbers. What the parts lose is then 2^-40 of the row's
// largest weight, so at most 2^-40 M V in a sum over M keys with values up to V: no more than float16's
// smallest normal number up to M V = 2^26.
template <class T>
constexpr float kWeightExponent = 0.f;
template <>
constexpr float kWeightExponent<half_t> = 15.f;
template <class T>
constexpr float kWeightScale = kWeightExponent<T> > 0.f ? 0x1p15f : 1.f;

// Weight of a logit above `from`, the row's largest.
template <class T>
__device__ __forceinline__ float scaled_weight(float above) {
  return exp2_of_unit(fmaf(above, kLog2E, kWeightExponent<T>));
}

template <class T>
using LaneProducts = float[LaneTile<T>::kLaneRows][LaneTile<T>::kLaneOthers];
template <class T>
using LaneSums = float[LaneTile<T>::kSumRows][LaneTile<T>::kSumCells];

// d[r][c] += sum_e rows[r][e] * others[8c][e] for the lane's rows and its first kUsed columns.
template <int kUsed, int kColumns>
__device__ __forceinline__ void register_tile(float (&d)[8][kColumns], const View<const float> (&rows)[8],
                                              View<const float> others, int pitch, int units) {
  const View<const float> y = others + LaneTile<float>::lane_column() * pitch;
#pragma unroll 1
  for (int u = 0; u < units; ++u) {
    float4 b[kUsed];
#pragma unroll
    for (int c = 0; c < kUsed; ++c) b[c] = load_as<float4>(y + (8 * c * pitch + 4 * u));
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      const float4 a = load_as<float4>(rows[r] + 4 * u);
#pragma unroll
      for (int c = 0; c < kUsed; ++c)
        d[r][c] = fmaf(a.x, b[c].x, fmaf(a.y, b[c].y, fmaf(a.z, b[c].z, fmaf(a.w, b[c].w, d[r][c]))));
    }
  }
}

// A lane's rows of an array, `mask` of whose rows exist; beyond, they are read again.
struct LaneRows {
  View<const float> at[8];

  __device__ __forceinline__ LaneRows(View<const float> rows, int pitch, int mask = 31) {
#pragma unroll
    for (int r = 0; r < 8; ++r) at[r] = rows + (LaneTile<float>::row(r) & mask) * pitch;
  }
};

// Rows of T in shared memory as lane_products reads them; see kChunk for float32. Room for `room` rows, of
// which `padded` are written, those from `rows` on with zeros.
template <class T>
__device__ __forceinline__ void stage_lanes(View<SharedType<T>> to, int room, View<const GlobalType<T>> from,
                                            int64_t stride_row, int rows, int padded, int dim, bool aligned) {
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
__device__ __forceinline__ void lane_products(LaneProducts<T>& s, View<const SharedType<T>> rows, int row0,
                                              int row_room, View<const SharedType<T>> others, int other0,
                                              int other_room, int dim) {
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
      const LaneRows mine(rows + (chunk * row_room + row0) * kChunkPitch, kChunkPitch);
      register_tile<4>(s, mine.at, others + (chunk * other_room + other0) * kChunkPitch, kChunkPitch,
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

// Weighted sums of values that a warp's lanes hold.
template <class T>
struct WeightedSums {
  LaneSums<T> sum = {};

  __device__ __forceinline__ void scale(int r, float factor) {
#pragma unroll
    for (int c = 0; c < LaneTile<T>::kLaneColumns; ++c) LaneTile<T>::cell(sum, r, c) *= factor;
  }
  __device__ __forceinline__ void join(LaneSums<T>& to) const {
#pragma unroll
    for (int n = 0; n < LaneTile<T>::kSumRows; ++n) {
#pragma unroll
      for (int i = 0; i < LaneTile<T>::kSumCells; ++i) to[n][i] = sum[n][i];
    }
  }
};

// Elements from one key's values to the next one's in shared memory, tensor cores only.
template <class T>
__device__ __forceinline__ int value_pitch(int cols) {
  return tile_pitch<T>(cols);
}

// sums += weights * values[kGroup x cols], values zero-padded to whole pairs of tiles of eight columns. Their
// array has room for `room` keys.
template <class T>
__device__ __forceinline__ void add_weighted(WeightedSums<T>& sums, const LaneProducts<T>& w,
                                             View<const SharedType<T>> values, int room, int cols) {
  (void)room;
  const int lane = int(threadIdx.x) % 32, pitch = value_pitch<T>(cols), tiles = int(ceil_div(cols, 8));
  LaneSums<T>& sum = sums.sum;
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

// float32 values of up to `keys` keys, a multiple of 32, have a row for each of their columns: an odd number
// of 16-byte units.
__host__ __device__ constexpr int values_pitch(int keys) { return keys + 4; }

// Elements that as many rows of queries or keys take in shared memory, and keys' values of up to kColumns
// columns.
template <class T>
__host__ __device__ constexpr int64_t key_elements(int64_t rows, int64_t dim) {
  return kTensorCores<T> ? rows * tile_pitch<T>(dim) : rows * ceil_div(dim, kChunk) * kChunkPitch;
}
template <class T>
__host__ __device__ constexpr int64_t value_elements(int64_t keys, int64_t dim) {
  const int64_t cols = dim < LaneTile<T>::kColumns ? dim : LaneTile<T>::kColumns;
  return kTensorCores<T> ? keys * tile_pitch<T>(cols) : int64_t(kChunk) * values_pitch(int(keys));
}

// Columns [col0, col0 + cols) of `rows` keys, zeros up to `padded` (a multiple of 32) and up to as many
// columns as are used. A warp takes 32 keys and every so many-th unit of 16 bytes.
__device__ __forceinline__ void stage_transposed(View<float> to, int pitch, View<const float> from,
                                                 int64_t stride_row, int rows, int padded, int col0, int cols,
                                                 bool aligned) {
  const int used = cols <= 16 ? 16 : kChunk, warps = int(blockDim.x) / 32, warp = int(threadIdx.x) / 32;
  const bool whole = aligned && cols % 4 == 0;
  const int stretches = padded / 32, sharers = warps >= stretches ? warps / stretches : 1;
  const int own = warp / sharers;
  for (int stretch = own; stretch < stretches; stretch += warps) {
    const int row = stretch * 32 + int(threadIdx.x) % 32;
    const View<const float> source = from + (row * stride_row + col0);
    for (int unit = warp % sharers; unit * 4 < used; unit += sharers) {
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
      const View<float> at = to + (unit * 4 * pitch + row);
      at[0] = x.x;
      at[pitch] = x.y;
      at[2 * pitch] = x.z;
      at[3 * pitch] = x.w;
    }
  }
}

// sums += weights * transposed values of `cols` columns.
__device__ __forceinline__ void add_weighted(WeightedSums<float>& sums, const LaneRows& weights,
                                             View<const float> values, int pitch, int cols) {
  if (cols <= 16) {
    register_tile<2>(sums.sum, weights.at, values, pitch, kGroup / 4);
  } else {
    register_tile<5>(sums.sum, weights.at, values, pitch, kGroup / 4);
  }
}

// Columns [col0, col0 + cols) of `rows` keys' values as add_weighted reads them; room for `room` keys, zeros
// up to `padded`.
template <class T>
__device__ __forceinline__ void stage_values(View<SharedType<T>> to, int room, View<const GlobalType<T>> from,
                                             int64_t stride_row, int rows, int padded, int col0, int cols,
                                             bool aligned) {
  if constexpr (kTensorCores<T>) {
    stage_tile<T>(to, value_pitch<T>(cols), from, stride_row, rows, padded, col0, cols, tile_units<T>(cols),
                  aligned);
  } else {
    stage_transposed(to, values_pitch(room), from, stride_row, rows, padded, col0, cols, aligned);
  }
}

// Weights from the lanes that made them to those that need them, through `scratch`, the warp's own.
__device__ __forceinline__ LaneRows exchange_weights(const LaneProducts<float>& w, View<float> scratch) {
  __syncwarp();
#pragma unroll
  for (int r = 0; r < 8; ++r) {
#pragma unroll
    for (int c = 0; c < 4; ++c)
      scratch[LaneTile<float>::row(r) * kWeightsPitch + LaneTile<float>::other(c)] = w[r][c];
  }
  __syncwarp();
  return LaneRows(scratch, kWeightsPitch);
}

}  // namespace pft::cuda
