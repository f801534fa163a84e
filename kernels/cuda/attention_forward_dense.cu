// Forward of a dense layer in one launch, with or without selection. A block holds the logits of up to 32
// query rows, whole, in shared memory (132 KB at 1024 keys): the largest of a row are known only then. Where
// that does not fit, fewer rows, the rest of the products unused. K and V stream through; what the warps of a
// block add up, each over its own keys, they join at the end. Nothing of size N x M reaches device memory.
//
// With selection, dropped entries become zero weights of a dense product: by analysis cheaper on tensor cores
// than a gather as long as some eighth of a row is kept (128 of 1024). A layer that keeps everything needs no
// whole rows: attention_forward_online takes it, unless its blocks do not fit.
#include <type_traits>

#include "logit_terms.cuh"

namespace pft::cuda {
namespace {

constexpr int kBlockRows = 32, kMostStaged = 256;
template <class T>
constexpr int kMostParts = std::is_same<T, Split>::value ? 4 : 8;  // Split: 16 warps would spill
template <class T>
constexpr int kHalves = kBlockRows / LaneTile<T>::kRows;  // a warp's products are of 16 rows, FFMA: of all

template <class T>
struct DenseArgs {
  Layer<GlobalType<T>> layer;
  Strided<GlobalType<T>> out;
  IndexOut new_index;
  View<float> new_logits, lse;
  int tile_rows;      // of a block, a power of two
  int halves, parts;  // warps: for so many stretches of rows, and of keys
  int tiles, keys_at_once, bias_rows;
};

__host__ __device__ constexpr int row_pitch(int keys) { return int(round_up(keys, kGroup)) + 8; }
template <class T>
struct DenseMemory {
  Terms<kBlockRows> row_terms;
  Terms<kMostStaged> terms;
  View<float> inverse, bias, z;
  View<SharedType<T>> q, stream;
  View<float> scratch;  // where the stream was

  __device__ DenseMemory(SharedMemory& shared, const DenseArgs<T>& a) {
    row_terms.code = shared.take<int>(2 * kBlockRows);
    terms.code = shared.take<int>(2 * kMostStaged);
    inverse = shared.take<float>(kBlockRows);
    bias = a.bias_rows ? shared.take<float>(a.bias_rows) : View<float>();
    z = shared.take<float>(a.tile_rows * row_pitch(a.layer.keys));
    q = shared.take<SharedType<T>>(key_elements<T>(a.halves * LaneTile<T>::kRows, a.layer.dim_qk));
    SharedMemory again = shared;
    scratch = again.take<float>(scratch_floats(a.halves, a.parts));
    const int64_t k = key_elements<T>(a.keys_at_once, a.layer.dim_qk),
                  v = value_elements<T>(a.keys_at_once, a.layer.dim_v);
    stream = shared.take<SharedType<T>>(k > v ? k : v);
  }
  __host__ __device__ static int64_t scratch_floats(int halves, int parts) {
    return int64_t(parts / 2) * halves * LaneTile<T>::kSumRows * LaneTile<T>::kSumCells * 32;
  }
};

// Of a warp in its block, worked out where it is needed: registers are short.
template <class T>
struct Place {
  int more;  // halves - 1

  __device__ explicit Place(const DenseArgs<T>& a) : more(a.halves - 1) {}
  __device__ static int warp() { return int(threadIdx.x) / 32; }
  __device__ int half() const { return warp() & more; }
  __device__ int part() const { return warp() >> more; }
  __device__ int row0() const { return half() * LaneTile<T>::kRows; }
};

// Window-head b's rows [first, first + count).
struct BlockRows {
  unsigned b;
  int first, count;

  template <class T>
  __device__ __forceinline__ BlockRows(const DenseArgs<T>& a, int block)
      : b(unsigned(block) / unsigned(a.tiles)),
        first(int(unsigned(block) % unsigned(a.tiles)) * a.tile_rows) {
    count = a.layer.queries - first < a.tile_rows ? a.layer.queries - first : a.tile_rows;
  }
};

template <class T>
__device__ __forceinline__ void store_logits(const LaneProducts<T>& s, View<float> z, int pitch, int row0,
                                             int tile_rows) {
#pragma unroll
  for (int r = 0; r < LaneTile<T>::kLaneRows; ++r) {
    const int row = row0 + LaneTile<T>::row(r);
    if (row >= tile_rows) continue;
#pragma unroll
    for (int c = 0; c < LaneTile<T>::kLaneOthers; ++c) {
      if constexpr (kTensorCores<T>) {  // two neighbours at once
        if (c % 2 == 0)
          store_as(z + (row * pitch + LaneTile<T>::other(0)) + c / 2 * 8, make_float2(s[r][c], s[r][c + 1]));
      } else {
        z[row * pitch + LaneTile<T>::other(c)] = s[r][c];
      }
    }
  }
}

template <class T>
__device__ void dense_logits(const DenseArgs<T>& a, const DenseMemory<T>& memory, const Place<T>& place,
                             const BiasSlice& bias, View<const uint8_t> region, int64_t b) {
  const auto& l = a.layer;
  const View<const GlobalType<T>> k = l.k.head(b);
  for (int key0 = 0; key0 < l.keys; key0 += a.keys_at_once) {
    const int here = l.keys - key0 < a.keys_at_once ? l.keys - key0 : a.keys_at_once;
    const int padded = int(round_up(here, kGroup));
    stage_lanes<T>(memory.stream, a.keys_at_once, k + key0 * l.k.stride_row, l.k.stride_row, here, padded,
                   l.dim_qk, l.k.aligned);
    stage_terms(memory.terms, l, region, key0, padded, l.keys);
    finish_staging();
    for (int group = place.part() * kGroup; group < padded; group += a.parts * kGroup) {
      LaneProducts<T> s;
      lane_products<T>(s, memory.q, place.row0(), a.halves * LaneTile<T>::kRows, memory.stream, group,
                       a.keys_at_once, l.dim_qk);
      finish_logits<T>(s, l, memory.row_terms.from(place.row0()), bias, memory.terms.from(group),
                       here - group);
      store_logits<T>(s, memory.z + (key0 + group), row_pitch(l.keys), place.row0(), a.tile_rows);
    }
    __syncthreads();
  }
}

// Statistics, selection, and the row's logits replaced by unnormalised weights, zero where dropped or beyond
// the keys.
template <class T, class Row>
__device__ __forceinline__ void finish_row(const DenseArgs<T>& a, const DenseMemory<T>& memory,
                                           const Row& row, const NormalRank& rank, View<float> z, int64_t at,
                                           int r) {
  const int keys = a.layer.keys, topk = a.layer.topk, padded = int(round_up(keys, kGroup));
  const RowStatistics stats = statistics_of(row);
  if (row.lane == 0) {
    a.lse[at] = stats.lse;
    memory.inverse[r] = expf(stats.max - stats.lse) / kWeightScale<T>;
  }
  if (topk == keys) {
    row.each([&](int t, float value) {
      if (t < padded) z[t] = t < keys ? scaled_weight<T>(value - stats.max) : 0.f;
    });
    return;
  }
  const Threshold threshold = threshold_of(row, topk, stats, rank);
  const IndexOut new_index = a.new_index.from(at * topk);
  const View<float> new_logits = a.new_logits + at * topk;
  select_of(row, threshold, [&](int t, float value, int slot) {
    const float relative = value - stats.max;
    if (t < padded) z[t] = slot < 0 ? 0.f : scaled_weight<T>(relative);
    if (slot < 0) return;
    new_index.store(slot, t);
    new_logits[slot] = relative;
  });
}

// A lane's weights for the group, read again for rows beyond those of the tile.
template <class T>
__device__ __forceinline__ void load_weights(LaneProducts<T>& w, View<const float> z, int pitch, int row0,
                                             int tile_rows) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const View<const float> row =
        z + (((row0 + computed_anew(LaneTile<T>::row(r))) & (tile_rows - 1)) * pitch + LaneTile<T>::other(0));
#pragma unroll
    for (int c = 0; c < 8; c += 2) {
      const float2 pair = load_as<float2>(row + c / 2 * 8);
      w[r][c] = pair.x, w[r][c + 1] = pair.y;
    }
  }
}

// The sums of all parts in those of the first, always in the same order.
template <class T>
__device__ __forceinline__ void join_parts(LaneSums<T>& sum, const DenseArgs<T>& a, View<float> scratch,
                                           const Place<T>& place) {
  constexpr int kR = LaneTile<T>::kSumRows, kC = LaneTile<T>::kSumCells;
  for (int half = a.parts / 2; half >= 1; half /= 2) {
    const int slot = (place.part() % half * a.halves + place.half()) * kR * kC;
    const View<float> at = scratch + (slot * 32 + int(threadIdx.x) % 32);
    if (place.part() >= half && place.part() < 2 * half) {
      __syncwarp();  // a branch, not so many instructions without effect in the other warps
#pragma unroll
      for (int e = 0; e < kR * kC; ++e) at[32 * e] = sum[e / kC][e % kC];
    }
    __syncthreads();
    if (place.part() < half) {
      __syncwarp();
#pragma unroll
      for (int e = 0; e < kR * kC; ++e) sum[e / kC][e % kC] += at[32 * e];
    }
    __syncthreads();
  }
}

template <class T>
__device__ void weighted_values(const DenseArgs<T>& a, const DenseMemory<T>& memory, const Place<T>& place) {
  const auto& l = a.layer;
  const int z_pitch = row_pitch(l.keys);
  for (int col0 = 0; col0 < l.dim_v; col0 += LaneTile<T>::kColumns) {
    const int cols = l.dim_v - col0 < LaneTile<T>::kColumns ? l.dim_v - col0 : LaneTile<T>::kColumns;
    WeightedSums<T> sums;
    for (int key0 = 0; key0 < l.keys; key0 += a.keys_at_once) {
      const int here = l.keys - key0 < a.keys_at_once ? l.keys - key0 : a.keys_at_once;
      const int padded = int(round_up(here, kGroup));
      // Where the block's values and results lie is worked out anew: it would take registers all along.
      const View<const GlobalType<T>> v = l.v.head(BlockRows(a, computed_anew(int(blockIdx.x))).b);
      stage_values<T>(memory.stream, a.keys_at_once, v + key0 * l.v.stride_row, l.v.stride_row, here, padded,
                      col0, cols, l.v.aligned);
      finish_staging();
      for (int group = place.part() * kGroup; group < padded; group += a.parts * kGroup) {
        const View<const float> z = memory.z + (key0 + group);
        if constexpr (kTensorCores<T>) {
          LaneProducts<T> w;
          load_weights<T>(w, z, z_pitch, place.row0(), a.tile_rows);
          add_weighted<T>(sums, w, memory.stream + group * value_pitch<T>(cols), a.keys_at_once, cols);
        } else {
          add_weighted(sums, LaneRows(z, z_pitch, a.tile_rows - 1), memory.stream + group,
                       values_pitch(a.keys_at_once), cols);
        }
      }
      __syncthreads();
    }
    LaneSums<T> sum;
    sums.join(sum);
    join_parts<T>(sum, a, memory.scratch, place);
    if (place.part() != 0) continue;
    const BlockRows rows(a, computed_anew(int(blockIdx.x)));
#pragma unroll
    for (int r = 0; r < LaneTile<T>::kLaneRows; ++r) {
      const int row = place.row0() + computed_anew(LaneTile<T>::row(r));
      if (row >= rows.count) continue;
      const float inverse = memory.inverse[row];
      const View<GlobalType<T>> out = a.out.head(rows.b) + (rows.first + row) * a.out.stride_row + col0;
#pragma unroll
      for (int c = 0; c < LaneTile<T>::kLaneColumns; ++c) {
        const int col = computed_anew(LaneTile<T>::column(c));
        if (col < cols) out[col] = from_float<GlobalType<T>>(LaneTile<T>::cell(sum, r, c) * inverse);
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void dense_block(const DenseArgs<T>& a) {
  const auto& l = a.layer;
  const Place<T> place(a);
  const BlockRows rows(a, int(blockIdx.x));
  const View<const uint8_t> region = region_of(l, rows.b);
  SharedMemory shared;
  const DenseMemory<T> memory(shared, a);
  const BiasSlice bias = bias_slice(l, memory.bias, rows.b, rows.first, rows.count);
  const int padded = a.halves * LaneTile<T>::kRows;
  stage_terms(memory.row_terms, l, region, rows.first, padded, l.queries, row_code_offset(l, bias));
  stage_lanes<T>(memory.q, padded, l.q.head(rows.b) + rows.first * l.q.stride_row, l.q.stride_row, rows.count,
                 padded, l.dim_qk, l.q.aligned);  // finished by the first finish_staging()

  dense_logits(a, memory, place, bias, region, rows.b);
  // Where a row lies is worked out anew: registers are short.
  const NormalRank rank(l.keys, l.topk);
  for (int r = place.warp(); r < rows.count; r += a.halves * a.parts) {
    const View<float> z = memory.z + r * row_pitch(l.keys);
    with_row(z, l.keys, int(threadIdx.x) % 32, [&](const auto& row) {
      const BlockRows here(a, computed_anew(int(blockIdx.x)));
      finish_row(a, memory, row, rank, z, int64_t(here.b) * l.queries + here.first + r, r);
    });
  }
  __syncthreads();
  weighted_values(a, memory, place);
}

template <class T>
__global__ void __launch_bounds__(32 * kMostParts<T> * kHalves<T>, 1)
    attention_forward_dense_kernel(DenseArgs<T> a) {
  dense_block(a);
}
__global__ void __launch_bounds__(32 * kMostParts<Split> * kHalves<Split>, 1)
    attention_forward_dense_split_kernel(DenseArgs<Split> a) {
  dense_block(a);
}

// Divides shared memory for tiles of a.tile_rows; the bytes it takes, or 0 where they do not fit.
template <class T>
int64_t plan_dense(const AttentionShape& s, bool bias, DenseArgs<T>& a) {
  const int64_t limit = shared_memory_limit(), size = int64_t(sizeof(SharedType<T>));
  const auto stream_bytes = [&](int64_t keys) {
    const int64_t k = key_elements<T>(keys, s.dim_qk), v = value_elements<T>(keys, s.dim_v);
    return round_up((k > v ? k : v) * size, 16);
  };
  a.halves = int(ceil_div(a.tile_rows, LaneTile<T>::kRows));
  const int64_t fixed = (2 * kBlockRows + 2 * kMostStaged + kBlockRows) * 4 +
                        round_up(int64_t(a.tile_rows) * row_pitch(int(s.keys)) * 4, 16) +
                        round_up(key_elements<T>(a.halves * LaneTile<T>::kRows, s.dim_qk) * size, 16);
  for (a.parts = kMostParts<T>; a.parts >= 1; a.parts /= 2) {
    const int64_t scratch = DenseMemory<T>::scratch_floats(a.halves, a.parts) * 4;
    const auto needed = [&](int64_t keys) {
      return fixed + (stream_bytes(keys) > scratch ? stream_bytes(keys) : scratch);
    };
    // The slice of the table stays in shared memory unless that would keep half the warps from their keys.
    const int64_t slice = bias ? round_up(bias_slice_rows(s.window_size, a.tile_rows) * 4, 16) : 0;
    const int64_t half = ceil_div(a.parts, 2) * kGroup;
    a.bias_rows = slice && needed(half) + slice <= limit ? int(slice / 4) : 0;
    const int64_t rest = limit - a.bias_rows * 4;
    const int64_t all = round_up(s.keys, kGroup);
    const int64_t most = a.parts == kMostParts<T> ? kMostStaged : a.parts * kGroup;
    for (int64_t keys = most < all ? most : all; keys >= kGroup; keys -= kGroup) {
      if (needed(keys) > rest || (keys < half && keys < all && a.parts > 1)) continue;
      a.keys_at_once = int(keys);
      return needed(keys) + a.bias_rows * 4;
    }
  }
  return 0;
}

template <class T>
Status run(const char* name, void (*kernel)(DenseArgs<T>), const AttentionInputs& in,
           const AttentionOutputs& out, void* stream) {
  const AttentionShape& s = in.shape;
  DenseArgs<T> a{layer_of<GlobalType<T>>(in),
                 strided<GlobalType<T>>(out.out.m, s.heads, s.dim_v),
                 index_out(out.new_index, out.index_wide),
                 View<float>(out.new_logits),
                 View<float>(out.lse),
                 kBlockRows,
                 0,
                 0,
                 0,
                 0,
                 0};
  int64_t bytes = plan_dense(s, in.bias != nullptr, a);
  while ((!bytes || a.parts < kMostParts<T>) && a.tile_rows > 16) {  // fewer rows rather than fewer warps
    a.tile_rows /= 2;
    bytes = plan_dense(s, in.bias != nullptr, a);
  }
  while (!bytes && a.tile_rows > 1) {
    a.tile_rows /= 2;
    bytes = plan_dense(s, in.bias != nullptr, a);
  }
  if (!bytes) return Status::kUnsupported;
  a.tiles = int(ceil_div(s.queries, a.tile_rows));
  return launch(name, kernel, s.windows * s.heads * a.tiles, 32 * a.halves * a.parts, bytes, stream, a);
}

}  // namespace

Status attention_forward_dense(const AttentionInputs& in, const AttentionOutputs& out, Float32 how,
                               void* stream) {
  const AttentionShape& s = in.shape;
  if (!s.windows || !s.heads || !s.queries) return Status::kOk;
  if (!s.keys || !s.topk) return Status::kBadShape;
  if (s.topk >= s.keys) {
    const Status status = attention_forward_online(in, out, how, stream);
    if (status != Status::kUnsupported) return status;
  }
  if (splits(in.q.dtype, how)) {
    const Status status =
        run<Split>("attention_forward_dense_split", attention_forward_dense_split_kernel, in, out, stream);
    if (status != Status::kUnsupported || how == Float32::kSplit) return status;
  }
  return with_type(in.q.dtype, [&](auto tag) {
    using T = decltype(tag);
    return run<T>("attention_forward_dense", attention_forward_dense_kernel<T>, in, out, stream);
  });
}

}  // namespace pft::cuda
