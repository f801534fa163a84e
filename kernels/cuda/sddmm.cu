// SDDMM: out[b,i,t] = scale * sum_e q[b,i,e] k[b,index[b,i,t],e].
#include "gather_dots.cuh"
#include "key_tiles.cuh"

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
// shared memory; a warp takes a query row, 32 entries of it at a time (gather_dots.cuh). float32 keys leave
// room for one block on an SM, and it has the registers of two.
template <class T, class TOut>
__global__ void __launch_bounds__(512, sizeof(T) == 4 ? 1 : 2) sddmm_resident(SddmmArgs<T, TOut> a) {
  const int units = units_of<T>(a.dim), lane = int(threadIdx.x) % 32;
  const int warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
  SharedMemory shared;
  const View<T> keys = shared.take<T>(a.keys_at_once * units * kPerUnit<T>);
  const View<float> query =
      shared.take<float>(int64_t(warps) * units * kPerUnit<T>) + warp * units * kPerUnit<T>;

  const int64_t b = blockIdx.x / unsigned(a.splits), split = blockIdx.x % unsigned(a.splits);
  const int first = int(split * a.queries / a.splits), last = int((split + 1) * a.queries / a.splits);
  const View<const T> q = a.q.head(b), k = a.k.head(b);

  for (int key0 = 0; key0 < a.keys; key0 += a.keys_at_once) {
    const int here = a.keys - key0 < a.keys_at_once ? a.keys - key0 : a.keys_at_once;
    stage_pieces<T>(keys, a.keys_at_once, k + key0 * a.k.stride_row, a.k.stride_row, here, a.dim,
                    a.k.aligned);
    finish_staging();
    for (int i = first + warp; i < last; i += warps) {
      stage_query<T>(query, q + i * a.q.stride_row, a.dim, lane);
      __syncwarp();
      const int64_t row = (b * a.queries + i) * a.kept;
      for (int t0 = 0; t0 < a.kept; t0 += 32) {
        const float dot =
            gather_dot<T>(query, keys, a.keys_at_once, units, a.index, row + t0, a.kept - t0, key0, here);
        const int t = t0 + lane;
        if (t < a.kept && (here == a.keys || unsigned(a.index[row + t] - key0) < unsigned(here)))
          a.out[row + t] = from_float<TOut>(a.scale * dot);
      }
      __syncwarp();
    }
    __syncthreads();
  }
}

// v2, 16-bit types: tensor cores compute all products of 16 query rows, and the listed ones are picked
// (key_tiles.cuh).
template <class T, class TOut>
__global__ void __launch_bounds__(32 * kTileWarps, 1) sddmm_tiles(SddmmArgs<T, TOut> a) {
  const int lane = int(threadIdx.x) % 32;
  SharedMemory shared;
  const ProductTiles<T> tiles(shared, int(blockDim.x) / 32);
  const int64_t b = blockIdx.x / unsigned(a.splits), split = blockIdx.x % unsigned(a.splits);
  const int first = int(split * a.queries / a.splits), last = int((split + 1) * a.queries / a.splits);
  for_each_product_row<T>(tiles, a.q, a.k, b, a.keys, a.dim, first, last, [&](int i, View<float> products) {
    const int64_t entries = (b * a.queries + i) * a.kept;
#pragma unroll 1  // more costs registers, which hold the keys
    for (int t = lane; t < a.kept; t += 32)
      a.out[entries + t] = from_float<TOut>(a.scale * products[a.index[entries + t]]);
  });
}

// By analysis, not measured: tiles cost the same however many entries there are, as much as a gather of a
// 24th of the keys.
template <class T, class TOut>
bool tiles_pay(const SddmmArgs<T, TOut>& a) {
  return a.kept * 24 >= a.keys;
}

template <class T, class TOut>
Status run_tiles(SddmmArgs<T, TOut> a, void* stream) {
  const int warps = int(ceil_div(a.keys, kWarpKeys));
  const int64_t bytes = ProductTiles<T>::bytes(warps);
  if (!ProductTiles<T>::fit(a.keys, a.dim) || bytes > shared_memory_limit()) return Status::kUnsupported;
  a.splits = row_splits(a.batch, a.queries, 64);
  return launch("sddmm_tiles", sddmm_tiles<T, TOut>, a.batch * a.splits, 32 * warps, bytes, stream, a);
}

template <class T, class TOut>
Status run(SddmmArgs<T, TOut> a, Version version, void* stream) {
  if constexpr (sizeof(T) == 2) {
    if (version == Version::kTiles || (version == Version::kAuto && tiles_pay(a))) {
      const Status status = run_tiles(a, stream);
      if (status != Status::kUnsupported) return status;
    }
  }
  if (version == Version::kPlain) {
    const int64_t blocks = ceil_div(a.batch * a.queries * a.kept, 256);
    return launch("sddmm_plain", sddmm_plain<T, TOut>, blocks, 256, 0, stream, a);
  }
  const int threads = 512;
  const int64_t row_bytes = units_of<T>(a.dim) * 16;
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
