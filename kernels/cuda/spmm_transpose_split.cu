// Transposed SpMM of float32 on tensor cores, each number as the sum of three of bfloat16 (split_tile.cuh):
// the entries of 16 query rows are spread over a tile [keys, 16], zero where there is none, and out[keys,
// columns] += tile x[16, columns]. A warp owns 128 keys, whose sums stay in its registers from the first row
// to the last: no atomics, one order, the same bits in every run.
//
// There are two tiles: while warps multiply one, the other is filled. Half of the warps fill first and the
// others multiply first, so that either kind of work covers the latency of the other.
//
// A lane's fragment of the left operand is the cells of four rows in a row of the tile; it zeroes them as
// soon as it has read them, since no other lane reads them. x lies in the order in which the fragments count
// rows.
#include "split_tile.cuh"
#include "transpose_args.cuh"

namespace pft::cuda {
namespace {

constexpr int kMostWarps = 8;   // with the 255 registers that the sums ask for
constexpr int kWarpKeys = 128;  // of which kTiles times 16 are multiplied at a time
constexpr int kTiles = kWarpKeys / 16;
constexpr int kRows = 16;                     // query rows of a tile
constexpr int kXPart = kRows * kChunk;        // elements of one part of x
constexpr int kXTile = kSplitParts * kXPart;  // of all of them

using Args = TransposeArgs<float, float>;

struct SplitTranspose {
  TransposeBegin begin;
  View<bf16_t> x;      // [2, parts, 16, kChunk]
  View<uint32_t> bad;  // a bit for every query row that is left out, as a whole or some of its entries
  View<float> tiles;   // [2, keys, 16]
  int tile_cells;

  __device__ SplitTranspose(SharedMemory& shared, const Args& a)
      : begin(shared), tile_cells(a.keys_at_once * kRows) {
    x = shared.take<bf16_t>(2 * kXTile);
    tiles = shared.take<float>(2 * tile_cells);  // begins where the compiler knows: that takes no registers
    bad = shared.take<uint32_t>(ceil_div(a.queries, 32));
  }
  static int64_t bytes(int warps, int queries) {
    return TransposeBegin::kBytes + 2 * (2 * kXTile) + round_up(ceil_div(queries, 32) * 4, 16) +
           2 * 4 * int64_t(warps) * kWarpKeys * kRows;
  }
};

// A key's 16 cells take half of the banks. Their groups of four change places from key to key, so that the
// cells of one row lie in eight banks.
__device__ __forceinline__ int cell_of(int key, int row) { return key * kRows + ((key * 2 & 12) ^ row); }

// Where the fragments have a row of the tile: rows 4t to 4t + 3 are the four of lane t.
__device__ __forceinline__ int place_of(int row) { return row % 4 / 2 * 8 + row / 4 * 2 + row % 2; }

// What parts add up to: not what bfloat16 rounds to infinity, nor what is not finite.
__device__ __forceinline__ bool has_parts(float x) { return fabsf(x) < 0x1.ffp127f; }

__device__ __forceinline__ void leave_out(const SplitTranspose& t, int i) {
  atomic_or(t.bad + i / 32, 1u << i % 32);  // any order gives the same bits
}

// Rows [i0, i0 + 16) of x in parts; zeros beyond the matrix.
__device__ __forceinline__ void stage_x(const Args& a, const SplitTranspose& t, View<bf16_t> to, int i0) {
  constexpr int kUnits = kChunk / 4;
  const View<const float> x = a.x.data + t.begin.x();
  const int cols = t.begin.cols();
  const bool whole = a.x.aligned && cols % 4 == 0;
#pragma unroll 1
  for (int e = computed_anew(int(threadIdx.x)); e < kRows * kUnits; e += int(blockDim.x)) {
    const int row = e / kUnits, col = e % kUnits * 4;
    View<const float> source = x + ((i0 + row) * a.x.stride_row + col);
    float4 v[1];
    read_fours(v, source, 0, i0 + row, 0, a.queries, col, cols, whole);
    if (!(has_parts(v[0].x) && has_parts(v[0].y) && has_parts(v[0].z) && has_parts(v[0].w))) {
      leave_out(t, i0 + row);
      const auto kept = [](float one) { return has_parts(one) ? one : 0.f; };
      v[0] = make_float4(kept(v[0].x), kept(v[0].y), kept(v[0].z), kept(v[0].w));
    }
    uint2 parts[kSplitParts];
    split_four(parts, v[0]);
    const View<bf16_t> at = to + (place_of(row) * kChunk + col);
    store_as(at, parts[0]);
    store_as(at + kXPart, parts[1]);
    store_as(at + 2 * kXPart, parts[2]);
  }
}

struct Entries {
  float weights[4];
  int keys[4];
};

// Four entries of a row; -1 for a key where there is none.
__device__ __forceinline__ Entries entries_of(View<const float> weights, const IndexView& index,
                                              int64_t first, int left, bool whole) {
  Entries found{{0.f, 0.f, 0.f, 0.f}, {-1, -1, -1, -1}};
  if (left <= 0) return found;
  if (whole) {
    const float4 w = load_as<float4>(weights);
    const uint2 k = load_as<uint2>(index.narrow + first);
    return {{w.x, w.y, w.z, w.w}, {int(k.x & 0xffffu), int(k.x >> 16), int(k.y & 0xffffu), int(k.y >> 16)}};
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if (e < left) found.weights[e] = weights[e], found.keys[e] = index[first + e];
  }
  return found;
}

// Spreads the entries of rows [i0, i0 + 16) over a tile. A warp takes 32 entries of each of four rows at
// once, eight lanes a row: their cells lie in all banks.
__device__ __forceinline__ void spread_entries(const Args& a, const SplitTranspose& t, View<float> tile,
                                               int i0) {
  constexpr int kAtOnce = 4;
  const int thread = computed_anew(int(threadIdx.x)), warp = thread / 32, lane = thread % 32;
  const int warps = int(blockDim.x) / 32;
  const View<const float> weights = a.a + t.begin.weights();
  const int key0 = t.begin.key0();
  // four entries of a row can be read at once, wherever they begin
  const bool whole = a.weights_aligned && a.kept % 4 == 0 && a.index.narrow && a.index.aligned;
#pragma unroll 1
  for (int four = warp % 4; four < 4; four += warps < 4 ? warps : 4) {
    const int row = four * 4 + lane / 8, i = i0 + row, kept = i < a.queries ? a.kept : 0;
    const int sharers = (warps - four + 3) / 4, apart = 32 * (sharers < 1 ? 1 : sharers);
    const View<const float> from = weights + i * a.a_stride_row;
    const int64_t first = t.begin.entries() + int64_t(i) * a.kept;
    bool left_out = false;
#pragma unroll 1
    for (int t0 = warp / 4 * 32 + lane % 8 * 4; t0 < a.kept; t0 += kAtOnce * apart) {
      Entries entries[kAtOnce];  // all are on their way before the first is used
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int at = t0 + n * apart;
        entries[n] = entries_of(from + at, a.index, first + at, kept - at, whole);
      }
#pragma unroll
      for (int e = 0; e < 4 * kAtOnce; ++e) {
        const float weight = entries[e / 4].weights[e % 4];
        const unsigned key = unsigned(entries[e / 4].keys[e % 4] - key0);
        const bool here = key < unsigned(a.keys_at_once), plain = has_parts(weight);
        if (here && plain) tile[cell_of(int(key), row)] = weight;
        left_out |= here && !plain;
      }
    }
    if (left_out) leave_out(t, i);
  }
}

// All columns of 16 rows of x, as mma.sync wants them.
struct XFragments {
  uint32_t part[kSplitParts][kSplitTiles][2];

  __device__ __forceinline__ explicit XFragments(View<const bf16_t> x) {
    constexpr int kLast = kSplitTiles - 1;
    const int lane = int(threadIdx.x) % 32, half = lane / 16;
    const View<const bf16_t> row = x + lane % 16 * kChunk;
    const auto put = [&](int p, int n, uint32_t top, uint32_t bottom) {
      part[p][n][0] = top, part[p][n][1] = bottom;
    };
#pragma unroll
    for (int p = 0; p < kSplitParts; ++p) {
#pragma unroll
      for (int n = 0; n < kLast; n += 2) {
        uint32_t two[4];
        ldmatrix_x4<true>(two, row + (p * kXPart + (n + half) * 8));
        put(p, n, two[0], two[1]);
        put(p, n + 1, two[2], two[3]);
      }
    }
    uint32_t two[4], low[4];  // the last tile: high and middle, and low twice
    ldmatrix_x4<true>(two, row + (half * kXPart + kLast * 8));
    ldmatrix_x4<true>(low, row + (2 * kXPart + kLast * 8));
    put(0, kLast, two[0], two[1]);
    put(1, kLast, two[2], two[3]);
    put(2, kLast, low[0], low[1]);
  }
};

// Sums of a warp's keys.
struct KeySums {
  float d[kTiles][kSplitTiles][4] = {};

  // Adds tile * x; the tile's cells of this warp's keys are zero afterwards. What 16 rows give is taken up in
  // float32. Of the columns' tiles the first kUsed.
  template <int kUsed>
  __device__ __forceinline__ void add(View<float> tile, View<const bf16_t> x, int keys) {
    constexpr int kLeft[] = {0, 0, 1, 0, 2, 1}, kRight[] = {0, 1, 0, 2, 0, 1};
    const int thread = computed_anew(int(threadIdx.x)), lane = thread % 32;
    const View<float> mine = tile + cell_of(thread / 32 * kWarpKeys + lane / 4, lane % 4 * 4);
    const XFragments right(x);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      if (m * 16 >= keys) continue;
      const float4 top = load_as<float4>(mine + m * 16 * kRows);
      const float4 bottom = load_as<float4>(mine + (m * 16 + 8) * kRows);
      store_as(mine + m * 16 * kRows, make_float4(0.f, 0.f, 0.f, 0.f));
      store_as(mine + (m * 16 + 8) * kRows, make_float4(0.f, 0.f, 0.f, 0.f));
      const SplitPair a[4] = {SplitPair::of(top.x, top.y), SplitPair::of(bottom.x, bottom.y),
                              SplitPair::of(top.z, top.w), SplitPair::of(bottom.z, bottom.w)};
      const uint32_t left[kSplitParts][4] = {{a[0].high, a[1].high, a[2].high, a[3].high},
                                             {a[0].middle, a[1].middle, a[2].middle, a[3].middle},
                                             {a[0].low, a[1].low, a[2].low, a[3].low}};
#pragma unroll
      for (int pair = 0; pair < kUsed; pair += 2) {
        const int both = pair + 1 < kUsed ? 2 : 1;
        float large[2][4] = {}, small[2][4] = {};
#pragma unroll
        for (int p = 0; p < 6; ++p) {
#pragma unroll
          for (int n = 0; n < both; ++n)
            mma_m16n8k16<bf16_t>(p ? small[n] : large[n], left[kLeft[p]], right.part[kRight[p]][pair + n]);
        }
#pragma unroll
        for (int e = 0; e < 4 * both; ++e)
          d[m][pair + e / 4][e % 4] += large[e / 4][e % 4] + small[e / 4][e % 4];
      }
    }
  }
  // f(key, column, its sum, the next column's) for this warp's keys.
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    const int thread = computed_anew(int(threadIdx.x)), lane = thread % 32;
#pragma unroll
    for (int e = 0; e < kTiles * kSplitTiles * 4; e += 2) {
      const int m = e / 4 / kSplitTiles, n = e / 4 % kSplitTiles;
      f(thread / 32 * kWarpKeys + m * 16 + e % 4 * 4 + lane / 4, n * 8 + lane % 4 * 2, d[m][n][e % 4],
        d[m][n][e % 4 + 1]);
    }
  }
};

__global__ void __launch_bounds__(32 * kMostWarps, 1) spmm_transpose_split_kernel(Args a) {
  SharedMemory shared;
  const SplitTranspose t(shared, a);
  const int warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
  for (int w = int(threadIdx.x); w < int(ceil_div(a.queries, 32)); w += int(blockDim.x)) t.bad[w] = 0;
  for (int c = int(threadIdx.x) * 4; c < 2 * t.tile_cells; c += int(blockDim.x) * 4)
    store_as(t.tiles + c, make_float4(0.f, 0.f, 0.f, 0.f));
  if (threadIdx.x == 0) t.begin.set(a);
  __syncthreads();
  KeySums sums;
#pragma unroll 1
  for (int i0 = -kRows; i0 < a.queries; i0 += kRows) {
    const int now = i0 / kRows & 1, next = 1 - now;
#pragma unroll 1
    for (int turn = 0; turn < 2; ++turn) {
      if ((turn == 0) == (2 * warp < warps)) {
        if (i0 + kRows >= a.queries) continue;
        stage_x(a, t, t.x + next * kXTile, i0 + kRows);
        spread_entries(a, t, t.tiles + next * t.tile_cells, i0 + kRows);
      } else if (i0 >= 0) {
        const View<float> tile = t.tiles + now * t.tile_cells;
        const int keys = a.keys - t.begin.key0() - warp * kWarpKeys;
        if (a.columns <= 16) {
          sums.add<2>(tile, t.x + now * kXTile, keys);
        } else {
          sums.add<kSplitTiles>(tile, t.x + now * kXTile, keys);
        }
      }
    }
    __syncthreads();  // this tile is zero, the next one is filled
  }
  const TransposePart place(a, computed_anew(int(blockIdx.x)));
  const View<float> out = a.out.head(place.b) + place.key0 * a.out.stride_row + place.col0;
  const View<const float> initial = a.initial + ((place.b * a.keys + place.key0) * a.dim + place.col0);
  sums.each([&](int key, int col, float one, float two) {
    if (key >= place.keys || col >= place.cols) return;
    const bool both = col + 1 < place.cols;
    one *= a.scale, two *= a.scale;
    if (a.initial) {
      one += initial[key * a.dim + col];
      if (both) two += initial[key * a.dim + col + 1];
    }
    const View<float> at = out + (key * a.out.stride_row + col);
    if (both && a.out.aligned) {
      store_as(at, make_float2(one, two));
    } else {
      at[0] = one;
      if (both) at[1] = two;
    }
  });
  add_left_out<true>(a, View<const uint32_t>(t.bad), place.b, place.key0, place.keys, place.col0, place.cols,
                     [](float weight, float value) { return !has_parts(weight) || !has_parts(value); });
}

}  // namespace

Status spmm_transpose_split(const SparseShape& s, int64_t heads, Input a, Input x, Index index,
                            const float* initial, Output out, float scale, void* stream) {
  if (x.dtype != DType::kFloat32 || a.dtype != DType::kFloat32) return Status::kBadDType;
  return with_transpose_args(s, heads, a, x, index, initial, out, scale, [&](auto args) {
    if constexpr (!std::is_same<decltype(args), Args>::value) {
      return Status::kBadDType;
    } else {
      const int64_t fits = (shared_memory_limit() - SplitTranspose::bytes(0, args.queries)) /
                           (SplitTranspose::bytes(1, 0) - SplitTranspose::bytes(0, 0));
      if (fits < 1) return Status::kUnsupported;
      const int64_t all = ceil_div(s.keys, kWarpKeys), most = fits < kMostWarps ? fits : kMostWarps;
      args.key_blocks = int(ceil_div(all, most));
      const int warps = int(ceil_div(all, args.key_blocks));
      args.keys_at_once = warps * kWarpKeys;
      args.column_blocks = int(ceil_div(s.head_dim, kChunk));
      args.columns = int(round_up(ceil_div(s.head_dim, args.column_blocks), 8));
      return launch("spmm_transpose_split", spmm_transpose_split_kernel,
                    args.batch * args.column_blocks * args.key_blocks, 32 * warps,
                    SplitTranspose::bytes(warps, args.queries), stream, args);
    }
  });
}

}  // namespace pft::cuda
