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

  __device__ View<const TA> weights(int64_t b) const {
    return a + (b / x.heads * a_stride_window + b % x.heads * a_stride_head);
  }
};

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
      return start(args);
    };
    return a.dtype == x.dtype ? of_weights(tag) : of_weights(float{});
  });
}

}  // namespace pft::cuda
