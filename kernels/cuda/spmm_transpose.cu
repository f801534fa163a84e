// Transposed SpMM: out[b,j] = initial[b,j] + scale * sum over (i,t) with index[b,i,t] == j of a[b,i,t]
// x[b,i].
//
// No sum is left to atomics, and there is no race. Here is v1: a warp owns four channels of all keys, and
// goes through the query rows in order. The entries of one row name distinct keys, so its 32 lanes add to 32
// different accumulators; a __syncwarp parts the rows. v2 (spmm_transpose_tiles.cu, spmm_transpose_split.cu):
// 16 rows at a time become a dense tile, and a warp adds up the products of its keys in registers. v3
// (spmm_transpose_sorted.cu): entries sorted by key. In each an accumulator sees its terms in one order,
// whatever the hardware does: the same bits in every run.
#include "split_tile.cuh"
#include "transpose_args.cuh"

namespace pft::cuda {
namespace {

constexpr int kChannels = 4;        // of a warp: one 16-byte read and write of shared memory
constexpr int kTileEntries = 2048;  // entries staged at a time for all warps of the block
constexpr int kMaxWarps = 16;

// v0: one thread per output element looks through every entry of the window-head. Right, and slow: N*K reads
// per output.
template <class TA, class T>
__global__ void __launch_bounds__(256, 4) spmm_transpose_plain(TransposeArgs<TA, T> a) {
  const int64_t out = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (out >= a.batch * a.keys * a.dim) return;
  const int64_t row = out / a.dim, b = row / a.keys;
  const int j = int(row % a.keys), e = int(out % a.dim);
  const View<const TA> weights = a.weights(b);
  const View<const T> x = a.x.head(b);
  float sum = 0.f;
  for (int i = 0; i < a.queries; ++i) {
    for (int t = 0; t < a.kept; ++t) {
      if (a.index[(b * a.queries + i) * a.kept + t] != j) continue;
      sum = fmaf(to_float(weights[i * a.a_stride_row + t]), to_float(x[i * a.x.stride_row + e]), sum);
    }
  }
  sum *= a.scale;
  if (a.initial) sum += a.initial[out];
  (a.out.head(b) + j * a.out.stride_row)[e] = from_float<T>(sum);
}

// v1: accumulators of a range of keys and columns in shared memory; see the head of this file.
template <class TA, class T>
__global__ void __launch_bounds__(32 * kMaxWarps, 2)
    spmm_transpose_owner(TransposeArgs<TA, T> a, int tile_rows, int tile_kept) {
  const int warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32, lane = int(threadIdx.x) % 32;
  const int64_t b = blockIdx.x / unsigned(a.column_blocks * a.key_blocks);
  const int part = int(blockIdx.x % unsigned(a.column_blocks * a.key_blocks));
  const int col0 = part % a.column_blocks * a.columns, key0 = part / a.column_blocks * a.keys_at_once;
  const int cols = a.dim - col0 < a.columns ? a.dim - col0 : a.columns;
  const int here = a.keys - key0 < a.keys_at_once ? a.keys - key0 : a.keys_at_once;
  const int pitch = pitch_of<float>(a.columns), units = units_of<float>(cols);
  SharedMemory shared;
  const View<float> sums = shared.take<float>(int64_t(a.keys_at_once) * pitch);
  const View<float2> entries = shared.take<float2>(int64_t(tile_rows) * tile_kept);
  const View<float> rows = shared.take<float>(int64_t(tile_rows) * a.columns);
  const View<const TA> weights = a.weights(b);
  const View<const T> x = a.x.head(b);

  for (int e = int(threadIdx.x); e < here * pitch; e += int(blockDim.x)) sums[e] = 0.f;
  for (int i0 = 0; i0 < a.queries; i0 += tile_rows) {
    const int tile = a.queries - i0 < tile_rows ? a.queries - i0 : tile_rows;
    for (int e = int(threadIdx.x); e < tile * a.columns; e += int(blockDim.x)) {
      const int i = e / a.columns, col = e % a.columns;
      rows[e] = col < cols ? to_float(x[(i0 + i) * a.x.stride_row + col0 + col]) : 0.f;
    }
    for (int t0 = 0; t0 < a.kept; t0 += tile_kept) {
      const int count = a.kept - t0 < tile_kept ? a.kept - t0 : tile_kept;
      for (int e = int(threadIdx.x); e < tile * count; e += int(blockDim.x)) {
        const int i = i0 + e / count, t = t0 + e % count;
        const int key = a.index[(b * a.queries + i) * a.kept + t] - key0;
        const float weight = to_float(weights[i * a.a_stride_row + t]);
        entries[e] = make_float2(__uint_as_float(unsigned(key)), weight);
      }
      __syncthreads();
      for (int unit = warp; unit < units; unit += warps) {
        for (int i = 0; i < tile; ++i) {
          const float4 value = load_as<float4>(rows + i * a.columns + unit * kChannels);
          for (int t = lane; t < count; t += 32) {
            const float2 entry = entries[i * count + t];
            const int key = int(__float_as_uint(entry.x));
            if (key < 0 || key >= here) continue;
            const View<float> at = sums + int64_t(key) * pitch + unit * kChannels;
            float4 sum = load_as<float4>(at);
            sum.x = fmaf(entry.y, value.x, sum.x);
            sum.y = fmaf(entry.y, value.y, sum.y);
            sum.z = fmaf(entry.y, value.z, sum.z);
            sum.w = fmaf(entry.y, value.w, sum.w);
            store_as(at, sum);
          }
          __syncwarp();
        }
      }
      __syncthreads();
    }
  }
  __syncthreads();
  for (int e = int(threadIdx.x); e < here * cols; e += int(blockDim.x)) {
    const int j = e / cols, col = e % cols;
    float sum = a.scale * sums[int64_t(j) * pitch + col];
    if (a.initial) sum += a.initial[(b * a.keys + key0 + j) * a.dim + col0 + col];
    (a.out.head(b) + (key0 + j) * a.out.stride_row)[col0 + col] = from_float<T>(sum);
  }
}

template <class TA, class T>
Status run(TransposeArgs<TA, T> a, Version version, void* stream) {
  if (version == Version::kPlain) {
    const int64_t blocks = ceil_div(a.batch * a.keys * a.dim, 256);
    return launch("spmm_transpose_plain", spmm_transpose_plain<TA, T>, blocks, 256, 0, stream, a);
  }
  // Half of what an SM has, so that two blocks share it and one works while the other waits.
  const int64_t limit = shared_memory_limit(), half = limit / 2;
  int units = units_of<float>(a.dim) < kMaxWarps ? units_of<float>(a.dim) : kMaxWarps;
  const int tile_kept = a.kept < kTileEntries ? a.kept : kTileEntries;
  int tile_rows = int(kTileEntries / (tile_kept ? tile_kept : 1));
  if (tile_rows > 64) tile_rows = 64;
  const auto fixed = [&] { return int64_t(tile_rows) * (tile_kept * 8 + units * 16) + 32; };
  const auto accumulators = [&] { return int64_t(a.keys) * pitch_of<float>(units * 4) * 4; };
  while (units > 1 && accumulators() + fixed() > half) units = (units + 1) / 2;
  a.columns = units * kChannels;
  a.column_blocks = int(ceil_div(a.dim, a.columns));
  const int64_t row_bytes = pitch_of<float>(a.columns) * 4;
  const int64_t fits = (limit - fixed()) / row_bytes;
  if (fits < 1) return Status::kUnsupported;
  a.keys_at_once = int(fits < a.keys ? fits : a.keys);
  a.key_blocks = int(ceil_div(a.keys, a.keys_at_once));
  return launch("spmm_transpose_owner", spmm_transpose_owner<TA, T>, a.batch * a.column_blocks * a.key_blocks,
                32 * units, a.keys_at_once * row_bytes + fixed(), stream, a, tile_rows, tile_kept);
}

// By counts, not measured (kernels/cuda/README.md). Sorted entries cost as much as there are, tiles the same
// however many: tensor cores as much as a 22nd of the keys in 16-bit types, FFMA as a fifth, split float32 as
// a fourteenth, but that is taken from half as fast again.
bool tiles_pay(const SparseShape& s, DType dtype) {
  return s.kept * (dtype == DType::kFloat32 ? 5 : 22) >= s.keys;
}
bool split_tiles_pay(const SparseShape& s) { return s.kept * 10 >= s.keys; }

}  // namespace

Status spmm_transpose(const SparseShape& s, int64_t heads, Input a, Input x, Index index,
                      const float* initial, Output out, float scale, Version version, Float32 how,
                      void* stream) {
  if (version == Version::kAuto && splits(x.dtype, how) && (how == Float32::kSplit || split_tiles_pay(s))) {
    const Status status = spmm_transpose_split(s, heads, a, x, index, initial, out, scale, stream);
    if (status != Status::kUnsupported || how == Float32::kSplit) return status;
  }
  if (version == Version::kTiles || (version == Version::kAuto && tiles_pay(s, x.dtype))) {
    const Status status = spmm_transpose_tiles(s, heads, a, x, index, initial, out, scale, stream);
    if (status != Status::kUnsupported) return status;
  }
  if (version == Version::kSorted || version == Version::kAuto) {
    const Status status = spmm_transpose_sorted(s, heads, a, x, index, initial, out, scale, stream);
    if (status != Status::kUnsupported) return status;
  }
  return with_transpose_args(s, heads, a, x, index, initial, out, scale,
                             [&](const auto& args) { return run(args, version, stream); });
}

}  // namespace pft::cuda
