// A sparse float32 layer's rows as a block works on them: lists and logits of the candidates stay in shared
// memory, all products of its rows with a stretch of keys lie beside them, and what is listed is picked, or
// spread, stretch by stretch.
#pragma once
#include "logit_terms.cuh"
#include "sparse_forward.cuh"
#include "tall_split.cuh"

namespace pft::cuda {

struct ListedArgs : ForwardArgs<float> {
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

}  // namespace pft::cuda
