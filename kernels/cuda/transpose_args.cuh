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

// Which keys and columns of which window-head a block works on.
struct TransposePart {
  int64_t b;
  int key0, keys, col0, cols;

  template <class TA, class T>
  __device__ __forceinline__ TransposePart(const TransposeArgs<TA, T>& a, int block) {
    const unsigned parts = unsigned(a.column_blocks * a.key_blocks), part = unsigned(block) % parts;
    b = unsigned(block) / parts;
    col0 = int(part % unsigned(a.column_blocks)) * a.columns;
    key0 = int(part / unsigned(a.column_blocks)) * a.keys_at_once;
    keys = a.keys - key0 < a.keys_at_once ? a.keys - key0 : a.keys_at_once;
    cols = a.dim - col0 < a.columns ? a.dim - col0 : a.columns;
  }
};

// The same as what is read: where weights, x and entries begin, in elements. In shared memory, where kernels
// need their registers for sums.
struct TransposeBegin {
  View<int64_t> place;  // of weights, x, entries
  View<int> number;     // the first key, and columns

  __device__ __forceinline__ explicit TransposeBegin(SharedMemory& shared) {
    place = shared.take<int64_t>(3);
    number = shared.take<int>(2);
  }
  static constexpr int64_t kBytes = 32 + 16;

  template <class TA, class T>
  __device__ __forceinline__ void set(const TransposeArgs<TA, T>& a) const {
    const TransposePart part(a, int(blockIdx.x));
    place[0] = a.weights_at(part.b);
    place[1] = a.x_at(part.b) + part.col0;
    place[2] = part.b * a.queries * a.kept;
    number[0] = part.key0;
    number[1] = part.cols;
  }
  __device__ __forceinline__ int64_t weights() const { return place[0]; }
  __device__ __forceinline__ int64_t x() const { return place[1]; }
  __device__ __forceinline__ int64_t entries() const { return place[2]; }
  __device__ __forceinline__ int key0() const { return number[0]; }
  __device__ __forceinline__ int cols() const { return number[1]; }
};

// Adds scale * weight * value, for what left_out(weight, value) says a tile has left out, to the outputs of
// the keys that list its row, row by row. `bad` has a bit for every row that has such; after a barrier.
// kWords: rows that have none are passed by 32 at a time, which costs a register.
template <bool kWords, class TA, class T, class LeftOut>
__device__ void add_left_out(const TransposeArgs<TA, T>& a, View<const uint32_t> bad, int64_t b, int key0,
                             int here, int col0, int cols, LeftOut left_out) {
  const View<const TA> weights = a.weights(b);
  const View<const T> x = a.x.head(b);
  for (int i = 0; i < a.queries; ++i) {
    if (kWords && !bad[i / 32]) i |= 31;
    if (!(bad[i / 32] >> i % 32 & 1)) continue;
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
