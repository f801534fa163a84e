// The gradient of a layer's bias table, from tiles of the gradient of its logits. It is summed along
// diagonals: d = key - query is the difference of two positions in a window. A diagonal has two rows of the
// table, one for keys left of the query in its line and one for the others, and no two diagonals share a row.
// So each diagonal is summed by one lane, in registers, and each row of the table is written by one thread:
// no atomics, and the order is fixed.
#pragma once
#include "logit_terms.cuh"

namespace pft::cuda {

constexpr int kDiagonalPitch = 40, kDiagonals = 48;  // 16 + 32 - 1 of a tile, one unused

// Sums of a warp's tile of 16 queries x 32 keys by diagonal key - query + 15, to `to` [2, kDiagonals]. A lane
// takes the diagonal that begins at its column, and where that leaves the tile the one 32 further left.
template <class T>
__device__ __forceinline__ void sum_diagonals(const LaneProducts<T>& x, View<float> tile, View<float> to,
                                              View<const int> query_x, View<const int> key_x) {
  const int lane = int(threadIdx.x) % 32;
  __syncwarp();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int c = 0; c < 8; c += 2)
      store_as(tile + (LaneTile<T>::row(r) * kDiagonalPitch + LaneTile<T>::other(c)),
               make_float2(x[r][c], x[r][c + 1]));
  }
  __syncwarp();
  // Of the lane's two diagonals: where the key is not left of the query, and where it is.
  float right[2] = {}, left[2] = {};
  if (query_x[15] - query_x[0] == 15 && key_x[31] - key_x[0] == 31) {  // a line of each: one row a diagonal
    float near = 0.f, far = 0.f;
#pragma unroll
    for (int r = 0; r < 16; ++r) {
      const float value = tile[r * kDiagonalPitch + ((lane + r) & 31)];
      if (lane + r < 32) near += value;
      if (lane + r >= 32) far += value;
    }
    const int column = key_x[0] + lane - query_x[0];
    left[0] = column < 0 ? near : 0.f, right[0] = column < 0 ? 0.f : near;
    left[1] = column < 32 ? far : 0.f, right[1] = column < 32 ? 0.f : far;
  } else {
#pragma unroll 4
    for (int r = 0; r < 16; ++r) {
      const int col = (lane + r) & 31;
      const float value = tile[r * kDiagonalPitch + col];
      const bool is_left = key_x[col] < query_x[r], wrapped = lane + r >= 32;
      left[0] += is_left && !wrapped ? value : 0.f;
      right[0] += !is_left && !wrapped ? value : 0.f;
      left[1] += is_left && wrapped ? value : 0.f;
      right[1] += !is_left && wrapped ? value : 0.f;
    }
  }
  to[lane + 15] = right[0];
  to[kDiagonals + lane + 15] = left[0];
  if (lane < 17) return;
  to[lane - 17] = right[1];
  to[kDiagonals + lane - 17] = left[1];
}

// Adds what the warps of a block have summed, [warps, groups, 2, kDiagonals], to the table: rows of queries
// from `query0` on, of keys from `key0` on.
__device__ __forceinline__ void add_diagonals(View<float> table, View<const float> sums, int groups,
                                              int group_room, int query0, int key0, int w) {
  const int warps = int(blockDim.x) / 32, last = 16 * warps - 1, entries = table_rows(w);
  const int ahead = w + 2 * kGroup + last;  // lines that make every difference positive
  for (int t = int(threadIdx.x); t < last + kGroup * groups; t += int(blockDim.x)) {
    float right = 0.f, left = 0.f;
    for (int group = 0; group < groups; ++group) {
      const int from = t - kGroup * group;
      for (int above = from / 16; above >= 0 && from >= 0 && from - 16 * above < kDiagonals - 1; --above) {
        const int warp = warps - 1 - above;
        if (warp < 0) continue;
        const View<const float> at =
            sums + ((warp * group_room + group) * 2 * kDiagonals + from - 16 * above);
        right += at[0];
        left += at[kDiagonals];
      }
    }
    const int d = key0 - query0 - last + t;
    const int lines = int(unsigned(d + ahead * w) / unsigned(w)) - ahead, across = d - lines * w;
    const int row = table_center(w) - lines * (2 * w - 1) - across;
    if (unsigned(row) < unsigned(entries)) table[row] += right;
    if (across > 0 && unsigned(row - w + 1) < unsigned(entries)) table[row - w + 1] += left;
  }
}

}  // namespace pft::cuda
