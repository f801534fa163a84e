// Backward of a sparse layer, the part that knows softmax: G, the gradient of the logits, and the kept
// weights. The gradients of q, k and v are then sparse products of these (spmm, spmm_transpose); the bias
// gradient is below.
#include "sparse_gradient.cuh"
#include "tiled_logits.cuh"

namespace pft::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(32 * kMostSparseWarps, 1)
    attention_backward_sparse_kernel(BackwardArgs<T> a) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t b = blockIdx.x / unsigned(a.plan.splits), split = blockIdx.x % unsigned(a.plan.splits);
  const int queries = a.layer.queries;
  const int first = int(split * queries / a.plan.splits), last = int((split + 1) * queries / a.plan.splits);
  SharedMemory shared;
  const SparseMemory<T> memory(shared, a.layer, a.plan, 0, warp);
  prepare_bias(a.layer, memory, a.plan.bias_shared, int(unsigned(b) % unsigned(a.layer.heads)));
  for_each_row(a.layer, a.plan, memory, b, first, last,
               [&](int i, View<const float> z) { gradient_row(a, b * queries + i, z, lane); });
}

// The same with logits picked from tiles, 16-bit types.
template <class T>
__global__ void __launch_bounds__(32 * kTileWarps, 1) attention_backward_tiled_kernel(BackwardArgs<T> a) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t b = blockIdx.x / unsigned(a.plan.splits), split = blockIdx.x % unsigned(a.plan.splits);
  const int queries = a.layer.queries;
  const int first = int(split * queries / a.plan.splits), last = int((split + 1) * queries / a.plan.splits);
  SharedMemory shared;
  const TiledMemory<T> memory(shared, a.layer, a.plan);
  prepare_bias(a.layer, memory, a.plan.bias_shared, int(unsigned(b) % unsigned(a.layer.heads)));
  for_each_tiled_row<T>(a.layer, a.plan, memory, b, first, last,
                        [&](int i, View<const float> z) { gradient_row(a, b * queries + i, z, lane); });
}

// delta[row] = grad_out[row] . out[row], a warp per row.
template <class T>
struct DeltaArgs {
  Strided<const T> grad_out, out;
  View<float> delta;
  int64_t rows;
  int queries, dim;
};

template <class T>
__global__ void __launch_bounds__(256, 4) attention_row_delta_kernel(DeltaArgs<T> a) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t row = int64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= a.rows) return;
  const int64_t b = row / a.queries, i = row % a.queries;
  const View<const T> x = a.grad_out.head(b) + i * a.grad_out.stride_row,
                      y = a.out.head(b) + i * a.out.stride_row;
  float sum = 0.f;
#pragma unroll 2  // more spills on sm_120
  for (int e = lane; e < a.dim; e += 32) sum = fmaf(to_float(x[e]), to_float(y[e]), sum);
  sum = warp_sum(sum);
  if (lane == 0) a.delta[row] = sum;
}

// Bias gradient of the listed entries. A query row meets every table row at most once, so the entries of one
// query row go to different accumulators: rows one after another, parted by a barrier, need no atomics and
// always sum in one order.
struct BiasArgs {
  IndexView index;
  View<const float> g;
  View<float> partial;
  int windows, heads, groups, queries, candidates, window_size;
};

__global__ void __launch_bounds__(256, 4) bias_gradient_sparse_kernel(BiasArgs a) {
  const int entries = table_rows(a.window_size), group = int(blockIdx.x) / a.heads,
            head = int(blockIdx.x) % a.heads;
  const View<float> table = SharedMemory().take<float>(entries);
  for (int r = int(threadIdx.x); r < entries; r += int(blockDim.x)) table[r] = 0.f;
  __syncthreads();
  for (int w = group; w < a.windows; w += a.groups) {
    for (int i = 0; i < a.queries; ++i) {
      const int64_t row = ((int64_t(w) * a.heads + head) * a.queries + i) * a.candidates;
      const int from = position_code(i, a.window_size) + table_center(a.window_size);
      for (int t = int(threadIdx.x); t < a.candidates; t += int(blockDim.x)) {
        table[from - position_code(a.index[row + t], a.window_size)] += a.g[row + t];
      }
      __syncthreads();
    }
  }
  for (int r = int(threadIdx.x); r < entries; r += int(blockDim.x)) {
    a.partial[(int64_t(group) * a.heads + head) * entries + r] = table[r];
  }
}

struct BiasSumArgs {
  View<const float> partial;
  View<float> grad_bias;
  int64_t groups;
  int heads, entries;
  bool accumulate;
};

__global__ void __launch_bounds__(256, 4) bias_gradient_sum_kernel(BiasSumArgs a) {
  const int at = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (at >= a.heads * a.entries) return;
  const int head = at / a.entries, r = at % a.entries;
  const int64_t to = int64_t(r) * a.heads + head;
  float sum = a.accumulate ? float(a.grad_bias[to]) : 0.f;
  for (int64_t g = 0; g < a.groups; ++g) sum += a.partial[(g * a.heads + head) * a.entries + r];
  a.grad_bias[to] = sum;
}

}  // namespace

Status attention_row_delta(const AttentionShape& s, Input grad_out, Input out, float* delta, void* stream) {
  const int64_t rows = s.windows * s.heads * s.queries, blocks = ceil_div(rows, 8);
  if (!rows) return Status::kOk;
  return with_type(grad_out.dtype, [&](auto tag) {
    using T = decltype(tag);
    const DeltaArgs<T> a{strided<const T>(grad_out.m, s.heads, s.dim_v),
                         strided<const T>(out.m, s.heads, s.dim_v),
                         View<float>(delta),
                         rows,
                         int(s.queries),
                         int(s.dim_v)};
    return launch("attention_row_delta", attention_row_delta_kernel<T>, blocks, 256, 0, stream, a);
  });
}

Status attention_backward_sparse(const AttentionInputs& in, const SparseGradients& grads, Candidates how,
                                 Float32 multiply, void* stream) {
  const AttentionShape& s = in.shape;
  if (!s.windows || !s.heads || !s.queries) return Status::kOk;
  if (!in.index.data || !s.candidates || !grads.kept) return Status::kBadShape;
  if (backward_splits(s, in.q.dtype, in.bias != nullptr, how, multiply))
    return attention_backward_tiled_split(in, grads, stream);
  if (!grads.grad_a) return Status::kBadShape;
  return with_type(in.q.dtype, [&](auto tag) {
    using T = decltype(tag);
    BackwardArgs<T> a{logit_gradients(grads), layer_of<T>(in), {}, View<const float>(grads.grad_a)};
    if constexpr (sizeof(T) == 2) {
      const auto nothing = [](int) { return int64_t(0); };
      const bool tiles = how == Candidates::kTiles || (how == Candidates::kAuto && tiles_pay(s, in.q.dtype));
      if (tiles && plan_tiles<T>(s, in.bias != nullptr, false, nothing, &a.plan)) {
        return launch("attention_backward_tiled", attention_backward_tiled_kernel<T>,
                      s.windows * s.heads * a.plan.splits, 32 * a.plan.warps, a.plan.shared_bytes, stream, a);
      }
    }
    if (!plan_sparse<T>(s, in.bias != nullptr, 0, &a.plan)) return Status::kUnsupported;
    return launch("attention_backward_sparse", attention_backward_sparse_kernel<T>,
                  s.windows * s.heads * a.plan.splits, 32 * a.plan.warps, a.plan.shared_bytes, stream, a);
  });
}

Status bias_gradient_sparse(const AttentionShape& s, Index index, const float* g, int64_t groups,
                            float* partial, void* stream) {
  if (!s.heads || !groups) return Status::kOk;
  const int64_t bytes = int64_t(table_rows(int(s.window_size))) * 4;
  if (bytes > shared_memory_limit()) return Status::kUnsupported;
  const BiasArgs a{index_view(index), View<const float>(g), View<float>(partial),
                   int(s.windows),    int(s.heads),         int(groups),
                   int(s.queries),    int(s.candidates),    int(s.window_size)};
  return launch("bias_gradient_sparse", bias_gradient_sparse_kernel, groups * s.heads, 256, bytes, stream, a);
}

Status bias_gradient_sum(int64_t groups, int64_t heads, int64_t entries, const float* partial,
                         bool accumulate, float* grad_bias, void* stream) {
  if (!heads || !entries) return Status::kOk;
  const BiasSumArgs a{
      View<const float>(partial), View<float>(grad_bias), groups, int(heads), int(entries), accumulate};
  return launch("bias_gradient_sum", bias_gradient_sum_kernel, ceil_div(heads * entries, 256), 256, 0, stream,
                a);
}

}  // namespace pft::cuda
