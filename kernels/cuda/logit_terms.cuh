// What a dense layer adds to the products of a lane tile: bias and region penalty, from shared memory.
#pragma once
#include "split_tile.cuh"

namespace pft::cuda {

// Of a stretch of up to kRoom queries or keys: position codes, and after them region labels. A query's code
// is the row of the bias slice for a key of code 0.
template <int kRoom>
struct Terms {
  View<int> code;

  __device__ __forceinline__ Terms from(int at) const { return {code + at}; }
  __device__ __forceinline__ int label(int at) const { return code[kRoom + at]; }
};

// The part of a head's bias column that the queries of a block meet: those of window lines y0..y1 meet rows
// y0 * (2w-1) to (y1 + w) * (2w-1).
struct BiasSlice {
  View<float> shared;       // null: the table is read where it lies
  View<const float> table;  // the head's column
  int heads, first;
};

// Rows that `block_rows` consecutive queries meet at most.
inline int64_t bias_slice_rows(int64_t window_size, int64_t block_rows) {
  const int64_t w = window_size, lines = (w + block_rows - 2) / w + 1;
  return (w + (lines < w ? lines : w)) * (2 * w - 1);
}

template <class T>
__device__ BiasSlice bias_slice(const Layer<T>& layer, View<float> shared, int64_t b, int i0, int rows) {
  const int w = layer.window_size;
  if (!layer.bias) return {shared, layer.bias, 0, 0};
  const BiasSlice slice{shared, layer.bias + unsigned(b) % unsigned(layer.heads), layer.heads,
                        i0 / w * (2 * w - 1)};
  const int last = ((i0 + rows - 1) / w + w) * (2 * w - 1);
  for (int r = slice.first + int(threadIdx.x); shared && r < last; r += int(blockDim.x))
    shared[r - slice.first] = slice.table[int64_t(r) * slice.heads];
  return slice;
}

// What makes a query's position code the row of the slice for a key of code 0.
template <class T>
__device__ int row_code_offset(const Layer<T>& layer, const BiasSlice& bias) {
  return table_center(layer.window_size) - (bias.shared ? bias.first : 0);
}

// By the threads of the block, one position each; `padded` of them, those beyond the last in its place.
// `offset` is added to the codes.
template <class T, int kRoom>
__device__ void stage_terms(const Terms<kRoom>& to, const Layer<T>& layer, View<const uint8_t> region,
                            int from, int padded, int positions, int offset = 0) {
  for (int t = int(threadIdx.x); t < padded; t += int(blockDim.x)) {
    const int at = from + t < positions ? from + t : positions - 1;
    if (layer.bias) to.code[t] = position_code(at, layer.window_size) + offset;
    if (layer.region) to.code[kRoom + t] = int(region[at]);
  }
}

// Products become logits; those of the keys from `here` on are minus infinity. The terms are the group's.
template <class T, int kRows, int kKeys>
__device__ __forceinline__ void finish_logits(LaneProducts<T>& s, const Layer<GlobalType<T>>& layer,
                                              const Terms<kRows>& rows, const BiasSlice& bias,
                                              const Terms<kKeys>& keys, int here) {
  constexpr int kR = LaneTile<T>::kLaneRows, kC = LaneTile<T>::kLaneOthers;
  const auto scale_and_add = [&](auto added) {
    int code[kC] = {};
#pragma unroll
    for (int c = 0; layer.bias && c < kC; ++c) {
      if constexpr (kTensorCores<T>) {  // two neighbours at once
        if (c % 2) continue;
        const uint2 pair = load_as<uint2>(keys.code + LaneTile<T>::other(c));
        code[c] = int(pair.x), code[c + 1] = int(pair.y);
      } else {
        code[c] = keys.code[LaneTile<T>::other(c)];
      }
    }
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      const int row = layer.bias ? int(rows.code[LaneTile<T>::row(r)]) : 0;
#pragma unroll
      for (int c = 0; c < kC; ++c) s[r][c] = fmaf(layer.scale, s[r][c], added(row - code[c]));
    }
  };
  if (!layer.bias) {
    scale_and_add([](int) { return 0.f; });
  } else if (bias.shared) {
    scale_and_add([&](int at) { return float(bias.shared[at]); });
  } else {
    const int heads = layer.heads;
    scale_and_add([&](int at) { return float(bias.table[unsigned(at * heads)]); });
  }
  if (layer.region) {
    int label[kC];
#pragma unroll
    for (int c = 0; c < kC; ++c) label[c] = keys.label(LaneTile<T>::other(c));
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      const int row = rows.label(LaneTile<T>::row(r));
#pragma unroll
      for (int c = 0; c < kC; ++c) {
        if (row != label[c]) s[r][c] -= layer.region_penalty;
      }
    }
  }
  if (here >= kGroup) return;
#pragma unroll
  for (int c = 0; c < kC; ++c) {
#pragma unroll
    for (int r = 0; r < kR; ++r) s[r][c] = LaneTile<T>::other(c) < here ? s[r][c] : -INFINITY;
  }
}

}  // namespace pft::cuda
