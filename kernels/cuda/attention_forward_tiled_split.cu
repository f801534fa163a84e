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

constexpr int kMostKeys = 32767;   // a list holds int16
constexpr int kMostListed = 1024;  // registers hold a row

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

// Of `most` keys from key0 on those that are there.
__device__ __forceinline__ int keys_here(const ListedArgs& a, int key0, int most) {
  return a.layer.keys - key0 < most ? a.layer.keys - key0 : most;
}
template <class Odd = KeepAll>
__device__ __forceinline__ void stage_stretch(const ListedArgs& a, const ListedMemory& memory, int64_t b,
                                              const Strided<const float>& from, int key0, int col0, int cols,
                                              const Odd& odd = Odd()) {
  const int here = keys_here(a, key0, a.keys_at_once);
  stage_tall(memory.stream, a.keys_at_once, from.head(b) + key0 * from.stride_row, from.stride_row, here,
             int(round_up(here, kGroup)), col0, cols, from.aligned, odd);
}

// This warp's part of a stretch: its rows, and every so many-th group of keys.
struct Part {
  int row0, first, step;

  __device__ __forceinline__ explicit Part(const ListedArgs& a) {
    const unsigned warp = threadIdx.x / 32, groups = unsigned(a.row_groups());
    row0 = int(warp % groups) * kTallRows, first = int(warp / groups) * kGroup, step = a.parts() * kGroup;
  }
};

// Statistics and selection. The logits become weights of what is kept, the list its keys.
template <int kEach>
__device__ __forceinline__ void finish_listed(const ListedArgs& a, const ListedMemory& memory,
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
__device__ __forceinline__ void listed_logits(const ListedArgs& a, const ListedMemory& memory,
                                              const ListedRows& rows, const Part& part) {
  const auto& l = a.layer;
  const int lane = int(threadIdx.x) % 32;
  const OwnRows mine(a, rows.count);
  stage_lists(a, memory, rows);
  stage_tall(memory.queries, a.rows, l.q.head(rows.b) + rows.first * l.q.stride_row, l.q.stride_row,
             rows.count, a.rows, 0, l.dim_qk, l.q.aligned);
  stage_stretch(a, memory, rows.b, l.k, 0, 0, l.dim_qk);
  const ListedTerms terms(a, memory, rows);
  finish_staging();
  const TallRows queries(memory.queries + part.row0 * kChunk, a.rows * kChunk);
  find_ranges(a, memory, rows.count, l.candidates);
  __syncthreads();  // the queries have been read
  for (int stretch = 0; stretch < a.stretches; ++stretch) {
    const int tile0 = stretch * a.tile_keys, end = tile0 + keys_here(a, tile0, a.tile_keys);
    for (int key0 = tile0; key0 < end; key0 += a.keys_at_once) {
      const int here = keys_here(a, key0, a.keys_at_once);
      for (int group = part.first; group < here; group += part.step) {
        const View<float> to =
            memory.tile + ((part.row0 + lane / 4) * a.pitch() + (key0 - tile0) + group + lane % 4 * 2);
        queries.multiply(memory.stream + group * kChunk, a.keys_at_once * kChunk, l.dim_qk,
                         [&](int tile, int n, const float (&d)[4]) {
                           const View<float> at = to + (tile * 16 * a.pitch() + n * 8);
                           store_as(at, make_float2(d[0], d[1]));
                           store_as(at + 8 * a.pitch(), make_float2(d[2], d[3]));
                         });
      }
      __syncthreads();  // the products are there, the keys have been used
      if (key0 + a.keys_at_once < l.keys)
        stage_stretch(a, memory, rows.b, l.k, key0 + a.keys_at_once, 0, l.dim_qk);
      if (key0 + a.keys_at_once < end) __syncthreads();
    }
    for_each_entry(a, memory, mine, stretch, [&](int r, int entry, int key) {
      memory.z[entry] = fmaf(l.scale, memory.tile[r * a.pitch() - tile0 + key], memory.z[entry]);
    });
    if (end < l.keys) __syncthreads();  // the products have been used, the keys are there
  }
  const NormalRank rank(l.candidates, l.topk);
  __syncwarp();
  for (int r = mine.first; r < mine.last; ++r) {
    const View<const float> z = memory.z + r * a.z_pitch();
    const auto finish = [&](auto row) {
      terms.add(row, a, memory, memory.list + r * a.list_pitch(), rows.first + r);
      finish_listed(a, memory, row, rank, rows.row(a, r), r);
    };
    if (l.candidates <= 64) {
      finish(RowInRegisters<2>(z, l.candidates, lane));
    } else if (l.candidates <= 128) {
      finish(RowInRegisters<4>(z, l.candidates, lane));
    } else if (l.candidates <= 256) {
      finish(RowInRegisters<8>(z, l.candidates, lane));
    } else {
      finish(RowInRegisters<kMostListed / 32>(z, l.candidates, lane));
    }
  }
  __syncwarp();
  if (l.topk < l.candidates) find_ranges(a, memory, rows.count, l.topk);
}

// The weights of the entries that lie in a stretch, spread over this warp's rows of the tile.
__device__ __forceinline__ void spread_weights(const ListedArgs& a, const ListedMemory& memory, int count,
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
__device__ __forceinline__ void join_parts(TallSums& sums, const ListedArgs& a, const Part& mine,
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
__device__ void add_bad_ones(const ListedArgs& a, const ListedMemory& memory, const ListedRows& rows,
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

__device__ __forceinline__ void listed_values(const ListedArgs& a, const ListedMemory& memory,
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

__global__ void __launch_bounds__(32 * kTallWarps, 1) attention_forward_tiled_split_kernel(ListedArgs a) {
  const ListedRows rows(a, int(blockIdx.x));
  SharedMemory shared;
  const ListedMemory memory(shared, a);
  const Part part(a);
  if (threadIdx.x == 0) memory.bad[0] = 0;
  listed_logits(a, memory, rows,
                part);  // a row of the tile is its warp's from here on, and the keys are used
  listed_values(a, memory, rows, part);
}

// Chooses rows and stretches of keys: as many rows as fit beside keys enough for all warps, since keys and
// values are split anew for every block. The bytes it takes, or 0 where nothing fits.
int64_t plan_listed(const AttentionShape& s, bool bias, ListedArgs& a) {
  constexpr int kTiles[][2] = {{256, 256}, {256, 128}, {128, 128}, {128, 64}, {64, 64}, {32, 32}};
  const int64_t limit = shared_memory_limit(), all = round_up(s.keys, kGroup), batch = s.windows * s.heads;
  for (a.rows = 4 * kTallRows; a.rows >= kTallRows; a.rows /= 2) {
    const bool idle = a.rows / 2 >= s.queries || batch * ceil_div(s.queries, a.rows) < multiprocessors();
    if (idle && a.rows > kTallRows) continue;
    a.bias_rows = bias ? int(bias_slice_rows(s.window_size, a.rows)) : 0;
    for (const auto& [tile, stream] : kTiles) {
      if (stream < a.parts() * kGroup && a.rows > kTallRows) continue;
      a.tile_keys = int(tile < all ? tile : all), a.keys_at_once = int(stream < all ? stream : all);
      a.stretches = int(ceil_div(s.keys, a.tile_keys));
      const int64_t bytes = ListedMemory::bytes(a);
      if (bytes <= limit) return bytes;
    }
  }
  return 0;
}

}  // namespace

Status attention_forward_tiled_split(const AttentionInputs& in, const AttentionOutputs& out, void* stream) {
  const AttentionShape& s = in.shape;
  if (in.q.dtype != DType::kFloat32) return Status::kBadDType;
  if (s.dim_qk > kChunk || s.keys > kMostKeys || s.candidates > kMostListed) return Status::kUnsupported;
  ListedArgs a{forward_args<float>(in, out), reinterpret_cast<uintptr_t>(in.logits) % 16 == 0};
  if (in.bias) a.per_line = uint32_t((int64_t(1) << 32) / s.window_size + 1);
  const int64_t bytes = plan_listed(s, in.bias != nullptr, a);
  if (!bytes) return Status::kUnsupported;
  a.tiles = int(ceil_div(s.queries, a.rows));
  return launch("attention_forward_tiled_split", attention_forward_tiled_split_kernel,
                s.windows * s.heads * a.tiles, 32 * kTallWarps, bytes, stream, a);
}

}  // namespace pft::cuda
