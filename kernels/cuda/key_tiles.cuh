// All products of 16 query rows with every key by tensor cores, 16-bit types: those that are listed are then
// picked from shared memory, four bytes for an entry instead of a row of keys.
#pragma once
#include "device.cuh"

namespace pft::cuda {

constexpr int kTileWarps = 16;  // at most
constexpr int kWarpKeys = 64;
constexpr int kProductRows = 16;
constexpr int kChannels = 40;  // at most, in halves of the 16-channel steps of mma.sync
constexpr int kHalves = kChannels / 8;
constexpr int kSteps = (kHalves + 1) / 2;
constexpr int kQueryPitch = pitch_of<half_t>(16 * kSteps);

// Columns [0, cols) of this warp's next 32 rows on their way into fragments, zeros up to kChannels and where
// there are no rows: [32, kChannels], the warp's own. Where `finite`, what is not finite is left out too; the
// result tells whether there was any in this lane's row.
template <bool kFinite, class T>
__device__ __forceinline__ bool stage_warp_rows(int lane, View<T> to, View<const T> from, int64_t stride_row,
                                                int rows, int cols, bool aligned) {
  constexpr int per = kPerUnit<T>;
  const int row = lane;
  const View<const T> source = from + row * stride_row;
  bool finite = true;
  __syncwarp();   // the rows before have been read
#pragma unroll 1  // more costs registers, which hold the fragments
  for (int col = 0; col < kChannels; col += per) {
    float x[per] = {};
    if (row < rows && aligned && col < cols) {
      unpack(load_as<uint4>(source + col), x, T{});
    } else if (row < rows) {
#pragma unroll
      for (int i = 0; i < per; ++i) x[i] = col + i < cols ? to_float(source[col + i]) : 0.f;
    }
#pragma unroll
    for (int i = 0; kFinite && i < per; ++i) {
      finite &= is_finite(x[i]);
      x[i] = is_finite(x[i]) ? x[i] : 0.f;
    }
    store_as(to + row * kChannels + col, pack(x, T{}));  // exact: the values came from T
  }
  __syncwarp();
  return finite;
}

// A warp's 64 keys in registers, as the fragments that mma.sync wants.
template <class T>
struct KeyFragments {
  uint32_t words[kWarpKeys / 8][kHalves];

  // `scratch`: 32 x kChannels for each warp.
  __device__ __forceinline__ KeyFragments(View<T> scratch, View<const T> k, int64_t stride_row, int keys,
                                          int dim, bool aligned) {
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    const View<T> mine = scratch + warp * 32 * kChannels;
    const View<T> row = mine + (lane / 16 * 8 + lane % 8) * kChannels + lane / 8 % 2 * 8;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int key = warp * kWarpKeys + part * 32;
      stage_warp_rows<false>(lane, mine, k + key * stride_row, stride_row, keys - key, dim, aligned);
#pragma unroll
      for (int n = 0; n < 4; n += 2) {
#pragma unroll
        for (int half = 0; half < kHalves; half += 2) {
          const bool both = half + 1 < kHalves;
          uint32_t x[4];  // two tiles of eight keys, two halves of a step
          ldmatrix_x4<false>(x, row + (n * 8 * kChannels + half * 8 - (both ? 0 : lane / 8 % 2 * 8)));
          words[part * 4 + n][half] = x[0], words[part * 4 + n + 1][half] = x[2];
          if (both) words[part * 4 + n][half + 1] = x[1], words[part * 4 + n + 1][half + 1] = x[3];
        }
      }
    }
  }

  // products[row][key] of 16 query rows (pitch kQueryPitch, zeros up to `steps` times 16 channels).
  __device__ __forceinline__ void multiply(View<const T> queries, View<float> products, int pitch,
                                           int steps) const {
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    const View<const T> row = queries + lane % 16 * kQueryPitch + lane / 16 * 8;
    uint32_t query[kSteps][4];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (step < steps) ldmatrix_x4<false>(query[step], row + step * 16);
    }
    const View<float> to = products + lane / 4 * pitch + warp * kWarpKeys + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < kWarpKeys / 8; ++n) {
      float d[4] = {};
      if (n % 2 == 0) __syncwarp();  // all sums at once would cost more registers than there are
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const uint32_t key[2] = {words[n][2 * step], 2 * step + 1 < kHalves ? words[n][2 * step + 1] : 0u};
        if (step < steps) mma_m16n8k16<T>(d, query[step], key);
      }
      store_as(to + n * 8, make_float2(d[0], d[1]));
      store_as(to + 8 * pitch + n * 8, make_float2(d[2], d[3]));
    }
  }
};

// Shared memory for them: two tiles of queries, this one and the next, and one of products, where the keys
// pass by before.
template <class T>
struct ProductTiles {
  View<T> queries, keys;
  View<float> products;
  int pitch;

  __device__ ProductTiles(SharedMemory& shared, int warps) : pitch(pitch_for(warps)) {
    queries = shared.take<T>(2 * kProductRows * kQueryPitch);
    SharedMemory again = shared;
    products = shared.take<float>(kProductRows * pitch);
    keys = again.take<T>(warps * 32 * kChannels);
  }
  __host__ __device__ static constexpr int pitch_for(int warps) { return warps * kWarpKeys + 8; }
  static int64_t bytes(int warps) {
    return 2 * kProductRows * kQueryPitch * int64_t(sizeof(T)) + kProductRows * int64_t(pitch_for(warps)) * 4;
  }
  // Whether a warp's registers and a block's warps are enough.
  static bool fit(int64_t keys, int64_t dim) {
    return keys > 0 && keys <= kTileWarps * kWarpKeys && dim <= kChannels;
  }
};

// Calls use(i, products) in one warp for every query row of [first, last), which may write over the products.
template <class T, class Use>
__device__ __forceinline__ void for_each_product_row(const ProductTiles<T>& tiles, const Strided<const T>& q,
                                                     const Strided<const T>& k, int64_t b, int keys, int dim,
                                                     int first, int last, Use use) {
  const int warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32, steps = int(ceil_div(dim, 16));
  const View<const T> queries = q.head(b);
  const auto tile_of = [&](int i0) {
    return tiles.queries + (i0 - first) / kProductRows % 2 * kProductRows * kQueryPitch;
  };
  const auto stage = [&](int i0) {
    const int rows = last - i0 < kProductRows ? last - i0 : kProductRows;
    stage_tile<T>(tile_of(i0), kQueryPitch, queries + i0 * q.stride_row, q.stride_row, rows, kProductRows, 0,
                  dim, 2 * steps, q.aligned);
  };
  stage(first);
  const KeyFragments<T> fragments(tiles.keys, k.head(b), k.stride_row, keys, dim, k.aligned);
  finish_staging();
  for (int i0 = first; i0 < last; i0 += kProductRows) {
    fragments.multiply(tile_of(i0), tiles.products, tiles.pitch, steps);
    if (i0 + kProductRows < last) stage(i0 + kProductRows);
    __syncthreads();  // the products are there
    for (int r = warp; r < kProductRows && i0 + r < last; r += warps)
      use(i0 + r, tiles.products + r * tiles.pitch);
    finish_staging();  // the products are used
  }
}

}  // namespace pft::cuda
