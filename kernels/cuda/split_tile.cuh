// float32 on tensor cores, without giving up float32. A float32 number is the exact sum of three bfloat16
// numbers, high + middle + low: each is what remains rounded to nearest, eight bits at a time. bfloat16 has
// float32's exponents, so nothing is scaled. Of the nine products of two such sums six are kept:
//   high high, high middle, middle high, high low, low high, middle middle.
// With 2^e <= |x| < 2^(e+1), |middle| <= 2^(e-8) and |low| <= 2^(e-17), so the three left out are no more
// than 2^-24 |x y| together: one more rounding of a product. bounds.py (harness/check) has the whole bound.
//
// Tensor cores align the addends of a product to the largest of them and cut off what lies below it (Fasi et
// al. 2021, Khattak and Mikaitis 2025), which is why the five small products have an accumulator of their own
// (Ootomo and Yokota 2022) and why a long sum of large ones is taken up in float32 every 32 keys.
//
// Below 2^-110 the low parts end in bfloat16's subnormal numbers: a number loses up to 2^-134. Infinities and
// NaN have no middle and low part; where a large sum is not finite, the small one is left out, so that it is
// what FFMA would make of it.
#pragma once
#include "lane_tile.cuh"

namespace pft::cuda {

struct Split {};

// The rule: whether a dense layer is to be split; where that does not fit, kAuto falls back on FFMA.
inline bool splits(DType dtype, Float32 how) {
  if (dtype != DType::kFloat32 || how == Float32::kFfma) return false;
  return how == Float32::kSplit || split_pays();
}

template <>
struct TileTypes<Split> {
  using Global = float;
  using Shared = bf16_t;
};
template <>
constexpr bool kTensorCores<Split> = true;

// In shared memory each part has an array of its own, [room, kChunk], one after the other: what a warp writes
// lies in one piece, and a row is an odd number of 16-byte units. More columns are further chunks.
constexpr int kSplitTiles = kChunk / 8;  // of eight columns
constexpr int kSplitParts = 3;

template <>
struct LaneTile<Split> : LaneTile<bf16_t> {
  static constexpr int kColumns = kChunk, kLaneColumns = 2 * kSplitTiles;
  static constexpr int kSumRows = kSplitTiles;
};

template <>
__host__ __device__ constexpr int64_t key_elements<Split>(int64_t rows, int64_t dim) {
  return rows * ceil_div(dim, kChunk) * kSplitParts * kChunk;
}
template <>
__host__ __device__ constexpr int64_t value_elements<Split>(int64_t keys, int64_t) {
  return keys * kSplitParts * kChunk;
}

// Two numbers' parts, each pair in a word.
struct SplitPair {
  uint32_t high, middle, low;

  // `rest`: what the high parts leave.
  __device__ __forceinline__ SplitPair(uint32_t high, float2 rest) : high(high) {
    middle = pack_pair(rest.x, rest.y, bf16_t{});
    const float2 m = unpack_pair(middle, bf16_t{});
    low = pack_pair(rest.x - m.x, rest.y - m.y, bf16_t{});
  }
  // Finite numbers that do not round to infinity.
  __device__ __forceinline__ static SplitPair of(float x, float y) {
    const uint32_t high = pack_pair(x, y, bf16_t{});
    return SplitPair(high, rest_of(x, y, high));
  }
  __device__ __forceinline__ static float2 rest_of(float x, float y, uint32_t high) {
    const float2 h = unpack_pair(high, bf16_t{});
    return make_float2(x - h.x, y - h.y);
  }
};

// The high part of any number, as float32: what would round to infinity is cut off instead.
__device__ __forceinline__ float high_part(float x) {
  const float rounded = to_float(from_float<bf16_t>(x));
  return is_finite(x) && !is_finite(rounded) ? __uint_as_float(__float_as_uint(x) & 0xffff0000u) : rounded;
}
__device__ __forceinline__ SplitPair split_any(float x, float y) {
  const float hx = high_part(x), hy = high_part(y);
  return SplitPair(pack_pair(hx, hy, bf16_t{}),  // exact
                   make_float2(is_finite(hx) ? x - hx : 0.f, is_finite(hy) ? y - hy : 0.f));
}

__device__ __forceinline__ void put_parts(uint2 (&parts)[kSplitParts], const SplitPair& one,
                                          const SplitPair& two) {
  parts[0] = make_uint2(one.high, two.high);
  parts[1] = make_uint2(one.middle, two.middle);
  parts[2] = make_uint2(one.low, two.low);
}
// The parts of four finite numbers that do not round to infinity. Returns a number that is not finite where
// one is another.
__device__ __forceinline__ float split_four(uint2 (&parts)[kSplitParts], float4 x) {
  const uint32_t h0 = pack_pair(x.x, x.y, bf16_t{}), h1 = pack_pair(x.z, x.w, bf16_t{});
  const float2 r0 = SplitPair::rest_of(x.x, x.y, h0), r1 = SplitPair::rest_of(x.z, x.w, h1);
  put_parts(parts, SplitPair(h0, r0), SplitPair(h1, r1));
  return (r0.x + r0.y) + (r1.x + r1.y);
}
__device__ __forceinline__ void split_any_four(uint2 (&parts)[kSplitParts], float4 x) {
  put_parts(parts, split_any(x.x, x.y), split_any(x.z, x.w));
}

// Four numbers in their places of each part, `part` elements apart.
__device__ __forceinline__ void store_split(View<bf16_t> to, int part, float4 x) {
  uint2 parts[kSplitParts];
  if (!is_finite(split_four(parts, x))) split_any_four(parts, x);
  store_as(to, parts[0]);  // a line each: by them the counters tell how often the code around them runs
  store_as(to + part, parts[1]);
  store_as(to + 2 * part, parts[2]);
}

// A thread's four columns of rows `first`, `first + apart`, ...; zeros beyond `rows` and `cols`. All are on
// their way before the first is used. `source` moves on by as many rows. `whole`: 16 bytes can be read at
// once.
template <int kAtOnce>
__device__ __forceinline__ void read_fours(float4 (&x)[kAtOnce], View<const float>& source,
                                           int64_t stride_row, int first, int apart, int rows, int col,
                                           int cols, bool whole) {
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) {
    x[i] = make_float4(0.f, 0.f, 0.f, 0.f);
    const View<const float> y = source;
    source = source + apart * stride_row;
    if (first + i * apart >= rows || col >= cols) continue;
    if (whole) {
      x[i] = load_as<float4>(y);
    } else {
      x[i].x = y[0];
      if (col + 1 < cols) x[i].y = y[1];
      if (col + 2 < cols) x[i].z = y[2];
      if (col + 3 < cols) x[i].w = y[3];
    }
  }
}

// Columns [col0, col0 + cols) of `rows` rows, zeros up to kChunk columns and `padded` rows. By plain reads: a
// number is split on its way. A thread keeps to its four columns.
__device__ __forceinline__ void stage_split(View<bf16_t> to, int room, View<const float> from,
                                            int64_t stride_row, int rows, int padded, int col0, int cols,
                                            bool aligned) {
  constexpr int kUnits = kChunk / 4, kAtOnce = 3;
  const bool whole = aligned && cols % 4 == 0;
  const int thread = computed_anew(int(threadIdx.x)), row0 = thread / kUnits, unit = thread % kUnits,
            col = unit * 4;
  const int apart = int(blockDim.x) / kUnits, part = room * kChunk;  // a block has 32 threads or more
  if (row0 >= apart) return;
  View<const float> source = from + (row0 * stride_row + col0 + col);
  View<bf16_t> at = to + (row0 * kChunk + col);
  for (int first = row0; first < padded; first += kAtOnce * apart) {
    float4 x[kAtOnce];
    read_fours(x, source, stride_row, first, apart, rows, col, cols, whole);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i * apart >= padded) return;
      store_split(at, part, x[i]);
      at = at + apart * kChunk;
    }
  }
}

// What tensor cores made of high times high, and of the rest.
__device__ __forceinline__ float join_split(float large, float small) {
  return is_finite(large) ? large + small : large;
}

// Five products of parts, or six: those of a[part] with b[part], two tiles of eight columns in turn.
__device__ __forceinline__ void multiply_parts(float (&large)[2][4], float (&small)[2][4],
                                               const uint32_t (&a)[3][4], const uint32_t (&b)[3][4]) {
  constexpr int kLeft[] = {0, 0, 1, 0, 2, 1}, kRight[] = {0, 1, 0, 2, 0, 1};
#pragma unroll
  for (int p = 0; p < 6; ++p) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const uint32_t right[2] = {b[kRight[p]][2 * n], b[kRight[p]][2 * n + 1]};
      mma_m16n8k16<bf16_t>(p ? small[n] : large[n], a[kLeft[p]], right);
    }
  }
}

// Adds the products of 16 rows with kGroup others, of up to kChunk channels; `row_part` and `other_part` from
// one part to the next. A last eight channels of an odd number take four products of 16 instead of six: two
// of the six fit into each.
__device__ __forceinline__ void split_products(float (&large)[2][2][4], float (&small)[2][2][4],
                                               View<const bf16_t> rows, int row_part,
                                               View<const bf16_t> others, int other_part, int cols) {
  constexpr int kLast = kChunk - 8;
  const int lane = int(threadIdx.x) % 32, a_half = lane / 16, b_half = lane / 8 % 2;
  const View<const bf16_t> a_row = rows + lane % 16 * kChunk;
  const View<const bf16_t> b_row = others + (lane / 16 * 8 + lane % 8) * kChunk;
#pragma unroll
  for (int step = 0; step < kChunk / 16; ++step) {
    if (step * 16 >= cols) continue;
    uint32_t a[kSplitParts][4];
#pragma unroll
    for (int part = 0; part < kSplitParts; ++part)
      ldmatrix_x4<false>(a[part], a_row + (part * row_part + step * 16 + a_half * 8));
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      uint32_t b[kSplitParts][4];
#pragma unroll
      for (int part = 0; part < kSplitParts; ++part)
        ldmatrix_x4<false>(b[part],
                           b_row + (pair * 16 * kChunk + part * other_part + step * 16 + b_half * 8));
      multiply_parts(large[pair], small[pair], a, b);
    }
  }
  if (cols <= kLast) return;
  uint32_t a[4], a_low[4], b_low[4];  // high and middle of the rows, their low part twice, low of all others
  ldmatrix_x4<false>(a, a_row + (kLast + a_half * row_part));
  ldmatrix_x4<false>(a_low, a_row + (kLast + 2 * row_part));
  ldmatrix_x4<false>(b_low, others + (lane * kChunk + kLast + 2 * other_part));
  const uint32_t high[4] = {a[0], a[1], 0, 0}, middle[4] = {a[2], a[3], 0, 0},
                 high_low[4] = {a[0], a[1], a_low[0], a_low[1]};
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {
    uint32_t b[4];  // high and middle of eight others, and of eight more
    ldmatrix_x4<false>(b, b_row + (pair * 16 * kChunk + kLast + b_half * other_part));
#pragma unroll
    for (int product = 0; product < 4; ++product) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const uint32_t high_zero[2] = {b[2 * n], 0}, middle_zero[2] = {b[2 * n + 1], 0},
                       middle_high[2] = {b[2 * n + 1], b[2 * n]},
                       low_high[2] = {b_low[2 * pair + n], b[2 * n]};
        if (product == 0) mma_m16n8k16<bf16_t>(large[pair][n], high, high_zero);
        if (product == 1) mma_m16n8k16<bf16_t>(small[pair][n], a, middle_high);
        if (product == 2) mma_m16n8k16<bf16_t>(small[pair][n], high_low, low_high);
        if (product == 3) mma_m16n8k16<bf16_t>(small[pair][n], middle, middle_zero);
      }
    }
  }
}

template <>
__device__ __forceinline__ void stage_lanes<Split>(View<bf16_t> to, int room, View<const float> from,
                                                   int64_t stride_row, int rows, int padded, int dim,
                                                   bool aligned) {
  for (int col0 = 0; col0 < dim; col0 += kChunk)
    stage_split(to + col0 * kSplitParts * room, room, from, stride_row, rows, padded, col0,
                dim - col0 < kChunk ? dim - col0 : kChunk, aligned);
}
template <>
__device__ __forceinline__ void stage_values<Split>(View<bf16_t> to, int room, View<const float> from,
                                                    int64_t stride_row, int rows, int padded, int col0,
                                                    int cols, bool aligned) {
  stage_split(to, room, from, stride_row, rows, padded, col0, cols, aligned);
}

template <>
__device__ __forceinline__ void lane_products<Split>(LaneProducts<Split>& s, View<const bf16_t> rows,
                                                     int row0, int row_room, View<const bf16_t> others,
                                                     int other0, int other_room, int dim) {
  float large[2][2][4] = {}, small[2][2][4] = {};
  for (int col0 = 0; col0 < dim; col0 += kChunk) {
    split_products(large, small, rows + (col0 * kSplitParts * row_room + row0 * kChunk), row_room * kChunk,
                   others + (col0 * kSplitParts * other_room + other0 * kChunk), other_room * kChunk,
                   dim - col0);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const int pair = c / 4, n = c / 2 % 2, i = 2 * r + c % 2;
      s[r][c] = join_split(large[pair][n][i], small[pair][n][i]);
    }
  }
}

// What tensor cores made of high times high is taken up in float32 after every group.
template <>
struct WeightedSums<Split> {
  LaneSums<Split> large = {}, small = {};

  __device__ __forceinline__ void scale(int r, float factor) {
#pragma unroll
    for (int c = 0; c < LaneTile<Split>::kLaneColumns; ++c) {
      LaneTile<Split>::cell(large, r, c) *= factor;
      LaneTile<Split>::cell(small, r, c) *= factor;
    }
  }
  __device__ __forceinline__ void join(LaneSums<Split>& to) const {
#pragma unroll
    for (int n = 0; n < kSplitTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[n][i] = join_split(large[n][i], small[n][i]);
    }
  }
};

template <>
__device__ __forceinline__ int value_pitch<Split>(int) {
  return kChunk;
}

// What add_weighted does for the first kTiles tiles of eight columns.
template <int kTiles>
__device__ __forceinline__ void add_split(WeightedSums<Split>& sums, const LaneProducts<Split>& w,
                                          View<const bf16_t> values, int part) {
  constexpr int kSteps = kGroup / 16, kLeft[] = {0, 0, 1, 0, 2, 1}, kRight[] = {0, 1, 0, 2, 0, 1};
  const int lane = int(threadIdx.x) % 32, half = lane / 16;
  const View<const bf16_t> row = values + (lane / 8 % 2 * 8 + lane % 8) * kChunk;
  uint32_t weights[kSteps][kSplitParts][4];  // as the fragments want them: rows g and g + 8 alternating
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int c = 4 * step + i / 2 * 2;
      const SplitPair parts = SplitPair::of(w[i % 2][c], w[i % 2][c + 1]);
      weights[step][0][i] = parts.high, weights[step][1][i] = parts.middle, weights[step][2][i] = parts.low;
    }
  }
#pragma unroll
  for (int pair = 0; pair < kTiles; pair += 2) {
    const int both = pair + 1 < kTiles ? 2 : 1;
    float here[2][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const View<const bf16_t> at = row + (step * 16 * kChunk + pair * 8);
      uint32_t v[2][4], v_low[4];  // high and middle of two tiles; low of both, or twice of the last one
      ldmatrix_x4<true>(v[0], at + half * part);
      if (both == 2) ldmatrix_x4<true>(v[1], at + (8 + half * part));
      ldmatrix_x4<true>(v_low, at + (2 * part + (both == 2 ? half * 8 : 0)));
#pragma unroll
      for (int p = 0; p < 6; ++p) {
#pragma unroll
        for (int n = 0; n < both; ++n) {
          const uint32_t (&from)[4] = kRight[p] == 2 ? v_low : v[n];
          const int first = kRight[p] == 2 ? 2 * n : 2 * kRight[p];
          const uint32_t right[2] = {from[first], from[first + 1]};
          mma_m16n8k16<bf16_t>(p ? sums.small[pair + n] : here[n], weights[step][kLeft[p]], right);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < both; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums.large[pair + n][i] += here[n][i];
    }
  }
}

template <>
__device__ __forceinline__ void add_weighted<Split>(WeightedSums<Split>& sums, const LaneProducts<Split>& w,
                                                    View<const bf16_t> values, int room, int cols) {
  if (cols <= 16) {
    add_split<2>(sums, w, values, room * kChunk);
  } else {
    add_split<kSplitTiles>(sums, w, values, room * kChunk);
  }
}

}  // namespace pft::cuda
