// Gradient of a sparse float32 layer's logits, where there are many candidates: tensor cores compute all
// products of up to 128 rows, first of queries with keys, then of the output's gradient with values, each
// number as three of bfloat16 (split_tile.cuh). A row picks what it lists out of every stretch, as in the
// forward pass: its logits become weights, and those the gradient G (sparse_gradient.cuh), all in one place.
#include "listed_tiles.cuh"
#include "sparse_gradient.cuh"

namespace pft::cuda {
namespace {

struct ListedBackward : ListedArgs, LogitGradients {
  Strided<const float> grad_out;
};

constexpr int16_t kDropped = int16_t(0x8000);  // marks what is not kept in a list, beside its key

// What a row has after its candidates, in the padding of z.
struct RowEnd {
  View<float> at;

  __device__ __forceinline__ RowEnd(const ListedArgs& a, const ListedMemory& memory, int r)
      : at(memory.z + ((r + 1) * a.z_pitch() - 2)) {}
  __device__ __forceinline__ void set(float delta, int top) const {
    at[0] = delta, at[1] = __uint_as_float(uint32_t(top));
  }
  __device__ __forceinline__ float delta() const { return at[0]; }
  __device__ __forceinline__ int top() const { return int(__float_as_uint(at[1])); }  // the first maximum
};

// Logits become weights, those of dropped entries their gradients.
template <int kEach>
__device__ __forceinline__ void weigh_row(const ListedBackward& a, const ListedMemory& memory,
                                          const RowInRegisters<kEach>& row, int64_t at, int r) {
  const int candidates = a.layer.candidates, lane = row.lane;
  const View<float> z = memory.z + r * a.z_pitch();
  const View<int16_t> list = memory.list + r * a.list_pitch();
  const float lse = a.lse[at], delta = a.delta ? float(a.delta[at]) : 0.f;
  float max = -INFINITY;
  row.each([&](int, float value) { max = fmaxf(max, value); });
  max = warp_max(max);
  int top = candidates, next = 0;
#pragma unroll
  for (int e = kEach - 1; e >= 0; --e) {
    if (row.z[e] == max) top = lane + 32 * e;
  }
  top = warp_min(top);
  if (lane == 0) RowEnd(a, memory, r).set(delta, top);
  __syncwarp();  // lanes without an entry have read the last one's key
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int t = lane + 32 * e, key = t < candidates ? int(list[t]) : -1;
    if (32 * e >= candidates) continue;
    const int slot = slot_of(a, at, t, key, &next, lane);
    if (t >= candidates) continue;
    const float weight = exp_of_unit(row.z[e] - lse);
    if (slot >= 0) {
      a.a_kept[at * a.kept + slot] = weight;
      z[t] = weight;
    } else {
      list[t] = int16_t(key | kDropped);
      z[t] = -weight * delta;
    }
  }
}

// The row's gradients as they are handed back.
__device__ __forceinline__ void write_row(const ListedBackward& a, const ListedMemory& memory, int64_t at,
                                          int r) {
  const int candidates = a.layer.candidates, lane = int(threadIdx.x) % 32;
  const View<const float> z = memory.z + r * a.z_pitch();
  const View<const int16_t> list = memory.list + r * a.list_pitch();
  const View<float> g = a.g + at * candidates;
  if (!a.grad_logits) {
    for (int t = lane; t < candidates; t += 32) g[t] = z[t];
    return;
  }
  const View<const float> handed = a.grad_logits + at * a.kept;
  float sum = 0.f;
  for (int t = lane; t < a.kept; t += 32) sum += handed[t];
  sum = warp_sum(sum);
  const int top = RowEnd(a, memory, r).top();
  if (a.kept == candidates) {
    for (int t = lane; t < candidates; t += 32) g[t] = z[t] + (handed[t] - (t == top ? sum : 0.f));
    return;
  }
  int next = 0;
  for (int t0 = 0; t0 < candidates; t0 += 32) {
    const int t = t0 + lane;
    const bool kept = t < candidates && list[t] >= 0;
    const uint32_t all = __ballot_sync(kFullWarp, kept);
    float value = t < candidates ? float(z[t]) : 0.f;
    if (kept) value += handed[next + __popc(all & ((1u << lane) - 1u))];
    if (t == top) value -= sum;
    if (t < candidates) g[t] = value;
    next += __popc(all);
  }
}

__global__ void __launch_bounds__(32 * kTallWarps, 1)
    attention_backward_tiled_split_kernel(ListedBackward a) {
  const auto& l = a.layer;
  const int lane = int(threadIdx.x) % 32;
  const ListedRows rows(a, int(blockIdx.x));
  SharedMemory shared;
  const ListedMemory memory(shared, a);
  const Part part(a);
  const OwnRows mine(a, rows.count);
  const ListedTerms terms = stage_listed_logits(a, memory, rows, part);
  __syncwarp();
  for (int r = mine.first; r < mine.last; ++r) {
    with_listed_row(memory.z + r * a.z_pitch(), l.candidates, lane, [&](auto row) {
      terms.add(row, a, memory, memory.list + r * a.list_pitch(), rows.first + r);
      weigh_row(a, memory, row, rows.row(a, r), r);
    });
  }
  __syncthreads();  // the products have been used
  for_each_listed_product(
      a, memory, rows, part, a.grad_out, l.v, l.dim_v, [] {},
      [&](int r, int entry, int key, View<const float> product) {
        if (key < 0) return;  // dropped
        memory.z[entry] = memory.z[entry] * (product[0] - RowEnd(a, memory, r).delta());
      });
  __syncwarp();
  for (int r = mine.first; r < mine.last; ++r) write_row(a, memory, rows.row(a, r), r);
}

}  // namespace

bool backward_splits(const AttentionShape& s, DType dtype, bool bias, Candidates how, Float32 multiply) {
  if (!splits(dtype, multiply) || how == Candidates::kGather || s.dim_v > kChunk) return false;
  ListedArgs a{};
  a.layer.candidates = int(s.candidates);
  return (multiply == Float32::kSplit || split_tiles_pay(s)) && plan_listed(s, bias, a) != 0;
}

Status attention_backward_tiled_split(const AttentionInputs& in, const SparseGradients& grads, void* stream) {
  const AttentionShape& s = in.shape;
  if (in.q.dtype != DType::kFloat32) return Status::kBadDType;
  if (!grads.grad_out.m.data) return Status::kBadShape;
  ListedBackward a{listed_args(in), logit_gradients(grads),
                   strided<const float>(grads.grad_out.m, s.heads, s.dim_v)};
  const int64_t bytes = plan_listed(s, in.bias != nullptr, a);
  if (!bytes || s.dim_v > kChunk) return Status::kUnsupported;
  a.tiles = int(ceil_div(s.queries, a.rows));
  return launch("attention_backward_tiled_split", attention_backward_tiled_split_kernel,
                s.windows * s.heads * a.tiles, 32 * kTallWarps, bytes, stream, a);
}

}  // namespace pft::cuda
