// Forward of a dense layer in one launch, with or without selection. A block owns 16 query rows and holds
// their logits, 16 x M, in shared memory (66 KB at M = 1024): top-k needs whole rows, so that an online
// softmax would not do. Rows too long for that come fewer at a time, the rest of the product's 16 rows
// unused. K and V stream through; products of tiles, on tensor cores for 16-bit types. Nothing of size N x M
// reaches device memory.
//
// With selection, dropped entries become zero weights of a dense product: by analysis cheaper on tensor cores
// than a gather as long as some eighth of a row is kept (128 of 1024).
#include "dense_tile.cuh"

namespace pft::cuda {
namespace {

constexpr int kWarps = 8;

template <class T>
struct DenseArgs {
  Layer<T> layer;
  Strided<T> out;
  IndexOut new_index;
  View<float> new_logits, lse;
  int tile_rows;  // 16, or a smaller power of two
  int tiles, keys_at_once;
  int bias_rows;  // of the table, that a tile keeps in shared memory; 0: it reads them from global memory
  int64_t stream_bytes;
};

template <class T>
struct DenseMemory {
  View<float> z;  // [tile_rows, pitch]
  View<float> inverse;
  View<int> code;
  View<float> bias;  // rows of the head's column that this tile meets, from bias_first
  View<T> q;
  int z_pitch, bias_first;

  __device__ DenseMemory(SharedMemory& shared, const DenseArgs<T>& a, int i0) {
    const int w = a.layer.window_size;
    z_pitch = int(round_up(a.layer.keys, kGroup)) + 4;
    z = shared.take<float>(a.tile_rows * z_pitch);
    inverse = shared.take<float>(a.tile_rows);
    code = shared.take<int>(a.layer.bias ? a.layer.keys : 0);
    bias = shared.take<float>(a.bias_rows);
    q = shared.take<T>(kTileRows * tile_pitch<T>(a.layer.dim_qk));
    bias_first = a.layer.bias ? i0 / w * (2 * w - 1) : 0;
  }
};

// The tile's slice of the bias table: queries of window lines y0..y1 meet rows y0*(2w-1) .. (y1+w)*(2w-1).
template <class T>
__device__ void prepare(const DenseArgs<T>& a, const DenseMemory<T>& memory, int64_t b, int i0, int rows) {
  const Layer<T>& layer = a.layer;
  const int w = layer.window_size;
  stage_tile<T>(memory.q, tile_pitch<T>(layer.dim_qk), layer.q.head(b) + i0 * layer.q.stride_row,
                layer.q.stride_row, rows, kTileRows, 0, layer.dim_qk, tile_units<T>(layer.dim_qk),
                layer.q.aligned);
  if (!layer.bias) return;
  for (int j = int(threadIdx.x); j < layer.keys; j += int(blockDim.x)) memory.code[j] = position_code(j, w);
  if (!a.bias_rows) return;
  const int last = ((i0 + rows - 1) / w + w) * (2 * w - 1);
  for (int r = int(threadIdx.x); r < last - memory.bias_first; r += int(blockDim.x)) {
    memory.bias[r] = layer.bias[int64_t(memory.bias_first + r) * layer.heads + b % layer.heads];
  }
}

template <class T>
__device__ void dense_logits(const DenseArgs<T>& a, const DenseMemory<T>& memory, View<T> keys, int64_t b,
                             int i0, int rows) {
  const Layer<T>& layer = a.layer;
  const int pitch = tile_pitch<T>(layer.dim_qk), units = tile_units<T>(layer.dim_qk),
            warp = int(threadIdx.x) / 32;
  const View<const T> k = layer.k.head(b);
  const View<const uint8_t> region =
      layer.region ? layer.region + b / layer.heads % layer.patterns * layer.queries : layer.region;
  for (int key0 = 0; key0 < layer.keys; key0 += a.keys_at_once) {
    const int here = layer.keys - key0 < a.keys_at_once ? layer.keys - key0 : a.keys_at_once;
    const int padded = int(round_up(here, kGroup));
    stage_tile<T>(keys, pitch, k + key0 * layer.k.stride_row, layer.k.stride_row, here, padded, 0,
                  layer.dim_qk, units, layer.k.aligned);
    finish_staging();
    for (int group = warp * kGroup; group < padded; group += kWarps * kGroup) {
      tile_dot<T>(memory.q, keys + group * pitch, pitch, units, [&](int row, int col, float dot) {
        if (row >= a.tile_rows) return;
        const int j = key0 + group + col;
        float z = 0.f;
        if (row < rows && j < layer.keys) {
          z = layer.scale * dot;
          if (layer.bias) {
            const int at = memory.code[i0 + row] - memory.code[j] + table_center(layer.window_size);
            z += a.bias_rows ? float(memory.bias[at - memory.bias_first])
                             : float(layer.bias[int64_t(at) * layer.heads + b % layer.heads]);
          }
          if (layer.region && region[i0 + row] != region[j]) z -= layer.region_penalty;
        }
        memory.z[row * memory.z_pitch + j] = z;
      });
    }
    __syncthreads();
  }
}

// Statistics, selection, and the row's logits replaced by unnormalised weights (zero where dropped or beyond
// the keys).
template <class T>
__device__ void finish_row(const DenseArgs<T>& a, const DenseMemory<T>& memory, int64_t row, int r,
                           int lane) {
  const int keys = a.layer.keys, topk = a.layer.topk;
  const View<float> z = memory.z + r * memory.z_pitch;
  const RowStatistics stats = row_statistics(z, keys, lane);
  if (lane == 0) {
    a.lse[row] = stats.lse;
    memory.inverse[r] = expf(stats.max - stats.lse);
  }
  if (topk == keys) {
    for (int t = lane; t < keys; t += 32) z[t] = expf(z[t] - stats.max);
    return;
  }
  const Threshold threshold = find_threshold(z, keys, topk, stats, lane);
  for_each_selected(z, keys, threshold, lane, [&](int t, int slot) {
    const float relative = z[t] - stats.max;
    z[t] = slot < 0 ? 0.f : expf(relative);
    if (slot < 0) return;
    a.new_index.store(row * topk + slot, t);
    a.new_logits[row * topk + slot] = relative;
  });
}

template <class T>
__device__ void weighted_values(const DenseArgs<T>& a, const DenseMemory<T>& memory, View<T> values,
                                View<float> scratch, int64_t b, int i0, int rows) {
  const Layer<T>& layer = a.layer;
  const int warp = int(threadIdx.x) / 32;
  for (int col0 = 0; col0 < layer.dim_v; col0 += kColumnBlock) {
    const int cols = layer.dim_v - col0 < kColumnBlock ? layer.dim_v - col0 : kColumnBlock;
    const int units = tile_units<T>(cols), pitch = tile_pitch<T>(cols);
    TileSum<T> sum;
    for (int key0 = 0; key0 < layer.keys; key0 += a.keys_at_once) {
      const int here = layer.keys - key0 < a.keys_at_once ? layer.keys - key0 : a.keys_at_once;
      const int padded = int(round_up(here, kGroup));
      stage_tile<T>(values, pitch, layer.v.head(b) + key0 * layer.v.stride_row, layer.v.stride_row, here,
                    padded, col0, cols, units, layer.v.aligned);
      finish_staging();
      for (int group = warp * kGroup; group < padded; group += kWarps * kGroup) {
        tile_accumulate<T>(sum, memory.z + key0 + group, memory.z_pitch, values + group * pitch, pitch, units,
                           a.tile_rows);
      }
      __syncthreads();
    }
    reduce_tiles<T>(sum, scratch, units, cols, [&](int row, int col, float total) {
      if (row >= rows) return;
      (a.out.head(b) + (i0 + row) * a.out.stride_row)[col0 + col] =
          from_float<T>(total * memory.inverse[row]);
    });
  }
}

template <class T>
__global__ void __launch_bounds__(32 * kWarps, 2) attention_forward_dense_kernel(DenseArgs<T> a) {
  const Layer<T>& layer = a.layer;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t b = blockIdx.x / unsigned(a.tiles);
  const int i0 = int(blockIdx.x % unsigned(a.tiles)) * a.tile_rows;
  const int rows = layer.queries - i0 < a.tile_rows ? layer.queries - i0 : a.tile_rows;
  SharedMemory shared;
  const DenseMemory<T> memory(shared, a, i0);
  SharedMemory again = shared, once_more = shared;  // K, V and the partial sums take turns
  const View<T> keys = shared.take<T>(a.stream_bytes / int64_t(sizeof(T)));
  const View<T> values = again.take<T>(a.stream_bytes / int64_t(sizeof(T)));
  const View<float> scratch = once_more.take<float>(a.stream_bytes / 4);

  prepare(a, memory, b, i0, rows);  // finished by the first finish_staging()
  dense_logits(a, memory, keys, b, i0, rows);
  for (int r = warp; r < a.tile_rows; r += kWarps) {
    const View<float> z = memory.z + r * memory.z_pitch;
    if (r < rows) finish_row(a, memory, b * layer.queries + i0 + r, r, lane);
    __syncwarp();
    for (int t = (r < rows ? layer.keys : 0) + lane; t < int(round_up(layer.keys, kGroup)); t += 32)
      z[t] = 0.f;
  }
  __syncthreads();
  weighted_values(a, memory, values, scratch, b, i0, rows);
}

// Divides shared memory for tiles of a.tile_rows; the bytes it takes, or 0 where they do not fit.
template <class T>
int64_t plan_dense(const AttentionShape& s, bool bias, DenseArgs<T>& a) {
  const int64_t w = s.window_size, limit = shared_memory_limit(), tile_rows = a.tile_rows;
  const int64_t cols = s.dim_v < kColumnBlock ? s.dim_v : kColumnBlock;
  const int64_t qk_bytes = tile_pitch<T>(s.dim_qk) * int64_t(sizeof(T));
  const int64_t v_bytes = tile_pitch<T>(cols) * int64_t(sizeof(T));
  const int64_t group_bytes = kGroup * (qk_bytes > v_bytes ? qk_bytes : v_bytes);
  const int64_t scratch = reduction_scratch<T>(kWarps, cols) * 4;
  const int64_t least = scratch > group_bytes ? scratch : group_bytes;
  int64_t fixed = tile_rows * (round_up(s.keys, kGroup) + 4) * 4 + kTileRows * qk_bytes + 128;
  if (bias) {
    // A tile of consecutive queries touches this many window lines at most. Its slice of the table stays
    // in shared memory unless the stream of keys would then keep less than half the warps busy.
    const int64_t lines = (w + tile_rows - 2) / w + 1;
    const int64_t rows = (w + (lines < w ? lines : w)) * (2 * w - 1);
    fixed += round_up(s.keys * 4, 16);
    const bool affordable = fixed + round_up(rows * 4, 16) + kWarps / 2 * group_bytes <= limit;
    a.bias_rows = affordable ? int(rows) : 0;
    fixed += round_up(a.bias_rows * 4, 16);
  }
  if (fixed + least > limit) return 0;
  // A whole round of the warps at a time if that leaves room for a second block, else as much as fits.
  const bool two_blocks = fixed + kWarps * group_bytes <= limit / 2;
  int64_t groups = ((two_blocks ? limit / 2 : limit) - fixed) / group_bytes;
  const int64_t all = ceil_div(s.keys, kGroup);
  if (groups > kWarps) groups = groups / kWarps * kWarps;
  if (groups > all) groups = all;
  a.keys_at_once = int(groups * kGroup);
  a.stream_bytes = round_up(groups * group_bytes > scratch ? groups * group_bytes : scratch, 16);
  return fixed + a.stream_bytes;
}

template <class T>
Status run(const AttentionInputs& in, const AttentionOutputs& out, void* stream) {
  const AttentionShape& s = in.shape;
  DenseArgs<T> a{layer_of<T>(in),
                 strided<T>(out.out.m, s.heads, s.dim_v),
                 index_out(out.new_index, out.index_wide),
                 View<float>(out.new_logits),
                 View<float>(out.lse),
                 kTileRows,
                 0,
                 0,
                 0,
                 0};
  int64_t bytes = plan_dense(s, in.bias != nullptr, a);
  while (!bytes && a.tile_rows > 1) {
    a.tile_rows /= 2;
    bytes = plan_dense(s, in.bias != nullptr, a);
  }
  if (!bytes) return Status::kUnsupported;
  a.tiles = int(ceil_div(s.queries, a.tile_rows));
  return launch("attention_forward_dense", attention_forward_dense_kernel<T>, s.windows * s.heads * a.tiles,
                32 * kWarps, bytes, stream, a);
}

}  // namespace

Status attention_forward_dense(const AttentionInputs& in, const AttentionOutputs& out, void* stream) {
  const AttentionShape& s = in.shape;
  if (!s.windows || !s.heads || !s.queries) return Status::kOk;
  if (!s.keys || !s.topk) return Status::kBadShape;
  if (s.topk >= s.keys) {
    const Status status = attention_forward_online(in, out, stream);
    if (status != Status::kUnsupported) return status;
  }
  return with_type(in.q.dtype, [&](auto tag) { return run<decltype(tag)>(in, out, stream); });
}

}  // namespace pft::cuda
