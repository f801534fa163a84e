// Forward of a sparse layer in one launch: gather-dot, bias, earlier logits, softmax, selection, weighted sum
// of V.
//
// A block owns some query rows of one window-head. First the keys are resident: a warp computes a row's
// logits, selects by bisection and writes index and logits of the kept entries. Then V takes the place of the
// keys, and the entries just written (still in the cache) weigh its rows. One matrix at a time is resident,
// so that two blocks share an SM.
#include "listed_tiles.cuh"
#include "sparse_forward.cuh"

namespace pft::cuda {
namespace {

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

  prepare_bias(layer, memory, a.plan.bias_shared, int(unsigned(b) % unsigned(layer.heads)));
  for_each_row(layer, a.plan, memory, b, first, last, [&](int i, View<const float> z) {
    finish_row(a, b * layer.queries + i, RowInMemory<>{z, layer.candidates, lane},
               memory.shift + (i - first));
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

}  // namespace

Status attention_forward_sparse(const AttentionInputs& in, const AttentionOutputs& out, Candidates how,
                                Float32 multiply, void* stream) {
  const AttentionShape& s = in.shape;
  if (!s.windows || !s.heads || !s.queries) return Status::kOk;
  if (!in.index.data || !s.candidates || !s.topk) return Status::kBadShape;
  if (how == Candidates::kTiles) return attention_forward_tiled(in, out, stream);
  if (how == Candidates::kAuto && tiles_pay(s, in.q.dtype)) {
    const Status status = attention_forward_tiled(in, out, stream);
    if (status != Status::kUnsupported) return status;
  }
  if (how != Candidates::kGather && splits(in.q.dtype, multiply) &&
      (multiply == Float32::kSplit || split_tiles_pay(s))) {
    const Status status = attention_forward_tiled_split(in, out, stream);
    if (status != Status::kUnsupported || multiply == Float32::kSplit) return status;
  }
  return with_type(in.q.dtype, [&](auto tag) {
    using T = decltype(tag);
    ForwardArgs<T> a = forward_args<T>(in, out);
    if (!plan_sparse<T>(s, in.bias != nullptr, int(s.dim_v), &a.plan)) return Status::kUnsupported;
    return launch("attention_forward_sparse", attention_forward_sparse_kernel<T>,
                  s.windows * s.heads * a.plan.splits, 32 * a.plan.warps, a.plan.shared_bytes, stream, a);
  });
}

}  // namespace pft::cuda
