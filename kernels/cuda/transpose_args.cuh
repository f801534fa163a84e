// Arguments of the transposed SpMM, whichever kernel runs it.
#pragma once
#include "device.cuh"

namespace pft::cuda {

template <class TA, class T>
struct TransposeArgs {
  View<const TA> a;
  int64_t a_stride_window, a_stride_head, a_stride_row;
  Strided<const T> x;
  IndexView index;
  View<const float> initial;
  Strided<T> out;
  int64_t batch;
  int queries, keys, dim, kept;
  float scale;
  int columns, column_blocks, keys_at_once, key_blocks;  // what a block takes; the launcher decides
  bool weights_aligned;                                  // every row of them starts on 16 bytes

  __device__ int64_t weights_at(int64_t b) const {
    return b / x.heads * a_stride_window + b % x.heads * a_stride_head;
  }
  __device__ View<const TA> weights(int64_t b) const { return a + weights_at(b); }
  __device__ int64_t x_at(int64_t b) const {
    return b / x.heads * x.stride_window + b % x.heads * x.stride_head;
  }
};

// Adds scale * weight * value, for what left_out(weight, value) says a tile has left out, to the outputs of
// the keys that list its row, row by row. `bad` has a bit for every row that has such; after a barrier.
template <class TA, class T, class LeftOut>
__device__ void add_left_out(const TransposeArgs<TA, T>& a, View<const uint32_t> bad, int64_t b, int key0,
                             int here, int col0, int cols, LeftOut left_out) {
  const View<const TA> weights = a.weights(b);
  const View<const T> x = a.x.head(b);
  for (int i = 0; i < a.queries; ++i) {
    const uint32_t rest = bad[i / 32] >> i % 32;
    if (!rest) i |= 31;  // none of these 32 rows
    if (!(rest & 1)) continue;
    __syncthreads();  // the outputs, or the row before, are written
    for (int t = int(threadIdx.x); t < a.kept; t += int(blockDim.x)) {
      const int key = a.index[(b * a.queries + i) * a.kept + t] - key0;
      if (key < 0 || key >= here) continue;
      const float weight = to_float(weights[i * a.a_stride_row + t]);
      for (int col = col0; col < col0 + cols; ++col) {
        const float value = to_float(x[i * a.x.stride_row + col]);
        if (!left_out(weight, value)) continue;
        const auto out = (a.out.head(b) + (key0 + key) * a.out.stride_row)[col];
        (a.out.head(b) + (key0 + key) * a.out.stride_row)[col] =
            from_float<T>(to_float(out) + a.scale * (weight * value));
      }
    }
  }
}

// Calls start(args) with the arguments for the dtypes of x and a.
template <class Start>
Status with_transpose_args(const SparseShape& s, int64_t heads, Input a, Input x, Index index,
                           const float* initial, Output out, float scale, Start start) {
  if (out.dtype != x.dtype || (a.dtype != x.dtype && a.dtype != DType::kFloat32)) return Status::kBadDType;
  if (!s.batch || !s.keys || !s.head_dim) return Status::kOk;
  return with_type(x.dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto of_weights = [&](auto a_tag) {
      using TA = decltype(a_tag);
      TransposeArgs<TA, T> args{};
      args.a = View<const TA>(static_cast<const TA*>(a.m.data));
      args.a_stride_window = a.m.stride_window;
      args.a_stride_head = a.m.stride_head;
      args.a_stride_row = a.m.stride_row;
      args.x = strided<const T>(x.m, heads, s.head_dim);
      args.index = index_view(index);
      args.initial = View<const float>(initial);
      args.out = strided<T>(out.m, heads, s.head_dim);
      args.batch = s.batch;
      args.queries = int(s.queries);
      args.keys = int(s.keys);
      args.dim = int(s.head_dim);
      args.kept = int(s.kept);
      args.scale = scale;
      const int64_t bytes = int64_t(sizeof(TA));
      args.weights_aligned = reinterpret_cast<uintptr_t>(a.m.data) % 16 == 0 &&
                             a.m.stride_window * bytes % 16 == 0 && a.m.stride_head * bytes % 16 == 0 &&
                             a.m.stride_row * bytes % 16 == 0;
      return start(args);
    };
    return a.dtype == x.dtype ? of_weights(tag) : of_weights(float{});
  });
}

}  // namespace pft::cuda
