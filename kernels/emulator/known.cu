// Kernels whose counts are known by hand: what each does stands in one line of code, and what it must count
// in the test.
#include "known.h"

#include "../cuda/device.cuh"

namespace pft::known {
namespace {

using cuda::kFullWarp;

struct Data {
  View<float> out;
  View<const float> in;
  int stride;
};

__global__ void shared_4(Data d) {
  const View<float> s = SharedMemory().take<float>(2048);
  const int t = int(threadIdx.x);
  d.out[t] = s[t * d.stride];
}

__global__ void shared_2(Data d) {
  const View<half_t> s = SharedMemory().take<half_t>(2048);
  const int t = int(threadIdx.x);
  s[t * d.stride] = from_float<half_t>(float(t));
}

__global__ void shared_8(Data d) {
  const View<float2> s = SharedMemory().take<float2>(1024);
  const int t = int(threadIdx.x);
  d.out[t] = load_as<float2>(s + t * d.stride).x;
}

__global__ void shared_16(Data d) {
  const View<float4> s = SharedMemory().take<float4>(512);
  const int t = int(threadIdx.x);
  d.out[t] = load_as<float4>(s + t * d.stride).x;
}

__global__ void shared_16_store(Data d) {
  const View<float4> s = SharedMemory().take<float4>(512);
  const int t = int(threadIdx.x);
  if (d.stride || !t) store_as(s + t * d.stride, make_float4(0, 0, 0, 0));
}

// Two and two lanes (those that differ in the bit `stride`) read the same 8 bytes, each pair its own.
__global__ void shared_8_pairs(Data d) {
  const View<float2> s = SharedMemory().take<float2>(64);
  const int t = int(threadIdx.x);
  d.out[t] = load_as<float2>(s + (t & ~d.stride)).x;
}

// The same, but the 16 pairs read 16 neighbours: all banks, each once.
__global__ void shared_8_same(Data d) {
  const View<float2> s = SharedMemory().take<float2>(64);
  const int t = int(threadIdx.x), above = t / (2 * d.stride) * d.stride, below = t % d.stride;
  d.out[t] = load_as<float2>(s + above + below).x;
}

__global__ void global_4(Data d) {
  const int t = int(threadIdx.x);
  const float x = d.in[t * d.stride];
  if (x < -1) d.out[0] = x;
}

__global__ void global_4_unaligned(Data d) {
  const int t = int(threadIdx.x);
  const float x = d.in[t + d.stride];
  if (x < -1) d.out[0] = x;
}

__global__ void global_16(Data d) {
  const int t = int(threadIdx.x);
  const float4 x = load_as<float4>(d.in + 4 * t * d.stride);
  if (x.x < -1) d.out[0] = x.x;
}

// ldmatrix of four 8x8 matrices, rows `stride` units of 16 bytes apart.
__global__ void matrix(Data d) {
  const View<half_t> s = SharedMemory().take<half_t>(32 * 8 * 8);
  uint32_t r[4];
  ldmatrix_x4<false>(r, s + int(threadIdx.x) * 8 * d.stride);
}

__global__ void products(Data d) {
  const uint32_t a[4] = {}, b[2] = {};
  float sum[4] = {};
  for (int i = 0; i < 3; ++i) mma_m16n8k16<half_t>(sum, a, b);
  if (sum[0] < -1) d.out[0] = sum[0];
}

__global__ void branch(Data d) {
  const View<float> s = SharedMemory().take<float>(64);
  const int t = int(threadIdx.x);
  if (t < 16) {
    s[t] = 0;
  } else {
    s[2 * t] = 0;
  }
  d.out[t] = 0;
}

// The lane's n-th turn: n + 1 of them where t % 4 == n.
__global__ void uneven_loop(Data d) {
  const View<float> s = SharedMemory().take<float>(4 * 32);
  const int t = int(threadIdx.x);
  for (int i = 0; i <= t % 4; ++i) s[t + 32 * i] = 0;
  d.out[t] = 0;
}

// Every lane comes to each of the two places twice, but never together with its neighbour.
__global__ void alternating(Data d) {
  const View<float> s = SharedMemory().take<float>(64);
  const int t = int(threadIdx.x);
  for (int i = 0; i < 4; ++i) {
    if ((t + i) % 2) {
      s[t] = 0;
    } else {
      s[t + 32] = 0;
    }
  }
  d.out[t] = 0;
}

// Three turns for every lane, but in the first round two for the even ones and in the second two for the odd.
__global__ void nested_loops(Data d) {
  const View<float> s = SharedMemory().take<float>(32);
  const int t = int(threadIdx.x);
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < (t % 2 == i ? 2 : 1); ++j) s[t] = 0;
  }
  d.out[t] = 0;
}

// Lane l leaves in turn l % 4, and where that is the fourth it stays.
__global__ void leaving(Data d) {
  const View<float> s = SharedMemory().take<float>(96);
  const int t = int(threadIdx.x), last = t % 4 < 3 ? t % 4 : 9;
  for (int i = 0; i < 4; ++i) {
    s[t] = 0;
    if (i == last) {
      s[t + 32] = 0;
      break;
    }
    s[t + 64] = 0;
  }
  d.out[t] = 0;
}

// A function called from both sides of a branch: two places of the kernel.
__device__ void put(View<float> at) { at[0] = 0; }
__global__ void called_twice(Data d) {
  const View<float> s = SharedMemory().take<float>(64);
  const int t = int(threadIdx.x);
  if (t % 2) {
    put(s + t);
  } else {
    put(s + t + 32);
  }
  d.out[t] = 0;
}

__global__ void early_exit(Data d) {
  const int t = int(threadIdx.x);
  if (t >= 20) return;
  d.out[t] = d.in[t];
}

__global__ void talking(Data d) {
  int x = int(threadIdx.x);
  for (int i = 0; i < 5; ++i) x = __shfl_xor_sync(kFullWarp, x, 1);
  for (int i = 0; i < 4; ++i) x += int(__ballot_sync(kFullWarp, x > i));
  for (int i = 0; i < 3; ++i) x = __reduce_add_sync(kFullWarp, x);
  for (int i = 0; i < 2; ++i) __syncwarp();
  __syncthreads();
  if (x == 7) d.out[0] = 1;
}

__global__ void copying(Data d) {
  const View<float> s = SharedMemory().take<float>(128);
  const int t = int(threadIdx.x);
  cp_async_16(s + 4 * t, d.in + 4 * t);
  cp_async_commit();
  cp_async_wait<0>();
}

__global__ void joining(Data d) {
  const View<uint32_t> s = SharedMemory().take<uint32_t>(64);
  atomic_or(s + int(threadIdx.x) * d.stride, 1u);
}

__global__ void arithmetic(Data d) {
  const int t = int(threadIdx.x);
  float x = float(t);
  for (int i = 0; i < 3; ++i) x = fmaf(x, 2.f, 1.f);
  if (t < 8) x = expf(x);  // by one of the two warps only
  x = logf(x) + to_float(from_float<half_t>(x));
  if (x == -7.f) d.out[0] = x;
}

// All blocks read the same 128 bytes, each writes its own 128 and reads them again.
__global__ void traffic(Data d) {
  const int t = int(threadIdx.x), own = int(blockIdx.x) * 32 + t;
  d.out[own] = d.in[t];
  __syncwarp();
  const float x = d.out[own];
  if (x < -1) d.out[0] = x;
}

// Rows of 40 floats in shared memory, one row a lane, 16 bytes at a time: free of conflicts if an odd number
// of units lies between rows, which is what pitch_of() is for. `stride` 0: as planned, 1: without the odd
// unit.
__global__ void gather(Data d) {
  const int t = int(threadIdx.x), planned = cuda::pitch_of<float>(40), pitch = d.stride ? 40 : planned;
  const View<float> rows = SharedMemory().take<float>(32 * planned);
  cuda::stage_rows<float>(rows, pitch, d.in, 40, 32, 0, 40, true);
  cuda::finish_staging();
  float sum = 0;
  for (int u = 0; u < 10; ++u) sum += load_as<float4>(rows + t * pitch + 4 * u).x;
  d.out[t] = sum;
}

// Sums of 32 columns of a 32 x 32 matrix. `stride` 0: a lane owns a column, 1: a row, whose elements then lie
// in 32 different sectors at every step.
__global__ void column_sums(Data d) {
  const int t = int(threadIdx.x);
  float sum = 0;
  for (int i = 0; i < 32; ++i) sum += d.in[d.stride ? t * 32 + i : i * 32 + t];
  d.out[t] = sum;
}

struct Entry {
  const char* name;
  void (*kernel)(Data);
  int blocks, threads, shared_bytes;
};
constexpr Entry kAll[] = {
    {"shared_4", shared_4, 1, 32, 8192},
    {"shared_2", shared_2, 1, 32, 4096},
    {"shared_8", shared_8, 1, 32, 8192},
    {"shared_16", shared_16, 1, 32, 8192},
    {"shared_16_store", shared_16_store, 1, 32, 8192},
    {"shared_8_pairs", shared_8_pairs, 1, 32, 512},
    {"shared_8_same", shared_8_same, 1, 32, 512},
    {"global_4", global_4, 1, 32, 0},
    {"global_4_unaligned", global_4_unaligned, 1, 32, 0},
    {"global_16", global_16, 1, 32, 0},
    {"matrix", matrix, 1, 32, 4096},
    {"products", products, 1, 64, 0},
    {"branch", branch, 1, 32, 256},
    {"uneven_loop", uneven_loop, 1, 32, 512},
    {"alternating", alternating, 1, 32, 256},
    {"nested_loops", nested_loops, 1, 32, 128},
    {"leaving", leaving, 1, 32, 384},
    {"called_twice", called_twice, 1, 32, 256},
    {"early_exit", early_exit, 1, 48, 0},
    {"talking", talking, 1, 64, 0},
    {"copying", copying, 1, 32, 512},
    {"joining", joining, 1, 32, 256},
    {"arithmetic", arithmetic, 1, 64, 0},
    {"traffic", traffic, 3, 32, 0},
    {"gather", gather, 1, 32, 32 * 44 * 4},
    {"column_sums", column_sums, 1, 32, 0},
};

}  // namespace

const std::vector<std::string>& names() {
  static const std::vector<std::string> all = [] {
    std::vector<std::string> found;
    for (const Entry& e : kAll) found.emplace_back(e.name);
    return found;
  }();
  return all;
}

void run(const std::string& name, int stride) {
  const std::vector<float> in(2048, 0.f);
  std::vector<float> out(2048, 0.f);
  emu::Buffers buffers;
  buffers.add(in.data(), in.size() * 4, 4, false);
  buffers.add(out.data(), out.size() * 4, 4, true);
  const Data data{View<float>(out.data()), View<const float>(in.data()), stride};
  void* stream = nullptr;
  for (const Entry& e : kAll) {
    if (name != e.name) continue;
    launch(e.name, e.kernel, e.blocks, e.threads, e.shared_bytes, stream, data);
    return;
  }
  throw emu::Error("no kernel with known counts is called " + name);
}

}  // namespace pft::known
