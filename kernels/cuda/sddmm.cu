// SDDMM: out[b,i,t] = scale * sum_e q[b,i,e] k[b,index[b,i,t],e].
#include "gather_dots.cuh"

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

// v2, 16-bit types: tensor cores compute all products of 16 query rows, and the listed ones are picked from
// shared memory: four bytes for an entry instead of a row of keys. A warp's 64 keys stay in its registers, as
// the fragments that mma.sync wants, for all rows of the block.
constexpr int kTileWarps = 16;
constexpr int kWarpKeys = 64;
constexpr int kTileRows = 16;
constexpr int kChannels = 40;  // at most, in halves of the 16-channel steps of mma.sync
constexpr int kHalves = kChannels / 8;
constexpr int kSteps = (kHalves + 1) / 2;
constexpr int kQueryPitch = pitch_of<half_t>(16 * kSteps);

__host__ __device__ constexpr int products_pitch(int warps) { return warps * kWarpKeys + 8; }

template <class T>
__device__ __forceinline__ void load_keys(uint32_t (&fragments)[kWarpKeys / 8][kHalves], View<const T> k,
                                          int64_t stride_row, int keys, int dim) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int n = 0; n < kWarpKeys / 8; ++n) {
    const int key = int(threadIdx.x) / 32 * kWarpKeys + n * 8 + lane / 4;
    __syncwarp();  // all reads at once would cost more registers than there are
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const int col = half * 8 + lane % 4 * 2;
      const View<const T> at = k + key * stride_row + col;
      const float low = key < keys && col < dim ? to_float(at[0]) : 0.f;
      const float high = key < keys && col + 1 < dim ? to_float(at[1]) : 0.f;
      fragments[n][half] = pack_pair(low, high, T{});  // exact: the values came from T
    }
  }
}

template <class T, class TOut>
__global__ void __launch_bounds__(32 * kTileWarps, 1) sddmm_tiles(SddmmArgs<T, TOut> a) {
  const int warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32, lane = int(threadIdx.x) % 32;
  const int pitch = products_pitch(warps), steps = int(ceil_div(a.dim, 16));
  SharedMemory shared;
  const View<T> queries = shared.take<T>(2 * kTileRows * kQueryPitch);  // this tile's and the next one's
  const View<float> products = shared.take<float>(kTileRows * pitch);
  const int64_t b = blockIdx.x / unsigned(a.splits), split = blockIdx.x % unsigned(a.splits);
  const int first = int(split * a.queries / a.splits), last = int((split + 1) * a.queries / a.splits);
  const View<const T> q = a.q.head(b);
  const auto stage = [&](int i0) {
    const int rows = last - i0 < kTileRows ? last - i0 : kTileRows;
    stage_tile<T>(queries + (i0 - first) / kTileRows % 2 * kTileRows * kQueryPitch, kQueryPitch,
                  q + i0 * a.q.stride_row, a.q.stride_row, rows, kTileRows, 0, a.dim, 2 * steps, a.q.aligned);
  };

  stage(first);
  uint32_t keys[kWarpKeys / 8][kHalves];
  load_keys<T>(keys, a.k.head(b), a.k.stride_row, a.keys, a.dim);
  finish_staging();
  for (int i0 = first; i0 < last; i0 += kTileRows) {
    const View<T> row = queries + (i0 - first) / kTileRows % 2 * kTileRows * kQueryPitch +
                        lane % 16 * kQueryPitch + lane / 16 * 8;
    uint32_t query[kSteps][4];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (step < steps) ldmatrix_x4<false>(query[step], row + step * 16);
    }
    const View<float> to = products + lane / 4 * pitch + warp * kWarpKeys + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < kWarpKeys / 8; ++n) {
      float d[4] = {};
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const uint32_t key[2] = {keys[n][2 * step], 2 * step + 1 < kHalves ? keys[n][2 * step + 1] : 0u};
        if (step < steps) mma_m16n8k16<T>(d, query[step], key);
      }
      store_as(to + n * 8, make_float2(d[0], d[1]));
      store_as(to + 8 * pitch + n * 8, make_float2(d[2], d[3]));
    }
    if (i0 + kTileRows < last) stage(i0 + kTileRows);
    __syncthreads();  // the products are there
    for (int r = warp; r < kTileRows && i0 + r < last; r += warps) {
      const int64_t entries = (b * a.queries + i0 + r) * a.kept;
#pragma unroll 1  // more costs registers, which hold the keys
      for (int t = lane; t < a.kept; t += 32)
        a.out[entries + t] = from_float<TOut>(a.scale * products[r * pitch + a.index[entries + t]]);
    }
    finish_staging();  // the products are used
  }
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
  const int64_t bytes =
      2 * kTileRows * kQueryPitch * int64_t(sizeof(T)) + kTileRows * int64_t(products_pitch(warps)) * 4;
  if (warps < 1 || warps > kTileWarps || a.dim > kChannels || bytes > shared_memory_limit())
    return Status::kUnsupported;
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
