// Logits of the listed candidates, row by row, with the keys of a window-head resident in shared memory: what
// forward and backward of a sparse layer have in common.
#pragma once
#include "attention_row.cuh"
#include "gather_dots.cuh"
#include "gather_rows.cuh"

namespace pft::cuda {

// Warps of a block where two of them share an SM, and where the keys leave room for one alone. Either way an
// SM has the latter, with 128 registers a thread.
constexpr int kSparseWarps = 8;
constexpr int kMostSparseWarps = 2 * kSparseWarps;

// How a block divides shared memory and work; the launcher decides (plan_sparse).
struct SparsePlan {
  int warps, splits;
  int keys_at_once;  // keys resident at a time
  int tile_rows;     // rows whose logits wait in shared memory while the keys change
  int columns;       // of V, resident at a time (forward)
  bool bias_shared;
  int64_t shared_bytes;
  int64_t row_numbers_at;  // in shared memory, where tiles are used (tiled_logits.cuh)
};

// What the bias of a product needs in shared memory.
struct BiasMemory {
  View<int> code;    // position_code of every key
  View<float> bias;  // the head's column of the table
};

// Arrays in shared memory that outlive the phases, and those of the logits phase.
template <class T>
struct SparseMemory : BiasMemory {
  View<float> shift;  // per row of the block: max - lse
  View<T> keys;
  View<float> query;  // this warp's row of q
  View<float> z;      // [tile_rows, candidates]

  __device__ SparseMemory(SharedMemory& shared, const Layer<T>& a, const SparsePlan& plan, int rows,
                          int warp) {
    shift = shared.take<float>(rows);
    code = shared.take<int>(a.bias ? a.keys : 0);
    bias = shared.take<float>(plan.bias_shared ? table_rows(a.window_size) : 0);
    SharedMemory phase = shared;  // the phase after this one starts here again
    keys = phase.take<T>(plan.keys_at_once * units_of<T>(a.dim_qk) * kPerUnit<T>);
    const int padded = units_of<T>(a.dim_qk) * kPerUnit<T>;
    query = phase.take<float>(plan.warps * padded) + warp * padded;
    z = phase.take<float>(int64_t(plan.tile_rows) * a.candidates);
  }
};

template <class T>
__device__ void prepare_bias(const Layer<T>& a, const BiasMemory& memory, bool bias_shared, int head) {
  if (!a.bias) return;
  for (int j = int(threadIdx.x); j < a.keys; j += int(blockDim.x))
    memory.code[j] = position_code(j, a.window_size);
  if (!bias_shared) return;
  for (int r = int(threadIdx.x); r < table_rows(a.window_size); r += int(blockDim.x)) {
    memory.bias[r] = a.bias[int64_t(r) * a.heads + head];
  }
}

// What is added to scale * q.k for query i and key j: bias, region, earlier logits.
template <class T>
__device__ __forceinline__ float added_terms(const Layer<T>& a, const BiasMemory& memory, bool bias_shared,
                                             int64_t b, int i, int j, int64_t candidate) {
  float sum = 0.f;
  if (a.bias) {
    const int row = memory.code[i] - memory.code[j] + table_center(a.window_size);
    sum += bias_shared ? float(memory.bias[row])
                       : float(a.bias[int64_t(row) * a.heads + unsigned(b) % unsigned(a.heads)]);
  }
  if (a.region) {
    const View<const uint8_t> region = region_of(a, b);
    if (region[i] != region[j]) sum -= a.region_penalty;
  }
  if (a.logits) sum += a.logits[candidate];
  return sum;
}

// Fills z for the rows [i0, i0 + rows) from the resident keys [key0, key0 + here).
template <class T>
__device__ void tile_logits(const Layer<T>& a, const SparsePlan& plan, const SparseMemory<T>& memory,
                            int64_t b, int i0, int rows, int key0, int here) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int units = units_of<T>(a.dim_qk);
  const View<const T> q = a.q.head(b);
  for (int r = warp; r < rows; r += plan.warps) {
    const int i = i0 + r;
    const View<float> z = memory.z + int64_t(r) * a.candidates;
    const int64_t first = (b * a.queries + i) * a.candidates;
    stage_query<T>(memory.query, q + i * a.q.stride_row, a.dim_qk, lane);
    __syncwarp();
    for (int t0 = 0; t0 < a.candidates; t0 += 32) {
      const float dot = gather_dot<T>(memory.query, memory.keys, plan.keys_at_once, units, a.index,
                                      first + t0, a.candidates - t0, key0, here);
      const int t = t0 + lane, key = t < a.candidates ? a.index[first + t] : -1;
      if (key < key0 || key >= key0 + here) continue;
      z[t] = fmaf(a.scale, dot, added_terms(a, memory, plan.bias_shared, b, i, key, first + t));
    }
    __syncwarp();
  }
}

// Calls finish(i, z) in the row's warp for every row of [first, last), with its logits complete.
template <class T, class Finish>
__device__ void for_each_row(const Layer<T>& a, const SparsePlan& plan, const SparseMemory<T>& memory,
                             int64_t b, int first, int last, Finish finish) {
  const int warp = int(threadIdx.x) / 32;
  const View<const T> k = a.k.head(b);
  const bool all_resident = plan.keys_at_once >= a.keys;
  for (int i0 = first; i0 < last; i0 += plan.tile_rows) {
    const int rows = last - i0 < plan.tile_rows ? last - i0 : plan.tile_rows;
    for (int key0 = 0; key0 < a.keys; key0 += plan.keys_at_once) {
      const int here = a.keys - key0 < plan.keys_at_once ? a.keys - key0 : plan.keys_at_once;
      if (!all_resident || i0 == first) {
        __syncthreads();  // the keys before are no longer needed, the bias is there
        stage_pieces<T>(memory.keys, plan.keys_at_once, k + key0 * a.k.stride_row, a.k.stride_row, here,
                        a.dim_qk, a.k.aligned);
        finish_staging();
      }
      tile_logits(a, plan, memory, b, i0, rows, key0, here);
    }
    for (int r = warp; r < rows; r += plan.warps) finish(i0 + r, memory.z + int64_t(r) * a.candidates);
    __syncwarp();  // before the next tile's logits
  }
}

// Whether to pick the candidates' products from tiles of all of them. By counts, not measured
// (kernels/cuda/README.md): of 1024 keys both take as long at some 50 candidates.
inline bool tiles_pay(const AttentionShape& s, DType dtype) {
  return dtype != DType::kFloat32 && s.candidates * 20 >= s.keys;
}

// Chooses warps, residency and tiles for a shared-memory limit. `columns_wanted`: 0 where V is not needed.
template <class T>
bool plan_sparse(const AttentionShape& s, bool bias, int columns_wanted, SparsePlan* plan) {
  const int64_t limit = shared_memory_limit(), batch = s.windows * s.heads;
  const int64_t row_bytes = units_of<T>(s.dim_qk) * 16;
  const int64_t query_bytes = units_of<T>(s.dim_qk) * kPerUnit<T> * 4;
  const int64_t z_bytes = s.candidates * 4;
  plan->splits = row_splits(batch, s.queries, 64);
  const int64_t lasting =
      round_up(ceil_div(s.queries, plan->splits) * 4, 16) + (bias ? round_up(s.keys * 4, 16) : 0);
  const int64_t table_bytes = bias ? round_up(int64_t(table_rows(int(s.window_size))) * 4, 16) : 0;

  const int64_t logits_phase = s.keys * row_bytes + kMostSparseWarps * (z_bytes + query_bytes) + 64;
  const auto stage_bytes = [&](int units) { return units ? int64_t(GatherGroups::staged(units)) * 8 : 0; };
  const auto v_bytes = [&](int units) {
    return s.keys * int64_t(pitch_of<T>(units * kPerUnit<T>)) * int64_t(sizeof(T));
  };
  int units = units_of<T>(columns_wanted);
  while (units > 32) units = (units + 1) / 2;
  const int64_t values_phase = v_bytes(units) + kMostSparseWarps * stage_bytes(units);
  const int64_t most = lasting + table_bytes + (logits_phase > values_phase ? logits_phase : values_phase);
  plan->warps = s.keys * row_bytes > limit / 2 && most <= limit ? kMostSparseWarps : kSparseWarps;
  // narrower columns, where V does not fit, stage more rows: at most as many as those of one unit
  const auto takes_a_third = [&](int64_t bytes_per_warp) { return plan->warps * bytes_per_warp > limit / 3; };
  while (plan->warps > 1 &&
         (takes_a_third(z_bytes + query_bytes) || (units && takes_a_third(stage_bytes(1))))) {
    plan->warps /= 2;
  }
  plan->tile_rows = plan->warps;
  int64_t rest = limit - lasting - plan->warps * (z_bytes + query_bytes) - 64;
  if (rest < row_bytes) return false;
  plan->keys_at_once = int(rest / row_bytes < s.keys ? rest / row_bytes : s.keys);
  if (plan->keys_at_once < s.keys) {  // keys pass by once per tile: make tiles tall
    const int64_t more = limit / 3 / (plan->warps * z_bytes);
    plan->tile_rows *= int(more < 1 ? 1 : more > 8 ? 8 : more);
    rest = limit - lasting - plan->tile_rows * z_bytes - plan->warps * query_bytes - 64;
    if (rest < row_bytes) return false;
    plan->keys_at_once = int(rest / row_bytes < s.keys ? rest / row_bytes : s.keys);
  }
  int64_t phase = plan->keys_at_once * row_bytes + plan->tile_rows * z_bytes + plan->warps * query_bytes + 64;
  plan->columns = 0;
  if (columns_wanted) {
    const auto values_bytes = [&] { return v_bytes(units) + plan->warps * stage_bytes(units) + 16; };
    while (lasting + values_bytes() > limit) {
      if (units == 1) return false;
      units = (units + 1) / 2;
    }
    plan->columns = units * kPerUnit<T>;
    if (values_bytes() > phase) phase = values_bytes();
  }
  // The table in shared memory if it fits, but not at the price of one of two blocks on an SM.
  const int64_t without = lasting + phase, with = without + table_bytes;
  plan->bias_shared = bias && with <= limit && (with <= limit / 2 || without > limit / 2);
  plan->shared_bytes = plan->bias_shared ? with : without;
  return plan->shared_bytes <= limit;
}

}  // namespace pft::cuda
