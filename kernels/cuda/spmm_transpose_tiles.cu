// Transposed SpMM by dense tiles: the entries of 16 query rows are spread over a tile [16, keys] in shared
// memory, zero where there is none, and out[keys, columns] += tile^T x[16, columns]. A warp owns 64 keys,
// whose sums stay in its registers from the first row to the last: no atomics, one order, the same bits in
// every run.
//
// All N*M*D products are computed, however few entries there are: tensor cores do so in less time than an
// entry's row of accumulators takes to read and write, FFMA where there are many entries. A float32 weight
// enters tensor cores as two 16-bit parts; for float16, which has no small numbers, scaled by the tile's
// largest.
#include <type_traits>

#include "transpose_args.cuh"

namespace pft::cuda {
namespace {

constexpr int kMostWarps = 16;
constexpr int kWarpKeys = 64;
constexpr int kRows = 16;     // query rows of a tile
constexpr int kColumns = 40;  // of x, in a block

template <class T>
constexpr bool kTensor = sizeof(T) == 2;
// A weight in shared memory: one float, or parts of T that add up to it.
template <class TA, class T>
constexpr int kParts = kTensor<T> && sizeof(TA) == 4 ? 2 : 1;
template <class TA, class T>
constexpr bool kScaled = kParts<TA, T> == 2 && std::is_same<T, half_t>::value;

// Sums of 64 keys x 40 columns over a warp. 16-bit: four times five mma tiles of 16 x 8. float32: a lane has
// eight keys x ten columns.
template <class T>
struct KeySums {
  float d[4][5][4] = {};
};
template <>
struct KeySums<float> {
  float d[8][10] = {};
};

template <class T>
struct TransposeTile {
  View<T> x;            // [16, kXPitch]
  View<float> largest;  // [kMostWarps]
  View<uint32_t>
      head;         // the block's window-head, for the end of the kernel: registers hold the sums until then
  View<T> weights;  // [parts, 16, pitch]
  View<float> scratch;  // [warps, 16, columns], where the weights were
  View<uint32_t> bad;   // a bit for every query row whose x is not finite
  int pitch;

  // whole pairs of mma tiles, and an odd number of units
  static constexpr int kXPitch = kTensor<T> ? pitch_of<T>(round_up(kColumns, 16)) : kColumns;

  __device__ TransposeTile(SharedMemory& shared, int parts, int warps, int queries)
      : pitch(pitch_of<T>(warps * kWarpKeys)) {
    x = shared.take<T>(kRows * kXPitch);  // arrays of fixed size first: their addresses take no registers
    largest = shared.take<float>(kMostWarps);
    head = shared.take<uint32_t>(2);
    SharedMemory again = shared;
    weights = shared.take<T>(space(parts, warps));
    scratch = again.take<float>(kTensor<T> ? warps * 16 * kColumns : 0);
    bad = shared.take<uint32_t>(ceil_div(queries, 32));
  }
  // Elements of T for the weights, and for the sums of 16-bit types after them.
  __host__ __device__ static constexpr int64_t space(int parts, int warps) {
    const int64_t all = int64_t(parts) * kRows * pitch_of<T>(warps * kWarpKeys);
    const int64_t sums = kTensor<T> ? 2 * int64_t(warps) * 16 * kColumns : 0;
    return all > sums ? all : sums;
  }
  static int64_t bytes(int parts, int warps, int queries) {
    return int64_t(sizeof(T)) * (kRows * kXPitch + space(parts, warps)) + 4 * kMostWarps + 16 +
           round_up(ceil_div(queries, 32) * 4, 16);
  }
};

// Rows [i0, i0 + 16) of x from column col0 on, zero beyond the matrix. What is not finite would spoil every
// key of the tile: it is zero here, and add_left_out() deals with it.
template <class TA, class T>
__device__ void stage_x(const TransposeArgs<TA, T>& a, const TransposeTile<T>& tile, View<const T> x, int i0,
                        int col0) {
  constexpr int width = TransposeTile<T>::kXPitch;
#pragma unroll 1
  for (int e = int(threadIdx.x); e < kRows * width; e += int(blockDim.x)) {
    const int i = i0 + e / width, col = e % width;
    float v = 0.f;
    if (i < a.queries && col < a.columns && col0 + col < a.dim)
      v = to_float(x[i * a.x.stride_row + col0 + col]);
    if (!is_finite(v)) {
      atomic_or(tile.bad + i / 32, 1u << i % 32);  // any order gives the same bits
      v = 0.f;
    }
    tile.x[e] = from_float<T>(v);  // exact: it came from T
  }
}

// The largest finite weight of this warp's rows of the tile, for all lanes to see after a barrier.
template <class TA, class T>
__device__ void find_largest(const TransposeArgs<TA, T>& a, const TransposeTile<T>& tile,
                             View<const TA> weights, int i0) {
  const int warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32, lane = int(threadIdx.x) % 32;
  float most = 0.f;
  for (int r = warp; r < kRows && i0 + r < a.queries; r += warps) {
#pragma unroll 1  // more costs registers, which hold the sums
    for (int t = lane; t < a.kept; t += 32) {
      const float w = fabsf(to_float(weights[(i0 + r) * a.a_stride_row + t]));
      most = is_finite(w) ? fmaxf(most, w) : most;
    }
  }
  most = warp_max(most);
  if (lane == 0) tile.largest[warp] = most;
}

// Weights are scaled by a power of two that brings the largest of them so far to 2^14: float16 then has 38
// binary digits below it. The sums are kept at the same scale.
struct TileScale {
  static constexpr uint32_t kLeast = 15;  // for which both factors are normal

  uint32_t exponent;  // of the largest, as in its bits

  __device__ float up() const { return __uint_as_float((254 + 14 - exponent) << 23); }
  __device__ float down() const { return __uint_as_float((exponent - 14) << 23); }

  // Looks at the weights of the next tile; what the sums must be multiplied by.
  __device__ float grow(View<const float> largest, int warps) {
    float most = 0.f;
    for (int w = 0; w < warps; ++w) most = fmaxf(most, largest[w]);
    const uint32_t now = __float_as_uint(most) >> 23, before = exponent;
    exponent = now > before ? now : before;
    const uint32_t step = exponent - before;
    return step > 126 ? 0.f : __uint_as_float((127 - step) << 23);
  }
};

// Spreads the entries of rows [i0, i0 + 16) over the tile.
template <class TA, class T>
__device__ void spread_weights(const TransposeArgs<TA, T>& a, const TransposeTile<T>& tile,
                               View<const TA> weights, int64_t b, int i0, int key0, float up) {
  const int warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32, lane = int(threadIdx.x) % 32;
  for (int r = warp; r < kRows && i0 + r < a.queries; r += warps) {
    const int64_t first = (b * a.queries + i0 + r) * a.kept;
    const View<const TA> row = weights + (i0 + r) * a.a_stride_row;
    const View<T> to = tile.weights + r * tile.pitch;
#pragma unroll 1  // more costs registers, which hold the sums
    for (int t = lane; t < a.kept; t += 32) {
      const unsigned key = unsigned(a.index[first + t] - key0);
      if (key >= unsigned(a.keys_at_once)) continue;
      if constexpr (kParts<TA, T> == 2) {
        const float w = to_float(row[t]) * up;
        const T high = from_float<T>(w);
        const float rest = w - to_float(high);
        to[int(key)] = high;
        to[int(key) + kRows * tile.pitch] = from_float<T>(is_finite(rest) ? rest : 0.f);
      } else {
        to[int(key)] = row[t];
      }
    }
  }
}

// sums += tile^T x for this warp's keys.
template <int kParts, class T>
__device__ __forceinline__ void multiply_tile(KeySums<T>& sums, const TransposeTile<T>& tile, int columns) {
  const int lane = int(threadIdx.x) % 32, key = int(threadIdx.x) / 32 * kWarpKeys;
  const View<T> x_row = tile.x + (lane / 8 % 2 * 8 + lane % 8) * tile.kXPitch + lane / 16 * 8;
  const View<T> row = tile.weights + (lane % 8 + lane / 16 * 8) * tile.pitch + key + lane / 8 % 2 * 8;
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    uint32_t w[kParts][4];
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      ldmatrix_x4<true>(w[part], row + part * kRows * tile.pitch + m * 16);
#pragma unroll
    for (int pair = 0; pair < 3; ++pair) {
      if (pair * 16 >= columns) continue;
      uint32_t x[4];  // read again for every 16 keys: the registers hold the sums
      ldmatrix_x4<true>(x, x_row + pair * 16);
#pragma unroll
      for (int n = 2 * pair; n < 2 * pair + 2 && n < 5; ++n) {
        const uint32_t right[2] = {x[n % 2 * 2], x[n % 2 * 2 + 1]};
#pragma unroll
        for (int part = 0; part < kParts; ++part) mma_m16n8k16<T>(sums.d[m][n], w[part], right);
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void multiply_sums(KeySums<T>& sums, float factor) {
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int n = 0; n < 5; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums.d[m][n][i] *= factor;
    }
  }
}

// Of a warp's lanes four have the same eight keys, and eight the same ten columns: neighbours (lane ^ 1)
// share keys, and those beyond (lane ^ 2) columns, so that reads of either are shared.
struct FloatLane {
  int keys, columns;
  __device__ explicit FloatLane(int lane)
      : keys((lane >> 1 & 1) | (lane >> 3 & 3) << 1), columns((lane & 1) | (lane >> 2 & 1) << 1) {}
  __device__ __forceinline__ int key(int k) const { return k / 4 * 32 + keys * 4 + k % 4; }
  __device__ __forceinline__ int column(int c) const {
    return c < 8 ? c / 4 * 16 + columns * 4 + c % 4 : 32 + columns * 2 + c % 4;
  }
};

template <int kParts>
__device__ __forceinline__ void multiply_tile(KeySums<float>& sums, const TransposeTile<float>& tile,
                                              int columns) {
  const int lane = int(threadIdx.x) % 32, key = int(threadIdx.x) / 32 * kWarpKeys;
  const FloatLane mine(lane);
  const View<float> weights = tile.weights + key + mine.keys * 4, x = tile.x + mine.columns * 4,
                    last_x = tile.x + 32 + mine.columns * 2;
#pragma unroll 2
  for (int r = 0; r < kRows; ++r) {
    const float4 low = load_as<float4>(weights + r * tile.pitch),
                 high = load_as<float4>(weights + r * tile.pitch + 32);
    const float w[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      if (part * 16 >= columns) continue;
      const float4 v = load_as<float4>(x + r * kColumns + part * 16);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        float* d = sums.d[k] + 4 * part;
        d[0] = fmaf(w[k], v.x, d[0]);
        d[1] = fmaf(w[k], v.y, d[1]);
        d[2] = fmaf(w[k], v.z, d[2]);
        d[3] = fmaf(w[k], v.w, d[3]);
      }
    }
    if (columns <= 32) continue;
    const float2 v = load_as<float2>(last_x + r * kColumns);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      sums.d[k][8] = fmaf(w[k], v.x, sums.d[k][8]);
      sums.d[k][9] = fmaf(w[k], v.y, sums.d[k][9]);
    }
  }
}

// Zeroes this warp's keys of the tile, which no other warp reads.
template <class T>
__device__ __forceinline__ void clear_tile(const TransposeTile<T>& tile, int parts) {
  constexpr int units = kWarpKeys / kPerUnit<T>;
  const int lane = int(threadIdx.x) % 32;
  const View<T> mine = tile.weights + int(threadIdx.x) / 32 * kWarpKeys + lane % units * kPerUnit<T>;
  for (int r = lane / units; r < parts * kRows; r += 32 / units)
    store_as(mine + r * tile.pitch, make_uint4(0, 0, 0, 0));
}

// f(key, column, sum) for this warp's sums, from lanes that take columns side by side. 16-bit: through shared
// memory, where the tile was; float32: a lane's own.
template <class T, class F>
__device__ __forceinline__ void for_each_key_sum(const KeySums<T>& sums, View<float> scratch, F f) {
  const int lane = int(threadIdx.x) % 32, key = int(threadIdx.x) / 32 * kWarpKeys;
  const View<float> mine = scratch + int(threadIdx.x) / 32 * (16 * kColumns);
  const View<float> at = mine + lane / 4 * kColumns + lane % 4 * 2;
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int n = 0; n < 5; ++n) {
#pragma unroll
      for (int i = 0; i < 4; i += 2)
        store_as(at + i / 2 * 8 * kColumns + n * 8, make_float2(sums.d[m][n][i], sums.d[m][n][i + 1]));
    }
    __syncwarp();
#pragma unroll 1
    for (int e = lane; e < 16 * kColumns; e += 32) f(key + m * 16 + e / kColumns, e % kColumns, mine[e]);
    __syncwarp();
  }
}
template <class F>
__device__ __forceinline__ void for_each_key_sum(const KeySums<float>& sums, View<float>, F f) {
  const int key = int(threadIdx.x) / 32 * kWarpKeys;
  const FloatLane mine(int(threadIdx.x) % 32);
#pragma unroll
  for (int k = 0; k < 8; ++k) {
#pragma unroll
    for (int c = 0; c < 10; ++c) f(key + mine.key(k), mine.column(c), sums.d[k][c]);
  }
}

template <class TA, class T>
__global__ void __launch_bounds__(32 * kMostWarps, 1) spmm_transpose_tiles_kernel(TransposeArgs<TA, T> a) {
  constexpr int parts = kParts<TA, T>;
  constexpr bool scaled = kScaled<TA, T>;
  const int warps = int(blockDim.x) / 32;
  const int64_t b = blockIdx.x / unsigned(a.column_blocks * a.key_blocks);
  const int part = int(blockIdx.x % unsigned(a.column_blocks * a.key_blocks));
  const int col0 = part % a.column_blocks * a.columns, key0 = part / a.column_blocks * a.keys_at_once;
  SharedMemory shared;
  const TransposeTile<T> tile(shared, parts, warps, a.queries);
  const View<const TA> weights = a.weights(b);
  const View<const T> x = a.x.head(b);

  for (int w = int(threadIdx.x); w < int(ceil_div(a.queries, 32)); w += int(blockDim.x)) tile.bad[w] = 0;
  if (threadIdx.x == 0) {
    tile.head[0] = uint32_t(b);
    tile.head[1] = TileScale::kLeast;
  }
  KeySums<T> sums;
  for (int i0 = 0; i0 < a.queries; i0 += kRows) {
    clear_tile(tile, parts);
    if constexpr (scaled) find_largest(a, tile, weights, i0);
    __syncthreads();  // the tile before has been used, this one is zero
    TileScale scale{scaled ? uint32_t(tile.head[1]) : TileScale::kLeast};
    if constexpr (scaled) {
      const float factor = scale.grow(tile.largest, warps);
      if (factor != 1.f) multiply_sums(sums, factor);
    }
    spread_weights(a, tile, weights, b, i0, key0, scaled ? scale.up() : 1.f);
    stage_x(a, tile, x, i0, col0);
    __syncthreads();
    if (scaled && threadIdx.x == 0) tile.head[1] = scale.exponent;
    multiply_tile<parts>(sums, tile, a.columns);
    __syncwarp();
  }
  __syncthreads();  // the last tile has been used
  const int64_t window = int64_t(tile.head[0]);
  const float factor = a.scale * (scaled ? TileScale{uint32_t(tile.head[1])}.down() : 1.f);
  const int cols = a.dim - col0 < a.columns ? a.dim - col0 : a.columns;
  const int here = a.keys - key0 < a.keys_at_once ? a.keys - key0 : a.keys_at_once;
  for_each_key_sum(sums, tile.scratch, [&](int key, int col, float sum) {
    if (key >= here || col >= cols) return;
    sum *= factor;
    if (a.initial) sum += a.initial[(window * a.keys + key0 + key) * a.dim + col0 + col];
    (a.out.head(window) + (key0 + key) * a.out.stride_row)[col0 + col] = from_float<T>(sum);
  });
  add_left_out<false>(a, View<const uint32_t>(tile.bad), window, key0, here, col0, cols,
                      [](float, float value) { return !is_finite(value); });
}

template <class TA, class T>
Status run(TransposeArgs<TA, T> a, void* stream) {
  const int64_t limit = shared_memory_limit();
  constexpr int parts = kParts<TA, T>;
  int warps = int(ceil_div(a.keys, kWarpKeys) < kMostWarps ? ceil_div(a.keys, kWarpKeys) : kMostWarps);
  while (warps && TransposeTile<T>::bytes(parts, warps, a.queries) > limit) --warps;
  if (!warps) return Status::kUnsupported;
  a.column_blocks = int(ceil_div(a.dim, kColumns));
  a.columns = int(round_up(ceil_div(a.dim, a.column_blocks), 8));
  a.keys_at_once = warps * kWarpKeys;
  a.key_blocks = int(ceil_div(a.keys, a.keys_at_once));
  return launch("spmm_transpose_tiles", spmm_transpose_tiles_kernel<TA, T>,
                a.batch * a.column_blocks * a.key_blocks, 32 * warps,
                TransposeTile<T>::bytes(parts, warps, a.queries), stream, a);
}

}  // namespace

Status spmm_transpose_tiles(const SparseShape& s, int64_t heads, Input a, Input x, Index index,
                            const float* initial, Output out, float scale, void* stream) {
  return with_transpose_args(s, heads, a, x, index, initial, out, scale,
                             [&](const auto& args) { return run(args, stream); });
}

}  // namespace pft::cuda
