// Pieces that the kernels share: typed arguments, staging of rows in shared memory, dot products, warp
// reductions.
#pragma once
#include "pft/cuda.h"
#include "portable.cuh"

namespace pft::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;

__host__ __device__ constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
__host__ __device__ constexpr int64_t ceil_div(int64_t x, int64_t by) { return (x + by - 1) / by; }

// Elements of T in a 16-byte unit, and units that a row of `cols` elements takes.
template <class T>
constexpr int kPerUnit = 16 / int(sizeof(T));
template <class T>
__host__ __device__ constexpr int units_of(int64_t cols) {
  return int(ceil_div(cols, kPerUnit<T>));
}
// Pitch of a row in shared memory, in elements: an odd number of 16-byte units, so that the same unit of
// different rows falls into all eight groups of four banks.
template <class T>
__host__ __device__ constexpr int pitch_of(int64_t cols) {
  return (units_of<T>(cols) | 1) * kPerUnit<T>;
}

// A strided tensor as kernels get it. `aligned`: every row starts on 16 bytes and holds whole units.
template <class T>
struct Strided {
  View<T> data;
  int64_t stride_window, stride_head, stride_row;
  int heads;
  bool aligned;

  // Window-heads are at most as many as a grid has blocks, so that a 32-bit division will do.
  __device__ View<T> head(int64_t b) const {
    const unsigned window = unsigned(b) / unsigned(heads), head = unsigned(b) % unsigned(heads);
    return data + (int64_t(window) * stride_window + int64_t(head) * stride_head);
  }
};

template <class T, class M>
Strided<T> strided(const M& m, int64_t heads, int64_t cols) {
  const int64_t bytes = int64_t(sizeof(T));
  const bool aligned = reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && m.stride_window * bytes % 16 == 0 &&
                       m.stride_head * bytes % 16 == 0 && m.stride_row * bytes % 16 == 0 &&
                       cols * bytes % 16 == 0;
  return {
      View<T>(static_cast<T*>(m.data)), m.stride_window, m.stride_head, m.stride_row, int(heads), aligned};
}

// Entries of an index; the width is a branch that all threads take alike, instead of twice the kernels.
struct IndexView {
  View<const int16_t> narrow;
  View<const int32_t> wide;

  __device__ int operator[](int64_t i) const { return wide ? int(wide[i]) : int(narrow[i]); }
  __device__ explicit operator bool() const { return narrow || wide; }
};
inline IndexView index_view(Index index) {
  const void* narrow = index.wide ? nullptr : index.data;
  const void* wide = index.wide ? index.data : nullptr;
  return {View<const int16_t>(static_cast<const int16_t*>(narrow)),
          View<const int32_t>(static_cast<const int32_t*>(wide))};
}

// 16 bytes as floats.
__device__ __forceinline__ void unpack(uint4 raw, float (&x)[4], float) {
  x[0] = __uint_as_float(raw.x);
  x[1] = __uint_as_float(raw.y);
  x[2] = __uint_as_float(raw.z);
  x[3] = __uint_as_float(raw.w);
}
template <class T>
__device__ __forceinline__ void unpack(uint4 raw, float (&x)[8], T tag) {
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack_pair(words[i], tag);
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}
__device__ __forceinline__ uint4 pack(const float (&x)[4], float) {
  return make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]),
                    __float_as_uint(x[3]));
}
template <class T>
__device__ __forceinline__ uint4 pack(const float (&x)[8], T tag) {
  return make_uint4(pack_pair(x[0], x[1], tag), pack_pair(x[2], x[3], tag), pack_pair(x[4], x[5], tag),
                    pack_pair(x[6], x[7], tag));
}

// Copies columns [col0, col0 + cols) of `rows` rows to shared memory, `units` 16-byte units a row, and zeroes
// what lies beyond: the tail of a row, and rows up to `padded_rows`. Asynchronous where alignment allows:
// finish_staging() ends it for the whole block.
template <class T>
__device__ void stage_tile(View<T> to, int pitch, View<const T> from, int64_t stride_row, int rows,
                           int padded_rows, int col0, int cols, int units, bool aligned) {
  constexpr int per = kPerUnit<T>;
  const bool whole = aligned && cols % per == 0 && col0 % per == 0;
  // A power of two of neighbouring threads takes a row: no division by the row's length.
  const int bits = units <= 2 ? 1 : units <= 4 ? 2 : units <= 8 ? 3 : units <= 16 ? 4 : 5;
  const int at_once = int(blockDim.x) >> bits;
  for (int row = int(threadIdx.x) >> bits; row < padded_rows; row += at_once) {
    const View<T> line = to + row * pitch;
    const View<const T> source = from + (row * stride_row + col0);
    for (int unit = int(threadIdx.x) & ((1 << bits) - 1); unit < units; unit += 1 << bits) {
      const View<T> at = line + unit * per;
      if (row >= rows || unit * per >= cols) {
        store_as(at, make_uint4(0, 0, 0, 0));
      } else if (whole) {
        cp_async_16(at, source + unit * per);
      } else {
        float x[per];
#pragma unroll
        for (int i = 0; i < per; ++i) {
          x[i] = unit * per + i < cols ? to_float(source[unit * per + i]) : 0.f;
        }
        store_as(at, pack(x, T{}));  // exact: the values came from T
      }
    }
  }
}
template <class T>
__device__ void stage_rows(View<T> to, int pitch, View<const T> from, int64_t stride_row, int rows, int col0,
                           int cols, bool aligned) {
  stage_tile<T>(to, pitch, from, stride_row, rows, rows, col0, cols, units_of<T>(cols), aligned);
}
__device__ __forceinline__ void finish_staging() {
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
}

// One row to float32, zero-padded to whole units of T, by one warp. Needs __syncwarp before use.
template <class T>
__device__ void stage_query(View<float> to, View<const T> from, int cols, int lane) {
  for (int e = lane; e < units_of<T>(cols) * kPerUnit<T>; e += 32) to[e] = e < cols ? to_float(from[e]) : 0.f;
}

// sum += q . row, both padded to whole units; q is the same for all lanes (a broadcast), rows differ.
template <class T>
__device__ __forceinline__ void dot_unit(float& sum, const float (&q)[kPerUnit<T>], View<const T> row) {
  float x[kPerUnit<T>];
  unpack(load_as<uint4>(row), x, T{});
#pragma unroll
  for (int i = 0; i < kPerUnit<T>; ++i) sum = fmaf(q[i], x[i], sum);
}
template <class T>
__device__ __forceinline__ void load_query_unit(float (&q)[kPerUnit<T>], View<const float> from) {
#pragma unroll
  for (int i = 0; i < kPerUnit<T>; i += 4) {
    const float4 part = load_as<float4>(from + i);
    q[i] = part.x;
    q[i + 1] = part.y;
    q[i + 2] = part.z;
    q[i + 3] = part.w;
  }
}

// Dot products of one query with two rows: two independent chains, one read of the query.
template <class T>
__device__ __forceinline__ float2 dot_two(View<const float> q, View<const T> row0, View<const T> row1,
                                          int units) {
  float2 sum = make_float2(0.f, 0.f);
#pragma unroll 2  // more costs registers, and with them warps; the loads of two rows already overlap
  for (int u = 0; u < units; ++u) {
    float query[kPerUnit<T>];
    load_query_unit<T>(query, q + u * kPerUnit<T>);
    dot_unit<T>(sum.x, query, row0 + u * kPerUnit<T>);
    dot_unit<T>(sum.y, query, row1 + u * kPerUnit<T>);
  }
  return sum;
}

// The same for rows that are not aligned: element by element.
template <class T>
__device__ __forceinline__ float dot_plain(View<const float> q, View<const T> row, int cols) {
  float sum = 0.f;
  for (int e = 0; e < cols; ++e) sum = fmaf(q[e], to_float(row[e]), sum);
  return sum;
}

// Butterflies: every lane gets the same bits.
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int bit = 16; bit; bit /= 2) x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, bit));
  return x;
}
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int bit = 16; bit; bit /= 2) x += __shfl_xor_sync(kFullWarp, x, bit);
  return x;
}
__device__ __forceinline__ int warp_sum(int x) { return __reduce_add_sync(kFullWarp, x); }
__device__ __forceinline__ int warp_min(int x) { return __reduce_min_sync(kFullWarp, x); }

// Blocks per window-head: enough to fill the device when there are few window-heads, but at least `min_rows`
// rows each, as every one of them loads K or V again.
inline int row_splits(int64_t batch, int64_t rows, int64_t min_rows) {
  const int64_t wanted = ceil_div(2 * int64_t(multiprocessors()), batch);
  const int64_t most = rows / min_rows;
  const int64_t splits = wanted < most ? wanted : most;
  return splits < 1 ? 1 : int(splits);
}

// Calls f with a value of the type that `dtype` names.
template <class F>
Status with_type(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float{});
    case DType::kFloat16:
      return f(half_t{});
    case DType::kBFloat16:
      return f(bf16_t{});
  }
  return Status::kBadDType;
}

}  // namespace pft::cuda
