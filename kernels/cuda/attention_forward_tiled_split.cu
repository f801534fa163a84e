// Forward of a sparse float32 layer with many candidates: tensor cores compute all products of up to 128
// query rows with the keys, each number as three of bfloat16 (split_tile.cuh), a row picks its candidates'
// out of every stretch of keys, and after selection the kept weights are spread over tiles that tensor cores
// multiply by all values. Lists and earlier logits arrive asynchronously while the first keys are split.
//
// A value that is not finite would spoil every row of a tile: it is left out, and added afterwards to the
// rows that list it.
#include "listed_tiles.cuh"

namespace pft::cuda {
namespace {

struct ListedForward : ListedArgs {
  Strided<float> out;
  IndexOut new_index;
  View<float> new_logits, lse;
};

// What is not finite becomes zero, and is told of.
struct LeaveOut {
  View<uint32_t> bad;

  __device__ __forceinline__ float4 operator()(float4 x) const {
    float y[4] = {x.x, x.y, x.z, x.w};
    bool finite = true;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      finite &= is_finite(y[i]);
      y[i] = is_finite(y[i]) ? y[i] : 0.f;
    }
    if (!finite) atomic_or(bad, 1u);  // any order gives the same bits
    return make_float4(y[0], y[1], y[2], y[3]);
  }
};

// Statistics and selection. The logits become weights of what is kept, the list its keys.
template <int kEach>
__device__ __forceinline__ void finish_listed(const ListedForward& a, const ListedMemory& memory,
                                              RowInRegisters<kEach>& row, const NormalRank& rank, int64_t at,
                                              int r) {
  const int candidates = a.layer.candidates, topk = a.layer.topk;
  const View<float> z = memory.z + r * a.z_pitch(), new_logits = a.new_logits + at * topk;
  float max = -INFINITY, sum = 0.f;
  row.each([&](int, float value) { max = fmaxf(max, value); });
  max = warp_max(max);
  float weights[kEach];
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    weights[e] = exp_of_unit(row.z[e] - max);
    sum += weights[e];
  }
  sum = warp_sum(sum);
  const float lse = max + logf(sum), inverse = 1.f / sum;
  if (row.lane == 0) a.lse[at] = lse;
  if (topk == candidates) {
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int t = row.lane + 32 * e;
      if (t < candidates) new_logits[t] = row.z[e] - max, z[t] = weights[e] * inverse;
    }
    return;
  }
  const View<int16_t> list = memory.list + r * a.list_pitch();
  const IndexOut new_index = a.new_index.from(at * topk);
  select_of(row, threshold_of(row, topk, {max, lse}, rank), [&](int t, float value, int slot) {
    const int key = t < candidates ? int(list[t]) : 0;
    __syncwarp();  // entries move down: all of these have been read
    if (slot < 0 || t >= candidates) return;
    new_index.store(slot, key);
    new_logits[slot] = value - max;
    z[slot] = weights[(t - row.lane) / 32] * inverse;  // a constant: the row is in registers
    list[slot] = int16_t(key);
  });
}

// Logits of all candidates, and the rows finished. Ends with the first values on their way.
__device__ __forceinline__ void listed_logits(const ListedForward& a, const ListedMemory& memory,
                                              const ListedRows& rows, const Part& part) {
  const auto& l = a.layer;
  const int lane = int(threadIdx.x) % 32;
  const OwnRows mine(a, rows.count);
  const ListedTerms terms = stage_listed_logits(a, memory, rows, part);
  const NormalRank rank(l.candidates, l.topk);
  __syncwarp();
  for (int r = mine.first; r < mine.last; ++r) {
    with_listed_row(memory.z + r * a.z_pitch(), l.candidates, lane, [&](auto row) {
      terms.add(row, a, memory, memory.list + r * a.list_pitch(), rows.first + r);
      finish_listed(a, memory, row, rank, rows.row(a, r), r);
    });
  }
  __syncwarp();
  if (l.topk < l.candidates) find_ranges(a, memory, rows.count, l.topk);
}

// The weights of the entries that lie in a stretch, spread over this warp's rows of the tile.
__device__ __forceinline__ void spread_weights(const ListedForward& a, const ListedMemory& memory, int count,
                                               int stretch) {
  const int lane = int(threadIdx.x) % 32;
  const OwnRows all(a, a.rows);
  for (int r = all.first; r < all.last; ++r) {
    const View<float> to = memory.tile + r * a.pitch();
#pragma unroll 2
    for (int t = lane * 4; t < a.tile_keys; t += 32 * 4) store_as(to + t, make_uint4(0, 0, 0, 0));
  }
  __syncwarp();
  for_each_entry(a, memory, OwnRows(a, count), stretch, [&](int r, int entry, int key) {
    memory.tile[r * a.pitch() - stretch * a.tile_keys + key] = memory.z[entry];
  });
}

// The sums of all parts in those of the first, always in the same order.
__device__ __forceinline__ void join_parts(TallSums& sums, const ListedForward& a, const Part& mine,
                                           View<float> scratch) {
  const int part = mine.first / kGroup, rows = mine.row0 / kTallRows;
  for (int half = a.parts() / 2; half >= 1; half /= 2) {
    const int slot = (part % half * a.row_groups() + rows) * kTallTiles * kSplitTiles * 4;
    const View<float> at = scratch + (slot * 32 + int(threadIdx.x) % 32);
    if (part >= half && part < 2 * half) sums.each_cell([&](int e, float& x) { at[32 * e] = x; });
    __syncthreads();
    if (part < half) sums.each_cell([&](int e, float& x) { x += at[32 * e]; });
    __syncthreads();
  }
}

// add weight * value for the values that are not finite to the rows that list them, a row by one warp.
__device__ void add_bad_ones(const ListedForward& a, const ListedMemory& memory, const ListedRows& rows,
                             int col0, int cols) {
  const View<const float> v = a.layer.v.head(rows.b) + col0;
  const OwnRows mine(a, rows.count);
  for (int r = mine.first; r < mine.last; ++r) {
    const View<float> out = a.out.head(rows.b) + (rows.first + r) * a.out.stride_row + col0;
#pragma unroll 1
    for (int t = 0; t < a.layer.topk; ++t) {
      const int key = memory.list[r * a.list_pitch() + t];
      const float weight = memory.z[r * a.z_pitch() + t];
#pragma unroll 1
      for (int col = int(threadIdx.x) % 32; col < cols; col += 32) {
        const float value = v[key * a.layer.v.stride_row + col];
        if (!is_finite(value)) out[col] += weight * value;
      }
    }
  }
}

__device__ __forceinline__ void listed_values(const ListedForward& a, const ListedMemory& memory,
                                              const ListedRows& rows, const Part& part) {
  const auto& l = a.layer;
  const LeaveOut leave_out{memory.bad};
  for (int col0 = 0; col0 < l.dim_v; col0 += kChunk) {
    const int cols = l.dim_v - col0 < kChunk ? l.dim_v - col0 : kChunk;
    TallSums sums;
    for (int stretch = 0; stretch < a.stretches; ++stretch) {
      const int tile0 = stretch * a.tile_keys, end = tile0 + keys_here(a, tile0, a.tile_keys);
      spread_weights(a, memory, rows.count, stretch);
      for (int key0 = tile0; key0 < end; key0 += a.keys_at_once) {
        stage_stretch(a, memory, rows.b, l.v, key0, col0, cols, leave_out);
        __syncthreads();
        for (int group = part.first; group < keys_here(a, key0, a.keys_at_once); group += part.step)
          sums.add(memory.tile + (part.row0 * a.pitch() + (key0 - tile0) + group), a.pitch(),
                   memory.stream + group * kChunk, a.keys_at_once * kChunk);
        __syncthreads();  // weights and values have been used
      }
    }
    sums.join();
    join_parts(sums, a, part, memory.sums);
    if (part.first == 0) {
      sums.each([&](int row, int col, float x, float y) {
        const int r = part.row0 + row;
        if (r >= rows.count || col >= cols) return;
        const View<float> out = a.out.head(rows.b) + (rows.first + r) * a.out.stride_row + (col0 + col);
        if (a.out.aligned && col + 1 < cols) {
          store_as(out, make_float2(x, y));
        } else {
          out[0] = x;
          if (col + 1 < cols) out[1] = y;
        }
      });
    }
    __syncthreads();
    if (memory.bad[0]) {
      add_bad_ones(a, memory, rows, col0, cols);
      __syncthreads();
    }
  }
}

__global__ void __launch_bounds__(32 * kTallWarps, 1) attention_forward_tiled_split_kernel(ListedForward a) {
  const ListedRows rows(a, int(blockIdx.x));
  SharedMemory shared;
  const ListedMemory memory(shared, a);
  const Part part(a);
  if (threadIdx.x == 0) memory.bad[0] = 0;
  listed_logits(a, memory, rows,
                part);  // a row of the tile is its warp's from here on, and the keys are used
  listed_values(a, memory, rows, part);
}

}  // namespace

Status attention_forward_tiled_split(const AttentionInputs& in, const AttentionOutputs& out, void* stream) {
  const AttentionShape& s = in.shape;
  if (in.q.dtype != DType::kFloat32) return Status::kBadDType;
  const ForwardArgs<float> to = forward_args<float>(in, out);
  ListedForward a{listed_args(in), to.out, to.new_index, to.new_logits, to.lse};
  const int64_t bytes = plan_listed(s, in.bias != nullptr, a);
  if (!bytes) return Status::kUnsupported;
  a.tiles = int(ceil_div(s.queries, a.rows));
  return launch("attention_forward_tiled_split", attention_forward_tiled_split_kernel,
                s.windows * s.heads * a.tiles, 32 * kTallWarps, bytes, stream, a);
}

}  // namespace pft::cuda
