// Forward of a sparse layer in one launch: gather-dot, bias, earlier logits, softmax, selection, weighted sum
// of V.
//
// A block owns some query rows of one window-head. First the keys are resident: a warp computes a row's
// logits, selects by bisection and writes index and logits of the kept entries. Then V takes the place of the
// keys, and the entries just written (still in the cache) weigh its rows. One matrix at a time is resident,
// so that two blocks share an SM.
#include "gather_rows.cuh"
#include "sparse_logits.cuh"

namespace pft::cuda {
namespace {

template <class T>
struct ForwardArgs {
  Layer<T> layer;
  SparsePlan plan;
  Strided<T> out;
  IndexOut new_index;
  IndexView
      kept_index;  // what the second phase reads: the new index, or the old one where nothing is selected
  View<float> new_logits, lse;
};

template <class T>
__device__ void finish_row(const ForwardArgs<T>& a, int64_t row, View<const float> z, View<float> shift,
                           int lane) {
  const int candidates = a.layer.candidates, topk = a.layer.topk;
  const RowStatistics stats = row_statistics(z, candidates, lane);
  if (lane == 0) {
    a.lse[row] = stats.lse;
    *shift = stats.max - stats.lse;
  }
  if (topk == candidates) {
    for (int t = lane; t < candidates; t += 32) a.new_logits[row * topk + t] = z[t] - stats.max;
    return;
  }
  const Threshold threshold = find_threshold(z, candidates, topk, stats, lane);
  for_each_selected(z, candidates, threshold, lane, [&](int t, int slot) {
    if (slot < 0) return;
    a.new_index.store(row * topk + slot, a.layer.index[row * candidates + t]);
    a.new_logits[row * topk + slot] = z[t] - stats.max;
  });
}

template <class T>
__global__ void __launch_bounds__(32 * kMostSparseWarps, 1)
    attention_forward_sparse_kernel(ForwardArgs<T> a) {
  const Layer<T>& layer = a.layer;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t b = blockIdx.x / unsigned(a.plan.splits), split = blockIdx.x % unsigned(a.plan.splits);
  const int first = int(split * layer.queries / a.plan.splits),
            last = int((split + 1) * layer.queries / a.plan.splits);
  SharedMemory shared;
  const SparseMemory<T> memory(shared, layer, a.plan, int(ceil_div(layer.queries, a.plan.splits)), warp);

  prepare_bias(layer, memory, a.plan.bias_shared, int(b % layer.heads));
  for_each_row(layer, a.plan, memory, b, first, last, [&](int i, View<const float> z) {
    finish_row(a, b * layer.queries + i, z, memory.shift + (i - first), lane);
  });

  const int pitch = pitch_of<T>(a.plan.columns);
  const View<T> v = shared.take<T>(int64_t(layer.keys) * pitch);
  const GatherGroups groups(units_of<T>(a.plan.columns));
  const int staged = GatherGroups::staged(units_of<T>(a.plan.columns));
  const View<float2> stage = shared.take<float2>(a.plan.warps * staged) + warp * staged;
  for (int col0 = 0; col0 < layer.dim_v; col0 += a.plan.columns) {
    const int cols = layer.dim_v - col0 < a.plan.columns ? layer.dim_v - col0 : a.plan.columns;
    __syncthreads();  // the keys, or the columns before, are no longer needed; index and logits are written
    stage_rows<T>(v, pitch, layer.v.head(b), layer.v.stride_row, layer.keys, col0, cols, layer.v.aligned);
    finish_staging();
    for (int i0 = first + warp * groups.rows; i0 < last; i0 += a.plan.warps * groups.rows) {
      float sum[kPerUnit<T>];
      gather_rows<T>(sum, groups, stage, v, pitch, layer.topk, last - i0, [&](int row, int t, int* key) {
        const int64_t entry = (b * layer.queries + i0 + row) * layer.topk + t;
        *key = a.kept_index[entry];
        return expf(a.new_logits[entry] + memory.shift[i0 + row - first]);
      });
      const int i = i0 + groups.row, col = groups.unit * kPerUnit<T>;
      if (groups.row >= groups.rows || i >= last) continue;
      store_unit<T>(a.out.head(b) + i * a.out.stride_row + col0 + col, sum, cols - col,
                    a.out.aligned && col0 % kPerUnit<T> == 0);
    }
  }
}

// By counts, not measured (kernels/cuda/README.md): of 1024 keys both take as long at some 200 candidates.
// Shorter windows have more candidates per key.
bool tiles_pay(const AttentionInputs& in) {
  const AttentionShape& s = in.shape;
  return in.q.dtype != DType::kFloat32 && s.candidates >= 192 && 8 * s.candidates >= s.keys;
}

}  // namespace

Status attention_forward_sparse(const AttentionInputs& in, const AttentionOutputs& out, Candidates how,
                                void* stream) {
  const AttentionShape& s = in.shape;
  if (!s.windows || !s.heads || !s.queries) return Status::kOk;
  if (!in.index.data || !s.candidates || !s.topk) return Status::kBadShape;
  if (how == Candidates::kTiles) return attention_forward_tiled(in, out, stream);
  if (how == Candidates::kAuto && tiles_pay(in)) {
    const Status status = attention_forward_tiled(in, out, stream);
    if (status != Status::kUnsupported) return status;
  }
  return with_type(in.q.dtype, [&](auto tag) {
    using T = decltype(tag);
    ForwardArgs<T> a{layer_of<T>(in),
                     {},
                     strided<T>(out.out.m, s.heads, s.dim_v),
                     index_out(out.new_index, out.index_wide),
                     index_view(out.new_index ? Index{out.new_index, out.index_wide} : in.index),
                     View<float>(out.new_logits),
                     View<float>(out.lse)};
    if (!plan_sparse<T>(s, in.bias != nullptr, int(s.dim_v), &a.plan)) return Status::kUnsupported;
    return launch("attention_forward_sparse", attention_forward_sparse_kernel<T>,
                  s.windows * s.heads * a.plan.splits, 32 * a.plan.warps, a.plan.shared_bytes, stream, a);
  });
}

}  // namespace pft::cuda
