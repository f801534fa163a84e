// Forward of a sparse layer with many candidates, 16-bit types: tensor cores compute the products of 16 query
// rows with all keys, a row picks its candidates' (tiled_logits.cuh), and after selection the kept weights
// are spread over a tile that tensor cores multiply by all values (value_tiles.cuh).
#include <type_traits>

#include "sparse_forward.cuh"
#include "tiled_logits.cuh"
#include "value_tiles.cuh"

namespace pft::cuda {
namespace {

constexpr int kParts = 2;  // of a weight

// The entries that phase two weighs: those that phase one kept. Weights are at most one, and a row's largest
// is no less than one in so many keys: one scale does for all of them.
template <class T>
struct KeptEntries {
  const ForwardArgs<T>& a;
  View<const float> shift;
  int64_t b;
  int first;

  __device__ __forceinline__ float scale(int) const { return std::is_same<T, half_t>::value ? 16384.f : 1.f; }
  __device__ __forceinline__ float get(int i, int t, int* key) const {
    const int64_t entry = (b * a.layer.queries + i) * a.layer.topk + t;
    *key = a.kept_index[entry];
    return exp_of_unit(a.new_logits[entry] + shift[i - first]);
  }
};

// A block's rows [first, last) of window-head b, and max - lse of each of them in shared memory.
template <class T>
struct BlockRows {
  int64_t b;
  int first, last;
  View<float> shift;

  __device__ __forceinline__ BlockRows(const ForwardArgs<T>& a, int block) {
    const unsigned splits = unsigned(a.plan.splits), split = unsigned(block) % splits,
                   queries = unsigned(a.layer.queries);
    b = unsigned(block) / splits;
    first = int(split * queries / splits), last = int((split + 1) * queries / splits);
    SharedMemory shared;
    shared.take<uint8_t>(a.plan.row_numbers_at);
    shift = shared.take<float>((queries + splits - 1) / splits);
  }
};

template <class T>
__device__ __forceinline__ BlockRows<T> rows_computed_anew(const ForwardArgs<T>& a) {
  return BlockRows<T>(a, computed_anew(int(blockIdx.x)));
}
template <class T>
__device__ __forceinline__ ValueTiles<T> value_tiles() {
  SharedMemory shared;
  return ValueTiles<T>(shared, kParts);
}

template <class T>
__device__ __forceinline__ void sum_values(const ForwardArgs<T>& a, int col0, int cols) {
  const BlockRows<T> rows = rows_computed_anew(a);
  const View<T> out = a.out.head(rows.b) + col0;
  for_each_value_sum<kParts, T>(
      value_tiles<T>(), a.layer.v.head(rows.b) + col0, a.layer.v.stride_row, a.layer.v.aligned, a.layer.keys,
      cols, a.layer.topk, rows.first, rows.last, KeptEntries<T>{a, rows.shift, rows.b, rows.first},
      [&](int i, int col, float sum) { (out + i * a.out.stride_row)[col] = from_float<T>(sum); });
}

template <class T>
__device__ __forceinline__ void add_bad_ones(const ForwardArgs<T>& a, int col0, int cols) {
  const BlockRows<T> rows = rows_computed_anew(a);
  const View<T> out = a.out.head(rows.b) + col0;
  add_bad_values<T>(value_tiles<T>(), a.layer.v.head(rows.b) + col0, a.layer.v.stride_row, cols, a.layer.topk,
                    rows.first, rows.last, KeptEntries<T>{a, rows.shift, rows.b, rows.first},
                    [&](int i, int col, float more) {
                      const float before = to_float((out + i * a.out.stride_row)[col]);
                      (out + i * a.out.stride_row)[col] = from_float<T>(before + more);
                    });
}

template <class T>
__global__ void __launch_bounds__(32 * kTileWarps, 1) attention_forward_tiled_kernel(ForwardArgs<T> a) {
  const Layer<T>& layer = a.layer;
  const int lane = int(threadIdx.x) % 32;
  {
    const BlockRows<T> rows(a, int(blockIdx.x));
    SharedMemory shared;
    const TiledMemory<T> memory(shared, layer, a.plan);
    prepare_bias(layer, memory, a.plan.bias_shared, int(unsigned(rows.b) % unsigned(layer.heads)));
    for_each_tiled_row<T>(
        layer, a.plan, memory, rows.b, rows.first, rows.last, [&](int i, View<const float> z) {
          finish_row(a, rows.b * layer.queries + i, RowInMemory<1>{z, layer.candidates, lane},
                     rows.shift + (i - rows.first));
        });
  }
  for (int col0 = 0; col0 < layer.dim_v; col0 += kValueColumns) {
    const int cols = layer.dim_v - col0 < kValueColumns ? layer.dim_v - col0 : kValueColumns;
    sum_values(a, col0, cols);
    add_bad_ones(a, col0, cols);
    __syncthreads();
  }
}

template <class T>
Status run(const AttentionInputs& in, const AttentionOutputs& out, void* stream) {
  const AttentionShape& s = in.shape;
  ForwardArgs<T> a = forward_args<T>(in, out);
  SparsePlan& plan = a.plan;
  const auto later = [](int warps) { return ValueTiles<T>::bytes(kParts, warps); };
  if (!plan_tiles<T>(s, in.bias != nullptr, true, later, &plan)) return Status::kUnsupported;
  return launch("attention_forward_tiled", attention_forward_tiled_kernel<T>,
                s.windows * s.heads * plan.splits, 32 * plan.warps, plan.shared_bytes, stream, a);
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
