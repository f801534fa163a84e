// A sparse float32 layer's rows as a block works on them: lists and logits of the candidates stay in shared
// memory, all products of its rows with a stretch of keys lie beside them, and what is listed is picked, or
// spread, stretch by stretch.
#pragma once
#include "logit_terms.cuh"
#include "sparse_forward.cuh"
#include "tall_split.cuh"

namespace pft::cuda {

constexpr int kMostKeys = 32767;   // a list holds int16
constexpr int kMostListed = 1024;  // registers hold a row

struct ListedArgs {
  Layer<float> layer;
  bool logits_aligned;    // they begin on 16 bytes
  int rows = 0;           // of a block: kTallRows, twice or four times as many
  int keys_at_once = 0;   // in shared memory, a multiple of kGroup
  int tile_keys = 0;      // whose products are: as many, or twice as many
  int stretches = 0;      // of tile_keys keys
  int tiles = 0;          // blocks of a window-head
  int bias_rows = 0;      // of the table that are in shared memory
  uint32_t per_line = 0;  // 2^32 / window_size, rounded up

  // Warps share a stretch of keys among `parts`, each for kTallRows rows.
  __host__ __device__ int row_groups() const { return rows / kTallRows; }
  __host__ __device__ int parts() const { return kTallWarps / row_groups(); }
  // Rows that lanes of a warp work on at once lie in different banks.
  __host__ __device__ int list_pitch() const { return int(round_up(layer.candidates, 8)) + 8; }
  __host__ __device__ int z_pitch() const { return int(round_up(layer.candidates, 8)) + 8; }
  __host__ __device__ int pitch() const { return tile_keys + 8; }
};

struct ListedMemory {
  View<float> z;         // [rows, z_pitch]: earlier logits, logits, weights of what is kept
  View<int16_t> list;    // [rows, list_pitch]: keys; then those that are kept
  View<uint16_t> range;  // [rows, stretches, 2]: entries of a list that lie in a stretch, first and beyond
  View<uint32_t> bad;    // whether any value is not finite
  View<float> bias;      // the slice of the table that the rows meet
  View<float> tile;      // [rows, pitch]: products, then weights
  View<bf16_t> stream;   // keys, then values
  View<bf16_t> queries;  // before there are products
  View<float> sums;      // after all products

  __device__ ListedMemory(SharedMemory& shared, const ListedArgs& a) {
    z = shared.take<float>(a.rows * a.z_pitch());
    list = shared.take<int16_t>(a.rows * a.list_pitch());
    range = shared.take<uint16_t>(2 * a.rows * a.stretches);
    bad = shared.take<uint32_t>(1);
    bias = shared.take<float>(a.bias_rows);
    SharedMemory before = shared, after = shared;
    queries = before.take<bf16_t>(a.rows * kSplitParts * kChunk);
    sums = after.take<float>(kTallWarps / 2 * kTallRows * kChunk);
    tile = shared.take<float>(tile_floats(a.rows, a.tile_keys));
    stream = shared.take<bf16_t>(a.keys_at_once * kSplitParts * kChunk);
  }
  // The tile's place has room for queries and sums too: twice as many bytes a row and channel as parts take.
  __host__ __device__ static int64_t tile_floats(int64_t rows, int64_t tile_keys) {
    const int64_t tile = rows * (tile_keys + 8), queries = rows * kChunk * kSplitParts / 2,
                  sums = kTallWarps / 2 * kTallRows * kChunk;
    return tile > queries ? (tile > sums ? tile : sums) : (queries > sums ? queries : sums);
  }
  static int64_t bytes(const ListedArgs& a) {
    return a.rows * (a.z_pitch() * 4 + a.list_pitch() * 2) + a.rows * a.stretches * 4 + 16 +
           round_up(a.bias_rows * 4, 16) + round_up(tile_floats(a.rows, a.tile_keys) * 4, 16) +
           int64_t(a.keys_at_once) * kSplitParts * kChunk * 2;
  }
};

// Rows [first, first + count) of window-head b.
struct ListedRows {
  int64_t b;
  int first, count;

  __device__ __forceinline__ ListedRows(const ListedArgs& a, int block)
      : b(unsigned(block) / unsigned(a.tiles)), first(int(unsigned(block) % unsigned(a.tiles)) * a.rows) {
    count = a.layer.queries - first < a.rows ? a.layer.queries - first : a.rows;
  }
  __device__ __forceinline__ int64_t row(const ListedArgs& a, int r) const {
    return b * a.layer.queries + first + r;
  }
};

// Those that are this warp's, of the first `count`: neighbours, whose lists begin in different banks.
struct OwnRows {
  int first, last;

  __device__ __forceinline__ OwnRows(const ListedArgs& a, int count) {
    const int each = a.rows / kTallWarps;
    first = int(threadIdx.x) / 32 * each, last = first + each < count ? first + each : count;
  }
};

// Lists and earlier logits of the block's rows on their way into shared memory; finish_staging() ends it.
__device__ __forceinline__ void stage_lists(const ListedArgs& a, const ListedMemory& memory,
                                            const ListedRows& rows) {
  const int candidates = a.layer.candidates, lane = int(threadIdx.x) % 32;
  const OwnRows mine(a, rows.count);
  const IndexView& index = a.layer.index;
  const View<const float> logits = a.layer.logits;
  const bool whole = index.aligned && index.narrow && candidates % 8 == 0,
             whole_logits = a.logits_aligned && candidates % 4 == 0;
  for (int r = mine.first; r < mine.last; ++r) {
    const View<int16_t> list = memory.list + r * a.list_pitch();
    const View<float> z = memory.z + r * a.z_pitch();
    const int64_t from = rows.row(a, r) * candidates;
    if (whole) {
      for (int t = lane * 8; t < candidates; t += 32 * 8) cp_async_16(list + t, index.narrow + (from + t));
    } else {
#pragma unroll 1
      for (int t = lane; t < candidates; t += 32) list[t] = int16_t(index[from + t]);
    }
    if (logits && whole_logits) {
      for (int t = lane * 4; t < candidates; t += 32 * 4) cp_async_16(z + t, logits + (from + t));
    } else {
#pragma unroll 1
      for (int t = lane; t < candidates; t += 32) z[t] = logits ? float(logits[from + t]) : 0.f;
    }
  }
}

// Finds where the stretches begin in the first `kept` entries of this warp's lists, which ascend.
__device__ __forceinline__ void find_ranges(const ListedArgs& a, const ListedMemory& memory, int count,
                                            int kept) {
  const OwnRows mine(a, count);
  for (int p = int(threadIdx.x) % 32; p < (mine.last - mine.first) * a.stretches; p += 32) {
    const int stretch = int(unsigned(p) % unsigned(a.stretches)),
              r = mine.first + int(unsigned(p) / unsigned(a.stretches));
    const View<const int16_t> list = memory.list + r * a.list_pitch();
    int first = 0;  // of those that lie beyond
    for (int left = kept; left > 0;) {
      const int half = left / 2;
      const bool below = list[first + half] < (stretch + 1) * a.tile_keys;
      first = below ? first + half + 1 : first;
      left = below ? left - half - 1 : half;
    }
    const View<uint16_t> range = memory.range + 2 * (r * a.stretches + stretch);
    if (stretch == 0) range[0] = 0;
    range[1] = uint16_t(first);
    if (stretch + 1 < a.stretches) range[2] = uint16_t(first);
  }
  __syncwarp();
}

// f(r, entry, key) for the entries that lie in a stretch of keys, of this warp's rows: four at a time, as a
// row has few. `entry` counts in z.
template <class F>
__device__ __forceinline__ void for_each_entry(const ListedArgs& a, const ListedMemory& memory,
                                               const OwnRows& mine, int stretch, F f) {
  constexpr int kLanes = 8;
  const int lane = int(threadIdx.x) % 32;
  for (int r = mine.first + lane / kLanes; r < mine.last; r += 32 / kLanes) {
    const uint32_t range = load_as<uint32_t>(memory.range + 2 * (r * a.stretches + stretch));
    const int end = int(range >> 16), row = r * a.z_pitch();
    const View<const int16_t> list = memory.list + r * a.list_pitch();
#pragma unroll 1
    for (int t = int(range & 0xffffu) + lane % kLanes; t < end; t += kLanes) f(r, row + t, int(list[t]));
  }
}

// Of `most` keys from key0 on those that are there.
__device__ __forceinline__ int keys_here(const ListedArgs& a, int key0, int most) {
  return a.layer.keys - key0 < most ? a.layer.keys - key0 : most;
}
template <class Odd = KeepAll>
__device__ __forceinline__ void stage_stretch(const ListedArgs& a, const ListedMemory& memory, int64_t b,
                                              const Strided<const float>& from, int key0, int col0, int cols,
                                              const Odd& odd = Odd()) {
  const int here = keys_here(a, key0, a.keys_at_once);
  stage_tall(memory.stream, a.keys_at_once, from.head(b) + key0 * from.stride_row, from.stride_row, here,
             int(round_up(here, kGroup)), col0, cols, from.aligned, odd);
}

// This warp's part of a stretch: its rows, and every so many-th group of keys.
struct Part {
  int row0, first, step;

  __device__ __forceinline__ explicit Part(const ListedArgs& a) {
    const unsigned warp = threadIdx.x / 32, groups = unsigned(a.row_groups());
    row0 = int(warp % groups) * kTallRows, first = int(warp / groups) * kGroup, step = a.parts() * kGroup;
  }
};

// pick(r, entry, key, place of the product) for what this warp's rows list, from products of up to kChunk
// channels of the block's rows with all keys. All that was staged before has arrived when meanwhile() is
// called.
template <class Meanwhile, class Pick>
__device__ __forceinline__ void for_each_listed_product(const ListedArgs& a, const ListedMemory& memory,
                                                        const ListedRows& rows, const Part& part,
                                                        const Strided<const float>& left,
                                                        const Strided<const float>& right, int dim,
                                                        Meanwhile meanwhile, Pick pick) {
  const int lane = int(threadIdx.x) % 32, keys = a.layer.keys;
  const OwnRows mine(a, rows.count);
  stage_tall(memory.queries, a.rows, left.head(rows.b) + rows.first * left.stride_row, left.stride_row,
             rows.count, a.rows, 0, dim, left.aligned);
  stage_stretch(a, memory, rows.b, right, 0, 0, dim);
  finish_staging();
  const TallRows queries(memory.queries + part.row0 * kChunk, a.rows * kChunk);
  meanwhile();
  __syncthreads();  // the queries have been read
  for (int stretch = 0; stretch < a.stretches; ++stretch) {
    const int tile0 = stretch * a.tile_keys, end = tile0 + keys_here(a, tile0, a.tile_keys);
    for (int key0 = tile0; key0 < end; key0 += a.keys_at_once) {
      const int here = keys_here(a, key0, a.keys_at_once);
      for (int group = part.first; group < here; group += part.step) {
        const View<float> to =
            memory.tile + ((part.row0 + lane / 4) * a.pitch() + (key0 - tile0) + group + lane % 4 * 2);
        queries.multiply(memory.stream + group * kChunk, a.keys_at_once * kChunk, dim,
                         [&](int tile, int n, const float (&d)[4]) {
                           const View<float> at = to + (tile * 16 * a.pitch() + n * 8);
                           store_as(at, make_float2(d[0], d[1]));
                           store_as(at + 8 * a.pitch(), make_float2(d[2], d[3]));
                         });
      }
      __syncthreads();  // the products are there, the keys have been used
      if (key0 + a.keys_at_once < keys)
        stage_stretch(a, memory, rows.b, right, key0 + a.keys_at_once, 0, dim);
      if (key0 + a.keys_at_once < end) __syncthreads();
    }
    for_each_entry(a, memory, mine, stretch, [&](int r, int entry, int key) {
      pick(r, entry, key, View<const float>(memory.tile + (r * a.pitch() - tile0 + key)));
    });
    if (end < keys) __syncthreads();  // the products have been used, the keys are there
  }
}

// f(row), with as few registers as up to kMostListed entries need.
template <class F>
__device__ __forceinline__ void with_listed_row(View<const float> z, int count, int lane, F f) {
  if (count <= 64) {
    f(RowInRegisters<2>(z, count, lane));
  } else if (count <= 128) {
    f(RowInRegisters<4>(z, count, lane));
  } else if (count <= 256) {
    f(RowInRegisters<8>(z, count, lane));
  } else {
    f(RowInRegisters<kMostListed / 32>(z, count, lane));
  }
}

// What is added to the logits of a row: bias and region penalty.
struct ListedTerms {
  View<const uint8_t> region;
  int code_offset;

  // The slice of the table on its way into shared memory, by all threads of the block.
  __device__ __forceinline__ ListedTerms(const ListedArgs& a, const ListedMemory& memory,
                                         const ListedRows& rows)
      : region(region_of(a.layer, rows.b)),
        code_offset(
            row_code_offset(a.layer, bias_slice(a.layer, memory.bias, rows.b, rows.first, rows.count))) {}

  // position_code() without a division: exact below 2^15 positions.
  __device__ __forceinline__ static int code_of(const ListedArgs& a, int position) {
    const int line = int(uint64_t(uint32_t(position)) * a.per_line >> 32);
    return position + line * (a.layer.window_size - 1);
  }
  template <int kEach>
  __device__ __forceinline__ void add(RowInRegisters<kEach>& row, const ListedArgs& a,
                                      const ListedMemory& memory, View<const int16_t> list, int i) const {
    if (a.layer.bias) {
      const int code = code_of(a, i) + code_offset;
#pragma unroll
      for (int e = 0; e < kEach; ++e) {  // beyond the last entry: minus infinity, whatever is added
        const int t = row.lane + 32 * e < row.count ? row.lane + 32 * e : row.count - 1;
        row.z[e] += memory.bias[code - code_of(a, list[t])];
      }
    }
    if (region) {
      const int label = region[i];
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const int t = row.lane + 32 * e;
        if (t < row.count && region[list[t]] != label) row.z[e] -= a.layer.region_penalty;
      }
    }
  }
};

inline ListedArgs listed_args(const AttentionInputs& in) {
  ListedArgs a{layer_of<float>(in), reinterpret_cast<uintptr_t>(in.logits) % 16 == 0};
  if (in.bias) a.per_line = uint32_t((int64_t(1) << 32) / in.shape.window_size + 1);
  return a;
}

// Chooses rows and stretches of keys: as many rows as fit beside keys enough for all warps, since keys and
// values are split anew for every block. The bytes it takes, or 0 where nothing fits.
inline int64_t plan_listed(const AttentionShape& s, bool bias, ListedArgs& a) {
  if (s.dim_qk > kChunk || s.keys > kMostKeys || s.candidates > kMostListed) return 0;
  constexpr int kTiles[][2] = {{256, 256}, {256, 128}, {128, 128}, {128, 64}, {64, 64}, {32, 32}};
  const int64_t limit = shared_memory_limit(), all = round_up(s.keys, kGroup), batch = s.windows * s.heads;
  for (a.rows = 4 * kTallRows; a.rows >= kTallRows; a.rows /= 2) {
    const bool idle = a.rows / 2 >= s.queries || batch * ceil_div(s.queries, a.rows) < multiprocessors();
    if (idle && a.rows > kTallRows) continue;
    a.bias_rows = bias ? int(bias_slice_rows(s.window_size, a.rows)) : 0;
    for (const auto& [tile, stream] : kTiles) {
      if (stream < a.parts() * kGroup && a.rows > kTallRows) continue;
      a.tile_keys = int(tile < all ? tile : all), a.keys_at_once = int(stream < all ? stream : all);
      a.stretches = int(ceil_div(s.keys, a.tile_keys));
      const int64_t bytes = ListedMemory::bytes(a);
      if (bytes <= limit) return bytes;
    }
  }
  return 0;
}

// Whether tensor cores are to compute all of a float32 layer's products, six for one: by counts, not measured
// (kernels/cuda/README.md), where what is gathered otherwise, one by one, candidates and kept entries, is a
// quarter of the keys.
inline bool split_tiles_pay(const AttentionShape& s) {
  const int64_t kept = s.topk < s.candidates ? s.topk : s.candidates;
  return (s.candidates + kept) * 4 >= s.keys;
}

// The logits of all that this warp's rows list, in z, by all threads of the block. Returns what is to be
// added to them.
__device__ __forceinline__ ListedTerms stage_listed_logits(const ListedArgs& a, const ListedMemory& memory,
                                                           const ListedRows& rows, const Part& part) {
  const auto& l = a.layer;
  stage_lists(a, memory, rows);
  const ListedTerms terms(a, memory, rows);
  for_each_listed_product(
      a, memory, rows, part, l.q, l.k, l.dim_qk, [&] { find_ranges(a, memory, rows.count, l.candidates); },
      [&](int, int entry, int, View<const float> product) {
        memory.z[entry] = fmaf(l.scale, product[0], memory.z[entry]);
      });
  return terms;
}

}  // namespace pft::cuda
