// SpMM: out[b,i] = initial[b,i] + scale * sum_t a[b,i,t] v[b,index[b,i,t]].
#include <type_traits>

#include "gather_rows.cuh"
#include "value_tiles.cuh"

namespace pft::cuda {
namespace {

template <class TA, class T>
struct SpmmArgs {
  View<const TA> a;  // [batch, queries, kept], strides below
  int64_t a_stride_window, a_stride_head, a_stride_row;
  Strided<const T> v;
  IndexView index;
  View<const float> initial;
  Strided<T> out;
  int64_t batch;
  int queries, keys, dim, kept;
  float scale;
  int splits, columns, column_blocks;

  __device__ View<const TA> weights(int64_t b) const {
    return a + (b / v.heads * a_stride_window + b % v.heads * a_stride_head);
  }
};

// v0, the published mapping: one thread per output element.
template <class TA, class T>
__global__ void __launch_bounds__(256, 4) spmm_plain(SpmmArgs<TA, T> a) {
  const int64_t out = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (out >= a.batch * a.queries * a.dim) return;
  const int64_t row = out / a.dim, b = row / a.queries, i = row % a.queries;
  const int e = int(out % a.dim);
  const View<const TA> weights = a.weights(b) + i * a.a_stride_row;
  const View<const T> v = a.v.head(b);
  float sum = 0.f;
  for (int t = 0; t < a.kept; ++t) {
    sum = fmaf(to_float(weights[t]), to_float(v[a.index[row * a.kept + t] * a.v.stride_row + e]), sum);
  }
  sum *= a.scale;
  if (a.initial) sum += a.initial[out];
  (a.out.head(b) + i * a.out.stride_row)[e] = from_float<T>(sum);
}

// v1: a block keeps V of one window-head (or some of its columns) in shared memory; a group of lanes, one per
// 16 bytes of a row, owns a query row, so that a row of V is one contiguous read of the group.
template <class TA, class T>
__global__ void __launch_bounds__(512, 2) spmm_resident(SpmmArgs<TA, T> a) {
  const int warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
  const int64_t work = blockIdx.x / unsigned(a.splits), split = blockIdx.x % unsigned(a.splits);
  const int64_t b = work / a.column_blocks;
  const int col0 = int(work % a.column_blocks) * a.columns;
  const int cols = a.dim - col0 < a.columns ? a.dim - col0 : a.columns;
  const int pitch = pitch_of<T>(a.columns);
  SharedMemory shared;
  const View<T> v = shared.take<T>(int64_t(a.keys) * pitch);
  const int units = units_of<T>(a.columns), staged = GatherGroups::staged(units);
  const View<float2> stage = shared.take<float2>(warps * staged) + warp * staged;

  stage_rows<T>(v, pitch, a.v.head(b), a.v.stride_row, a.keys, col0, cols, a.v.aligned);
  finish_staging();
  const View<const TA> weights = a.weights(b);
  const GatherGroups groups(units);
  const int first = int(split * a.queries / a.splits), last = int((split + 1) * a.queries / a.splits);
  for (int i0 = first + warp * groups.rows; i0 < last; i0 += warps * groups.rows) {
    float sum[kPerUnit<T>];
    gather_rows<T>(sum, groups, stage, v, pitch, a.kept, last - i0, [&](int row, int t, int* key) {
      const int64_t i = i0 + row;
      *key = a.index[(b * a.queries + i) * a.kept + t];
      return to_float(weights[i * a.a_stride_row + t]);
    });
    const int64_t i = i0 + groups.row;
    if (groups.row >= groups.rows || i >= last) continue;
    const int col = groups.unit * kPerUnit<T>;
#pragma unroll
    for (int e = 0; e < kPerUnit<T>; ++e) {
      sum[e] *= a.scale;
      if (a.initial && col + e < cols) sum[e] += a.initial[(b * a.queries + i) * a.dim + col0 + col + e];
    }
    store_unit<T>(a.out.head(b) + i * a.out.stride_row + col0 + col, sum, cols - col,
                  a.out.aligned && col0 % kPerUnit<T> == 0);
  }
}

// v2, 16-bit types: the weights of 16 query rows as a tile, times all values (value_tiles.cuh).
template <class TA, class T>
struct SpmmEntries {
  const SpmmArgs<TA, T>& a;
  View<const TA> weights;
  int64_t b;

  // A power of two that brings the row's largest weight to 2^14, where its parts are float16.
  __device__ __forceinline__ float scale(int i) const {
    if constexpr (sizeof(TA) == 2 || !std::is_same<T, half_t>::value) {
      return 1.f;
    } else {
      float most = 0.f;
#pragma unroll 1  // more costs registers, which hold the values
      for (int t = int(threadIdx.x) % 32; t < a.kept; t += 32) {
        const float w = fabsf(to_float(weights[i * a.a_stride_row + t]));
        most = is_finite(w) ? fmaxf(most, w) : most;
      }
      const uint32_t exponent = __float_as_uint(warp_max(most)) >> 23;
      return __uint_as_float((254 + 14 - (exponent < 15 ? 15 : exponent)) << 23);  // both factors are normal
    }
  }
  __device__ __forceinline__ float get(int i, int t, int* key) const {
    *key = a.index[(b * a.queries + i) * a.kept + t];
    return to_float(weights[i * a.a_stride_row + t]);
  }
};

template <class TA, class T>
__global__ void __launch_bounds__(32 * kTileWarps, 1) spmm_tiles(SpmmArgs<TA, T> a) {
  constexpr int parts = sizeof(TA) == 2 ? 1 : 2;
  const int64_t work = blockIdx.x / unsigned(a.splits), split = blockIdx.x % unsigned(a.splits);
  const int64_t b = work / a.column_blocks;
  const int col0 = int(work % a.column_blocks) * a.columns;
  const int cols = a.dim - col0 < a.columns ? a.dim - col0 : a.columns;
  const int first = int(split * a.queries / a.splits), last = int((split + 1) * a.queries / a.splits);
  SharedMemory shared;
  const ValueTiles<T> tiles(shared, parts);
  const SpmmEntries<TA, T> entries{a, a.weights(b), b};
  const View<const T> v = a.v.head(b) + col0;
  const View<T> out = a.out.head(b) + col0;
  for_each_value_sum<parts, T>(tiles, v, a.v.stride_row, a.v.aligned && col0 % kPerUnit<T> == 0, a.keys, cols,
                               a.kept, first, last, entries, [&](int i, int col, float sum) {
                                 sum *= a.scale;
                                 if (a.initial) sum += a.initial[(b * a.queries + i) * a.dim + col0 + col];
                                 (out + i * a.out.stride_row)[col] = from_float<T>(sum);
                               });
  add_bad_values<T>(tiles, v, a.v.stride_row, cols, a.kept, first, last, entries,
                    [&](int i, int col, float more) {
                      const float before = to_float((out + i * a.out.stride_row)[col]);
                      (out + i * a.out.stride_row)[col] = from_float<T>(before + a.scale * more);
                    });
}

// By counts, not measured: tiles cost much the same however many entries there are, as much as a gather of a
// 12th of the keys.
template <class TA, class T>
bool tiles_pay(const SpmmArgs<TA, T>& a) {
  return a.kept * 12 >= a.keys;
}

template <class TA, class T>
Status run_tiles(SpmmArgs<TA, T> a, void* stream) {
  const int warps = int(ceil_div(a.keys, kWarpKeys));
  const int64_t bytes = ValueTiles<T>::bytes(sizeof(TA) == 2 ? 1 : 2, warps);
  if (warps < 1 || warps > kTileWarps || bytes > shared_memory_limit()) return Status::kUnsupported;
  a.column_blocks = int(ceil_div(a.dim, kValueColumns));
  a.columns = int(round_up(ceil_div(a.dim, a.column_blocks), 8));
  a.splits = row_splits(a.batch * a.column_blocks, a.queries, 64);
  return launch("spmm_tiles", spmm_tiles<TA, T>, a.batch * a.column_blocks * a.splits, 32 * warps, bytes,
                stream, a);
}

template <class TA, class T>
Status run(SpmmArgs<TA, T> a, Version version, void* stream) {
  if constexpr (sizeof(T) == 2) {
    if (version == Version::kTiles || (version == Version::kAuto && tiles_pay(a))) {
      const Status status = run_tiles(a, stream);
      if (status != Status::kUnsupported) return status;
    }
  }
  if (version == Version::kPlain || !a.keys) {  // without keys there is nothing to keep resident
    const int64_t blocks = ceil_div(a.batch * a.queries * a.dim, 256);
    return launch("spmm_plain", spmm_plain<TA, T>, blocks, 256, 0, stream, a);
  }
  const int threads = 512, per = kPerUnit<T>;
  const int64_t stage_bytes = threads / 32 * GatherGroups::staged(1) * 8;  // at most, as with few columns
  const int64_t units_that_fit = (shared_memory_limit() - stage_bytes) / (a.keys * 16);
  if (units_that_fit < 1)
    return run(a, Version::kPlain, stream);  // more than some 6000 keys: gather from global memory
  int units = units_of<T>(a.dim);
  while (units > 32 || pitch_of<T>(units * per) / per > units_that_fit)
    units = units == 1 ? 0 : (units + 1) / 2;
  if (units == 0) return run(a, Version::kPlain, stream);
  a.columns = units * per;
  a.column_blocks = int(ceil_div(a.dim, a.columns));
  a.splits = row_splits(a.batch * a.column_blocks, a.queries, 64);
  const int64_t bytes = a.keys * pitch_of<T>(a.columns) * int64_t(sizeof(T)) +
                        round_up(threads / 32 * GatherGroups::staged(units) * 8, 16);
  return launch("spmm_resident", spmm_resident<TA, T>, a.batch * a.column_blocks * a.splits, threads, bytes,
                stream, a);
}

}  // namespace

Status spmm(const SparseShape& s, int64_t heads, Input a, Input v, Index index, const float* initial,
            Output out, float scale, Version version, void* stream) {
  if (out.dtype != v.dtype || (a.dtype != v.dtype && a.dtype != DType::kFloat32)) return Status::kBadDType;
  if (!s.batch || !s.queries || !s.head_dim) return Status::kOk;
  return with_type(v.dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto start = [&](auto a_tag) {
      using TA = decltype(a_tag);
      return run<TA, T>({View<const TA>(static_cast<const TA*>(a.m.data)), a.m.stride_window, a.m.stride_head,
                         a.m.stride_row, strided<const T>(v.m, heads, s.head_dim), index_view(index),
                         View<const float>(initial), strided<T>(out.m, heads, s.head_dim), s.batch,
                         int(s.queries), int(s.keys), int(s.head_dim), int(s.kept), scale, 1, 0, 1},
                        version, stream);
    };
    return a.dtype == v.dtype ? start(tag) : start(float{});
  });
}

}  // namespace pft::cuda
