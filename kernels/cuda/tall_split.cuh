// Split products (split_tile.cuh) of 32 rows a warp, up to kChunk channels: what is multiplied with the rows
// is read from shared memory once for all of them, and the parts of the rows stay in registers.
#pragma once
#include "split_tile.cuh"

namespace pft::cuda {

constexpr int kTallRows = 32, kTallTiles = kTallRows / 16;
constexpr int kTallWarps = 8;  // of a block

// What becomes of numbers that are not finite, or round to infinity as bfloat16, before they are split.
struct KeepAll {
  __device__ __forceinline__ float4 operator()(float4 x) const { return x; }
};

// What stage_split() does, by the threads of kTallWarps warps. They look for numbers that are not finite in
// several rows at once; odd(x) is what becomes of them.
template <class Odd = KeepAll>
__device__ __forceinline__ void stage_tall(View<bf16_t> to, int room, View<const float> from,
                                           int64_t stride_row, int rows, int padded, int col0, int cols,
                                           bool aligned, const Odd& odd = Odd()) {
  constexpr int kUnits = kChunk / 4, kAtOnce = 3;
  const bool whole = aligned && cols % 4 == 0;
  const int thread = computed_anew(int(threadIdx.x)), row0 = thread / kUnits, col = thread % kUnits * 4;
  constexpr int kApart = 32 * kTallWarps / kUnits;
  if (row0 >= kApart) return;
  View<const float> source = from + (row0 * stride_row + col0 + col);
  View<bf16_t> high = to + (row0 * kChunk + col), middle = high + room * kChunk, low = middle + room * kChunk;
  for (int first = row0; first < padded; first += kAtOnce * kApart) {
    float4 x[kAtOnce];
    read_fours(x, source, stride_row, first, kApart, rows, col, cols, whole);
    uint2 parts[kAtOnce][kSplitParts];
    float rest = 0.f;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) rest += split_four(parts[i], x[i]);
    if (!is_finite(rest)) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) split_any_four(parts[i], odd(x[i]));
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i * kApart >= padded) return;
      store_as(high + i * kApart * kChunk, parts[i][0]);
      store_as(middle + i * kApart * kChunk, parts[i][1]);
      store_as(low + i * kApart * kChunk, parts[i][2]);
    }
    high = high + kAtOnce * kApart * kChunk, middle = middle + kAtOnce * kApart * kChunk;
    low = low + kAtOnce * kApart * kChunk;
  }
}

struct TallRows {
  uint32_t part[kChunk / 16][kTallTiles][kSplitParts][4];
  // of the last eight channels: high and middle, and low of all rows
  uint32_t last[kTallTiles][4], last_low[kTallTiles * 2];

  // From an array of split rows, `apart` elements from one part to the next.
  __device__ __forceinline__ TallRows(View<const bf16_t> rows, int apart) {
    const int lane = int(threadIdx.x) % 32, half = lane / 16;
    const View<const bf16_t> row = rows + lane % 16 * kChunk;
#pragma unroll
    for (int tile = 0; tile < kTallTiles; ++tile) {
      const View<const bf16_t> at = row + tile * 16 * kChunk;
#pragma unroll
      for (int step = 0; step < kChunk / 16; ++step) {
#pragma unroll
        for (int p = 0; p < kSplitParts; ++p)
          ldmatrix_x4<false>(part[step][tile][p], at + (p * apart + step * 16 + half * 8));
      }
      ldmatrix_x4<false>(last[tile], at + (kChunk - 8 + half * apart));
    }
    ldmatrix_x4<false>(last_low, rows + (lane * kChunk + kChunk - 8 + 2 * apart));
  }

  // use(tile, n, d): the products of 16 rows with eight others, those of the n-th eight, as mma.sync leaves
  // them; of kGroup others.
  template <class Use>
  __device__ __forceinline__ void multiply(View<const bf16_t> others, int apart, int cols, Use use) const {
    constexpr int kLeft[] = {0, 0, 1, 0, 2, 1}, kRight[] = {0, 1, 0, 2, 0, 1}, kLast = kChunk - 8;
    const int lane = int(threadIdx.x) % 32, half = lane / 8 % 2;
#pragma unroll
    for (int pair = 0; pair < kGroup / 16; ++pair) {
      const View<const bf16_t> other = others + (pair * 16 + lane / 16 * 8 + lane % 8) * kChunk;
      float large[kTallTiles][2][4] = {}, small[kTallTiles][2][4] = {};
      const auto add = [&](bool first, int tile, int n, const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        mma_m16n8k16<bf16_t>(first ? large[tile][n] : small[tile][n], a, b);
      };
#pragma unroll
      for (int step = 0; step < kChunk / 16; ++step) {
        if (step * 16 >= cols) continue;
        uint32_t b[kSplitParts][4];
#pragma unroll
        for (int p = 0; p < kSplitParts; ++p)
          ldmatrix_x4<false>(b[p], other + (p * apart + step * 16 + half * 8));
#pragma unroll
        for (int product = 0; product < 6; ++product) {
#pragma unroll
          for (int i = 0; i < 2 * kTallTiles; ++i) {
            const uint32_t right[2] = {b[kRight[product]][i % 2 * 2], b[kRight[product]][i % 2 * 2 + 1]};
            add(product == 0, i / 2, i % 2, part[step][i / 2][kLeft[product]], right);
          }
        }
      }
      if (cols > kLast) {       // four products instead of six, as two of the six fit into each
        uint32_t b[4], low[4];  // middle and high, low and high, of eight others and eight more
        ldmatrix_x4<false>(b, other + (kLast + (1 - half) * apart));
        ldmatrix_x4<false>(low, other + (kLast + (1 - half) * 2 * apart));
#pragma unroll
        for (int product = 0; product < 4; ++product) {
#pragma unroll
          for (int i = 0; i < 2 * kTallTiles; ++i) {
            const int n = i % 2, tile = i / 2;
            const uint32_t (&a)[4] = last[tile];
            const uint32_t high_low[4] = {a[0], a[1], last_low[2 * tile], last_low[2 * tile + 1]};
            const uint32_t middle_high[2] = {b[2 * n], b[2 * n + 1]},
                           low_high[2] = {low[2 * n], low[2 * n + 1]}, high_zero[2] = {b[2 * n + 1], 0},
                           zero_middle[2] = {0, b[2 * n]};
            if (product == 0) add(true, tile, n, a, high_zero);
            if (product == 1) add(false, tile, n, a, middle_high);
            if (product == 2) add(false, tile, n, high_low, low_high);
            if (product == 3) add(false, tile, n, a, zero_middle);
          }
        }
      }
      join(large, small);
#pragma unroll
      for (int i = 0; i < 2 * kTallTiles; ++i) use(i / 2, pair * 2 + i % 2, large[i / 2][i % 2]);
    }
  }

 private:
  // As join_split(), with one look at all of them.
  __device__ __forceinline__ static void join(float (&large)[kTallTiles][2][4],
                                              const float (&small)[kTallTiles][2][4]) {
    float joined[kTallTiles][2][4], sum = 0.f;
#pragma unroll
    for (int e = 0; e < kTallTiles * 8; ++e) {
      float& x = joined[e / 8][e / 4 % 2][e % 4];
      x = large[e / 8][e / 4 % 2][e % 4] + small[e / 8][e / 4 % 2][e % 4];
      sum += x;
    }
    if (!is_finite(sum)) {
#pragma unroll
      for (int e = 0; e < kTallTiles * 8; ++e) {
        const float x = large[e / 8][e / 4 % 2][e % 4];
        if (!is_finite(x)) joined[e / 8][e / 4 % 2][e % 4] = x;
      }
    }
#pragma unroll
    for (int e = 0; e < kTallTiles * 8; ++e) large[e / 8][e / 4 % 2][e % 4] = joined[e / 8][e / 4 % 2][e % 4];
  }
};

// Weighted sums of up to kChunk columns for 32 rows.
struct TallSums {
  float large[kTallTiles][kSplitTiles][4] = {}, small[kTallTiles][kSplitTiles][4] = {};

  // Adds weights[32 x kGroup] * values[kGroup x kChunk], float32 weights.
  __device__ __forceinline__ void add(View<const float> weights, int pitch, View<const bf16_t> values,
                                      int apart) {
    constexpr int kSteps = kGroup / 16, kLeft[] = {0, 0, 1, 0, 2, 1}, kRight[] = {0, 1, 0, 2, 0, 1};
    const int lane = int(threadIdx.x) % 32, half = lane / 16;
    uint32_t w[kSteps][kTallTiles][kSplitParts][4];
#pragma unroll
    for (int i = 0; i < 4 * kSteps * kTallTiles; ++i) {
      const int step = i / 4 % kSteps, tile = i / 4 / kSteps, word = i % 4;
      const View<const float> at =
          weights + ((tile * 16 + word % 2 * 8 + lane / 4) * pitch + step * 16 + word / 2 * 8 + lane % 4 * 2);
      const float2 x = load_as<float2>(at);
      const SplitPair parts = SplitPair::of(x.x, x.y);
      w[step][tile][0][word] = parts.high, w[step][tile][1][word] = parts.middle;
      w[step][tile][2][word] = parts.low;
    }
    const View<const bf16_t> row = values + lane % 16 * kChunk;
#pragma unroll
    for (int column = 0; column < kSplitTiles; column += 2) {
      const int both = column + 1 < kSplitTiles ? 2 : 1;
      float here[kTallTiles][2][4] = {};
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const View<const bf16_t> at = row + (step * 16 * kChunk + column * 8);
        uint32_t v[2][4], v_low[4];  // as add_split() reads them
        ldmatrix_x4<true>(v[0], at + half * apart);
        if (both == 2) ldmatrix_x4<true>(v[1], at + (8 + half * apart));
        ldmatrix_x4<true>(v_low, at + (2 * apart + (both == 2 ? half * 8 : 0)));
#pragma unroll
        for (int p = 0; p < 6; ++p) {
#pragma unroll
          for (int n = 0; n < both; ++n) {
            const uint32_t (&from)[4] = kRight[p] == 2 ? v_low : v[n];
            const int first = kRight[p] == 2 ? 2 * n : 2 * kRight[p];
            const uint32_t right[2] = {from[first], from[first + 1]};
#pragma unroll
            for (int tile = 0; tile < kTallTiles; ++tile)
              mma_m16n8k16<bf16_t>(p ? small[tile][column + n] : here[tile][n], w[step][tile][kLeft[p]],
                                   right);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < 4 * both * kTallTiles; ++i)
        large[i / 4 / both][column + i / 4 % both][i % 4] += here[i / 4 / both][i / 4 % both][i % 4];
    }
  }
  // What tensor cores made of high times high, and of the rest, in `large`.
  __device__ __forceinline__ void join() {
#pragma unroll
    for (int e = 0; e < kCells; ++e) {
      float& x = cell(large, e);
      x = join_split(x, cell(small, e));
    }
  }
  // f(e, sum) for the lane's sums.
  template <class F>
  __device__ __forceinline__ void each_cell(F f) {
#pragma unroll
    for (int e = 0; e < kCells; ++e) f(e, cell(large, e));
  }
  // f(row of 32, column, its sum, the next column's)
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    const int lane = int(threadIdx.x) % 32;
#pragma unroll
    for (int e = 0; e < kCells; e += 2) {
      const float (&d)[4] = large[e / 4 / kSplitTiles][e / 4 % kSplitTiles];
      f(e / 4 / kSplitTiles * 16 + e % 4 * 4 + lane / 4, e / 4 % kSplitTiles * 8 + lane % 4 * 2, d[e % 4],
        d[e % 4 + 1]);
    }
  }

 private:
  static constexpr int kCells = kTallTiles * kSplitTiles * 4;

  __device__ __forceinline__ static float& cell(float (&sums)[kTallTiles][kSplitTiles][4], int e) {
    return sums[e / 4 / kSplitTiles][e / 4 % kSplitTiles][e % 4];
  }
};

}  // namespace pft::cuda
