// Forward of a dense layer that keeps everything: softmax as the keys stream by, so that no row of logits is
// ever whole. A warp owns 16 query rows (32 by FFMA): their logits, weights and output stay in registers; a
// block of 4 or 8 warps shares K, V and its slice of the bias table. With taller blocks than those of
// attention_forward_dense, which needs whole rows to select, K and V come from L2 an eighth as often.
// Weights are relative to the largest logit so far.
#include "logit_terms.cuh"

namespace pft::cuda {
namespace {

constexpr int kBlockRows = 128, kStaged = 64;

template <class T>
constexpr int kBuffers =
    sizeof(GlobalType<T>) == 2 ? 2 : 1;  // what is copied as it is comes ahead of its use
template <class T>
struct OnlineArgs {
  Layer<GlobalType<T>> layer;
  Strided<GlobalType<T>> out;
  View<float> lse;
  int tiles, bias_rows, block_rows;
};

// Shared memory of a block; one place for its layout and, in `bytes`, for its size.
template <class T>
struct OnlineMemory {
  View<float> bias;
  View<SharedType<T>> q;
  View<SharedType<T>> k, v;  // buffers one after another, as those of the terms
  Terms<kBlockRows> row_terms;
  Terms<kStaged> terms;
  View<float> weights;  // by FFMA: a warp's, on their way between lanes

  __device__ OnlineMemory(SharedMemory& shared, const OnlineArgs<T>& a) {
    const auto& l = a.layer;
    row_terms.code = shared.take<int>(2 * kBlockRows);  // first what lies at places known to the compiler
    terms.code = shared.take<int>(2 * kBuffers<T> * kStaged);
    v = shared.take<SharedType<T>>(kBuffers<T> * value_elements<T>(kStaged, l.dim_v));
    bias = a.bias_rows ? shared.take<float>(a.bias_rows) : View<float>();
    q = shared.take<SharedType<T>>(key_elements<T>(a.block_rows, l.dim_qk));
    k = shared.take<SharedType<T>>(kBuffers<T> * key_elements<T>(kStaged, l.dim_qk));
    if (!kTensorCores<T>) weights = shared.take<float>(a.block_rows * kWeightsPitch);
  }

  static int64_t bytes(const AttentionShape& s, int64_t block_rows, int64_t bias_rows) {
    const int64_t size = int64_t(sizeof(SharedType<T>));
    const int64_t buffer =
        (key_elements<T>(kStaged, s.dim_qk) + value_elements<T>(kStaged, s.dim_v)) * size + 8 * kStaged;
    return 8 * kBlockRows + round_up(bias_rows * 4, 16) +
           round_up(key_elements<T>(block_rows, s.dim_qk) * size, 16) + kBuffers<T> * buffer +
           (kTensorCores<T> ? 0 : block_rows * kWeightsPitch * 4);
  }
};

// What a warp carries along a row.
template <class T>
struct OnlineRows {
  WeightedSums<T> sums;
  float max[LaneTile<T>::kLaneRows], weight[LaneTile<T>::kLaneRows];  // a lane's part of the sum of weights

  __device__ __forceinline__ OnlineRows() {
#pragma unroll
    for (int r = 0; r < LaneTile<T>::kLaneRows; ++r) max[r] = -INFINITY, weight[r] = 0.f;
  }

  // The largest logit so far, or zero where there is none above minus infinity.
  __device__ __forceinline__ float reference(int r) const { return max[r] == -INFINITY ? 0.f : max[r]; }

  // Logits become weights; what was summed before shrinks where a row's largest logit has grown.
  __device__ __forceinline__ void add(LaneProducts<T>& s) {
    constexpr int kR = LaneTile<T>::kLaneRows, kC = LaneTile<T>::kLaneOthers;
    float largest[kR];
    bool grows = false;
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      largest[r] = s[r][0];
#pragma unroll
      for (int c = 1; c < kC; ++c) largest[r] = fmaxf(largest[r], s[r][c]);
      grows |= largest[r] > max[r];
    }
    if (__any_sync(kFullWarp, grows)) {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        const float before = max[r];
        max[r] = fmaxf(before, LaneTile<T>::row_max(largest[r]));
        const float factor = exp_of_unit(before - reference(r));
        weight[r] *= factor;
        sums.scale(r, factor);
      }
    }
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      const float from = reference(r);
#pragma unroll
      for (int c = 0; c < kC; ++c) {
        s[r][c] = scaled_weight<T>(s[r][c] - from);
        weight[r] += s[r][c];
      }
    }
  }
};

// Window-head b and the first of the block's rows, worked out where they are needed: registers are short.
struct BlockPlace {
  int64_t b;
  int row0;

  template <class T>
  __device__ __forceinline__ explicit BlockPlace(const OnlineArgs<T>& a) {
    const unsigned block = unsigned(computed_anew(int(blockIdx.x))), tiles = unsigned(a.tiles);
    b = block / tiles;
    row0 = int(block % tiles) * a.block_rows;
  }
};

template <class T>
__device__ void load_stage(const OnlineArgs<T>& a, const OnlineMemory<T>& memory, int buffer, int key0,
                           int col0) {
  const auto& l = a.layer;
  const int64_t b = BlockPlace(a).b;
  const int here = l.keys - key0 < kStaged ? l.keys - key0 : kStaged;
  const int padded = int(round_up(here, kGroup));
  const int cols = l.dim_v - col0 < LaneTile<T>::kColumns ? l.dim_v - col0 : LaneTile<T>::kColumns;
  stage_lanes<T>(memory.k + buffer * key_elements<T>(kStaged, l.dim_qk), kStaged,
                 l.k.head(b) + key0 * l.k.stride_row, l.k.stride_row, here, padded, l.dim_qk, l.k.aligned);
  stage_values<T>(memory.v + buffer * value_elements<T>(kStaged, l.dim_v), kStaged,
                  l.v.head(b) + key0 * l.v.stride_row, l.v.stride_row, here, padded, col0, cols, l.v.aligned);
  stage_terms(memory.terms.from(2 * kStaged * buffer), l, region_of(l, b), key0, padded, l.keys);
}

template <class T>
__device__ __forceinline__ void store_rows(const OnlineArgs<T>& a, OnlineRows<T>& rows, int col0) {
  const auto& l = a.layer;
  const int row0 = computed_anew(int(threadIdx.x)) / 32 * LaneTile<T>::kRows;
  const BlockPlace block(a);
  LaneSums<T> sums;
  rows.sums.join(sums);
#pragma unroll
  for (int r = 0; r < LaneTile<T>::kLaneRows; ++r) {
    const int i = block.row0 + row0 + computed_anew(LaneTile<T>::row(r));
    const float weight = LaneTile<T>::row_sum(rows.weight[r]), inverse = 1.f / weight;
    if (i >= l.queries) continue;
    if (col0 == 0 && LaneTile<T>::column(0) == 0) {
      const float sum = weight / kWeightScale<T>;
      a.lse[block.b * l.queries + i] =
          rows.max[r] + (weight == 0.f ? NAN : logf(sum));  // zero: no finite logit
    }
    const View<GlobalType<T>> out = a.out.head(block.b) + i * a.out.stride_row;
#pragma unroll
    for (int c = 0; c < LaneTile<T>::kLaneColumns; ++c) {
      const int col = col0 + computed_anew(LaneTile<T>::column(c));
      if (col < l.dim_v && col < col0 + LaneTile<T>::kColumns)
        out[col] = from_float<GlobalType<T>>(LaneTile<T>::cell(sums, r, c) * inverse);
    }
  }
}

template <class T>
__device__ __forceinline__ void online_block(const OnlineArgs<T>& a) {
  const auto& l = a.layer;
  const int row0 = int(threadIdx.x) / 32 * LaneTile<T>::kRows;
  const BlockPlace block(a);
  const int block_rows = l.queries - block.row0 < a.block_rows ? l.queries - block.row0 : a.block_rows;
  SharedMemory shared;
  const OnlineMemory<T> memory(shared, a);
  const BiasSlice bias = bias_slice(l, memory.bias, block.b, block.row0, block_rows);
  stage_terms(memory.row_terms, l, region_of(l, block.b), block.row0, a.block_rows, l.queries,
              row_code_offset(l, bias));
  stage_lanes<T>(memory.q, a.block_rows, l.q.head(block.b) + block.row0 * l.q.stride_row, l.q.stride_row,
                 block_rows, a.block_rows, l.dim_qk, l.q.aligned);  // finished by the first finish_staging()

  int col0 = 0;
  do {
    OnlineRows<T> rows;
    if (kBuffers<T> > 1) load_stage(a, memory, 0, 0, col0);
    for (int key0 = 0; key0 < l.keys; key0 += kStaged) {
      const int buffer = kBuffers<T> > 1 ? key0 / kStaged % 2 : 0;
      if (kBuffers<T> == 1) {
        __syncthreads();
        load_stage(a, memory, 0, key0, col0);
      }
      finish_staging();
      if (kBuffers<T> > 1 && key0 + kStaged < l.keys) load_stage(a, memory, 1 - buffer, key0 + kStaged, col0);
      const int here = l.keys - key0 < kStaged ? l.keys - key0 : kStaged;
      for (int group = 0; group < here; group += kGroup) {
        LaneProducts<T> s;
        lane_products<T>(s, memory.q, row0, a.block_rows,
                         memory.k + buffer * key_elements<T>(kStaged, l.dim_qk), group, kStaged, l.dim_qk);
        finish_logits<T>(s, l, memory.row_terms.from(row0), bias,
                         memory.terms.from(2 * kStaged * buffer + group), here - group);
        rows.add(s);
        const int cols = l.dim_v - col0 < LaneTile<T>::kColumns ? l.dim_v - col0 : LaneTile<T>::kColumns;
        if constexpr (kTensorCores<T>) {
          add_weighted<T>(
              rows.sums, s,
              memory.v + (buffer * value_elements<T>(kStaged, l.dim_v) + group * value_pitch<T>(cols)),
              kStaged, cols);
        } else {
          add_weighted(rows.sums, exchange_weights(s, memory.weights + row0 * kWeightsPitch),
                       memory.v + group, values_pitch(kStaged), cols);
        }
      }
    }
    store_rows(a, rows, col0);
    col0 += LaneTile<T>::kColumns;
    if (col0 < l.dim_v) __syncthreads();
  } while (col0 < l.dim_v);
}

template <class T>
constexpr int kThreads = kBlockRows / LaneTile<T>::kRows * 32;

template <class T>
__global__ void __launch_bounds__(kThreads<T>, kTensorCores<T> ? 2 : 3)
    attention_forward_online_kernel(OnlineArgs<T> a) {
  online_block(a);
}
__global__ void __launch_bounds__(kThreads<Split>, 2)
    attention_forward_online_split_kernel(OnlineArgs<Split> a) {
  online_block(a);
}

template <class T>
Status run(const char* name, void (*kernel)(OnlineArgs<T>), const AttentionInputs& in,
           const AttentionOutputs& out, void* stream) {
  const AttentionShape& s = in.shape;
  OnlineArgs<T> a{layer_of<GlobalType<T>>(in),
                  strided<GlobalType<T>>(out.out.m, s.heads, s.dim_v),
                  View<float>(out.lse),
                  0,
                  0,
                  0};
  const int64_t limit = shared_memory_limit(), rows = LaneTile<T>::kRows, batch = s.windows * s.heads;
  // Tall blocks; lower ones where those would leave multiprocessors idle, or do not fit.
  for (a.block_rows = kBlockRows; a.block_rows >= rows; a.block_rows /= 2) {
    a.tiles = int(ceil_div(s.queries, a.block_rows));
    a.bias_rows = in.bias ? int(bias_slice_rows(s.window_size, a.block_rows)) : 0;
    if (OnlineMemory<T>::bytes(s, a.block_rows, a.bias_rows) > limit) a.bias_rows = 0;
    const int64_t bytes = OnlineMemory<T>::bytes(s, a.block_rows, a.bias_rows);
    const bool fills = batch * a.tiles >= multiprocessors() || a.block_rows == rows;
    if (!fills || bytes > limit) continue;
    return launch(name, kernel, batch * a.tiles, int(a.block_rows / rows) * 32, bytes, stream, a);
  }
  return Status::kUnsupported;
}

}  // namespace

Status attention_forward_online(const AttentionInputs& in, const AttentionOutputs& out, Float32 how,
                                void* stream) {
  if (splits(in.q.dtype, how)) {
    const Status status =
        run<Split>("attention_forward_online_split", attention_forward_online_split_kernel, in, out, stream);
    if (status != Status::kUnsupported || how == Float32::kSplit) return status;
  }
  return with_type(in.q.dtype, [&](auto tag) {
    using T = decltype(tag);
    return run<T>("attention_forward_online", attention_forward_online_kernel<T>, in, out, stream);
  });
}

}  // namespace pft::cuda
