// Backward of a dense layer: logits are computed again, tile by tile, and nothing of size N x M is stored.
//
// One kernel, twice: a block owns 16 queries and streams the keys (gradient of q, and of the bias table), or
// owns 16 keys and streams the queries (gradients of k and v). Whoever owns a row sums its terms alone, in a
// fixed order.
#include "logit_terms.cuh"

namespace pft::cuda {
namespace {

constexpr int kWarps = 8;

enum class Target : int { kQuery = 0, kKey = 1, kValue = 2 };

template <class T>
struct DenseBackwardArgs {
  Layer<T> layer;
  Strided<const T> grad_out;
  View<const float> lse, delta;
  Strided<T> result;
  Strided<float> wide_result;  // instead, where float32 is wanted of a 16-bit type
  View<float> bias_partial;
  Target target;
  int tiles, row_blocks, column_blocks, streamed_at_once;
};

template <class T>
struct Side {  // what is owned or streamed: (q, grad_out) or (k, v)
  Strided<const T> first, second;
  int rows;
};

template <class T>
__device__ void stage_side(View<T> to, View<T> to_second, const Side<T>& side, const DenseBackwardArgs<T>& a,
                           int64_t b, int row0, int rows, int padded) {
  const Layer<T>& l = a.layer;
  stage_tile<T>(to, tile_pitch<T>(l.dim_qk), side.first.head(b) + row0 * side.first.stride_row,
                side.first.stride_row, rows, padded, 0, l.dim_qk, tile_units<T>(l.dim_qk),
                side.first.aligned);
  if (!side.second.data) return;
  stage_tile<T>(to_second, tile_pitch<T>(l.dim_v), side.second.head(b) + row0 * side.second.stride_row,
                side.second.stride_row, rows, padded, 0, l.dim_v, tile_units<T>(l.dim_v),
                side.second.aligned);
}

// Per row, staged with it: position code and region label, and of a query also logsumexp and delta.
struct RowValues {
  View<int> code, label;
  View<float> lse, delta;

  __device__ RowValues(SharedMemory& shared, int rows)
      : code(shared.take<int>(rows)),
        label(shared.take<int>(rows)),
        lse(shared.take<float>(rows)),
        delta(shared.take<float>(rows)) {}
  static constexpr int64_t kBytes = 16;  // of a row; rows come in multiples of 16
};

template <class T>
__device__ void stage_values(const RowValues& to, const DenseBackwardArgs<T>& a, int64_t b, bool queries,
                             int row0, int rows) {
  const Layer<T>& l = a.layer;
  const View<const uint8_t> region = region_of(l, b);
  for (int t = int(threadIdx.x); t < rows; t += int(blockDim.x)) {
    if (l.bias) to.code[t] = position_code(row0 + t, l.window_size);
    if (l.region) to.label[t] = int(region[row0 + t]);
    if (!queries) continue;
    to.lse[t] = a.lse[b * l.queries + row0 + t];
    to.delta[t] = a.delta[b * l.queries + row0 + t];
  }
}

// Softmax weight of a query and a key from the product of their vectors; `table` is the head's column.
template <class T>
__device__ __forceinline__ float weight_of(const Layer<T>& l, View<const float> table,
                                           const RowValues& queries, int i, const RowValues& keys, int j,
                                           float dot) {
  float z = l.scale * dot;
  if (l.bias) {
    const int row = queries.code[i] - keys.code[j] + table_center(l.window_size);
    z = fmaf(l.scale, dot, float(table[unsigned(row * l.heads)]));
  }
  if (l.region) {
    if (queries.label[i] != keys.label[j]) z -= l.region_penalty;
  }
  return exp_of_unit(z - queries.lse[i]);
}

template <class T, bool kOwnsKeys>
__global__ void __launch_bounds__(32 * kWarps, 1) attention_backward_dense_kernel(DenseBackwardArgs<T> a) {
  const Layer<T>& l = a.layer;
  const int warp = int(threadIdx.x) / 32;
  const int column_block = int(blockIdx.x) % a.column_blocks,
            row_block = int(blockIdx.x) / a.column_blocks % a.row_blocks;
  const int64_t b = blockIdx.x / unsigned(a.column_blocks * a.row_blocks);
  const Side<T> queries{l.q, a.grad_out, l.queries}, keys{l.k, l.v, l.keys};
  const Side<T>&own = kOwnsKeys ? keys : queries, &streamed = kOwnsKeys ? queries : keys;
  const int dim = a.target == Target::kValue ? l.dim_v : l.dim_qk, col0 = column_block * kColumnBlock;
  const int cols = dim - col0 < kColumnBlock ? dim - col0 : kColumnBlock;
  const int pitch = tile_pitch<T>(l.dim_qk), pitch2 = tile_pitch<T>(l.dim_v),
            g_pitch = a.streamed_at_once + 4;
  const int table = a.bias_partial && column_block == 0 ? table_rows(l.window_size) : 0;
  const bool with_grad_out = bool(a.grad_out.data);

  SharedMemory shared;
  const View<T> x = shared.take<T>(kTileRows * pitch), x2 = shared.take<T>(kTileRows * pitch2);
  const View<T> y = shared.take<T>(a.streamed_at_once * pitch),
                y2 = shared.take<T>(a.streamed_at_once * pitch2);
  const RowValues own_values(shared, kTileRows), streamed_values(shared, a.streamed_at_once);
  const RowValues &query_values = kOwnsKeys ? streamed_values : own_values,
                  &key_values = kOwnsKeys ? own_values : streamed_values;
  const View<const float> column = l.bias ? l.bias + unsigned(b) % unsigned(l.heads) : l.bias;
  const View<float> g = shared.take<float>(kTileRows * g_pitch);
  const View<float> scratch = shared.take<float>(reduction_scratch<T>(kWarps, cols));
  const View<float> bias_sums = shared.take<float>(table);
  for (int r = int(threadIdx.x); r < table; r += int(blockDim.x)) bias_sums[r] = 0.f;

  for (int tile = row_block; tile < a.tiles; tile += a.row_blocks) {
    const int row0 = tile * kTileRows, rows = own.rows - row0 < kTileRows ? own.rows - row0 : kTileRows;
    stage_side(x, x2, own, a, b, row0, rows, kTileRows);
    stage_values(own_values, a, b, !kOwnsKeys, row0, rows);
    TileSum<T> sum;
    for (int other0 = 0; other0 < streamed.rows; other0 += a.streamed_at_once) {
      const int here =
          streamed.rows - other0 < a.streamed_at_once ? streamed.rows - other0 : a.streamed_at_once;
      const int padded = int(round_up(here, kGroup));
      stage_side(y, y2, streamed, a, b, other0, here, padded);
      stage_values(streamed_values, a, b, kOwnsKeys, other0, here);
      finish_staging();
      for (int group = warp * kGroup; group < padded; group += kWarps * kGroup) {
        const View<float> mine = g + group;
        const auto query = [&](int row, int col) { return kOwnsKeys ? group + col : row; };
        const auto exists = [&](int row, int col) { return row < rows && group + col < here; };
        tile_dot<T>(x, y + group * pitch, pitch, tile_units<T>(l.dim_qk), [&](int row, int col, float dot) {
          const int i = query(row, col), j = kOwnsKeys ? row : group + col;
          float value = 0.f;
          if (exists(row, col)) {
            value = weight_of(l, column, query_values, i, key_values, j, dot);
            if (!with_grad_out) value *= -query_values.delta[i];
          }
          mine[row * g_pitch + col] = value;
        });
        if (with_grad_out && a.target != Target::kValue) {
          tile_dot<T>(x2, y2 + group * pitch2, pitch2, tile_units<T>(l.dim_v),
                      [&](int row, int col, float dot) {
                        if (!exists(row, col)) return;
                        const float weight = mine[row * g_pitch + col];
                        mine[row * g_pitch + col] = weight * (dot - query_values.delta[query(row, col)]);
                      });
        }
        __syncwarp();
        if (a.target == Target::kValue) {
          tile_accumulate<T>(sum, mine, g_pitch, y2 + group * pitch2 + col0, pitch2, tile_units<T>(cols));
        } else {
          tile_accumulate<T>(sum, mine, g_pitch, y + group * pitch + col0, pitch, tile_units<T>(cols));
        }
      }
      __syncthreads();
      for (int r = 0; table && r < rows; ++r) {  // a query meets a table row once: no two threads at one sum
        const int from = own_values.code[r] + table_center(l.window_size);
        for (int col = int(threadIdx.x); col < here; col += int(blockDim.x)) {
          bias_sums[from - streamed_values.code[col]] += g[r * g_pitch + col];
        }
        __syncthreads();
      }
    }
    const float factor = a.target == Target::kValue ? 1.f : l.scale;
    reduce_tiles<T>(sum, scratch, tile_units<T>(cols), cols, [&](int row, int col, float total) {
      if (row >= rows) return;
      const int64_t at =
          (row0 + row) * (a.wide_result.data ? a.wide_result.stride_row : a.result.stride_row) + col0 + col;
      if (a.wide_result.data) {
        a.wide_result.head(b)[at] = factor * total;
      } else {
        a.result.head(b)[at] = from_float<T>(factor * total);
      }
    });
  }
  for (int r = int(threadIdx.x); r < table; r += int(blockDim.x)) {
    const int64_t window = b / l.heads, head = b % l.heads;
    a.bias_partial[((window * a.row_blocks + row_block) * l.heads + head) * table + r] = bias_sums[r];
  }
}

template <class T>
Status run(const AttentionInputs& in, const DenseGradients& grads, Target target, Output result,
           void* stream) {
  const AttentionShape& s = in.shape;
  const bool owns_keys = target != Target::kQuery, wide = result.dtype != in.q.dtype;
  const int64_t dim = target == Target::kValue ? s.dim_v : s.dim_qk, batch = s.windows * s.heads;
  DenseBackwardArgs<T> a{layer_of<T>(in),
                         strided<const T>(grads.grad_out.m, s.heads, s.dim_v),
                         View<const float>(grads.lse),
                         View<const float>(grads.delta),
                         {},
                         {},
                         View<float>(owns_keys ? nullptr : grads.bias_partial),
                         target,
                         int(ceil_div(owns_keys ? s.keys : s.queries, kTileRows)),
                         0,
                         int(ceil_div(dim, kColumnBlock)),
                         0};
  if (wide) {
    a.wide_result = strided<float>(result.m, s.heads, dim);
  } else {
    a.result = strided<T>(result.m, s.heads, dim);
  }
  a.row_blocks = a.bias_partial ? int(grads.row_blocks) : a.tiles;

  const int64_t bytes = int64_t(sizeof(T)),
                per_row = (tile_pitch<T>(s.dim_qk) + tile_pitch<T>(s.dim_v)) * bytes;
  const int64_t cols = dim < kColumnBlock ? dim : kColumnBlock;
  const int64_t fixed = kTileRows * per_row + kTileRows * (16 + RowValues::kBytes) +
                        reduction_scratch<T>(kWarps, cols) * 4 +
                        (a.bias_partial ? int64_t(table_rows(int(s.window_size))) * 4 : 0) + 128;
  int64_t groups = (shared_memory_limit() - fixed) / (kGroup * (per_row + kTileRows * 4 + RowValues::kBytes));
  const int64_t all = ceil_div(owns_keys ? s.queries : s.keys, kGroup);
  if (groups < 1) return Status::kUnsupported;
  if (groups > kWarps) groups = kWarps;
  if (groups > all) groups = all;
  a.streamed_at_once = int(groups * kGroup);
  const int64_t shared = fixed + groups * kGroup * (per_row + kTileRows * 4 + RowValues::kBytes);
  const int64_t blocks = batch * a.row_blocks * a.column_blocks;
  if (owns_keys) {
    return launch("attention_backward_dense_keys", attention_backward_dense_kernel<T, true>, blocks,
                  32 * kWarps, shared, stream, a);
  }
  return launch("attention_backward_dense_queries", attention_backward_dense_kernel<T, false>, blocks,
                32 * kWarps, shared, stream, a);
}

}  // namespace

Status attention_backward_dense(const AttentionInputs& in, const DenseGradients& grads, void* stream) {
  const AttentionShape& s = in.shape;
  if (!s.windows || !s.heads || !s.queries || !s.keys) return Status::kOk;
  return with_type(in.q.dtype, [&](auto tag) {
    using T = decltype(tag);
    Status status = run<T>(in, grads, Target::kQuery, grads.grad_q, stream);
    if (status == Status::kOk) status = run<T>(in, grads, Target::kKey, grads.grad_k, stream);
    if (status == Status::kOk && grads.grad_v.m.data)
      status = run<T>(in, grads, Target::kValue, grads.grad_v, stream);
    return status;
  });
}

}  // namespace pft::cuda
