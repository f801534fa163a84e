// The inner loop of SpMM: weighted sums of gathered rows, by groups of lanes.
#pragma once
#include "device.cuh"

namespace pft::cuda {

// A warp as groups of `units` lanes: a group owns a query row, a lane 16 bytes of it. 32 % units lanes stay
// idle. Before a warp consumes entries (place of a row of V, weight), it stages them: of each of its query
// rows at most 32, and one place that keeps the rows out of each other's banks.
struct GatherGroups {
  int lane, rows, row, unit, at_once, pitch;

  __device__ explicit GatherGroups(int units)
      : lane(int(threadIdx.x) % 32),
        rows(32 / units),
        row(lane / units),
        unit(lane % units),
        at_once(staged_at_once(units)),
        pitch(at_once + 1) {}

  __host__ __device__ static constexpr int staged_at_once(int units) {
    return 256 * units / 32 < 32 ? 256 * units / 32 : 32;
  }
  // float2 that a warp needs.
  __host__ __device__ static constexpr int staged(int units) {
    return 32 / units * (staged_at_once(units) + 1);
  }
};

// sum = sum_t weight(row, t) * v[key(row, t)], this lane's 16 bytes of it, for the group's row. `entry(row,
// t, &key)` returns the weight; it is asked once per entry. Rows at or beyond `rows_left` do not exist.
template <class T, class Entry>
__device__ __forceinline__ void gather_rows(float (&sum)[kPerUnit<T>], const GatherGroups& groups,
                                            View<float2> stage, View<const T> v, int pitch, int kept,
                                            int rows_left, Entry entry) {
#pragma unroll
  for (int e = 0; e < kPerUnit<T>; ++e) sum[e] = 0.f;
  for (int t0 = 0; t0 < kept; t0 += groups.at_once) {
    const int count = kept - t0 < groups.at_once ? kept - t0 : groups.at_once;
    for (int row = 0; row < groups.rows && row < rows_left; ++row) {
      if (groups.lane >= count) continue;
      int key;
      const float weight = entry(row, t0 + groups.lane, &key);
      stage[row * groups.pitch + groups.lane] = make_float2(__uint_as_float(unsigned(key * pitch)), weight);
    }
    __syncwarp();
    if (groups.row < groups.rows && groups.row < rows_left) {
      const View<const T> column = v + groups.unit * kPerUnit<T>;
      const View<float2> mine = stage + groups.row * groups.pitch;
#pragma unroll 2  // more costs registers, and with them a second block
      for (int t = 0; t < count; ++t) {
        const float2 staged = mine[t];
        float x[kPerUnit<T>];
        unpack(load_as<uint4>(column + int(__float_as_uint(staged.x))), x, T{});
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
