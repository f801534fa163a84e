// Forward of a sparse layer with many candidates, 16-bit types: all products of a tile by tensor cores, and
// only those of candidates are kept.
//
// A warp owns 16 query rows: their candidates as bits (a word for 32 keys, and how many lie before each word)
// and their logits in candidate order. K streams through shared memory; a product whose bit is set goes to
// its slot, which a popcount finds. After selection V streams, and the same bits spread the weights over
// tiles. A gather moves N*C*D elements through shared memory, tiles N*M*D/16, whatever C is. By
// counts they part at about 200 of 1024 keys.
#include "dense_tile.cuh"

namespace pft::cuda {
namespace {

constexpr int kMostWarps = 8;
constexpr int kWeightsPitch = kGroup + 4;

template <class T>
struct TiledArgs {
  Layer<T> layer;
  Strided<T> out;
  IndexOut new_index;
  View<float> new_logits, lse;
  int warps, tiles, keys_at_once;
  bool bias_shared;
};

__host__ __device__ constexpr int words_of(int keys) { return int(ceil_div(keys, kGroup)) | 1; }
__host__ __device__ constexpr int slots_of(int candidates) { return candidates | 1; }

// What a warp needs for its rows, in bytes. Weights take the place of the queries.
template <class T>
int64_t warp_bytes(const AttentionShape& s) {
  const int64_t query = tile_pitch<T>(s.dim_qk) * int64_t(sizeof(T)), weights = kWeightsPitch * 4;
  return kTileRows *
         ((query > weights ? query : weights) + 4 * slots_of(int(s.candidates)) + 8 * words_of(int(s.keys)));
}

template <class T>
struct TiledMemory {
  View<int> code;
  View<float> bias;
  View<float> z;          // [16, slots]
  View<uint32_t> member;  // [16, words]
  View<int> before;       // [16, words]: candidates in earlier words
  View<T> stream, block_q, q;
  View<float> weights;  // [16, kWeightsPitch], where the queries were
  int slots, words;

  __device__ TiledMemory(SharedMemory& shared, const TiledArgs<T>& a, int warp) {
    const Layer<T>& l = a.layer;
    slots = slots_of(l.candidates);
    words = words_of(l.keys);
    code = shared.take<int>(l.bias ? l.keys : 0);
    bias = shared.take<float>(a.bias_shared ? table_rows(l.window_size) : 0);
    z = shared.take<float>(a.warps * kTileRows * slots) + warp * kTileRows * slots;
    member = shared.take<uint32_t>(a.warps * kTileRows * words) + warp * kTileRows * words;
    before = shared.take<int>(a.warps * kTileRows * words) + warp * kTileRows * words;
    const int pitch = tile_pitch<T>(l.dim_qk), columns = l.dim_v < kColumnBlock ? l.dim_v : kColumnBlock,
              v_pitch = tile_pitch<T>(columns);
    stream = shared.take<T>(a.keys_at_once * (pitch > v_pitch ? pitch : v_pitch));
    SharedMemory again = shared;
    block_q = shared.take<T>(a.warps * kTileRows * pitch);
    q = block_q + warp * kTileRows * pitch;
    weights = again.take<float>(a.warps * kTileRows * kWeightsPitch) + warp * kTileRows * kWeightsPitch;
  }

  // Where the product of (row, the word's bit `col`) belongs in `z`, or -1: not a candidate.
  __device__ __forceinline__ int slot(int row, int word, int col) const {
    const uint32_t members = member[row * words + word];
    if (!(members >> col & 1)) return -1;
    return row * slots + before[row * words + word] + __popc(members & ((1u << col) - 1));
  }
};

// Bits and counts of row r, and its earlier logits; no candidates for a row that does not exist.
template <class T>
__device__ void mark_candidates(const Layer<T>& a, const TiledMemory<T>& memory, int64_t row, int r,
                                bool exists, int lane) {
  const View<uint32_t> member = memory.member + r * memory.words;
  for (int w = lane; w < memory.words; w += 32) member[w] = 0;
  __syncwarp();
  for (int t = lane; exists && t < a.candidates; t += 32) {
    const int key = a.index[row * a.candidates + t];
    atomic_or(member + key / kGroup, 1u << key % kGroup);  // any order gives the same bits
    memory.z[r * memory.slots + t] = a.logits ? float(a.logits[row * a.candidates + t]) : 0.f;
  }
  __syncwarp();
  int sum = 0;
  for (int w0 = 0; w0 < memory.words; w0 += 32) {
    const int w = w0 + lane, own = w < memory.words ? __popc(member[w]) : 0;
    int upto = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int left = __shfl_up_sync(kFullWarp, upto, step);
      if (lane >= step) upto += left;
    }
    if (w < memory.words) memory.before[r * memory.words + w] = sum + upto - own;
    sum += __shfl_sync(kFullWarp, upto, 31);
  }
}

template <class T>
__device__ void tiled_logits(const TiledArgs<T>& a, const TiledMemory<T>& memory, int64_t b, int i0) {
  const Layer<T>& l = a.layer;
  const int pitch = tile_pitch<T>(l.dim_qk), units = tile_units<T>(l.dim_qk);
  const View<const uint8_t> region = l.region ? l.region + b / l.heads % l.patterns * l.queries : l.region;
  for (int key0 = 0; key0 < l.keys; key0 += a.keys_at_once) {
    const int here = l.keys - key0 < a.keys_at_once ? l.keys - key0 : a.keys_at_once;
    const int padded = int(round_up(here, kGroup));
    __syncthreads();
    stage_tile<T>(memory.stream, pitch, l.k.head(b) + key0 * l.k.stride_row, l.k.stride_row, here, padded, 0,
                  l.dim_qk, units, l.k.aligned);
    finish_staging();
    for (int group = 0; group < padded; group += kGroup) {
      const int word = (key0 + group) / kGroup;
      tile_dot<T>(memory.q, memory.stream + group * pitch, pitch, units, [&](int row, int col, float dot) {
        const int slot = memory.slot(row, word, col);
        if (slot < 0) return;
        const int i = i0 + row, j = key0 + group + col;
        float z = memory.z[slot];
        if (l.bias) {
          const int at = memory.code[i] - memory.code[j] + table_center(l.window_size);
          z += a.bias_shared ? float(memory.bias[at]) : float(l.bias[int64_t(at) * l.heads + b % l.heads]);
        }
        if (l.region && region[i] != region[j]) z -= l.region_penalty;
        memory.z[slot] = fmaf(l.scale, dot, z);
      });
    }
  }
}

// Statistics and selection; the logits become weights, zero where dropped.
template <class T>
__device__ void finish_row(const TiledArgs<T>& a, int64_t row, View<float> z, int lane) {
  const int candidates = a.layer.candidates, topk = a.layer.topk;
  const RowStatistics stats = row_statistics(z, candidates, lane);
  if (lane == 0) a.lse[row] = stats.lse;
  if (topk == candidates) {
    for (int t = lane; t < candidates; t += 32) {
      a.new_logits[row * topk + t] = z[t] - stats.max;
      z[t] = expf(z[t] - stats.lse);
    }
    return;
  }
  const Threshold threshold = find_threshold(z, candidates, topk, stats, lane);
  for_each_selected(z, candidates, threshold, lane, [&](int t, int slot) {
    const float value = z[t];
    z[t] = slot < 0 ? 0.f : expf(value - stats.lse);
    if (slot < 0) return;
    a.new_index.store(row * topk + slot, a.layer.index[row * candidates + t]);
    a.new_logits[row * topk + slot] = value - stats.max;
  });
}

template <class T>
__device__ void tiled_values(const TiledArgs<T>& a, const TiledMemory<T>& memory, int64_t b, int i0,
                             int rows) {
  const Layer<T>& l = a.layer;
  const int lane = int(threadIdx.x) % 32;
  for (int col0 = 0; col0 < l.dim_v; col0 += kColumnBlock) {
    const int cols = l.dim_v - col0 < kColumnBlock ? l.dim_v - col0 : kColumnBlock;
    const int units = tile_units<T>(cols), pitch = tile_pitch<T>(cols);
    TileSum<T> sum;
    for (int key0 = 0; key0 < l.keys; key0 += a.keys_at_once) {
      const int here = l.keys - key0 < a.keys_at_once ? l.keys - key0 : a.keys_at_once;
      const int padded = int(round_up(here, kGroup));
      __syncthreads();
      stage_tile<T>(memory.stream, pitch, l.v.head(b) + key0 * l.v.stride_row, l.v.stride_row, here, padded,
                    col0, cols, units, l.v.aligned);
      finish_staging();
      for (int group = 0; group < padded; group += kGroup) {
        for (int r = 0; r < kTileRows; ++r) {
          const int slot = memory.slot(r, (key0 + group) / kGroup, lane);
          memory.weights[r * kWeightsPitch + lane] = slot < 0 ? 0.f : float(memory.z[slot]);
        }
        __syncwarp();
        tile_accumulate<T>(sum, memory.weights, kWeightsPitch, memory.stream + group * pitch, pitch, units);
        __syncwarp();
      }
    }
    for_each_sum(sum, units, [&](int row, int col, float value) {
      if (row >= rows || col >= cols) return;
      (a.out.head(b) + (i0 + row) * a.out.stride_row)[col0 + col] = from_float<T>(value);
    });
  }
}

template <class T>
__global__ void __launch_bounds__(32 * kMostWarps, 1) attention_forward_tiled_kernel(TiledArgs<T> a) {
  const Layer<T>& l = a.layer;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t b = blockIdx.x / unsigned(a.tiles);
  const int first = int(blockIdx.x % unsigned(a.tiles)) * a.warps * kTileRows, i0 = first + warp * kTileRows;
  const auto rows_of = [&](int from, int most) {
    const int left = l.queries - from;
    return left < 0 ? 0 : left < most ? left : most;
  };
  const int rows = rows_of(i0, kTileRows);
  SharedMemory shared;
  const TiledMemory<T> memory(shared, a, warp);

  if (l.bias) {
    for (int j = int(threadIdx.x); j < l.keys; j += int(blockDim.x))
      memory.code[j] = position_code(j, l.window_size);
    for (int r = int(threadIdx.x); a.bias_shared && r < table_rows(l.window_size); r += int(blockDim.x))
      memory.bias[r] = l.bias[int64_t(r) * l.heads + b % l.heads];
  }
  stage_tile<T>(memory.block_q, tile_pitch<T>(l.dim_qk), l.q.head(b) + first * l.q.stride_row, l.q.stride_row,
                rows_of(first, a.warps * kTileRows), a.warps * kTileRows, 0, l.dim_qk,
                tile_units<T>(l.dim_qk),
                l.q.aligned);  // finished by the first finish_staging()
  for (int r = 0; r < kTileRows; ++r) mark_candidates(l, memory, b * l.queries + i0 + r, r, r < rows, lane);
  tiled_logits(a, memory, b, i0);
  for (int r = 0; r < rows; ++r) {
    __syncwarp();
    finish_row(a, b * l.queries + i0 + r, memory.z + r * memory.slots, lane);
  }
  tiled_values(a, memory, b, i0, rows);  // begins with a barrier
}

// Warps and keys at a time; false where not even one warp fits. As many warps as possible on an SM, in two
// blocks if that costs none, as one then computes while the other loads.
template <class T>
bool plan_tiles(const AttentionShape& s, bool bias, TiledArgs<T>* a, int64_t* shared_bytes) {
  const int64_t limit = shared_memory_limit(), cols = s.dim_v < kColumnBlock ? s.dim_v : kColumnBlock;
  const int qk_pitch = tile_pitch<T>(s.dim_qk), v_pitch = tile_pitch<T>(cols);
  const int64_t group_bytes = kGroup * int64_t(sizeof(T)) * (qk_pitch > v_pitch ? qk_pitch : v_pitch);
  const int64_t table = bias ? round_up(int64_t(table_rows(int(s.window_size))) * 4, 16) : 0;
  const int64_t fixed = 128 + (bias ? round_up(s.keys * 4, 16) : 0), warp = warp_bytes<T>(s);
  a->bias_shared = bias && fixed + table + 2 * warp + group_bytes <= limit;
  const int64_t lasting = fixed + (a->bias_shared ? table : 0);
  const auto warps_in = [&](int64_t bytes) {
    const int64_t fit = (bytes - lasting - group_bytes) / warp, needed = ceil_div(s.queries, kTileRows);
    const int64_t most = fit < kMostWarps ? fit : kMostWarps;
    return most < needed ? most : needed;
  };
  const bool two_blocks = warps_in(limit / 2) > 0 && 2 * warps_in(limit / 2) >= warps_in(limit);
  const int64_t budget = two_blocks ? limit / 2 : limit;
  if (warps_in(budget) < 1) return false;
  a->warps = int(warps_in(budget));
  int64_t groups = (budget - lasting - a->warps * warp) / group_bytes;
  const int64_t all = ceil_div(s.keys, kGroup);
  if (groups > 8) groups = 8;
  if (groups > all) groups = all;
  a->keys_at_once = int(groups * kGroup);
  a->tiles = int(ceil_div(s.queries, a->warps * kTileRows));
  *shared_bytes = lasting + a->warps * warp + groups * group_bytes;
  return true;
}

template <class T>
Status run(const AttentionInputs& in, const AttentionOutputs& out, void* stream) {
  const AttentionShape& s = in.shape;
  TiledArgs<T> a{layer_of<T>(in),
                 strided<T>(out.out.m, s.heads, s.dim_v),
                 index_out(out.new_index, out.index_wide),
                 View<float>(out.new_logits),
                 View<float>(out.lse),
                 0,
                 0,
                 0,
                 false};
  int64_t bytes = 0;
  if (!plan_tiles<T>(s, in.bias != nullptr, &a, &bytes)) return Status::kUnsupported;
  return launch("attention_forward_tiled", attention_forward_tiled_kernel<T>, s.windows * s.heads * a.tiles,
                32 * a.warps, bytes, stream, a);
}

}  // namespace

Status attention_forward_tiled(const AttentionInputs& in, const AttentionOutputs& out, void* stream) {
  switch (in.q.dtype) {
    case DType::kFloat16:
      return run<half_t>(in, out, stream);
    case DType::kBFloat16:
      return run<bf16_t>(in, out, stream);
    default:  // no TF32 in place of float32
      return Status::kBadDType;
  }
}

}  // namespace pft::cuda
