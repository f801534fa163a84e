// Transposed SpMM for short lists: the entries of a stretch of rows are sorted by key in shared memory, and a
// group of eight lanes adds up what a key's entries name, in registers, from the first row to the last.
//
// Sorted by counting, without atomics: a warp has rows of its own, one after another, whose entries name
// distinct keys, and counters of its own. Where the entries of a warp and a key begin follows from the counts
// of all warps, so a key's entries lie in the order of their rows: the same bits in every run, and those of
// spmm_transpose_owner.
#include <type_traits>

#include "transpose_args.cuh"

namespace pft::cuda {
namespace {

constexpr int kMostWarps = 16;
constexpr int kGroup = 8;                  // lanes that share a key
constexpr int kGroups = 32 / kGroup;       // of a warp
constexpr int kOwn = 16;                   // keys of a group
constexpr int kWarpKeys = kGroups * kOwn;  // two for each lane
constexpr int kFirst = 32, kLast = 8,
              kColumns = kFirst + kLast;  // of x in a block; four of the first for each lane, then one more
constexpr int kMostRows = 512, kMostEntries = 0xffff;  // of a stretch: their places are 16-bit numbers

template <class T>
struct SortedMemory {
  TransposeBegin begin;
  View<T> first, last;    // of x, [rows, kFirst] and [rows, kLast]
  View<float2> entries;   // [rows * kept]: weight, and kLast times the row; sorted by key, then by row
  View<uint16_t> places;  // [warps, keys]: counts, then where a warp's next entry of a key goes
  View<uint32_t> ranges;  // [keys]: first entry, and beyond the last
  View<uint32_t> totals;  // [warps]
  int keys;

  __device__ SortedMemory(SharedMemory& shared, int rows, int kept, int warps)
      : begin(shared), keys(warps * kWarpKeys) {
    first = shared.take<T>(rows * kFirst);
    last = shared.take<T>(rows * kLast);
    entries = shared.take<float2>(int64_t(rows) * kept);
    places = shared.take<uint16_t>(warps * keys);
    ranges = shared.take<uint32_t>(keys);
    totals = shared.take<uint32_t>(warps);
  }
  static int64_t bytes(int64_t rows, int64_t kept, int64_t warps) {
    return TransposeBegin::kBytes + rows * kColumns * int64_t(sizeof(T)) + round_up(rows * kept * 8, 16) +
           warps * warps * kWarpKeys * 2 + warps * kWarpKeys * 4 + round_up(warps * 4, 16);
  }
};

// Of a stretch of rows, one warp's: neighbours.
struct WarpRows {
  int first, last;

  __device__ __forceinline__ WarpRows(int i0, int rows, int queries) {
    const int warps = int(blockDim.x) / 32, each = rows / warps;
    first = i0 + int(threadIdx.x) / 32 * each;
    last = first + each < queries ? first + each : queries;
  }
};

// f(row, entry, key) for a warp's entries of keys that are the block's: of one row at a time.
template <class TA, class T, class F>
__device__ __forceinline__ void for_each_entry(const TransposeArgs<TA, T>& a, const SortedMemory<T>& m,
                                               const WarpRows& rows, F f) {
  const int key0 = m.begin.key0();
  const int64_t begin = m.begin.entries();
  for (int i = rows.first; i < rows.last; ++i) {
    const int64_t first = begin + int64_t(i) * a.kept;
    for (int t = int(threadIdx.x) % 32; t < a.kept; t += 32) {
      const int key = a.index[first + t] - key0;
      if (unsigned(key) < unsigned(m.keys)) f(i, t, key);
    }
    __syncwarp();
  }
}

// Four numbers in shared memory.
template <class T>
using Four = std::conditional_t<sizeof(T) == 4, float4, uint2>;

template <class T>
__device__ __forceinline__ float4 four_of(View<const T> x) {
  const Four<T> raw = load_as<Four<T>>(x);
  if constexpr (sizeof(T) == 4) {
    return raw;
  } else {
    const float2 one = unpack_pair(raw.x, T{}), two = unpack_pair(raw.y, T{});
    return make_float4(one.x, one.y, two.x, two.y);
  }
}
template <class T>
__device__ __forceinline__ Four<T> packed(const float (&x)[4]) {
  if constexpr (sizeof(T) == 4) {
    return make_float4(x[0], x[1], x[2], x[3]);
  } else {
    return make_uint2(pack_pair(x[0], x[1], T{}), pack_pair(x[2], x[3], T{}));
  }
}

// `rows` rows of x from row i0 on.
template <class TA, class T>
__device__ __forceinline__ void stage_x(const TransposeArgs<TA, T>& a, const SortedMemory<T>& m, int i0,
                                        int rows) {
  constexpr int kUnits = kColumns / 4;
  const View<const T> x = a.x.data + m.begin.x();
  const int cols = m.begin.cols();
  const bool whole = a.x.aligned && cols % 4 == 0;
  const int here = a.queries - i0 < rows ? a.queries - i0 : rows;
#pragma unroll 2
  for (int e = int(threadIdx.x); e < here * kUnits; e += int(blockDim.x)) {
    const int row = e / kUnits, col = e % kUnits * 4;
    const View<const T> from = x + ((i0 + row) * a.x.stride_row + col);
    const View<T> to = col < kFirst ? m.first + (row * kFirst + col) : m.last + (row * kLast + col - kFirst);
    if (col >= cols) continue;  // nobody's
    if (whole) {
      store_as(to, load_as<Four<T>>(from));
    } else {
      float v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = col + i < cols ? to_float(from[i]) : 0.f;
      store_as(to, packed<T>(v));  // exact: it came from T
    }
  }
}

// Counts become places, by threads that have two keys each.
template <class T>
__device__ __forceinline__ void find_places(const SortedMemory<T>& m) {
  const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32, warps = int(blockDim.x) / 32;
  const View<uint16_t> mine = m.places + 2 * thread;
  uint32_t sum = 0;  // of two keys, 16 bits each
#pragma unroll 4
  for (int w = 0; w < warps; ++w) sum += load_as<uint32_t>(mine + w * m.keys);
  const int both = int((sum & 0xffffu) + (sum >> 16));
  int upto = both;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_sync(kFullWarp, upto, lane - step < 0 ? lane : lane - step);
    upto += lane >= step ? other : 0;
  }
  if (lane == 31) m.totals[warp] = uint32_t(upto);
  __syncthreads();
  uint32_t first = uint32_t(upto - both);
  for (int w = 0; w < warp; ++w) first += m.totals[w];
  const uint32_t second = first + (sum & 0xffffu), last = second + (sum >> 16);
  store_as(m.ranges + 2 * thread, make_uint2(first | second << 16, second | last << 16));
  uint32_t place = first | second << 16;
#pragma unroll 4
  for (int w = 0; w < warps; ++w) {
    const View<uint16_t> at = mine + w * m.keys;
    const uint32_t count = load_as<uint32_t>(at);  // again: registers hold the sums
    store_as(at, place);
    place += count;
  }
}

// The sums of a group's keys; a lane has five columns.
struct GroupSums {
  float first[kOwn][4] = {}, more[kOwn] = {};

  template <class T>
  __device__ __forceinline__ void add(const SortedMemory<T>& m, bool wide) {
    const int thread = computed_anew(int(threadIdx.x)), lane = thread % kGroup;
    const View<const T> four = m.first + lane * 4, one = m.last + lane;
    View<const uint32_t> ranges = m.ranges + thread / kGroup;
#pragma unroll
    for (int n = 0; n < kOwn; ++n) {
      const uint32_t range = ranges[0];
      ranges = ranges + int(blockDim.x) / kGroup;
#pragma unroll 2
      for (int e = int(range & 0xffffu); e < int(range >> 16); ++e) {
        const float2 entry = load_as<float2>(m.entries + e);
        const int row = int(__float_as_uint(entry.y));
        const float4 v = four_of<T>(four + row * (kFirst / kLast));
        first[n][0] = fmaf(entry.x, v.x, first[n][0]);
        first[n][1] = fmaf(entry.x, v.y, first[n][1]);
        first[n][2] = fmaf(entry.x, v.z, first[n][2]);
        first[n][3] = fmaf(entry.x, v.w, first[n][3]);
        if (wide) more[n] = fmaf(entry.x, to_float(one[row]), more[n]);
      }
    }
  }
};

// Four columns of a key from `col` on, of `cols` that there are.
template <class TA, class T>
__device__ __forceinline__ void store_four(const TransposeArgs<TA, T>& a, const TransposePart& part, int key,
                                           int col, float (&sum)[4]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    sum[e] *= a.scale;
    if (a.initial && col + e < part.cols)
      sum[e] += a.initial[(part.b * a.keys + part.key0 + key) * a.dim + part.col0 + col + e];
  }
  const View<T> to = a.out.head(part.b) + ((part.key0 + key) * a.out.stride_row + part.col0 + col);
  if (a.out.aligned && col + 3 < part.cols) {
    store_as(to, packed<T>(sum));
    return;
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if (col + e < part.cols) to[e] = from_float<T>(sum[e]);
  }
}

template <class TA, class T>
__global__ void __launch_bounds__(32 * kMostWarps, 1)
    spmm_transpose_sorted(TransposeArgs<TA, T> a, int rows) {
  SharedMemory shared;
  const SortedMemory<T> m(shared, rows, a.kept, int(blockDim.x) / 32);
  if (threadIdx.x == 0) m.begin.set(a);
  __syncthreads();
  GroupSums sums;
#pragma unroll 1
  for (int i0 = 0; i0 < a.queries; i0 += rows) {
    const int thread = computed_anew(int(threadIdx.x));
    const View<uint16_t> mine = m.places + thread / 32 * m.keys;
    const WarpRows own(i0, rows, a.queries);
    for (int c = thread % 32 * 8; c < m.keys; c += 32 * 8) store_as(mine + c, make_uint4(0, 0, 0, 0));
    __syncwarp();
    for_each_entry(a, m, own, [&](int, int, int key) { mine[key] = uint16_t(mine[key] + 1); });
    stage_x(a, m, i0, rows);
    __syncthreads();
    find_places(m);
    __syncthreads();
    const View<const TA> weights = a.a + m.begin.weights();
    for_each_entry(a, m, own, [&](int i, int t, int key) {
      const int place = mine[key];
      mine[key] = uint16_t(place + 1);
      const float weight = to_float(weights[i * a.a_stride_row + t]);
      store_as(m.entries + place, make_float2(weight, __uint_as_float(uint32_t((i - i0) * kLast))));
    });
    __syncthreads();
    sums.add(m, m.begin.cols() > kFirst);
    __syncthreads();  // entries and x have been used
  }
  const TransposePart part(a, computed_anew(int(blockIdx.x)));
#pragma unroll
  for (int n = 0; n < kOwn; ++n) {
    const int key = n * (int(blockDim.x) / kGroup) + int(threadIdx.x) / kGroup,
              col = int(threadIdx.x) % kGroup;
    if (part.key0 + key >= a.keys) continue;
    store_four(a, part, key, col * 4, sums.first[n]);
    if (kFirst + col >= part.cols) continue;
    float sum = a.scale * sums.more[n];
    const int64_t row = part.key0 + key;
    if (a.initial) sum += a.initial[(part.b * a.keys + row) * a.dim + part.col0 + kFirst + col];
    (a.out.head(part.b) + row * a.out.stride_row)[part.col0 + kFirst + col] = from_float<T>(sum);
  }
}

template <class TA, class T>
Status run(TransposeArgs<TA, T> a, void* stream) {
  const int64_t limit = shared_memory_limit(), all = ceil_div(a.keys, kWarpKeys);
  a.key_blocks = int(ceil_div(all, kMostWarps));
  const int warps = int(ceil_div(all, a.key_blocks));
  a.keys_at_once = warps * kWarpKeys;
  const auto fits = [&](int64_t rows) {
    return SortedMemory<T>::bytes(rows, a.kept, warps) <= limit && rows * a.kept <= kMostEntries;
  };
  int64_t rows = round_up(a.queries < kMostRows ? a.queries : kMostRows, warps);
  while (rows > warps && !fits(rows)) rows -= warps;
  if (!fits(rows)) return Status::kUnsupported;
  if (rows) rows = round_up(ceil_div(a.queries, ceil_div(a.queries, rows)), warps);  // stretches alike
  a.column_blocks = int(ceil_div(a.dim, kColumns));
  a.columns = int(round_up(ceil_div(a.dim, a.column_blocks), 8));
  return launch("spmm_transpose_sorted", spmm_transpose_sorted<TA, T>,
                a.batch * a.column_blocks * a.key_blocks, 32 * warps,
                SortedMemory<T>::bytes(rows, a.kept, warps), stream, a, int(rows));
}

}  // namespace

Status spmm_transpose_sorted(const SparseShape& s, int64_t heads, Input a, Input x, Index index,
                             const float* initial, Output out, float scale, void* stream) {
  return with_transpose_args(s, heads, a, x, index, initial, out, scale,
                             [&](const auto& args) { return run(args, stream); });
}

}  // namespace pft::cuda
