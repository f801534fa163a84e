// The inner loop of SpMM: weighted sums of gathered rows, by groups of lanes.
#pragma once
#include "device.cuh"

namespace pft::cuda {

// Entries (row of V, weight) that a warp stages before it consumes them.
constexpr int kStagedEntries = 256;

// A warp as groups of `units` lanes: a group owns a query row, a lane 16 bytes of it. 32 % units lanes stay
// idle.
struct GatherGroups {
  int lane, rows, row, unit;

  __device__ explicit GatherGroups(int units)
      : lane(int(threadIdx.x) % 32), rows(32 / units), row(lane / units), unit(lane % units) {}
};

// sum = sum_t weight(row, t) * v[key(row, t)], this lane's 16 bytes of it, for the group's row. `entry(row,
// t, &key)` returns the weight; it is asked once per entry. Rows at or beyond `rows_left` do not exist.
template <class T, class Entry>
__device__ __forceinline__ void gather_rows(float (&sum)[kPerUnit<T>], const GatherGroups& groups,
                                            View<float2> stage, View<const T> v, int64_t pitch, int kept,
                                            int rows_left, Entry entry) {
  const int at_once = kStagedEntries / groups.rows;  // entries of each row per round
#pragma unroll
  for (int e = 0; e < kPerUnit<T>; ++e) sum[e] = 0.f;
  for (int t0 = 0; t0 < kept; t0 += at_once) {
    const int count = kept - t0 < at_once ? kept - t0 : at_once;
    for (int e = groups.lane; e < groups.rows * count; e += 32) {
      const int row = e / count, t = e % count;
      if (row >= rows_left) break;
      int key;
      const float weight = entry(row, t0 + t, &key);
      stage[row * at_once + t] = make_float2(__uint_as_float(unsigned(key)), weight);
    }
    __syncwarp();
    if (groups.row < groups.rows && groups.row < rows_left) {
      const View<const T> column = v + groups.unit * kPerUnit<T>;
#pragma unroll 4
      for (int t = 0; t < count; ++t) {
        const float2 staged = stage[groups.row * at_once + t];
        float x[kPerUnit<T>];
        unpack(load_as<uint4>(column + int64_t(__float_as_uint(staged.x)) * pitch), x, T{});
#pragma unroll
        for (int e = 0; e < kPerUnit<T>; ++e) sum[e] = fmaf(staged.y, x[e], sum[e]);
      }
    }
    __syncwarp();
  }
}

// Writes the first `cols` of a unit's values (all of them, in one store, where aligned).
template <class T>
__device__ __forceinline__ void store_unit(View<T> to, const float (&x)[kPerUnit<T>], int cols,
                                           bool aligned) {
  if (aligned && cols >= kPerUnit<T>) {
    store_as(to, pack(x, T{}));
    return;
  }
#pragma unroll
  for (int e = 0; e < kPerUnit<T>; ++e) {
    if (e < cols) to[e] = from_float<T>(x[e]);
  }
}

}  // namespace pft::cuda
