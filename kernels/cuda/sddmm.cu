// SDDMM: out[b,i,t] = scale * sum_e q[b,i,e] k[b,index[b,i,t],e].
#include "device.cuh"

namespace pft::cuda {
namespace {

template <class T, class TOut>
struct SddmmArgs {
  Strided<const T> q, k;
  IndexView index;
  View<TOut> out;  // contiguous
  int64_t batch;
  int queries, keys, dim, kept;
  float scale;
  int splits, keys_at_once;
};

// v0, the published mapping: one thread per output, everything from global memory.
template <class T, class TOut>
__global__ void __launch_bounds__(256, 4) sddmm_plain(SddmmArgs<T, TOut> a) {
  const int64_t out = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (out >= a.batch * a.queries * a.kept) return;
  const int64_t row = out / a.kept, b = row / a.queries;
  const View<const T> q = a.q.head(b) + row % a.queries * a.q.stride_row;
  const View<const T> k = a.k.head(b) + a.index[out] * a.k.stride_row;
  float sum = 0.f;
  for (int e = 0; e < a.dim; ++e) sum = fmaf(to_float(q[e]), to_float(k[e]), sum);
  a.out[out] = from_float<TOut>(a.scale * sum);
}

// v1: a block keeps the keys of one window-head (or, where they do not fit, a range of them at a time) in
// shared memory; a warp takes a query row, a lane two entries of it. Gathers are 16 bytes wide and hit shared
// memory only.
template <class T, class TOut>
__global__ void __launch_bounds__(512, 2) sddmm_resident(SddmmArgs<T, TOut> a) {
  const int pitch = pitch_of<T>(a.dim), units = units_of<T>(a.dim), lane = int(threadIdx.x) % 32;
  const int warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
  SharedMemory shared;
  const View<T> keys = shared.take<T>(int64_t(a.keys_at_once) * pitch);
  const View<float> query =
      shared.take<float>(int64_t(warps) * units * kPerUnit<T>) + warp * units * kPerUnit<T>;

  const int64_t b = blockIdx.x / unsigned(a.splits), split = blockIdx.x % unsigned(a.splits);
  const int first = int(split * a.queries / a.splits), last = int((split + 1) * a.queries / a.splits);
  const View<const T> q = a.q.head(b), k = a.k.head(b);

  for (int key0 = 0; key0 < a.keys; key0 += a.keys_at_once) {
    const int here = a.keys - key0 < a.keys_at_once ? a.keys - key0 : a.keys_at_once;
    stage_rows<T>(keys, pitch, k + key0 * a.k.stride_row, a.k.stride_row, here, 0, a.dim, a.k.aligned);
    finish_staging();
    for (int i = first + warp; i < last; i += warps) {
      stage_query<T>(query, q + i * a.q.stride_row, a.dim, lane);
      __syncwarp();
      const int64_t row = (b * a.queries + i) * a.kept;
      for (int t = lane; t < a.kept; t += 64) {
        const bool second = t + 32 < a.kept;
        const int j0 = a.index[row + t] - key0, j1 = second ? a.index[row + t + 32] - key0 : -1;
        const bool in0 = j0 >= 0 && j0 < here, in1 = j1 >= 0 && j1 < here;
        if (!in0 && !in1) continue;
        const float2 dot = dot_two<T>(query, keys + int64_t(in0 ? j0 : j1) * pitch,
                                      keys + int64_t(in1 ? j1 : j0) * pitch, units);
        if (in0) a.out[row + t] = from_float<TOut>(a.scale * dot.x);
        if (in1) a.out[row + t + 32] = from_float<TOut>(a.scale * dot.y);
      }
      __syncwarp();
    }
    __syncthreads();
  }
}

template <class T, class TOut>
Status run(SddmmArgs<T, TOut> a, Version version, void* stream) {
  if (version == Version::kPlain) {
    const int64_t blocks = ceil_div(a.batch * a.queries * a.kept, 256);
    return launch("sddmm_plain", sddmm_plain<T, TOut>, blocks, 256, 0, stream, a);
  }
  const int threads = 512;
  const int64_t row_bytes = pitch_of<T>(a.dim) * int64_t(sizeof(T));
  const int64_t query_bytes = threads / 32 * units_of<T>(a.dim) * kPerUnit<T> * 4;
  const int64_t fits = (shared_memory_limit() - query_bytes) / row_bytes;
  if (fits < 1) return Status::kUnsupported;
  a.keys_at_once = int(fits < a.keys ? fits : a.keys);
  a.splits = row_splits(a.batch, a.queries, 64);
  const int64_t bytes = a.keys_at_once * row_bytes + query_bytes;
  return launch("sddmm_resident", sddmm_resident<T, TOut>, a.batch * a.splits, threads, bytes, stream, a);
}

}  // namespace

Status sddmm(const SparseShape& s, int64_t heads, Input q, Input k, Index index, Output out, float scale,
             Version version, void* stream) {
  if (q.dtype != k.dtype || (out.dtype != q.dtype && out.dtype != DType::kFloat32)) return Status::kBadDType;
  if (!s.batch || !s.queries || !s.kept) return Status::kOk;
  return with_type(q.dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto start = [&](auto out_tag) {
      using TOut = decltype(out_tag);
      return run<T, TOut>({strided<const T>(q.m, heads, s.head_dim), strided<const T>(k.m, heads, s.head_dim),
                           index_view(index), View<TOut>(static_cast<TOut*>(out.m.data)), s.batch,
                           int(s.queries), int(s.keys), int(s.head_dim), int(s.kept), scale, 1, 0},
                          version, stream);
    };
    return out.dtype == q.dtype ? start(tag) : start(float{});
  });
}

}  // namespace pft::cuda
