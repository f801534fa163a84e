// Backward of a dense layer on tensor cores: logits are computed again, tile by tile, and nothing of size N x
// M is stored.
//
// One kernel, twice, as in FlashAttention-2: a block owns up to 128 queries and streams the keys (gradient of
// q, and of the bias table), or owns keys and streams the queries (gradients of k and v). A warp owns 16 of
// those rows: logits, weights and their gradients stay in its registers, and go from one product into the
// next as they lie. Whoever owns a row sums its terms alone, in a fixed order.
//
// float32 by FFMA is attention_backward_ffma.cu.
#include "backward_stage.cuh"

namespace pft::cuda {
namespace {

// logsumexp and delta of the queries that meet in a lane's products: its rows, or its columns.
template <class T, bool kOwnsKeys>
struct QueryValues {
  float lse[kOwnsKeys ? 8 : 2], delta[kOwnsKeys ? 8 : 2];

  __device__ __forceinline__ float lse_of(int r, int c) const { return lse[kOwnsKeys ? c : r]; }
  __device__ __forceinline__ float delta_of(int r, int c) const { return delta[kOwnsKeys ? c : r]; }

  __device__ __forceinline__ void load_rows(const BackwardArgs<T>& a, int64_t b, int row0) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = row0 + LaneTile<T>::row(r);
      const bool exists = i < a.layer.queries;
      lse[r] = exists ? float(a.lse[b * a.layer.queries + i]) : INFINITY;
      delta[r] = exists ? float(a.delta[b * a.layer.queries + i]) : 0.f;
    }
  }
  __device__ __forceinline__ void load_columns(View<const float> from_lse, View<const float> from_delta) {
#pragma unroll
    for (int c = 0; c < 8; c += 2) {
      const float2 l = load_as<float2>(from_lse + LaneTile<T>::other(c));
      const float2 d = load_as<float2>(from_delta + LaneTile<T>::other(c));
      lse[c] = l.x, lse[c + 1] = l.y, delta[c] = d.x, delta[c + 1] = d.y;
    }
  }
};

template <class T, bool kOwnsKeys>
constexpr float kExponent = kOwnsKeys ? kGradientExponent<T> : 0.f;

// Logits become weights, times 2^kExponent.
template <class T, bool kOwnsKeys>
__device__ __forceinline__ void logits_to_weights(LaneProducts<T>& s, const QueryValues<T, kOwnsKeys>& of) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int c = 0; c < 8; ++c)
      s[r][c] = exp2_of_unit(fmaf(s[r][c] - of.lse_of(r, c), kLog2E, kExponent<T, kOwnsKeys>));
  }
}

// Products of grad_out and v become the gradient of the logits; without grad_out it is -weight * delta. Zero
// where there is no such key.
template <class T, bool kOwnsKeys>
__device__ __forceinline__ void logit_gradients(LaneProducts<T>& x, const LaneProducts<T>& weights,
                                                const QueryValues<T, kOwnsKeys>& of, int here) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int c = 0; c < 8; ++c) x[r][c] = weights[r][c] * (x[r][c] - of.delta_of(r, c));
  }
  if constexpr (!kOwnsKeys) {
    if (here >= kGroup) return;
#pragma unroll
    for (int c = 0; c < 8; ++c) {
#pragma unroll
      for (int r = 0; r < 2; ++r) x[r][c] = LaneTile<T>::other(c) < here ? x[r][c] : 0.f;
    }
  }
}

__device__ __forceinline__ void store_pair(View<float> to, float x, float y) {
  store_as(to, make_float2(x, y));
}
template <class G>
__device__ __forceinline__ void store_pair(View<G> to, float x, float y) {
  store_as(to, pack_pair(x, y, G{}));
}

// Columns [col0, col0 + cols) of a warp's rows, times factor[r].
template <class G, class Sum>
__device__ __forceinline__ void store_rows(const Strided<G>& to, Sum& sum, int64_t b, int row0, int rows,
                                           int col0, int cols, const float (&factor)[2]) {
  const View<G> base = to.head(b) + col0;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = row0 + LaneTile<bf16_t>::row(r);
    if (row >= rows) continue;
    const View<G> line = base + row * to.stride_row;
#pragma unroll
    for (int c = 0; c < kChunk / 4; c += 2) {
      const int col = LaneTile<bf16_t>::column(c);
      const float x = sum.cell(r, c) * factor[r], y = sum.cell(r, c + 1) * factor[r];
      if (to.aligned) {  // and so an even number of columns
        if (col < cols) store_pair(line + col, x, y);
      } else {
        if (col < cols) line[col] = from_float<G>(x);
        if (col + 1 < cols) line[col + 1] = from_float<G>(y);
      }
    }
  }
}
template <class T>
__device__ __forceinline__ void store_gradient(const Gradient<GlobalType<T>>& to, GradientSum<T>& sum,
                                               int64_t b, int row0, int rows, int col0, int cols,
                                               const float (&factor)[2]) {
  sum.finish();
  if (to.wide.data) {
    store_rows(to.wide, sum, b, row0, rows, col0, cols, factor);
  } else {
    store_rows(to.same, sum, b, row0, rows, col0, cols, factor);
  }
}

__device__ __forceinline__ int columns_from(int col0, int dim) {
  return dim - col0 < kChunk ? dim - col0 : kChunk;
}

// What a warp keeps of its 16 rows for all that is streamed.
template <class T, bool kOwnsKeys>
struct OwnTile {
  OwnRows<T> first, second;
  QueryValues<T, kOwnsKeys> values;
};

// One pass of the streamed rows by an owned tile, for columns [col0, col0 + kChunk) of its gradients.
template <class T, bool kOwnsKeys>
__device__ __forceinline__ void stream_by(const BackwardArgs<T>& a, const BackwardMemory<T>& memory,
                                          OwnTile<T, kOwnsKeys>& own, int row0, int col0) {
  const auto& l = a.layer;
  const int warp = int(threadIdx.x) / 32, groups = a.staged / kGroup;
  const int others = kOwnsKeys ? l.queries : l.keys;
  const bool with_grad_out = bool(a.grad_out.data), with_bias = a.bias_partial && col0 == 0;
  const int64_t b = BlockPart(a).b;
  const BiasSlice bias{memory.bias, l.bias ? l.bias + unsigned(b) % unsigned(l.heads) : l.bias, l.heads, 0};
  GradientSum<T> sum, value_sum;
  RowScale<T> scale;
  for (int other0 = 0; other0 < others; other0 += a.staged) {
    const int buffer = a.buffers > 1 ? other0 / a.staged % 2 : 0;
    const int ahead = a.buffers - 1, next = other0 + ahead * a.staged;  // one ahead, or at once
    if (ahead) {
      finish_staging();
    } else {
      __syncthreads();
    }
    if (next < others) load_stage<T, kOwnsKeys>(a, memory, ahead ? 1 - buffer : 0, next);
    if (!ahead) finish_staging();
    const int here = others - other0 < a.staged ? others - other0 : a.staged;
    const View<const SharedType<T>> y = memory.y + buffer * key_elements<T>(a.staged, l.dim_qk),
                                    y2 = memory.y2 + buffer * key_elements<T>(a.staged, l.dim_v);
    for (int group = 0; group < here; group += kGroup) {
      LaneProducts<T> s, x = {};
      own.first.products(s, y, group, a.staged, l.dim_qk);
      finish_logits<T>(s, l, memory.own_terms.from(warp * 16), bias,
                       memory.terms.from(2 * kStaged * buffer + group), here - group);
      if constexpr (kOwnsKeys)
        own.values.load_columns(memory.lse + (buffer * kStaged + group),
                                memory.delta + (buffer * kStaged + group));
      logits_to_weights<T, kOwnsKeys>(s, own.values);
      if (with_grad_out) own.second.products(x, y2, group, a.staged, l.dim_v);
      if (kOwnsKeys && with_grad_out && col0 < l.dim_v)
        value_sum.add(s, y2, group, a.staged, l.dim_v, col0, l.dim_v - col0);
      logit_gradients<T, kOwnsKeys>(x, s, own.values, here - group);
      if (!kOwnsKeys && with_bias) {
        const int at = (warp * groups + group / kGroup) * 2 * kDiagonals;
        sum_diagonals<T>(x, memory.tile + warp * 16 * kDiagonalPitch, memory.diagonals + at,
                         memory.own_across + warp * 16, memory.across + (buffer * kStaged + group));
      }
      if (col0 >= l.dim_qk) continue;
      scale.fit(sum, x);
      sum.add(x, y, group, a.staged, l.dim_qk, col0, l.dim_qk - col0);
    }
    if (!kOwnsKeys && with_bias) {
      __syncthreads();
      add_diagonals(memory.bias_sums, memory.diagonals, int(ceil_div(here, kGroup)), groups, row0, other0,
                    l.window_size);
    }
  }
  const int own_row = row0 + warp * 16, rows = kOwnsKeys ? l.keys : l.queries;
  constexpr float unit = kOwnsKeys ? kGradientUnit<T> : 1.f;
  if (col0 < l.dim_qk) {
    const float factor[2] = {l.scale * (scale.inverse(0) * unit), l.scale * (scale.inverse(1) * unit)};
    store_gradient<T>(a.first, sum, b, own_row, rows, col0, columns_from(col0, l.dim_qk), factor);
  }
  if (kOwnsKeys && with_grad_out && col0 < l.dim_v)
    store_gradient<T>(a.second, value_sum, b, own_row, rows, col0, columns_from(col0, l.dim_v), {unit, unit});
}

template <class T, bool kOwnsKeys>
__device__ __forceinline__ void backward_block(const BackwardArgs<T>& a) {
  const auto& l = a.layer;
  const BlockPart block(a);
  const int warp = int(threadIdx.x) / 32;
  const int table = a.bias_partial ? table_rows(l.window_size) : 0;
  SharedMemory shared;
  const BackwardMemory<T> memory(shared, a);
  for (int r = int(threadIdx.x); r < a.bias_rows; r += int(blockDim.x))
    memory.bias[r] = l.bias[r * l.heads + int(unsigned(block.b) % unsigned(l.heads))];
  for (int r = int(threadIdx.x); r < table; r += int(blockDim.x)) memory.bias_sums[r] = 0.f;

  const Side<GlobalType<T>> side = side_of<T, !kOwnsKeys>(a);
  const int most = kOwnsKeys && a.grad_out.data && l.dim_v > l.dim_qk ? l.dim_v : l.dim_qk;
  for (int tile = block.part; tile < a.tiles; tile += a.row_blocks) {
    const int row0 = tile * a.block_rows,
              rows = side.rows - row0 < a.block_rows ? side.rows - row0 : a.block_rows;
    stage_side<T>(memory.x, memory.x2, a.block_rows, side, a, block.b, row0, rows, a.block_rows, false);
    stage_positions<T, kOwnsKeys>(memory.own_terms, memory.own_across, a, block.b, row0, a.block_rows,
                                  side.rows, table_center(l.window_size));
    finish_staging();
    OwnTile<T, kOwnsKeys> own;
    own.first.load(memory.x, warp * 16, a.block_rows, l.dim_qk);
    if (a.grad_out.data) own.second.load(memory.x2, warp * 16, a.block_rows, l.dim_v);
    if constexpr (!kOwnsKeys) own.values.load_rows(a, block.b, row0 + warp * 16);
    for (int col0 = 0; col0 < most; col0 += kChunk) {
      if (a.buffers > 1) load_stage<T, kOwnsKeys>(a, memory, 0, 0);
      stream_by<T, kOwnsKeys>(a, memory, own, row0, col0);
      __syncthreads();
    }
  }
  for (int r = int(threadIdx.x); r < table; r += int(blockDim.x)) {
    const int64_t window = block.b / l.heads, head = block.b % l.heads;
    a.bias_partial[((window * a.row_blocks + block.part) * l.heads + head) * table + r] = memory.bias_sums[r];
  }
}

template <class T, bool kOwnsKeys>
__global__ void __launch_bounds__(32 * kMostWarps, 1) attention_backward_dense_kernel(BackwardArgs<T> a) {
  backward_block<T, kOwnsKeys>(a);
}
template <bool kOwnsKeys>
__global__ void __launch_bounds__(32 * kMostWarps, 1)
    attention_backward_dense_split_kernel(BackwardArgs<Split> a) {
  backward_block<Split, kOwnsKeys>(a);
}

template <class T>
Gradient<T> gradient_of(const Output& out, DType dtype, int64_t heads, int64_t dim) {
  if (!out.m.data) return {};
  if (out.dtype != dtype) return {{}, strided<float>(out.m, heads, dim)};
  return {strided<T>(out.m, heads, dim), {}};
}

// Tall blocks; lower ones where those would leave multiprocessors idle, or do not fit. Sums of the bias table
// come from `row_blocks` blocks a window-head, whatever they own.
template <class T, bool kOwnsKeys>
Status run_side(const char* name, void (*kernel)(BackwardArgs<T>), const AttentionInputs& in,
                BackwardArgs<T> a, int64_t row_blocks, void* stream) {
  const AttentionShape& s = in.shape;
  const int64_t limit = shared_memory_limit(), batch = s.windows * s.heads,
                own = kOwnsKeys ? s.keys : s.queries;
  for (a.block_rows = kBlockRows; a.block_rows >= 16; a.block_rows /= 2) {
    a.tiles = int(ceil_div(own, a.block_rows));
    a.row_blocks = a.bias_partial ? int(row_blocks) : a.tiles;
    const bool fills = a.bias_partial ? a.tiles >= a.row_blocks : batch * a.tiles >= multiprocessors();
    if (a.block_rows > 16 && (!fills || a.block_rows >= 2 * own)) continue;
    for (int way = 0; way < 6; ++way) {  // first what is faster, then what takes less
      a.bias_rows = in.bias && way < 3 ? table_rows(int(s.window_size)) : 0;
      a.buffers = way % 3 == 0 && sizeof(GlobalType<T>) == 2 ? 2 : 1;  // what is copied as it is comes early
      a.staged = way % 3 == 2 ? kStaged / 2 : kStaged;
      const int64_t bytes = BackwardMemory<T>::bytes(s, a);
      if (bytes > limit) continue;
      return launch(name, kernel, batch * a.row_blocks, a.block_rows * 2, bytes, stream, a);
    }
  }
  return Status::kUnsupported;
}

template <class T>
Status run(const char* const (&names)[2], void (*of_queries)(BackwardArgs<T>),
           void (*of_keys)(BackwardArgs<T>), const AttentionInputs& in, const DenseGradients& grads,
           void* stream) {
  using G = GlobalType<T>;
  const AttentionShape& s = in.shape;
  BackwardArgs<T> a{layer_of<G>(in),
                    strided<const G>(grads.grad_out.m, s.heads, s.dim_v),
                    View<const float>(grads.lse),
                    View<const float>(grads.delta),
                    gradient_of<G>(grads.grad_q, in.q.dtype, s.heads, s.dim_qk),
                    {},
                    View<float>(grads.bias_partial),
                    0,
                    0,
                    0,
                    0,
                    0,
                    0};
  const Status status = run_side<T, false>(names[0], of_queries, in, a, grads.row_blocks, stream);
  if (status != Status::kOk) return status;
  a.first = gradient_of<G>(grads.grad_k, in.q.dtype, s.heads, s.dim_qk);
  a.second = gradient_of<G>(grads.grad_v, in.q.dtype, s.heads, s.dim_v);
  a.bias_partial = View<float>();
  return run_side<T, true>(names[1], of_keys, in, a, 0, stream);
}

template <class T>
Status run_halves(const AttentionInputs& in, const DenseGradients& grads, void* stream) {
  return run<T>({"attention_backward_dense_queries", "attention_backward_dense_keys"},
                attention_backward_dense_kernel<T, false>, attention_backward_dense_kernel<T, true>, in,
                grads, stream);
}

}  // namespace

Status attention_backward_dense(const AttentionInputs& in, const DenseGradients& grads, Float32 how,
                                void* stream) {
  const AttentionShape& s = in.shape;
  if (!s.windows || !s.heads || !s.queries || !s.keys) return Status::kOk;
  if (in.q.dtype == DType::kFloat16) return run_halves<half_t>(in, grads, stream);
  if (in.q.dtype == DType::kBFloat16) return run_halves<bf16_t>(in, grads, stream);
  if (splits(in.q.dtype, how)) {
    const Status status =
        run<Split>({"attention_backward_dense_split_queries", "attention_backward_dense_split_keys"},
                   attention_backward_dense_split_kernel<false>, attention_backward_dense_split_kernel<true>,
                   in, grads, stream);
    if (status != Status::kUnsupported || how == Float32::kSplit) return status;
  }
  return attention_backward_ffma(in, grads, stream);
}

}  // namespace pft::cuda
