// Weighted sums of listed rows by tensor cores, 16-bit types: the weights of 16 query rows are spread over a
// tile [16, keys] in shared memory, zero where there is none, and multiplied by all values. A warp's 64 keys'
// values stay in its registers; the warps' sums are then added, always in the same order. The entries of a
// row must be distinct.
//
// A float32 weight enters as two 16-bit parts, scaled by a power of two that the caller chooses for each row:
// float16 has no small numbers.
#pragma once
#include "key_tiles.cuh"

namespace pft::cuda {

constexpr int kValueColumns = kChannels;

template <class T>
struct ValueTiles {
  View<float> down;    // [2, 16]: what undoes a row's scale, for this tile and the next one
  View<uint32_t> bad;  // whether any value is not finite
  View<T> weights;     // [parts, 16, pitch]
  View<float> sums;    // [half of the warps, 16, columns]
  View<T> values;      // on their way into registers, before there are weights and sums
  int pitch, lane, warp, warps;

  __device__ ValueTiles(SharedMemory& shared, int parts) {
    const int thread = computed_anew(int(threadIdx.x));
    lane = thread % 32, warp = thread / 32, warps = computed_anew(int(blockDim.x)) / 32;
    pitch = pitch_of<T>(warps * kWarpKeys);
    down = shared.take<float>(2 * kProductRows);
    bad = shared.take<uint32_t>(1);
    SharedMemory again = shared;
    weights = shared.take<T>(parts * kProductRows * pitch);
    sums = shared.take<float>((warps + 1) / 2 * kProductRows * kValueColumns);
    values = again.take<T>(warps * 32 * kChannels);
  }
  static int64_t bytes(int parts, int warps) {
    return 4 * 2 * kProductRows + 16 +
           int64_t(sizeof(T)) * parts * kProductRows * pitch_of<T>(warps * kWarpKeys) +
           4 * int64_t((warps + 1) / 2) * kProductRows * kValueColumns;
  }
};

// Columns [0, cols) of 64 keys, as mma.sync wants them. What is not finite would spoil every row of a tile:
// it is zero here, and add_bad_values() deals with it.
template <class T>
struct ValueFragments {
  uint32_t words[kWarpKeys / 16][kValueColumns / 8][2];

  __device__ __forceinline__ ValueFragments(const ValueTiles<T>& tiles, View<const T> v, int64_t stride_row,
                                            int keys, int cols, bool aligned) {
    const int lane = tiles.lane, warp = tiles.warp;
    const View<T> mine = tiles.values + warp * 32 * kChannels;
    const View<T> row = mine + (lane / 8 % 2 * 8 + lane % 8) * kChannels + lane / 16 * 8;
    bool finite = true;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int key = warp * kWarpKeys + part * 32;
      finite &=
          stage_warp_rows<true>(lane, mine, v + key * stride_row, stride_row, keys - key, cols, aligned);
#pragma unroll
      for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int n = 0; n < kValueColumns / 8; n += 2) {
          const bool both = n + 1 < kValueColumns / 8;
          uint32_t x[4];  // 16 keys, two tiles of eight columns
          ldmatrix_x4<true>(x, row + (step * 16 * kChannels + n * 8 - (both ? 0 : lane / 16 * 8)));
          words[part * 2 + step][n][0] = x[0], words[part * 2 + step][n][1] = x[1];
          if (both) words[part * 2 + step][n + 1][0] = x[2], words[part * 2 + step][n + 1][1] = x[3];
        }
      }
    }
    if (!finite) atomic_or(tiles.bad, 1u);  // any order gives the same bits
  }
};

// Spreads the entries of the rows [i0, i0 + 16) over the tile. entries.scale(i) returns the factor of a row's
// weights, the same in all lanes; entries.get(i, t, &key) the weight.
template <int kParts, class T, class Entries>
__device__ __forceinline__ void spread_entries(const ValueTiles<T>& tiles, int kept, int i0, int last,
                                               View<float> down, const Entries& entries) {
  const int warp = tiles.warp, warps = tiles.warps, lane = tiles.lane;
  for (int r = warp; r < kProductRows && i0 + r < last; r += warps) {
    const float up = entries.scale(i0 + r);
    const View<T> to = tiles.weights + r * tiles.pitch;
    if (lane == 0) down[r] = 1.f / up;  // a power of two
#pragma unroll 1                        // more costs registers, which hold the values
    for (int t = lane; t < kept; t += 32) {
      int key;
      const float weight = entries.get(i0 + r, t, &key) * up;
      const T high = from_float<T>(weight);
      to[key] = high;
      if constexpr (kParts == 2) {
        const float rest = weight - to_float(high);
        to[key + kProductRows * tiles.pitch] = from_float<T>(is_finite(rest) ? rest : 0.f);
      }
    }
  }
}

// This warp's part of a tile's sums: its 64 keys.
template <class T>
struct ValueSums {
  float d[kValueColumns / 8][4] = {};

  template <int kParts>
  __device__ __forceinline__ void multiply(const ValueTiles<T>& tiles, const ValueFragments<T>& values,
                                           int cols) {
    const int lane = computed_anew(tiles.lane), key = tiles.warp * kWarpKeys;
    const View<T> row = tiles.weights + lane % 16 * tiles.pitch + key + lane / 16 * 8;
#pragma unroll
    for (int step = 0; step < kWarpKeys / 16; ++step) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        __syncwarp();  // all weights at once would cost more registers than there are
        uint32_t w[4];
        ldmatrix_x4<false>(w, row + part * kProductRows * tiles.pitch + step * 16);
#pragma unroll
        for (int n = 0; n < kValueColumns / 8; ++n) {
          if (n * 8 < cols) mma_m16n8k16<T>(d[n], w, values.words[step][n]);
        }
      }
    }
  }

  // Joins the sums of the block's warps in pairs, in shared memory; ends with a barrier.
  __device__ __forceinline__ void join(const ValueTiles<T>& tiles) {
    const int lane = tiles.lane, warp = tiles.warp, warps = tiles.warps;
    const int half = (warps + 1) / 2;
    const View<float> mine =
        tiles.sums + warp % half * (kProductRows * kValueColumns) + lane / 4 * kValueColumns + lane % 4 * 2;
    const auto each = [&](auto f) {  // f(two sums, their place)
#pragma unroll
      for (int n = 0; n < kValueColumns / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; i += 2) f(d[n][i], d[n][i + 1], mine + i / 2 * 8 * kValueColumns + n * 8);
      }
    };
    const auto write = [](float& x, float& y, View<float> at) { store_as(at, make_float2(x, y)); };
    if (warp >= half) each(write);
    __syncthreads();
    if (warp < half) {
      if (warp + half < warps) {
        each([](float& x, float& y, View<float> at) {
          const float2 other = load_as<float2>(at);
          x += other.x;
          y += other.y;
        });
      }
      each(write);
    }
    __syncthreads();
  }
};

// Zeroes this warp's keys of the tile, which no other warp reads.
template <int kParts, class T>
__device__ __forceinline__ void clear_entries(const ValueTiles<T>& tiles) {
  constexpr int units = kWarpKeys / kPerUnit<T>;
  const int lane = tiles.lane, key = tiles.warp * kWarpKeys;
  const View<T> mine = tiles.weights + key + lane % units * kPerUnit<T>;
#pragma unroll 1  // more costs registers, which hold the values
  for (int r = lane / units; r < kParts * kProductRows; r += 32 / units)
    store_as(mine + r * tiles.pitch, make_uint4(0, 0, 0, 0));
}

// finish(i, col, sum) for the rows [first, last) and the columns [0, cols), cols <= kValueColumns, each in
// one thread: sum_t weight(i, t) v[key(i, t)].
template <int kParts, class T, class Entries, class Finish>
__device__ __forceinline__ void for_each_value_sum(const ValueTiles<T>& tiles, View<const T> v,
                                                   int64_t stride_row, bool aligned, int keys, int cols,
                                                   int kept, int first, int last, const Entries& entries,
                                                   Finish finish) {
  const int warp = tiles.warp, warps = tiles.warps, half = (warps + 1) / 2;
  const int col = tiles.lane * 2;  // of this lane, and the next one, when a row's sums are joined
  if (threadIdx.x == 0) tiles.bad[0] = 0;
  __syncthreads();
  const ValueFragments<T> values(tiles, v, stride_row, keys, cols, aligned);
  __syncthreads();  // the values have been read
  clear_entries<kParts>(tiles);
  __syncthreads();
  spread_entries<kParts>(tiles, kept, first, last, tiles.down, entries);
  __syncthreads();
  for (int i0 = first; i0 < last; i0 += kProductRows) {
    const int turn = (i0 - first) / kProductRows % 2;
    ValueSums<T> sums;
    sums.template multiply<kParts>(tiles, values, cols);
    __syncwarp();
    clear_entries<kParts>(tiles);
    sums.join(tiles);  // after it the tile is zero
    for (int r = warp; r < kProductRows && i0 + r < last; r += warps) {
      if (col >= cols) continue;
      float2 sum = make_float2(0.f, 0.f);
      for (int w = 0; w < half; ++w) {
        const float2 part = load_as<float2>(tiles.sums + ((w * kProductRows + r) * kValueColumns + col));
        sum.x += part.x;
        sum.y += part.y;
      }
      const float down = tiles.down[turn * kProductRows + r];
      finish(i0 + r, col, sum.x * down);
      if (col + 1 < cols) finish(i0 + r, col + 1, sum.y * down);
    }
    if (i0 + kProductRows < last)
      spread_entries<kParts>(tiles, kept, i0 + kProductRows, last, tiles.down + (1 - turn) * kProductRows,
                             entries);
    __syncthreads();
  }
}

// add(i, col, weight * value) for every listed value that is not finite, a row by one warp. After a barrier
// that follows the sums.
template <class T, class Entries, class Add>
__device__ __forceinline__ void add_bad_values(const ValueTiles<T>& tiles, View<const T> v,
                                               int64_t stride_row, int cols, int kept, int first, int last,
                                               const Entries& entries, Add add) {
  if (!tiles.bad[0]) return;
  for (int i = first + tiles.warp; i < last; i += tiles.warps) {
#pragma unroll 1
    for (int t = 0; t < kept; ++t) {
      int key;
      const float weight = entries.get(i, t, &key);
#pragma unroll 1
      for (int col = tiles.lane; col < cols; col += 32) {
        const float value = to_float(v[key * stride_row + col]);
        if (!is_finite(value)) add(i, col, weight * value);
      }
    }
  }
}

}  // namespace pft::cuda
