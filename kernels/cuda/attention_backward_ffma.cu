// Backward of a dense float32 layer by FFMA: logits are computed again, tile by tile, and nothing of size N x
// M is stored.
//
// One kernel, twice: a block owns 16 queries and streams the keys (gradient of q, and of the bias table), or
// owns 16 keys and streams the queries (gradients of k and v, one at a time). Whoever owns a row sums its
// terms alone, in a fixed order.
#include "logit_terms.cuh"

namespace pft::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kColumnBlock = 64;  // output columns a block accumulates at a time

// f(row, column, sum_e rows[row][e] * others[column][e]) for 16 x 32 products, each from the lane that holds
// it: the same lane for the same place in every call. Both operands zero-padded to `units`.
template <class F>
__device__ __forceinline__ void tile_dot(View<const float> rows, View<const float> others, int pitch,
                                         int units, F f) {
  const int lane = int(threadIdx.x) % 32;
  float d[kTileRows] = {};
  const View<const float> mine = others + lane * pitch;
  for (int u = 0; u < units; ++u) {
    const float4 y = load_as<float4>(mine + u * 4);
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      const float4 x = load_as<float4>(rows + r * pitch + u * 4);
      d[r] = fmaf(x.x, y.x, fmaf(x.y, y.y, fmaf(x.z, y.z, fmaf(x.w, y.w, d[r]))));
    }
  }
#pragma unroll
  for (int r = 0; r < kTileRows; ++r) f(r, lane, d[r]);
}

// A 16 x 64 accumulator spread over a warp: a lane has four rows x four columns, twice.
struct TileSum {
  float d[8][4] = {};
};

// sum += weights[16 x 32] * values[32 x columns].
__device__ __forceinline__ void tile_accumulate(TileSum& sum, View<const float> weights, int weights_pitch,
                                                View<const float> values, int pitch, int units) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    const int item = lane + 32 * part, quad = item / units, unit = item % units;
    if (quad >= 4) continue;
    for (int j = 0; j < kGroup; j += 4) {
      float4 w[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) w[r] = load_as<float4>(weights + (4 * quad + r) * weights_pitch + j);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4 y = load_as<float4>(values + (j + i) * pitch + unit * 4);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float x = i == 0 ? w[r].x : i == 1 ? w[r].y : i == 2 ? w[r].z : w[r].w;
          float (&d)[4] = sum.d[4 * part + r];
          d[0] = fmaf(x, y.x, d[0]);
          d[1] = fmaf(x, y.y, d[1]);
          d[2] = fmaf(x, y.z, d[2]);
          d[3] = fmaf(x, y.w, d[3]);
        }
      }
    }
  }
}

// f(row, column, value) for this lane's part of the accumulator.
template <class F>
__device__ __forceinline__ void for_each_sum(const TileSum& sum, int units, F f) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    const int item = lane + 32 * part, quad = item / units, unit = item % units;
    if (quad >= 4) continue;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int e = 0; e < 4; ++e) f(4 * quad + r, unit * 4 + e, sum.d[4 * part + r][e]);
    }
  }
}

// Floats of scratch memory that reduce_tiles needs for a block.
__host__ __device__ constexpr int64_t reduction_scratch(int64_t columns) {
  return int64_t(kWarps) / 2 * kTileRows * tile_units<float>(columns) * kPerUnit<float>;
}

// Adds the warps' accumulators, always in the same order, and calls f(row, column, sum). For all threads of
// the block.
template <class F>
__device__ __forceinline__ void reduce_tiles(const TileSum& sum, View<float> scratch, int units, int columns,
                                             F f) {
  const int width = units * kPerUnit<float>, warp = int(threadIdx.x) / 32;
  constexpr int half = kWarps / 2;  // half the scratch: the second half of the warps goes first
  if (warp >= half) {
    for_each_sum(sum, units, [&](int row, int col, float value) {
      scratch[((warp - half) * kTileRows + row) * width + col] = value;
    });
  }
  __syncthreads();
  if (warp < half) {
    for_each_sum(sum, units, [&](int row, int col, float value) {
      scratch[(warp * kTileRows + row) * width + col] += value;
    });
  }
  __syncthreads();
  for (int e = int(threadIdx.x); e < kTileRows * columns; e += int(blockDim.x)) {
    const int row = e / columns, col = e % columns;
    float total = 0.f;
    for (int w = 0; w < half; ++w) total += scratch[(w * kTileRows + row) * width + col];
    f(row, col, total);
  }
  __syncthreads();
}

enum class Target : int { kQuery = 0, kKey = 1, kValue = 2 };

struct DenseBackwardArgs {
  Layer<float> layer;
  Strided<const float> grad_out;
  View<const float> lse, delta;
  Strided<float> result;
  View<float> bias_partial;
  Target target;
  int tiles, row_blocks, column_blocks, streamed_at_once;
};

struct Side {  // what is owned or streamed: (q, grad_out) or (k, v)
  Strided<const float> first, second;
  int rows;
};

__device__ void stage_side(View<float> to, View<float> to_second, const Side& side,
                           const DenseBackwardArgs& a, int64_t b, int row0, int rows, int padded) {
  const Layer<float>& l = a.layer;
  stage_tile<float>(to, tile_pitch<float>(l.dim_qk), side.first.head(b) + row0 * side.first.stride_row,
                    side.first.stride_row, rows, padded, 0, l.dim_qk, tile_units<float>(l.dim_qk),
                    side.first.aligned);
  if (!side.second.data) return;
  stage_tile<float>(to_second, tile_pitch<float>(l.dim_v),
                    side.second.head(b) + row0 * side.second.stride_row, side.second.stride_row, rows, padded,
                    0, l.dim_v, tile_units<float>(l.dim_v), side.second.aligned);
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

__device__ void stage_values(const RowValues& to, const DenseBackwardArgs& a, int64_t b, bool queries,
                             int row0, int rows) {
  const Layer<float>& l = a.layer;
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
__device__ __forceinline__ float weight_of(const Layer<float>& l, View<const float> table,
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

template <class, bool kOwnsKeys>  // float: so that its name says so
__global__ void __launch_bounds__(32 * kWarps, 1) attention_backward_dense_kernel(DenseBackwardArgs a) {
  const Layer<float>& l = a.layer;
  const int warp = int(threadIdx.x) / 32;
  const int column_block = int(blockIdx.x) % a.column_blocks,
            row_block = int(blockIdx.x) / a.column_blocks % a.row_blocks;
  const int64_t b = blockIdx.x / unsigned(a.column_blocks * a.row_blocks);
  const Side queries{l.q, a.grad_out, l.queries}, keys{l.k, l.v, l.keys};
  const Side &own = kOwnsKeys ? keys : queries, &streamed = kOwnsKeys ? queries : keys;
  const int dim = a.target == Target::kValue ? l.dim_v : l.dim_qk, col0 = column_block * kColumnBlock;
  const int cols = dim - col0 < kColumnBlock ? dim - col0 : kColumnBlock;
  const int pitch = tile_pitch<float>(l.dim_qk), pitch2 = tile_pitch<float>(l.dim_v),
            g_pitch = a.streamed_at_once + 4;
  const int table = a.bias_partial && column_block == 0 ? table_rows(l.window_size) : 0;
  const bool with_grad_out = bool(a.grad_out.data);

  SharedMemory shared;
  const View<float> x = shared.take<float>(kTileRows * pitch), x2 = shared.take<float>(kTileRows * pitch2);
  const View<float> y = shared.take<float>(a.streamed_at_once * pitch),
                    y2 = shared.take<float>(a.streamed_at_once * pitch2);
  const RowValues own_values(shared, kTileRows), streamed_values(shared, a.streamed_at_once);
  const RowValues &query_values = kOwnsKeys ? streamed_values : own_values,
                  &key_values = kOwnsKeys ? own_values : streamed_values;
  const View<const float> column = l.bias ? l.bias + unsigned(b) % unsigned(l.heads) : l.bias;
  const View<float> g = shared.take<float>(kTileRows * g_pitch);
  const View<float> scratch = shared.take<float>(reduction_scratch(cols));
  const View<float> bias_sums = shared.take<float>(table);
  for (int r = int(threadIdx.x); r < table; r += int(blockDim.x)) bias_sums[r] = 0.f;

  for (int tile = row_block; tile < a.tiles; tile += a.row_blocks) {
    const int row0 = tile * kTileRows, rows = own.rows - row0 < kTileRows ? own.rows - row0 : kTileRows;
    stage_side(x, x2, own, a, b, row0, rows, kTileRows);
    stage_values(own_values, a, b, !kOwnsKeys, row0, rows);
    TileSum sum;
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
        tile_dot(x, y + group * pitch, pitch, tile_units<float>(l.dim_qk), [&](int row, int col, float dot) {
          const int i = query(row, col), j = kOwnsKeys ? row : group + col;
          float value = 0.f;
          if (exists(row, col)) {
            value = weight_of(l, column, query_values, i, key_values, j, dot);
            if (!with_grad_out) value *= -query_values.delta[i];
          }
          mine[row * g_pitch + col] = value;
        });
        if (with_grad_out && a.target != Target::kValue) {
          tile_dot(x2, y2 + group * pitch2, pitch2, tile_units<float>(l.dim_v),
                   [&](int row, int col, float dot) {
                     if (!exists(row, col)) return;
                     const float weight = mine[row * g_pitch + col];
                     mine[row * g_pitch + col] = weight * (dot - query_values.delta[query(row, col)]);
                   });
        }
        __syncwarp();
        if (a.target == Target::kValue) {
          tile_accumulate(sum, mine, g_pitch, y2 + group * pitch2 + col0, pitch2, tile_units<float>(cols));
        } else {
          tile_accumulate(sum, mine, g_pitch, y + group * pitch + col0, pitch, tile_units<float>(cols));
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
    reduce_tiles(sum, scratch, tile_units<float>(cols), cols, [&](int row, int col, float total) {
      if (row >= rows) return;
      a.result.head(b)[(row0 + row) * a.result.stride_row + col0 + col] = factor * total;
    });
  }
  for (int r = int(threadIdx.x); r < table; r += int(blockDim.x)) {
    const int64_t window = b / l.heads, head = b % l.heads;
    a.bias_partial[((window * a.row_blocks + row_block) * l.heads + head) * table + r] = bias_sums[r];
  }
}

Status run(const AttentionInputs& in, const DenseGradients& grads, Target target, Output result,
           void* stream) {
  const AttentionShape& s = in.shape;
  const bool owns_keys = target != Target::kQuery;
  const int64_t dim = target == Target::kValue ? s.dim_v : s.dim_qk, batch = s.windows * s.heads;
  DenseBackwardArgs a{layer_of<float>(in),
                      strided<const float>(grads.grad_out.m, s.heads, s.dim_v),
                      View<const float>(grads.lse),
                      View<const float>(grads.delta),
                      strided<float>(result.m, s.heads, dim),
                      View<float>(owns_keys ? nullptr : grads.bias_partial),
                      target,
                      int(ceil_div(owns_keys ? s.keys : s.queries, kTileRows)),
                      0,
                      int(ceil_div(dim, kColumnBlock)),
                      0};
  a.row_blocks = a.bias_partial ? int(grads.row_blocks) : a.tiles;

  const int64_t bytes = int64_t(sizeof(float)),
                per_row = (tile_pitch<float>(s.dim_qk) + tile_pitch<float>(s.dim_v)) * bytes;
  const int64_t cols = dim < kColumnBlock ? dim : kColumnBlock;
  const int64_t fixed = kTileRows * per_row + kTileRows * (16 + RowValues::kBytes) +
                        reduction_scratch(cols) * 4 +
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
    return launch("attention_backward_dense_keys", attention_backward_dense_kernel<float, true>, blocks,
                  32 * kWarps, shared, stream, a);
  }
  return launch("attention_backward_dense_queries", attention_backward_dense_kernel<float, false>, blocks,
                32 * kWarps, shared, stream, a);
}

}  // namespace

Status attention_backward_ffma(const AttentionInputs& in, const DenseGradients& grads, void* stream) {
  Status status = run(in, grads, Target::kQuery, grads.grad_q, stream);
  if (status == Status::kOk) status = run(in, grads, Target::kKey, grads.grad_k, stream);
  if (status == Status::kOk && grads.grad_v.m.data)
    status = run(in, grads, Target::kValue, grads.grad_v, stream);
  return status;
}

}  // namespace pft::cuda
