// Arguments, shared memory and staging of the backward pass of a dense layer on tensor cores.
#pragma once
#include "backward_tile.cuh"
#include "bias_diagonals.cuh"

namespace pft::cuda {

constexpr int kBlockRows = 128, kStaged = 64, kMostWarps = kBlockRows / 16;

template <class T>
struct Gradient {  // one of the two is there
  Strided<T> same;
  Strided<float> wide;

  __device__ __forceinline__ explicit operator bool() const { return same.data || wide.data; }
};

template <class T>
struct BackwardArgs {
  Layer<GlobalType<T>> layer;
  Strided<const GlobalType<T>> grad_out;
  View<const float> lse, delta;
  Gradient<GlobalType<T>> first, second;  // of q; or of k and v
  View<float> bias_partial;
  int tiles, row_blocks;  // of a window-head
  int block_rows, staged, buffers, bias_rows;
};

template <class T>
struct Side {  // what is owned or streamed: (q, grad_out) or (k, v)
  Strided<const T> first, second;
  int rows;
};

// Shared memory of a block; one place for its layout and, in `bytes`, for its size.
template <class T>
struct BackwardMemory {
  Terms<kBlockRows> own_terms;
  Terms<kStaged> terms;          // buffers one after another, as all that is streamed
  View<int> own_across, across;  // a position's place in its line
  View<float> lse, delta;        // of streamed queries
  View<SharedType<T>> x, x2;     // owned
  View<SharedType<T>> y, y2;     // streamed
  View<float> bias, bias_sums;   // the head's column, and its gradient
  View<float> tile, diagonals;   // of the gradient of the bias table: a warp's, on their way to the sums

  __device__ BackwardMemory(SharedMemory& shared, const BackwardArgs<T>& a) {
    const auto& l = a.layer;
    const int warps = a.block_rows / 16;
    own_terms.code = shared.take<int>(2 * kBlockRows);
    own_across = shared.take<int>(kBlockRows);
    terms.code = shared.take<int>(2 * a.buffers * kStaged);
    across = shared.take<int>(a.buffers * kStaged);
    lse = shared.take<float>(a.buffers * kStaged);
    delta = shared.take<float>(a.buffers * kStaged);
    x = shared.take<SharedType<T>>(key_elements<T>(a.block_rows, l.dim_qk));
    x2 = shared.take<SharedType<T>>(key_elements<T>(a.block_rows, l.dim_v));
    y = shared.take<SharedType<T>>(a.buffers * key_elements<T>(a.staged, l.dim_qk));
    y2 = shared.take<SharedType<T>>(a.buffers * key_elements<T>(a.staged, l.dim_v));
    bias = a.bias_rows ? shared.take<float>(a.bias_rows) : View<float>();
    if (!a.bias_partial) return;
    bias_sums = shared.take<float>(table_rows(l.window_size));
    tile = shared.take<float>(warps * 16 * kDiagonalPitch);
    diagonals = shared.take<float>(warps * kStaged / kGroup * 2 * kDiagonals);
  }

  static int64_t bytes(const AttentionShape& s, const BackwardArgs<T>& a) {
    const int64_t size = int64_t(sizeof(SharedType<T>)), warps = a.block_rows / 16;
    const auto rows = [&](int64_t count) {
      return round_up(key_elements<T>(count, s.dim_qk) * size, 16) +
             round_up(key_elements<T>(count, s.dim_v) * size, 16);
    };
    int64_t bytes = 12 * kBlockRows + 20 * a.buffers * kStaged + rows(a.block_rows) +
                    rows(a.buffers * a.staged) + round_up(a.bias_rows * 4, 16);
    if (a.bias_partial) {
      bytes += round_up(int64_t(table_rows(int(s.window_size))) * 4, 16) +
               warps * (16 * kDiagonalPitch + kStaged / kGroup * 2 * kDiagonals) * 4;
    }
    return bytes;
  }
};

// Window-head b and the part of its rows that a block owns.
struct BlockPart {
  int64_t b;
  int part;

  template <class T>
  __device__ __forceinline__ explicit BlockPart(const BackwardArgs<T>& a) {
    const unsigned block = unsigned(blockIdx.x), parts = unsigned(a.row_blocks);
    b = block / parts;
    part = int(block % parts);
  }
};

template <class T, bool kQueries>
__device__ __forceinline__ Side<GlobalType<T>> side_of(const BackwardArgs<T>& a) {
  const auto& l = a.layer;
  if (kQueries) return {l.q, a.grad_out, l.queries};
  return {l.k, l.v, l.keys};
}

// Rows of T as OwnRows and GradientSum read them. What is streamed needs no zeros beyond an odd number of
// eight channels, as long as all steps of the rows that it meets are held.
template <class T>
__device__ __forceinline__ void stage_array(View<SharedType<T>> to, int room,
                                            const Strided<const GlobalType<T>>& from, int64_t b, int row0,
                                            int rows, int padded, int dim, bool streamed) {
  const View<const GlobalType<T>> first = from.head(b) + row0 * from.stride_row;
  if constexpr (sizeof(GlobalType<T>) == 2) {
    const bool held = dim <= 16 * OwnRows<T>::kHeld;
    stage_tile<T>(to, tile_pitch<T>(dim), first, from.stride_row, rows, padded, 0, dim,
                  streamed && held ? units_of<T>(dim) : tile_units<T>(dim), from.aligned);
  } else {
    stage_lanes<T>(to, room, first, from.stride_row, rows, padded, dim, from.aligned);
  }
}

template <class T>
__device__ __forceinline__ void stage_side(View<SharedType<T>> to, View<SharedType<T>> to_second, int room,
                                           const Side<GlobalType<T>>& side, const BackwardArgs<T>& a,
                                           int64_t b, int row0, int rows, int padded, bool streamed) {
  stage_array<T>(to, room, side.first, b, row0, rows, padded, a.layer.dim_qk, streamed);
  if (side.second.data)
    stage_array<T>(to_second, room, side.second, b, row0, rows, padded, a.layer.dim_v, streamed);
}

// `padded` positions from `row0` on, those beyond the last in its place. Where keys are owned, the negative
// of a position's code: finish_logits takes it for the other one's.
template <class T, bool kOwnsKeys, int kRoom>
__device__ __forceinline__ void stage_positions(const Terms<kRoom>& to, View<int> across,
                                                const BackwardArgs<T>& a, int64_t b, int row0, int padded,
                                                int positions, int offset) {
  const auto& l = a.layer;
  const View<const uint8_t> region = region_of(l, b);
  for (int t = int(threadIdx.x); t < padded; t += int(blockDim.x)) {
    const int at = row0 + t < positions ? row0 + t : positions - 1;
    if (l.bias) {
      const int code = position_code(at, l.window_size);
      to.code[t] = offset + (kOwnsKeys ? -code : code);
      if (!kOwnsKeys) across[t] = at % l.window_size;
    }
    if (l.region) to.code[kRoom + t] = int(region[at]);
  }
}

template <class T, bool kOwnsKeys>
__device__ __forceinline__ void load_stage(const BackwardArgs<T>& a, const BackwardMemory<T>& memory,
                                           int buffer, int row0) {
  const auto& l = a.layer;
  const int64_t b = BlockPart(a).b;
  const Side<GlobalType<T>> side = side_of<T, kOwnsKeys>(a);
  const int here = side.rows - row0 < a.staged ? side.rows - row0 : a.staged;
  const int padded = int(round_up(here, kGroup));
  stage_side<T>(memory.y + buffer * key_elements<T>(a.staged, l.dim_qk),
                memory.y2 + buffer * key_elements<T>(a.staged, l.dim_v), a.staged, side, a, b, row0, here,
                padded, true);
  stage_positions<T, kOwnsKeys>(memory.terms.from(2 * kStaged * buffer), memory.across + buffer * kStaged, a,
                                b, row0, padded, side.rows, 0);
  if constexpr (kOwnsKeys) {
    for (int t = int(threadIdx.x); t < padded; t += int(blockDim.x)) {  // no weight where there is no query
      const int64_t at = b * l.queries + row0 + t;
      memory.lse[buffer * kStaged + t] = t < here ? float(a.lse[at]) : INFINITY;
      memory.delta[buffer * kStaged + t] = t < here ? float(a.delta[at]) : 0.f;
    }
  }
}

}  // namespace pft::cuda
